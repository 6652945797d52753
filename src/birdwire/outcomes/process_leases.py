"""Process leases and heartbeats: they distinguish a running call from one that a crash interrupted.

Each process renews a lease; one whose lease expired counts as dead. Such a process may be merely slow, so a process
that takes over its call must leave a mark, which the slow process checks before it sends anything. A process may skip
this check while its lease cannot have expired (`certain`).
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

RENEW_EVERY_S = 5.0
LEASE = timedelta(seconds=20)


class ProcessLeases:
    """This process among the processes of one database."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.me = f"gw_{ULID()}"
        self._database = database
        self._clock = clock
        self.address: str | None = None
        """The URL that this process serves, without a path, once it is known; others read it from the store."""
        self._running: set[str] = set()
        self._certain_until = float("-inf")

    async def start(self, *, alone: bool) -> None:
        """Acquire the lease. `alone`: something else guarantees that no other process runs, so all others are dead.

        Raises:
            StorageDownError: the lease was not stored.
        """
        await self.renew()
        if alone:
            async with self._database.write() as connection:
                await store.remove_others(connection, self.me)

    async def renew(self) -> None:
        """Renew the lease; due every RENEW_EVERY_S.

        Raises:
            StorageDownError: the lease was not stored.
        """
        started_at = self._clock.monotonic()
        async with self._database.write() as connection:
            at = await now(connection, self._clock)
            await store.renew(connection, self.me, at + LEASE, self.address)
            await store.purge(connection, at - 10 * LEASE)
        self._certain_until = started_at + LEASE.total_seconds()

    async def close(self) -> None:
        """Release the lease: nothing of this process runs any longer."""
        self._certain_until = float("-inf")
        # If the store is down, the lease expires by itself.
        with contextlib.suppress(StorageDownError):
            async with self._database.write() as connection:
                await store.remove(connection, self.me)

    @property
    def certain(self) -> bool:
        """Return whether no other process can count this one as dead yet."""
        return self._clock.monotonic() < self._certain_until

    @contextlib.contextmanager
    def running(self, request_id: str) -> Iterator[None]:
        """Register a call as running here until the block ends."""
        self._running.add(request_id)
        try:
            yield
        finally:
            self._running.discard(request_id)

    def register(self, request_id: str) -> bool:
        """Register a call as running here, until `discard`; return False if it is registered already."""
        if request_id in self._running:
            return False
        self._running.add(request_id)
        return True

    def discard(self, request_id: str) -> None:
        """Stop counting a registered call as running."""
        self._running.discard(request_id)

    async def runs(self, connection: AsyncConnection, owner: str | None, request_id: str) -> bool:
        """Return whether a call that the process `owner` started may still be running."""
        if owner == self.me:
            return request_id in self._running
        return owner is not None and await store.alive(connection, owner, await now(connection, self._clock))
