"""How many calls are worked on at once, in all and for each key; who waits, in which order, and who is sent away."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from birdwire.errors import GatewayError

if TYPE_CHECKING:
    from birdwire.metrics import Metrics

WAIT_S = 1.0
"""How long a call waits for its turn: who comes back later is served sooner than who queues."""

Turns = deque[asyncio.Future[None]]


class Crowd:
    """At most `most` calls at once, of one key at most `each`, those that wait included; at most `queued` wait.

    Turns go round the keys that wait, so that none has to stand behind another's rush. Every refusal is immediate, but
    that of a turn which did not come within `wait_s`.
    """

    def __init__(self, most: int, queued: int, each: int, metrics: Metrics, *, wait_s: float = WAIT_S) -> None:
        self._most = most
        self._most_queued = queued
        self._most_each = each
        self._metrics = metrics
        self._wait_s = wait_s
        self._each: dict[str, int] = {}
        self._waiting: OrderedDict[str, Turns] = OrderedDict()  # whose turn is next first
        self.running = 0
        self.queued = 0

    def look(self) -> None:
        """Refuse at the door while nobody could come in: that costs next to nothing, as it must when there are many.

        Raises:
            GatewayError: overloaded.
        """
        if self.running >= self._most and self.queued >= self._most_queued:
            raise self._shed("full")

    async def enter(self, key_id: str) -> None:
        """Come in, or wait for a turn; who came in must leave.

        Raises:
            GatewayError: overloaded.
        """
        of_key = self._each.get(key_id, 0)
        if of_key >= self._most_each:
            raise self._shed("key")
        if self.running >= self._most and self.queued >= self._most_queued:
            raise self._shed("full")
        self._each[key_id] = of_key + 1
        if self.running < self._most:
            self.running += 1
            return
        try:
            await self._turn(key_id)
        except BaseException:
            self._forget(key_id)
            raise

    def leave(self, key_id: str) -> None:
        """Make room for the next."""
        self._forget(key_id)
        self._pass_on()

    async def _turn(self, key_id: str) -> None:
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.setdefault(key_id, deque()).append(turn)
        self.queued += 1
        timer = loop.call_later(self._wait_s, self._too_late, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._pass_on()  # the turn came in the same round of the loop as the cancellation
            raise
        finally:
            timer.cancel()
            self.queued -= 1
            turns = self._waiting.get(key_id, deque())
            if turn in turns:  # it was not passed on, but given up
                turns.remove(turn)
                if not turns:
                    del self._waiting[key_id]

    def _pass_on(self) -> None:
        """Give a place that became free to the next who waits; a place is handed over, so nobody overtakes."""
        while self._waiting:
            key_id, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[key_id] = turns  # at the end: the other keys come first
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    def _too_late(self, turn: asyncio.Future[None]) -> None:
        if not turn.done():
            turn.set_exception(self._shed("late"))

    def _forget(self, key_id: str) -> None:
        left = self._each.pop(key_id) - 1
        if left:
            self._each[key_id] = left

    def _shed(self, why: str) -> GatewayError:
        self._metrics.add("birdwire_calls_shed_total", why)
        return GatewayError("overloaded")
