"""The limits, one suite for both of their forms: in memory, and in Redis for three replicas."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from birdwire.keys.rate_limit import WINDOW_S, Allowance, LocalRateLimit, RateLimit, failures_from
from birdwire.keys.redis_rate_limit import SharedRateLimit
from birdwire.runtime.telemetry import Telemetry
from harness.gateway import MovableClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from harness.engines import Redis

PATIENT_S = 20.0  # these tests are about counting; that a slow server is not waited for has tests of its own

AGE = """
local times = redis.call('LRANGE', KEYS[1], 0, -1)
for index, time in ipairs(times) do redis.call('LSET', KEYS[1], index - 1, time - ARGV[1]) end
return #times
"""


class Counters:
    """Three takers of the same limits. `advance` makes what was counted so much older."""

    def __init__(self, takers: list[RateLimit], clock: MovableClock, redis: Redis | None) -> None:
        self._redis, self._clock = redis, clock
        self._turns = itertools.cycle(takers)

    async def take(self, rpm: int, name: str = "key_a") -> Allowance:
        """One call, by the next taker."""
        allowance = await next(self._turns).take(name, rpm)
        assert not allowance.local
        return allowance

    async def granted(self, times: int, rpm: int, name: str = "key_a") -> int:
        """Make this many concurrent calls, spread over the takers, and return how many are granted."""
        return sum([answer.granted for answer in await asyncio.gather(*(self.take(rpm, name) for _ in range(times)))])

    def advance(self, seconds: int) -> None:
        """Time goes by."""
        self._clock.advance(seconds=seconds)
        if self._redis is not None:
            for key in self._redis.ask("KEYS", "birdwire:calls:*"):
                self._redis.ask("EVAL", AGE, 1, key, seconds * 1_000_000)


@contextlib.asynccontextmanager
async def counters(kind: str, redis: Redis) -> AsyncIterator[Counters]:
    """Fresh ones."""
    clock = MovableClock()
    if kind == "memory":
        yield Counters([LocalRateLimit(clock)] * 3, clock, None)
        return
    redis.ask("FLUSHALL")
    log = Telemetry(io.StringIO(), clock)
    takers = [SharedRateLimit(redis.url, clock, log, budget_s=PATIENT_S) for _ in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        for taker in takers:
            await taker.start()
            stack.push_async_callback(taker.close)
        yield Counters([*takers], clock, redis)


@pytest_asyncio.fixture(params=["memory", "redis"])
async def three(request: pytest.FixtureRequest, redis: Redis) -> AsyncIterator[Counters]:
    """Three takers, in each form."""
    async with counters(request.param, redis) as made:
        yield made


@pytest.mark.trust("G5")
@pytest.mark.parametrize("rpm", [1, 100, 3_000])
async def test_exactly_the_limit_is_granted_however_many_ask(three: Counters, rpm: int) -> None:
    """Three takers, interleaved, a third more calls than there may be."""
    assert await three.granted(rpm + rpm // 3 + 2, rpm) == rpm
    assert await three.granted(10, rpm) == 0


async def test_a_call_leaves_after_a_minute_and_not_before(three: Counters) -> None:
    """The window slides: each call makes room for one, sixty seconds later."""
    assert await three.granted(2, 3) == 2
    three.advance(30)
    assert await three.granted(2, 3) == 1
    three.advance(25)
    assert await three.granted(1, 3) == 0
    three.advance(5)
    assert await three.granted(5, 3) == 2
    three.advance(30)
    assert await three.granted(5, 3) == 1


async def test_a_refused_call_is_not_counted(three: Counters) -> None:
    """A caller that waits for the stated time is served, however often it called before."""
    assert await three.granted(50, 2) == 2
    three.advance(WINDOW_S)
    assert await three.granted(50, 2) == 2


async def test_a_raised_or_lowered_limit_applies_immediately(three: Counters) -> None:
    """With a lowered one, the reset is when fewer calls are left than it allows."""
    for _ in range(5):
        assert (await three.take(5)).granted
        three.advance(10)
    assert (await three.take(6)).granted  # ages now: 50 40 30 20 10 0
    lowered = await three.take(2)
    assert (lowered.granted, lowered.limit, lowered.remaining) == (False, 2, 0)
    assert 48 <= lowered.reset_in_s <= 50  # once the call of ten seconds ago has left, one is left
    three.advance(50)
    assert (await three.take(2)).granted


async def test_the_answer_states_the_remaining_calls_and_the_reset(three: Counters) -> None:
    """In whole seconds, never too early; the reset as a duration and as a time agree."""
    first = await three.take(3)
    assert (first.granted, first.limit, first.remaining, first.reset_in_s) == (True, 3, 2, 60)
    three.advance(20)
    second = await three.take(3)
    assert (second.remaining, 38 <= second.reset_in_s <= 40) == (1, True)
    assert [value for name, value in second.headers() if name.endswith("requests")][:2] == ["3", "1"]
    assert ("ratelimit-policy", '"rpm";q=3;w=60') in second.headers()
    assert ("ratelimit", f'"rpm";r=1;t={second.reset_in_s}') in second.headers()
    assert not any(name == "x-ratelimit-degraded" for name, _ in second.headers())


async def test_each_name_has_its_own_limit(three: Counters) -> None:
    """One key's flood is its own."""
    assert await three.granted(20, 5, "key_a") == 5
    assert await three.granted(20, 7, "key_b") == 7


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from([0, 5, 10, 20, 30, 60]), st.sampled_from(["a", "b"]), st.integers(1, 6)), max_size=40
    )
)
@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_the_limiter_matches_a_naive_count_of_calls(kind: str, redis: Redis, steps: list[tuple[int, str, int]]) -> None:
    """A list of all calls, counted again each time, grants the same and leaves the same."""

    async def check() -> None:
        async with counters(kind, redis) as three:
            now, calls = 0, list[tuple[int, str]]()
            for seconds, name, rpm in steps:
                now += seconds
                three.advance(seconds)
                live = [at for at, whose in calls if whose == name and at > now - WINDOW_S]
                allowance = await three.take(rpm, name)
                assert allowance.granted == (len(live) < rpm)
                if allowance.granted:
                    calls.append((now, name))
                    live.append(now)
                assert allowance.remaining == max(0, rpm - len(live))

    asyncio.run(check())


