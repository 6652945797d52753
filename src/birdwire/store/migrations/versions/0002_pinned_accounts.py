"""Keys pinned to one X account."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """To this schema."""
    _pin_keys_to_accounts()
    _state_facts()


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
