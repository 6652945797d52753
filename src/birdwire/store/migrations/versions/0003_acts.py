"""Who did what to keys, links and the store: a table that only grows."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from birdwire.store.schema import Instant

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """To this schema."""
    op.create_table(
        "acts",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("at", Instant(), nullable=False),
        sa.Column("who", sa.String(), nullable=False),
        sa.Column("via", sa.String(), nullable=False),
        sa.Column("act", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("before", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("after", sa.JSON(none_as_null=True), nullable=True),
        sa.PrimaryKeyConstraint("number"),
        sqlite_autoincrement=True,
    )
    op.create_index("acts_subject", "acts", ["subject", "act", "number"])
    if op.get_bind().dialect.name == "sqlite":
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER acts_keep_{change.lower()} BEFORE {change} ON acts"
                " BEGIN SELECT RAISE(ABORT, 'acts are append-only'); END"
            )
        # INSERT OR REPLACE deletes the row that it replaces without firing its DELETE trigger.
        op.execute(
            "CREATE TRIGGER acts_keep_replace BEFORE INSERT ON acts"
            " WHEN EXISTS (SELECT 1 FROM acts WHERE number = NEW.number)"
            " BEGIN SELECT RAISE(ABORT, 'acts are append-only'); END"
        )
        return
    op.execute(
        "CREATE FUNCTION birdwire_acts_keep() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'acts are append-only'; END $$"
    )
    op.execute(
        "CREATE TRIGGER acts_keep BEFORE UPDATE OR DELETE OR TRUNCATE ON acts"
        " FOR EACH STATEMENT EXECUTE FUNCTION birdwire_acts_keep()"
    )
