"""The sandbox's time: the wall clock plus an offset that a caller may move. Nothing else here may ask for the time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FURTHEST = timedelta(days=3650)


def wall() -> datetime:
    """The machine's time, aware, UTC."""
    return datetime.now(UTC)


class Clock:
    """A clock that can be moved by up to ten years, forwards and back."""

    def __init__(self, source: Callable[[], datetime] = wall) -> None:
        self._source = source
        self._offset = timedelta()

    @property
    def offset_s(self) -> float:
        """How far this clock is ahead of its source, in seconds."""
        return self._offset.total_seconds()

    def now(self) -> datetime:
        """The time, aware, UTC."""
        return self._source() + self._offset

    def epoch_s(self) -> int:
        """The time as whole UNIX seconds."""
        return int(self.now().timestamp())

    def advance(self, seconds: float) -> None:
        """Move by `seconds`; ValueError beyond ten years from the source."""
        offset = self._offset + timedelta(seconds=seconds)
        if abs(offset) > FURTHEST:
            raise ValueError("the clock moves by ten years at most")
        self._offset = offset

    def set_offset(self, seconds: float) -> None:
        """Stand `seconds` ahead of the source."""
        self._offset = timedelta()
        self.advance(seconds)
