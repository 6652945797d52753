"""The PostgreSQL engine: a bounded pool, bounded waits, and commits with a known outcome. Knows no table."""

from __future__ import annotations

import asyncio
import functools
import itertools
import re
from contextlib import asynccontextmanager
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import asyncpg
from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from birdwire.store.engines.change_feed import NOTIFY
from birdwire.store.engines.group_commit import REFUSED
from birdwire.store.engines.pg_notifications import PgNotifications
from birdwire.store.schema import START_LOCK, StorageDownError, json_text, migrate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    from sqlalchemy import Dialect
    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.store.engines.group_commit import Step, Take, Unit

CONNECTIONS = 16
POOL_WAIT_S = 5
CONNECT_S = 3.0
STATEMENT_S, LOCK_S, IDLE_S = 5, 3, 10
MIGRATION_S = 3_600
TRUSTED_S, PROBE_S = 30.0, 1.0
"""Idle seconds after which a connection is probed before use, and the deadline of the probe."""

OUTCOME_S, OUTCOME_POLL_S = 10.0, 0.2
"""How long the outcome of a lost commit is looked up, and how often."""

_FAULTS = (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
"""Errors of the driver, and of SQLAlchemy around it; the driver's timeouts are OSErrors."""

_REFUSALS = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.DataError,
    asyncpg.ProgramLimitExceededError,
    OverflowError,
    UnicodeError,
)
"""Errors of a single row."""

_COLLISIONS = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
COLLISION_TRIES = 3
_PARAMETER = re.compile(r"\$(\d+)")


