"""The database on either engine: connections, transactions, readiness and the change feed. Knows no table."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sqlalchemy import func, select

from birdwire.store.engines.change_feed import ALL, Changed
from birdwire.store.engines.group_commit import GroupCommit, Part
from birdwire.store.engines.sqlite import SQLite
from birdwire.store.schema import START_LOCK, RowRefusedError, StorageDownError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.runtime.clock import Clock
    from birdwire.store.engines.group_commit import Statement
    from birdwire.store.engines.postgres import PostgreSQL

PROBE_VALID_S = 1.0
MAX_SAVE_WAIT_S = 0.1
"""Maximum time that a finished save waits for the saves behind it; a burst of fifty takes a tenth of it."""

SQLITE = "sqlite:///"


class Database:
    """One database: `sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST:PORT/NAME`, with libpq's options if any.

    Both engines give the same guarantees, except for isolation: a row that must not change between a read and a write
    is locked (`with_for_update`, which SQLite does not need).
    """

    def __init__(self, url: str) -> None:
        file = file_of(url)
        self._place = place_of(url)
        self._engine = _server(url) if file is None else SQLite(file)
        self._appends = GroupCommit(self._engine.dialect, self._engine.append)
        # SQLite has one writer, so a queue of their own would only cost units another commit.
        self._units = self._appends
        if not isinstance(self._engine, SQLite):
            self._units = GroupCommit(self._engine.dialect, self._engine.append_units)
        self._saves = GroupCommit(self._engine.dialect, self._engine.save)
        self._probed_at = -PROBE_VALID_S

    def read(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Return a connection that reads committed rows; every statement is its own transaction.

        Raises:
            StorageDownError: the database does not answer.
        """
        return self._engine.read()

    def write(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """Return one transaction: when the block ends, all its changes are on the disk, or none.

        If the response to COMMIT is lost, the outcome is looked up before the block ends, so the error below means that
        nothing was changed. Only if the database stays unreachable during that lookup (about ten seconds) can the
        change exist despite the error; a caller that must know reads the row or the generation again.

        Raises:
            StorageDownError: nothing was changed, except in that case.
        """
        return self._engine.write()

    async def append(self, statement: Statement, row: Mapping[str, Any]) -> bool:
        """Write one row; it is on the disk when this returns. Concurrent callers share a transaction (group commit).

        The statement is a constant, built once; `row` gives its parameters. A column that a row to insert does not name
        gets its default. Rows are written in the order of the calls; one that may exist already can come after the
        others. A row that the database refuses fails alone. Returns whether a row was changed.

        Raises:
            StorageDownError: the row was not written; for an unreachable database, see `write`.
            RowRefusedError: a subclass: the row violates a constraint.
        """
        return await self._appends.add(statement, row) > 0

    async def append_all(self, parts: Sequence[Part]) -> int | None:
        """Execute several statements as one unit: all of them, in their order, or none. Otherwise works as `append`.

        Returns None once the unit is on the disk, or the index of the first required part that changed no row: then
        nothing was changed. Parts that only ensure a row may come before the parts of other units. No `append` waits
        for the rows of a unit, even if another process holds them.

        Raises:
            StorageDownError: nothing was changed, except in the case that `write` describes.
            RowRefusedError: a subclass: a row violates a constraint.
        """
        return await self._units.add_all(parts)

    async def save(
        self, statement: Statement, row: Mapping[str, Any], key_id: str, written: Callable[[], None] | None = None
    ) -> bool:
        """Update a row that must not be lost, ahead of every other write, and announce the key that it belongs to.

        Works as `append` does, in a queue of its own. Returns whether a row was changed. `written` is called when the
        change is written but not committed: the place of a failpoint.

        Raises:
            StorageDownError: nothing was changed, except in the case that `write` describes.
        """
        return await self._saves.add(statement, row, key_id, written) > 0

    async def saved(self) -> None:
        """Wait until no `save` is queued or being written, for at most MAX_SAVE_WAIT_S."""
        await self._saves.idle(MAX_SAVE_WAIT_S)

    async def ready(self, statement: Statement) -> None:
        """Prepare the statement and the connection of `save`, so that the first save is as fast as any.

        Raises:
            StorageDownError: the database does not answer.
        """
        self._saves.prepare(statement)
        await self._engine.ready()

    @property
    def trusted_s(self) -> float:
        """Maximum age in seconds of a cached row that `changed` has not named."""
        return self._engine.changes.trusted_s

    def changed(self) -> Changed:
        """Return the ids of the keys that changed, themselves or their links, since the last call; ALL if unknown.

        ALL is the answer to the first call, after a gap, and while the change feed is interrupted: no cache is valid
        then. A change on SQLite shows at the next call, on PostgreSQL within a second; an interrupted listener shows
        within five seconds. Costs microseconds and never waits.

        Must have a single caller: each change is reported once. A row that was read before a change may be cached after
        it only if no call in between has named its key.
        """
        return self._engine.changes.changed()

    async def probe(self) -> None:
        """Check that the database takes writes. A success is valid for a second, so frequent probes cost nothing.

        Raises:
            StorageDownError: it takes none.
        """
        now = asyncio.get_running_loop().time()
        if now - self._probed_at < PROBE_VALID_S:
            return
        await self._engine.probe()
        self._probed_at = now

    async def prepare(self, *, upgrade: bool, migrated: Callable[[], None] = lambda: None) -> None:
        """Create the tables of a new database, and refuse a foreign or newer one; `upgrade` migrates an older one.

        `migrated` is called when the schema is changed but not committed: the place of a failpoint.

        Raises:
            StoreError: the database cannot be used as it is.
        """
        try:
            await self._engine.prepare(upgrade=upgrade, migrated=migrated)
        except StorageDownError as error:
            raise StoreError(
                f"The database {self._place} cannot be opened: {error}. Check the server and BIRDWIRE_DATABASE_URL."
            ) from None

    async def close(self) -> None:
        """Write everything that is queued, and close every connection."""
        await self._saves.close()
        await self._appends.close()
        await self._units.close()
        await self._engine.close()


def _server(url: str) -> PostgreSQL:
    from birdwire.store.engines.postgres import PostgreSQL  # noqa: PLC0415 - its driver takes 3 MiB, unused on SQLite

    return PostgreSQL(url)


def file_of(url: str) -> Path | None:
    """Return the file of an SQLite database, or None for a server's."""
    return Path(url.removeprefix(SQLITE)) if url.startswith(SQLITE) else None


def place_of(url: str) -> str:
    """Return the location of a database, without user and password, fit to be shown."""
    file = file_of(url)
    if file is not None:
        return str(file)
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}"


async def now(connection: AsyncConnection, clock: Clock) -> datetime:
    """Return the time that leases are counted by: PostgreSQL's, which all replicas share; on SQLite the clock's."""
    if connection.dialect.name == "sqlite":
        return clock.now()
    at: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
    return clock.adjusted(at)


async def lock_database(connection: AsyncConnection) -> None:
    """Take the advisory lock of changes to the whole database, until the transaction ends."""
    # On SQLite, a writing transaction excludes all others anyway.
    if connection.dialect.name != "sqlite":
        await connection.execute(select(func.pg_advisory_xact_lock(START_LOCK)))


__all__ = [
    "ALL",
    "Changed",
    "Database",
    "Part",
    "RowRefusedError",
    "StorageDownError",
    "StoreError",
    "file_of",
    "lock_database",
    "now",
    "place_of",
]
