"""Units of the group commit: several statements as one, on either engine, with the charges of guarded writes."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import bindparam, text, update

from birdwire.store.database import Database, Part, RowRefusedError, StorageDownError
from birdwire.store.engines.postgres import PostgreSQL
from birdwire.store.tables import journal, usage
from birdwire.store.tables.usage import Charge, charging, encode, giving_back, refused_by

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from birdwire.store.tables.usage import Key

pytestmark = pytest.mark.engines("sqlite", "postgres")

NOW = datetime(2026, 11, 28, 5, tzinfo=UTC)
NOW_MS = 1_795_842_000_000
DAY, HOUR, MONTH = "2026-11-28", "2026-11-28T05", "2026-11"
RENAME = (
    update(journal.journal)
    .where(journal.journal.c.request_id == bindparam("of"))
    .values(operation=bindparam("operation"))
)


@pytest_asyncio.fixture
async def pair(database_url: str) -> AsyncIterator[tuple[Database, Database]]:
    """One new database, opened twice, as by two gateways."""
    async with AsyncExitStack() as stack:
        opened = (Database(database_url), Database(database_url))
        for database in opened:
            stack.push_async_callback(database.close)
            await database.prepare(upgrade=False)
        yield opened


def an_entry(request_id: str, **changes: object) -> dict[str, Any]:
    """A journal row."""
    row = {"request_id": request_id, "key_id": "key_1", "user_id": "1", "operation": "like_twitter", "asked": b"a"}
    return row | {"state": "started", "created_at": NOW} | changes


def cap(limit: int | None, scope: str = "key_1", window: str = HOUR, amount: int = 1) -> Charge:
    """A charge that counts a call."""
    return Charge("add", scope, "writes:*", window, amount, limit, "caps")


def budget(micros: int, limit: int, scope: str = "key_1", window: str = DAY) -> Charge:
    """A charge of money."""
    return Charge("add", scope, "usd", window, micros, limit, "budget")


def gap(at_ms: int, min_ms: int) -> Charge:
    """A charge that needs a distance to the last call."""
    return Charge("gap", "key_1", "gap:like_twitter", "", at_ms, min_ms, "min_gap_s")


def mark(name: str, at_ms: int, for_ms: int = 1_000, scope: str = "key_1") -> Charge:
    """A charge that marks a text."""
    return Charge("text", scope, "text", name, at_ms, for_ms, "duplicate_text")


async def begin(database: Database, request_id: str, charges: Sequence[Charge], **changes: object) -> int | None:
    """Make the charges and the row as one unit; return which charge did not pass."""
    row = an_entry(request_id, spent=encode(charges), **changes)
    index = await database.append_all([*charging(charges, request_id), Part(journal.ADD, row)])
    return None if index is None else refused_by(charges, index)


async def amounts(database: Database, *charges: Charge) -> list[int | None]:
    """What stands in the charges' rows of usage, None where there is no row."""
    keys: list[Key] = [(one.scope, one.measure, one.window) for one in charges]
    async with database.read() as connection:
        found = await usage.amounts(connection, keys)
    return [found.get(key) for key in keys]


async def marks(database: Database, *names: str) -> list[int | None]:
    """When each mark of the key was made."""
    async with database.read() as connection:
        found = await usage.marks_at(connection, [("key_1", name) for name in names])
    return [found.get(("key_1", name)) for name in names]


async def requests(database: Database) -> set[str]:
    """The ids of the journal's rows."""
    async with database.read() as connection:
        return {row.request_id for row in await journal.listed(connection, {}, None, 1_000)}


async def test_a_limit_of_ten_lets_ten_of_two_hundred_pass(pair: tuple[Database, Database]) -> None:
    """Two processes, two hundred concurrent callers: exactly ten rows, and a usage of ten."""
    results = await asyncio.gather(
        *(begin(pair[number % 2], f"req_{number:03}", [cap(None, "gateway"), cap(10)]) for number in range(200))
    )
    assert results.count(None) == 10
    assert set(results) == {None, 1}
    assert await amounts(pair[0], cap(10), cap(None, "gateway")) == [10, 10]
    assert await requests(pair[0]) == {f"req_{number:03}" for number, one in enumerate(results) if one is None}


