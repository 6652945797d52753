"""The events of budgets on both engines: written once, in the unit of the call that reaches them, or not at all."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import select

from birdwire.api.errors import GatewayError
from birdwire.gateway.guardrails.budget_reports import AGAIN_AFTER_S, BudgetReports
from birdwire.gateway.guardrails.policy import Guard, Policy
from birdwire.gateway.guardrails.proposal import Proposal, propose_lookup
from birdwire.gateway.guardrails.spending import Judged, Spending
from birdwire.outcomes.entry import Approved
from birdwire.store.database import Part, RowRefusedError
from birdwire.store.engines.group_commit import Step
from birdwire.store.engines.postgres import PostgreSQL, _runs
from birdwire.store.tables import destinations, journal, outbox, usage
from birdwire.store.tables.journal import State
from birdwire.store.tables.outbox import BudgetNews
from birdwire.store.tables.usage import Charge, charging
from birdwire.x.catalog.operations import OPERATIONS_BY_NAME
from birdwire.x.catalog.prices import Prices
from harness.approval_replicas import Replica
from harness.gateway import MovableClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from birdwire.outcomes.entry import Entry
    from birdwire.store.database import Database

pytestmark = pytest.mark.engines("sqlite", "postgres")

NOON = datetime(2027, 3, 15, 12, tzinfo=UTC)
DAY, MONTH = "2027-03-15", "2027-03"
LIKE = "like_twitter"
CENT = 10_000
DIME: dict[str, Any] = {"budget": {"day_usd": 0.1, "unpriced": "deny"}}
Event = tuple[str, str, int, float]
"""Scope, unit, percentage and limit in US dollars."""

ALL_EVENTS: list[Event] = [("key", "day", 80, 0.1), ("key", "day", 100, 0.1)]


@dataclass
class Caller:
    """One gateway process, and the policies of its key by scope."""

    replica: Replica
    rules: dict[str, Mapping[str, Any]] = field(default_factory=lambda: {"key": DIME})
    enforcement: str = "enforce"
    on: bool = True
    spending: Spending = field(init=False)

    def __post_init__(self) -> None:
        database, clock = self.replica.database, self.replica.clock
        reports = BudgetReports(database, clock, lambda: self.on)
        unused = cast("Any", None)
        self.spending = Spending(database, unused, unused, Prices.load(), clock, reports)

    @property
    def database(self) -> Database:
        """The process's view of the database."""
        return self.replica.database

    def judged(self, proposal: Proposal) -> Judged:
        """Return a call of the key under its policies."""
        key_id = self.replica.key_id
        policies = tuple(
            Policy.read(key_id if scope == "key" else scope, "operator", 1, self.enforcement, None, rules)
            for scope, rules in self.rules.items()
        )
        guard = Guard(key_id, "1", policies, (), ())
        return Judged(guard, proposal, label="growth agent", username="ada")

    async def start(self, entry: Entry, price: int = CENT) -> None:
        """Judge a like, charge it and begin it, as the steps of a write do."""
        judged = self.judged(Proposal(LIKE, "1", price=price))
        await self.spending.judge(judged, OPERATIONS_BY_NAME[LIKE])
        await self.spending.charge(judged, entry)
        await self.spending.begin(judged, self.replica.journal.open(entry).begin)

    async def like(self, request_id: str, price: int = CENT) -> str | None:
        """Begin a like; return the reason for which it is refused."""
        try:
            await self.start(self.replica.entry(request_id, LIKE), price)
        except GatewayError as error:
            return error.reason
        return None

    async def likes(self, count: int, price: int = CENT) -> None:
        """Begin likes that must pass."""
        for number in range(count):
            assert await self.like(f"req_{len(await requests(self.database))}_{number}", price) is None

    async def events(self) -> list[Event]:
        """Return the events of the outbox, in the order of their sums."""
        return [
            (row["scope"].replace(self.replica.key_id, "key"), row["unit"], row["percent"], row["limit_usd"])
            for row in await data(self.database)
        ]


async def data(database: Database) -> list[dict[str, Any]]:
    """Return what the events of the outbox state."""
    async with database.read() as connection:
        rows = [row.data for row in await connection.execute(select(outbox.outbox))]
    return sorted(rows, key=lambda row: (row["limit_usd"] * row["percent"], row["unit"], row["scope"]))


async def requests(database: Database) -> set[str]:
    """Return the ids of the journal's rows."""
    async with database.read() as connection:
        return {row.request_id for row in await journal.listed(connection, {}, None, 1_000)}