async def test_memory_follows_the_calls_of_the_last_minute(redis: Redis) -> None:
    """A thousand inactive callers leave nothing in memory or in Redis, where entries expire."""
    clock = MovableClock()
    local = LocalRateLimit(clock)
    for number in range(1_000):
        await local.take(f"key_{number}", 5)
    clock.advance(seconds=WINDOW_S)
    await local.take("key_last", 5)
    assert len(local._calls) == 1  # noqa: SLF001 - memory has no other face
    async with counters("redis", redis) as three:
        await three.granted(20, 5)
        assert redis.ask("LLEN", "birdwire:calls:key_a") == 5
        assert 0 < int(redis.ask("PTTL", "birdwire:calls:key_a")) <= WINDOW_S * 1_000 + 1


async def test_a_big_key_costs_hardly_more_than_a_small_one(redis: Redis) -> None:
    """Finding what has left takes steps by the logarithm: a call at 3,000 a minute looks at a few dozen times."""

    def looked() -> int:
        stats = str(redis.ask("INFO", "commandstats"))
        found = [line for line in stats.splitlines() if line.startswith("cmdstat_lindex:")]
        return int(found[0].partition("calls=")[2].partition(",")[0]) if found else 0

    async with counters("redis", redis) as three:
        assert await three.granted(1_500, 3_000) == 1_500
        three.advance(40)
        assert await three.granted(1_499, 3_000) == 1_499
        three.advance(20)
        before = looked()
        assert (await three.take(3_000)).remaining == 1_500
        assert looked() - before <= 30
        before = looked()
        assert (await three.take(3_000)).remaining == 1_499
        assert looked() - before <= 5


@pytest.mark.parametrize(("ahead_s", "granted"), [(30, 0), (90, 2)])
async def test_setting_the_clock_of_redis_back_blocks_no_key_for_long(redis: Redis, ahead_s: int, granted: int) -> None:
    """Times yet to come still count, unless they are more than a minute off: then counting starts over."""
    async with counters("redis", redis) as three:
        assert await three.granted(2, 2) == 2
        three.advance(-ahead_s)
        assert await three.granted(5, 2) == granted


async def test_failed_keys_are_limited_by_ipv4_address_or_ipv6_64() -> None:
    """An IPv4 address; of IPv6 the /64, or a guesser would have 2^64 of them."""
    assert failures_from("192.0.2.7") != failures_from("192.0.2.8")
    assert failures_from("2001:db8:1:2::1") == failures_from("2001:db8:1:2:ffff::9")
    assert failures_from("2001:db8:1:2::1") != failures_from("2001:db8:1:3::1")
    assert failures_from("::1") == "failures from ::/64"
    assert failures_from("") == "failures from "
