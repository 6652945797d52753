"""Limits concurrent calls, in total and per key, so that one key's burst cannot delay another key's calls."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from birdwire.api.errors import GatewayError

if TYPE_CHECKING:
    from birdwire.runtime.metrics import Metrics

MAX_WAIT_S = 10.0
"""How long a call may wait for a slot."""

Waiters = deque[asyncio.Future[None]]


class ConcurrencyLimiter:
    """Runs `max_running` calls, `max_running_each` of one key; `max_queued` more may wait, `max_queued_each` of a key.

    Waiting calls of a key run in their order, and keys with waiting calls are served round-robin. A call is refused
    immediately if it can neither run nor wait, and after `max_wait_s` of waiting. A key's own limit refuses with
    `concurrency_exceeded`, the limit of the process with `overloaded`.
    """

    def __init__(
        self,
        *,
        max_running: int,
        max_queued: int,
        max_running_each: int,
        max_queued_each: int,
        metrics: Metrics,
        max_wait_s: float = MAX_WAIT_S,
    ) -> None:
        self._max_running = max_running
        self._max_queued = max_queued
        self._max_running_each = max_running_each
        self._max_each = max_running_each + max_queued_each
        self._metrics = metrics
        self._max_wait_s = max_wait_s
        self._running_each: dict[str, int] = {}
        self._waiting: dict[str, Waiters] = {}
        # Keys with a call that waits only for the process's limit, in the order in which they are served.
        self._ready: OrderedDict[str, None] = OrderedDict()
        self.running = 0
        self.queued = 0

    def check(self) -> None:
        """Refuse a call, before its key is known, if it could neither run nor wait. This costs next to nothing.

        Raises:
            GatewayError: overloaded.
        """
        if self.running >= self._max_running and self.queued >= self._max_queued:
            raise self._shed("full")

    async def acquire(self, key_id: str) -> None:
        """Acquire a slot, now or once one is free. Each slot must be released.

        Raises:
            GatewayError: concurrency_exceeded, overloaded.
        """
        running = self._running_each.get(key_id, 0)
        if running < self._max_running_each and self.running < self._max_running:
            self._running_each[key_id] = running + 1
            self.running += 1
        else:
            await self._wait(key_id, running)

    def release(self, key_id: str) -> None:
        """Release a slot, and start the calls that may run in its place."""
        left = self._running_each.pop(key_id) - 1
        if left:
            self._running_each[key_id] = left
        self.running -= 1
        if self._waiting:
            self._start_waiting(key_id)

    async def _wait(self, key_id: str, running: int) -> None:
        waiters = self._waiting.get(key_id, deque())
        if running + len(waiters) >= self._max_each:
            raise self._exceeded(f"at most {self._max_each} may run or wait at a time")
        if self.queued >= self._max_queued:
            raise self._shed("full")
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        waiters.append(waiter)
        self._waiting[key_id] = waiters
        self.queued += 1
        if running < self._max_running_each:
            self._ready.setdefault(key_id)
        timer = loop.call_later(self._max_wait_s, self._expire, key_id, waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled() and waiter.exception() is None:
                # The slot came in the same iteration of the event loop as the cancellation.
                self.release(key_id)
            raise
        finally:
            timer.cancel()
            if waiter in waiters:
                waiters.remove(waiter)
                self._dequeued(key_id, waiters)

    def _start_waiting(self, key_id: str) -> None:
        """Start waiting calls while slots are free, after a call of `key_id` ended. No new call can overtake them."""
        if key_id in self._waiting:
            self._ready.setdefault(key_id)
        while self._ready and self.running < self._max_running:
            key_id, _ = self._ready.popitem(last=False)
            waiters = self._waiting[key_id]
            waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self._running_each[key_id] = self._running_each.get(key_id, 0) + 1
                self.running += 1
            self._dequeued(key_id, waiters)
            if waiters and self._running_each.get(key_id, 0) < self._max_running_each:
                self._ready[key_id] = None

    def _dequeued(self, key_id: str, waiters: Waiters) -> None:
        """Account for a waiter that has left its queue."""
        self.queued -= 1
        if not waiters:
            del self._waiting[key_id]
            self._ready.pop(key_id, None)

    def _expire(self, key_id: str, waiter: asyncio.Future[None]) -> None:
        """Refuse a call that has waited too long, with the reason of the limit that kept it waiting."""
        if waiter.done():
            return
        if self._running_each.get(key_id, 0) >= self._max_running_each:
            detail = f"{self._max_running_each} are running, and this call waited {self._max_wait_s:g} seconds"
            waiter.set_exception(self._exceeded(detail))
        else:
            waiter.set_exception(self._shed("late"))

    def _exceeded(self, detail: str) -> GatewayError:
        self._metrics.add("birdwire_calls_shed_total", "key")
        return GatewayError("concurrency_exceeded", detail=detail)

    def _shed(self, why: str) -> GatewayError:
        self._metrics.add("birdwire_calls_shed_total", why)
        return GatewayError("overloaded")
