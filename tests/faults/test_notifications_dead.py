"""Ten thousand deliveries that wait for a dead destination: they cost one try at a time, and no other call anything.

The short form counts tries by rounds, not by time. The long form also counts the instructions of background work under
valgrind.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest

from bench.callgrind import Meter, argv, instructions
from bench.machine import Process
from birdwire.gateway.notifications.deliveries import PROBE_EVERY_S, Deliveries
from birdwire.settings import Settings
from birdwire.store.database import Database
from harness import processes
from harness.fault_scale import LONG, record, scaled
from harness.gateway import RunningGateway, free_port
from harness.notifying import Notifier
from harness.processes import deploy
from harness.webhook_receiver import ACCEPTED, HANGS, receiving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

WAITING = scaled("WAITING_DELIVERIES", 300, 10_000)
ROUNDS = scaled("DEAD_ROUNDS", 5, 40)
PROBES = 3
"""Tries at a dead destination, each after five seconds more: together less than a lease takes to expire."""

RECOVERED = scaled("RECOVERED", 40, 1_000)
"""Deliveries that arrive once the destination answers again."""

LIKES = scaled("DEAD_LIKES", 20, 300)
IDLE_S = 60.0
MAX_CONCURRENT = 16
"""Deliveries that are sent concurrently, until three have failed in a row."""

LIKE = 600_000
"""Instructions of a like, as `make bench-instructions` counts them."""

MOST_LIKES = 10
"""How many likes the background work for a dead destination may cost in a second."""

SOON_S, VALGRIND_S = 60.0, 600.0
pytestmark = pytest.mark.timeout(120 + 2 * ROUNDS)


class Rounds:
    """Counts the rounds of the deliveries in this process."""

    def __init__(self) -> None:
        self.done = 0
        self._more = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def counted(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
        """Count the rounds of every gateway that is built inside."""
        round_of = Deliveries.round

        async def counted(deliveries: Deliveries) -> None:
            await round_of(deliveries)
            async with self._more:
                self.done += 1
                self._more.notify_all()

        with monkeypatch.context() as patch:
            patch.setattr(Deliveries, "round", counted)
            yield

    async def wait_for(self, more: int) -> int:
        """Wait for so many more rounds; return how many there were in all."""
        wanted = self.done + more
        async with asyncio.timeout(SOON_S + more), self._more:
            await self._more.wait_for(lambda: self.done >= wanted)
        return self.done


@contextlib.asynccontextmanager
async def waiting(
    directory: Path, url: str, to: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[RunningGateway, Notifier, Rounds]]:
    """Start a linked gateway with many deliveries that wait for a destination."""
    rounds = Rounds()
    async with rounds.counted(monkeypatch), RunningGateway.built(directory, rpm=1_000_000, database_url=url) as running:
        await running.configure(likes_per_15m=1_000_000, likes_per_24h=1_000_000)
        await running.link("ada")
        database = Database(url)
        try:
            notifier = Notifier.of(database, running.settings, running.clock)
            await notifier.set(to)
            await notifier.fill(WAITING)
            yield running, notifier, rounds
        finally:
            await database.close()


async def likes(running: RunningGateway) -> set[int]:
    """Like a post again and again; return the statuses of the answers."""
    return {(await running.like()).status_code for _ in range(LIKES)}


@pytest.mark.trust("#330")
@pytest.mark.engines(*(("sqlite", "postgres") if LONG else ("sqlite",)))
async def test_a_destination_that_refuses_is_tried_once_in_five_seconds(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many deliveries wait, and other calls are answered; once it answers again, they arrive."""
    port = free_port()
    async with waiting(tmp_path, database_url, f"http://127.0.0.1:{port}/", monkeypatch) as (running, notifier, rounds):
        await notifier.until_tried(MAX_CONCURRENT)
        clock, began_s = running.clock, running.clock.monotonic()
        for number in range(PROBES):
            clock.advance(seconds=PROBE_EVERY_S)
            await notifier.until_tried(MAX_CONCURRENT + number + 1)
            await rounds.wait_for(2)
            probes = await notifier.tries() - MAX_CONCURRENT
            assert probes <= 1 + (clock.monotonic() - began_s) // PROBE_EVERY_S
        assert await likes(running) == {200}
        assert await notifier.waiting() == WAITING
        async with receiving(port) as receiver:
            receiver.answer(ACCEPTED)
            clock.advance(seconds=PROBE_EVERY_S)
            await receiver.wait_for(RECOVERED, SOON_S)
            ids = [one.event_id for one in receiver.deliveries]
            assert len(set(ids)) == len(ids)


@pytest.mark.trust("#330")
async def test_a_destination_that_hangs_holds_sixteen_connections_at_most(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then one, and other calls are answered meanwhile."""
    async with receiving() as receiver:
        receiver.answer(HANGS)
        async with waiting(tmp_path, database_url, receiver.url, monkeypatch) as (running, notifier, rounds):
            await receiver.wait_for(MAX_CONCURRENT)
            done = rounds.done
            assert await likes(running) == {200}
            assert receiver.connections <= MAX_CONCURRENT + 1
            if LONG:
                most = await _most_open(receiver, rounds)
                tries = await notifier.tries()
                assert most == 1
                assert tries <= MAX_CONCURRENT + rounds.done - done
                record(
                    "rounds with 10,000 deliveries for a destination that hangs", runs=rounds.done - done, tries=tries
                )


async def _most_open(receiver: Any, rounds: Rounds) -> int:
    """Return how many connections are open at most, in rounds after the first deliveries have failed."""
    async with asyncio.timeout(SOON_S):
        while receiver.open_now > 1:  # noqa: ASYNC110 - the gateway closes them
            await asyncio.sleep(0.05)
    most = 0
    for _ in range(ROUNDS):
        await rounds.wait_for(1)
        most = max(most, receiver.open_now)
    return most


@pytest.mark.skipif(not LONG or shutil.which("valgrind") is None, reason="the long form, with valgrind")
@pytest.mark.timeout(7_200)
@pytest.mark.trust("#330")
async def test_the_background_work_for_a_dead_destination_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in machine instructions of a process that is otherwise idle, without and with what waits, and in likes.

    A like itself has the same bytecodes either way: python -m bench.instructions --only bytecodes --waiting 10000.
    """
    monkeypatch.setattr(processes, "START_S", VALGRIND_S)
    async with deploy(tmp_path) as deployment:
        at = await deployment.serve(*map(str, argv(tmp_path, ())))
        await deployment.link(at)
        database = Database(deployment.database_url)
        notifier = Notifier.of(database, Settings.model_validate(deployment.settings))
        await notifier.set(f"http://127.0.0.1:{free_port()}/")
        with at.log.open("rb") as log:
            meter = Meter(Process("birdwire", at.process, log), tmp_path)
            await asyncio.to_thread(meter.begin)
            before = await _idle(meter)
            await notifier.fill(WAITING)
            await notifier.until_tried(MAX_CONCURRENT, VALGRIND_S)
            beside = await _idle(meter)
        await database.close()
    more = (beside - before) / LIKE
    figures = {"idle_a_second": before, "waiting_a_second": beside, "in_likes": more}
    record(f"{WAITING:,} deliveries for a dead destination (instructions)", runs=1, **figures)
    assert more <= MOST_LIKES, figures


async def _idle(meter: Meter) -> float:
    """Return the instructions a second of a process that is idle but for its background work."""
    await asyncio.to_thread(meter.zero)
    began_s = time.monotonic()
    await asyncio.sleep(IDLE_S)
    seconds = time.monotonic() - began_s
    return instructions(await asyncio.to_thread(meter.dump)) / seconds
