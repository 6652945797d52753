"""What the store said of a key recently, so that a call need not ask it again. It holds no truth: news empties it.

To read a key and its session from the store costs many times the CPU of all the rest of a like.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from birdwire.store.database import ALL

if TYPE_CHECKING:
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database

MOST_KEYS = 20_000
"""Keys remembered at most, some 2 KiB each; the one remembered longest gives way."""


class KeyCache:
    """Values by key and name. Everything of a key is forgotten when anybody, here or elsewhere, changed it."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._known: dict[str, tuple[float, dict[object, Any]]] = {}
        self._looked: asyncio.AbstractEventLoop | None = None
        self._news: dict[str, int] = {}  # by key: the turn that its last change began, the newest at the end
        self.turn = 0

    def catch_up(self) -> int:
        """Forget what has changed, and say which turn this is: a value read from the store from here on is of it.

        The store is asked once in a turn of the loop: whatever comes in after a change is worked on in a later one.
        """
        loop = asyncio.get_running_loop()
        if self._looked is loop:
            return self.turn
        self._looked = loop
        loop.call_soon(self._look_again)
        changed = self._database.changed()
        if changed is ALL:
            self._known.clear()
            self.turn += 1
        elif changed:
            for key_id in changed:
                self.forget(key_id)
        return self.turn

    def _look_again(self) -> None:
        self._looked = None

    def forget(self, key_id: str) -> None:
        """It changed: what is being read of it now may be what was before."""
        self._known.pop(key_id, None)
        self.turn += 1
        self._news.pop(key_id, None)
        self._news[key_id] = self.turn
        if len(self._news) > MOST_KEYS:
            del self._news[next(iter(self._news))]

    def changed_since(self, key_id: str, turn: int) -> bool:
        """Return whether a change of this key was announced after a turn, as of the last `catch_up`."""
        return self._news.get(key_id, -1) > turn

    def get(self, key_id: str, name: object) -> Any | None:
        """What is remembered as of the last `catch_up`; None: nothing."""
        until, values = self._known.get(key_id, _NOTHING)
        return values.get(name) if until > self._clock.monotonic() else None

    def put(self, key_id: str, name: object, value: object, turn: int) -> None:
        """Remember what was read in a turn, unless there was news since: it might be older than the news."""
        if turn != self.catch_up():
            return
        until, values = self._known.get(key_id, _NOTHING)
        now = self._clock.monotonic()
        if until <= now:
            self._known.pop(key_id, None)
            if len(self._known) >= MOST_KEYS:
                del self._known[next(iter(self._known))]
            values = {}
            self._known[key_id] = (now + self._database.trusted_s, values)
        values[name] = value


_NOTHING: tuple[float, dict[object, Any]] = (0.0, {})
