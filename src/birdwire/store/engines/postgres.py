"""The store on PostgreSQL: a bounded pool, bounded waits, and commits whose fate is known. Knows no owner's tables."""

from __future__ import annotations

import asyncio
import itertools
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

    from birdwire.store.engines.group_commit import Take, Unit

CONNECTIONS = 16
POOL_WAIT_S = 5
CONNECT_S = 3.0
STATEMENT_S, LOCK_S, IDLE_S = 5, 3, 10
MIGRATION_S = 3_600
TRUSTED_S, PROBE_S = 30.0, 1.0
"""After how long without use a connection is probed first, and how long the probe may take."""

FATE_S, FATE_PAUSE_S = 10.0, 0.2
"""How long a lost commit is asked after, and how often."""

_FAULTS = (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
"""What the driver raises by itself, and what SQLAlchemy makes of the rest; its timeouts are OSErrors."""

_REFUSALS = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.DataError,
    asyncpg.ProgramLimitExceededError,
    OverflowError,
    UnicodeError,
)
"""What one row can do wrong."""

_COLLISIONS = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
COLLISION_TRIES = 3


class PostgreSQL:
    """One database. Every method that talks to it raises StorageDownError if it does not answer."""

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
        event.listen(self._engine.sync_engine, "checkout", _refuse_the_dead)
        self._reads = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self.changes = PgNotifications(self._connect)
        self._committing: dict[str, Any] = {}  # by their use: connections of the driver's own, for group commits
        self._used_at: dict[str, float] = {}
        self._connecting = {"appends": asyncio.Lock(), "saves": asyncio.Lock()}

    @property
    def dialect(self) -> Dialect:
        """How statements are written here."""
        return self._engine.dialect

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection on which every statement stands alone."""
        try:
            async with self._reads.connect() as connection:
                yield connection
        except _FAULTS as error:
            raise StorageDownError(type(error).__name__) from None

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """One READ COMMITTED transaction: what must not change meanwhile is locked by its row."""
        try:
            async with self._engine.connect() as connection:
                yield connection
                await self._commit(connection)
        except _FAULTS as error:
            raise StorageDownError(type(error).__name__) from None

    async def append(self, take: Take, since: float) -> list[int]:
        """As `Appends` wants it."""
        del since  # PostgreSQL ends what waits for too long
        return await self._group("appends", take)

    async def save(self, take: Take, since: float) -> list[int]:
        """As `Appends` wants it, on a connection of its own: it does not wait for other writes."""
        del since
        return await self._group("saves", take)

    async def ready(self) -> None:
        """Open the connection for `save`, which is not to wait for one."""
        try:
            await self._connection("saves")
        except _FAULTS as error:
            raise StorageDownError(type(error).__name__) from None

    async def _connection(self, use: str) -> Any:
        async with self._connecting[use]:
            loop, connection = asyncio.get_running_loop(), self._committing.get(use)
            if connection is not None and loop.time() - self._used_at[use] > TRUSTED_S:
                try:  # a firewall may have dropped it without a word
                    await connection.execute("SELECT 1", timeout=PROBE_S)
                except _FAULTS:
                    connection.terminate()
            if connection is None or connection.is_closed():
                connection = self._committing[use] = await self._connect()
            self._used_at[use] = loop.time()
            return connection

    async def _group(self, use: str, take: Take) -> list[int]:
        """Write units in one transaction, once more where it collided with another one."""
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
        try:
            await self._transaction(connection, _put_together(connection, units, changed))
        except _REFUSALS:
            changed.clear()
            await self._transaction(connection, _put_one_by_one(connection, units, changed))
        return changed

    async def _transaction(self, connection: Any, work: Coroutine[Any, Any, str | None]) -> None:
        """Do something, which returns the transaction's number, in one of the driver's own; then it is committed."""
        try:
            await connection.execute("BEGIN")
            number = await work
        except BaseException as error:
            work.close()
            if isinstance(error, TimeoutError):
                connection.terminate()  # it does not answer: a ROLLBACK would wait as long again
            if not connection.is_closed():
                await connection.execute("ROLLBACK")
            raise
        try:
            await connection.execute("COMMIT")
        except _FAULTS:
            if number is not None and not await self._committed(number):
                raise

    async def probe(self) -> None:
        """See that the server takes writes: a standby, or one told to be read only, says that it does not."""
        async with self.read() as connection:
            if (await connection.exec_driver_sql("SHOW transaction_read_only")).scalar() != "off":
                raise StorageDownError("the server is read only")

    async def prepare(self, *, upgrade: bool, migrated: Callable[[], None]) -> None:
        """See that the database is of this version; make the tables of an empty one. Any number may do so at once.

        Raises:
            StoreError: it is not.
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
        """A connection of the driver's own. The URL is read by it, so that libpq's options in it mean what they do."""
        options = {
            "application_name": "birdwire",
            "statement_timeout": f"{statement_s}s",
            "lock_timeout": f"{lock_s}s",
            "idle_in_transaction_session_timeout": f"{IDLE_S}s",
            "synchronous_commit": "on",  # an answer says that it is on the disk, whatever the server is used to
        }
        return await asyncpg.connect(
            self._url, timeout=CONNECT_S, command_timeout=statement_s + 1, server_settings=options
        )

    async def _commit(self, connection: AsyncConnection) -> None:
        """Commit; if the connection is lost meanwhile, ask PostgreSQL what became of the transaction."""
        query = "SELECT pg_current_xact_id_if_assigned()::text"
        number = (await connection.exec_driver_sql(query)).scalar()
        try:
            await connection.commit()
        except _FAULTS:
            if number is not None and not await self._committed(number):
                raise

    async def _committed(self, number: str) -> bool:
        """Whether a transaction, whose connection is gone, was committed.

        Raises:
            StorageDownError: the database stayed away, so nobody knows yet.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + FATE_S
        while loop.time() < end:
            try:
                connection = await self._connect()
            except _FAULTS:
                await asyncio.sleep(FATE_PAUSE_S)
                continue
            try:
                # A server that has not seen the connection go still holds the transaction open: it is of no use now.
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
            await asyncio.sleep(FATE_PAUSE_S)
        raise StorageDownError("a commit's fate is not known")


def _refuse_the_dead(connection: Any, *_: object) -> None:
    """Let the pool replace a connection that was cut, as after an outage. The driver knows; nobody is asked."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


