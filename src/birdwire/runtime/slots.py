"""Slots: a bounded number of concurrent holders. The others wait in order of arrival, and only until their deadline."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

_Queue = OrderedDict[asyncio.Future[None], None]


class Slots:
    """A bounded number of slots. A released slot goes to the first waiter, so that a newcomer cannot overtake it."""

    def __init__(self, max_slots: int) -> None:
        self._max_slots = max_slots
        self._urgent: _Queue = OrderedDict()
        self._others: _Queue = OrderedDict()
        self.in_use = 0

    def try_acquire(self) -> bool:
        """Acquire a free slot, if there is one."""
        if self.in_use < self._max_slots:
            self.in_use += 1
            return True
        return False

    async def wait(self, ends_at: float, *, urgent: bool = False) -> None:
        """Acquire the next slot that is released. Urgent waiters come before the others.

        Raises:
            TimeoutError: none was released until `ends_at`, a time of the loop's clock.
        """
        loop = asyncio.get_running_loop()
        queue = self._urgent if urgent else self._others
        waiter: asyncio.Future[None] = loop.create_future()
        queue[waiter] = None
        timer = loop.call_at(ends_at, _expire, waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # The slot came in the same iteration of the loop as the cancellation.
                self.release()
            raise
        finally:
            timer.cancel()
            queue.pop(waiter, None)

    def release(self) -> None:
        """Release a slot, or hand it over to the first waiter."""
        while queue := self._urgent or self._others:
            waiter, _ = queue.popitem(last=False)
            if not waiter.done():
                waiter.set_result(None)
                return
        self.in_use -= 1


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())
