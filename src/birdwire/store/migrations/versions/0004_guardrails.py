"""Policies, pauses, usage, the marks of texts, and what the journal records of a guarded write."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from birdwire.store.schema import Instant

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """To this schema."""
    _add_policies()
    _add_pauses()
    _add_usage()
    _add_text_marks()
    _record_guarded_writes()


def _add_policies() -> None:
    op.create_table(
        "policies",
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("author", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("enforcement", sa.String(), nullable=False),
        sa.Column("preset", sa.String(), nullable=True),
        sa.Column("rules", sa.Text(), nullable=True),
        sa.Column("changed_at", Instant(), nullable=False),
        sa.Column("changed_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "author", "version"),
    )
    if op.get_bind().dialect.name == "sqlite":
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER policies_keep_{change.lower()} BEFORE {change} ON policies"
                " BEGIN SELECT RAISE(ABORT, 'policies are append-only'); END"
            )
        # INSERT OR REPLACE deletes the row that it replaces without firing its DELETE trigger. An insert that ignores
        # a row that exists must still do so, and the trigger cannot tell the two apart: it ignores both.
        op.execute(
            "CREATE TRIGGER policies_keep_replace BEFORE INSERT ON policies WHEN EXISTS (SELECT 1 FROM policies"
            " WHERE scope = NEW.scope AND author = NEW.author AND version = NEW.version)"
            " BEGIN SELECT RAISE(IGNORE); END"
        )
        return
    op.execute(
        "CREATE FUNCTION birdwire_policies_keep() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'policies are append-only'; END $$"
    )
    op.execute(
        "CREATE TRIGGER policies_keep BEFORE UPDATE OR DELETE OR TRUNCATE ON policies"
        " FOR EACH STATEMENT EXECUTE FUNCTION birdwire_policies_keep()"
    )


def _add_pauses() -> None:
    op.create_table(
        "pauses",
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("author", sa.String(), nullable=False),
        sa.Column("since", Instant(), nullable=False),
        sa.Column("until", Instant(), nullable=True),
        sa.Column("why", sa.String(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "author"),
    )


def _add_usage() -> None:
    op.create_table(
        "usage",
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("measure", sa.String(), nullable=False),
        sa.Column("window", sa.String(), nullable=False),
        sa.Column("amount", sa.BigInteger(), nullable=False),
        sa.Column("previous", sa.BigInteger(), nullable=True),
        sa.Column("kept_until", Instant(), nullable=True),
        sa.PrimaryKeyConstraint("scope", "measure", "window"),
    )
    _index_of_some("usage_end", "usage", ["kept_until"])


def _add_text_marks() -> None:
    op.create_table(
        "text_marks",
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("mark", sa.String(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("previous_ms", sa.BigInteger(), nullable=True),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "mark"),
    )
    op.create_index("text_marks_end", "text_marks", ["until_ms"])
    op.create_table(
        "text_mark_keys",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("key_ct", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", Instant(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )


def _record_guarded_writes() -> None:
    for column in (
        sa.Column("started_at", Instant(), nullable=True),
        sa.Column("spent", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("decision", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("features_ct", sa.LargeBinary(), nullable=True),
        sa.Column("times", sa.Integer(), nullable=True),
    ):
        op.add_column("journal", column)
    _index_of_some("journal_started", "journal", ["started_at"])
    _index_of_some("journal_attempts", "journal", ["created_at", "times"])


def _index_of_some(name: str, table: str, columns: list[str]) -> None:
    some = sa.text(f"{columns[-1]} IS NOT NULL")
    op.create_index(name, table, columns, sqlite_where=some, postgresql_where=some)
