"""Keys pinned to one X account; how callbacks ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from birdwire.store.schema import Instant

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """To this schema."""
    _pin_keys_to_accounts()
    _record_the_end_of_callbacks()


def _pin_keys_to_accounts() -> None:
    op.add_column("api_keys", sa.Column("account_username", sa.String(), nullable=True))
    op.add_column("api_keys", sa.Column("account_user_id", sa.String(), nullable=True))


def _record_the_end_of_callbacks() -> None:
    op.add_column("link_states", sa.Column("ended_at", Instant(), nullable=True))
    op.add_column("link_states", sa.Column("refusal", sa.String(), nullable=True))
