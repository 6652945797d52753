"""What only a server can do to the store: go away, come back, lose a commit's answer, let two wait for each other."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import bindparam, insert, text, update
from typer.testing import CliRunner

from birdwire.cli.command_line import build
from birdwire.store.database import Database, Part, StorageDownError, StoreError
from birdwire.store.engines import postgres as postgres_store
from birdwire.store.engines.postgres import CONNECTIONS, PostgreSQL
from birdwire.store.schema import RowRefusedError
from birdwire.store.tables import api_keys, idempotency, journal, usage
from birdwire.store.tables.usage import Charge, amounts, charging
from harness import first_schema
from harness.engines import PASSWORD
from harness.gateway import RunningGateway, bound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
    from pathlib import Path

    from harness.engines import Postgres

pytestmark = pytest.mark.engines("postgres")

NOW = datetime(2026, 4, 18, 7, tzinfo=UTC)
ADD = insert(journal.journal)
RENAME = (
    update(journal.journal)
    .where(journal.journal.c.request_id == bindparam("of"))
    .values(operation=bindparam("operation"))
)


def an_entry(request_id: str) -> dict[str, Any]:
    """A journal row."""
    row = {"request_id": request_id, "key_id": "key_1", "user_id": "1", "operation": "like_twitter", "asked": b""}
    return row | {"state": "confirmed", "created_at": NOW, "looks": 0, "reads": 0}


def a_key(key_id: str) -> dict[str, Any]:
    """A key's row."""
    return {"key_id": key_id, "mode": "test", "label": "", "tier": "free", "rpm": 1, "created_at": NOW}


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that happens in another program."""
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 - it happens in another program
            await asyncio.sleep(0)


@dataclass
class Wire:
    """A way to the server that can be cut in the middle of a commit: before it arrives, or before its answer does."""

    postgres: Postgres
    cut: Literal["before", "after"] | None = None
    port: int = 0
    cuts: int = 0
    opened: int = 0
    dead: int = 0
    """The first N connections silently drop all data, as behind a firewall that has forgotten them."""

    swallowed: list[bytes] = field(default_factory=list)
    carrying: set[asyncio.Task[None]] = field(default_factory=set)

    def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection more."""
        self.opened += 1
        self.carrying.add(asyncio.create_task(self._carry(self.opened, reader, writer)))

    async def rest(self) -> None:
        """Wait until every connection has ended, whose ends are closed by then."""
        async with asyncio.timeout(20):
            await asyncio.gather(*self.carrying, return_exceptions=True)

    async def _carry(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        above, below = await asyncio.open_connection("127.0.0.1", self.postgres.port)
        down = asyncio.create_task(_pump(above, writer))
        try:
            while data := await reader.read(1 << 16):
                if number <= self.dead:
                    self.swallowed.append(data)
                    continue
                if self.cut and b"COMMIT" in data:
                    down.cancel()
                    if self.cut == "after":
                        below.write(data)
                        await asyncio.wait([down])
                        await above.read(1)  # the server has answered
                    self.cut, self.cuts = None, 1
                    break
                below.write(data)
        finally:
            down.cancel()
            await asyncio.wait([down])
            for end in (writer, below):
                end.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)


@pytest_asyncio.fixture
async def wire(postgres: Postgres) -> AsyncIterator[Wire]:
    """The way to the server."""
    wire = Wire(postgres)
    server = await asyncio.start_server(wire.carry, "127.0.0.1", 0)
    wire.port = server.sockets[0].getsockname()[1]
    yield wire
    server.close()
    await wire.rest()


@pytest_asyncio.fixture
async def over_the_wire(wire: Wire, postgres: Postgres, database_url: str) -> AsyncIterator[Database]:
    """The database, reached by it."""
    database = Database(postgres.url(urlsplit(database_url).path[1:], wire.port))
    yield database
    await database.close()


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """The database, reached directly, with a key in it."""
    database = Database(database_url)
    async with database.write() as connection:
        await api_keys.add(connection, a_key("key_1"))
    yield database
    await database.close()


@contextlib.contextmanager
def stopped(postgres: Postgres) -> Iterator[None]:
    """The server crashes, and is started again at the end."""
    postgres.stop()
    try:
        yield
    finally:
        postgres.start()


async def has(database: Database, key_id: str) -> bool:
    """Whether a key is there."""
    async with database.read() as connection:
        return await api_keys.get(connection, key_id) is not None


