"""BudgetReports: reports once that 80 % of a budget are used, and once that it is used up, with the call that does it.

A write reports what is used with its own charge, in the unit that makes the charge. A lookup first reserves the most
that it may cost, so it reports when that is corrected to what X billed. A call that a budget refuses reports that the
budget is used up, although less than that call costs may be left of it. What the operator orders and what no caller
asks for is counted without a limit, so the next call that a budget limits reports it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from birdwire.gateway.guardrails import windows
from birdwire.runtime.bounded_dict import BoundedDict
from birdwire.store.database import StorageDownError
from birdwire.store.tables import outbox, usage
from birdwire.x.catalog.prices import usd

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database, Part
    from birdwire.store.tables.outbox import BudgetNews
    from birdwire.store.tables.usage import Charge

PERCENTS: Final = (80, 100)
"""The percentages of a budget that are reported."""

KEPT: Final = timedelta(days=1)
"""How long an event is kept after its window has ended, so that it is not written again while calls still charge it."""

AGAIN_AFTER_S: Final = 60.0
"""Seconds after which a budget that still refuses calls is reported again, in case the first report was dropped."""

MAX_KNOWN: Final = 10_000
"""Budgets of which one process knows that it has reported them as used up."""

IsOn = Callable[[], bool]
NameOf = Callable[[str], str]
"""Returns a scope as a person knows it."""


class BudgetReports:
    """Reports on the budgets of one database. `is_on` returns whether there is a destination that is on.

    The id of an event derives from the scope, the window, the limit and the percentage. So concurrent calls write it
    once, money that is given back and spent again is not reported again, and another limit is.
    """

    def __init__(self, database: Database, clock: Clock, is_on: IsOn) -> None:
        self._database = database
        self._clock = clock
        self._is_on = is_on
        # By event: until when it is not written again, by the monotonic clock.
        self._reported: BoundedDict[str, float] = BoundedDict(MAX_KNOWN)

    def parts(self, charges: Iterable[Charge], name_of: NameOf) -> tuple[Part, ...]:
        """Return the parts that report what a unit's charges reach; they come last in the unit."""
        if not self._is_on():
            return ()
        # A second shares its parts: calls of one budget may be many.
        at = self._clock.now().replace(microsecond=0)
        limits = (charge for charge in charges if _limits_money(charge))
        return tuple(part for charge in limits for part in _reporting(_counter(charge), name_of(charge.scope), at))

    async def exhausted(self, charge: Charge, name_of: NameOf) -> None:
        """Report that a budget is used up, because a charge does not pass. If the store is down, nothing is reported.

        A caller that is refused endlessly costs one write in AGAIN_AFTER_S.
        """
        if not (_limits_money(charge) and self._is_on()):
            return
        news = _news(_counter(charge), 100, name_of(charge.scope), self._clock.now())
        now_s = self._clock.monotonic()
        if self._reported.get(news.event_id, now_s) > now_s:
            return
        # Set before the write: concurrent refusals write it once.
        self._reported[news.event_id] = now_s + AGAIN_AFTER_S
        # Whatever writes the event locks the budget's counter first, so no two processes wait for each other.
        parts = [usage.locking(news.key), outbox.adding_once(news)]
        try:
            await self._database.append_all(parts)
        except StorageDownError:
            self._reported.pop(news.event_id, None)


class _Counter(NamedTuple):
    """The counter of a budget's money, and its limit in millionths of a dollar."""

    scope: str
    measure: str
    window: str
    limit: int


def _limits_money(charge: Charge) -> bool:
    return charge.rule == "budget" and charge.limit is not None


def _counter(charge: Charge) -> _Counter:
    return _Counter(charge.scope, charge.measure, charge.window, charge.limit or 0)


@lru_cache(maxsize=1024)
def _reporting(counter: _Counter, name: str, at: datetime) -> tuple[Part, ...]:
    """Return a part for each percentage, with the least sum that reaches it."""
    return tuple(
        outbox.adding_if_spent(_news(counter, percent, name, at), -(-counter.limit * percent // 100))
        for percent in PERCENTS
    )


def _news(counter: _Counter, percent: int, name: str, at: datetime) -> BudgetNews:
    scope, _, window, limit = counter
    digest = hashlib.sha256(f"{scope}\n{window}\n{limit}\n{percent}".encode()).hexdigest()
    data = {"scope": scope, "name": name, "unit": windows.unit_of(window), "window": window, "percent": percent}
    keep_until = windows.end_of_window(window) + KEPT
    return outbox.BudgetNews(f"evt_{digest[:32]}", at, data | {"limit_usd": usd(limit)}, keep_until, counter[:3])
