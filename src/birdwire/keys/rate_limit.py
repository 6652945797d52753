"""Rate limits of callers: calls per minute for each key, as an exact sliding window. Does not know what a call does."""

from __future__ import annotations

from collections import OrderedDict, deque
from math import ceil
from typing import TYPE_CHECKING, NamedTuple, Protocol

from birdwire.runtime.addresses import subscriber_of

if TYPE_CHECKING:
    from birdwire.api.messages import Headers
    from birdwire.runtime.clock import Clock

WINDOW_S = 60


class Allowance(NamedTuple):
    """What is left of a limit. `reset_at` (UNIX seconds) is when the oldest counted call leaves the window.

    `local`: the shared counters did not answer, so `limit` and `remaining` are this process's share.
    """

    granted: bool
    limit: int
    remaining: int
    reset_in_s: int
    reset_at: int
    local: bool = False

    def headers(self) -> Headers:
        """Return the headers: the contract's two spellings, and the IETF's (draft-ietf-httpapi-ratelimit-headers)."""
        limit, remaining, reset = str(self.limit), str(self.remaining), str(self.reset_at)
        headers = (
            ("x-ratelimit-limit-requests", limit),
            ("x-ratelimit-remaining-requests", remaining),
            ("x-ratelimit-reset-requests", reset),
            ("x-ratelimit-limit", limit),
            ("x-ratelimit-remaining", remaining),
            ("x-ratelimit-reset", reset),
            ("ratelimit-policy", f'"rpm";q={limit};w={WINDOW_S}'),
            ("ratelimit", f'"rpm";r={remaining};t={self.reset_in_s}'),
        )
        return (*headers, ("x-ratelimit-degraded", "local")) if self.local else headers


class RateLimit(Protocol):
    """At most `rpm` granted calls in any 60 s, for each name: a key's id, or what `failures_from` returns.

    A refused call is not counted, so a caller that waits for Retry-After is served.
    """

    degraded: int
    """Answers given without the shared counters, since the start."""

    replicas: int
    """Gateways that count together, as last reported."""

    async def start(self) -> None:
        """Prepare to count."""

    async def take(self, name: str, rpm: int) -> Allowance:
        """Count one call, if the limit allows it. Never fails, and waits for at most 50 ms."""

    async def close(self) -> None:
        """Stop counting."""


class LocalRateLimit:
    """The limits of one process that runs alone; the fallback of `SharedRateLimit`."""

    def __init__(self, clock: Clock) -> None:
        self.degraded = 0
        self.replicas = 1
        self._clock = clock
        # The least recently used name comes first.
        self._calls: OrderedDict[str, deque[float]] = OrderedDict()

    async def start(self) -> None:
        """Do nothing: the counters are in memory."""

    async def close(self) -> None:
        """Do nothing: the counters are in memory."""

    async def take(self, name: str, rpm: int) -> Allowance:
        """Count one call, if the limit allows it."""
        now = self._clock.monotonic()
        calls = self._window(name, now)
        granted = len(calls) < rpm
        if granted:
            calls.append(now)
        # If the limit was lowered meanwhile, the next call waits until fewer than rpm calls are left in the window.
        oldest = calls[0] if granted else calls[len(calls) - rpm]
        left_s = oldest + WINDOW_S - now
        reset_at = ceil(self._clock.unix_s() + left_s)
        return Allowance(granted, rpm, max(0, rpm - len(calls)), max(1, ceil(left_s)), reset_at)

    def count(self, name: str) -> None:
        """Count a call that the shared counters granted."""
        now = self._clock.monotonic()
        self._window(name, now).append(now)

    def _window(self, name: str, now: float) -> deque[float]:
        """Return the calls of a name in the last window, oldest first, and evict names without any."""
        while self._calls:
            idle, calls = next(iter(self._calls.items()))
            if calls and calls[-1] > now - WINDOW_S:
                break
            del self._calls[idle]
        if name in self._calls:
            self._calls.move_to_end(name)
        else:
            self._calls[name] = deque()
        calls = self._calls[name]
        while calls and calls[0] <= now - WINDOW_S:
            calls.popleft()
        return calls


def failures_from(peer: str) -> str:
    """Return the name under which calls with invalid keys are counted: the address, of IPv6 the subscriber's /64."""
    return f"failures from {subscriber_of(peer)}"
