"""Group commit: concurrent writes share one transaction, and are durable before any of their callers continues."""

from __future__ import annotations

import asyncio
from collections import deque
from functools import cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from sqlalchemy import Insert, LargeBinary

from birdwire.store.schema import EnsureRow, InsertNew, RowRefusedError, StorageDownError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from sqlalchemy import Delete, Dialect, Table, Update
    from sqlalchemy.types import TypeEngine

    Statement = Insert | Update | Delete
    Take = Callable[[], Sequence["Unit"]]
    Commit = Callable[[Take, float], Awaitable[list[int]]]

MAX_QUEUED = 10_000
MAX_BATCH = 128
"""Statements after which a transaction takes no further unit, so that it ends within milliseconds.

Meanwhile, no other writer can start.
"""

REFUSED = -1
"""Returned in place of a number of rows: the database refused the unit."""


class Part(NamedTuple):
    """One statement of a unit of several: a constant, built once, and the parameters of its row.

    If a `required` part changes no row, the whole unit is rolled back. A part that `looks` reads what other parts
    changed, and comes after them; all of them together cost a round trip on PostgreSQL.
    """

    statement: Statement
    row: Mapping[str, Any]
    required: bool = False
    looks: bool = False


class Step(NamedTuple):
    """A part for the driver, in its dialect, with its values in order.

    `ensures`: it only makes and locks a row, whose primary key are the first `keys` values. `looks`: it reads what
    other steps changed.
    """

    sql: str
    values: list[Any]
    required: bool
    keys: int
    ensures: bool
    looks: bool


class Unit(NamedTuple):
    """One statement for the driver, in its dialect, with its values in order; or several steps, in place of them.

    If the statement changes a row and `key_id` is given, that key is announced in the same transaction. `written` is
    called when the whole transaction is written but not committed: the place of a failpoint. `done` is the caller's
    future, for GroupCommit only, and `since` is when the unit was added. `keys` is how many of the first values are the
    primary key of a row that another process may insert at the same time, or 0 for any other statement.

    Several steps are executed in their order, or none of them. Their number of rows is the index of the required step
    that changed none, or the number of steps if the unit is written.
    """

    sql: str
    values: list[Any]
    key_id: str | None
    written: Callable[[], None] | None
    done: asyncio.Future[int]
    since: float
    keys: int = 0
    steps: Sequence[Step] = ()


