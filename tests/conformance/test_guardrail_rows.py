"""Policies, pauses, attempts, marks and costs as rows, on both engines."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from sqlalchemy import insert, text
from ulid import ULID

from birdwire.runtime.clock import Clock
from birdwire.store.database import ALL, Database, StorageDownError
from birdwire.store.encryption.key_rotation import KeyRotation
from birdwire.store.encryption.text_marks import TextMarks
from birdwire.store.encryption.vault import Vault
from birdwire.store.tables import costs, journal, pauses, policies, usage
from birdwire.store.tables.costs import CostRow
from birdwire.store.tables.journal import State
from birdwire.store.tables.pauses import PauseRow
from birdwire.store.tables.policies import PolicyRow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.engines("sqlite", "postgres")

NOW = datetime(2026, 11, 28, 5, 30, tzinfo=UTC)


@pytest_asyncio.fixture
async def pair(database_url: str) -> AsyncIterator[tuple[Database, Database]]:
    """One new database, opened twice, as by two gateways."""
    async with AsyncExitStack() as stack:
        opened = (Database(database_url), Database(database_url))
        for database in opened:
            stack.push_async_callback(database.close)
            await database.prepare(upgrade=False)
        yield opened


def a_policy(version: int, scope: str = "key_1", **changes: Any) -> PolicyRow:
    """A version of a policy."""
    row = PolicyRow(scope, "operator", version, "enforce", None, {"caps": {"*": "5/d"}}, NOW, "ada")
    return replace(row, **changes)


async def append(database: Database, row: PolicyRow) -> bool:
    """Append a version in a transaction of its own."""
    async with database.write() as connection:
        return await policies.append(connection, row)


async def heard(database: Database, scope: str) -> None:
    """Wait until the change feed names a scope."""
    async with asyncio.timeout(20):
        while True:
            changed = database.changed()
            if changed is not ALL and scope in changed:
                return
            await asyncio.sleep(0.01)


async def test_the_newest_version_of_each_policy_holds(pair: tuple[Database, Database]) -> None:
    """By scope and author, versions that remove a policy included."""
    rows = [
        a_policy(1),
        a_policy(2, rules=None),
        a_policy(1, author="owner"),
        a_policy(1, "gateway", preset="poster", enforcement="shadow"),
        a_policy(1, "account:1"),
    ]
    assert [await append(pair[0], row) for row in rows] == [True] * 5
    async with pair[1].read() as connection:
        assert await policies.latest(connection, ["key_1", "gateway"]) == [rows[3], rows[1], rows[2]]
        assert await policies.latest(connection, []) == []
        assert await policies.all_latest(connection) == [rows[4], rows[3], rows[1], rows[2]]
        assert await policies.history(connection, "key_1", 2) == [rows[1], rows[0]]


async def test_one_of_many_processes_adds_a_version(pair: tuple[Database, Database]) -> None:
    """The others get an error, and the row is unchanged."""
    rows = [a_policy(1, changed_by=f"person {number}") for number in range(10)]
    added = await asyncio.gather(*(append(pair[number % 2], row) for number, row in enumerate(rows)))
    assert added.count(True) == 1
    for change in ("UPDATE policies SET changed_by = 'grace'", "DELETE FROM policies"):
        with pytest.raises(StorageDownError):
            async with pair[0].write() as connection:
                await connection.execute(text(change))
    if pair[0].trusted_s > 100:
        async with pair[0].write() as connection:
            columns = ", ".join(policies.policies.c.keys())
            replace_all = f"INSERT OR REPLACE INTO policies ({columns}) SELECT {columns} FROM policies"  # noqa: S608 - no foreign text
            await connection.execute(text(replace_all.replace("changed_by FROM", "version FROM")))
    async with pair[1].read() as connection:
        assert await policies.latest(connection, ["key_1"]) == [rows[added.index(True)]]


async def test_a_damaged_policy_hides_no_other(pair: tuple[Database, Database]) -> None:
    """It is read as plain text, and the check of policies refuses it."""
    assert await append(pair[0], a_policy(1, "account:1"))
    row = dict(zip(policies.policies.c.keys(), (*"ka", 1, "enforce", None, None, 0, "ada"), strict=True))
    async with pair[0].write() as connection:
        columns = ", ".join(row)
        values = ", ".join(f":{name}" for name in row)
        await connection.execute(
            text(f"INSERT INTO policies ({columns}) VALUES ({values})"),  # noqa: S608 - no foreign text
            row | {"scope": "key_1", "author": "operator", "rules": '{"caps": '},
        )
    async with pair[1].read() as connection:
        found = await policies.latest(connection, ["key_1", "account:1"])
    assert [row.rules for row in found] == [{"caps": {"*": "5/d"}}, '{"caps": ']


async def test_policies_and_pauses_are_announced_under_their_scope(pair: tuple[Database, Database]) -> None:
    """Every process drops what it has cached of that scope."""
    pair[1].changed()
    await heard_after(pair, "account:1", append(pair[0], a_policy(1, "account:1")))
    pause = PauseRow("gateway", "operator", NOW, None, "an incident", "ada")

    async def put() -> None:
        async with pair[0].write() as connection:
            await pauses.put(connection, pause)

    async def lift() -> None:
        async with pair[0].write() as connection:
            assert await pauses.lift(connection, "gateway", "operator") == pause
            assert await pauses.lift(connection, "gateway", "operator") is None

    await heard_after(pair, "gateway", put())
    await heard_after(pair, "gateway", lift())


async def heard_after(pair: tuple[Database, Database], scope: str, change: Any) -> None:
    """Make a change in one process, and hear of its scope in the other."""
    # A listener that is not there yet answers ALL.
    async with asyncio.timeout(20):
        while pair[1].changed() is ALL:  # noqa: ASYNC110 - it happens in another program
            await asyncio.sleep(0.01)
    await change
    await heard(pair[1], scope)


async def test_a_pause_replaces_an_earlier_one_of_its_author(pair: tuple[Database, Database]) -> None:
    """The owner's is kept alongside the operator's."""
    first = PauseRow("key_1", "operator", NOW, None, "why", "ada")
    second = replace(first, until=NOW + timedelta(hours=1), why="another reason", by="grace")
    owner = replace(first, author="owner", by="account_owner")
    async with pair[0].write() as connection:
        for row in (first, owner, second):
            await pauses.put(connection, row)
    async with pair[1].read() as connection:
        assert await pauses.of(connection, ["key_1", "gateway"]) == [second, owner]
        assert await pauses.of(connection, ["gateway"]) == []
        assert await pauses.all_of(connection) == [second, owner]


def a_write(request_id: str, at: datetime = NOW, **changes: Any) -> dict[str, Any]:
    """A journal row of a post that X made."""
    row = dict.fromkeys(journal.journal.c.keys()) | {"request_id": request_id, "key_id": "key_1", "user_id": "1"}
    row |= {"operation": "post_twitter", "asked": b"a", "state": "confirmed", "created_at": at, "looks": 0, "reads": 0}
    return row | {"x_id": request_id[-3:], "cost_microusd": 15_000} | changes


async def store(database: Database, *rows: dict[str, Any]) -> None:
    """Insert journal rows."""
    async with database.write() as connection:
        await connection.execute(insert(journal.journal), list(rows))


def an_id(at: datetime, number: int) -> str:
    """A request id of a moment."""
    return f"req_{ULID.from_bytes(ULID.from_datetime(at).bytes[:6] + number.to_bytes(10, 'big'))}"


async def test_attempts_are_counted_by_the_hour_beyond_their_rows(pair: tuple[Database, Database]) -> None:
    """Two processes count in the one row of an hour."""
    rows = [
        journal.attempt(an_id(NOW, number), "key_1", "", "post_twitter", 403, "policy_denied", NOW)
        for number in range(3)
    ]

    async def bump(database: Database, times: int, reason: str) -> None:
        async with database.write() as connection:
            await journal.bump_hour(connection, rows[0] | {"reason": reason}, times)

    async with pair[0].write() as connection:
        await journal.add_attempts(connection, rows)
        await journal.add_attempts(connection, rows[:1])
        await journal.add_attempts(connection, [])
    await asyncio.gather(*(bump(pair[number % 2], 5, "paused") for number in range(10)))
    await bump(pair[0], 1, "cap_reached")
    async with pair[1].read() as connection:
        found = await journal.listed(connection, {"key_id": "key_1"}, None, 10)
        assert await journal.count_attempts(connection, "key_1", NOW.replace(hour=0, minute=0)) == 4
        assert await journal.count_attempts(connection, "key_2", NOW.replace(hour=0, minute=0)) == 0
        assert [page async for page in journal.of_key(connection, "key_1", NOW - timedelta(days=1), 10)] == []
    assert {(row.state, row.user_id, row.words_ct) for row in found} == {(State.NOT_SENT, "", None)}
    [hour] = [row for row in found if row.times != 1]
    assert (hour.times, hour.reason, hour.created_at) == (51, "cap_reached", NOW.replace(minute=0))


async def test_attempts_are_deleted_after_a_week(pair: tuple[Database, Database]) -> None:
    """Writes stay, and so do newer attempts."""
    old = NOW - timedelta(days=8)
    await store(pair[0], a_write(an_id(old, 1), old), a_write(an_id(NOW, 3)))
    async with pair[0].write() as connection:
        await journal.add_attempts(
            connection,
            [journal.attempt(an_id(at, 2), "key_1", "", "like_twitter", 403, "paused", at) for at in (old, NOW)],
        )
        assert await journal.purge_attempts(connection, NOW - timedelta(days=7), 500) == 1
        assert {row.request_id for row in await journal.listed(connection, {}, None, 10)} == {
            an_id(old, 1),
            an_id(NOW, 3),
            an_id(NOW, 2),
        }


async def test_refusals_by_x_are_counted_for_trips(pair: tuple[Database, Database]) -> None:
    """By reason, or all; those of the gateway's own are not X's."""
    await store(
        pair[0],
        a_write("req_001", state="refused", reason="x_refused"),
        a_write("req_002", state="refused", reason="tweet_not_found"),
        a_write("req_003", NOW - timedelta(minutes=11), state="refused", reason="x_refused"),
        a_write("req_004", state="not_sent", reason="x_refused"),
        a_write("req_005", state="refused", reason="x_refused", key_id="key_2"),
    )
    since = NOW - timedelta(minutes=10)
    async with pair[0].read() as connection:
        assert await journal.refused_since(connection, "key_1", since) == 2
        assert await journal.refused_since(connection, "key_1", since, "x_refused") == 1


async def test_the_writes_of_a_key_are_read_in_pages(
    pair: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oldest first, also where many have one time, and never more than asked for."""
    monkeypatch.setattr(journal, "PAGE", 4)
    times = [NOW + timedelta(seconds=number // 6) for number in range(20)]
    await store(
        pair[0],
        *(a_write(f"req_{number:03}", at) for number, at in enumerate(times)),
        a_write("req_900", NOW - timedelta(seconds=1)),
        a_write("req_901", key_id="key_2"),
    )
    async with pair[0].read() as connection:
        pages = [page async for page in journal.of_key(connection, "key_1", NOW, 100)]
        assert [len(page) for page in pages] == [4] * 5
        assert [row.request_id for page in pages for row in page] == [f"req_{number:03}" for number in range(20)]
        pages = [page async for page in journal.of_key(connection, "key_1", NOW, 6)]
        assert [len(page) for page in pages] == [4, 2]


async def test_recent_posts_are_those_that_are_still_there(pair: tuple[Database, Database]) -> None:
    """By key or account, by the time at which they were sent, and without those that were deleted since."""
    hour = timedelta(hours=1)
    old = NOW - 20 * hour
    rows = [
        a_write(an_id(NOW, 1), x_id="1"),
        a_write(an_id(NOW, 2), x_id="2"),
        a_write(an_id(NOW, 3), x_id="2", operation="delete_twitter"),
        a_write(an_id(NOW, 4), x_id=None, state="refused"),
        a_write(an_id(NOW, 5), x_id="5", key_id="key_2"),
        a_write(an_id(NOW, 6), x_id="6", user_id="9"),
        a_write(an_id(NOW, 7), x_id="1", operation="delete_twitter", state="refused"),
        a_write(an_id(old, 8), old, x_id="8"),
        a_write(an_id(old, 9), old, x_id="9", started_at=NOW + timedelta(seconds=1)),
        a_write(an_id(NOW, 10), x_id="10", state="found"),
        a_write(an_id(NOW, 11), x_id="11", operation="upload_media"),
    ]
    await store(pair[0], *rows)
    posts = ["post_twitter"]

    async def found(**of: str) -> list[str | None]:
        async with pair[1].read() as connection:
            return [row.x_id for row in await journal.recent(connection, NOW - hour, posts, 10, **of)]

    assert await found() == ["9", "10", "6", "5", "1"]
    assert await found(key_id="key_1") == ["9", "10", "6", "1"]
    assert await found(user_id="1") == ["9", "10", "5", "1"]
    async with pair[1].read() as connection:
        assert [row.x_id for row in await journal.recent(connection, NOW - hour, posts, 2)] == ["9", "10"]


async def test_a_later_call_is_known_by_when_it_started(pair: tuple[Database, Database]) -> None:
    """An approved call may have waited: its id is older than those of calls that it came after."""
    second = timedelta(seconds=1)
    early, middle, late = (an_id(NOW + number * second, number) for number in (1, 2, 3))
    unlike: dict[str, Any] = {"operation": "unlike_twitter", "target": "7"}
    like: dict[str, Any] = {"operation": "like_twitter", "target": "7"}
    await store(
        pair[0],
        a_write(early, started_at=NOW + 10 * second, **unlike),
        a_write(middle, **like),
        a_write(late, state="refused", **unlike),
    )

    async def newer(request_id: str, operation: str) -> bool:
        async with pair[1].read() as connection:
            return await journal.newer(connection, request_id, "1", operation, "7")

    assert await newer(middle, "unlike_twitter")
    assert not await newer(early, "like_twitter")
    assert not await newer(late, "like_twitter")
    assert await newer(an_id(NOW, 0), "like_twitter")
    assert not await newer(an_id(NOW + 11 * second, 0), "unlike_twitter")


async def test_costs_are_summed_by_what_is_asked_for(pair: tuple[Database, Database]) -> None:
    """Writes that X did or may have done, what remains of others, and reads by the day."""
    day = timedelta(days=1)
    left = [["add", "key_1", "usd", "2026-11-28", 15_000]]
    await store(
        pair[0],
        a_write(an_id(NOW, 1)),
        a_write(an_id(NOW, 2), state="unknown", cost_microusd=200_000, x_id=None),
        a_write(an_id(NOW, 3), state="refused", x_id=None),
        a_write(an_id(NOW, 4), state="refused", x_id=None, spent=left, operation="like_twitter"),
        a_write(an_id(NOW - day, 5), NOW - day, key_id="key_2", user_id="2", cost_microusd=None),
        a_write(an_id(NOW - 9 * day, 6), NOW - 9 * day),
    )
    reads = [
        ("key_1", "reads:user/search:1", "2026-11-28", 20),
        ("key_1", "reads_usd:user/search:1", "2026-11-28", 200_000),
        ("key_1", "reads_usd:user/search:1", "2026-11-18", 100_000),
        ("key_1", "usd", "2026-11-28", 400_000),
    ]
    async with pair[0].write() as connection:
        names = ("scope", "measure", "window", "amount")
        await connection.execute(insert(usage.usage), [dict(zip(names, row, strict=True)) for row in reads])

    async def rows(by: costs.By, **of: str) -> list[CostRow]:
        async with pair[1].read() as connection:
            return await costs.rows(connection, by, NOW - 2 * day, **of)

    assert await rows("key") == [CostRow("key_1", 3, 20, 430_000), CostRow("key_2", 1, 0, 0)]
    assert await rows("account") == [CostRow("1", 3, 20, 430_000), CostRow("2", 1, 0, 0)]
    assert await rows("operation", key_id="key_1") == [
        CostRow("like_twitter", 1, 0, 15_000),
        CostRow("post_twitter", 2, 0, 215_000),
        CostRow("user/search", 0, 20, 200_000),
    ]
    assert await rows("day") == [CostRow("2026-11-27", 1, 0, 0), CostRow("2026-11-28", 3, 20, 430_000)]


async def test_marks_of_texts_are_the_same_in_every_process_and_after_a_rotation(
    pair: tuple[Database, Database],
) -> None:
    """The key of the marks is sealed by the vault, which takes it along to a new key."""
    old, both = Vault(bytes(32)), Vault(bytes(range(32)), bytes(32))
    clock = Clock()
    await KeyRotation(pair[0], old, clock).enlist()
    made = await asyncio.gather(*(TextMarks(database, old, clock).mark("words") for database in pair * 5))
    assert len(set(made)) == 1
    assert len(made[0]) == 64
    assert await TextMarks(pair[0], old, clock).mark("other words") != made[0]
    rotation = KeyRotation(pair[0], both, clock)
    await rotation.enlist()
    assert await rotation.reseal(lambda _: None) == 0
    assert await rotation.retire() == [old.key_id]
    assert await TextMarks(pair[1], Vault(bytes(range(32))), clock).mark("words") == made[0]
