"""What is due again and again while the gateway runs: a task for each chore, all ended together. Knows none itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from birdwire.runtime.telemetry import Telemetry

CLOSE_S = 5.0
Work = Callable[[], Awaitable[object]]


class BackgroundTasks:
    """Run each task again and again. The first failure in a row is logged; the next round comes all the same.

    An `expected` exception is an outage: it is logged by its name, without a traceback.
    """

    def __init__(
        self, telemetry: Telemetry, *chores: tuple[str, float, Work], expected: type[Exception] | None = None
    ) -> None:
        self._telemetry = telemetry
        self._expected = expected or ()
        self._chores = chores
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Do each chore now, and again so many seconds after each time that it was done."""
        for name, every_s, work in self._chores:
            self._tasks.append(asyncio.create_task(self._repeat(name, every_s, work), name=name))

    async def close(self) -> None:
        """Stop them all; one that does not let go within CLOSE_S is left to end with the loop."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_S)
        self._tasks.clear()

    async def _repeat(self, name: str, every_s: float, work: Work) -> None:
        failing = False
        while True:
            try:
                await work()
                failing = False
            except self._expected as error:
                if not failing:
                    self._telemetry.event("error", "chore_failed", chore=name, exception=type(error).__name__)
                failing = True
            except Exception as error:  # noqa: BLE001 - the chore goes on, whatever one round meets
                if not failing:
                    self._telemetry.crash(name, error)
                failing = True
            await asyncio.sleep(every_s)
