"""The outbox on both engines: events of concurrent processes, transactions that fail, and a removed destination."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from sqlalchemy import Engine, event, text

from birdwire.accounts.tokens import binding_of
from birdwire.api.errors import GatewayError
from birdwire.runtime.clock import Clock
from birdwire.store.database import Database, StorageDownError
from birdwire.store.tables import api_keys, capabilities, destinations, outbox, store_facts, x_sessions
from birdwire.store.tables.x_sessions import LinkState
from birdwire.x.limits.capabilities import Capabilities
from harness.approval_replicas import SECRET as TEXT
from harness.approval_replicas import Replica, a_post, two_replicas
from harness.auth_server import REFUSED, SECRET, pair, processes
from harness.outbox import Outbox
from harness.session_rows import session_row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncConnection

    from harness.auth_server import Process
    from harness.gateway import MovableClock

pytestmark = pytest.mark.engines("sqlite", "postgres")

NOW = datetime(2026, 11, 28, 5, 30, tzinfo=UTC)
LEASE_S = 31
CREDITS, CAP = "x_credits_depleted", "x_spend_cap"


@pytest_asyncio.fixture
async def pair_of(database_url: str) -> AsyncIterator[tuple[Database, Database]]:
    """Open one new database twice, as two gateways do. Its destination is on."""
    async with AsyncExitStack() as stack:
        opened = (Database(database_url), Database(database_url))
        for database in opened:
            stack.push_async_callback(database.close)
            await database.prepare(upgrade=False)
        await Outbox(opened[0]).switch(on=True)
        yield opened


@pytest_asyncio.fixture
async def two(database_url: str) -> AsyncIterator[tuple[MovableClock, list[Process]]]:
    """Start two processes that renew tokens on one database, whose destination is on."""
    async with processes(database_url, 2) as made:
        await Outbox(made[1][0].database).switch(on=True)
        yield made


async def expired(two: tuple[MovableClock, list[Process]]) -> tuple[str, Outbox]:
    """Link an account whose token has expired; return its key, and the events from here on."""
    clock, (a, _) = two
    key_id, events = await a.link(), Outbox(a.database)
    clock.advance(seconds=7_300)
    await events.new()
    return key_id, events


async def refused(process: Process, key_id: str) -> str:
    """Return why a call got no token."""
    with pytest.raises(GatewayError) as caught:
        await process.token(key_id)
    return caught.value.reason


# Links.


async def test_a_link_that_is_given_up_and_saved_after_all_is_two_events(
    two: tuple[MovableClock, list[Process]],
) -> None:
    """X's answer to the first process comes after the second one was refused."""
    clock, (a, b) = two
    key_id, events = await expired(two)
    late = asyncio.create_task(a.token(key_id))
    await a.asked(1)
    clock.advance(seconds=LEASE_S)
    b.x.answers.put_nowait(REFUSED)
    assert await refused(b, key_id) == "x_session_expired"
    about = {"key": {"key_id": key_id, "label": "ada"}, "account": {"user_id": "id of ada", "username": "ada"}}
    assert await events.new() == [("account.needs_relink", about | {"reason": "refresh_lost_reply"})]
    a.x.answers.put_nowait(pair(2))
    assert await late == f"{SECRET}-at-2"
    assert await events.new() == [("account.recovered", about)]
    row = await b.row(key_id)
    assert (row.state, row.why, row.gen, row.tries) == (LinkState.ACTIVE, None, 2, 0)
    # The pair that took the slow path can be used and renewed by any process.
    assert await b.token(key_id) == f"{SECRET}-at-2"
    clock.advance(seconds=7_300)
    b.x.answers.put_nowait(pair(3))
    assert await b.token(key_id) == f"{SECRET}-at-3"
    assert b.x.sent[-1] == f"{SECRET}-rt-2"
    assert await events.new() == []


