"""Group commit: rows that many callers append at once share one transaction, and are durable when they go on."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from birdwire.store.schema import RowRefusedError, StorageDownError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from sqlalchemy import Dialect, Insert, Update

MOST_WAITING = 10_000
MOST_TOGETHER = 128
"""Rows in one transaction: it ends within milliseconds, so that other writers are not held up."""


class Row(NamedTuple):
    """One row for the driver: the statement in its dialect, and the values in their order, as it takes them."""

    sql: str
    values: list[Any]


class Appends:
    """The rows of one database that wait for the next transaction.

    `commit` writes rows in one transaction, in their order, and returns the numbers of those that the database refused;
    where it raises StorageDownError, none of them is there.
    """

    def __init__(self, dialect: Dialect, commit: Callable[[Sequence[Row]], Awaitable[set[int]]]) -> None:
        self._dialect = dialect
        self._commit = commit
        self._statements: dict[Insert | Update, _Bound] = {}
        self._waiting: deque[tuple[Row, asyncio.Future[None]]] = deque()
        self._drainer: asyncio.Task[None] | None = None
        self._closed = False

    async def add(self, statement: Insert | Update, row: Mapping[str, Any]) -> None:
        """As `Database.append`."""
        bound = self._statements.get(statement)
        if bound is None:
            bound = self._statements[statement] = _Bound(statement, self._dialect)
        if self._closed or len(self._waiting) >= MOST_WAITING:
            raise StorageDownError("too many writes wait")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((bound.row(row), done))
        if self._drainer is None:
            self._drainer = asyncio.create_task(self._drain())
        await done

    async def close(self) -> None:
        """Take no more, and let what waits be written."""
        self._closed = True
        if self._drainer is not None:
            await asyncio.wait([self._drainer])

    async def _drain(self) -> None:
        """Until nothing waits: one transaction after the other. What comes during one is in the next."""
        try:
            while self._waiting:
                await self._write([self._waiting.popleft() for _ in range(min(MOST_TOGETHER, len(self._waiting)))])
        finally:
            self._drainer = None
            while self._waiting:  # it broke: whoever waits must not wait for ever
                _, done = self._waiting.popleft()
                if not done.done():
                    done.set_exception(StorageDownError("the gateway ends"))

    async def _write(self, batch: list[tuple[Row, asyncio.Future[None]]]) -> None:
        refused: set[int] = set()
        fault: str | None = "the gateway ends"
        try:
            refused = await self._commit([row for row, _ in batch])
            fault = None
        except StorageDownError as error:
            fault = str(error)
        finally:
            for number, (_, done) in enumerate(batch):
                if done.done():  # its caller waits no more
                    continue
                if fault is not None:
                    done.set_exception(StorageDownError(fault))
                elif number in refused:
                    done.set_exception(RowRefusedError("the database does not take this row"))
                else:
                    done.set_result(None)


class _Bound:
    """A statement, compiled once for the engine's driver; its values are bound by the types of their columns."""

    def __init__(self, statement: Insert | Update, dialect: Dialect) -> None:
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
