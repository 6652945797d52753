"""Which processes run, and what this one is at: how a call that runs is told from one that a crash cut off.

Each process renews a row of its own; one whose row ran out counts as dead. It may only be slow: so who acts for it must
leave a mark that it looks for before it sends anything, and `sure` says when that look may be left out.
"""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING

from ulid import ULID

from birdwire.store.database import StorageDownError, now
from birdwire.store.tables import processes as store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database

BEAT_EVERY_S = 5.0
LEASE = timedelta(seconds=20)


class ProcessLeases:
    """This process among those of one database."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.me = f"gw_{ULID()}"
        self._database = database
        self._clock = clock
        self._running: set[str] = set()
        self._sure_until = float("-inf")

    async def start(self, *, alone: bool) -> None:
        """Say that this process runs. `alone`: something else guarantees that no other does, so all others are dead.

        Raises:
            StorageDownError: it could not be said.
        """
        await self.beat()
        if alone:
            async with self._database.write() as connection:
                await store.only(connection, self.me)

    async def beat(self) -> None:
        """Say it again; due every BEAT_EVERY_S.

        Raises:
            StorageDownError: it could not be said.
        """
        began_at = self._clock.monotonic()
        async with self._database.write() as connection:
            at = await now(connection, self._clock)
            await store.beat(connection, self.me, at + LEASE)
            await store.forget(connection, at - 10 * LEASE)
        self._sure_until = began_at + LEASE.total_seconds()

    async def close(self) -> None:
        """This process ends: nothing of it runs any more."""
        self._sure_until = float("-inf")
        with contextlib.suppress(StorageDownError):  # its row runs out by itself
            async with self._database.write() as connection:
                await store.remove(connection, self.me)

    @property
    def sure(self) -> bool:
        """Whether no other process can count this one as dead yet."""
        return self._clock.monotonic() < self._sure_until

    @contextlib.contextmanager
    def running(self, request_id: str) -> Iterator[None]:
        """A call that runs here for as long as the block does."""
        self._running.add(request_id)
        try:
            yield
        finally:
            self._running.discard(request_id)

    async def runs(self, connection: AsyncConnection, owner: str, request_id: str) -> bool:
        """Whether a call that a process began may still be running."""
        if owner == self.me:
            return request_id in self._running
        return await store.alive(connection, owner, await now(connection, self._clock))
