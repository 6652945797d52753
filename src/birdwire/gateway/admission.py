"""Admission: identifies the key of a call, and checks what it may do: on entry, and again until the call is sent to X.

It reads no body and sends nothing to X.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from birdwire.accounts.write_permit import LinkPermit, LookupPermit, WritePermit
from birdwire.api.errors import GatewayError
from birdwire.keys.rate_limit import failures_from

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from birdwire.accounts.sessions import Sessions, XSession
    from birdwire.gateway.guardrails.guards import Guards
    from birdwire.gateway.guardrails.policy import Guard
    from birdwire.keys.cache import KeyCache
    from birdwire.keys.context import CallContext
    from birdwire.keys.rate_limit import RateLimit
    from birdwire.keys.registry import Key, Keys
    from birdwire.keys.secrets import Mode
    from birdwire.runtime.clock import Clock
    from birdwire.store.tables.approvals import ApprovalRow
    from birdwire.x.catalog.lookups import Lookup

MAX_AUTH_FAILURES_PER_MINUTE = 60
CLOCK_TOLERANCE_S = 1.0
"""For this long after its admission, a call may use a link that is younger than the admission: the clocks of replicas
differ, and a caller may like a post right after it linked an account."""


class Admission:
    """Admits the calls of one database's keys, at a gateway that serves keys of one mode.

    `guards` knows what else holds for each key, for the steps of a call that ask.
    """

    def __init__(
        self,
        keys: Keys,
        cache: KeyCache,
        sessions: Sessions,
        guards: Guards,
        rate_limit: RateLimit,
        clock: Clock,
        mode: Mode,
    ) -> None:
        self._keys = keys
        self._cache = cache
        self._sessions = sessions
        self.guards = guards
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
            key = await self._keys.identify(raw_key, call.peer)
            # The record of a refused attempt names the key, also one that has expired.
            call.note["key_id"] = key.key_id
            key.check(self._clock, self._mode)
        except GatewayError as error:
            # This process alone has counted too many, so Redis need not be asked.
            if error.reason == "auth_failures":
                raise
            failures = await self._rate_limit.take(failures_from(call.peer), MAX_AUTH_FAILURES_PER_MINUTE)
            if error.problem.status == 401 and not failures.granted:
                raise GatewayError("auth_failures", retry_after_s=failures.reset_in_s) from None
            raise
        call.admitted_at = self._clock.unix_s()
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
                counted again. The address of an approved call was checked when it came.
        """
        key = context.key = await self._keys.again(context.key)
        if not key.rules.allow_address(context.call.peer) and not context.approved:
            raise GatewayError("ip_not_allowed")
        check_action(key, action)

    async def readmit(self, context: CallContext, key_id: str) -> None:
        """Set the key of a call that ended earlier and was approved since, as the key is now.

        Raises:
            GatewayError: key_unknown. Whether the key may be used is checked by `recheck`.
        """
        context.key, context.admitted = await self._keys.identified(key_id), True
        context.call.note["key_id"] = key_id

    def now(self) -> datetime:
        """Return the time by which calls are admitted."""
        return self._clock.now()

    def serves(self, key: Key) -> bool:
        """Return whether this gateway serves keys of the key's mode."""
        return key.mode == self._mode

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

    async def session_for_approved(
        self, context: CallContext, asked_by: ApprovalRow, scopes: tuple[str, ...]
    ) -> XSession:
        """Return the session through which an approved write was asked for; for an order, one of any link.

        Raises:
            GatewayError: as `Sessions.session_for` or `Sessions.for_account`; approval_stale: the key has another link.
        """
        if asked_by.ordered:
            return await self._sessions.for_account(asked_by.user_id, asked_by.key_id, scopes)
        session = await self._sessions.session_for(context.key, scopes)
        if (session.session_id, session.user_id) != (asked_by.session_id, asked_by.user_id):
            raise GatewayError("approval_stale", detail="the key has been linked again, or to another account")
        return session

    def order_permit(self) -> LinkPermit:
        """Return the permit of what the operator ordered: it ends with the link, whatever holds for the key."""
        return LinkPermit(self._sessions, self._cache, self._clock)

    async def check_pause(self, key: Key) -> None:
        """Check that no pause holds for a key, its account or the gateway.

        Raises:
            GatewayError: paused, paused_by_owner.
        """
        guard = await self.guards.of(key.key_id)
        if guard is not None:
            guard.check_pause(self._clock.now())

    async def session_for_lookup(self, context: CallContext, scopes: tuple[str, ...]) -> XSession:
        """Return a session of the key's link for a lookup, with a token that is good now.

        Raises:
            GatewayError: as `Sessions.session_for`.
        """
        return await self._sessions.session_for(context.key, scopes)

    async def peek(self, key: Key, scopes: tuple[str, ...]) -> XSession:
        """Return the session of the key's link without its token: nothing is renewed, and X is not asked.

        Raises:
            GatewayError: as `Sessions.peek`.
        """
        return await self._sessions.peek(key, scopes)

    def permit(
        self,
        context: CallContext,
        action: str,
        scopes: tuple[str, ...],
        guard: Guard | None = None,
        judge: Callable[[Guard], None] | None = None,
    ) -> WritePermit:
        """Return the permit that is checked before each request of a write leaves for X.

        `guard` is the one by which the call was judged. If another one holds by then, `judge` judges the call by that.
        """
        readmit = partial(self._readmit, context, action, scopes, guard, judge)
        return WritePermit(self._keys, self._cache, self._clock, context.key, readmit)

    def lookup_permit(self, context: CallContext, lookup: Lookup) -> LookupPermit:
        """Return the permit that is checked before each request of a lookup leaves for X."""
        readmit = partial(self._readmit, context, lookup.name, lookup.scopes, None, None)
        return LookupPermit(self._keys, self._cache, self._clock, context.key, readmit)

    async def _readmit(
        self,
        context: CallContext,
        action: str,
        scopes: tuple[str, ...],
        before: Guard | None,
        judge: Callable[[Guard], None] | None,
        session: XSession,
    ) -> tuple[Key, XSession]:
        """Check everything again: the key, its link, its pauses, and the rules of a guard other than the one before.

        Raises:
            GatewayError: the refusal that a new call would get.
        """
        await self.recheck(context, action)
        newer = await self._sessions.again(context.key, session, scopes)
        # A person approved the write for one link, even if the next one is to the same account.
        if context.approved and newer.session_id != session.session_id:
            raise GatewayError("x_not_linked")
        guard = await self.guards.of(context.key.key_id)
        if guard is not None:
            guard.check_pause(self._clock.now())
            if judge is not None and guard != before:
                judge(guard)
        return context.key, newer

    def spend_write(self, key: Key) -> Awaitable[None]:
        """Count one write of the key's day.

        Raises:
            GatewayError: daily_cap.
        """
        return self._keys.spend_write(key)

    def check_daily_writes(self, key: Key) -> Awaitable[None]:
        """Check that the key has a write of the day left, without counting one.

        Raises:
            GatewayError: daily_cap.
        """
        return self._keys.check_daily_writes(key)


def check_action(key: Key, action: str) -> None:
    """Check that the key is allowed an action; an empty action is always allowed.

    Raises:
        GatewayError: key_not_allowed.
    """
    if action and not key.rules.allow(action):
        raise GatewayError("key_not_allowed", what=action)
