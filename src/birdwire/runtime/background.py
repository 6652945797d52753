"""Background tasks: each runs periodically while the gateway runs, and all are stopped together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from birdwire.runtime.telemetry import Telemetry

CLOSE_S = 5.0
Round = Callable[[], Awaitable[object]]


class BackgroundTasks:
    """Run each task again and again. The first failure in a row is logged; the next round comes all the same.

    An `expected` exception is an outage: it is logged by its name, without a traceback.
    """

    def __init__(
        self, telemetry: Telemetry, *tasks: tuple[str, float, Round], expected: type[Exception] | None = None
    ) -> None:
        self._telemetry = telemetry
        self._expected = expected or ()
        self._planned = tasks
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Run each task now, and again its interval after each round has finished."""
        for name, every_s, work in self._planned:
            self._tasks.append(asyncio.create_task(self._repeat(name, every_s, work), name=name))

    async def close(self) -> None:
        """Cancel all tasks; one that does not stop within CLOSE_S ends with the event loop."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_S)
        self._tasks.clear()

    async def _repeat(self, name: str, every_s: float, work: Round) -> None:
        failing = False
        while True:
            try:
                await work()
                failing = False
            except self._expected as error:
                if not failing:
                    self._telemetry.event("error", "chore_failed", chore=name, exception=type(error).__name__)
                failing = True
            except Exception as error:  # noqa: BLE001 - the task continues, whatever one round raises
                if not failing:
                    self._telemetry.crash(name, error)
                failing = True
            await asyncio.sleep(every_s)
