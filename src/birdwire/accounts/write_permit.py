"""The permission of one call to write at X: its key and its link, checked again right before each request is sent.

Between a call's admission and its first byte at X there may be a slow body, an upload, a queue, a retry. `check` asks
only the cache, and must never wait; what it cannot answer is read again by `renew`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from birdwire.api.errors import GatewayError

if TYPE_CHECKING:
    from birdwire.accounts.sessions import Sessions, XSession
    from birdwire.keys.cache import KeyCache
    from birdwire.keys.registry import Key, Keys
    from birdwire.runtime.clock import Clock

FRESH_S = 1.0
"""How long a permission that was read again counts when no cache can hold it: the change feed is down, or very busy."""

Readmit = Callable[["Key"], Awaitable[tuple["Key", "XSession"]]]
"""Return the key and its session as they are now, or raise the refusal that a new call would get."""


class StaleError(Exception):
    """The key or its link has changed, or may have changed, since this call read them. Nothing was sent."""


class WritePermit:
    """What one call was admitted by: the key's rules and the link in use."""

    __slots__ = ("_clock", "_fresh_until", "_key", "_keys", "_readmit", "_recall", "_sessions", "_turn")

    def __init__(
        self, keys: Keys, sessions: Sessions, recall: KeyCache, clock: Clock, key: Key, readmit: Readmit
    ) -> None:
        self._keys = keys
        self._sessions = sessions
        self._recall = recall
        self._clock = clock
        self._key = key
        self._readmit = readmit
        self._fresh_until = clock.monotonic() + FRESH_S
        self._turn: int | None = None  # in which it was read again, if it was

    def check(self, session: XSession) -> None:
        """Check that the call may still write through a session. Costs microseconds and never waits.

        Raises:
            StaleError: `renew` first.
            GatewayError: key_revoked, key_expired.
        """
        turn = self._recall.poll()
        self._key.check(self._clock.now(), self._key.mode)
        if self._keys.remembers(self._key) and self._sessions.remembers(self._key.key_id, session):
            return
        # The cache may be full, or unable to hold anything: then what was read a moment ago has to do.
        if self._turn is None:
            changed = turn != self._key.epoch
        else:
            changed = self._recall.changed_since(self._key.key_id, self._turn)
        if changed or self._clock.monotonic() >= self._fresh_until:
            raise StaleError

    async def renew(self, session: XSession) -> XSession:
        """Read the key and its link again; return the session to go on with, which has the newest token.

        Raises:
            GatewayError: what a new call would be refused with; x_not_linked if another account is linked now.
            StorageDownError: the database does not answer.
        """
        began, turn = self._clock.monotonic(), self._recall.poll()
        self._key, newer = await self._readmit(self._key)
        if newer.user_id != session.user_id:
            raise GatewayError("x_not_linked")
        self._fresh_until, self._turn = began + FRESH_S, turn
        return newer