async def test_a_refused_unit_leaves_nothing_and_says_which_charge_refused_it(
    pair: tuple[Database, Database],
) -> None:
    """Whichever charge it is: the counters stay, and so do the mark and the gap."""
    charges = [budget(500, 1_000), cap(1, "gateway", MONTH), gap(NOW_MS, 1_000), mark("m", NOW_MS)]
    assert await begin(pair[0], "req_1", charges) is None
    later = NOW_MS + 10_000
    variants: dict[int, list[Charge]] = {
        0: [budget(501, 1_000), cap(2, "gateway", MONTH), gap(later, 1_000), mark("m", later)],
        1: [budget(500, 1_000), cap(1, "gateway", MONTH), gap(later, 1_000), mark("m", later)],
        2: [budget(500, 1_000), cap(2, "gateway", MONTH), gap(NOW_MS + 999, 1_000), mark("m", later)],
        3: [budget(500, 1_000), cap(2, "gateway", MONTH), gap(later, 1_000), mark("m", NOW_MS + 999)],
    }
    for index, variant in variants.items():
        assert await begin(pair[1], f"req_{index + 2}", variant) == index
    assert await amounts(pair[0], *charges[:3]) == [500, 1, NOW_MS]
    assert await marks(pair[0], "m") == [NOW_MS]
    assert await requests(pair[0]) == {"req_1"}
    passing = [budget(500, 1_000), cap(2, "gateway", MONTH), gap(NOW_MS + 1_000, 1_000), mark("m", NOW_MS + 1_000)]
    assert await begin(pair[1], "req_9", passing) is None


async def test_giving_back_is_the_exact_inverse(pair: tuple[Database, Database]) -> None:
    """All of it, or only the money; a gap goes back while it is this call's."""
    before = [cap(10), budget(700, 10_000), gap(NOW_MS, 1_000)]
    assert await begin(pair[0], "req_1", before) is None
    charges = [cap(10), budget(300, 10_000), gap(NOW_MS + 5_000, 1_000), mark("m", NOW_MS)]
    assert await begin(pair[0], "req_2", charges) is None
    assert await pair[1].append_all(giving_back(encode(charges), "req_2")) is None
    assert await amounts(pair[0], *before) == [1, 700, NOW_MS]
    assert await marks(pair[0], "m") == [None]

    assert await begin(pair[0], "req_3", [cap(10), budget(300, 10_000), gap(NOW_MS + 5_000, 1_000)]) is None
    assert await begin(pair[0], "req_4", [gap(NOW_MS + 9_000, 1_000)]) is None
    spent = encode([cap(10), budget(300, 10_000), gap(NOW_MS + 5_000, 1_000)])
    assert await pair[1].append_all(giving_back(spent, "req_3", usd=100)) is None
    assert await amounts(pair[0], *before) == [1, 900, NOW_MS + 9_000]
    assert await pair[1].append_all(giving_back(spent, "req_3", usd=-50, counts=False)) is None
    assert await amounts(pair[0], *before) == [1, 950, NOW_MS + 9_000]


async def test_a_mark_is_given_back_by_its_own_request_only(pair: tuple[Database, Database]) -> None:
    """The same text may have been posted again since."""
    assert await begin(pair[0], "req_1", [mark("m", NOW_MS)]) is None
    assert await begin(pair[0], "req_2", [mark("m", NOW_MS + 2_000)]) is None
    assert await pair[0].append_all(giving_back(encode([mark("m", NOW_MS)]), "req_1")) is None
    assert await marks(pair[0], "m") == [NOW_MS + 2_000]


