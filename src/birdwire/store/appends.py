"""Group commit: what many callers write at once shares one transaction, and is durable when they go on."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from birdwire.store.schema import RowRefusedError, StorageDownError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from sqlalchemy import Delete, Dialect, Insert, Select, Update

    Statement = Insert | Update | Delete | Select[Any]
    Step = tuple[Statement, Mapping[str, Any]]
    """A statement, which is a constant that is built once, and its parameters; what they leave out is null."""

    Take = Callable[[], Sequence["Unit"]]
    Commit = Callable[[Take, float], Awaitable[list[int]]]

MOST_WAITING = 10_000
MOST_TOGETHER = 128
"""Units in one transaction: it ends within milliseconds, so that other writers are not held up."""

REFUSED = -1
"""In place of a number of rows: the database refused the unit."""


class Row(NamedTuple):
    """One statement for the driver: in its dialect, and the values in their order, as it takes them."""

    sql: str
    values: list[Any]


class Unit(NamedTuple):
    """Statements that are executed together or not at all; those after the first only if that changed a row.

    `written` is called when all of the transaction is written, and not committed: a failpoint's place.
    """

    rows: tuple[Row, ...]
    written: Callable[[], None] | None


class _Waiting(NamedTuple):
    unit: Unit
    done: asyncio.Future[int]
    since: float


class Appends:
    """The units of one database that wait for the next transaction.

    `commit` writes units in one transaction, in their order. It calls its first argument for them once the transaction
    has begun, so that those that came meanwhile are in it; its second is when the oldest was added, by the loop's
    clock. It returns how many rows the first statement of each changed, or REFUSED; where it raises StorageDownError,
    nothing was written.
    """

    def __init__(self, dialect: Dialect, commit: Commit) -> None:
        self._dialect = dialect
        self._commit = commit
        self._statements: dict[object, _Bound] = {}
        self._waiting: deque[_Waiting] = deque()
        self._drainer: asyncio.Task[None] | None = None
        self._closed = False

    async def add(self, *steps: Step, written: Callable[[], None] | None = None) -> int:
        """Execute steps as one unit; how many rows the first one changed.

        Raises:
            StorageDownError: nothing was changed.
            RowRefusedError: one kind of it: a step breaks a constraint.
        """
        if self._closed or len(self._waiting) >= MOST_WAITING:
            raise StorageDownError("too many writes wait")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[int] = loop.create_future()
        unit = Unit(tuple([self._row(*step) for step in steps]), written)
        self._waiting.append(_Waiting(unit, done, loop.time()))
        if self._drainer is None:
            self._drainer = asyncio.create_task(self._drain())
        return await done

    async def idle(self, longest_s: float) -> None:
        """Wait until nothing waits or is being written, for at most `longest_s`."""
        if self._drainer is not None:
            await asyncio.wait([self._drainer], timeout=longest_s)

    async def close(self) -> None:
        """Take no more, and let what waits be written."""
        self._closed = True
        if self._drainer is not None:
            await asyncio.wait([self._drainer])

    def _row(self, statement: Statement, given: Mapping[str, Any]) -> Row:
        bound = self._statements.get(statement)
        if bound is None:
            bound = self._statements[statement] = _Bound(statement, self._dialect)
        return bound.row(given)

    async def _drain(self) -> None:
        """Until nothing waits: one transaction after the other. What comes during one is in the next."""
        try:
            while self._waiting:
                await self._write()
        finally:
            self._drainer = None
            self._settle(self._waiting, [], "the gateway ends")  # it broke: no caller may wait for ever
            self._waiting.clear()

    async def _write(self) -> None:
        batch: list[_Waiting] = []

        def take() -> list[Unit]:
            batch.extend(self._waiting.popleft() for _ in range(min(MOST_TOGETHER, len(self._waiting))))
            return [waiting.unit for waiting in batch]

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

    def _settle(self, batch: Iterable[_Waiting], changed: Sequence[int], fault: str | None) -> None:
        for number, (_, done, _) in enumerate(batch):
            if done.done():  # its caller waits no more
                continue
            if fault is not None:
                done.set_exception(StorageDownError(fault))
            elif changed[number] == REFUSED:
                done.set_exception(RowRefusedError("the database does not take this row"))
            else:
                done.set_result(changed[number])


class _Bound:
    """A statement, compiled once for the engine's driver; its values are bound by the types of their columns."""

    def __init__(self, statement: Statement, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self._sql = str(compiled)
        slots = [compiled.binds[name] for name in compiled.positiontup or ()]
        self._slots = [(slot.key, slot.value) for slot in slots]
        binds = [slot.type.dialect_impl(dialect).bind_processor(dialect) for slot in slots]
        self._binds = [(place, bind) for place, bind in enumerate(binds) if bind is not None]

    def row(self, given: Mapping[str, Any]) -> Row:
        values = [given.get(name, default) for name, default in self._slots]
        for place, bind in self._binds:
            if values[place] is not None:  # most are, and null is null in every type that we have
                values[place] = bind(values[place])
        return Row(self._sql, values)