@pytest.mark.trust("F16")
@pytest.mark.parametrize("cut", ["before", "after"])
async def test_a_commit_whose_answer_is_lost_is_reported_correctly(
    over_the_wire: Database, database: Database, wire: Wire, cut: Literal["before", "after"]
) -> None:
    """PostgreSQL knows what became of the transaction: the block ends well or says that nothing was changed."""

    async def add() -> None:
        async with over_the_wire.write() as connection:
            await api_keys.add(connection, a_key("key_2"))
            wire.cut = cut

    if cut == "after":
        await add()
    else:
        with pytest.raises(StorageDownError):
            await add()
    assert wire.cuts == 1
    assert await has(database, "key_2") == (cut == "after")


@pytest.mark.trust("F16")
@pytest.mark.parametrize("cut", ["before", "after"])
async def test_rows_whose_commits_answer_is_lost_are_reported_correctly(
    over_the_wire: Database, database: Database, wire: Wire, cut: Literal["before", "after"]
) -> None:
    """No row is said to be there that is not, and none is said to be lost that is there."""
    await over_the_wire.append(ADD, an_entry("req_0"))
    wire.cut = cut
    results = await asyncio.gather(
        *(over_the_wire.append(ADD, an_entry(f"req_{number}")) for number in range(1, 9)), return_exceptions=True
    )
    assert wire.cuts == 1
    said = {result if result is True else type(result) for result in results}
    assert said == {True if cut == "after" else StorageDownError}
    async with database.read() as connection:
        there = await journal.get(connection, "req_8") is not None
    assert there == (cut == "after")


@pytest.mark.parametrize("cut", ["before", "after"])
async def test_units_whose_commits_answer_is_lost_are_reported_correctly(
    over_the_wire: Database, database: Database, wire: Wire, cut: Literal["before", "after"]
) -> None:
    """The counters report what was charged; a unit that a limit refuses is refused either way."""
    charges = [Charge("add", "key_1", "writes:*", "2026-04-18", 1, 5)]
    await over_the_wire.append(ADD, an_entry("req_0"))
    wire.cut = cut
    results = await asyncio.gather(
        *(
            over_the_wire.append_all([*charging(charges, ""), Part(ADD, an_entry(f"req_{number}"))])
            for number in range(1, 9)
        ),
        return_exceptions=True,
    )
    assert wire.cuts == 1
    said = [type(result) if isinstance(result, Exception) else result for result in results]
    assert said == ([None] * 5 + [1] * 3 if cut == "after" else [StorageDownError] * 8)
    async with database.read() as connection:
        found = await amounts(connection, [("key_1", "writes:*", "2026-04-18")])
        there = [await journal.get(connection, f"req_{number}") is not None for number in range(1, 9)]
    assert there == [cut == "after"] * 5 + [False] * 3
    assert sum(found.values()) == sum(there)


async def test_a_unit_that_meets_a_deadlock_is_written_again(database: Database) -> None:
    """Once: its charge is not counted for each try."""
    charge = Charge("add", "key_1", "writes:*", "2026-04-18", 1, None)
    await database.append_all([*charging([charge], ""), Part(ADD, an_entry("req_1"))])

    async def unit_waits() -> bool:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        async with database.read() as connection:
            return bool((await connection.execute(text(query))).scalar())

    with contextlib.suppress(StorageDownError):  # on a slow machine it is this one that PostgreSQL ends
        async with database.write() as connection:
            await connection.execute(text("UPDATE journal SET operation = 'written' WHERE request_id = 'req_1'"))
            parts = [*charging([charge], ""), Part(RENAME, {"of": "req_1", "operation": "renamed"})]
            writing = asyncio.create_task(database.append_all(parts))
            await until(unit_waits)
            await connection.execute(text("UPDATE usage SET previous = 7"))
    assert await writing is None
    async with database.read() as connection:
        assert await amounts(connection, [("key_1", "writes:*", "2026-04-18")]) == {
            ("key_1", "writes:*", "2026-04-18"): 2
        }


