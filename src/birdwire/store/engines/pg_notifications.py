"""Which keys changed, as PostgreSQL's notifications say it; listens on a connection of its own."""

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
"""How long the listener may go without a sign of life: less than the 5 s in which a revocation must be known."""
RECONNECT = Backoff(initial_s=0.05, max_s=2.0)


class PgNotifications:
    """What PostgreSQL's notifications said. Listens from the first question on, until it is closed."""

    trusted_s = 5.0
    """The listener knows when it hears nothing; should it be wrong, no memory is older than this."""

    def __init__(self, connect: Callable[[], Awaitable[Any]]) -> None:
        self._connect = connect
        self._task: asyncio.Task[None] | None = None
        self._heard: set[str] = set()
        self._missed = True
        self._alive_until = 0.0

    def changed(self) -> Changed:
        """As `Database.changed`."""
        loop = asyncio.get_running_loop()
        if self._task is None:
            self._task = loop.create_task(self._listen())
        if loop.time() > self._alive_until:
            return ALL
        if self._missed:
            self._missed = False
            self._heard.clear()
            return ALL
        if not self._heard:
            return NOTHING
        heard = frozenset(self._heard)
        self._heard.clear()
        return heard

    async def close(self) -> None:
        """End the listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _listen(self) -> None:
        """Until cancelled: one connection after the other, with a pause after each that failed."""
        pauses = iter(RECONNECT)
        while True:
            with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                connection = await self._connect()
                try:
                    await connection.add_listener(CHANNEL, self._hear)
                    self._missed = True  # whatever was said before nobody heard
                    pauses = iter(RECONNECT)
                    await self._stay(connection)
                finally:
                    self._alive_until = 0.0
                    connection.terminate()
            await asyncio.sleep(next(pauses))

    async def _stay(self, connection: Any) -> None:
        """Until the connection is gone: see again and again that it is not, since a cut cable says nothing."""
        loop, gone = asyncio.get_running_loop(), asyncio.Event()
        connection.add_termination_listener(lambda _: gone.set())
        while not gone.is_set():
            asked_at = loop.time()
            await connection.execute("SELECT", timeout=PING_S)
            self._alive_until = asked_at + TRUST_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(gone.wait(), PING_S)

    def _hear(self, _connection: Any, _process: int, _channel: str, key_id: str) -> None:
        self._heard.add(key_id)
