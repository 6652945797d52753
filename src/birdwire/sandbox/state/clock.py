"""The sandbox's clock: the real time plus an adjustable offset. No other module of the sandbox reads the time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FURTHEST = timedelta(days=3650)


def wall() -> datetime:
    """Return the machine's time, timezone-aware, in UTC."""
    return datetime.now(UTC)


class Clock:
    """A clock that can be moved by up to ten years, forwards and backwards."""

    def __init__(self, source: Callable[[], datetime] = wall) -> None:
        self._source = source
        self._offset = timedelta()

    @property
    def offset_s(self) -> float:
        """Return how far this clock is ahead of its source, in seconds."""
        return self._offset.total_seconds()

    def now(self) -> datetime:
        """Return the time, timezone-aware, in UTC."""
        return self._source() + self._offset

    def epoch_s(self) -> int:
        """Return the time in whole UNIX seconds."""
        return int(self.now().timestamp())

    def advance(self, seconds: float) -> None:
        """Move the clock by `seconds`; raise ValueError beyond ten years from the source."""
        offset = self._offset + timedelta(seconds=seconds)
        if abs(offset) > FURTHEST:
            raise ValueError("the clock can move by at most ten years")
        self._offset = offset

    def set_offset(self, seconds: float) -> None:
        """Set the clock `seconds` ahead of the source."""
        self._offset = timedelta()
        self.advance(seconds)