async def test_no_append_waits_for_a_unit_whose_rows_another_process_holds(database: Database) -> None:
    """Such as a replica that froze in its transaction: a write without charges neither waits for it nor fails."""
    charge = Charge("add", "gateway", "usd", "2026-04-18", 1, None)
    await database.append_all(charging([charge], ""))

    async def unit_waits() -> bool:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        async with database.read() as connection:
            return bool((await connection.execute(text(query))).scalar())

    async with database.write() as connection:
        await connection.execute(text("UPDATE usage SET previous = 7"))
        writing = asyncio.create_task(database.append_all(charging([charge], "")))
        await until(unit_waits)
        assert await database.append(ADD, an_entry("req_1"))
        waited = await unit_waits()
    with contextlib.suppress(StorageDownError):  # on a slow machine its wait has ended
        assert await writing is None
    assert waited


async def test_a_purge_locks_rows_in_the_order_of_units(database: Database) -> None:
    """Otherwise a unit that begins one of the ended windows again and the purge could wait for each other."""
    marks = [Charge("text", scope, "text", "m", 1, 0) for scope in ("b", "a")]
    hour = Charge("add", "key_1", "writes:*", "2026-04-18T05", 1, None)
    for charge in (*marks, hour):
        assert await database.append_all(charging([charge], "")) is None
    purging: asyncio.Task[int] | None = None

    async def purge() -> int:
        async with database.write() as connection:
            return await usage.purge(connection, datetime.now(UTC), 10)

    async def purge_waits() -> bool:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        async with database.read() as connection:
            return bool((await connection.execute(text(query))).scalar())

    async with database.write() as connection:
        await connection.execute(text("UPDATE text_marks SET previous_ms = 7 WHERE scope = 'a'"))
        purging = asyncio.create_task(purge())
        await until(purge_waits)
        await connection.execute(text("UPDATE text_marks SET previous_ms = 7 WHERE scope = 'b'"))
        await connection.execute(text("UPDATE usage SET previous = 7"))
    assert await purging == 2
    async with database.read() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM text_marks"))).scalar() == 0


@pytest.mark.trust("F15")
async def test_a_server_that_dies_in_a_transaction_leaves_nothing_of_it(database: Database, postgres: Postgres) -> None:
    """No half commit; the next call after its return works on fresh connections."""

    async def add() -> None:
        async with database.write() as connection:
            await api_keys.add(connection, a_key("key_2"))
            postgres.stop()

    try:
        with pytest.raises(StorageDownError):
            await add()
        with pytest.raises(StorageDownError):
            await database.append(ADD, an_entry("req_1"))
        with pytest.raises(StorageDownError):
            await database.probe()
    finally:
        postgres.start()
    await database.probe()
    assert not await has(database, "key_2")
    await database.append(ADD, an_entry("req_1"))


@pytest.mark.trust("F15")
async def test_a_pool_that_is_used_up_refuses_after_a_while(database: Database) -> None:
    """A caller waits for seconds at most, and the others go on."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(CONNECTIONS):
            connection = await stack.enter_async_context(database.read())
            await connection.execute(text("SELECT 1"))
        with pytest.raises(StorageDownError):
            await has(database, "key_1")
        assert (await connection.execute(text("SELECT 1"))).scalar() == 1
    assert await has(database, "key_1")


@pytest.mark.trust("F17")
async def test_appends_that_meet_a_deadlock_are_written_again(database: Database) -> None:
    """Two transactions wait for each other; PostgreSQL ends the one that looks second, and an append is tried again."""
    for name in ("req_1", "req_2"):
        await database.append(ADD, an_entry(name))

    async def rename() -> None:
        await asyncio.gather(
            *(database.append(RENAME, {"of": name, "operation": "appended"}) for name in ("req_1", "req_2"))
        )

    async def appends_wait() -> bool:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        async with database.read() as connection:
            return bool((await connection.execute(text(query))).scalar())

    with contextlib.suppress(StorageDownError):  # on a slow machine it is this one that PostgreSQL ends
        async with database.write() as connection:
            await connection.execute(text("UPDATE journal SET operation = 'written' WHERE request_id = 'req_2'"))
            appending = asyncio.create_task(rename())
            await until(appends_wait)
            await connection.execute(text("UPDATE journal SET operation = 'written' WHERE request_id = 'req_1'"))
    await appending
    async with database.read() as connection:
        rows = (await connection.execute(text("SELECT operation FROM journal"))).scalars().all()
    assert rows == ["appended", "appended"]


async def test_names_that_two_processes_store_in_opposite_orders_meet_no_deadlock(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deadlock ends after a second, in which neither process writes: a caller must not be able to bring one about."""
    met: list[str] = []
    transaction = vars(PostgreSQL)["_transaction"]

    async def watched(self: PostgreSQL, connection: Any, work: Any) -> None:
        try:
            await transaction(self, connection, work)
        except asyncpg.DeadlockDetectedError:
            met.append("deadlock")
            raise

    monkeypatch.setattr(PostgreSQL, "_transaction", watched)
    other = Database(database_url)
    named = {"key_id": "key_1", "asked": b"a", "repeatable": False, "owner": "one", "created_at": datetime.now(UTC)}
    named["state"] = idempotency.NameState.STARTED

    async def store(one: Database, names: Iterable[str], request_id: str) -> list[bool]:
        rows = [named | {"name": name, "request_id": request_id} for name in names]
        return await asyncio.gather(*(one.append(idempotency.ADD, row) for row in rows))

    for number in range(40):
        names = [f"{number}-{place}" for place in range(8)]
        first, second = await asyncio.gather(store(database, names, "req_1"), store(other, reversed(names), "req_2"))
        assert [one != two for one, two in zip(first, reversed(second), strict=True)] == [True] * 8
    await other.close()
    assert met == []


