"""The order of calls that undo each other: turns, their end, and what is left of them."""

from __future__ import annotations

import asyncio
import gc
import random

import pytest

from birdwire.api.errors import GatewayError
from birdwire.x.catalog.operations import OPERATIONS
from birdwire.x.limits.write_order import MAX_QUEUED_CALLS, Ticket, WriteOrder, canonical

LIKE, UNLIKE = [next(row for row in OPERATIONS if row.name == name) for name in ("like_twitter", "unlike_twitter")]
POST = next(row for row in OPERATIONS if row.name == "post_twitter")


async def nobody() -> bool:
    """No other process was asked."""
    return False


def joined(order: WriteOrder, operation: object = LIKE, target: str = "7", account: str = "1") -> Ticket:
    """A turn, which these operations have."""
    turn = order.join(account, operation, target, nobody)  # type: ignore[arg-type] # rows of the table
    assert turn is not None
    return turn


def empty(order: WriteOrder) -> bool:
    """Whether nothing is kept."""
    return vars(order) == {"_queues": {}}


@pytest.mark.parametrize(("given", "meant"), [("7", "7"), ("007", "7"), ("0", "0"), ("000", "0"), ("", "")])
def test_ids_are_compared_without_leading_zeros(given: str, meant: str) -> None:
    """X reads them as the same post."""
    assert canonical(given) == meant


def test_opposites_name_each_other() -> None:
    """Or they would not share a queue."""
    by_name = {row.name: row for row in OPERATIONS}
    pairs = [(row, by_name[row.opposite]) for row in OPERATIONS if row.opposite]
    assert len(pairs) == 8
    for row, other in pairs:
        assert (other.opposite, other.target) == (row.name, row.target)
        assert row.repeatable


async def test_calls_come_in_the_order_in_which_they_joined() -> None:
    """Whichever call leaves in between, waiting or not."""
    order, came = WriteOrder(), list[int]()

    async def one(n: int) -> None:
        turn = joined(order, LIKE if n % 2 else UNLIKE, "7" if n % 3 else "07")
        try:
            await turn.wait_turn(60)
            came.append(n)
            await asyncio.sleep(0)
        finally:
            order.leave(turn)

    tasks = [asyncio.create_task(one(n)) for n in range(60)]
    await asyncio.sleep(0)
    assert order.waiting == 59
    gone = random.Random(1).sample(range(1, 60), 20)  # noqa: S311 - a seed for the same 20 each time
    for n in gone:
        tasks[n].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert came == [n for n in range(60) if n not in gone]
    assert empty(order)


async def test_accounts_and_targets_have_queues_of_their_own() -> None:
    """And what has no opposite has none."""
    order = WriteOrder()
    turns = [joined(order), joined(order, UNLIKE, "8"), joined(order, UNLIKE, "7", "2")]
    for turn in turns:
        await turn.wait_turn(0)
        order.leave(turn)
    assert order.join("1", POST, "", nobody) is None
    order.leave(None)
    assert empty(order)


async def test_a_turn_that_does_not_come_in_time_is_given_up() -> None:
    """Nothing was sent, and the queue goes on without it."""
    order = WriteOrder()
    first, second, third = joined(order), joined(order, UNLIKE), joined(order)
    with pytest.raises(GatewayError) as caught:
        await second.wait_turn(0)
    assert (caught.value.reason, caught.value.outcome) == ("x_timeout", "not_sent")
    order.leave(second)
    assert not await first.superseded()
    order.leave(first)
    await third.wait_turn(0)
    order.leave(third)
    assert empty(order)


async def test_only_the_opposite_overtakes() -> None:
    """A second like says nothing against the first."""
    order = WriteOrder()
    first, _ = joined(order), joined(order)
    assert not await first.superseded()
    joined(order, UNLIKE)
    assert await first.superseded()


def test_a_queue_has_an_end() -> None:
    """The call after that is refused, and may come again."""
    order = WriteOrder()
    for _ in range(MAX_QUEUED_CALLS):
        joined(order)
    with pytest.raises(GatewayError) as caught:
        joined(order)
    assert (caught.value.reason, caught.value.outcome) == ("overloaded", "not_sent")
    joined(order, LIKE, "8")


def test_a_finished_call_leaves_nothing_to_the_garbage_collector() -> None:
    """It runs rarely in a gateway, because calls create no cycles."""
    order = WriteOrder()
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            order.leave(joined(order))
        assert gc.collect() == 0
    finally:
        gc.enable()