async def test_a_mark_that_is_given_back_leaves_the_earlier_one(pair: tuple[Database, Database]) -> None:
    """Another rule may hold for more days, and must still find the text."""
    day_ms = 86_400_000
    assert await begin(pair[0], "req_1", [mark("m", NOW_MS, 30 * day_ms)]) is None
    later = mark("m", NOW_MS + 2 * day_ms, day_ms)
    assert await begin(pair[0], "req_2", [later]) is None
    assert await pair[1].append_all(giving_back(encode([later]), "req_2")) is None
    assert await marks(pair[0], "m") == [NOW_MS]
    assert await begin(pair[0], "req_3", [mark("m", NOW_MS + 3 * day_ms, 30 * day_ms)]) == 0
    async with pair[0].write() as connection:
        await usage.purge(connection, datetime.fromtimestamp((NOW_MS + 29 * day_ms) / 1000, UTC), 10)
    assert await marks(pair[0], "m") == [NOW_MS]


async def test_usage_that_is_kept_no_longer_is_not_given_back(pair: tuple[Database, Database]) -> None:
    """A counter never falls below zero, which would let more pass than its limit."""
    assert await pair[0].append_all(giving_back(encode([cap(10), budget(5, 9)]), "req_1")) is None
    # SQLite makes no row for what has none.
    assert set(await amounts(pair[0], cap(10), budget(5, 9))) <= {0, None}


async def test_two_policies_of_one_scope_count_a_call_once(pair: tuple[Database, Database]) -> None:
    """The stricter limit holds."""
    charges = [cap(5), cap(2), gap(NOW_MS, 10), gap(NOW_MS, 1_000), mark("m", NOW_MS, 10), mark("m", NOW_MS, 1_000)]
    assert await begin(pair[0], "req_1", charges) is None
    assert await amounts(pair[0], cap(5)) == [1]
    assert await begin(pair[0], "req_2", [gap(NOW_MS + 500, 10), gap(NOW_MS + 500, 1_000)]) == 1
    assert await begin(pair[0], "req_3", [cap(5), cap(2)]) is None
    assert await begin(pair[0], "req_4", [cap(5), cap(2)]) == 1


async def test_a_row_that_is_refused_rolls_back_its_unit_alone(pair: tuple[Database, Database]) -> None:
    """Among ordinary rows and other units, of which one is refused, too."""
    database = pair[0]
    assert await database.append(journal.ADD, an_entry("req_taken"))
    ids = [f"req_{number}" for number in range(20)]
    ids[7], ids[11] = "req_taken", "req_\0"
    ordinary = [an_entry(f"req_o{number}", state="started" if number != 3 else None) for number in range(9)]
    results = await asyncio.gather(
        *(begin(database, request_id, [cap(100), mark(request_id, NOW_MS)]) for request_id in ids[:10]),
        *(database.append(journal.ADD, row) for row in ordinary),
        *(begin(database, request_id, [cap(100), mark(request_id, NOW_MS)]) for request_id in ids[10:]),
        return_exceptions=True,
    )
    refused = {number for number, result in enumerate(results) if isinstance(result, RowRefusedError)}
    written = len(await requests(database) - {"req_taken"})
    # SQLite takes a NUL in a text, PostgreSQL does not.
    assert refused - {20} == {7, 13}
    assert written == 20 + 9 - len(refused)
    assert await amounts(database, cap(100)) == [20 - len(refused - {13})]
    assert await marks(database, "req_taken") == [None]


async def test_a_unit_without_required_parts_is_written_as_it_is(pair: tuple[Database, Database]) -> None:
    """Its order is kept, also where two parts change one row."""
    parts = [Part(journal.ADD, an_entry("req_1")), Part(RENAME, {"of": "req_2", "operation": "none"})]
    assert await pair[0].append_all(parts) is None
    twice = [*charging([cap(None)], "req_1"), *charging([cap(1, amount=1)], "req_1")]
    assert await pair[0].append_all(twice) == 3
    assert await amounts(pair[0], cap(1)) in ([None], [0])
    twice = [*charging([cap(None)], "req_1"), *charging([cap(2, amount=1)], "req_1")]
    assert await pair[0].append_all(twice) is None
    assert await amounts(pair[0], cap(1)) == [2]