@pytest.mark.trust("F12")
async def test_a_database_that_takes_no_writes_is_not_ready(database: Database, database_url: str) -> None:
    """A standby or a read-only server answers reads, which is not enough."""
    name = urlsplit(database_url).path[1:]
    async with database.write() as connection:
        await connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = on"))
    reopened = Database(database_url)
    assert await has(reopened, "key_1")
    with pytest.raises(StorageDownError):
        await reopened.probe()
    await reopened.close()


@pytest.mark.trust("F15")
async def test_a_gateway_reports_an_unavailable_database_and_recovers_with_it(
    tmp_path: Path, postgres: Postgres, database_url: str
) -> None:
    """Not ready, 503 with Retry-After and an outcome that is sure; then all goes on as if nothing had been."""
    async with RunningGateway.built(tmp_path, database_url=database_url) as running:
        await running.link("ada")
        with stopped(postgres):
            ready, like = await running.bare.get("/readyz"), await running.like()
            assert [answer.status_code for answer in (ready, like)] == [503, 503]
            assert {answer.json()["error"]["code"] for answer in (ready, like)} == {"storage_unavailable"}
            assert 0 < int(like.headers["retry-after"]) <= 5
            assert await running.calls("/2/users/", method="POST") == []
            assert (await running.bare.get("/livez")).status_code == 200

        async def answers() -> bool:
            return (await running.bare.get("/readyz")).status_code == 200 and (await running.like()).status_code == 200

        await until(answers)
        assert PASSWORD not in running.log.getvalue()


@pytest.mark.trust("G7")
async def test_the_database_password_is_disclosed_nowhere(tmp_path: Path) -> None:
    """Not in the settings' text, nor in a refusal, nor by a command."""
    with bound() as listener:
        place = f"127.0.0.1:{listener.getsockname()[1]}/birdwire"
    url = f"postgresql://birdwire:{PASSWORD}@{place}"
    with pytest.raises(StoreError) as refused:
        await Database(url).prepare(upgrade=False)
    environment = {"BIRDWIRE_DATABASE_URL": url, "BIRDWIRE_VAULT_KEY_FILE": str(tmp_path / "none")}
    told = [str(refused.value), repr(refused.value)]
    for words in (["check"], ["migrate"], ["keys", "list"], ["serve"], ["check", "--json"]):
        result = await asyncio.to_thread(CliRunner().invoke, build(), words, env=environment)
        assert result.exit_code != 0
        told += [result.stdout, result.stderr]
    assert not [line for line in told if PASSWORD in line]
    assert place in str(refused.value)


async def test_commands_work_on_a_server_as_on_a_file(empty_url: str) -> None:
    """Migrate, keys and check run alongside running gateways."""

    async def run(*words: str) -> str:
        environment = {"BIRDWIRE_DATABASE_URL": empty_url, "BIRDWIRE_X_CLIENT_ID": "app"}
        result = await asyncio.to_thread(CliRunner().invoke, build(), list(words), env=environment)
        assert result.exit_code == 0, result.stderr
        return str(result.stdout)

    assert "up to date" in await run("migrate")
    assert '"label": "agent"' in await run("keys", "create", "--label", "agent", "--json")
    assert "agent" in await run("keys", "list")


@contextlib.asynccontextmanager
async def connected(database_url: str) -> AsyncIterator[None]:
    """A gateway's connection, of whatever version, for the time of the block."""
    gateway = Database(database_url)
    try:
        async with gateway.read() as connection:
            await connection.execute(text("SELECT 1"))
            yield
    finally:
        await gateway.close()


