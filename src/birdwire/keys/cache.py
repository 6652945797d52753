"""In-memory cache of API keys, their sessions and their guards, invalidated by the store's change feed.

A read of a key and its session from the store costs many times the CPU of all the rest of a like.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from birdwire.store.database import ALL

if TYPE_CHECKING:
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database

GATEWAY, ACCOUNT = "gateway", "account:"
"""The scopes that are not a key: the whole gateway, and one X account (`account:` and its user id)."""

MAX_KEYS = 20_000
"""Cached keys, of about 2 KiB each; the key cached longest ago is evicted first."""


class KeyCache:
    """Values by key and name. Every value of a key is dropped when any process changes the key.

    A change of a scope that covers several keys, an account or the gateway, drops every key: which ones it concerns is
    not known here, and such changes are rare. So a value that is still cached is as new as all else of its key.

    `epoch` rises with each invalidation: a value read from the store may be cached only while the epoch in which the
    read started is still the current one. `scopes_epoch` is the one that the last change of such a scope started.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._cached: dict[str, tuple[float, dict[object, Any]]] = {}
        self._polled_in: asyncio.AbstractEventLoop | None = None
        # The age of a value is measured at the last poll.
        self._polled_at = clock.monotonic()
        # By key: the epoch that its last change started, newest last.
        self._changes: dict[str, int] = {}
        self.epoch = 0
        self.scopes_epoch = -1

    def poll(self) -> int:
        """Drop what has changed and return the current epoch, to which values read from here on belong.

        The change feed is read once per iteration of the event loop: a call that arrives after a change is served in a
        later iteration.
        """
        loop = asyncio.get_running_loop()
        if self._polled_in is loop:
            return self.epoch
        self._polled_in, self._polled_at = loop, self._clock.monotonic()
        loop.call_soon(self._allow_poll)
        changed = self._database.changed()
        if changed is ALL:
            self._cached.clear()
            self.epoch += 1
        elif changed:
            for subject in changed:
                self.invalidate(subject)
        return self.epoch

    def _allow_poll(self) -> None:
        self._polled_in = None

    def invalidate(self, key_id: str) -> None:
        """Drop a key that changed, or every key if it is the id of another scope.

        A read that is in progress may still return the earlier state.
        """
        self.epoch += 1
        if key_id == GATEWAY or key_id.startswith(ACCOUNT):
            self._cached.clear()
            self.scopes_epoch = self.epoch
            return
        self._cached.pop(key_id, None)
        self._changes.pop(key_id, None)
        self._changes[key_id] = self.epoch
        if len(self._changes) > MAX_KEYS:
            del self._changes[next(iter(self._changes))]

    def changed_since(self, key_id: str, epoch: int) -> bool:
        """Return whether a change of this key, an account or the gateway was announced after an epoch.

        The answer is as of the last `poll`.
        """
        return self._changes.get(key_id, -1) > epoch or self.scopes_epoch > epoch

    def get(self, key_id: str, name: object) -> Any | None:
        """Return a cached value as of the last `poll`, or None."""
        until, values = self._cached.get(key_id, _NOTHING)
        return values.get(name) if until > self._polled_at else None

    def put(self, key_id: str, name: object, value: object, epoch: int) -> None:
        """Cache a value that was read in an epoch, unless a later change may have made it stale."""
        if epoch != self.poll():
            return
        until, values = self._cached.get(key_id, _NOTHING)
        now = self._polled_at
        if until <= now:
            self._cached.pop(key_id, None)
            if len(self._cached) >= MAX_KEYS:
                del self._cached[next(iter(self._cached))]
            values = {}
            self._cached[key_id] = (now + self._database.trusted_s, values)
        values[name] = value


_NOTHING: tuple[float, dict[object, Any]] = (0.0, {})