async def spent(database: Database, scope: str, window: str = DAY) -> int:
    """Return what a budget has used."""
    async with database.read() as connection:
        return sum((await usage.amounts(connection, [(scope, "usd", window)])).values())


async def set_destination(database: Database, **changes: object) -> None:
    """Set where notifications go."""
    row: dict[str, object] = {"kind": "standard", "host": "a.example", "url_ct": b"u", "secret_ct": b"s"}
    row |= {"with_link": False, "with_text": False, "set_at": NOON, "set_by": "grace", "secret_at": NOON}
    async with database.write() as connection:
        await destinations.put(connection, row | changes)


@pytest_asyncio.fixture
async def both(database_url: str) -> AsyncIterator[tuple[Caller, Caller]]:
    """Two processes on one database with a destination, at noon."""
    clock = MovableClock()
    clock.added = NOON - clock.now()
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(Replica.started(database_url, clock))
        second = await stack.enter_async_context(Replica.started(database_url, clock, first.vault))
        second.key_id = await first.new_key()
        await set_destination(first.database)
        yield Caller(first), Caller(second)


@pytest_asyncio.fixture
async def caller(both: tuple[Caller, Caller]) -> Caller:
    """The first of the two."""
    return both[0]


@pytest.mark.trust("#335")
async def test_the_calls_that_reach_80_and_100_percent_report_it(caller: Caller) -> None:
    """Neither the call before nor the calls after, nor the one that no longer passes."""
    await caller.likes(7)
    assert await caller.events() == []
    await caller.likes(1)
    assert await caller.events() == ALL_EVENTS[:1]
    await caller.likes(1)
    assert await caller.events() == ALL_EVENTS[:1]
    await caller.likes(1)
    assert await caller.events() == ALL_EVENTS
    assert await caller.like("req_over") == "budget_exhausted"
    assert await caller.events() == ALL_EVENTS
    assert (await data(caller.database))[0] == {
        "scope": caller.replica.key_id,
        "name": "growth agent",
        "unit": "day",
        "window": DAY,
        "percent": 80,
        "limit_usd": 0.1,
    }
    async with caller.database.read() as connection:
        rows = await outbox.due(connection, NOON + timedelta(hours=1), 10)
    assert all(row.due_at == row.at >= NOON for row in rows)
    assert {row.type for row in rows} == {"budget.reached"}
    assert {row.keep_until for row in rows} == {datetime(2027, 3, 17, tzinfo=UTC)}


async def test_one_call_may_reach_both(caller: Caller) -> None:
    """Each is an event of its own."""
    await caller.likes(1, price=10 * CENT)
    assert await caller.events() == ALL_EVENTS


async def test_a_call_that_costs_more_than_is_left_reports_that_the_budget_is_used_up(caller: Caller) -> None:
    """Six of them reach 80 %; the seventh passes no more, and so do all that follow."""
    await caller.likes(5, price=15_000)
    assert await caller.events() == []
    await caller.likes(1, price=15_000)
    assert await caller.events() == ALL_EVENTS[:1]
    for number in range(3):
        assert await caller.like(f"req_over_{number}", 15_000) == "budget_exhausted"
        assert await caller.events() == ALL_EVENTS
    caller.replica.clock.advance(seconds=AGAIN_AFTER_S + 1)
    await caller.likes(1)
    assert await caller.like("req_over", 15_000) == "budget_exhausted"
    assert await caller.events() == ALL_EVENTS


async def test_a_call_that_waits_for_a_person_reports_that_the_budget_does_not_cover_it(caller: Caller) -> None:
    """It is refused before anybody is asked, and makes no charge. A dry run, which does the same, reports nothing."""
    await caller.likes(7)
    caller.rules = {"key": DIME | {"approve": "*"}}
    judged = caller.judged(Proposal(LIKE, "1", price=4 * CENT))
    await caller.spending.judge(judged, OPERATIONS_BY_NAME[LIKE])
    with pytest.raises(GatewayError, match="budget_exhausted"):
        await caller.spending.check_by_snapshot(judged)
    assert await caller.events() == []
    with pytest.raises(GatewayError, match="budget_exhausted"):
        await caller.spending.check(judged)
    assert await caller.events() == ALL_EVENTS[1:]
    allowed = caller.judged(Proposal(LIKE, "1", price=3 * CENT))
    await caller.spending.judge(allowed, OPERATIONS_BY_NAME[LIKE])
    await caller.spending.check(allowed)
    assert (allowed.asks, await caller.events()) == (True, ALL_EVENTS[1:])


