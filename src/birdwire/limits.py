"""Our limits: calls a minute for each key, as an exact sliding window. Knows nothing of what a call does."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from birdwire.call import Headers
    from birdwire.clock import Clock

WINDOW_S = 60


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a key may still do. `reset_at` (UNIX seconds) is when the oldest counted call leaves the window."""

    granted: bool
    limit: int
    remaining: int
    reset_in_s: int
    reset_at: int

    def headers(self) -> Headers:
        """The contract's two spellings, and the IETF draft's (draft-ietf-httpapi-ratelimit-headers)."""
        limit, remaining, reset = str(self.limit), str(self.remaining), str(self.reset_at)
        return (
            ("x-ratelimit-limit-requests", limit),
            ("x-ratelimit-remaining-requests", remaining),
            ("x-ratelimit-reset-requests", reset),
            ("x-ratelimit-limit", limit),
            ("x-ratelimit-remaining", remaining),
            ("x-ratelimit-reset", reset),
            ("ratelimit-policy", f'"rpm";q={limit};w={WINDOW_S}'),
            ("ratelimit", f'"rpm";r={remaining};t={self.reset_in_s}'),
        )


class Limits:
    """At most `rpm` granted calls in any 60 s, for each key; in the memory of one process.

    A call that is refused here is not counted, so a caller that waits as told is served. Keys that were quiet for a
    window are forgotten, so memory follows the keys in use.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._calls: OrderedDict[str, deque[float]] = OrderedDict()  # least recently used first

    def take(self, key_id: str, rpm: int) -> Allowance:
        """Count one call, if the key may still make it."""
        now = self._clock.monotonic()
        self._forget_quiet(now)
        calls = self._calls.setdefault(key_id, deque())
        self._calls.move_to_end(key_id)
        while calls and calls[0] <= now - WINDOW_S:
            calls.popleft()
        granted = len(calls) < rpm
        if granted:
            calls.append(now)
        # If the limit was lowered meanwhile, the next call waits until fewer than rpm calls are left in the window.
        oldest = calls[0] if granted else calls[len(calls) - rpm]
        reset_in_s = max(1, ceil(oldest + WINDOW_S - now))
        reset_at = ceil(self._clock.now().timestamp() + oldest + WINDOW_S - now)
        return Allowance(granted, rpm, max(0, rpm - len(calls)), reset_in_s, reset_at)

    def _forget_quiet(self, now: float) -> None:
        while self._calls:
            key_id, calls = next(iter(self._calls.items()))
            if calls[-1] > now - WINDOW_S:
                return
            del self._calls[key_id]
