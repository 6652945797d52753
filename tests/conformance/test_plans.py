"""What runs by itself costs what there is to do, not what there is: every such statement finds its rows by an index."""

from __future__ import annotations

from contextlib import aclosing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from sqlalchemy import Engine, event

from birdwire.store.database import Database
from birdwire.store.engines import change_feed
from birdwire.store.tables import (
    api_keys,
    approvals,
    capabilities,
    idempotency,
    journal,
    kept_images,
    link_states,
    outbox,
    pauses,
    policies,
    processes,
    rate_windows,
    reconciliations,
    text_mark_keys,
    usage,
    vault_keys,
    x_sessions,
)
from birdwire.store.tables.idempotency import NameState
from birdwire.store.tables.journal import State
from birdwire.store.tables.usage import Charge
from harness.session_rows import session_row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from sqlalchemy.ext.asyncio import AsyncConnection

    Work = Callable[[AsyncConnection], Awaitable[object]]
    Statement = tuple[str, Any]

pytestmark = pytest.mark.engines("sqlite", "postgres")

NOW = datetime(2026, 4, 18, 7, tzinfo=UTC)
SMALL = ("processes", "vault_keys", "alembic_version", "destinations")
"""A row for each gateway that runs, for each vault key, for the schema, for the operator's destination."""

OVER = session_row(user_id="1")
STARTED = NameState.STARTED
PUT: dict[str, object] = {"state": "unknown", "status": None, "body": None}
SETTLED = journal.settled("req_1", {"state": "confirmed"}) | {"new_spent": None, "new_cost_microusd": None}
HELD = idempotency.held("key_1", "n", "req_1")
ENDED = HELD | {f"new_{name}": value for name, value in PUT.items()}

CHARGES = (
    Charge("add", "key_1", "usd", "2026-04", 1, 9),
    Charge("gap", "key_1", "gap:post_twitter", "", 1, 0),
    Charge("text", "key_1", "text", "feed", 1, 0),
)
ROW = journal.attempt("req_01KNZZZZZZZZZZZZZZZZZZZZZZ", "key_1", "", "like_twitter", 403, "paused", NOW)

KEPT = {"key_id": "key_1", "media_id": "1", "media_type": "image/png", "size": 1, "sha256": "", "blob_ct": b""}
KEPT |= {"until": NOW}


async def _charge(connection: AsyncConnection) -> None:
    for part in (*usage.charging(CHARGES, "req_1"), *usage.giving_back(usage.encode(CHARGES), "req_1")):
        await connection.execute(part.statement, part.row)


async def _report(connection: AsyncConnection) -> None:
    part = outbox.adding_if_spent(outbox.BudgetNews("evt_1", NOW, {}, NOW, ("key_1", "usd", "2026-04")), 1)
    await connection.execute(part.statement, part.row)


async def _pages(connection: AsyncConnection) -> None:
    async for _ in journal.of_key(connection, "key_1", NOW, 10):
        pass


