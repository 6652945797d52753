"""The charges of a guarded write: made with its row when it starts, and settled with its outcome, on both engines."""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import pytest_asyncio
from sqlalchemy import text

from birdwire.api.errors import GatewayError
from birdwire.outcomes.entry import Entry
from birdwire.outcomes.journal import ChargeRefused, Journal
from birdwire.outcomes.process_leases import ProcessLeases
from birdwire.outcomes.reconciler import SCOPES, Reconciler
from birdwire.outcomes.report import report
from birdwire.runtime.telemetry import Telemetry
from birdwire.store.database import Database, StorageDownError
from birdwire.store.encryption.vault import Vault
from birdwire.store.tables import usage
from birdwire.store.tables.usage import Charge
from harness.gateway import MovableClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from birdwire.outcomes.reconciler import OnRead
    from birdwire.store.tables.journal import JournalRow
    from birdwire.store.tables.usage import Key

pytestmark = pytest.mark.engines("sqlite", "postgres")

PRICE = 15_000
COUNT, MONEY, GAP, MARK = (
    Charge("add", "key_1", "writes:*", "2026-11-28", 1, 2, "caps"),
    Charge("add", "key_1", "usd", "2026-11-28", PRICE, 10 * PRICE, "budget"),
    Charge("gap", "key_1", "gap:post_twitter", "", 1_795_842_000_000, 0, "min_gap_s"),
    Charge("text", "key_1", "text", "feed", 1_795_842_000_000, 1_000, "duplicate_text"),
)
CHARGES = (COUNT, MONEY, GAP, MARK)
SHADOW = (Charge("add", "key_1", "writes:shadow", "2026-11-28", 1, 1, "caps"),)
SIGNATURE = '["words", null, null, null]'


@dataclass
class Gateway:
    """A gateway's journal, on a database of its own."""

    database: Database
    clock: MovableClock
    leases: ProcessLeases
    journal: Journal

    def entry(self, request_id: str, operation: str = "like_twitter", **more: Any) -> Entry:
        """A guarded write."""
        entry = Entry(request_id, "key_1", "1", operation, "2", b"asked", PRICE)
        entry.charges = CHARGES
        for name, value in more.items():
            setattr(entry, name, value)
        return entry

    async def used(self) -> tuple[list[int], int]:
        """What stands in the counters of CHARGES, and when the text was marked; 0 where nothing stands."""
        keys: list[Key] = [(one.scope, one.measure, one.window) for one in (COUNT, MONEY, GAP)]
        async with self.database.read() as connection:
            found = await usage.amounts(connection, keys)
            marks = await usage.marks_at(connection, [("key_1", "feed")])
        return [found.get(key, 0) for key in keys], marks.get(("key_1", "feed"), 0)

    async def row(self, request_id: str) -> JournalRow:
        """A write's row."""
        found = await self.journal.find(request_id)
        assert found is not None
        return found

    def reconciler(self, posts: list[dict[str, Any]], on_read: OnRead | None = None) -> Reconciler:
        """A reconciler to which X shows these posts of the account."""

        async def acting_as(*_: str) -> Any:
            return SimpleNamespace(scopes=SCOPES)

        async def ask(*_: object) -> Any:
            return {"data": posts, "meta": {}}

        client = SimpleNamespace(user_id="1", ask=ask)
        return Reconciler(
            self.database,
            self.journal,
            self.leases,
            cast("Any", SimpleNamespace(acting_as=acting_as)),
            cast("Any", SimpleNamespace(skew=timedelta)),
            cast("Any", SimpleNamespace(open=lambda _: client)),
            self.clock,
            Telemetry(io.StringIO(), self.clock),
            on_read,
        )


ALL = ([1, PRICE, GAP.amount], MARK.amount)
NOTHING = ([0, 0, 0], 0)
ONLY_MONEY = ([0, PRICE, 0], 0)


@pytest_asyncio.fixture
async def gateway(database_url: str) -> AsyncIterator[Gateway]:
    """A gateway on a new database."""
    database, clock = Database(database_url), MovableClock()
    leases = ProcessLeases(database, clock)
    await database.prepare(upgrade=False)
    try:
        yield Gateway(
            database,
            clock,
            leases,
            Journal(database, Vault(bytes(32)), leases, clock, Telemetry(io.StringIO(), clock)),
        )
    finally:
        await database.close()


