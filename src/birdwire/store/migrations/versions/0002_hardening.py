"""What hardening needs: pinned accounts, link management as actions, the end of callbacks."""

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
    _keep_link_management()
    _end_links_of_expired_keys()
    _state_facts()
    _note_refusals_met()


def _pin_keys_to_accounts() -> None:
    op.add_column("api_keys", sa.Column("account_username", sa.String(), nullable=True))
    op.add_column("api_keys", sa.Column("account_user_id", sa.String(), nullable=True))


def _record_the_end_of_callbacks() -> None:
    op.add_column("link_states", sa.Column("ended_at", Instant(), nullable=True))
    op.add_column("link_states", sa.Column("refusal", sa.String(), nullable=True))


def _keep_link_management() -> None:
    """Let every key that lists its actions go on managing its link, which no list restricted until now."""
    keys = sa.table("api_keys", sa.column("key_id", sa.String()), sa.column("actions", sa.JSON()))
    connection = op.get_bind()
    for key_id, actions in connection.execute(sa.select(keys.c.key_id, keys.c.actions)).all():
        if actions:
            listed = [*actions, "link", "unlink"]
            connection.execute(sa.update(keys).where(keys.c.key_id == key_id).values(actions=listed))


def _end_links_of_expired_keys() -> None:
    """A link now ends a day after its key expires, where it has no end yet."""
    op.create_index("x_sessions_account", "x_sessions", ["issuer", "user_id"])
    op.execute(
        "UPDATE x_sessions SET over_at ="
        " (SELECT expires_at + 86400000000 FROM api_keys WHERE api_keys.key_id = x_sessions.key_id)"
        " WHERE over_at IS NULL"
    )


def _state_facts() -> None:
    op.create_table(
        "store_facts",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )


def _note_refusals_met() -> None:
    op.create_table(
        "refusals_met",
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("operation", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("met_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "client_id", "operation"),
    )
