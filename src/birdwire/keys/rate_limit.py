"""Our limits: calls a minute for each key, as an exact sliding window. Knows nothing of what a call does."""

from __future__ import annotations

from collections import OrderedDict, deque
from math import ceil
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ulid import ULID

from birdwire.keys.redis_connection import BUDGET_S, RedisAwayError, RedisConnection, Script
from birdwire.runtime.addresses import subscriber_of

if TYPE_CHECKING:
    from birdwire.api.messages import Headers
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.telemetry import Telemetry

WINDOW_S = 60
REPLICA_S = 10
"""A replica that was not heard of for so long is no longer counted."""


class Allowance(NamedTuple):
    """What a key may still do. `reset_at` (UNIX seconds) is when the oldest counted call leaves the window.

    `local`: the shared counters did not answer, so `limit` and what is left of it are this process's share.
    """

    granted: bool
    limit: int
    remaining: int
    reset_in_s: int
    reset_at: int
    local: bool = False

    def headers(self) -> Headers:
        """The contract's two spellings, and the IETF draft's (draft-ietf-httpapi-ratelimit-headers)."""
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
    """At most `rpm` granted calls in any 60 s, for each name: a key's id, or what `failures_from` says.

    A call that is refused here is not counted, so a caller that waits as told is served.
    """

    degraded: int
    """Answers given without the shared counters, since the start."""

    replicas: int
    """Gateways that count together, as last heard."""

    async def start(self) -> None:
        """Be ready to count."""

    async def take(self, name: str, rpm: int) -> Allowance:
        """Count one call, if it may still be made. Never fails, and waits for at most 50 ms."""

    async def close(self) -> None:
        """Count no more."""


class LocalRateLimit:
    """The limits of one process, in its memory.

    Names that were quiet for a window are forgotten, so memory follows the calls of the last minute.
    """

    def __init__(self, clock: Clock) -> None:
        self.degraded = 0
        self.replicas = 1
        self._clock = clock
        self._calls: OrderedDict[str, deque[float]] = OrderedDict()  # least recently used first

    async def start(self) -> None:
        """Nothing to be done."""

    async def close(self) -> None:
        """Nothing to be done."""

    async def take(self, name: str, rpm: int) -> Allowance:
        """Count one call, if it may still be made."""
        now = self._clock.monotonic()
        calls = self._window(name, now)
        granted = len(calls) < rpm
        if granted:
            calls.append(now)
        # If the limit was lowered meanwhile, the next call waits until fewer than rpm calls are left in the window.
        oldest = calls[0] if granted else calls[len(calls) - rpm]
        reset_in_s = max(1, ceil(oldest + WINDOW_S - now))
        reset_at = ceil(self._clock.now().timestamp() + oldest + WINDOW_S - now)
        return Allowance(granted, rpm, max(0, rpm - len(calls)), reset_in_s, reset_at)

    def count(self, name: str) -> None:
        """Count a call that was granted elsewhere."""
        now = self._clock.monotonic()
        self._window(name, now).append(now)

    def _window(self, name: str, now: float) -> deque[float]:
        """The calls of a name in the last window, oldest first."""
        while self._calls:
            quiet, calls = next(iter(self._calls.items()))
            if calls and calls[-1] > now - WINDOW_S:
                break
            del self._calls[quiet]
        calls = self._calls.setdefault(name, deque())
        self._calls.move_to_end(name)
        while calls and calls[0] <= now - WINDOW_S:
            calls.popleft()
        return calls


