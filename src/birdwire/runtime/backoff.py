"""Exponential backoff: each pause is twice as long as the one before it, up to a maximum."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_DOUBLINGS = 63


@dataclass(frozen=True, slots=True)
class Backoff:
    """The pauses between attempts. Callers that must not return together add jitter, such as `Clock.pause`."""

    initial_s: float
    max_s: float = inf

    def pause_s(self, pauses: int) -> float:
        """Return the length of the next pause after a number of earlier ones."""
        return min(self.max_s, self.initial_s * 2.0 ** min(pauses, _MAX_DOUBLINGS))

    def __iter__(self) -> Iterator[float]:
        """Return the pauses from the first one on, without end."""
        pause_s = self.initial_s
        while True:
            yield pause_s
            pause_s = min(self.max_s, 2 * pause_s)
