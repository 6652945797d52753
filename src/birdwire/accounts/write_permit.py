"""The permit of one call to write to X: its key and its link, checked again right before each write is sent.

Between a call's admission and its first byte to X there may be a slow body, an upload, a queue or a retry. `check`
reads only the cache, and must never wait; `renew` reads the database when the cache cannot answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from birdwire.api.errors import GatewayError
from birdwire.x.client.requests import StaleError

if TYPE_CHECKING:
    from birdwire.accounts.sessions import Sessions, XSession
    from birdwire.keys.cache import KeyCache
    from birdwire.keys.registry import Key, Keys
    from birdwire.runtime.clock import Clock

FRESH_S = 1.0
"""How long a renewed permit is valid if the cache cannot hold it: the change feed is down, or very busy."""

Readmit = Callable[["Key"], Awaitable[tuple["Key", "XSession"]]]
"""Return the key and its session as they are now, or raise the refusal that a new call would get."""


class WritePermit:
    """The key's rules and the link under which one call was admitted."""

    __slots__ = ("_cache", "_clock", "_epoch", "_fresh_until", "_key", "_keys", "_readmit", "_sessions")

    def __init__(
        self, keys: Keys, sessions: Sessions, cache: KeyCache, clock: Clock, key: Key, readmit: Readmit
    ) -> None:
        self._keys = keys
        self._sessions = sessions
        self._cache = cache
        self._clock = clock
        self._key = key
        self._readmit = readmit
        self._fresh_until = clock.monotonic() + FRESH_S
        # The cache's epoch of the last renewal, if there was one.
        self._epoch: int | None = None

    def check(self, session: XSession) -> None:
        """Check that the call may still write through a session. It takes microseconds and never waits.

        Raises:
            StaleError: call `renew` first.
            GatewayError: key_revoked, key_expired.
        """
        epoch = self._cache.poll()
        self._key.check(self._clock, self._key.mode)
        if self._keys.remembers(self._key) and self._sessions.remembers(self._key.key_id, session):
            return
        # The cache may be full, or unable to hold anything: then the last read counts for FRESH_S.
        if self._epoch is None:
            changed = epoch != self._key.epoch
        else:
            changed = self._cache.changed_since(self._key.key_id, self._epoch)
        if changed or self._clock.monotonic() >= self._fresh_until:
            raise StaleError

    async def renew(self, session: XSession) -> XSession:
        """Read the key and its link again, and return the session to use from here on, which has the newest token.

        Raises:
            GatewayError: the refusal that a new call would get; x_not_linked if another account is linked now.
            StorageDownError: the database does not answer.
        """
        began, epoch = self._clock.monotonic(), self._cache.poll()
        self._key, newer = await self._readmit(self._key)
        if newer.user_id != session.user_id:
            raise GatewayError("x_not_linked")
        self._fresh_until, self._epoch = began + FRESH_S, epoch
        return newer