async def test_a_schema_is_not_changed_under_a_gateway(empty_url: str) -> None:
    """One of an earlier version would take what is resealed for damaged. Nothing stops it where nothing changes."""
    await first_schema.make(empty_url)
    environment = {"BIRDWIRE_DATABASE_URL": empty_url}

    async def migrated() -> bool:
        result = await asyncio.to_thread(CliRunner().invoke, build(), ["migrate"], env=environment)
        assert result.exit_code == 0 or "Gateways are connected" in result.stderr
        return bool(result.exit_code == 0)

    async with connected(empty_url):
        assert not await migrated()
        await first_schema_is_there(empty_url)
    await until(migrated)  # the server may notice a moment later that the connection has ended
    async with connected(empty_url):
        assert await migrated()


async def first_schema_is_there(url: str) -> None:
    """Check that the database's schema is still the first one."""
    database = Database(url)
    try:
        async with database.read() as connection:
            assert (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one() == "0001"
    finally:
        await database.close()


async def test_a_row_too_large_for_an_index_fails_alone(database: Database) -> None:
    """It is one row's fault, not the server's: the others of its transaction are written."""
    names = ["req_1", secrets.token_hex(9_000), "req_2"]
    results = await asyncio.gather(*(database.append(ADD, an_entry(name)) for name in names), return_exceptions=True)
    assert [type(result) for result in results] == [bool, RowRefusedError, bool]


async def test_rows_with_different_columns_are_written_in_one_round_trip(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as likes that X carried out, and others that it refused."""
    await database.append(ADD, an_entry("req_first"))
    trips, fetchmany = list[int](), asyncpg.Connection.fetchmany

    async def counted(connection: Any, query: str, rows: list[Any], **options: Any) -> list[Any]:
        trips.append(len(rows))
        return list(await fetchmany(connection, query, rows, **options))

    monkeypatch.setattr(asyncpg.Connection, "fetchmany", counted)
    more: list[dict[str, Any]] = [{"status": 200, "data": {"liked": True}}, {"status": 429, "reason": "x_rate_limited"}]
    rows = (database.append(ADD, an_entry(f"req_{number}") | more[number % 2]) for number in range(8))
    await asyncio.gather(*rows)
    assert trips == [8]
    async with database.read() as connection:
        found = [await journal.get(connection, f"req_{number}") for number in range(8)]
    assert [row and (row.status, row.data, row.reason, row.looks) for row in found] == [
        (200, {"liked": True}, None, 0),
        (429, None, "x_rate_limited", 0),
    ] * 4


async def test_a_silently_dropped_connection_is_replaced_before_it_is_used(
    over_the_wire: Database, database: Database, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pair that waits to be stored waits for a probe, not for the end of all patience."""
    await database.append(ADD, an_entry("req_1"))
    assert await over_the_wire.save(RENAME, {"of": "req_1", "operation": "first"}, "key_1")
    wire.dead = wire.opened
    monkeypatch.setattr(postgres_store, "TRUSTED_S", 0.0, raising=False)
    monkeypatch.setattr(postgres_store, "PROBE_S", 0.1, raising=False)
    assert await over_the_wire.save(RENAME, {"of": "req_1", "operation": "second"}, "key_1")
    assert b"SELECT 1" in wire.swallowed[0]
    assert not [data for data in wire.swallowed if b"BEGIN" in data]


async def test_a_connection_that_does_not_answer_is_given_up(
    over_the_wire: Database, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing more is asked of it, which would take as long again; the next row goes by another one."""
    monkeypatch.setattr(PostgreSQL._connect, "__defaults__", (0, 3))  # noqa: SLF001 - it gives up after a second
    await over_the_wire.append(ADD, an_entry("req_1"))
    wire.dead = wire.opened
    asked, execute = list[str](), asyncpg.Connection.execute

    async def spy(connection: Any, query: str, *arguments: Any, **options: Any) -> str:
        asked.append(query)
        return str(await execute(connection, query, *arguments, **options))

    monkeypatch.setattr(asyncpg.Connection, "execute", spy)
    with pytest.raises(StorageDownError):
        await over_the_wire.append(ADD, an_entry("req_2"))
    assert asked == ["BEGIN"]
    await over_the_wire.append(ADD, an_entry("req_2"))
