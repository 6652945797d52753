"""The members of auth/status that describe what holds for a key: its rules, its budget, and any pause."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from birdwire.gateway.guardrails import policy as rules
from birdwire.gateway.guardrails.pauses import document, in_force
from birdwire.gateway.guardrails.windows import Moment, Unit, end_of
from birdwire.keys.rules import ACTIONS
from birdwire.runtime.clock import rfc3339
from birdwire.store.tables import approvals
from birdwire.store.tables import usage as store
from birdwire.x.catalog.prices import usd

if TYPE_CHECKING:
    from birdwire.gateway.guardrails.policy import Guard
    from birdwire.gateway.guardrails.spending import GuardOf
    from birdwire.keys.registry import Key
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database

_UNITS: tuple[Unit, ...] = ("day", "month")
"""The windows of a budget."""

NOTHING: dict[str, Any] = {"rules": None, "budget": None, "paused": None}
"""The members for an unguarded key."""


class GuardStatus:
    """Describes the guards of keys. It reads, and changes nothing."""

    def __init__(self, database: Database, guard_of: GuardOf, clock: Clock) -> None:
        self._database = database
        self._guard_of = guard_of
        self._clock = clock

    async def describe(self, key: Key) -> dict[str, Any]:
        """Return the rules, the budget and the pause that hold for a key; each is null if there is none.

        Raises:
            StorageDownError: the database does not answer.
        """
        guard = await self._guard_of(key.key_id)
        if guard is None:
            return NOTHING
        stated = await self._rules(guard, key)
        return {"rules": stated, "budget": await self.budget(guard), "paused": self._paused(guard)}

    async def _rules(self, guard: Guard, key: Key) -> dict[str, Any] | None:
        """Return what a key's holder may know of its policies, and how many of its calls wait for a person."""
        if not guard.policies and not guard.unreadable:
            return None
        async with self._database.read() as connection:
            return _rules(guard, key, await approvals.count_waiting(connection, key.key_id))

    async def budget(self, guard: Guard | None) -> dict[str, Any] | None:
        """Return the tightest budget of the day and of the month; None if no policy that is obeyed has one.

        Raises:
            StorageDownError: the database does not answer.
        """
        policies = [one for one in (guard.policies if guard else ()) if not one.is_shadow and "budget" in one.rules]
        if not policies:
            return None
        now = self._clock.now()
        windows = {unit: Moment.of(now).windows[unit] for unit in _UNITS}
        keys = [(one.scope, store.USD, window) for one in policies for window in windows.values()]
        async with self._database.read() as connection:
            used = await store.amounts(connection, keys)
        found: dict[str, Any] = {"currency": "USD"}
        for name, window in windows.items():
            limits = [
                (round(one.rules["budget"][f"{name}_usd"] * 1_000_000), used.get((one.scope, store.USD, window), 0))
                for one in policies
                if f"{name}_usd" in one.rules["budget"]
            ]
            limit, spent = min(limits, key=lambda pair: pair[0] - pair[1], default=(None, 0))
            found[name] = limit and {
                "limit_usd": usd(limit),
                "used_usd": usd(spent),
                "resets_at": rfc3339(end_of(name, now)),
            }
        return found

    def _paused(self, guard: Guard) -> dict[str, Any] | None:
        """Return the pause that a refusal would name. Its author stands for the person, whom callers must not know."""
        holding = in_force(guard.pauses, self._clock.now())
        return {**document(holding[0]), "by": holding[0].author} if holding else None


def _rules(guard: Guard, key: Key, waiting: int) -> dict[str, Any]:
    own = next((one for one in guard.policies if one.scope == key.key_id), None)
    unreadable = [f"The policy of {scope} cannot be read, so Birdwire refuses the calls." for scope in guard.unreadable]
    return {
        "enforcement": "enforce" if own is None else own.enforcement,
        "preset": None if own is None else own.preset,
        "sentences": [*unreadable, *rules.sentences(guard.policies)],
        "allowed": [action for action in ACTIONS if key.rules.allow(action)],
        "approve_by": rules.approve_by(guard.policies),
        "waiting": waiting,
    }
