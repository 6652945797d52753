"""The order of calls that undo each other: those of one account on one target run one after another, as they came.

So a like that is tried again never lands after the unlike that came later. Within this process by turns; what other
processes were asked, the journal knows. It must never hold a call past its deadline.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from birdwire.api.errors import GatewayError

if TYPE_CHECKING:
    from birdwire.x.catalog.operations import Operation

MOST_WAITING = 100

AskedLater = Callable[[], Awaitable[bool]]
"""Whether the opposite was asked for after this call, by the journal."""

_Place = tuple[str, str, str]


def canonical(item_id: str) -> str:
    """An id of X without leading zeros: X reads `007` and `7` as the same."""
    return item_id.lstrip("0") or "0" if item_id.isdecimal() else item_id


class Ticket:
    """One call's place in its queue."""

    __slots__ = ("_asked_later", "_come", "_lane", "_operation", "place")

    def __init__(self, place: _Place, operation: str, lane: deque[Ticket], asked_later: AskedLater) -> None:
        self.place = place
        self._operation = operation
        self._lane = lane
        self._asked_later = asked_later
        self._come: asyncio.Future[None] | None = None

    async def come(self, within_s: float) -> None:
        """Wait until every earlier call of the queue has ended.

        Raises:
            GatewayError: x_timeout, nothing sent: they took longer than `within_s`.
        """
        if self._lane[0] is self:
            return
        self._come = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(within_s):
                await self._come
        except TimeoutError:
            raise GatewayError("x_timeout", outcome="not_sent") from None

    async def overtaken(self) -> bool:
        """Whether a newer call asks for the opposite, here or in another process.

        Raises:
            StorageDownError: the journal cannot be asked.
        """
        if any(turn._operation != self._operation for turn in self._lane):  # noqa: SLF001 - the same class
            return True
        return await self._asked_later()

    def pass_on(self) -> None:
        """Leave the queue; the next call comes."""
        first = self._lane[0] is self
        self._lane.remove(self)
        if first and self._lane:
            come = self._lane[0]._come  # noqa: SLF001 - the same class
            if come is not None and not come.done():
                come.set_result(None)


class WriteOrder:
    """The queues. One exists only while a call is in it."""

    def __init__(self) -> None:
        self._lanes: dict[_Place, deque[Ticket]] = {}

    @property
    def waiting(self) -> int:
        """How many calls wait for an earlier one."""
        return sum(len(lane) - 1 for lane in self._lanes.values())

    def join(self, account: str, operation: Operation, target: str, asked_later: AskedLater) -> Ticket | None:
        """A turn, to be given to `leave` at the end; None for what has no opposite.

        Raises:
            GatewayError: overloaded: the queue is full.
        """
        if not operation.opposite:
            return None
        place = (account, min(operation.name, operation.opposite), canonical(target))
        lane = self._lanes.get(place)
        if lane is None:
            lane = self._lanes[place] = deque()
        elif len(lane) >= MOST_WAITING:
            raise GatewayError("overloaded")
        turn = Ticket(place, operation.name, lane, asked_later)
        lane.append(turn)
        return turn

    def leave(self, turn: Ticket | None) -> None:
        """The call has ended, however it did."""
        if turn is None:
            return
        turn.pass_on()
        if not self._lanes[turn.place]:
            del self._lanes[turn.place]
