"""The clock: passed to every part that needs the time, so that tests can move it."""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime


class Clock:
    """Returns the time of day (`unix_s`, `now`) and measures durations (`monotonic`, which never goes back)."""

    # Functions of C without a frame of Python: a call reads the time about 15 times.
    unix_s = staticmethod(time.time)
    """Return the time of day in UNIX seconds."""

    monotonic = staticmethod(time.monotonic)
    """Return seconds since an arbitrary fixed moment."""

    def now(self) -> datetime:
        """Return the time of day, aware, in UTC."""
        return datetime.fromtimestamp(self.unix_s(), UTC)

    def adjusted(self, at: datetime) -> datetime:
        """Return the time of another clock, such as the database's; a test that moves this clock moves that one too."""
        return at

    async def pause(self, max_s: float) -> None:
        """Sleep for a random time up to `max_s` (full jitter), so that concurrent failures do not retry together."""
        await asyncio.sleep(random.uniform(0, max_s))  # noqa: S311 - not used for security


def rfc3339(at: datetime) -> str:
    """Format a time as `2026-04-18T07:00:00Z`: whole seconds, UTC (RFC 3339 §5.6)."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
