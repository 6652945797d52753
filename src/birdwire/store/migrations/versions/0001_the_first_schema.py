"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from birdwire.store.schema import Instant

revision = "0001"
down_revision = None


def upgrade() -> None:
    """To this schema."""
    op.create_table(
        "api_keys",
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("mode", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("tier", sa.String(), nullable=False),
        sa.Column("rpm", sa.Integer(), nullable=True),
        sa.Column("text_limit", sa.Integer(), nullable=True),
        sa.Column("daily_writes", sa.Integer(), nullable=True),
        sa.Column("actions", sa.JSON(), nullable=True),
        sa.Column("ips", sa.JSON(), nullable=True),
        sa.Column("return_to", sa.JSON(), nullable=True),
        sa.Column("expires_at", Instant(), nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("revoked_at", Instant(), nullable=True),
        sa.PrimaryKeyConstraint("key_id"),
    )
    op.create_table(
        "capabilities",
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("operation", sa.String(), nullable=False),
        sa.Column("allowed_at", Instant(), nullable=True),
        sa.Column("refused_at", Instant(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("client_id", "operation"),
    )
    if op.get_bind().dialect.name == "sqlite":  # PostgreSQL has notifications
        op.create_table(
            "changes",
            sa.Column("number", sa.Integer(), nullable=False),
            sa.Column("key_id", sa.String(), nullable=False),
            sa.PrimaryKeyConstraint("number"),
            sqlite_autoincrement=True,
        )
    op.create_table(
        "journal",
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("operation", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=True),
        sa.Column("asked", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("why", sa.String(), nullable=True),
        sa.Column("data", sa.JSON(), nullable=True),
        sa.Column("x_id", sa.String(), nullable=True),
        sa.Column("words_ct", sa.LargeBinary(), nullable=True),
        sa.Column("cost_microusd", sa.Integer(), nullable=True),
        sa.Column("owner", sa.String(), nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("settled_at", Instant(), nullable=True),
        sa.Column("lost_at", Instant(), nullable=True),
        sa.Column("due_at", Instant(), nullable=True),
        sa.Column("looks", sa.Integer(), server_default="0", nullable=False),
        sa.Column("reads", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("request_id"),
    )
    with op.batch_alter_table("journal", schema=None) as batch_op:
        batch_op.create_index("journal_key", ["key_id", "created_at"], unique=False)
        for name, *columns in (
            ("journal_made", "x_id"),
            ("journal_due", "due_at"),
            ("journal_account", "user_id", "due_at"),
        ):
            some = sa.text(f"{columns[-1]} IS NOT NULL")
            batch_op.create_index(name, columns, unique=False, sqlite_where=some, postgresql_where=some)

    op.create_table(
        "processes",
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("alive_until", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("owner"),
    )
    op.create_table(
        "lookings",
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("until", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("user_id"),
    )
    with op.batch_alter_table("lookings", schema=None) as batch_op:
        batch_op.create_index("lookings_end", ["until"], unique=False)

    op.create_table(
        "restores",
        sa.Column("epoch", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("snapshot_at", Instant(), nullable=True),
        sa.Column("restored_at", Instant(), nullable=True),
        sa.Column("sessions", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("epoch"),
    )
    op.create_table(
        "revocations",
        sa.Column("revocation_id", sa.String(), nullable=False),
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("token_ct", sa.LargeBinary(), nullable=False),
        sa.Column("hint", sa.String(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("due_at", Instant(), nullable=False),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("revocation_id"),
    )
    with op.batch_alter_table("revocations", schema=None) as batch_op:
        batch_op.create_index("revocations_due", ["issuer", "due_at"], unique=False)

    op.create_table(
        "vault_keys",
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("proof_ct", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("key_id"),
    )
    op.create_table(
        "x_windows",
        sa.Column("client_id", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("endpoint", sa.String(), nullable=False),
        sa.Column("span", sa.String(), nullable=False),
        sa.Column("most", sa.Integer(), nullable=True),
        sa.Column("remaining", sa.Integer(), nullable=False),
        sa.Column("reset_at", Instant(), nullable=False),
        sa.Column("changed_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("client_id", "user_id", "endpoint", "span"),
    )
    with op.batch_alter_table("x_windows", schema=None) as batch_op:
        batch_op.create_index("x_windows_changed", ["client_id", "changed_at"], unique=False)
        batch_op.create_index("x_windows_end", ["reset_at"], unique=False)

    op.create_table(
        "api_secrets",
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("hint", sa.String(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("dies_at", Instant(), nullable=True),
        sa.ForeignKeyConstraint(
            ["key_id"],
            ["api_keys.key_id"],
        ),
        sa.PrimaryKeyConstraint("secret_hash"),
    )
    with op.batch_alter_table("api_secrets", schema=None) as batch_op:
        batch_op.create_index("api_secrets_key", ["key_id"], unique=False)

    op.create_table(
        "daily_writes",
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("day", sa.String(), nullable=False),
        sa.Column("used", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["key_id"],
            ["api_keys.key_id"],
        ),
        sa.PrimaryKeyConstraint("key_id", "day"),
    )
    op.create_table(
        "idempotency",
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("asked", sa.LargeBinary(), nullable=False),
        sa.Column("repeatable", sa.Boolean(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.ForeignKeyConstraint(
            ["key_id"],
            ["api_keys.key_id"],
        ),
        sa.PrimaryKeyConstraint("key_id", "name"),
    )
    with op.batch_alter_table("idempotency", schema=None) as batch_op:
        batch_op.create_index("idempotency_age", ["created_at"], unique=False)

    op.create_table(
        "link_states",
        sa.Column("state_hash", sa.LargeBinary(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("redirect_uri", sa.String(), nullable=False),
        sa.Column("verifier_ct", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", sa.String(), nullable=False),
        sa.Column("expected_username", sa.String(), nullable=True),
        sa.Column("return_to", sa.String(), nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("expires_at", Instant(), nullable=False),
        sa.Column("taken_at", Instant(), nullable=True),
        sa.Column("session_id", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["key_id"],
            ["api_keys.key_id"],
        ),
        sa.PrimaryKeyConstraint("state_hash"),
    )
    with op.batch_alter_table("link_states", schema=None) as batch_op:
        batch_op.create_index("link_states_end", ["expires_at"], unique=False)
        batch_op.create_index("link_states_key", ["key_id", "created_at"], unique=False)

    op.create_table(
        "x_sessions",
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("gen", sa.Integer(), nullable=False),
        sa.Column("access_ct", sa.LargeBinary(), nullable=False),
        sa.Column("refresh_ct", sa.LargeBinary(), nullable=True),
        sa.Column("expires_at", Instant(), nullable=False),
        sa.Column("refresh_state", sa.String(), server_default="idle", nullable=False),
        sa.Column("presented_gen", sa.Integer(), nullable=True),
        sa.Column("presented_at", Instant(), nullable=True),
        sa.Column("presented_by", sa.String(), nullable=True),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("scopes", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=True),
        sa.Column("username", sa.String(), nullable=True),
        sa.Column("expected_username", sa.String(), nullable=True),
        sa.Column("undo_hash", sa.LargeBinary(), nullable=True),
        sa.Column("undo_until", Instant(), nullable=True),
        sa.Column("created_at", Instant(), nullable=False),
        sa.Column("linked_at", Instant(), nullable=True),
        sa.Column("refreshed_at", Instant(), nullable=True),
        sa.Column("why", sa.String(), nullable=True),
        sa.Column("over_at", Instant(), nullable=True),
        sa.ForeignKeyConstraint(
            ["key_id"],
            ["api_keys.key_id"],
        ),
        sa.PrimaryKeyConstraint("session_id"),
    )
    with op.batch_alter_table("x_sessions", schema=None) as batch_op:
        batch_op.create_index("x_sessions_key", ["key_id", "issuer"], unique=False)
        batch_op.create_index("x_sessions_undo", ["undo_hash"], unique=False)
        over = sa.text("over_at IS NOT NULL")
        batch_op.create_index(
            "x_sessions_over", ["issuer", "over_at"], unique=False, sqlite_where=over, postgresql_where=over
        )


def downgrade() -> None:
    """Back to the one before."""
    with op.batch_alter_table("x_sessions", schema=None) as batch_op:
        batch_op.drop_index("x_sessions_over")
        batch_op.drop_index("x_sessions_undo")
        batch_op.drop_index("x_sessions_key")

    op.drop_table("x_sessions")
    with op.batch_alter_table("link_states", schema=None) as batch_op:
        batch_op.drop_index("link_states_key")
        batch_op.drop_index("link_states_end")

    op.drop_table("link_states")
    with op.batch_alter_table("idempotency", schema=None) as batch_op:
        batch_op.drop_index("idempotency_age")

    op.drop_table("idempotency")
    op.drop_table("daily_writes")
    with op.batch_alter_table("api_secrets", schema=None) as batch_op:
        batch_op.drop_index("api_secrets_key")

    op.drop_table("api_secrets")
    with op.batch_alter_table("x_windows", schema=None) as batch_op:
        batch_op.drop_index("x_windows_end")
        batch_op.drop_index("x_windows_changed")

    op.drop_table("x_windows")
    op.drop_table("vault_keys")
    op.drop_table("restores")
    with op.batch_alter_table("revocations", schema=None) as batch_op:
        batch_op.drop_index("revocations_due")

    op.drop_table("revocations")
    with op.batch_alter_table("lookings", schema=None) as batch_op:
        batch_op.drop_index("lookings_end")

    op.drop_table("lookings")
    op.drop_table("processes")
    with op.batch_alter_table("journal", schema=None) as batch_op:
        batch_op.drop_index("journal_account")
        batch_op.drop_index("journal_due")
        batch_op.drop_index("journal_made")
        batch_op.drop_index("journal_key")

    op.drop_table("journal")
    if op.get_bind().dialect.name == "sqlite":
        op.drop_table("changes")
    op.drop_table("capabilities")
    op.drop_table("api_keys")
