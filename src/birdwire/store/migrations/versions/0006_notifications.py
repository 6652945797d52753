"""Notifications: their destination, and the outbox of events that are to be delivered to it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from birdwire.store.schema import Instant

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """To this schema."""
    op.create_table(
        "destinations",
        sa.Column("destination_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("url_ct", sa.LargeBinary(), nullable=False),
        sa.Column("secret_ct", sa.LargeBinary(), nullable=False),
        sa.Column("old_secret_ct", sa.LargeBinary(), nullable=True),
        sa.Column("old_secret_until", Instant(), nullable=True),
        sa.Column("with_link", sa.Boolean(), nullable=False),
        sa.Column("with_text", sa.Boolean(), nullable=False),
        sa.Column("set_at", Instant(), nullable=False),
        sa.Column("set_by", sa.String(), nullable=False),
        sa.Column("secret_at", Instant(), nullable=False),
        sa.Column("off_at", Instant(), nullable=True),
        sa.Column("off_why", sa.String(), nullable=True),
        sa.Column("failing_since", Instant(), nullable=True),
        sa.Column("tried_at", Instant(), nullable=True),
        sa.Column("delivered_at", Instant(), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("sender", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("destination_id"),
    )
    op.create_table(
        "outbox",
        sa.Column("event_id", sa.String(), nullable=False),
        sa.Column(
            "destination_id",
            sa.String(),
            sa.ForeignKey("destinations.destination_id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("at", Instant(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("extra_ct", sa.LargeBinary(), nullable=True),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("due_at", Instant(), nullable=True),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("keep_until", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("event_id", "destination_id"),
    )
    op.create_index("outbox_end", "outbox", ["keep_until"])
    some = sa.text("due_at IS NOT NULL")
    op.create_index("outbox_due", "outbox", ["due_at"], sqlite_where=some, postgresql_where=some)
