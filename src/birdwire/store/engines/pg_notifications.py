"""The change feed of PostgreSQL: LISTEN on a separate connection."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import asyncpg

from birdwire.runtime.backoff import Backoff
from birdwire.store.engines.change_feed import ALL, CHANNEL, NOTHING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from birdwire.store.engines.change_feed import Changed

PING_S = 1.5
TRUST_S = 4.0
"""Maximum age of the listener's last successful ping: less than the 5 s in which a revocation must take effect."""
RECONNECT = Backoff(initial_s=0.05, max_s=2.0)


class PgNotifications:
    """Collects the keys that notifications name. Listens from the first call of `changed` until it is closed."""

    trusted_s = 5.0
    """The listener detects its own interruptions; as a second safeguard, no cached row is older than this."""

    def __init__(self, connect: Callable[[], Awaitable[Any]]) -> None:
        self._connect = connect
        self._task: asyncio.Task[None] | None = None
        self._changed_keys: set[str] = set()
        self._gap = True
        self._alive_until = 0.0

    def changed(self) -> Changed:
        """See `Database.changed`."""
        loop = asyncio.get_running_loop()
        if self._task is None:
            self._task = loop.create_task(self._listen())
        if loop.time() > self._alive_until:
            return ALL
        if self._gap:
            self._gap = False
            self._changed_keys.clear()
            return ALL
        if not self._changed_keys:
            return NOTHING
        heard = frozenset(self._changed_keys)
        self._changed_keys.clear()
        return heard

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _listen(self) -> None:
        """Keep a connection open until cancelled, with backoff after each failure."""
        pauses = iter(RECONNECT)
        while True:
            with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                connection = await self._connect()
                try:
                    await connection.add_listener(CHANNEL, self._on_notification)
                    # Notifications sent before this moment were missed.
                    self._gap = True
                    pauses = iter(RECONNECT)
                    await self._watch(connection)
                finally:
                    self._alive_until = 0.0
                    connection.terminate()
            await asyncio.sleep(next(pauses))

    async def _watch(self, connection: Any) -> None:
        """Ping the connection until it is closed: a broken network path raises no event of its own."""
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        connection.add_termination_listener(lambda _: gone.set())
        while not gone.is_set():
            asked_at = loop.time()
            await connection.execute("SELECT", timeout=PING_S)
            self._alive_until = asked_at + TRUST_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(gone.wait(), PING_S)

    def _on_notification(self, _connection: Any, _process: int, _channel: str, key_id: str) -> None:
        self._changed_keys.add(key_id)
