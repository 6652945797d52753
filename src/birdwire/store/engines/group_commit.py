"""Group commit: what many callers write at once shares one transaction, and is durable when they go on."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from birdwire.store.schema import RowRefusedError, StorageDownError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from sqlalchemy import Dialect, Insert, Update

    Take = Callable[[], Sequence["Unit"]]
    Commit = Callable[[Take, float], Awaitable[list[int]]]

MOST_WAITING = 10_000
MOST_TOGETHER = 128
"""Units in one transaction: it ends within milliseconds, so that other writers are not held up."""

REFUSED = -1
"""In place of a number of rows: the database refused the unit."""


class Unit(NamedTuple):
    """One statement for the driver: in its dialect, and the values in their order, as it takes them.

    If it changed a row, the key that the row belongs to is announced in the same transaction, where `key_id` names one.
    `written` is called when all of the transaction is written, and not committed: a failpoint's place.
    """

    sql: str
    values: list[Any]
    key_id: str | None
    written: Callable[[], None] | None


class _Waiting(NamedTuple):
    unit: Unit
    done: asyncio.Future[int]
    since: float


class GroupCommit:
    """The units of one database that wait for the next transaction.

    `commit` writes units in one transaction, in their order. It calls its first argument for them once the transaction
    has begun, so that those that came meanwhile are in it; its second is when the oldest was added, by the loop's
    clock. It returns how many rows each changed, or REFUSED; where it raises StorageDownError, nothing was written.
    """

    def __init__(self, dialect: Dialect, commit: Commit) -> None:
        self._dialect = dialect
        self._commit = commit
        self._statements: dict[object, _Bound] = {}
        self._waiting: deque[_Waiting] = deque()
        self._drainer: asyncio.Task[None] | None = None
        self._closed = False

    async def add(
        self,
        statement: Insert | Update,
        given: Mapping[str, Any],
        key_id: str | None = None,
        written: Callable[[], None] | None = None,
    ) -> int:
        """Execute a statement, which is a constant that is built once; how many rows it changed.

        `given` fills its parameters; what it leaves out is null.

        Raises:
            StorageDownError: nothing was changed.
            RowRefusedError: one kind of it: the row breaks a constraint.
        """
        if self._closed or len(self._waiting) >= MOST_WAITING:
            raise StorageDownError("too many writes wait")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[int] = loop.create_future()
        bound = self._statements.get(statement) or self.prepare(statement)
        unit = Unit(bound.sql, bound.values(given), key_id, written)
        self._waiting.append(_Waiting(unit, done, loop.time()))
        if self._drainer is None:
            self._drainer = asyncio.create_task(self._drain())
        return await done

    def prepare(self, statement: Insert | Update) -> _Bound:
        """Compile a statement, which takes as long as many rows, before its first row has to be quick."""
        if statement not in self._statements:
            self._statements[statement] = _Bound(statement, self._dialect)
        return self._statements[statement]

    async def idle(self, longest_s: float) -> None:
        """Wait until nothing waits or is being written, for at most `longest_s`.

        Those whose units were written in one transaction first all come here: none of them goes on before.
        """
        await asyncio.sleep(0)
        if self._drainer is not None:
            await asyncio.wait([self._drainer], timeout=longest_s)

    async def close(self) -> None:
        """Take no more, and let what waits be written."""
        self._closed = True
        if self._drainer is not None:
            await asyncio.wait([self._drainer])

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

    def __init__(self, statement: Insert | Update, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        self.sql = str(compiled)
        slots = [compiled.binds[name] for name in compiled.positiontup or ()]
        self._slots = [(slot.key, slot.value) for slot in slots]
        binds = [slot.type.dialect_impl(dialect).bind_processor(dialect) for slot in slots]
        self._binds = [(place, bind) for place, bind in enumerate(binds) if bind is not None]

    def values(self, given: Mapping[str, Any]) -> list[Any]:
        """Return a row's values in their order."""
        values = [given.get(name, default) for name, default in self._slots]
        for place, bind in self._binds:
            if values[place] is not None:  # most are, and null is null in every type that we have
                values[place] = bind(values[place])
        return values
