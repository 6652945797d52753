"""Trips: the rule `trip`, by which refusals of X pause an account or a key.

X refuses what it takes for misuse, and repeating it makes things worse for the account. A suspension pauses the
account; refusals that add up pause the key, or the account if the rule is the account's. A policy in shadow mode never
trips. COUNTED lists the refusals that add up.
"""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from birdwire.gateway.guardrails.pauses import in_force, pause
from birdwire.keys.cache import ACCOUNT
from birdwire.store.database import StorageDownError
from birdwire.store.tables import acts, journal, pauses
from birdwire.store.tables.pauses import PauseRow

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.api.errors import GatewayError
    from birdwire.gateway.guardrails.counting_rules import Trip
    from birdwire.gateway.guardrails.policy import Guard, Policy
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database

SUSPENDED: Final = "x_user_suspended"
REFUSED: Final = "x_refused"

COUNTED: Final = frozenset({REFUSED, SUSPENDED, "reply_not_allowed", "duplicate_post", "edit_window_closed"})
"""The reasons of X's refusals that `x_refused` counts: what X does not let this account do.

Not counted are mistakes in a request, posts that no longer exist, rate limits, tokens that ended, and what concerns the
X app, such as its credits or its access level: repeating these brings the account into no trouble.
"""


class Trips:
    """Applies the rule `trip` in one database."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def after(self, guard: Guard, error: GatewayError) -> Awaitable[None] | None:
        """Return what to wait for after X refused a call of a guarded key, or None if no rule concerns it.

        The refusal of a write is in the journal by then. What is returned never fails: if the database does not answer,
        X's next refusal counts.
        """
        if error.reason not in COUNTED or error.outcome != "refused":
            return None
        tripping = [policy for policy in guard.policies if policy.trips]
        return self._judge(guard, tripping, error.reason) if tripping else None

    async def _judge(self, guard: Guard, policies: list[Policy], reason: str) -> None:
        with contextlib.suppress(StorageDownError):
            for policy in policies:
                for trip in policy.trips:
                    scope = _paused_by(trip, policy, guard)
                    if trip.reason in (reason, REFUSED) and scope is not None:
                        await self._trip(policy, trip, scope)

    async def _trip(self, policy: Policy, trip: Trip, scope: str) -> None:
        """Pause a scope if enough calls were refused, unless it is paused already."""
        now = self._clock.now()
        # The refusal at hand is one: that of a lookup is not in the journal.
        if trip.refusals > 1:
            since = now - timedelta(seconds=trip.window_s)
            async with self._database.read() as connection:
                if await _refusals(connection, scope, trip.reason, since) < trip.refusals:
                    return
        async with self._database.write() as connection:
            held = [row for row in await pauses.of(connection, [scope]) if row.author == policy.author]
            if not in_force(held, now):
                row = PauseRow(scope, policy.author, now, None, _why(trip), acts.GATEWAY.who)
                await pause(connection, acts.GATEWAY, row)


def _paused_by(trip: Trip, policy: Policy, guard: Guard) -> str | None:
    """Return the scope that a trip pauses; None if that is the account and none is linked."""
    if trip.reason != SUSPENDED and not policy.scope.startswith(ACCOUNT):
        return guard.key_id
    return None if guard.user_id is None else f"{ACCOUNT}{guard.user_id}"


async def _refusals(connection: AsyncConnection, scope: str, reason: str, since: datetime) -> int:
    """Return how many refusals of a scope's writes the journal has since a moment."""
    reasons = sorted(COUNTED if reason == REFUSED else {reason})
    if scope.startswith(ACCOUNT):
        return await journal.account_refused_since(connection, scope.removeprefix(ACCOUNT), since, reasons)
    return sum([await journal.refused_since(connection, scope, since, one) for one in reasons])


def _why(trip: Trip) -> str:
    if trip.reason == SUSPENDED:
        return "X has suspended or locked the account (rule trip)"
    times = "1 call" if trip.refusals == 1 else f"{trip.refusals} calls"
    return f"X refused {times} within {trip.window_s} seconds (rule trip)"
