"""Approvals, the images shown to the person who decides, signed links, and the address that each process serves.

The images are those of the request itself, and those that its key uploaded before.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from birdwire.store.schema import Instant

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """To this schema."""
    _add_approvals()
    op.create_table(
        "approval_files",
        sa.Column("request_id", sa.String(), sa.ForeignKey("approvals.request_id", ondelete="CASCADE"), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("blob_ct", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", "number"),
    )
    op.create_table(
        "kept_images",
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("media_id", sa.String(), nullable=False),
        sa.Column("media_type", sa.String(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("blob_ct", sa.LargeBinary(), nullable=False),
        sa.Column("until", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "media_id"),
    )
    op.create_index("kept_images_until", "kept_images", ["until"])
    op.create_table(
        "approval_links",
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("request_id", sa.String(), sa.ForeignKey("approvals.request_id", ondelete="CASCADE"), nullable=False),
        sa.Column("made_by", sa.String(), nullable=False),
        sa.Column("made_at", Instant(), nullable=False),
        sa.Column("used_at", Instant(), nullable=True),
        sa.PrimaryKeyConstraint("token_hash"),
    )
    op.create_index("approval_links_request", "approval_links", ["request_id"])
    op.add_column("processes", sa.Column("address", sa.String(), nullable=True))


def _add_approvals() -> None:
    op.create_table(
        "approvals",
        sa.Column("request_id", sa.String(), sa.ForeignKey("journal.request_id", ondelete="CASCADE"), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("username", sa.String(), nullable=False),
        sa.Column("session_id", sa.String(), nullable=True),
        sa.Column("operation", sa.String(), nullable=False),
        sa.Column("payload_sha256", sa.String(), nullable=False),
        sa.Column("payload_ct", sa.LargeBinary(), nullable=True),
        sa.Column("approve_by", sa.String(), nullable=False),
        sa.Column("cost_microusd", sa.Integer(), nullable=True),
        sa.Column("ordered", sa.Boolean(), nullable=False),
        sa.Column("expires_at", Instant(), nullable=False),
        sa.Column("media_until", Instant(), nullable=True),
        sa.Column("edited_from", sa.String(), nullable=True),
        sa.Column("decided_at", Instant(), nullable=True),
        sa.Column("decided_by", sa.String(), nullable=True),
        sa.Column("note", sa.String(), nullable=True),
        sa.Column("due_at", Instant(), nullable=True),
        sa.Column("ended_at", Instant(), nullable=True),
        sa.Column("refusal_ct", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("request_id"),
    )
    op.create_index("approvals_waiting", "approvals", ["ended_at", "expires_at"])
    op.create_index("approvals_key", "approvals", ["key_id", "payload_sha256"])
    for name, column in (("approvals_due", "due_at"), ("approvals_edited", "edited_from")):
        some = sa.text(f"{column} IS NOT NULL")
        op.create_index(name, "approvals", [column], sqlite_where=some, postgresql_where=some)
