"""The time, as one thing that can be handed down and moved in tests."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime


class Clock:
    """`now` is the time of day; `monotonic` only ever rises, and measures durations."""

    def now(self) -> datetime:
        """Aware UTC."""
        return datetime.now(UTC)

    def told(self, at: datetime) -> datetime:
        """The time that another clock tells, for callers that count by it; a moved clock moves it too."""
        return at

    def monotonic(self) -> float:
        """Seconds since some fixed moment."""
        return time.monotonic()

    async def pause(self, longest_s: float) -> None:
        """Wait for any time up to `longest_s` (full jitter): those who failed together must not return together."""
        await asyncio.sleep(random.uniform(0, longest_s))  # noqa: S311 - nothing secret hangs on it


def rfc3339(at: datetime) -> str:
    """`2026-04-18T07:00:00Z`: whole seconds, UTC (RFC 3339 §5.6)."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
