"""What is reported of a budget, and how often."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from birdwire.gateway.guardrails.budget_reports import AGAIN_AFTER_S, MAX_KNOWN, BudgetReports
from birdwire.gateway.guardrails.spending import Judged
from birdwire.gateway.guardrails.windows import end_of_window
from birdwire.store.database import StorageDownError
from birdwire.store.tables.usage import Charge
from harness.gateway import MovableClock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from birdwire.gateway.guardrails.policy import Guard
    from birdwire.store.database import Part

DAY, MONTH = "2026-11-28", "2026-11"


class Store:
    """Counts the events of units; `down` makes it refuse them."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.down = False

    async def append_all(self, parts: Sequence[Part]) -> None:
        """Take a unit."""
        await asyncio.sleep(0)
        if self.down:
            raise StorageDownError("it is down")
        self.written += [part.row["new_event_id"] for part in parts if "new_event_id" in part.row]


def budget(limit: int | None = 1_000_000, scope: str = "key_1", window: str = DAY, rule: str = "budget") -> Charge:
    """A charge of money."""
    return Charge("add", scope, "usd", window, 15_000, limit, rule)


def reports(store: Store | None = None, *, on: bool = True) -> tuple[BudgetReports, MovableClock]:
    """Reports of a database, and their clock."""
    clock = MovableClock()
    return BudgetReports(cast("Any", store or Store()), clock, lambda: on), clock


def rows(*charges: Charge, on: bool = True) -> list[dict[str, Any]]:
    """The rows of the parts that report these charges."""
    return [dict(part.row) for part in reports(on=on)[0].parts(charges, str.upper)]


def test_two_parts_report_each_limit_of_money() -> None:
    """The facts of the event, without a query: the sum that reaches it, and what a person calls the scope."""
    found = rows(budget(), budget(2_500_000, "gateway", MONTH))
    assert [(row["of_scope"], row["of_measure"], row["of_window"], row["least"]) for row in found] == [
        ("key_1", "usd", DAY, 800_000),
        ("key_1", "usd", DAY, 1_000_000),
        ("gateway", "usd", MONTH, 2_000_000),
        ("gateway", "usd", MONTH, 2_500_000),
    ]
    assert found[0]["new_type"] == "budget.reached"
    assert found[0]["new_data"] == {
        "scope": "key_1",
        "name": "KEY_1",
        "unit": "day",
        "window": DAY,
        "percent": 80,
        "limit_usd": 1.0,
    }
    assert found[3]["new_data"] == {
        "scope": "gateway",
        "name": "GATEWAY",
        "unit": "month",
        "window": MONTH,
        "percent": 100,
        "limit_usd": 2.5,
    }
    assert found[0]["new_keep_until"] == datetime(2026, 11, 30, tzinfo=UTC)
    assert found[3]["new_keep_until"] == datetime(2026, 12, 2, tzinfo=UTC)


def test_a_sum_that_is_not_whole_is_reached_no_earlier() -> None:
    """80 % of seven millionths are 5.6 of them."""
    assert [row["least"] for row in rows(budget(7))] == [6, 7]


@pytest.mark.parametrize("charge", [budget(None), budget(rule=""), budget(rule="caps")])
def test_what_limits_no_money_is_not_reported(charge: Charge) -> None:
    """A call that was ordered, one that was counted before, and a cap."""
    assert rows(charge) == []


def test_without_a_destination_no_part_is_made() -> None:
    """A guarded call costs what it did."""
    assert rows(budget(), on=False) == []


def test_an_id_derives_from_scope_window_limit_and_part() -> None:
    """Each process writes the same id, whatever the key is called by then."""
    both = [row["new_event_id"] for row in rows(budget())]
    again = reports()[0].parts([budget()], str.lower)
    assert [part.row["new_event_id"] for part in again] == both
    others = [budget(2_000_000), budget(scope="gateway"), budget(window="2026-11-29"), budget(window=MONTH)]
    ids = {row["new_event_id"] for row in rows(budget(), *others)}
    assert len(ids) == 10
    assert all(one.startswith("evt_") for one in ids)


async def test_a_caller_that_is_refused_endlessly_costs_one_write_a_minute() -> None:
    """Also if many are refused concurrently."""
    store = Store()
    made, clock = reports(store)
    await asyncio.gather(*(made.exhausted(budget(), str) for _ in range(50)))
    assert store.written == [rows(budget())[1]["new_event_id"]]
    await made.exhausted(budget(), str)
    await made.exhausted(budget(2_000_000), str)
    assert len(store.written) == 2
    clock.advance(seconds=AGAIN_AFTER_S)
    await made.exhausted(budget(), str)
    assert len(store.written) == 3


async def test_a_store_that_is_down_is_asked_again() -> None:
    """The refusal itself goes on."""
    store = Store()
    made, _ = reports(store)
    store.down = True
    await made.exhausted(budget(), str)
    store.down = False
    await made.exhausted(budget(), str)
    assert len(store.written) == 1


@pytest.mark.parametrize(("charge", "on"), [(budget(None), True), (budget(rule="caps"), True), (budget(), False)])
async def test_only_a_budget_is_reported_as_used_up(charge: Charge, on: bool) -> None:  # noqa: FBT001 - a parameter
    """And only to a destination that is on."""
    store = Store()
    await reports(store, on=on)[0].exhausted(charge, str)
    assert store.written == []


async def test_what_one_process_remembers_is_bounded() -> None:
    """The oldest budget is reported again."""
    store = Store()
    made, _ = reports(store)
    for number in range(MAX_KNOWN + 1):
        await made.exhausted(budget(scope=f"key_{number}"), str)
    await made.exhausted(budget(scope=f"key_{MAX_KNOWN}"), str)
    assert len(store.written) == MAX_KNOWN + 1
    await made.exhausted(budget(scope="key_0"), str)
    assert len(store.written) == MAX_KNOWN + 2


@pytest.mark.parametrize(
    ("scope", "name"), [("key_1", "growth agent"), ("account:17", "@ada"), ("gateway", "the gateway")]
)
def test_a_scope_is_named_as_a_person_knows_it(scope: str, name: str) -> None:
    """By what the call has in hand, or else by itself."""
    guard = cast("Guard", SimpleNamespace(key_id="key_1"))
    assert Judged(guard, label="growth agent", username="ada").name_of(scope) == name
    assert Judged(guard).name_of(scope) == ("the gateway" if scope == "gateway" else scope)


@pytest.mark.parametrize(
    ("window", "end"),
    [
        ("2026-11-28T23", datetime(2026, 11, 29, tzinfo=UTC)),
        ("2026-12-31", datetime(2027, 1, 1, tzinfo=UTC)),
        ("2026-12", datetime(2027, 1, 1, tzinfo=UTC)),
        ("2028-02", datetime(2028, 3, 1, tzinfo=UTC)),
    ],
)
def test_a_window_ends_when_the_next_one_starts(window: str, end: datetime) -> None:
    """Given by its name alone."""
    assert end_of_window(window) == end