async def test_a_write_starts_with_its_charges_or_not_at_all(gateway: Gateway) -> None:
    """The charge that does not pass is named, and nothing was written."""
    entry = gateway.entry("req_1", decision={"versions": {"key_1": 3}}, features={"weight": 7})
    await gateway.journal.open(entry).begin()
    assert await gateway.used() == ALL
    row = await gateway.row("req_1")
    assert (row.state, row.decision, gateway.journal.features(row)) == (
        "started",
        {"versions": {"key_1": 3}},
        {"weight": 7},
    )
    assert b"weight" not in (row.features_ct or b"")
    record = gateway.journal.open(gateway.entry("req_2"))
    with pytest.raises(ChargeRefused) as refused:
        await record.begin()
    assert (refused.value.index, record.started) == (3, False)
    assert await gateway.journal.find("req_2") is None
    assert await gateway.used() == ALL


@pytest.mark.parametrize(
    ("error", "billed", "left", "cost"),
    [
        (None, 0, ALL, PRICE),
        (None, 2, ([1, 3 * PRICE, GAP.amount], MARK.amount), 3 * PRICE),
        (GatewayError("tweet_not_found", outcome="refused", upstream={"status": 404}), 0, NOTHING, None),
        (GatewayError("tweet_not_found", outcome="refused", upstream={"status": 404}), 1, ONLY_MONEY, PRICE),
        (GatewayError("paused", scope="", since="", why=""), 0, NOTHING, 0),
        (GatewayError("x_timeout", outcome="unknown"), 1, ALL, None),
        (GatewayError("x_timeout", outcome="unknown"), 3, ([1, 3 * PRICE, GAP.amount], MARK.amount), None),
    ],
    ids=["confirmed", "confirmed late", "refused", "refused late", "not sent", "unknown", "unknown, three times"],
)
async def test_the_end_of_a_write_settles_its_charges(
    gateway: Gateway, error: GatewayError | None, billed: int, left: Any, cost: int | None
) -> None:
    """What X may have billed stays, and the row states what remains."""
    record = gateway.journal.open(gateway.entry("req_1"))
    await record.begin()
    if error is None:
        await record.confirmed(200, {"liked": True}, billed_extra=billed)
    else:
        await record.failed(error, billed_extra=billed)
    assert await gateway.used() == left
    row = await gateway.row("req_1")
    assert usage.usd_in(row.spent or ()) == left[0][1]
    assert (row.spent is None) is (left == NOTHING)
    told = report(row)["cost_usd"]
    assert told == (None if cost is None else cost / 1_000_000)


async def test_what_ran_in_shadow_mode_is_given_back_with_the_rest(gateway: Gateway) -> None:
    """It was counted before the write started."""
    await gateway.database.append_all(usage.charging(SHADOW, "req_1"))
    record = gateway.journal.open(gateway.entry("req_1", charges=(), shadow_charges=SHADOW))
    await record.begin()
    await record.failed(GatewayError("x_unreachable"))
    async with gateway.database.read() as connection:
        assert await usage.amounts(connection, [("key_1", "writes:shadow", "2026-11-28")]) == {
            ("key_1", "writes:shadow", "2026-11-28"): 0
        }


async def test_an_unpriced_write_costs_what_was_reserved_for_it(gateway: Gateway) -> None:
    """So the sum of the rows is that of the usage."""
    record = gateway.journal.open(gateway.entry("req_1", cost=None))
    await record.begin()
    await record.confirmed(200, {"liked": True})
    assert (await gateway.row("req_1")).cost_microusd == PRICE


async def test_a_deleted_post_is_recorded_though_the_deletion_was_started(gateway: Gateway) -> None:
    """A guarded deletion has a row before it is sent."""
    record = gateway.journal.open(gateway.entry("req_1", "delete_twitter"))
    await record.begin()
    await record.confirmed(200, {"deleted": True})
    assert (await gateway.row("req_1")).x_id == "2"


async def test_the_end_of_a_write_waits_with_its_charges_for_the_store(gateway: Gateway) -> None:
    """Both are written by the same unit, and only once."""
    record = gateway.journal.open(gateway.entry("req_1"))
    await record.begin()
    await _rename(gateway.database, "journal", "away")
    with pytest.raises(GatewayError) as error:
        await record.failed(GatewayError("x_unreachable"))
    assert error.value.reason == "storage_unavailable"
    with pytest.raises(StorageDownError):
        await gateway.journal.flush()
    await _rename(gateway.database, "away", "journal")
    assert await gateway.used() == ALL
    await gateway.journal.flush()
    assert (await gateway.row("req_1")).state == "not_sent"
    assert await gateway.used() == NOTHING


async def test_charges_go_back_once_though_two_settle_the_row(gateway: Gateway) -> None:
    """The reconciler of another process was first: the outcome is corrected, and the charges stay as they are."""
    first, second = gateway.journal.open(gateway.entry("req_1")), gateway.journal.open(gateway.entry("req_1"))
    await first.begin()
    second._started = True  # noqa: SLF001 - as if it had started the same row
    await gateway.journal.open(gateway.entry("req_2", charges=(COUNT,))).begin()
    await first.failed(GatewayError("x_unreachable"))
    await second.failed(GatewayError("x_unreachable"))
    assert await gateway.used() == ([1, 0, 0], 0)


