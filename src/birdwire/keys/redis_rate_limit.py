"""Rate limits that all replicas share through one Redis or Valkey database, with a local fallback."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from ulid import ULID

from birdwire.keys.rate_limit import Allowance, LocalRateLimit
from birdwire.keys.redis_connection import BUDGET_S, RedisConnection, RedisUnavailableError, Script

if TYPE_CHECKING:
    from birdwire.keys.rate_limit import RateLimit
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.telemetry import Telemetry
    from birdwire.settings import Settings


REPLICA_S = 10
"""A replica that reported nothing for this long is no longer counted."""

_TAKE = Script("""
-- Keeps the times (µs) of a name's granted calls, oldest first, by this server's clock, which all replicas share.
local time, window, limit = redis.call('TIME'), 60000000, tonumber(ARGV[1])
local now = time[1] * 1000000 + time[2]
local count = redis.call('LLEN', KEYS[1])
local function at(index) return tonumber(redis.call('LINDEX', KEYS[1], index)) end

if count > 0 and at(-1) > now then  -- the clock stepped back: wait for it, or start over if that would take long
  if at(-1) > now + window then
    redis.call('DEL', KEYS[1])
    count = 0
  else
    now = at(-1)
  end
end

if count > 0 and at(0) <= now - window then  -- find how many have left the window: double the step, then halve it
  local expired, kept = 1, 2
  while kept <= count and at(kept - 1) <= now - window do expired, kept = kept, kept * 2 end
  kept = math.min(kept, count + 1)
  while kept - expired > 1 do
    local middle = math.floor((expired + kept) / 2)
    if at(middle - 1) <= now - window then expired = middle else kept = middle end
  end
  redis.call('LTRIM', KEYS[1], expired, -1)
  count = count - expired
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

_REPORT = Script("""
-- Returns how many replicas reported recently, including this one.
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

    While it does not answer, each replica enforces its share: the limit divided by the number of replicas last seen
    alive, at least 1, and only the calls that this replica admitted in the last 60 s count. Calls admitted this way are
    not added to Redis later, and calls that Redis lost are not restored: in a window that contains such a change, at
    most twice the limit is granted.
    """

    def __init__(self, url: str, clock: Clock, telemetry: Telemetry, *, budget_s: float = BUDGET_S) -> None:
        self.degraded = 0
        self.replicas = 1
        self._replica = str(ULID())
        self._own = LocalRateLimit(clock)
        self._telemetry = telemetry
        self._redis = RedisConnection(url, self._report, self._changed, budget_s=budget_s)

    async def start(self) -> None:
        """Connect, if the server answers."""
        await self._redis.start()

    async def close(self) -> None:
        """Deregister, so that the other replicas' shares grow, and disconnect."""
        try:
            await self._redis.run(_LEAVE, _REPLICAS, self._replica)
        except RedisUnavailableError:
            # The other replicas notice within REPLICA_S.
            pass
        finally:
            await self._redis.close()

    async def take(self, name: str, rpm: int) -> Allowance:
        """Count one call, if the limit allows it."""
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
            except RedisUnavailableError:
                pass
        self.degraded += 1
        return (await self._own.take(name, max(1, rpm // self.replicas)))._replace(local=True)

    async def _report(self) -> None:
        replicas = await self._redis.run(_REPORT, _REPLICAS, self._replica, REPLICA_S)
        if not isinstance(replicas, int) or replicas < 1:
            self._redis.distrust("garbage")
            raise RedisUnavailableError("garbage")
        self.replicas = replicas

    def _changed(self, up: bool, why: str) -> None:  # noqa: FBT001 - the signature of the connection's callback
        if up:
            self._telemetry.event("info", "limits_shared", replicas=self.replicas)
        else:
            self._telemetry.event("warning", "limits_local", replicas=self.replicas, why=why)


def rate_limit_of(settings: Settings, clock: Clock, telemetry: Telemetry) -> RateLimit:
    """Return the rate limit of calls: this process's own, or one that replicas share in Redis."""
    url = settings.redis_url
    return LocalRateLimit(clock) if url is None else SharedRateLimit(url.get_secret_value(), clock, telemetry)
