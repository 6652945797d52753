"""The order of writes that undo each other: those of one account on one target run one after another, as they came.

So a like that is retried never lands after the unlike that came later. The queues order the calls of this process; the
journal knows what other processes were asked. A call never waits past its deadline.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from birdwire.api.errors import GatewayError

if TYPE_CHECKING:
    from birdwire.x.catalog.operations import Operation

MAX_QUEUED_CALLS = 100

AskedLater = Callable[[], Awaitable[bool]]
"""Return whether, by the journal, the opposite was asked for after this call."""

_Subject = tuple[str, str, str]
"""An account, a pair of opposite operations and a target."""


def canonical(item_id: str) -> str:
    """Return an id of X without leading zeros: X reads `007` and `7` as the same id."""
    return item_id.lstrip("0") or "0" if item_id.isdecimal() else item_id


class Ticket:
    """One call's place in its queue."""

    __slots__ = ("_asked_later", "_became_first", "_operation", "_queue", "subject")

    def __init__(self, subject: _Subject, operation: str, queue: deque[Ticket], asked_later: AskedLater) -> None:
        self.subject = subject
        self._operation = operation
        self._queue = queue
        self._asked_later = asked_later
        self._became_first: asyncio.Future[None] | None = None

    @property
    def is_first(self) -> bool:
        """Whether every earlier call in the queue has finished."""
        return self._queue[0] is self

    async def wait_turn(self, timeout_s: float) -> None:
        """Wait until every earlier call in the queue has finished.

        Raises:
            GatewayError: x_timeout, not sent: they took longer than `timeout_s`.
        """
        if self.is_first:
            return
        self._became_first = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await self._became_first
        except TimeoutError:
            raise GatewayError("x_timeout", outcome="not_sent") from None

    async def superseded(self) -> bool:
        """Return whether a newer call asks for the opposite, in this process or another one.

        Raises:
            StorageDownError: the journal cannot be read.
        """
        if any(ticket._operation != self._operation for ticket in self._queue):  # noqa: SLF001 - the same class
            return True
        return await self._asked_later()

    def leave(self) -> None:
        """Leave the queue. If this call was the first one, the next one runs."""
        first = self.is_first
        self._queue.remove(self)
        if first and self._queue:
            became_first = self._queue[0]._became_first  # noqa: SLF001 - the same class
            if became_first is not None and not became_first.done():
                became_first.set_result(None)


class WriteOrder:
    """The queues. Each exists only while a call is in it."""

    def __init__(self) -> None:
        self._queues: dict[_Subject, deque[Ticket]] = {}

    @property
    def waiting(self) -> int:
        """The number of calls that wait for an earlier one."""
        return sum(len(queue) - 1 for queue in self._queues.values())

    def join(self, account: str, operation: Operation, target: str, asked_later: AskedLater) -> Ticket | None:
        """Return a ticket, to be passed to `leave` at the end; None for an operation without an opposite.

        Raises:
            GatewayError: overloaded: the queue is full.
        """
        if not operation.opposite:
            return None
        subject = (account, min(operation.name, operation.opposite), canonical(target))
        queue = self._queues.get(subject)
        if queue is None:
            queue = self._queues[subject] = deque()
        elif len(queue) >= MAX_QUEUED_CALLS:
            raise GatewayError("overloaded")
        ticket = Ticket(subject, operation.name, queue, asked_later)
        queue.append(ticket)
        return ticket

    def leave(self, ticket: Ticket | None) -> None:
        """Take a finished call out of its queue, however it finished."""
        if ticket is None:
            return
        if len(self._queues[ticket.subject]) == 1:
            # Emptied, so that no cycle of queue and ticket is left to the garbage collector.
            self._queues.pop(ticket.subject).clear()
        else:
            ticket.leave()
