"""The small parts of `runtime`: slots, backoff and the bounded dict."""

from __future__ import annotations

import asyncio
from itertools import islice

import pytest

from birdwire.runtime.backoff import Backoff
from birdwire.runtime.bounded_dict import BoundedDict
from birdwire.runtime.clock import Clock
from birdwire.runtime.slots import Slots


async def test_released_slots_go_to_the_waiters_in_order_and_to_urgent_ones_first() -> None:
    """A newcomer cannot overtake them."""
    slots, order = Slots(1), list[str]()
    assert slots.try_acquire()
    ends_at = asyncio.get_running_loop().time() + 60

    async def wait(name: str, *, urgent: bool) -> None:
        await slots.wait(ends_at, urgent=urgent)
        order.append(name)
        slots.release()

    waiters = [asyncio.create_task(wait(name, urgent=name == "urgent")) for name in ("first", "second", "urgent")]
    await asyncio.sleep(0)
    slots.release()
    assert not slots.try_acquire()
    await asyncio.gather(*waiters)
    assert (order, slots.in_use) == (["urgent", "first", "second"], 0)


async def test_a_waiter_that_gives_up_loses_no_slot() -> None:
    """Whether its time is up, it is cancelled, or it is cancelled just as the slot comes."""
    slots, loop = Slots(1), asyncio.get_running_loop()
    assert slots.try_acquire()
    with pytest.raises(TimeoutError):
        await slots.wait(loop.time())
    waiters = [asyncio.create_task(slots.wait(loop.time() + 60)) for _ in range(2)]
    await asyncio.sleep(0)
    waiters[0].cancel()
    await asyncio.sleep(0)
    slots.release()
    waiters[1].cancel()
    assert all(
        isinstance(one, asyncio.CancelledError) for one in await asyncio.gather(*waiters, return_exceptions=True)
    )
    assert (slots.in_use, slots.try_acquire()) == (0, True)


def test_pauses_double_up_to_their_maximum() -> None:
    """Also after more failures than a float has powers of two."""
    backoff = Backoff(initial_s=0.5, max_s=3.0)
    assert list(islice(backoff, 5)) == [backoff.pause_s(n) for n in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert backoff.pause_s(10_000) == 3.0


def test_a_new_key_evicts_the_oldest_one() -> None:
    """A key that is set again keeps its age, unless it is moved."""
    evicted = list[str]()
    bounded: BoundedDict[str, int] = BoundedDict(2, evicted.append)
    bounded["a"] = bounded["b"] = bounded["a"] = 1
    bounded["c"] = 1
    assert (list(bounded), evicted) == (["b", "c"], ["a"])
    bounded.move_to_end("b")
    assert bounded.setdefault("d", 1) == 1
    assert (list(bounded), evicted) == (["b", "d"], ["a", "c"])


def test_a_clock_that_a_test_moves_has_one_time_of_day() -> None:
    """`now` follows `unix_s`, so that a fake clock replaces one method and cannot contradict itself."""

    class Still(Clock):
        def unix_s(self) -> float:
            return 1_776_495_600.123456

    assert Still().now().isoformat() == "2026-04-18T07:00:00.123456+00:00"
    assert abs(Clock().now().timestamp() - Clock().unix_s()) < 60
