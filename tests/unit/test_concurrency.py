"""The concurrency limiter: how many calls run, which one runs next, which are refused; and nothing is left behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from birdwire.api.errors import GatewayError
from birdwire.gateway.concurrency import MAX_WAIT_S, ConcurrencyLimiter
from birdwire.runtime.metrics import Metrics


def crowd(metrics: Metrics | None = None, **bounds: Any) -> ConcurrencyLimiter:
    """Make a small one."""
    small = {"max_running": 2, "max_queued": 2, "max_running_each": 2, "max_queued_each": 2, "max_wait_s": 60.0}
    return ConcurrencyLimiter(**(small | bounds), metrics=metrics or Metrics())


async def settled() -> None:
    """Let everything go as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


def refusal(made: ConcurrencyLimiter, key_id: str) -> str:
    """Return why a call is refused immediately, without a turn of the loop."""
    with pytest.raises(GatewayError) as caught:
        made.acquire(key_id).send(None)
    return caught.value.reason


def waiting(made: ConcurrencyLimiter, *key_ids: str) -> list[asyncio.Task[None]]:
    """Start calls that will have to wait."""
    return [asyncio.create_task(made.acquire(key_id)) for key_id in key_ids]


def is_empty(made: ConcurrencyLimiter) -> bool:
    """Return whether no trace of any call is left."""
    left = (made.running, made.queued, made._waiting, made._running_each, dict(made._ready))  # noqa: SLF001 - that is the point
    return left == (0, 0, {}, {}, {})


def shed(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return how many calls were refused, by why; a reason that did not occur is left out."""
    (family,) = (family for family in metrics.collect() if family.name == "birdwire_calls_shed")
    return {tuple(sample.labels.values()): sample.value for sample in family.samples if sample.value}


async def test_limits_running_and_queued_calls_and_refuses_the_rest() -> None:
    """A call that ends makes room for one that waits, not for a new one."""
    made = crowd()
    await made.acquire("a")
    await made.acquire("b")
    made.check()
    tasks = waiting(made, "c", "d")
    await settled()
    assert (made.running, made.queued) == (2, 2)
    assert refusal(made, "e") == "overloaded"
    with pytest.raises(GatewayError, match="overloaded"):
        made.check()
    made.release("a")
    assert (made.running, made.queued) == (2, 1)
    await tasks[0]
    made.check()
    made.release("b")
    await tasks[1]
    made.release("c")
    made.release("d")
    assert is_empty(made)


async def test_a_key_waits_at_its_own_bound_while_the_process_has_room() -> None:
    """Beyond what may wait it is refused by its own bound; another key runs immediately."""
    metrics = Metrics()
    made = crowd(metrics, max_running=10, max_queued=10, max_running_each=2, max_queued_each=3)
    for _ in range(2):
        await made.acquire("a")
    tasks = waiting(made, "a", "a", "a")
    await settled()
    assert (made.running, made.queued) == (2, 3)
    assert refusal(made, "a") == "concurrency_exceeded"
    await made.acquire("b")
    made.release("b")
    for task in tasks:
        made.release("a")
        await task
        assert made.running == 2
    made.release("a")
    made.release("a")
    assert is_empty(made)
    assert shed(metrics) == {("key",): 1.0}


async def test_a_key_may_run_or_wait_as_often_when_the_process_is_full() -> None:
    """What it may not run, it may wait: its bound is the sum of both."""
    made = crowd(max_running=1, max_queued=10, max_running_each=2, max_queued_each=1)
    await made.acquire("b")
    tasks = waiting(made, "a", "a", "a")
    await settled()
    assert refusal(made, "a") == "concurrency_exceeded"
    made.release("b")
    for task in tasks:
        await task
        made.release("a")
    assert is_empty(made)


async def test_a_key_at_its_own_bound_holds_no_place_that_another_could_use() -> None:
    """The turn passes to the next key that may run one."""
    made = crowd(max_running=3, max_queued=10, max_running_each=2, max_queued_each=5)
    for key_id in ("a", "a", "b"):
        await made.acquire(key_id)
    tasks = waiting(made, "a", "a", "b", "c")
    await settled()
    made.release("b")
    await tasks[2]  # a waits longer, but runs two already
    assert [task.done() for task in tasks] == [False, False, True, False]
    made.release("a")
    await tasks[3]  # c waited for the process alone; a joins the round when one of its calls ends
    assert [task.done() for task in tasks] == [False, False, True, True]
    made.release("c")
    await tasks[0]
    made.release("b")
    await settled()
    assert (made.running, tasks[1].done()) == (2, False)
    for _ in range(3):
        made.release("a")
        await settled()
    assert is_empty(made)


async def test_keys_that_wait_take_turns() -> None:
    """The second call of the first key comes after the first call of the second."""
    made = crowd(max_running=1, max_queued=10, max_running_each=5)
    await made.acquire("x")
    came: list[str] = []

    async def come(key_id: str, name: str) -> None:
        await made.acquire(key_id)
        came.append(name)
        made.release(key_id)

    tasks = [asyncio.create_task(come(key_id, f"{key_id}{n}")) for key_id in ("a", "b", "c") for n in (1, 2)]
    await settled()
    made.release("x")
    await asyncio.gather(*tasks)
    assert came == ["a1", "b1", "c1", "a2", "b2", "c2"]
    assert is_empty(made)


@pytest.mark.parametrize(("bounds", "reason", "why"), [
    ({"max_running": 1}, "overloaded", "late"),
    ({"max_running": 9, "max_running_each": 1}, "concurrency_exceeded", "key"),
    ({"max_running": 1, "max_running_each": 1}, "concurrency_exceeded", "key"),
])  # fmt: skip
async def test_a_wait_that_is_too_long_is_refused_by_the_bound_that_caused_it(
    bounds: dict[str, int], reason: str, why: str
) -> None:
    """The key's own bound if it runs all that it may, else the process's; nothing is left of the wait."""
    metrics = Metrics()
    made = crowd(metrics, **bounds, max_wait_s=0.0)
    await made.acquire("a")
    with pytest.raises(GatewayError, match=reason):
        await made.acquire("a")
    assert shed(metrics) == {(why,): 1.0}
    assert (made.running, made.queued) == (1, 0)
    made.release("a")
    assert is_empty(made)


@pytest.mark.parametrize("handed_over", [False, True])
async def test_a_cancelled_wait_keeps_no_place(*, handed_over: bool) -> None:
    """Also if the turn came in the very moment."""
    made = crowd(max_running=1)
    await made.acquire("a")
    (task,) = waiting(made, "b")
    await settled()
    if handed_over:
        made.release("a")
    task.cancel()
    if not handed_over:
        made.release("a")  # before the cancelled call could take its turn out of the queue
    await settled()
    assert task.cancelled()
    assert is_empty(made)


async def test_a_call_with_room_neither_waits_nor_arms_a_timer() -> None:
    """The idle path makes no future and no timer: it never yields to the event loop."""
    made = crowd(max_running=1)
    with pytest.raises(StopIteration):
        made.acquire("a").send(None)
    made.release("a")
    assert is_empty(made)
    assert MAX_WAIT_S == 10.0