STATEMENTS: dict[str, Work] = {
    "sweep: sessions that are over": lambda c: x_sessions.over(c, "x", NOW, 500),
    "sweep: a session, once more": lambda c: x_sessions.get(c, "xs_1"),
    "sweep: its end": lambda c: x_sessions.remove(c, "xs_1"),
    "sweep: tokens to be revoked": lambda c: x_sessions.due_revocations(c, "x", NOW, 20),
    "sweep: a token that X knows no more": lambda c: x_sessions.drop_revocation(c, "rv_1"),
    "sweep: a token for later": lambda c: x_sessions.postpone_revocation(c, "rv_1", NOW, 1),
    "a key is revoked": lambda c: api_keys.revoke(c, "key_1", NOW),
    "a key is revoked or changed: its sessions": lambda c: x_sessions.end_with_key(c, "key_1"),
    "sweep: another link of the account": lambda c: x_sessions.shared(c, OVER, NOW),
    "a key is held": lambda c: api_keys.hold(c, "key_1"),
    "start, reconcile: what was begun": lambda c: journal.expedite_started(c, NOW),
    "reconcile: what is due": lambda c: journal.due(c, NOW, 1_000),
    "reconcile: an account's": lambda c: journal.open_of(c, "1", 1_000),
    "reconcile: an account's, now": lambda c: journal.expedite(c, "1", NOW),
    "reconcile: posts that are known": lambda c: journal.made(c, ["1", "2"]),
    "a refused edit: what is known of the post": lambda c: journal.of_post(c, "1", "2"),
    "reconcile: a row": lambda c: journal.change(c, "req_1", {"looks": 1}, while_in=State.UNKNOWN),
    "reconcile: an account's name": lambda c: x_sessions.named(c, "1"),
    "reconcile: a key's name": lambda c: api_keys.named(c, "key_1"),
    "reconcile: an account's turn": lambda c: reconciliations.claim(c, "1", NOW, NOW),
    "reconcile: its end": lambda c: reconciliations.release(c, "1", NOW),
    "reconcile: turns of long ago": lambda c: reconciliations.purge(c, NOW),
    "journal: a row that was begun": lambda c: journal.get(c, "req_1"),
    "a guarded write: whether a later one exists": lambda c: journal.newer(c, "req_1", "1", "like_twitter", "2"),
    "a guarded write: its charges": _charge,
    "a guarded write: what its budget has used": _report,
    "a guarded write: the end of its row": lambda c: c.execute(journal.SETTLE_CHARGED, SETTLED),
    "a guarded write: a snapshot": lambda c: usage.amounts(c, [("key_1", "usd", one) for one in ("2026-04", "")]),
    "a guarded write: its text": lambda c: usage.marks_at(c, [("key_1", "feed"), ("gateway", "feed")]),
    "a guarded key: its policies": lambda c: policies.latest(c, ["key_1", "account:1", "gateway"]),
    "a guarded key: its pauses": lambda c: pauses.of(c, ["key_1", "account:1", "gateway"]),
    "a guarded key: the key of its marks": lambda c: text_mark_keys.find(c, "texts"),
    "a guarded key: its refusals": lambda c: journal.refused_since(c, "key_1", NOW, "x_refused"),
    "attempts: one": lambda c: journal.add_attempts(c, [ROW]),
    "attempts: those of an hour": lambda c: journal.bump_hour(c, ROW, 3),
    "attempts: how many": lambda c: journal.count_attempts(c, "key_1", NOW),
    "report: a key's writes": _pages,
    "purge: attempts": lambda c: journal.purge_attempts(c, NOW, 500),
    "purge: usage": lambda c: usage.purge(c, NOW, 500),
    "purge": lambda c: journal.purge(c, "req_1", NOW, 500),
    "names: of long ago": lambda c: idempotency.purge(c, NOW, 500),
    "names: one that was found": lambda c: idempotency.find(c, "key_1", "n"),
    "names: one that changes": lambda c: idempotency.change(c, "key_1", "n", PUT, held_by="req_1", while_in=STARTED),
    "names: one that ends": lambda c: c.execute(idempotency.SETTLE, ENDED),
    "names: one that goes": lambda c: c.execute(idempotency.RELEASE, HELD),
    "names: whether one is held": lambda c: idempotency.holds(c, "key_1", "req_1"),
    "ledger: what others saw": lambda c: rate_windows.changed(c, "client", NOW, NOW, 1_000),
    "ledger: windows that are over": lambda c: rate_windows.purge(c, NOW),
    "names: one that is awaiting": lambda c: approvals.answers(c, "req_1", NOW),
    "approvals: what is due": lambda c: approvals.due(c, NOW, 100),
    "approvals: how many wait": approvals.count_waiting,
    "approvals: how many of a key wait": lambda c: approvals.count_waiting(c, "key_1"),
    "approvals: those that wait": lambda c: approvals.waiting(c, 100),
    "approvals: those of a key that wait": lambda c: approvals.waiting(c, 100, key_id="key_1"),
    "approvals: the same payload": lambda c: approvals.same_payload(c, "key_1", "0" * 64),
    "approvals: those that have ended": lambda c: approvals.settled(c, ["req_1", "req_2"]),
    "approvals: one": lambda c: approvals.get(c, "req_1", hold=True),
    "approvals: one that ends": lambda c: approvals.close(c, "req_1", NOW),
    "approvals: its images": lambda c: approvals.files_kept(c, "req_1"),
    "approvals: the images of a key": lambda c: approvals.bytes_kept(c, "key_1"),
    "approvals: links": lambda c: approvals.links(c, [b"hash", b"hush"]),
    "uploads: one that is kept": lambda c: kept_images.add(c, KEPT),
    "uploads: those of a post": lambda c: kept_images.of_key(c, "key_1", ["1", "2"], NOW),
    "uploads: how much a key keeps": lambda c: kept_images.bytes_kept(c, "key_1"),
    "uploads: the oldest": lambda c: kept_images.drop_oldest(c, "key_1", 0),
    "uploads: of long ago": lambda c: kept_images.purge(c, NOW, 500),
    "presence: where one serves": lambda c: processes.address(c, NOW),
    "presence": lambda c: processes.renew(c, "gw_1", NOW),
    "presence: whether one runs": lambda c: processes.alive(c, "gw_1", NOW),
    "presence: of long ago": lambda c: processes.purge(c, NOW),
    "start: the vault's keys": vault_keys.list_all,
    "start: the only process": lambda c: processes.remove_others(c, "gw_1"),
    "first call: a key": lambda c: api_keys.find(c, b"hash"),
    "first calls: several keys": lambda c: api_keys.find_all(c, [b"hash", b"hush"]),
    "first call: its session": lambda c: x_sessions.of_key(c, "key_1", "x"),
    "first call: what the app may do": lambda c: capabilities.of_app(c, "client"),
    "a call: what the app may do has changed": lambda c: capabilities.hold(c, "client", "like_twitter"),
    "status: what a key met": lambda c: capabilities.met_by(c, "key_1", "client"),
    "a capped call": lambda c: api_keys.spend_write(c, "key_1", "2026-04-18", 3),
    "a link: states of long ago": lambda c: link_states.trim(c, "key_1", keep=20, ended_before=NOW, expired_before=NOW),
    "a link: its state": lambda c: link_states.find(c, b"hash"),
    "a link: what became of its state": lambda c: link_states.outcomes(c, [b"hash", b"hush"]),
    "a link: its state is taken": lambda c: link_states.take(c, b"hash", NOW),
    "a link: one that is undone": lambda c: x_sessions.by_undo(c, "x", [b"hash", b"hush"]),
    "notifications: an event": lambda c: outbox.add(c, "paused", NOW, {}),
    "notifications: those that are due": lambda c: outbox.due(c, NOW, 16),
    "notifications: how many wait": outbox.pending,
    "notifications: one that is tested": lambda c: outbox.get(c, "evt_1"),
    "notifications: one that was tried": lambda c: outbox.change(c, "evt_1", 0, {"tries": 1}),
    "notifications: one that gets a link": lambda c: outbox.add_extra(c, "evt_1", 0, b""),
    "notifications: those that are dropped": outbox.drop_pending,
    "notifications: of long ago": lambda c: outbox.purge(c, NOW, 500),
    "a change is announced": lambda c: change_feed.announce(c, "key_1"),
}


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A new one, with a key."""
    async with aclosing(_Opened(database_url)) as opened:
        await opened.database.prepare(upgrade=False)
        async with opened.database.write() as connection:
            row = {"key_id": "key_1", "mode": "test", "label": "a key", "tier": "free", "created_at": NOW}
            await api_keys.add(connection, row)
        yield opened.database


class _Opened:
    def __init__(self, url: str) -> None:
        self.database = Database(url)

    async def aclose(self) -> None:
        await self.database.close()


@contextmanager
def overheard() -> Iterator[list[Statement]]:
    """Every statement that SQLAlchemy hands to a driver, with its values."""
    heard: list[Statement] = []

    def hear(_connection: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
        heard.append((statement, values))

    event.listen(Engine, "before_cursor_execute", hear)
    try:
        yield heard
    finally:
        event.remove(Engine, "before_cursor_execute", hear)


async def plan(connection: AsyncConnection, statement: Statement) -> list[str]:
    """How the engine would go about it, a step a line."""
    sql, values = statement
    if connection.dialect.name == "sqlite":
        rows = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values)
        return [str(row.detail) for row in rows]
    await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")  # a small table is read whole, index or not
    return [str(row[0]) for row in await connection.exec_driver_sql(f"EXPLAIN {sql}", values)]


def whole(steps: list[str]) -> list[str]:
    """The steps that read all of a table, or all of an index, and are none of a small table's."""
    read = [step for step in steps if step.startswith("SCAN ") or "Seq Scan on " in step]
    return [step for step in read if not any(name in step for name in SMALL)]