async def test_a_unit_that_is_rolled_back_reports_nothing(caller: Caller) -> None:
    """Its row exists already, so the database refuses it."""
    await caller.likes(7)
    (taken, *_) = await requests(caller.database)
    assert await caller.like(taken) == "storage_unavailable"
    assert await spent(caller.database, caller.replica.key_id) == 7 * CENT
    assert await caller.events() == []
    await caller.likes(1)
    assert await caller.events() == ALL_EVENTS[:1]


async def test_a_call_that_another_charge_refuses_reports_nothing(caller: Caller) -> None:
    """Neither what it would have spent, nor the cap."""
    caller.rules = {"key": DIME | {"caps": {LIKE: "7/d"}}}
    await caller.likes(7)
    assert await caller.like("req_over") == "cap_reached"
    assert await caller.events() == []


@pytest.mark.parametrize("how", ["none", "off", "not known to be on"])
async def test_without_a_destination_nothing_is_written(caller: Caller, how: str) -> None:
    """Once there is one, the next call that is charged reports what it finds."""
    if how == "none":
        async with caller.database.write() as connection:
            await destinations.remove(connection)
    elif how == "off":
        await set_destination(caller.database, off_at=NOON, off_why="410")
    else:
        caller.on = False
    await caller.likes(9)
    assert await caller.like("req_over", 2 * CENT) == "budget_exhausted"
    assert await caller.events() == []
    caller.on = True
    await set_destination(caller.database)
    await caller.likes(1)
    assert await caller.events() == ALL_EVENTS


@pytest.mark.trust("#335")
async def test_concurrent_calls_of_two_processes_report_it_once(both: tuple[Caller, Caller]) -> None:
    """Ten of sixty pass, whichever they are."""
    reasons = await asyncio.gather(*(both[number % 2].like(f"req_{number}") for number in range(60)))
    assert reasons.count(None) == 10
    assert reasons.count("budget_exhausted") == 50
    assert await both[0].events() == ALL_EVENTS


async def test_each_scope_and_each_window_is_reported_for_itself(caller: Caller) -> None:
    """The key's day, its account's month, and the gateway's, under the names that people know."""
    caller.rules = {
        "key": {"budget": {"day_usd": 0.1, "month_usd": 0.2, "unpriced": "deny"}},
        "account:1": {"budget": {"month_usd": 0.3, "unpriced": "deny"}},
        "gateway": {"budget": {"day_usd": 0.4, "unpriced": "deny"}},
    }
    await caller.likes(10)
    assert await caller.events() == ALL_EVENTS
    caller.replica.clock.advance(days=1)
    await caller.likes(10)
    assert await caller.events() == [
        *[event for event in ALL_EVENTS[:1] for _ in range(2)],
        *[event for event in ALL_EVENTS[1:] for _ in range(2)],
        ("key", "month", 80, 0.2),
        ("key", "month", 100, 0.2),
    ]
    del caller.rules["key"]
    await caller.likes(10)
    reported = await data(caller.database)
    named = {(row["scope"], row["name"], row["window"]) for row in reported}
    key_id = caller.replica.key_id
    assert named == {
        (key_id, "growth agent", DAY),
        (key_id, "growth agent", "2027-03-16"),
        (key_id, "growth agent", MONTH),
        ("account:1", "@ada", MONTH),
    }
    await caller.like("req_last", 10 * CENT)
    assert {row["name"] for row in await data(caller.database)} == {"growth agent", "@ada"}
    del caller.rules["account:1"]
    await caller.likes(12)
    assert ("gateway", "the gateway") in {(row["scope"], row["name"]) for row in await data(caller.database)}


async def test_a_raised_limit_is_reported_again(caller: Caller) -> None:
    """The limit is part of what is reported."""
    await caller.likes(10)
    caller.rules = {"key": {"budget": {"day_usd": 0.2, "unpriced": "deny"}}}
    await caller.likes(5)
    assert await caller.events() == ALL_EVENTS
    await caller.likes(5)
    assert await caller.events() == [*ALL_EVENTS, ("key", "day", 80, 0.2), ("key", "day", 100, 0.2)]


