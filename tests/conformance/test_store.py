"""What the store promises, whichever engine it runs on, with two processes' worth of writers between each other."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from sqlalchemy import JSON, bindparam, create_engine, insert, select, text, update

from birdwire.runtime.clock import Clock
from birdwire.store.database import ALL, Database, RowRefusedError, StorageDownError, StoreError, now
from birdwire.store.engines.group_commit import GroupCommit
from birdwire.store.tables import api_keys, idempotency, journal, link_states, x_sessions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from birdwire.store.engines.group_commit import Take

pytestmark = pytest.mark.engines("sqlite", "postgres")

NOW = datetime(2026, 4, 18, 7, 0, 0, 123_456, tzinfo=UTC)
KEY = "key_1"
ADD = insert(journal.journal)
SETTLE = (
    update(journal.journal)
    .where(journal.journal.c.request_id == bindparam("of"))
    .values(state=bindparam("state"), data=bindparam("data", type_=JSON), settled_at=bindparam("settled_at"))
)


@dataclass
class Pair:
    """Two gateways' databases: the same one, opened twice."""

    first: Database
    second: Database

    def __getitem__(self, number: int) -> Database:
        """One or the other, in turn."""
        return (self.first, self.second)[number % 2]

    async def all_at_once(self, number: int, work: Callable[[Database], Awaitable[Any]]) -> list[Any]:
        """Run the same work many times, a hundred concurrently, half in each process."""
        room = asyncio.Semaphore(100)

        async def one(turn: int) -> Any:
            async with room:
                return await work(self[turn])

        return await asyncio.gather(*(one(turn) for turn in range(number)))


@pytest_asyncio.fixture
async def pair(database_url: str) -> AsyncIterator[Pair]:
    """A new database, ready, with one key in it."""
    databases = Pair(Database(database_url), Database(database_url))
    async with AsyncExitStack() as stack:
        for database in (databases.first, databases.second):
            stack.push_async_callback(database.close)
            await database.prepare(upgrade=False)
        async with databases.first.write() as connection:
            await api_keys.add(connection, a_key())
        yield databases


def a_key(**changes: object) -> dict[str, Any]:
    """A key's row."""
    row = {"key_id": KEY, "mode": "test", "label": "a key", "tier": "free", "created_at": NOW}
    return row | {"actions": ["like_twitter"], "rpm": 1} | changes


def a_session(**changes: object) -> dict[str, Any]:
    """A session's row."""
    row = {"session_id": "xs_1", "key_id": KEY, "issuer": "x", "state": "active", "gen": 1, "access_ct": b"\x00\xff"}
    return row | {"expires_at": NOW, "scopes": "like.write", "created_at": NOW} | changes


def an_entry(request_id: str, **changes: object) -> dict[str, Any]:
    """A journal row."""
    row = {"request_id": request_id, "key_id": KEY, "user_id": "1", "operation": "like_twitter", "asked": b"a"}
    return row | {"looks": 0, "reads": 0, "state": "confirmed", "data": {"liked": True}, "created_at": NOW} | changes


def make_private(database_url: str) -> None:
    """Make the file, if it is one, so that only its owner can read it."""
    if database_url.startswith("sqlite:///"):
        Path(database_url.removeprefix("sqlite:///")).touch(mode=0o600)


async def entries(database: Database) -> dict[str, Any]:
    """What the journal holds, by request."""
    async with database.read() as connection:
        rows = await journal.listed(connection, {"key_id": KEY}, None, 1_000)
        return {row.request_id: row for row in rows}


