"""The schema: the registry of tables, column types, the version, and migrations."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic_core import to_json
from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Insert,
    MetaData,
    String,
    Table,
    Text,
    column,
    inspect,
    select,
    table,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import TypeDecorator

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Dialect
    from sqlalchemy.dialects import postgresql, sqlite
    from sqlalchemy.ext.asyncio import AsyncConnection

metadata = MetaData()
HEAD = "0006"
"""The schema version of this code: the newest of migrations/versions."""

START_LOCK = 0x6269726477697265
"""PostgreSQL's advisory lock for changes to a whole database, one process at a time. Spells "birdwire" in ASCII."""

_VERSIONS = table("alembic_version", column("version_num"))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class StoreError(Exception):
    """Raised when the database cannot be used as it is. The text states why and what to do, and is safe to show."""


class StorageDownError(Exception):
    """Raised when the database did not answer or refused a write. Callers report which half of their work was done."""


class RowRefusedError(StorageDownError):
    """Raised when the database refuses one row: it violates a constraint, or a value does not fit its column."""


class Instant(TypeDecorator[datetime]):
    """A column type: an aware UTC datetime, stored as microseconds since 1970, which every engine compares alike."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """Encode a datetime for the column."""
        del dialect
        if value is None:
            return None
        since = value - _EPOCH
        return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        """Decode the column's value."""
        del dialect
        return None if value is None else _EPOCH + int(value) * _MICROSECOND


class JSONText(TypeDecorator[object]):
    """A JSON value, stored as text, that may be damaged: a text that is not JSON is read as that text.

    One such row must not keep every other row from being read, and its reader refuses it by its own rules.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: object | None, dialect: Dialect) -> str | None:
        """Encode a value for the column."""
        del dialect
        return None if value is None else json_text(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> object | None:
        """Decode the column's value."""
        del dialect
        if value is None:
            return None
        try:
            decoded: object = json.loads(value)
        except ValueError:
            return str(value)
        return decoded


Member = TypeVar("Member", bound=StrEnum)


class EnumText(TypeDecorator[Member]):
    """A member of a StrEnum, stored as its value.

    A stored text that the enum does not define, as another version may write one, is read as a member of its own, equal
    to no other: one such row must not keep every other row from being read.
    """

    impl = String
    cache_ok = True

    def __init__(self, enum: type[Member]) -> None:
        super().__init__()
        self.enum = enum

    def process_bind_param(self, value: Member | str | None, dialect: Dialect) -> str | None:
        """To the column."""
        del dialect
        return None if value is None else str(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> Member | None:
        """From the column."""
        del dialect
        if value is None:
            return None
        try:
            return self.enum(value)
        except ValueError:
            member = str.__new__(self.enum, value)
            member._name_ = member._value_ = value
            return member


def index_of_some(name: str, *columns: Column[Any]) -> Index:
    """Return a partial index of the rows whose last column is not null.

    The migration declares the same for PostgreSQL; declared here, it would load that dialect at every start on SQLite.
    """
    return Index(name, *columns, sqlite_where=columns[-1].is_not(None))


def json_text(value: object) -> str:
    """Encode a value for a JSON column."""
    try:
        return to_json(value).decode()
    except ValueError:
        # An unpaired surrogate, as X may send one; JSON can express it only as an escape.
        return json.dumps(value)


def insert(connection: AsyncConnection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """Return an insert of the engine's dialect, which supports `on_conflict_do_nothing` and `on_conflict_do_update`."""
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects.sqlite import insert as sqlite_insert  # noqa: PLC0415 - as below

        return sqlite_insert(table)
    from sqlalchemy.dialects.postgresql import insert as postgresql_insert  # noqa: PLC0415 - 2 MiB, unused on SQLite

    return postgresql_insert(table)


UNLESS_EXISTS = " ON CONFLICT DO NOTHING"


class InsertNew(Insert):
    """An insert that changes nothing if its row exists: a constant for both engines, as `Database.append` needs it.

    The first columns of its table are the primary key.
    """

    inherit_cache = True


class EnsureRow(InsertNew):
    """An insert that makes a row unless it exists, and on PostgreSQL locks it, made or found, for the transaction.

    `Database.append_all` executes these of all its units first, in the order of their keys, so that no two processes
    wait for each other.
    """

    inherit_cache = True


@compiles(InsertNew)
def _insert_new(statement: InsertNew, compiler: Any, **options: Any) -> str:
    return f"{compiler.visit_insert(statement, **options)}{UNLESS_EXISTS}"


@compiles(EnsureRow, "postgresql")
def _ensure_row(statement: EnsureRow, compiler: Any, **options: Any) -> str:
    columns = cast("Table", statement.table).columns
    keys = ", ".join(compiler.preparer.format_column(one) for one in columns if one.primary_key)
    other = next(compiler.preparer.format_column(one) for one in columns if not one.primary_key)
    # The row is locked even though the condition lets nothing be updated, so no dead version of it remains.
    locked = f"ON CONFLICT ({keys}) DO UPDATE SET {other} = excluded.{other} WHERE false"
    return f"{compiler.visit_insert(statement, **options)} {locked}"


def migrate(connection: Connection, *, upgrade: bool, migrated: Callable[[], None]) -> None:
    """Create the tables of an empty database, and refuse another schema; `upgrade` migrates an older one.

    Everything happens in the caller's transaction, so that a crash leaves the previous schema. `migrated` is called
    when the schema is changed but not committed.

    Raises:
        StoreError: the schema is newer, older (without `upgrade`), or not Birdwire's.
    """
    tables = inspect(connection).get_table_names()
    found = connection.execute(select(_VERSIONS)).scalar() if _VERSIONS.name in tables else None
    if found == HEAD:
        return
    if found is None and tables:
        raise StoreError("The database contains tables that do not belong to Birdwire. Use a separate database.")
    _change(connection, found, upgrade=upgrade)
    migrated()


def _change(connection: Connection, found: str | None, *, upgrade: bool) -> None:
    import alembic.command  # noqa: PLC0415 - 9 MiB and 120 modules, rarely needed
    import alembic.config  # noqa: PLC0415 - the same
    import alembic.script  # noqa: PLC0415 - the same

    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    script = alembic.script.ScriptDirectory.from_config(config)
    if found is not None and found not in {revision.revision for revision in script.walk_revisions()}:
        raise StoreError("The database was created by a newer version of Birdwire. Install that version.")
    if found is not None and not upgrade:
        raise StoreError(
            "The database was created by an older version of Birdwire. Make a backup, then run: birdwire migrate"
        )
    alembic.command.upgrade(config, "head")