async def test_what_is_given_back_and_spent_again_is_reported_once(caller: Caller) -> None:
    """Also after the event has been delivered."""
    await caller.likes(7)
    entry = caller.replica.entry("req_8", LIKE)
    await caller.start(entry)
    assert await caller.events() == ALL_EVENTS[:1]
    await caller.replica.journal.end(entry, State.NOT_SENT, {}, started=True)
    assert await spent(caller.database, caller.replica.key_id) == 7 * CENT
    async with caller.database.write() as connection:
        (row,) = await outbox.due(connection, NOON + timedelta(hours=1), 10)
        assert await outbox.change(connection, row.event_id, 0, {"due_at": None, "outcome": "delivered", "tries": 1})
    await caller.likes(1)
    assert await caller.events() == ALL_EVENTS[:1]
    async with caller.database.write() as connection:
        assert await outbox.purge(connection, datetime(2027, 3, 16, 23, tzinfo=UTC), 10) == 0
        assert await outbox.purge(connection, datetime(2027, 3, 17, 1, tzinfo=UTC), 10) == 1


async def test_a_policy_in_shadow_mode_reports_nothing(caller: Caller) -> None:
    """Nothing obeys it, so its budget is not used up."""
    caller.enforcement = "shadow"
    await caller.likes(12)
    assert await caller.events() == []


async def test_the_start_of_an_approved_write_reports_what_it_reaches(both: tuple[Caller, Caller]) -> None:
    """Once, although every process tries to start it."""
    caller = both[0]
    await caller.likes(7)
    payload = await caller.replica.ask("req_asked", LIKE)
    await caller.replica.approve("req_asked")
    approved = Approved(payload.sha256, NOON + timedelta(hours=1))
    entries = [caller.replica.entry("req_asked", LIKE, approved=approved) for _ in range(6)]
    starts = [both[number % 2].start(entry) for number, entry in enumerate(entries)]
    ends = await asyncio.gather(*starts, return_exceptions=True)
    assert ends.count(None) == 1, ends
    assert await spent(caller.database, caller.replica.key_id) == 8 * CENT
    assert await caller.events() == ALL_EVENTS[:1]
    await caller.likes(2)
    assert await caller.events() == ALL_EVENTS


async def test_a_lookup_reports_what_it_was_billed(caller: Caller) -> None:
    """It reserves all that is left, which is no news; only what remains of that counts."""

    async def look_up(name: str, most: int, usd: int) -> str | None:
        judged = caller.judged(propose_lookup("user/tweets", "1", most))
        try:
            await caller.spending.reserve(judged, name)
        except GatewayError as error:
            return error.reason
        assert await caller.events() == before
        await caller.spending.correct(judged, name, usd, 1)
        return None

    before: list[Event] = []
    assert await look_up("req_1", 10 * CENT, 7 * CENT) is None
    assert await caller.events() == []
    assert await look_up("req_2", 3 * CENT, CENT) is None
    assert await caller.events() == (before := ALL_EVENTS[:1])
    assert await look_up("req_3", 2 * CENT, CENT) is None
    assert await caller.events() == before
    assert await look_up("req_4", 2 * CENT, CENT) == "budget_exhausted"
    assert await caller.events() == ALL_EVENTS


