"""X's rate windows: fixed spans that begin with the first call counted in them. Knows no endpoint and no clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

QUARTER_S = 900
DAY_S = 86_400


@dataclass(frozen=True)
class Window:
    """One limit that a call falls under; `header` is the prefix of its three answer headers."""

    key: Hashable
    limit: int
    length_s: int
    header: str


@dataclass(frozen=True)
class Reading:
    """Where a window stands: what is left, and the UNIX second at which it resets."""

    window: Window
    remaining: int
    reset: int

    def headers(self) -> dict[str, str]:
        """X's three headers for this window."""
        prefix = self.window.header
        return {
            f"{prefix}-limit": str(self.window.limit),
            f"{prefix}-remaining": str(self.remaining),
            f"{prefix}-reset": str(self.reset),
        }


class RateLimits:
    """Counts calls by window."""

    def __init__(self) -> None:
        self._spans: dict[Hashable, tuple[int, int]] = {}  # key -> (reset, calls counted)

    def take(self, windows: Sequence[Window], now_s: int) -> tuple[bool, list[Reading]]:
        """Count one call in every window, or in none if one of them is used up; True if it was counted."""
        spans = [self._span(window, now_s) for window in windows]
        free = all(used < window.limit for window, (_, used) in zip(windows, spans, strict=True))
        readings = []
        for window, (reset, used) in zip(windows, spans, strict=True):
            counted = used + free
            self._spans[window.key] = (reset, counted)
            readings.append(Reading(window, max(0, window.limit - counted), reset))
        return free, readings

    def _span(self, window: Window, now_s: int) -> tuple[int, int]:
        reset, used = self._spans.get(window.key, (0, 0))
        # A clock that was moved back must not leave a window open for longer than it is long.
        if reset <= now_s or reset > now_s + window.length_s:
            return now_s + window.length_s, 0
        return reset, used

    def clear(self) -> None:
        """Reset every window."""
        self._spans.clear()