_TAKE = Script("""
-- The times (µs) of a name's granted calls, oldest first, by this server's clock, however many replicas ask.
local time, window, limit = redis.call('TIME'), 60000000, tonumber(ARGV[1])
local now = time[1] * 1000000 + time[2]
local count = redis.call('LLEN', KEYS[1])
local function at(index) return tonumber(redis.call('LINDEX', KEYS[1], index)) end

if count > 0 and at(-1) > now then  -- the clock was set back: wait for it, or start over if that would take long
  if at(-1) > now + window then
    redis.call('DEL', KEYS[1])
    count = 0
  else
    now = at(-1)
  end
end

if count > 0 and at(0) <= now - window then  -- find how many have left, by doubling and then halving the step
  local gone, kept = 1, 2
  while kept <= count and at(kept - 1) <= now - window do gone, kept = kept, kept * 2 end
  kept = math.min(kept, count + 1)
  while kept - gone > 1 do
    local middle = math.floor((gone + kept) / 2)
    if at(middle - 1) <= now - window then gone = middle else kept = middle end
  end
  redis.call('LTRIM', KEYS[1], gone, -1)
  count = count - gone
end

local granted, oldest = 0, 0
if count < limit then
  redis.call('RPUSH', KEYS[1], now)
  redis.call('PEXPIREAT', KEYS[1], math.ceil((now + window) / 1000))
  granted, count = 1, count + 1
else
  oldest = count - limit  -- above 0 if the limit was lowered
end
local reset = at(oldest) + window
return {granted, count, reset - now, reset}
""")

_BEAT = Script("""
-- How many replicas were heard of recently, this one included.
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
redis.call('EXPIRE', KEYS[1], ARGV[2])
return redis.call('ZCARD', KEYS[1])
""")

_LEAVE = Script("return redis.call('ZREM', KEYS[1], ARGV[1])")

_REPLICAS = "birdwire:replicas"


class SharedRateLimit:
    """The limits of all replicas that use one Redis or Valkey database: exact while it answers.

    When it does not, each replica enforces its share: the limit divided by the replicas last seen alive, at least 1,
    and what it admitted itself in the last 60 s counts. Calls admitted so are not counted in later, and what Redis
    forgot stays forgotten: in a window with such a turn in it, at most twice the limit is granted.
    """

    def __init__(self, url: str, clock: Clock, telemetry: Telemetry, *, budget_s: float = BUDGET_S) -> None:
        self.degraded = 0
        self.replicas = 1
        self._replica = str(ULID())
        self._own = LocalRateLimit(clock)
        self._telemetry = telemetry
        self._redis = RedisConnection(url, self._beat, self._turned, budget_s=budget_s)

    async def start(self) -> None:
        """Connect, if the server answers."""
        await self._redis.start()

    async def close(self) -> None:
        """Leave the others their share, and disconnect."""
        try:
            await self._redis.run(_LEAVE, _REPLICAS, self._replica)
        except RedisAwayError:
            pass  # they notice within REPLICA_S
        finally:
            await self._redis.close()

    async def take(self, name: str, rpm: int) -> Allowance:
        """Count one call, if it may still be made."""
        if self._redis.up:
            try:
                match await self._redis.run(_TAKE, f"birdwire:calls:{name}", rpm):
                    case [0 | 1 as granted, int(count), int(reset_in_us), int(reset_us)]:
                        if granted:
                            self._own.count(name)
                        reset_in_s, reset_at = max(1, ceil(reset_in_us / 1e6)), ceil(reset_us / 1e6)
                        return Allowance(bool(granted), rpm, max(0, rpm - count), reset_in_s, reset_at)
                    case _:
                        self._redis.distrust("garbage")
            except RedisAwayError:
                pass
        self.degraded += 1
        return (await self._own.take(name, max(1, rpm // self.replicas)))._replace(local=True)

    async def _beat(self) -> None:
        replicas = await self._redis.run(_BEAT, _REPLICAS, self._replica, REPLICA_S)
        if not isinstance(replicas, int) or replicas < 1:
            self._redis.distrust("garbage")
            raise RedisAwayError("garbage")
        self.replicas = replicas

    def _turned(self, up: bool, why: str) -> None:  # noqa: FBT001 - the connection's own callback
        if up:
            self._telemetry.event("info", "limits_shared", replicas=self.replicas)
        else:
            self._telemetry.event("warning", "limits_local", replicas=self.replicas, why=why)


def failures_from(peer: str) -> str:
    """The name under which calls with bad keys are counted: the address, of IPv6 the /64 that one subscriber has."""
    return f"failures from {subscriber_of(peer)}"
