"""The end of tasks in progress: wait for them, but not for long."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


async def finish(tasks: Iterable[asyncio.Task[Any]], within_s: float) -> None:
    """Wait until all tasks have ended; after that many seconds, cancel the rest."""
    running = list(tasks)
    if running:
        _, late = await asyncio.wait(running, timeout=within_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
