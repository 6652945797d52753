"""The crowd: how many are let in, who comes next, who is sent away; and that nothing is left behind."""

from __future__ import annotations

import asyncio

import pytest

from birdwire.crowd import Crowd
from birdwire.errors import GatewayError
from birdwire.metrics import Metrics


def crowd(most: int = 2, queued: int = 2, each: int = 2, wait_s: float = 60.0) -> Crowd:
    """A small one."""
    return Crowd(most, queued, each, Metrics(), wait_s=wait_s)


async def settled() -> None:
    """Let everything go as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


def refused(made: Crowd, key_id: str) -> bool:
    """Whether a call is sent away at once, without a turn of the loop."""
    with pytest.raises(GatewayError, match="overloaded"):
        made.enter(key_id).send(None)
    return True


async def test_so_many_are_let_in_so_many_wait_and_the_rest_go() -> None:
    """In all, and at once; whoever leaves makes room for who waits, not for who comes."""
    made = crowd()
    await made.enter("a")
    await made.enter("b")
    made.look()
    waiting = [asyncio.create_task(made.enter(key_id)) for key_id in ("c", "d")]
    await settled()
    assert (made.running, made.queued) == (2, 2)
    assert refused(made, "e")
    with pytest.raises(GatewayError, match="overloaded"):
        made.look()
    made.leave("a")
    await waiting[0]
    assert (made.running, made.queued, waiting[1].done()) == (2, 1, False)
    made.look()
    made.leave("b")
    await waiting[1]
    for key_id in ("c", "d"):
        made.leave(key_id)
    assert (made.running, made.queued) == (0, 0)


async def test_a_key_has_its_share_of_places_and_turns() -> None:
    """Whether its calls run or wait; another key's are not held up by that."""
    made = crowd(most=3, each=2)
    await made.enter("a")
    await made.enter("a")
    assert refused(made, "a")
    await made.enter("b")
    waiting = asyncio.create_task(made.enter("b"))
    await settled()
    assert refused(made, "b")
    made.leave("a")
    await waiting
    for key_id in ("a", "b", "b"):
        made.leave(key_id)
    assert (made.running, made.queued) == (0, 0)


async def test_turns_go_round_the_keys_that_wait() -> None:
    """The second call of the first key comes after the first call of the second."""
    made = crowd(most=1, queued=10, each=5)
    await made.enter("x")
    came: list[str] = []

    async def come(key_id: str, name: str) -> None:
        await made.enter(key_id)
        came.append(name)
        made.leave(key_id)

    tasks = [asyncio.create_task(come(key_id, f"{key_id}{n}")) for key_id in ("a", "b", "c") for n in (1, 2)]
    await settled()
    made.leave("x")
    await asyncio.gather(*tasks)
    assert came == ["a1", "b1", "c1", "a2", "b2", "c2"]
    assert (made.running, made.queued) == (0, 0)


async def test_a_turn_that_does_not_come_in_time_is_given_up() -> None:
    """And leaves nothing behind: the next turn goes to the next."""
    made = crowd(most=1, wait_s=0.0)
    await made.enter("a")
    with pytest.raises(GatewayError, match="overloaded"):
        await made.enter("b")
    assert (made.running, made.queued, made._waiting, dict(made._each)) == (1, 0, {}, {"a": 1})  # noqa: SLF001 - that nothing is left is the point
    made.leave("a")
    assert (made.running, dict(made._each)) == (0, {})  # noqa: SLF001 - the same


@pytest.mark.parametrize("handed_over", [False, True])
async def test_who_gives_up_waiting_keeps_no_place(*, handed_over: bool) -> None:
    """Also if the turn came in the very moment."""
    made = crowd(most=1)
    await made.enter("a")
    waiting = asyncio.create_task(made.enter("b"))
    await settled()
    if handed_over:
        made.leave("a")
    waiting.cancel()
    await settled()
    assert waiting.cancelled()
    if not handed_over:
        made.leave("a")
    assert (made.running, made.queued, made._waiting, dict(made._each)) == (0, 0, {}, {})  # noqa: SLF001 - the same