class PostgreSQL:
    """One PostgreSQL database. Every method that uses it raises StorageDownError if it does not answer."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self._connect,
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=POOL_WAIT_S,
            hide_parameters=True,
            json_serializer=json_text,
        )
        event.listen(self._engine.sync_engine, "checkout", _reject_closed)
        self._reads = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self.changes = PgNotifications(self._connect)
        # Plain driver connections for group commits, by their use.
        self._committing: dict[str, Any] = {}
        self._used_at: dict[str, float] = {}
        self._connecting = {use: asyncio.Lock() for use in ("appends", "units", "saves")}

    @property
    def dialect(self) -> Dialect:
        """The SQL dialect that statements are compiled for."""
        return self._engine.dialect

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Return a connection on which every statement is its own transaction."""
        try:
            async with self._reads.connect() as connection:
                yield connection
        except _FAULTS as error:
            raise StorageDownError(type(error).__name__) from None

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Return one READ COMMITTED transaction; rows that must not change meanwhile are locked."""
        try:
            async with self._engine.connect() as connection:
                yield connection
                await self._commit(connection)
        except _FAULTS as error:
            raise StorageDownError(type(error).__name__) from None

    async def append(self, take: Take, since: float) -> list[int]:
        """Commit a batch, as GroupCommit requires."""
        # PostgreSQL's own timeouts bound the wait.
        del since
        return await self._group("appends", take)

    async def append_units(self, take: Take, since: float) -> list[int]:
        """Commit a batch of units of several steps, as GroupCommit requires, on a separate connection.

        They lock rows that other processes change, too; no other write may wait for those locks.
        """
        del since
        return await self._group("units", take)

    async def save(self, take: Take, since: float) -> list[int]:
        """Commit a batch, as GroupCommit requires, on a separate connection: it does not wait for other writes."""
        del since
        return await self._group("saves", take)

    async def ready(self) -> None:
        """Open the connection of `save`, so that it does not wait for it."""
        try:
            await self._connection("saves")
        except _FAULTS as error:
            raise StorageDownError(type(error).__name__) from None

    async def _connection(self, use: str) -> Any:
        async with self._connecting[use]:
            loop, connection = asyncio.get_running_loop(), self._committing.get(use)
            if connection is not None and loop.time() - self._used_at[use] > TRUSTED_S:
                # A firewall may have dropped the connection silently.
                try:
                    await connection.execute("SELECT 1", timeout=PROBE_S)
                except _FAULTS:
                    connection.terminate()
            if connection is None or connection.is_closed():
                connection = self._committing[use] = await self._connect()
            self._used_at[use] = loop.time()
            return connection

    async def _group(self, use: str, take: Take) -> list[int]:
        """Write units in one transaction; repeat it after a deadlock or a serialization failure."""
        units: Sequence[Unit] | None = None
        try:
            for tries_left in reversed(range(COLLISION_TRIES)):
                connection = await self._connection(use)
                units = take() if units is None else units
                try:
                    return await self._append(connection, units)
                except _COLLISIONS:
                    if not tries_left:
                        raise
        except _FAULTS as error:
            if use in self._committing:
                self._committing[use].terminate()
            raise StorageDownError(type(error).__name__) from None
        raise AssertionError  # pragma: no cover - the last try raises

    async def _append(self, connection: Any, units: Sequence[Unit]) -> list[int]:
        changed: list[int] = []
        ordered = sorted(units, key=_lock_order)
        try:
            await self._transaction(connection, _execute_batch(connection, ordered, changed))
        except _REFUSALS:
            changed.clear()
            await self._transaction(connection, _execute_with_savepoints(connection, ordered, changed))
        rows = dict(zip(map(id, ordered), changed, strict=True))
        return [rows[id(unit)] for unit in units]

    async def _transaction(self, connection: Any, work: Coroutine[Any, Any, str | None]) -> None:
        """Run `work`, which returns the transaction's id, in a driver's transaction, and commit it."""
        try:
            await connection.execute("BEGIN")
            number = await work
        except BaseException as error:
            work.close()
            if isinstance(error, TimeoutError):
                # The server does not answer: a ROLLBACK would wait as long again.
                connection.terminate()
            if not connection.is_closed():
                await connection.execute("ROLLBACK")
            raise
        try:
            await connection.execute("COMMIT")
        except _FAULTS:
            if number is not None and not await self._committed(number):
                raise

    async def probe(self) -> None:
        """Check that the server takes writes: a standby, or a server set to read only, does not."""
        async with self.read() as connection:
            if (await connection.exec_driver_sql("SHOW transaction_read_only")).scalar() != "off":
                raise StorageDownError("the server is read only")

    async def prepare(self, *, upgrade: bool, migrated: Callable[[], None]) -> None:
        """Create the tables of an empty database, and check the version of another. Safe to run concurrently.

        Raises:
            StoreError: the schema is not this version's.
        """
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=lambda: self._connect(MIGRATION_S, MIGRATION_S),
            poolclass=NullPool,
            hide_parameters=True,
        )
        try:
            async with engine.begin() as connection:
                await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({START_LOCK})")
                await connection.run_sync(lambda sync: migrate(sync, upgrade=upgrade, migrated=migrated))
        except _FAULTS as error:
            raise StorageDownError(type(error).__name__) from None

    async def close(self) -> None:
        """Close every connection."""
        await self.changes.close()
        for connection in self._committing.values():
            connection.terminate()
        await self._engine.dispose()

    async def _connect(self, statement_s: int = STATEMENT_S, lock_s: int = LOCK_S) -> Any:
        """Open a plain driver connection. The driver parses the URL, so that libpq's options keep their meaning."""
        options = {
            "application_name": "birdwire",
            "statement_timeout": f"{statement_s}s",
            "lock_timeout": f"{lock_s}s",
            "idle_in_transaction_session_timeout": f"{IDLE_S}s",
            # A response promises that the write is on the disk, whatever the server's default is.
            "synchronous_commit": "on",
        }
        return await asyncpg.connect(
            self._url, timeout=CONNECT_S, command_timeout=statement_s + 1, server_settings=options
        )

    async def _commit(self, connection: AsyncConnection) -> None:
        """Commit; if the connection is lost meanwhile, look up the transaction's outcome."""
        query = "SELECT pg_current_xact_id_if_assigned()::text"
        number = (await connection.exec_driver_sql(query)).scalar()
        try:
            await connection.commit()
        except _FAULTS:
            if number is not None and not await self._committed(number):
                raise

    async def _committed(self, number: str) -> bool:
        """Return whether a transaction whose connection was lost has been committed.

        Raises:
            StorageDownError: the database stayed unreachable, so the outcome is unknown.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + OUTCOME_S
        while loop.time() < end:
            try:
                connection = await self._connect()
            except _FAULTS:
                await asyncio.sleep(OUTCOME_POLL_S)
                continue
            try:
                # A server that has not noticed the lost connection keeps the transaction open: end it.
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_xid = $1::text::xid8::xid",
                    number,
                )
                status = await connection.fetchval("SELECT pg_xact_status($1::text::xid8)", number)
                if status != "in progress":
                    return bool(status == "committed")
            except _FAULTS:
                pass
            finally:
                connection.terminate()
            await asyncio.sleep(OUTCOME_POLL_S)
        raise StorageDownError("a commit's fate is not known")


def _reject_closed(connection: Any, *_: object) -> None:
    """Make the pool replace a connection that the driver knows to be closed, as after an outage."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _lock_order(unit: Unit) -> tuple[Any, ...]:
    """Return the place of a unit in its batch, by the key of a row that another process may insert at the same time.

    That process then waits for this transaction. If all processes insert such rows in the order of their keys, after
    all others, no two of them wait for each other. Units of several steps come first, after the rows that they ensure.
    """
    return (not unit.steps, *unit.values[: unit.keys])


async def _execute_batch(connection: Any, units: Sequence[Unit], changed: list[int]) -> str | None:
    """Execute units in one round trip for each run of units with the same statement."""
    stepped = [unit for unit in units if unit.steps]
    await _ensure_rows(connection, stepped)
    number = await _execute_stepped(connection, stepped, changed)
    for sql, run in itertools.groupby(map(_with_count, units[len(stepped) :]), key=itemgetter(0)):
        records = await connection.fetchmany(sql, [values for _, values in run])
        changed += [rows for rows, *_ in records]
        number = records[0][1]
    _written(units)
    return number


