"""The permit of one call to X: its key, its link and its guard, checked again right before each request is sent.

What the operator ordered has the permit of its link alone: neither its key nor a pause stops it.

Between a call's admission and its first byte to X there may be a slow body, an upload, a queue or a retry. `check`
reads only the cache, and must never wait; `renew` reads the database when the cache cannot answer.

The link and the guard of a key (its policies and pauses) need no check of their own. A call reads them after its key,
and news of any of them drops the key from the cache: while that still holds the key, nothing of it has changed.
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

Readmit = Callable[["XSession"], Awaitable[tuple["Key", "XSession"]]]
"""Return the key and its session as they are now, or raise the refusal that a new call would get.

It is given the session that the call holds. It must not renew a token that still works: the renewal would be news of
the key, and the permit would never be up to date.
"""


class WritePermit:
    """The key's rules and the link under which one call was admitted. It decides on writes, and not on `reads`."""

    reads = False

    __slots__ = ("_cache", "_clock", "_epoch", "_fresh_until", "_key", "_keys", "_readmit")

    def __init__(self, keys: Keys, cache: KeyCache, clock: Clock, key: Key, readmit: Readmit) -> None:
        self._keys = keys
        self._cache = cache
        self._clock = clock
        self._key = key
        self._readmit = readmit
        self._fresh_until = clock.monotonic() + FRESH_S
        # The cache's epoch of the last renewal, if there was one.
        self._epoch: int | None = None

    def check(self) -> None:
        """Check that the call may still be sent. It takes microseconds and never waits.

        Raises:
            StaleError: call `renew` first.
            GatewayError: key_revoked, key_expired.
        """
        epoch = self._cache.poll()
        self._key.check(self._clock, self._key.mode)
        if self._keys.remembers(self._key):
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
        self._key, newer = await self._readmit(session)
        if newer.user_id != session.user_id:
            raise GatewayError("x_not_linked")
        self._fresh_until, self._epoch = began + FRESH_S, epoch
        return newer


class LookupPermit(WritePermit):
    """The permit of a lookup, which consists of reads."""

    reads = True

    __slots__ = ()


class LinkPermit:
    """The link through which the operator's own order is sent. It ends with that link, and with nothing else."""

    reads = False

    __slots__ = ("_cache", "_clock", "_epoch", "_fresh_until", "_key_id", "_sessions")

    def __init__(self, sessions: Sessions, cache: KeyCache, clock: Clock) -> None:
        self._sessions = sessions
        self._cache = cache
        self._clock = clock
        # The link is read before the first request.
        self._key_id, self._epoch = "", -1
        self._fresh_until = float("-inf")

    def check(self) -> None:
        """Check that the call may still be sent. It takes microseconds and never waits.

        Raises:
            StaleError: call `renew` first.
        """
        self._cache.poll()
        if self._cache.changed_since(self._key_id, self._epoch) or self._clock.monotonic() >= self._fresh_until:
            raise StaleError

    async def renew(self, session: XSession) -> XSession:
        """Read the link again, and return the session to use from here on, which has the newest token.

        Raises:
            GatewayError: x_not_linked, or why there is no token that works now.
            StorageDownError: the database does not answer.
        """
        began, epoch = self._clock.monotonic(), self._cache.poll()
        newer, self._key_id = await self._sessions.reopened(session)
        self._fresh_until, self._epoch = began + FRESH_S, epoch
        return newer