async def test_a_process_reads_exactly_what_another_wrote(pair: Pair) -> None:
    """Bytes, times to the microsecond, lists, words beyond ASCII, and nothing."""
    async with pair.first.write() as connection:
        await api_keys.add(connection, a_key(key_id="key_2", label="Zoë 🐦", expires_at=NOW))
        await x_sessions.add(connection, a_session())
    async with pair.second.read() as connection:
        key, session = await api_keys.get(connection, "key_2"), await x_sessions.get(connection, "xs_1")
    assert key is not None
    assert session is not None
    assert (key.label, key.expires_at, key.actions, key.ips) == ("Zoë 🐦", NOW, ["like_twitter"], None)
    assert (session.access_ct, session.refresh_ct, session.tries) == (b"\x00\xff", None, 0)


async def test_a_block_that_fails_leaves_nothing(pair: Pair) -> None:
    """What it wrote before is taken back."""

    async def fail() -> None:
        async with pair.first.write() as connection:
            await api_keys.add(connection, a_key(key_id="key_2"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with pair.second.read() as connection:
        assert await api_keys.get(connection, "key_2") is None


@pytest.mark.trust("R1", "F37")
async def test_a_claim_has_one_winner_of_fifty(pair: Pair) -> None:
    """A process may refresh a session once it has won the row, not by its own memory."""
    async with pair.first.write() as connection:
        await x_sessions.add(connection, a_session())
        row = await x_sessions.get(connection, "xs_1")
    assert row is not None
    mark = {"refresh_state": "presented", "presented_gen": 1, "tries": 1}

    async def claim(database: Database) -> bool:
        async with database.write() as connection:
            return await x_sessions.mark(connection, row, mark)

    assert sum(await pair.all_at_once(50, claim)) == 1


@pytest.mark.trust("R8")
async def test_a_generation_is_written_once(pair: Pair) -> None:
    """A stale copy never revives a dead pair of tokens."""
    async with pair.first.write() as connection:
        await x_sessions.add(connection, a_session())

    async def save(database: Database) -> bool:
        async with database.write() as connection:
            return await x_sessions.change(connection, "xs_1", 1, {"gen": 2})

    assert sum(await pair.all_at_once(20, save)) == 1


@pytest.mark.trust("G12", "O1")
async def test_a_state_is_taken_once_by_a_thousand(pair: Pair) -> None:
    """A thousand concurrent callbacks make one exchange; callbacks without a connection in time make none."""
    row = {"state_hash": b"s", "key_id": KEY, "issuer": "x", "redirect_uri": "r", "verifier_ct": b"v", "scopes": ""}
    async with pair.first.write() as connection:
        await link_states.add(connection, row | {"created_at": NOW, "expires_at": NOW})

    async def take(database: Database) -> bool:
        with contextlib.suppress(StorageDownError):
            async with database.write() as connection:
                return await link_states.take(connection, b"s", NOW) is not None
        return False

    assert sum(await pair.all_at_once(1_000, take)) == 1


@pytest.mark.trust("F40")
async def test_a_call_with_an_idempotency_key_starts_once(pair: Pair) -> None:
    """Of fifty concurrent calls with one Idempotency-Key, one is the first, and the others see it."""
    row = {"key_id": KEY, "name": "n", "asked": b"a", "repeatable": True, "state": "started", "created_at": NOW}
    row |= {"request_id": "req_1", "owner": "gw_1"}

    async def begin(database: Database) -> bool:
        async with database.write() as connection:
            first = await idempotency.add(connection, row)
            assert await idempotency.find(connection, KEY, "n") is not None
            return first

    assert sum(await pair.all_at_once(50, begin)) == 1


NAMED: dict[str, Any] = {
    "key_id": KEY,
    "name": "n",
    "asked": b"\x00a",
    "repeatable": False,
    "request_id": "req_1",
    "owner": "gw_1",
    "state": idempotency.NameState.STARTED,
    "created_at": NOW,
}


@pytest.mark.trust("F40")
async def test_an_idempotency_key_that_is_held_fails_no_row_of_its_transaction(pair: Pair) -> None:
    """One of the calls with it is the first, in either process; the others change nothing, nor do they refuse a row."""
    names = (pair[number].append(idempotency.ADD, NAMED | {"request_id": f"req_{number}"}) for number in range(40))
    rows = (pair[number].append(ADD, an_entry(f"req_{number}")) for number in range(40))
    turns = (turn for both in zip(names, rows, strict=True) for turn in both)
    results = await asyncio.gather(*turns)
    assert sum(results[::2]) == 1
    assert all(results[1::2])
    async with pair.second.read() as connection:
        held = await idempotency.find(connection, KEY, "n")
    assert held is not None
    assert held.request_id == f"req_{results[::2].index(True)}"
    assert len(await entries(pair.second)) == 40


async def test_only_the_call_that_holds_a_name_ends_it(pair: Pair) -> None:
    """Another call took it over, so the slow one neither releases it nor stores an answer under it."""
    kept = {"new_state": idempotency.NameState.KEPT, "new_status": 201, "new_body": b"answer"}
    assert await pair.first.append(idempotency.ADD, NAMED)
    for other in (idempotency.held(KEY, "n", "req_2"), idempotency.held(KEY, "m", "req_1")):
        assert not await pair.first.append(idempotency.SETTLE, other | kept)
        assert not await pair.first.append(idempotency.RELEASE, other)
    held = idempotency.held(KEY, "n", "req_1")
    assert await pair.first.append(idempotency.SETTLE, held | kept)
    async with pair.second.read() as connection:
        row = await idempotency.find(connection, KEY, "n")
    assert row is not None
    assert (row.state, row.status, row.body, row.asked) == (idempotency.NameState.KEPT, 201, b"answer", b"\x00a")
    assert await pair.first.append(idempotency.RELEASE, held)
    assert await pair.second.append(idempotency.ADD, NAMED | {"request_id": "req_2"})


async def test_a_name_is_stored_the_same_on_either_way(pair: Pair, engine: str) -> None:
    """The values of a call that starts, and their types, do not depend on whether it shares a transaction."""
    await pair.first.append(idempotency.ADD, NAMED)
    async with pair.first.write() as connection:
        await idempotency.add(connection, NAMED | {"name": "o"})
    columns = idempotency.idempotency.c.keys()
    typeof = "typeof" if engine == "sqlite" else "pg_typeof"
    raw = ", ".join(f"{name}, CAST({typeof}({name}) AS VARCHAR)" for name in columns if name != "name")
    async with pair.first.read() as connection:
        shared, alone = await connection.execute(text(f"SELECT {raw} FROM idempotency ORDER BY name"))  # noqa: S608 - no foreign text
    assert tuple(shared) == tuple(alone)


async def test_a_daily_cap_is_exact(pair: Pair) -> None:
    """Of fifty concurrent writes as many pass as the day has left, in either process; the next day starts over."""

    async def spend(database: Database, day: str = "2026-04-18") -> bool:
        async with database.write() as connection:
            return await api_keys.spend_write(connection, KEY, day, 20)

    assert sum(await pair.all_at_once(50, spend)) == 20
    assert await spend(pair.first, "2026-04-19")


async def test_changes_to_one_key_are_serialised(pair: Pair) -> None:
    """A change that reads first locks the key's row, and so loses no other change."""

    async def raise_limit(database: Database) -> None:
        async with database.write() as connection:
            await api_keys.hold(connection, KEY)
            row = await api_keys.get(connection, KEY)
            assert row is not None
            await api_keys.change(connection, KEY, {"rpm": (row.rpm or 0) + 1})

    await pair.all_at_once(30, raise_limit)
    async with pair.first.read() as connection:
        row = await api_keys.get(connection, KEY)
    assert row is not None
    assert row.rpm == 31


async def test_leases_are_counted_by_one_clock(pair: Pair, engine: str) -> None:
    """PostgreSQL's, which all processes share; on a file, that of its one process."""

    class Tomorrow(Clock):
        def unix_s(self) -> float:
            return super().unix_s() + 86_400

    async with pair.first.read() as connection:
        at = await now(connection, Tomorrow())
    assert at.tzinfo is not None
    assert (at - datetime.now(UTC) > timedelta(hours=12)) == (engine == "sqlite")


async def test_an_append_returns_once_its_row_is_readable(pair: Pair) -> None:
    """Another process sees it, with its values as their columns keep them."""
    await pair.first.append(ADD, an_entry("req_1", settled_at=NOW))
    row = (await entries(pair.second))["req_1"]
    assert (row.data, row.created_at, row.settled_at, row.target) == ({"liked": True}, NOW, NOW, None)


LIKE = {
    "key_id": KEY,
    "user_id": "1",
    "operation": "like_twitter",
    "target": "2",
    "asked": b"\x00asked",
    "state": journal.State.CONFIRMED,
    "created_at": NOW,
    "settled_at": NOW,
    "status": 200,
    "data": {"liked": True},
    "cost_microusd": 15_000,
}
LOST: dict[str, Any] = LIKE | {
    "state": journal.State.UNKNOWN,
    "why": journal.Why.LOOKING,
    "reason": "outcome_unknown",
    "x_id": "3",
    "words_ct": b"\xff",
    "owner": "gw_1",
    "lost_at": NOW,
    "due_at": NOW + timedelta(microseconds=1),
    "looks": 1,
    "reads": 2,
    "started_at": NOW,
    "spent": [["add", KEY, "usd", "2026-04", 15_000]],
    "decision": {"versions": {KEY: 1}, "findings": [], "shadow": []},
    "features_ct": b"\xfe",
    "times": 3,
}


@pytest.mark.parametrize("row", [LIKE, LOST], ids=["some columns", "every column"])
@pytest.mark.parametrize("order", [sorted, reversed], ids=["sorted", "reversed"])
async def test_an_appended_row_is_stored_as_an_insert_stores_it(
    pair: Pair, engine: str, row: dict[str, Any], order: Callable[[dict[str, Any]], Iterable[str]]
) -> None:
    """The same values of the same types, in whatever order the row names its columns, and whichever it leaves out."""
    assert LOST.keys() | {"request_id"} == set(journal.journal.c.keys())
    await pair.first.append(ADD, {name: row[name] for name in order(row)} | {"request_id": "req_1"})
    async with pair.first.write() as connection:
        defaults = dict.fromkeys(journal.journal.c.keys()) | {"looks": 0, "reads": 0}
        await connection.execute(ADD, defaults | row | {"request_id": "req_2"})
    typeof = "typeof" if engine == "sqlite" else "pg_typeof"
    raw = ", ".join(f"{name}, CAST({typeof}({name}) AS VARCHAR)" for name in LOST)
    async with pair.first.read() as connection:
        appended, inserted = await connection.execute(text(f"SELECT {raw} FROM journal ORDER BY request_id"))  # noqa: S608 - no foreign text
    assert tuple(appended) == tuple(inserted)


async def test_rows_of_many_callers_are_all_there(pair: Pair) -> None:
    """Two processes, two hundred callers, and transactions of the usual kind between them."""

    async def change(database: Database) -> None:
        async with database.write() as connection:
            await api_keys.change(connection, KEY, {"rpm": 7})

    await asyncio.gather(
        *(pair[number].append(ADD, an_entry(f"req_{number}")) for number in range(200)), pair.all_at_once(20, change)
    )
    assert len(await entries(pair.first)) == 200


async def test_appends_keep_their_order(pair: Pair) -> None:
    """What began and ended while the disk was busy is there as it ended."""
    await asyncio.gather(
        *(
            one
            for number in range(40)
            for one in (
                pair.first.append(ADD, an_entry(f"req_{number}", state="started", data=None)),
                pair.first.append(
                    SETTLE, {"of": f"req_{number}", "state": "confirmed", "data": {"n": number}, "settled_at": NOW}
                ),
            )
        )
    )
    found = await entries(pair.second)
    assert {row.state for row in found.values()} == {"confirmed"}
    assert [found[f"req_{number}"].data for number in range(40)] == [{"n": number} for number in range(40)]


async def test_a_row_that_is_refused_fails_alone(pair: Pair) -> None:
    """A second row of one name, one without what it needs, a number that no column holds: the others are written."""
    bad = {
        5: an_entry("req_4"),
        9: an_entry("req_9", state=None),
        13: an_entry("req_13", status=2**70),
    }
    rows = [bad.get(number, an_entry(f"req_{number}")) for number in range(30)]
    results = await asyncio.gather(*(pair.first.append(ADD, row) for row in rows), return_exceptions=True)
    assert [number for number, result in enumerate(results) if isinstance(result, RowRefusedError)] == sorted(bad)
    assert set(results) - {True} == {result for result in results if isinstance(result, RowRefusedError)}
    assert len(await entries(pair.second)) == 27


async def test_a_saved_change_reports_whether_its_row_existed_and_announces_its_key(pair: Pair) -> None:
    """Of many concurrent changes, those without a row change and announce nothing."""
    await asyncio.gather(*(pair.first.append(ADD, an_entry(f"req_{number}", data=None)) for number in range(0, 40, 2)))
    await heard(pair.second, set())
    done = {"state": "refused", "data": None, "settled_at": NOW}
    saves = (pair.first.save(SETTLE, {"of": f"req_{number}", **done}, f"key_{number}") for number in range(40))
    assert await asyncio.gather(*saves) == [number % 2 == 0 for number in range(40)]
    assert {row.state for row in (await entries(pair.second)).values()} == {"refused"}
    await heard(pair.second, {f"key_{number}" for number in range(0, 40, 2)})


async def test_a_saved_change_that_is_refused_fails_alone(pair: Pair) -> None:
    """It is undone with its announcement, and the others are stored."""
    await asyncio.gather(*(pair.first.append(ADD, an_entry(f"req_{number}", data=None)) for number in range(10)))
    link_states = {5: None}
    saves = (
        pair.first.save(
            SETTLE, {"of": f"req_{n}", "state": link_states.get(n, "refused"), "data": None, "settled_at": NOW}, "key_1"
        )
        for n in range(10)
    )
    results = await asyncio.gather(*saves, return_exceptions=True)
    assert [number for number, result in enumerate(results) if isinstance(result, RowRefusedError)] == [5]
    assert results[:5] + results[6:] == [True] * 9


async def test_a_group_commit_notifies_all_waiters_before_any_continues(pair: Pair) -> None:
    """What a stored pair's call does next must not make another's time until the disk look longer."""
    await asyncio.gather(*(pair.first.append(ADD, an_entry(f"req_{number}", data=None)) for number in range(10)))
    order: list[str] = []

    async def one(number: int) -> None:
        row = {"of": f"req_{number}", "state": "refused", "data": None, "settled_at": NOW}
        assert await pair.first.save(SETTLE, row, "key_1")
        order.append("saved")
        await pair.first.saved()
        order.append("goes on")

    await asyncio.gather(*(one(number) for number in range(10)))
    assert order == ["saved"] * 10 + ["goes on"] * 10


async def heard(database: Database, key_ids: set[str]) -> None:
    """Wait until the change feed has named these keys and no other; for none of them, until it works."""
    missing = set(key_ids)
    async with asyncio.timeout(20):
        while (news := database.changed()) is ALL or missing - news:
            if news is not ALL:
                assert news <= key_ids
                missing -= news
            await asyncio.sleep(0.01)


async def test_a_cancelled_caller_cancels_no_other(pair: Pair) -> None:
    """Its own row may be written or not; the others are."""
    waiting = [asyncio.create_task(pair.first.append(ADD, an_entry(f"req_{number}"))) for number in range(10)]
    await asyncio.sleep(0)
    waiting[3].cancel()
    await asyncio.wait(waiting)
    assert [task.cancelled() for task in waiting] == [number == 3 for number in range(10)]
    assert len(await entries(pair.second)) >= 9


async def test_closing_writes_queued_rows_and_accepts_no_new_ones(pair: Pair, database_url: str) -> None:
    """Nothing that was taken is lost."""
    third = Database(database_url)
    waiting = asyncio.gather(*(third.append(ADD, an_entry(f"req_{number}")) for number in range(50)))
    await asyncio.sleep(0)
    await third.close()
    await waiting
    assert len(await entries(pair.second)) == 50
    with pytest.raises(StorageDownError):
        await third.append(ADD, an_entry("req_late"))


@pytest.mark.trust("F48")
async def test_any_number_of_processes_can_prepare_a_new_database_concurrently(empty_url: str) -> None:
    """Replicas start together: one makes the tables, the others find them."""
    databases = [Database(empty_url) for _ in range(6)]
    try:
        await asyncio.gather(*(database.prepare(upgrade=number % 2 == 0) for number, database in enumerate(databases)))
        await databases[0].append(ADD, an_entry("req_1"))
        assert await entries(databases[5])
    finally:
        for database in databases:
            await database.close()


@pytest.mark.trust("F48")
@pytest.mark.parametrize("upgrade", [False, True])
async def test_a_newer_schema_is_refused(pair: Pair, *, upgrade: bool) -> None:
    """Old code on a new schema would write what the new code does not expect."""
    async with pair.first.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="newer version of Birdwire"):
        await pair.second.prepare(upgrade=upgrade)


@pytest.mark.trust("F48")
async def test_a_database_of_something_else_is_refused(empty_url: str) -> None:
    """Nothing of it is touched."""
    make_private(empty_url)
    database = Database(empty_url)
    try:
        async with database.write() as connection:
            await connection.execute(text("CREATE TABLE birds (name VARCHAR)"))
        with pytest.raises(StoreError, match="do not belong to Birdwire"):
            await database.prepare(upgrade=True)
        async with database.read() as connection:
            assert (await connection.execute(text("SELECT * FROM birds"))).all() == []
    finally:
        await database.close()


async def test_a_probe_reports_whether_a_write_would_be_accepted(pair: Pair) -> None:
    """A success holds for a second."""
    await pair.first.probe()
    await pair.first.probe()
    async with pair.first.read() as connection:
        assert (await connection.execute(select(1))).scalar() == 1


async def test_a_failed_append_leaves_no_caller_waiting() -> None:
    """A bug in the writer fails the callers of the transaction, and those that wait for the next."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def broken(take: Take, _: float) -> list[int]:
        take()
        begun.set()
        await go_on.wait()
        raise RuntimeError

    appends = GroupCommit(create_engine("sqlite://").dialect, broken)
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    first = asyncio.create_task(appends.add(ADD, an_entry("req_1")))
    await begun.wait()
    second = asyncio.create_task(appends.add(ADD, an_entry("req_2")))
    await asyncio.sleep(0)
    go_on.set()
    ends = await asyncio.wait_for(asyncio.gather(first, second, return_exceptions=True), 5)
    assert [type(end) for end in ends] == [StorageDownError, StorageDownError]


async def test_a_caller_that_writes_again_shares_the_next_transaction() -> None:
    """Even if other rows waited when the transaction of its first one ended: a post writes several, one by one."""
    batches: list[list[str]] = []

    async def commit(take: Take, _: float) -> list[int]:
        units = take()
        batches.append([unit.values[0] for unit in units])
        for _turn in range(3):
            await asyncio.sleep(0)
        return [1] * len(units)

    appends = GroupCommit(create_engine("sqlite://").dialect, commit)

    async def write(*names: str) -> None:
        for name in names:
            await appends.add(ADD, an_entry(name))

    first = asyncio.create_task(write("req_1", "req_3"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.gather(first, write("req_2"))
    assert batches == [["req_1"], ["req_2", "req_3"]]