async def test_keys_that_two_processes_charge_in_opposite_orders_meet_no_deadlock(
    pair: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deadlock ends after a second, in which neither process writes."""
    met: list[str] = []
    transaction = vars(PostgreSQL)["_transaction"]

    async def watched(self: PostgreSQL, connection: Any, work: Any) -> None:
        try:
            await transaction(self, connection, work)
        except asyncpg.DeadlockDetectedError:
            met.append("deadlock")
            raise

    monkeypatch.setattr(PostgreSQL, "_transaction", watched)

    async def charge(database: Database, scopes: Sequence[str], name: str) -> None:
        charges = [cap(None, scope) for scope in scopes] + [mark(scope, NOW_MS, scope=name) for scope in scopes]
        own = [[cap(None, scope), cap(None, "gateway"), mark(scope, NOW_MS, scope="all")] for scope in scopes]
        await asyncio.gather(
            database.append_all(charging(charges, name)),
            *(database.append_all(charging(one, name)) for one in own),
            *(database.append_all(giving_back(encode(one), name)) for one in own),
        )

    for number in range(20):
        scopes = [f"key_{number}_{place}" for place in range(8)]
        await asyncio.gather(charge(pair[0], scopes, "one"), charge(pair[1], scopes[::-1], "two"))
    assert met == []


async def test_a_failure_in_the_middle_writes_no_part_of_a_unit(pair: tuple[Database, Database]) -> None:
    """A table that is missing stands for it."""
    broken = "ALTER TABLE text_marks RENAME TO text_marks_away"
    async with pair[0].write() as connection:
        await connection.execute(text(broken))
    with pytest.raises(StorageDownError) as caught:
        await begin(pair[0], "req_1", [cap(10), mark("m", NOW_MS)])
    assert not isinstance(caught.value, RowRefusedError)
    assert await amounts(pair[0], cap(10)) == [None]
    assert await requests(pair[0]) == set()
    async with pair[0].write() as connection:
        await connection.execute(text("ALTER TABLE text_marks_away RENAME TO text_marks"))
    assert await begin(pair[0], "req_1", [cap(10), mark("m", NOW_MS)]) is None


async def test_a_caller_that_is_cancelled_leaves_its_unit_whole(pair: tuple[Database, Database]) -> None:
    """Either all of it is written, or nothing."""
    tasks = [asyncio.create_task(begin(pair[0], f"req_{number}", [cap(None)])) for number in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    # Written behind every unit that was queued before.
    await begin(pair[0], "req_last", [cap(None)])
    assert await amounts(pair[0], cap(None)) == [len(await requests(pair[0]))]


async def test_windows_are_kept_as_long_as_reports_need_them(pair: tuple[Database, Database]) -> None:
    """Hours two days, days 400, months for good; marks for their own days."""
    charges = [cap(9, window=one) for one in (HOUR, DAY, MONTH)] + [gap(NOW_MS, 5), mark("m", NOW_MS, 3_600_000)]
    assert await begin(pair[0], "req_1", charges) is None

    async def after(days: int) -> tuple[list[int | None], list[int | None]]:
        async with pair[0].write() as connection:
            moment = datetime.fromtimestamp(NOW.timestamp() + days * 86_400 + 1, UTC)
            assert await usage.purge(connection, moment, 500) < 500
        return await amounts(pair[0], *charges[:4]), await marks(pair[0], "m")

    assert await after(0) == ([1, 1, 1, NOW_MS], [NOW_MS])
    assert await after(1) == ([1, 1, 1, NOW_MS], [None])
    assert await after(2) == ([None, 1, 1, NOW_MS], [None])
    assert await after(400) == ([None, None, 1, NOW_MS], [None])