async def _put_together(connection: Any, units: Sequence[Unit], changed: list[int]) -> str | None:
    """In one round trip for each run of units with the same statement."""
    number = None
    for sql, run in itertools.groupby(map(_counted, units), key=itemgetter(0)):
        records = await connection.fetchmany(sql, [values for _, values in run])
        changed += [rows for rows, *_ in records]
        number = records[0][1]
    _written(units)
    return number


async def _put_one_by_one(connection: Any, units: Sequence[Unit], changed: list[int]) -> str | None:
    """Each in a savepoint of its own, so that a bad one does not take the others along."""
    number = None
    for sql, values in map(_counted, units):
        await connection.execute("SAVEPOINT one")
        try:
            rows, number, *_ = await connection.fetchrow(sql, *values)
        except _REFUSALS:
            rows = REFUSED
            await connection.execute("ROLLBACK TO SAVEPOINT one")
        changed.append(rows)
    _written(units)
    return number


def _counted(unit: Unit) -> tuple[str, list[Any]]:
    """A unit as a query, with its values, for how many rows it changed and the transaction's number.

    The number is for `_committed`. Neither that nor the announcement costs a round trip of its own.
    """
    sql, values, key_id, _ = unit
    wanted = "count(*), pg_current_xact_id()::text"
    if key_id is not None:
        values = [*values, key_id]
        wanted += f", CASE WHEN count(*) > 0 THEN {NOTIFY.format(f'${len(values)}')} END"
    return f"WITH done AS ({sql} RETURNING 1) SELECT {wanted} FROM done", values  # noqa: S608 - our own words


def _written(units: Sequence[Unit]) -> None:
    for unit in units:
        if unit.written is not None:
            unit.written()