class GroupCommit:
    """Queues units for the next transaction of one database.

    `commit` writes units in one transaction, in their order. It calls its first argument to take them once the
    transaction has started, so that it includes those added meanwhile; its second argument is when the oldest was
    added, by the loop's clock. It returns the number of rows that each unit changed, or REFUSED. If it raises
    StorageDownError, nothing was written.
    """

    def __init__(self, dialect: Dialect, commit: Commit) -> None:
        self._dialect = dialect
        self._commit = commit
        # sqlite3 looks for an adapter of each null, which costs more than any value. PostgreSQL executes rows of the
        # same columns in one round trip.
        self._whole_rows = dialect.name != "sqlite"
        self._statements: dict[tuple[object, ...], _CompiledStatement] = {}
        self._waiting: deque[Unit] = deque()
        self._drainer: asyncio.Task[None] | None = None
        self._closed = False

    async def add(
        self,
        statement: Statement,
        given: Mapping[str, Any],
        key_id: str | None = None,
        written: Callable[[], None] | None = None,
    ) -> int:
        """Execute a statement, which must be a constant; return how many rows it changed.

        `given` gives its parameters. A column that a row to insert does not name gets its default.

        Raises:
            StorageDownError: nothing was changed.
            RowRefusedError: a subclass: the row violates a constraint.
        """
        if self._closed or len(self._waiting) >= MAX_QUEUED:
            raise StorageDownError("too many writes wait")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[int] = loop.create_future()
        bound, given = self._compiled(statement, given)
        self._waiting.append(Unit(bound.sql, bound.values(given), key_id, written, done, loop.time(), bound.keys))
        if self._drainer is None:
            self._drainer = asyncio.create_task(self._drain())
        return await done

    async def add_all(self, parts: Sequence[Part]) -> int | None:
        """Execute parts as one unit; return None, or the index of the required part that changed no row.

        Raises:
            StorageDownError: nothing was changed.
            RowRefusedError: a subclass: a row violates a constraint.
        """
        if self._closed or len(self._waiting) >= MAX_QUEUED:
            raise StorageDownError("too many writes wait")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[int] = loop.create_future()
        steps = []
        for statement, row, required, looks in parts:
            bound, given = self._compiled(statement, row)
            steps.append(Step(bound.sql, bound.values(given), required, bound.keys, bound.ensures, looks))
        self._waiting.append(Unit("", [], None, None, done, loop.time(), 0, steps))
        if self._drainer is None:
            self._drainer = asyncio.create_task(self._drain())
        result = await done
        return None if result == len(steps) else result

    def _compiled(self, statement: Statement, given: Mapping[str, Any]) -> tuple[_CompiledStatement, Mapping[str, Any]]:
        """Return the compiled statement, and the parameters with those that a whole row needs in addition."""
        if self._whole_rows and isinstance(statement, Insert):
            given = {**_nulls(statement), **given}
        columns = tuple(given) if statement.is_insert else None
        return self._statements.get((statement, columns)) or self.prepare(statement, columns), given

    def prepare(self, statement: Statement, columns: tuple[str, ...] | None = None) -> _CompiledStatement:
        """Compile a statement ahead of its first use, which takes as long as writing many rows.

        An insert is compiled for each set of `columns`.
        """
        key = (statement, columns)
        if key not in self._statements:
            self._statements[key] = _CompiledStatement(statement, columns, self._dialect)
        return self._statements[key]

    async def idle(self, max_s: float) -> None:
        """Wait until nothing is queued or being written, for at most `max_s`.

        All callers whose units shared a transaction reach this before one of them continues.
        """
        await asyncio.sleep(0)
        if self._drainer is not None:
            await asyncio.wait([self._drainer], timeout=max_s)

    async def close(self) -> None:
        """Refuse further units, and write those that are queued."""
        self._closed = True
        if self._drainer is not None:
            await asyncio.wait([self._drainer])

    async def _drain(self) -> None:
        """Write one transaction after the other until the queue is empty. Units added during one are in the next."""
        try:
            while self._waiting:
                await self._write()
                # The callers whose units were written run first: a unit that one of them adds now is in the next.
                await asyncio.sleep(0)
        finally:
            self._drainer = None
            # Reached with a queue only after a failure: no caller may wait forever.
            self._settle(self._waiting, [], "the gateway ends")
            self._waiting.clear()

    async def _write(self) -> None:
        batch: list[Unit] = []

        def take() -> list[Unit]:
            room = MAX_BATCH
            while self._waiting and room > 0:
                unit = self._waiting.popleft()
                batch.append(unit)
                room -= len(unit.steps) or 1
            return batch

        changed: list[int] = []
        fault: str | None = "the gateway ends"
        try:
            changed = await self._commit(take, self._waiting[0].since)
            fault = None
        except StorageDownError as error:
            fault = str(error)
        finally:
            if not batch:
                take()
            self._settle(batch, changed, fault)

    def _settle(self, batch: Iterable[Unit], changed: Sequence[int], fault: str | None) -> None:
        for number, unit in enumerate(batch):
            done = unit.done
            # The caller has been cancelled.
            if done.done():
                continue
            if fault is not None:
                done.set_exception(StorageDownError(fault))
            elif changed[number] == REFUSED:
                done.set_exception(RowRefusedError("the database does not take this row"))
            else:
                done.set_result(changed[number])


class _CompiledStatement:
    """A statement compiled once for the engine's driver, with the bind processors of its columns."""

    def __init__(self, statement: Statement, columns: tuple[str, ...] | None, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect, column_keys=columns)
        self.sql = str(compiled)
        self.ensures = isinstance(statement, EnsureRow)
        self.keys = 0
        if isinstance(statement, InsertNew):
            self.keys = len(cast("Table", statement.table).primary_key.columns)
        slots = [compiled.binds[name] for name in compiled.positiontup or ()]
        # With one name, it would return the value instead of a tuple.
        self._pick = itemgetter(*(slot.key for slot in slots))
        self._single = len(slots) == 1
        self._constants = {slot.key: slot.value for slot in slots if not slot.required}
        binds = [_bind_processor(slot.type, dialect) for slot in slots]
        self._binds = [(place, bind) for place, bind in enumerate(binds) if bind is not None]

    def values(self, given: Mapping[str, Any]) -> list[Any]:
        """Return a row's values, in the order of the statement's parameters."""
        given = {**self._constants, **given} if self._constants else given
        values = [self._pick(given)] if self._single else list(self._pick(given))
        for place, bind in self._binds:
            # Null needs no processor in any of the column types.
            if values[place] is not None:
                values[place] = bind(values[place])
        return values


@cache
def _nulls(statement: Insert) -> dict[str, None]:
    """Return a null for each column that is null if a row does not name it."""
    columns = cast("Table", statement.table).columns
    return {column.key: None for column in columns if column.nullable and column.server_default is None}


def _bind_processor(column_type: TypeEngine[Any], dialect: Dialect) -> Callable[[Any], Any] | None:
    """Return the function that turns a column's value into the driver's, or None if the driver takes it as it is."""
    if isinstance(column_type, LargeBinary):
        # sqlite3 takes a bytearray as it is; for any other bytes, it looks for an adapter first, which costs far more.
        return bytearray
    return column_type.dialect_impl(dialect).bind_processor(dialect)
