"""Admission: identifies the key of a call, and checks what it may do: on entry, and again until the call writes to X.

It reads no body and sends nothing to X.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from birdwire.accounts.write_permit import WritePermit
from birdwire.api.errors import GatewayError
from birdwire.keys.rate_limit import failures_from

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from birdwire.accounts.sessions import Sessions, XSession
    from birdwire.keys.cache import KeyCache
    from birdwire.keys.context import CallContext
    from birdwire.keys.rate_limit import RateLimit
    from birdwire.keys.registry import Key, Keys
    from birdwire.keys.secrets import Mode
    from birdwire.runtime.clock import Clock

MAX_AUTH_FAILURES_PER_MINUTE = 60
CLOCK_TOLERANCE_S = 1.0
"""For this long after its admission, a call may use a link that is younger than the admission: the clocks of replicas
differ, and a caller may like a post right after it linked an account."""


class Admission:
    """Admits the calls of one database's keys, at a gateway that serves keys of one mode."""

    def __init__(
        self,
        keys: Keys,
        cache: KeyCache,
        sessions: Sessions,
        rate_limit: RateLimit,
        clock: Clock,
        mode: Mode,
    ) -> None:
        self._keys = keys
        self._cache = cache
        self._sessions = sessions
        self._rate_limit = rate_limit
        self._clock = clock
        self._mode: Mode = mode

    async def admit(self, context: CallContext, raw_key: str) -> None:
        """Find the caller's key, and take one call from its allowance, which each answer from here on reports.

        Raises:
            GatewayError: 401 or 403: the key may not be used here; 429: its allowance is used up, or its address has
                sent too many unknown keys.
        """
        call = context.call
        try:
            key = await self._keys.find(raw_key, self._mode, call.peer)
        except GatewayError as error:
            # This process alone has counted too many, so Redis need not be asked.
            if error.reason == "auth_failures":
                raise
            failures = await self._rate_limit.take(failures_from(call.peer), MAX_AUTH_FAILURES_PER_MINUTE)
            if error.problem.status == 401 and not failures.granted:
                raise GatewayError("auth_failures", retry_after_s=failures.reset_in_s) from None
            raise
        call.note["key_id"], call.admitted_at = key.key_id, self._clock.unix_s()
        allowance = await self._rate_limit.take(key.key_id, key.rpm)
        context.headers = allowance.headers()
        if not allowance.granted:
            raise GatewayError("rpm_exceeded", retry_after_s=allowance.reset_in_s, limit=allowance.limit)
        if not key.rules.allow_address(call.peer):
            raise GatewayError("ip_not_allowed")
        context.key, context.admitted = key, True

    async def recheck(self, context: CallContext, action: str) -> None:
        """Read the key again, which may have changed while the body came in or the call waited.

        Raises:
            GatewayError: it may no longer be used, or not from this address, or not for this action. The call is not
                counted again.
        """
        key = context.key = await self._keys.again(context.key)
        if not key.rules.allow_address(context.call.peer):
            raise GatewayError("ip_not_allowed")
        check_action(key, action)

    async def session_for_write(self, context: CallContext, scopes: tuple[str, ...]) -> XSession:
        """Return a session of the key's link for a write, with a token that is good now.

        Raises:
            GatewayError: as `Sessions.session_for`; x_not_linked also if the link is younger than the call's admission,
                since what the caller meant for the earlier account must not reach another one.
        """
        session = await self._sessions.session_for(context.key, scopes)
        linked_at, admitted_at = session.linked_at, context.call.admitted_at
        younger = linked_at is not None and admitted_at is not None and linked_at > admitted_at
        if younger and admitted_at is not None and self._clock.unix_s() - admitted_at > CLOCK_TOLERANCE_S:
            raise GatewayError("x_not_linked")
        return session

    def permit(self, context: CallContext, action: str, scopes: tuple[str, ...]) -> WritePermit:
        """Return the permit that is checked before each request of a write leaves for X."""

        async def readmit(_: Key) -> tuple[Key, XSession]:
            await self.recheck(context, action)
            return context.key, await self._sessions.session_for(context.key, scopes)

        return WritePermit(self._keys, self._sessions, self._cache, self._clock, context.key, readmit)

    def spend_write(self, key: Key) -> Awaitable[None]:
        """Count one write of the key's day.

        Raises:
            GatewayError: daily_cap.
        """
        return self._keys.spend_write(key)


def check_action(key: Key, action: str) -> None:
    """Check that the key is allowed an action; an empty action is always allowed.

    Raises:
        GatewayError: key_not_allowed.
    """
    if action and not key.rules.allow(action):
        raise GatewayError("key_not_allowed", what=action)
