"""The members of auth/status that describe what holds for a key: its rules, its budget, and any pause."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from birdwire.gateway.guardrails import policy as rules
from birdwire.keys.rules import ACTIONS
from birdwire.runtime.clock import rfc3339
from birdwire.store.tables import usage as store

if TYPE_CHECKING:
    from birdwire.gateway.guardrails.policy import Guard
    from birdwire.gateway.guardrails.spending import GuardOf
    from birdwire.keys.registry import Key
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database

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
        return {"rules": _rules(guard, key), "budget": await self.budget(guard), "paused": self._paused(guard)}

    async def budget(self, guard: Guard | None) -> dict[str, Any] | None:
        """Return the tightest budget of the day and of the month; None if no policy that is obeyed has one.

        Raises:
            StorageDownError: the database does not answer.
        """
        policies = [one for one in (guard.policies if guard else ()) if not one.is_shadow and "budget" in one.rules]
        if not policies:
            return None
        now = self._clock.now()
        windows = {"day": (f"{now:%Y-%m-%d}", _tomorrow(now)), "month": (f"{now:%Y-%m}", _next_month(now))}
        keys = [(one.scope, store.USD, window) for one in policies for window, _ in windows.values()]
        async with self._database.read() as connection:
            used = await store.amounts(connection, keys)
        found: dict[str, Any] = {"currency": "USD"}
        for name, (window, resets_at) in windows.items():
            limits = [
                (round(one.rules["budget"][f"{name}_usd"] * 1_000_000), used.get((one.scope, store.USD, window), 0))
                for one in policies
                if f"{name}_usd" in one.rules["budget"]
            ]
            limit, spent = min(limits, key=lambda pair: pair[0] - pair[1], default=(None, 0))
            found[name] = limit and {
                "limit_usd": dollars(limit),
                "used_usd": dollars(spent),
                "resets_at": rfc3339(resets_at),
            }
        return found

    def _paused(self, guard: Guard) -> dict[str, Any] | None:
        now = self._clock.now()
        for author in ("operator", "owner"):
            for row in guard.pauses:
                if row.author == author and (row.until is None or row.until > now):
                    return {
                        "scope": row.scope,
                        "by": row.author,
                        "since": rfc3339(row.since),
                        "until": None if row.until is None else rfc3339(row.until),
                        "why": row.why,
                    }
        return None


def dollars(amount: int) -> float:
    """Return millionths of a dollar in dollars."""
    return round(amount / 1_000_000, 6)


def _rules(guard: Guard, key: Key) -> dict[str, Any] | None:
    """Return what a key's holder may know of its policies."""
    if not guard.policies and not guard.unreadable:
        return None
    own = next((one for one in guard.policies if one.scope == key.key_id), None)
    unreadable = [f"The policy of {scope} cannot be read, so Birdwire refuses the calls." for scope in guard.unreadable]
    return {
        "enforcement": "enforce" if own is None else own.enforcement,
        "preset": None if own is None else own.preset,
        "sentences": [*unreadable, *rules.sentences(guard.policies)],
        "allowed": [action for action in ACTIONS if key.rules.allow(action)],
        "approve_by": rules.approve_by(guard.policies),
        "waiting": 0,
    }


def _tomorrow(now: datetime) -> datetime:
    return datetime(now.year, now.month, now.day, tzinfo=UTC) + timedelta(days=1)


def _next_month(now: datetime) -> datetime:
    return datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