async def test_a_budget_that_two_processes_use_up_meets_no_deadlock(
    both: tuple[Caller, Caller], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls of one reach many budgets, while those of the other are refused by them, in the opposite order."""
    met: list[str] = []
    transaction = vars(PostgreSQL)["_transaction"]

    async def watched(self: PostgreSQL, connection: Any, work: Any) -> None:
        try:
            await transaction(self, connection, work)
        except asyncpg.DeadlockDetectedError:
            met.append("deadlock")
            raise

    monkeypatch.setattr(PostgreSQL, "_transaction", watched)

    async def spend(caller: Caller, charges: Sequence[Charge]) -> None:
        reports = BudgetReports(caller.database, caller.replica.clock, lambda: True)
        units = [[*charging([one], "req"), *reports.parts([one], str)] for one in charges]
        await asyncio.gather(*(caller.database.append_all(unit) for unit in units))

    async def refuse(caller: Caller, charges: Sequence[Charge]) -> None:
        reports = BudgetReports(caller.database, caller.replica.clock, lambda: True)
        await asyncio.gather(*(reports.exhausted(one, str) for one in charges))

    for number in range(10):
        scopes = [f"key_{number}_{place}" for place in range(20)]
        charges = [Charge("add", scope, "usd", DAY, CENT, CENT, "budget") for scope in scopes]
        await asyncio.gather(spend(both[0], charges), refuse(both[1], charges[::-1]))
    assert met == []
    assert len(await data(both[0].database)) == 10 * 20 * 2


def news(event_id: str, scope: str = "key_1", window: str = DAY) -> BudgetNews:
    """That a budget is used up to a part."""
    facts = {"scope": event_id, "unit": "day", "percent": 80, "limit_usd": 1}
    return BudgetNews(event_id, NOON, facts, NOON, (scope, "usd", window))


def money(amount: int, limit: int | None, scope: str = "key_1") -> Charge:
    """A charge of money."""
    return Charge("add", scope, "usd", DAY, amount, limit, "budget")


def looks(least: int, event_id: str, scope: str = "key_1") -> Part:
    """A part that reports a sum, once it is reached."""
    return outbox.adding_if_spent(news(event_id, scope), least)


async def ids(database: Database) -> list[str]:
    """Return the events of the outbox."""
    return sorted(row["scope"] for row in await data(database))


async def test_a_part_that_looks_sees_what_its_unit_changed(caller: Caller) -> None:
    """Not what a unit before it gave back, and not another counter."""
    add: Callable[..., Awaitable[int | None]] = caller.database.append_all
    unit = [*charging([money(5, 10)], "r"), looks(5, "five"), looks(6, "six"), looks(1, "other", "key_2")]
    assert await add(unit) is None
    assert await ids(caller.database) == ["five"]
    twice = [*charging([money(1, 10)], "r"), *charging([money(1, 10)], "r"), looks(7, "seven"), looks(8, "eight")]
    assert await add(twice) is None
    assert await ids(caller.database) == ["five", "seven"]
    assert await add([looks(7, "again"), looks(8, "never")]) is None
    assert await ids(caller.database) == ["again", "five", "seven"]
    first = [*usage.giving_back([["add", "key_1", "usd", DAY, 7]], "r"), looks(7, "taken"), looks(0, "nothing")]
    assert await add(first) is None
    assert await ids(caller.database) == ["again", "five", "nothing", "seven"]
    # The same event twice in one query.
    assert await add([*charging([money(9, None)], "r"), looks(1, "same"), looks(2, "same")]) is None
    assert await ids(caller.database) == ["again", "five", "nothing", "same", "seven"]


async def test_the_first_unit_of_a_window_reports_too(caller: Caller) -> None:
    """Its counter does not exist before it."""
    assert await caller.database.append_all([*charging([money(5, 10)], "r"), looks(5, "five")]) is None
    assert await ids(caller.database) == ["five"]


async def test_among_refused_units_those_that_are_written_report(caller: Caller) -> None:
    """One is refused by a charge, one by the database, so that each unit gets a savepoint of its own."""
    database = caller.database
    row: dict[str, Any] = {"request_id": "req_1", "key_id": "key_1", "user_id": "1", "operation": LIKE, "asked": b""}
    row |= {"state": "started", "created_at": NOON}
    assert await database.append(journal.ADD, row)
    add = partial(Part, journal.ADD)
    results = await asyncio.gather(
        database.append_all([*charging([money(5, 10)], "a"), add(row | {"request_id": "req_2"}), looks(5, "a")]),
        database.append_all([*charging([money(6, 10)], "b"), add(row | {"request_id": "req_3"}), looks(1, "b")]),
        database.append_all([*charging([money(1, 10)], "c"), add(row), looks(1, "c")]),
        database.append_all([*charging([money(1, 10)], "d"), add(row | {"request_id": "req_4"}), looks(6, "d")]),
        database.append_all([*charging([money(1, 10)], "e"), add(row | {"request_id": "req_5"}), looks(8, "e")]),
        return_exceptions=True,
    )
    assert isinstance(results[2], RowRefusedError)
    assert [results[0], results[1], *results[3:]] == [None, 1, None, None]
    assert await ids(database) == ["a", "d"]
    assert await spent(database, "key_1") == 7


def test_steps_that_look_share_the_last_query() -> None:
    """After one query for all others, or one for each if two may change the same row."""

    def step(sql: str, *, ensures: bool = False, looks: bool = False) -> Step:
        return Step(sql, [1], required=False, keys=1, ensures=ensures, looks=looks)

    row, change, look = step("row", ensures=True), step("change"), step("look", looks=True)
    assert list(_runs([row, change, change])) == [[1, 2]]
    assert list(_runs([row, change, change, look, look])) == [[1, 2], [3, 4]]
    assert list(_runs([row, change, look, change, look])) == [[1, 3], [2, 4]]
    assert list(_runs([row, row, change, change, look, look])) == [[2], [3], [4, 5]]
    assert list(_runs([look])) == [[0]]