async def test_a_charged_write_of_a_dead_process_becomes_unknown_and_stays_charged(gateway: Gateway) -> None:
    """No timeline shows a like, so nobody can find out."""
    await gateway.journal.open(gateway.entry("req_1")).begin()
    await gateway.leases.close()
    await gateway.reconciler([]).recover()
    row = await gateway.row("req_1")
    assert (row.state, row.why, row.due_at) == ("unknown", "not_in_timeline", None)
    assert await gateway.used() == ALL


ENDS: list[GatewayError | None] = [
    None,
    GatewayError("tweet_not_found", outcome="refused", upstream={"status": 404}),
    GatewayError("x_unreachable"),
    GatewayError("x_timeout", outcome="unknown"),
]


@pytest.mark.parametrize("seed", range(4))
async def test_usage_is_always_the_sum_of_what_the_rows_say(gateway: Gateway, seed: int) -> None:
    """However a hundred concurrent writes end, and whichever of them a limit stops."""
    chance = random.Random(seed)  # noqa: S311 - a test
    scopes = ("key_1", "key_2", "account:1", "gateway")

    def charges() -> tuple[Charge, ...]:
        found = [
            Charge("add", scope, measure, "2026-11-28", amount, chance.choice((None, 12 * amount, 30 * amount)))
            for scope in chance.sample(scopes, 3)
            # Policies may reserve different sums for a call without a price.
            for measure, amount in (("writes:*", 1), ("usd", chance.choice((PRICE, 2 * PRICE))))
        ]
        return tuple(chance.sample(found, len(found)))

    async def write(number: int, entry: Entry, error: GatewayError | None, billed: int) -> None:
        record = gateway.journal.open(entry)
        try:
            await record.begin()
        except ChargeRefused:
            return
        if number % 7 == 0:
            # Its process dies.
            return
        if error is None:
            await record.confirmed(200, {"liked": True}, billed_extra=billed)
        else:
            await record.failed(error, billed_extra=billed)

    ids = [f"req_{number:03}" for number in range(100)]
    writes = [
        write(number, gateway.entry(request_id, charges=charges()), chance.choice(ENDS), chance.choice((0, 0, 1, 2)))
        for number, request_id in enumerate(ids)
    ]
    await asyncio.gather(*writes)
    expected: Counter[Key] = Counter()
    for request_id in ids:
        row = await gateway.journal.find(request_id)
        for _, scope, measure, window, amount in (row and row.spent) or ():
            expected[scope, measure, window] += amount
    keys: list[Key] = [(scope, measure, "2026-11-28") for scope in scopes for measure in ("writes:*", "usd")]
    async with gateway.database.read() as connection:
        found = await usage.amounts(connection, keys)
    assert found == {key: expected[key] for key in keys}
    assert max(found.values()) > 0


async def lose(gateway: Gateway, read: list[tuple[str, str, int, int]], posts: list[dict[str, Any]]) -> JournalRow:
    """Lose the answer to a charged post, and search for it until there is a verdict."""

    async def on_read(*counts: Any) -> None:
        read.append(counts)

    record = gateway.journal.open(gateway.entry("req_1", "post_twitter", signature=SIGNATURE))
    await record.begin()
    with contextlib.suppress(GatewayError):
        await record.failed(GatewayError("x_timeout", outcome="unknown"), billed_extra=1)
    assert await gateway.used() == ALL
    for post in posts:
        post["created_at"] = gateway.clock.now().isoformat()
    reconciler = gateway.reconciler(posts, on_read)
    for _ in range(10):
        gateway.clock.advance(seconds=90)
        await reconciler.round()
        row = await gateway.row("req_1")
        if row.state != "unknown":
            return row
    raise AssertionError(row)


async def test_a_post_that_does_not_exist_is_given_back(gateway: Gateway) -> None:
    """In the transaction that settles the row; what the search read is reported."""
    read: list[tuple[str, str, int, int]] = []
    row = await lose(gateway, read, [{"id": "9", "text": "other words"}])
    assert (row.state, row.spent) == ("not_found", None)
    assert await gateway.used() == NOTHING
    assert len(read) >= 2
    assert set(read) == {("key_1", "1", 1, 0)}


async def test_a_post_that_was_found_stays_charged(gateway: Gateway) -> None:
    """X bills it."""
    row = await lose(gateway, [], [{"id": "9", "text": "words"}])
    assert (row.state, row.x_id, usage.usd_in(row.spent or ())) == ("found", "9", PRICE)
    assert await gateway.used() == ALL


async def _rename(database: Database, old: str, new: str) -> None:
    async with database.write() as connection:
        await connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))
