"""The database: connections, transactions and the schema's version. Knows no owner's tables."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import alembic.command
import alembic.config
import alembic.migration
import alembic.script
from sqlalchemy import BigInteger, MetaData, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.types import TypeDecorator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import Connection, Dialect
    from sqlalchemy.ext.asyncio import AsyncConnection
    from sqlalchemy.pool import ConnectionPoolEntry

metadata = MetaData()
PROBE_FOR_S = 1.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class StoreError(Exception):
    """The database cannot be used as it is. The text says why and what to do, and is safe to show."""


class StorageDownError(Exception):
    """The database did not answer, or refused a write. Callers say which half of their work was done."""


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


class Database:
    """One database. `read` gives a connection on what is committed; `write` a transaction, durable at its end."""

    def __init__(self, url: str) -> None:
        self._path = Path(url.removeprefix("sqlite:///"))
        self._engine = create_async_engine(
            f"sqlite+aiosqlite:///{self._path}",
            pool_size=8,
            max_overflow=0,
            pool_timeout=5,
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
        )
        self._probed_at = -PROBE_FOR_S
        self._write_lock = (
            asyncio.Lock()
        )  # SQLite has one writer: waiting here is cheaper and fairer than its busy loop
        event.listen(self._engine.sync_engine, "connect", _set_up)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reading; every statement stands alone.

        Raises:
            StorageDownError: the database does not answer.
        """
        try:
            async with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StorageDownError(type(error).__name__) from None

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """One transaction; what it changed is on the disk when the block ends, or nothing of it is.

        Raises:
            StorageDownError: nothing was changed.
        """
        try:
            async with self._write_lock, self._engine.connect() as connection:
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
                try:
                    yield connection
                    await connection.exec_driver_sql("COMMIT")
                except BaseException:
                    with contextlib.suppress(SQLAlchemyError):  # the pool rolls back what this cannot
                        await asyncio.shield(connection.exec_driver_sql("ROLLBACK"))
                    raise
        except SQLAlchemyError as error:
            raise StorageDownError(type(error).__name__) from None

    async def probe(self) -> None:
        """Write something harmless to the disk; a success holds for a second, so that asking often costs nothing.

        Raises:
            StorageDownError: it could not be written.
        """
        now = asyncio.get_running_loop().time()
        if now - self._probed_at < PROBE_FOR_S:
            return
        async with self.write() as connection:
            await connection.exec_driver_sql("PRAGMA user_version=1")
        self._probed_at = now

    async def prepare(self, *, upgrade: bool) -> None:
        """Make a new database ready, and refuse one whose schema is not ours; `upgrade` brings an older one up to date.

        Raises:
            StoreError: wrong permissions, not a database, or another schema.
        """
        new = self._prepare_file()
        try:
            async with self.read() as connection:
                damage = (await connection.exec_driver_sql("PRAGMA quick_check(1)")).scalar()
            if damage != "ok":
                raise StoreError(f"The database {self._path} is damaged; restore it from a backup.")
            async with self.write() as connection:
                await connection.run_sync(_migrate, upgrade or new)
        except StorageDownError as error:
            raise StoreError(f"The database {self._path} cannot be opened: {error}.") from None

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    def _prepare_file(self) -> bool:
        """Make the file if it is not there (0600), and say whether it is new."""
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            status = self._path.stat()
        except OSError as error:
            raise StoreError(f"The database {self._path} cannot be opened: {error.strerror}.") from None
        if status.st_mode & (stat.S_IROTH | stat.S_IWOTH):
            raise StoreError(f"The database {self._path} is open to every user; run: chmod 600 {self._path}")
        return status.st_size == 0


def _set_up(connection: Any, _: ConnectionPoolEntry) -> None:
    """Run on every new SQLite connection."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "foreign_keys=ON", "secure_delete=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _migrate(connection: Connection, upgrade: bool) -> None:  # noqa: FBT001 - run_sync passes positions only
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    script = alembic.script.ScriptDirectory.from_config(config)
    head, found = (
        script.get_current_head(),
        alembic.migration.MigrationContext.configure(connection).get_current_revision(),
    )
    if found == head:
        return
    if found is not None and found not in {revision.revision for revision in script.walk_revisions()}:
        raise StoreError("The database was made by a newer Birdwire; install that version.")
    if not upgrade:
        raise StoreError("The database was made by an older Birdwire; make a backup, then run: birdwire migrate")
    alembic.command.upgrade(config, "head")
