"""Keys pinned to one X account."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from birdwire.store.schema import Instant

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """To this schema."""
    _pin_keys_to_accounts()
    _state_facts()
    _note_refusals_met()


def _pin_keys_to_accounts() -> None:
    op.add_column("api_keys", sa.Column("account_username", sa.String(), nullable=True))
    op.add_column("api_keys", sa.Column("account_user_id", sa.String(), nullable=True))


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
