"""The database, whichever engine it runs on: connections, transactions and readiness. Knows no owner's tables."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sqlalchemy import func, select

from birdwire.store.engines.change_feed import ALL, Changed
from birdwire.store.engines.group_commit import GroupCommit
from birdwire.store.engines.sqlite import SQLite
from birdwire.store.schema import START_LOCK, RowRefusedError, StorageDownError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from sqlalchemy import Insert, Update
    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.runtime.clock import Clock
    from birdwire.store.engines.postgres import PostgreSQL

PROBE_FOR_S = 1.0
SAVED_S = 0.1
"""How long work that has been saved may hold back for other saves; a burst of fifty takes a tenth of it."""

SQLITE = "sqlite:///"


class Database:
    """One database: `sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST:PORT/NAME`, with libpq's options if any.

    What a caller may rely on is the same on both; only what one transaction sees of another differs, so whatever must
    not change between a look and a write is locked by its row (`with_for_update`, which SQLite does not need).
    """

    def __init__(self, url: str) -> None:
        file = file_of(url)
        self._place = place_of(url)
        self._engine = _server(url) if file is None else SQLite(file)
        self._appends = GroupCommit(self._engine.dialect, self._engine.append)
        self._saves = GroupCommit(self._engine.dialect, self._engine.save)
        self._probed_at = -PROBE_FOR_S

    def read(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A connection for reading what is committed; every statement stands alone.

        Raises:
            StorageDownError: the database does not answer.
        """
        return self._engine.read()

    def write(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """One transaction; what it changed is on the disk when the block ends, or nothing of it is.

        A COMMIT whose answer was lost is looked up before the block ends, so the error below means that nothing was
        changed. Only where the database stays away for longer than that look-up (about ten seconds) may the change be
        there in spite of it: who must know reads again, by what the change would have made (a generation, a row).

        Raises:
            StorageDownError: nothing was changed, but for that case.
        """
        return self._engine.write()

    async def append(self, statement: Insert | Update, row: Mapping[str, Any]) -> None:
        """One row, on the disk when this returns; callers at the same time share a transaction, and its wait.

        The statement is a constant, built once, whose parameters `row` fills: what an insert's row leaves out is null.
        Rows are written in the order of the calls. A row that the database refuses fails alone.

        Raises:
            StorageDownError: the row is not there; as with `write`, but for a look-up that found the database away.
            RowRefusedError: one kind of it: the row breaks a constraint.
        """
        await self._appends.add(statement, row)

    async def save(
        self, statement: Update, row: Mapping[str, Any], key_id: str, written: Callable[[], None] | None = None
    ) -> bool:
        """Change what must not be lost, ahead of every other write, and announce the key that it belongs to.

        As `append`, in a lane of its own. Returns whether a row was changed. `written` is called when the change is
        written, and not committed: a failpoint's place.

        Raises:
            StorageDownError: nothing was changed, but for the case that `write` names.
        """
        return await self._saves.add(statement, row, key_id, written) > 0

    async def saved(self) -> None:
        """Wait until no `save` waits or is being written, for at most SAVED_S."""
        await self._saves.idle(SAVED_S)

    async def ready(self, statement: Update) -> None:
        """Make ready what `save` needs for a statement, so that the first save is as quick as any.

        Raises:
            StorageDownError: the database does not answer.
        """
        self._saves.prepare(statement)
        await self._engine.ready()

    @property
    def trusted_s(self) -> float:
        """How long what was read may be used while `changed` does not name it: for ever, but for a net's sake."""
        return self._engine.changes.trusted_s

    def changed(self) -> Changed:
        """The ids of the keys that changed, they or their links, since the last call; ALL when that cannot be told.

        ALL comes at the first call, after a gap, and at every call for as long as nothing is heard of the database: no
        cache holds then. A change on SQLite shows at the next call, on PostgreSQL within a second, an outage of the
        listener's connection within five. Costs microseconds, and waits for nothing.

        There is one asker: a second would miss what the first was told. And a row that was read before a change was
        told may be kept after it only if no call in between has named its key.
        """
        return self._engine.changes.changed()

    async def probe(self) -> None:
        """See that a write would be taken; a success holds for a second, so that asking often costs nothing.

        Raises:
            StorageDownError: it would not.
        """
        now = asyncio.get_running_loop().time()
        if now - self._probed_at < PROBE_FOR_S:
            return
        await self._engine.probe()
        self._probed_at = now

    async def prepare(self, *, upgrade: bool, migrated: Callable[[], None] = lambda: None) -> None:
        """Make a new database ready, and refuse one whose schema is not ours; `upgrade` brings an older one up to date.

        `migrated` is called when a schema is changed, and not committed: a failpoint's place.

        Raises:
            StoreError: it cannot be used as it is.
        """
        try:
            await self._engine.prepare(upgrade=upgrade, migrated=migrated)
        except StorageDownError as error:
            raise StoreError(
                f"The database {self._place} cannot be opened: {error}. Check the server and BIRDWIRE_DATABASE_URL."
            ) from None

    async def close(self) -> None:
        """Write what waits, and close every connection."""
        await self._saves.close()
        await self._appends.close()
        await self._engine.close()


def _server(url: str) -> PostgreSQL:
    from birdwire.store.engines.postgres import PostgreSQL  # noqa: PLC0415 - its driver takes 3 MiB, without use on SQLite

    return PostgreSQL(url)


def file_of(url: str) -> Path | None:
    """The file of an SQLite database; None: it is a server's."""
    return Path(url.removeprefix(SQLITE)) if url.startswith(SQLITE) else None


def place_of(url: str) -> str:
    """Where a database is, in words that may be shown: without user and password."""
    file = file_of(url)
    if file is not None:
        return str(file)
    parts = urlsplit(url)
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}"


async def now(connection: AsyncConnection, clock: Clock) -> datetime:
    """The time that leases are counted by: PostgreSQL's, which all replicas share; on SQLite the one process's."""
    if connection.dialect.name == "sqlite":
        return clock.now()
    at: datetime = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
    return clock.adjusted(at)


async def alone(connection: AsyncConnection) -> None:
    """Let no other process do what also begins with this, until the transaction ends."""
    if connection.dialect.name != "sqlite":  # there, a transaction that writes is alone anyway
        await connection.execute(select(func.pg_advisory_xact_lock(START_LOCK)))


__all__ = [
    "ALL",
    "Changed",
    "Database",
    "RowRefusedError",
    "StorageDownError",
    "StoreError",
    "alone",
    "file_of",
    "now",
    "place_of",
]
