"""Limits concurrent calls, in total and per key, so that one key's burst cannot delay another key's calls."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from birdwire.api.errors import GatewayError

if TYPE_CHECKING:
    from birdwire.runtime.metrics import Metrics

WAIT_S = 10.0
"""How long a call waits to run at most."""

Turns = deque[asyncio.Future[None]]


class ConcurrencyLimiter:
    """Runs at most `most` calls, and at most `each` of one key; at most `queued` wait, `each_queued` more of a key.

    Waiting calls run in the order of their key, and the keys that may run one take turns. A call that may neither run
    nor wait is refused immediately, and one that waited `wait_s` then. A key's own bound refuses with
    `concurrency_exceeded`, the process's with `overloaded`.
    """

    def __init__(
        self, *, most: int, queued: int, each: int, each_queued: int, metrics: Metrics, wait_s: float = WAIT_S
    ) -> None:
        self._most = most
        self._most_queued = queued
        self._most_each = each
        self._most_of_key = each + each_queued
        self._metrics = metrics
        self._wait_s = wait_s
        self._each: dict[str, int] = {}
        self._waiting: dict[str, Turns] = {}
        self._ready: OrderedDict[str, None] = OrderedDict()  # keys with a call that only waits for the process, in turn
        self.running = 0
        self.queued = 0

    def look(self) -> None:
        """Refuse a call before its key is known if it could neither run nor wait, which costs next to nothing.

        Raises:
            GatewayError: overloaded.
        """
        if self.running >= self._most and self.queued >= self._most_queued:
            raise self._shed("full")

    async def enter(self, key_id: str) -> None:
        """Start a call now, or when its turn comes. Every call that entered must leave.

        Raises:
            GatewayError: concurrency_exceeded, overloaded.
        """
        of_key = self._each.get(key_id, 0)
        if of_key < self._most_each and self.running < self._most:
            self._each[key_id] = of_key + 1
            self.running += 1
        else:
            await self._wait(key_id, of_key)

    def leave(self, key_id: str) -> None:
        """End a call, and start those that may run in its place."""
        left = self._each.pop(key_id) - 1
        if left:
            self._each[key_id] = left
        self.running -= 1
        if self._waiting:
            self._start_waiting(key_id)

    async def _wait(self, key_id: str, of_key: int) -> None:
        turns = self._waiting.get(key_id, deque())
        if of_key + len(turns) >= self._most_of_key:
            raise self._exceeded(f"at most {self._most_of_key} may run or wait at a time")
        if self.queued >= self._most_queued:
            raise self._shed("full")
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        turns.append(turn)
        self._waiting[key_id] = turns
        self.queued += 1
        if of_key < self._most_each:
            self._ready.setdefault(key_id)
        timer = loop.call_later(self._wait_s, self._expire, key_id, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.exception() is None:
                self.leave(key_id)  # the turn came in the same round of the loop as the cancellation
            raise
        finally:
            timer.cancel()
            if turn in turns:
                turns.remove(turn)
                self._taken(key_id, turns)

    def _start_waiting(self, key_id: str) -> None:
        """Start waiting calls while there is room, after a call of `key_id` ended; no new call can overtake them."""
        if key_id in self._waiting:
            self._ready.setdefault(key_id)
        while self._ready and self.running < self._most:
            key_id, _ = self._ready.popitem(last=False)
            turns = self._waiting[key_id]
            turn = turns.popleft()
            if not turn.done():
                turn.set_result(None)
                self._each[key_id] = self._each.get(key_id, 0) + 1
                self.running += 1
            self._taken(key_id, turns)
            if turns and self._each.get(key_id, 0) < self._most_each:
                self._ready[key_id] = None

    def _taken(self, key_id: str, turns: Turns) -> None:
        """Account for a turn that was taken out of its queue."""
        self.queued -= 1
        if not turns:
            del self._waiting[key_id]
            self._ready.pop(key_id, None)

    def _expire(self, key_id: str, turn: asyncio.Future[None]) -> None:
        """Refuse a call that waited too long; whose bound kept it waiting decides how."""
        if turn.done():
            return
        if self._each.get(key_id, 0) >= self._most_each:
            detail = f"{self._most_each} are running, and this call waited {self._wait_s:g} seconds"
            turn.set_exception(self._exceeded(detail))
        else:
            turn.set_exception(self._shed("late"))

    def _exceeded(self, detail: str) -> GatewayError:
        self._metrics.add("birdwire_calls_shed_total", "key")
        return GatewayError("concurrency_exceeded", detail=detail)

    def _shed(self, why: str) -> GatewayError:
        self._metrics.add("birdwire_calls_shed_total", why)
        return GatewayError("overloaded")
