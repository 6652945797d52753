"""The schema: its one list of tables, its kinds of columns, its versions, and how a database is brought up to date."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import alembic.command
import alembic.config
import alembic.migration
import alembic.script
from sqlalchemy import BigInteger, MetaData, Table, inspect
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeDecorator

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Dialect
    from sqlalchemy.ext.asyncio import AsyncConnection

metadata = MetaData()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class StoreError(Exception):
    """The database cannot be used as it is. The text says why and what to do, and is safe to show."""


class StorageDownError(Exception):
    """The database did not answer, or refused a write. Callers say which half of their work was done."""


class RowRefusedError(StorageDownError):
    """The database does not take this one row: it breaks a constraint, or a value has no place in its column."""


class Instant(TypeDecorator[datetime]):
    """An aware UTC datetime, kept as whole microseconds since 1970: the same on every engine, and it compares."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """To the column."""
        del dialect
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        """From the column."""
        del dialect
        return None if value is None else _EPOCH + int(value) * _MICROSECOND


def insert(connection: AsyncConnection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An insert that can say what a conflict does (`on_conflict_do_nothing`, `on_conflict_do_update`)."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def migrate(connection: Connection, *, upgrade: bool, migrated: Callable[[], None]) -> None:
    """Make the tables of an empty database; refuse another schema; `upgrade` brings an older one up to date.

    Everything happens in the caller's transaction, so that a crash leaves the schema that was. `migrated` is called
    when all is changed, and nothing committed.

    Raises:
        StoreError: it is newer, older (without `upgrade`), or none of ours.
    """
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    script = alembic.script.ScriptDirectory.from_config(config)
    found = alembic.migration.MigrationContext.configure(connection).get_current_revision()
    if found == script.get_current_head():
        return
    if found is None:
        if inspect(connection).get_table_names():
            raise StoreError("The database holds tables that are not Birdwire's; give it a database of its own.")
    elif found not in {revision.revision for revision in script.walk_revisions()}:
        raise StoreError("The database was made by a newer Birdwire; install that version.")
    elif not upgrade:
        raise StoreError("The database was made by an older Birdwire; make a backup, then run: birdwire migrate")
    alembic.command.upgrade(config, "head")
    migrated()