async def test_a_pair_whose_recovery_fails_is_stored_with_the_next_try(
    two: tuple[MovableClock, list[Process]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database fails after the event was inserted: the pair is spent at X, and must not be lost."""
    clock, (a, b) = two
    key_id, events = await expired(two)
    late = asyncio.create_task(a.token(key_id))
    await a.asked(1)
    clock.advance(seconds=LEASE_S)
    b.x.answers.put_nowait(REFUSED)
    await refused(b, key_id)
    await events.new()
    add, states = outbox.add, []

    async def insert_and_fail(connection: Any, *values: Any) -> None:
        await add(connection, *values)
        monkeypatch.setattr(outbox, "add", add)
        states.append((await x_sessions.of_key(connection, key_id, "sandbox"))[0].state)
        raise StorageDownError("a test")

    monkeypatch.setattr(outbox, "add", insert_and_fail)
    a.x.answers.put_nowait(pair(2))
    assert await late == f"{SECRET}-at-2"
    assert states == [LinkState.ACTIVE]
    assert await events.types() == ["account.recovered"]


async def test_a_pending_link_that_x_refuses_was_never_linked(two: tuple[MovableClock, list[Process]]) -> None:
    """It ends without an event; the link in use stays."""
    _, (a, _) = two
    key_id, events = await expired(two)
    row, _ = await a.links.store_pending(key_id, pair(1, "new"), ["like.write"], None)
    await a.links.require_relink(row, "refused")
    assert (await a.row(key_id)).state == LinkState.ACTIVE
    assert await events.new() == []


async def test_a_refusal_that_races_with_a_save_is_two_events_or_none(
    two: tuple[MovableClock, list[Process]],
) -> None:
    """Whichever comes first, the link is active at the end; a receiver of the first event also gets the second."""
    _, (a, b) = two
    key_id, events = await expired(two)
    orders = set()
    for number in range(2, 32):
        row = await a.row(key_id)
        values = {"scopes": row.scopes, "refreshed_at": NOW}
        values |= a.links.tokens.seal(binding_of(row), row.gen + 1, pair(number))
        saving = a.refresher._store(row, values, pair(number))  # noqa: SLF001 - the step that races
        marking = b.links.require_relink(row, "refused")
        if number % 3 == 0:
            await marking
            await saving
        else:
            await asyncio.gather(*((saving, marking) if number % 3 == 1 else (marking, saving)))
        row = await a.row(key_id)
        assert (row.state, row.gen) == (LinkState.ACTIVE, number)
        assert a.links.tokens.open(row, "refresh") == f"{SECRET}-rt-{number}"
        found = await events.types()
        assert found in ([], ["account.needs_relink", "account.recovered"])
        orders.add(len(found))
    assert orders == {0, 2}


async def test_a_save_that_changes_no_state_costs_no_transaction_of_its_own(
    two: tuple[MovableClock, list[Process]],
) -> None:
    """The claim is one, and the pair is stored by one statement of a group commit, as before there were events."""
    _, (a, _) = two
    key_id, events = await expired(two)
    heard: list[str] = []

    def hear(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        heard.append(statement)

    a.x.answers.put_nowait(pair(2))
    event.listen(Engine, "before_cursor_execute", hear)
    try:
        assert await a.token(key_id) == f"{SECRET}-at-2"
    finally:
        event.remove(Engine, "before_cursor_execute", hear)
    updates = [statement.split()[:2] for statement in heard if not statement.startswith(("SELECT", "PRAGMA"))]
    assert updates.count(["UPDATE", "x_sessions"]) == 1
    assert not [statement for statement in heard if "outbox" in statement or "access_ct=" in statement]
    assert await events.new() == []


# Lost posts.


@pytest.mark.parametrize("posts", [1, 0])
async def test_two_processes_that_reach_the_same_verdict_write_one_event(database_url: str, posts: int) -> None:
    """Only the one that changed the row does; the other one's change finds it settled."""
    async with two_replicas(database_url) as (first, second):
        events = Outbox(first.database)
        await events.switch(on=True)
        await _lose(first, "req_1")
        shown = [a_post(TEXT, first.clock.now())] * posts
        rounds = [one.reconciler(shown) for one in (first, second)]
        for _ in range(6):
            first.clock.advance(seconds=31)
            await asyncio.gather(*(one.round() for one in rounds))
        [(kind, data)] = await events.new()
        assert (kind, data.pop("key"), data.pop("account")) == (
            "request.settled",
            {"key_id": first.key_id, "label": "test"},
            {"user_id": "1", "username": None},
        )
        outcome = {"outcome": "found", "post_id": "77"} if posts else {"outcome": "not_found", "post_id": None}
        assert data == {"request_id": "req_1", "operation": "post_twitter"} | outcome


async def _lose(replica: Replica, request_id: str) -> None:
    """Leave a post with an unknown outcome."""
    record = replica.journal.open(replica.entry(request_id))
    await record.begin()
    await record.failed(GatewayError("x_timeout", outcome="unknown"))


async def test_a_verdict_that_is_not_stored_is_no_event(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database fails after the event was inserted; the next check writes both."""
    async with two_replicas(database_url) as (first, _):
        events, add = Outbox(first.database), outbox.add
        await events.switch(on=True)
        await _lose(first, "req_1")

        async def insert_and_fail(connection: Any, *values: Any) -> None:
            await add(connection, *values)
            monkeypatch.setattr(outbox, "add", add)
            raise StorageDownError("a test")

        monkeypatch.setattr(outbox, "add", insert_and_fail)
        reconciler = first.reconciler([a_post(TEXT, first.clock.now())])
        first.clock.advance(seconds=31)
        await reconciler.round()
        assert ((await first.row("req_1")).state, await events.new()) == ("unknown", [])
        first.clock.advance(minutes=2)
        await reconciler.round()
        assert ((await first.row("req_1")).state, await events.types()) == ("found", ["request.settled"])


# What X allows the app.


async def test_replicas_that_learn_the_same_write_one_event(pair_of: tuple[Database, Database]) -> None:
    """Each has its own memory of what X allows; the row decides."""
    events = Outbox(pair_of[0])
    replicas = [Capabilities(database, Clock(), "client") for database in pair_of]

    async def learn(reason: str | None) -> list[Any]:
        await asyncio.gather(*(one.record("like_twitter", reason, "key_1") for one in replicas))
        return [(data["allowed"], data["reason"]) for _, data in await events.new()]

    assert await learn(None) == []
    assert await learn(CREDITS) == [(False, CREDITS)]
    assert await learn(CAP) == []
    assert await learn(None) == [(True, None)]
    assert await learn(None) == []


async def test_replicas_that_learn_the_first_refusal_write_one_event(pair_of: tuple[Database, Database]) -> None:
    """There is no row yet that they could lock."""
    events = Outbox(pair_of[0])
    for number in range(20):
        replicas = [Capabilities(database, Clock(), f"client {number}") for database in pair_of]
        await asyncio.gather(*(one.record("like_twitter", CREDITS, "key_1") for one in replicas))
        assert await events.new() == [("x.changed", {"operation": "like_twitter", "allowed": False, "reason": CREDITS})]


async def test_a_replica_that_missed_a_change_reports_none_twice(pair_of: tuple[Database, Database]) -> None:
    """One learnt of the refusal and of its end; the other one, which knows of neither, reports only what is new."""
    events, clock = Outbox(pair_of[0]), Clock()
    first, second = [Capabilities(database, clock, "client") for database in pair_of]
    await second.record("like_twitter", None, "key_1")
    await first.record("like_twitter", CREDITS, "key_1")
    await first.record("like_twitter", None, "key_1")
    assert len(await events.new()) == 2
    await second.record("like_twitter", CREDITS, "key_1")
    assert len(await events.new()) == 1
    async with pair_of[0].read() as connection:
        [row] = await capabilities.of_app(connection, "client")
    assert row.allowed_at is not None
    assert row.refused_at is not None
    assert row.refused_at > row.allowed_at


# Names.


async def test_an_account_is_named_as_its_newest_link_has_it(pair_of: tuple[Database, Database]) -> None:
    """Through any key and any issuer; an account without a link has no name."""
    database = pair_of[0]
    async with database.write() as connection:
        row = {"key_id": "key_1", "mode": "test", "label": "growth", "tier": "free", "created_at": NOW}
        await api_keys.add(connection, row)
        for issuer, number, name in (("x", 1, "old"), ("y", 2, "ada"), ("x", 3, None), ("z", 1, "older")):
            made = session_row(session_id=f"xs_{issuer}{number}", issuer=issuer, user_id="1", username=name)
            columns = {column.name: getattr(made, column.name) for column in x_sessions.x_sessions.columns}
            await x_sessions.add(connection, columns | {"created_at": NOW + timedelta(seconds=number)})
        assert await x_sessions.named(connection, "1") == {"user_id": "1", "username": "ada"}
        assert await x_sessions.named(connection, "2") == {"user_id": "2", "username": None}
        assert await api_keys.named(connection, "key_1") == {"key_id": "key_1", "label": "growth"}
        assert await api_keys.named(connection, "key_2") == {"key_id": "key_2", "label": "key_2"}


# The destination.


async def test_an_event_during_the_removal_of_the_destination_fails_nothing(
    pair_of: tuple[Database, Database],
) -> None:
    """The event waits for the removal, and then there is no destination: what it is about is written all the same."""
    first, second = pair_of
    removed = asyncio.Event()

    async def remove() -> None:
        async with first.write() as connection:
            await destinations.remove(connection)
            removed.set()
            await _another_waits(connection)

    async def emit() -> None:
        await removed.wait()
        async with second.write() as connection:
            await store_facts.state(connection, "what is true", "a test")
            await outbox.add(connection, "resumed", NOW, {})

    await asyncio.gather(remove(), emit())
    assert await Outbox(first).rows() == []
    async with first.read() as connection:
        assert await store_facts.known(connection, "what is true")


async def _another_waits(connection: AsyncConnection) -> None:
    """Wait until another transaction waits for this one; on SQLite, it cannot even start."""
    if connection.dialect.name == "sqlite":
        return
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    async with asyncio.timeout(20):
        while not (await connection.execute(waiting)).scalar():  # noqa: ASYNC110 - nothing reports it
            await asyncio.sleep(0.01)
