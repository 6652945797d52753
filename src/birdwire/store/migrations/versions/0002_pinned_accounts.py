"""Keys pinned to one X account."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """To this schema."""
    _pin_keys_to_accounts()
    _end_links_of_expired_keys()


def _pin_keys_to_accounts() -> None:
    op.add_column("api_keys", sa.Column("account_username", sa.String(), nullable=True))
    op.add_column("api_keys", sa.Column("account_user_id", sa.String(), nullable=True))


def _end_links_of_expired_keys() -> None:
    """A link now ends a day after its key expires, where it has no end yet."""
    op.create_index("x_sessions_account", "x_sessions", ["issuer", "user_id"])
    op.execute(
        "UPDATE x_sessions SET over_at ="
        " (SELECT expires_at + 86400000000 FROM api_keys WHERE api_keys.key_id = x_sessions.key_id)"
        " WHERE over_at IS NULL"
    )
