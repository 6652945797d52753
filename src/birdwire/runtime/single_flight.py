"""Single flight: concurrent callers share one attempt at a result, which none of them can cancel."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from birdwire.runtime.tasks import finish

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

Result = TypeVar("Result")


class SingleFlight(Generic[Result]):
    """Runs at most one coroutine for each name. Bounded by the names in use."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Result]] = {}

    def __contains__(self, name: str) -> bool:
        """Return whether an attempt for `name` is running."""
        return name in self._tasks

    async def run(self, name: str, start: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Return the result of the running attempt for `name`, or of a new one."""
        return await asyncio.shield(self.start(name, start))

    def start(self, name: str, start: Callable[[], Coroutine[Any, Any, Result]]) -> asyncio.Task[Result]:
        """Return the running attempt for `name`, or start one; it continues without a caller."""
        task = self._tasks.get(name)
        if task is None:
            task = self._tasks[name] = asyncio.create_task(start())
            task.add_done_callback(lambda done: self._finished(name, done))
        return task

    async def close(self, wait_s: float) -> None:
        """Wait for the running attempts; cancel them after `wait_s` seconds."""
        await finish(self._tasks.values(), wait_s)

    def _finished(self, name: str, task: asyncio.Task[Result]) -> None:
        del self._tasks[name]
        if not task.cancelled():
            # Retrieved here, in case every caller has been cancelled.
            task.exception()