@pytest.mark.parametrize("name", STATEMENTS)
async def test_background_work_scans_no_whole_table(database: Database, name: str) -> None:
    """With a million sessions and ten million rows, neither a start nor a round of the chores takes longer."""
    with overheard() as heard:
        async with database.write() as connection:
            await STATEMENTS[name](connection)
    told = [one for one in heard if one[0].startswith(("SELECT", "UPDATE", "DELETE", "INSERT"))]
    told = [one for one in told if "pg_notify" not in one[0] and "pg_current_xact" not in one[0]]
    steps: list[str] = []
    async with database.write() as connection:
        for statement in told:
            steps += await plan(connection, statement)
    assert whole(steps) == []


async def test_a_table_that_is_read_whole_is_noticed(database: Database) -> None:
    """The test above can fail."""
    with overheard() as heard:
        async with database.read() as connection:
            await x_sessions.list_all(connection)
    async with database.write() as connection:
        assert whole(await plan(connection, heard[0])) != []
        assert whole(await plan(connection, ("SELECT key_id FROM api_keys WHERE label = 'a key'", ()))) != []


async def test_a_session_that_is_over_is_found_among_those_that_are_not(database: Database) -> None:
    """By its moment, and by its issuer."""
    row = {"key_id": "key_1", "state": "active", "gen": 1, "access_ct": b"", "expires_at": NOW, "scopes": ""}
    ends = {"lives": None, "later": NOW + timedelta(seconds=1), "over": NOW, "long": NOW - timedelta(days=1)}
    async with database.write() as connection:
        for name, over_at in ends.items():
            await x_sessions.add(
                connection, row | {"session_id": name, "issuer": "x", "over_at": over_at, "created_at": NOW}
            )
        await x_sessions.add(
            connection, row | {"session_id": "other", "issuer": "y", "over_at": NOW, "created_at": NOW}
        )
        found = await x_sessions.over(connection, "x", NOW, 10)
        assert [one.session_id for one in found] == ["long", "over"]
        await api_keys.revoke(connection, "key_1", NOW)
        await x_sessions.end_with_key(connection, "key_1")
        assert len(await x_sessions.over(connection, "x", NOW, 10)) == 4
