"""Ten thousand deliveries that wait for a dead destination: they cost one try at a time, and no other call anything.

The short form counts tries by rounds, not by time. The long form also counts machine instructions under valgrind: of a
like, and of background work by the second.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest

from bench.callgrind import Cost, Meter, Span, argv, instructions
from bench.machine import Process
from birdwire.gateway.notifications.deliveries import Deliveries
from birdwire.settings import Settings
from birdwire.store.database import Database
from birdwire.store.tables import outbox
from harness import processes
from harness.fault_scale import LONG, record, scaled
from harness.gateway import RunningGateway, bound
from harness.notifying import Notifier
from harness.processes import deploy
from harness.webhook_receiver import ACCEPTED, HANGS, receiving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from harness.processes import Deployment, GatewayProcess

WAITING = scaled("WAITING_DELIVERIES", 300, 10_000)
ROUNDS = scaled("DEAD_ROUNDS", 5, 40)
RECOVERED = scaled("RECOVERED", 40, 1_000)
"""Deliveries that arrive once the destination answers again."""

LIKES = scaled("DEAD_LIKES", 20, 300)
RUNS = scaled("DEAD_RUNS", 1, 3)
IDLE_S = 20.0
MAX_CONCURRENT = 16
"""Deliveries that are sent concurrently, until three have failed in a row."""

MOST = 1.03
"""How many instructions a like may have with a dead destination, as a share of those without."""

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


def free_port() -> int:
    """Return a port on which nothing listens."""
    with bound() as listener:
        return int(listener.getsockname()[1])


async def likes(running: RunningGateway) -> set[int]:
    """Like a post again and again; return the statuses of the answers."""
    return {(await running.like()).status_code for _ in range(LIKES)}


@pytest.mark.trust("#330")
@pytest.mark.engines("sqlite", "postgres")
async def test_a_destination_that_refuses_costs_one_try_a_round(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many deliveries wait; and once it answers again, they arrive."""
    port = free_port()
    async with waiting(tmp_path, database_url, f"http://127.0.0.1:{port}/", monkeypatch) as (running, notifier, rounds):
        await notifier.until_tried(MAX_CONCURRENT)
        done, before = rounds.done, await notifier.tries()
        assert before <= MAX_CONCURRENT + done
        later, statuses = await asyncio.gather(rounds.wait_for(ROUNDS), likes(running))
        tries = await notifier.tries() - before
        assert 0 < tries <= later - done + 1
        assert statuses == {200}
        record("rounds with 10,000 deliveries for a destination that refuses", runs=later - done, tries=tries)
        assert await notifier.waiting() == WAITING
        async with receiving(port) as receiver:
            receiver.answer(ACCEPTED)
            # A failed delivery waits for its own time; the others are due.
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
async def test_a_like_costs_the_same_with_a_dead_destination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in machine instructions of the whole process; background work is counted apart, by the second."""
    monkeypatch.setattr(processes, "START_S", VALGRIND_S)
    port = free_port()
    async with deploy(tmp_path) as deployment:
        at = await deployment.serve(*map(str, argv(tmp_path, ())))
        await deployment.link(at)
        database = Database(deployment.database_url)
        notifier = Notifier.of(database, Settings.model_validate(deployment.settings))
        await notifier.set(f"http://127.0.0.1:{port}/")
        with at.log.open("rb") as log:
            meter = Meter(Process("birdwire", at.process, log), tmp_path)
            await _like(deployment, at, 2 * LIKES)
            await asyncio.to_thread(meter.begin)
            spans: dict[bool, list[Span]] = {False: [], True: []}
            for _ in range(RUNS):
                for dead, counted in spans.items():
                    async with database.write() as connection:
                        await outbox.drop_pending(connection)
                    if dead:
                        await notifier.fill(WAITING)
                    counted.append(await _span(deployment, at, meter))
        await database.close()
    without, beside = Cost.of(spans[False]), Cost.of(spans[True])
    more = (beside.idle_rate - without.idle_rate) / without.middle
    figures = {"like": without.middle, "like_beside": beside.middle, "share": beside.middle / without.middle}
    figures |= {"spread": without.spread, "idle_a_second": without.idle_rate, "idle_beside": beside.idle_rate}
    record(f"likes beside {WAITING:,} deliveries for a dead destination (instructions)", runs=RUNS, **figures)
    assert beside.middle <= MOST * without.middle, figures
    assert more <= MOST_LIKES, figures


async def _span(deployment: Deployment, at: GatewayProcess, meter: Meter) -> Span:
    """Count a stretch of likes, and then an idle one."""
    await _like(deployment, at, LIKES // 10)
    await asyncio.to_thread(meter.zero)
    began_s = time.monotonic()
    await _like(deployment, at, LIKES)
    loaded_s = time.monotonic() - began_s
    loaded = instructions(await asyncio.to_thread(meter.dump))
    await asyncio.to_thread(meter.zero)
    began_s = time.monotonic()
    await asyncio.sleep(IDLE_S)
    idle_s = time.monotonic() - began_s
    return Span(LIKES, loaded, loaded_s, instructions(await asyncio.to_thread(meter.dump)), idle_s)


async def _like(deployment: Deployment, at: GatewayProcess, times: int) -> None:
    for _ in range(times):
        assert (await deployment.like(at)).status_code == 200
