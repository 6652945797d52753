"""X's rate limit windows: fixed spans that start with the first call counted in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

QUARTER_S = 900
DAY_S = 86_400


@dataclass(frozen=True)
class Window:
    """One limit that applies to a call; `header` is the prefix of its three response headers."""

    key: Hashable
    limit: int
    length_s: int
    header: str


@dataclass(frozen=True)
class Reading:
    """State of a window: the remaining calls, and the UNIX second at which it resets."""

    window: Window
    remaining: int
    reset: int

    def headers(self) -> dict[str, str]:
        """Return X's three headers for this window."""
        prefix = self.window.header
        return {
            f"{prefix}-limit": str(self.window.limit),
            f"{prefix}-remaining": str(self.remaining),
            f"{prefix}-reset": str(self.reset),
        }


class RateLimits:
    """Counts calls by window."""

    def __init__(self) -> None:
        # Key -> (reset, counted calls).
        self._spans: dict[Hashable, tuple[int, int]] = {}

    def take(self, windows: Sequence[Window], now_s: int) -> tuple[bool, list[Reading]]:
        """Count one call in every window, or in none if one of them is used up. Return True if it was counted."""
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
        # After the clock moved back, a window must not last longer than its length.
        if reset <= now_s or reset > now_s + window.length_s:
            return now_s + window.length_s, 0
        return reset, used

    def clear(self) -> None:
        """Reset every window."""
        self._spans.clear()