async def _execute_with_savepoints(connection: Any, units: Sequence[Unit], changed: list[int]) -> str | None:
    """Execute each unit in its own savepoint, so that a refused one does not roll back the others."""
    stepped = [unit for unit in units if unit.steps]
    await _ensure_rows(connection, stepped, singly=True)
    number = await _execute_stepped(connection, stepped, changed)
    for sql, values in map(_with_count, units[len(stepped) :]):
        await connection.execute("SAVEPOINT one")
        try:
            rows, number, *_ = await connection.fetchrow(sql, *values)
        except _REFUSALS:
            rows = REFUSED
            await connection.execute("ROLLBACK TO SAVEPOINT one")
        changed.append(rows)
    _written(units)
    return number


async def _ensure_rows(connection: Any, units: Sequence[Unit], *, singly: bool = False) -> None:
    """Make and lock the rows of all units, in the order of their tables and keys, which is the same in every process.

    `singly`: a row that the database refuses is skipped, and its unit fails later.
    """
    ensured = {
        (step.sql, *step.values[: step.keys]): step.values for unit in units for step in unit.steps if step.ensures
    }
    for sql, keys in itertools.groupby(sorted(ensured), key=itemgetter(0)):
        rows = [ensured[key] for key in keys]
        if not singly:
            await connection.executemany(sql, rows)
            continue
        for values in rows:
            await connection.execute("SAVEPOINT one")
            try:
                await connection.execute(sql, *values)
            except _REFUSALS:
                await connection.execute("ROLLBACK TO SAVEPOINT one")


async def _execute_stepped(connection: Any, units: Sequence[Unit], changed: list[int]) -> str | None:
    """Execute the steps of each unit in a savepoint of its own: all of them, or none."""
    number, end = None, ""
    for unit in units:
        await connection.execute(f"{end}SAVEPOINT unit")
        result, end = len(unit.steps), "RELEASE SAVEPOINT unit; "
        try:
            for indexes in _runs(unit.steps):
                sql, values = _as_one_query([unit.steps[index] for index in indexes])
                *counts, number = await connection.fetchrow(sql, *values)
                missed = (
                    index
                    for index, rows in zip(indexes, counts, strict=True)
                    if rows == 0 and unit.steps[index].required
                )
                result = next(missed, result)
                if result != len(unit.steps):
                    break
        except _REFUSALS:
            result = REFUSED
        if result != len(unit.steps):
            end = f"ROLLBACK TO SAVEPOINT unit; {end}"
        changed.append(result)
    if end:
        await connection.execute(end)
    return number


def _runs(steps: Sequence[Step]) -> Sequence[Sequence[int]]:
    """Return the indexes of steps, in groups that one query may execute.

    A query sees the rows as they were when it started, so steps that may change the same row need one query each, and
    those that look at what others changed share one that comes last.
    """
    rest = [index for index, step in enumerate(steps) if not step.ensures and not step.looks]
    looking = [index for index, step in enumerate(steps) if step.looks]
    ensured = [(step.sql, *step.values[: step.keys]) for step in steps if step.ensures]
    changing = [rest] if len(set(ensured)) == len(ensured) else [[index] for index in rest]
    return [run for run in (*changing, looking) if run]


def _as_one_query(steps: Sequence[Step]) -> tuple[str, list[Any]]:
    """Return a query that executes all steps and returns how many rows each changed, and the transaction's id."""
    shapes = tuple((step.sql, len(step.values)) for step in steps)
    return _combined(shapes), [value for step in steps for value in step.values]


@functools.lru_cache(maxsize=256)
def _combined(shapes: Sequence[tuple[str, int]]) -> str:
    """Combine statements, each with its number of parameters, into one with all parameters."""
    queries, before = [], 0
    for number, (sql, parameters) in enumerate(shapes):
        queries.append(f"done_{number} AS ({_shifted(sql, before)} RETURNING 1)")
        queries.append(f"counted_{number} AS (SELECT count(*) FROM done_{number})")  # noqa: S608 - no foreign text
        before += parameters
    counts = "".join(f"(TABLE counted_{number}), " for number in range(len(shapes)))
    return f"WITH {', '.join(queries)} SELECT {counts}pg_current_xact_id()::text"


def _shifted(sql: str, by: int) -> str:
    """Return a statement whose parameters are numbered from a higher number on."""
    return _PARAMETER.sub(lambda found: f"${int(found[1]) + by}", sql)


def _with_count(unit: Unit) -> tuple[str, list[Any]]:
    """Return a unit as a query for the number of rows it changed and the transaction's id, with its values.

    `_committed` needs the id. Neither the id nor the announcement costs a round trip of its own.
    """
    sql, values, key_id, *_ = unit
    wanted = "count(*), pg_current_xact_id()::text"
    if key_id is not None:
        values = [*values, key_id]
        wanted += f", CASE WHEN count(*) > 0 THEN {NOTIFY.format(f'${len(values)}')} END"
    return f"WITH done AS ({sql} RETURNING 1) SELECT {wanted} FROM done", values  # noqa: S608 - no foreign text


def _written(units: Sequence[Unit]) -> None:
    for unit in units:
        if unit.written is not None:
            unit.written()
