"""Gateways that are killed while events happen: every event that was acknowledged arrives, at least once, under one id.

FAULTS_NOTIFICATION_KILLS sets how often, in all.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from sqlalchemy import select, update

from birdwire.api.errors import GatewayError
from birdwire.gateway.guardrails.registry import Policies
from birdwire.outcomes.process_leases import LEASE
from birdwire.runtime.clock import Clock
from birdwire.settings import Settings
from birdwire.store.tables import approvals, processes
from birdwire.store.tables.acts import Actor
from harness.approving import ApprovingDeployment, Asked, approving
from harness.fault_scale import LONG, record, scaled
from harness.guarded_gateway import OPERATOR, ROOM
from harness.notifying import Notifier
from harness.webhook_receiver import ACCEPTED, Reply, receiving

if TYPE_CHECKING:
    from pathlib import Path

    from harness.guarded_gateway import Holder
    from harness.processes import GatewayProcess
    from harness.webhook_receiver import Delivery, WebhookReceiver

KILLS = scaled("NOTIFICATION_KILLS", 3, 100)
"""How often a gateway is killed, at each of MOMENTS in turn."""

MOMENTS = ("at random", "when a delivery arrives", "when a delivery is answered")
"""When a gateway is killed: the last two leave a delivery of which the gateway has not recorded how it ended."""

REPLICAS = {"sqlite": 1, "postgres": 2}
DEAD_S = 2 * LEASE.total_seconds()
"""How long it may take until a gateway sends: until the lease of the last one that was killed has expired."""

PAUSE_S = 0.2
"""Pause of each part of the load, so that there are not many more events than a gateway delivers."""

SENT_S = 60.0 + LEASE.total_seconds()
NTH = 4
"""A gateway is killed at most at this delivery of those that it makes."""

pytestmark = pytest.mark.timeout(120 + 15 * KILLS)

Fact = tuple[str, str]
"""An event's type and the name of what it is about, by which a test knows it."""


class Replicas:
    """The gateways of a deployment, and by which name each holds its lease."""

    def __init__(self, place: ApprovingDeployment) -> None:
        self.place = place
        self._owners: list[str] = []

    async def start(self, count: int) -> None:
        """Start gateways until there are so many."""
        self._owners += await self._new() if self.place.replicas else []
        while len(self.place.replicas) < count:
            self.place.replicas.append(await self.place.guarded.deployment.serve(**ROOM))
            self._owners += await self._new()

    def named(self, owner: str) -> int:
        """Return the number of the gateway that holds a lease by this name."""
        return self._owners.index(owner)

    async def restart_dead(self) -> None:
        """Start a gateway in place of each that was killed, and end the leases of those."""
        for number, at in enumerate(self.place.replicas):
            if at.process.poll() is not None:
                await self.expire(self._owners[number])
                await self.place.restart(number)
                [self._owners[number]] = await self._new()

    async def expire(self, owner: str) -> None:
        """End the lease of a gateway that was killed, as time would."""
        table = processes.processes
        async with self.place.database.write() as connection:
            dead = update(table).where(table.c.owner == owner)
            await connection.execute(dead.values(alive_until=Clock().now() - LEASE))

    async def _new(self) -> list[str]:
        """Return the names of leases that were not known before and have not expired."""
        table = processes.processes
        async with self.place.database.read() as connection:
            owners = await connection.execute(select(table.c.owner).where(table.c.alive_until > Clock().now()))
        return [owner for owner in owners.scalars() if owner not in self._owners]


class Load:
    """Callers, a person and an operator; `facts` are the events whose transaction was acknowledged."""

    def __init__(self, place: ApprovingDeployment, holder: Holder, spare: Holder) -> None:
        self.place, self.holder, self.spare = place, holder, spare
        self.facts: set[Fact] = set()
        self.lost_answers = 0
        self._number = 0

    async def run(self, at: GatewayProcess, kill: asyncio.Task[None]) -> None:
        """Let events happen at one gateway until it is dead, and then decide on all that waits."""
        tasks = [asyncio.create_task(self._again(at, kill, what)) for what in (self._ask, self._ask, self._pause)]
        await kill
        await asyncio.gather(*tasks)
        for waiting in await self.place.records.listed(100):
            with contextlib.suppress(GatewayError):
                await self.place.desk.deny(waiting.row.request_id, OPERATOR)
                self.facts.add(("approval.decided", waiting.row.request_id))

    async def _again(self, at: GatewayProcess, kill: asyncio.Task[None], what: Any) -> None:
        while not kill.done():
            try:
                await what(at)
            except httpx2.HTTPError:
                self.lost_answers += 1
                return

    async def _ask(self, at: GatewayProcess) -> None:
        """Ask for a post, and decide on it by its signed link."""
        self._number += 1
        number = self._number
        answer = await self.place.call(at, self.holder, "post_twitter", {"text": f"Notified {number}"})
        if answer.status_code != 202:
            # The gateway is about to die, or too many wait.
            await asyncio.sleep(PAUSE_S)
            return
        asked = Asked.of(answer)
        self.facts.add(("approval.requested", asked.request_id))
        path = await self.place.link(asked.request_id)
        pressed = await self.place.press(at, path, asked.sha256, "deny" if number % 2 else "approve")
        if pressed.is_success:
            self.facts.add(("approval.decided", asked.request_id))
        await asyncio.sleep(PAUSE_S)

    async def _pause(self, _: GatewayProcess) -> None:
        """Pause a key that makes no calls, and resume it, as the command line does."""
        self._number += 1
        name = f"drill {self._number}"
        policies = Policies(self.place.database, Clock(), Actor(name, "cli"))
        await policies.pause(self.spare.key_id, name, None)
        self.facts.add(("paused", name))
        await policies.resume(self.spare.key_id)
        self.facts.add(("resumed", name))
        await asyncio.sleep(PAUSE_S)


@pytest.mark.trust("#325", "#326")
@pytest.mark.engines("sqlite", "postgres")
async def test_no_kill_loses_an_event(tmp_path: Path, database_url: str, engine: str) -> None:
    """Killed at random moments, and before, during and after a delivery."""
    if engine == "postgres" and not LONG:
        pytest.skip("the long form: make acceptance PART=notifications")
    dice = random.Random(KILLS)  # noqa: S311 - a test's dice
    async with approving(tmp_path, database_url) as place, receiving() as receiver:
        replicas = Replicas(place)
        await replicas.start(REPLICAS[engine])
        notifier = Notifier.of(place.database, Settings.model_validate(place.guarded.deployment.settings))
        holder, spare = await place.holder(), await place.guarded.holder("grace")
        await notifier.set(f"{receiver.url}/hook")
        load = Load(place, holder, spare)
        for number in range(KILLS):
            kill = _kill(place, receiver, MOMENTS[number % len(MOMENTS)], dice)
            await load.run(place.replicas[0], asyncio.create_task(kill))
            await replicas.restart_dead()
        receiver.answer(ACCEPTED)
        await notifier.until_sent(SENT_S)
        figures = await _check(load, notifier, receiver.accepted)
        record(f"gateways killed while events happen ({engine})", runs=KILLS, **figures)


async def _kill(place: ApprovingDeployment, receiver: WebhookReceiver, moment: str, dice: random.Random) -> None:
    """Kill one gateway after some time, or all of them at one of the next deliveries."""
    if moment == "at random":
        receiver.answer(ACCEPTED)
        await asyncio.sleep(dice.uniform(0.05, 0.9))
        await place.replicas[0].kill()
        return
    killed = asyncio.Event()

    def kill() -> None:
        for at in place.replicas:
            at.signal(signal.SIGKILL)
        killed.set()

    last = Reply(cut=True, then=kill) if moment == "when a delivery arrives" else Reply(then=kill)
    receiver.answer(*[ACCEPTED] * dice.randrange(NTH), last, ACCEPTED)
    async with asyncio.timeout(DEAD_S):
        await killed.wait()
    for at in place.replicas:
        await at.ended()


async def _check(load: Load, notifier: Notifier, accepted: list[Delivery]) -> dict[str, int]:
    """Compare what was acknowledged, what the database has, and what the receiver has accepted."""
    ids: dict[Fact, set[str]] = defaultdict(set)
    for delivery in accepted:
        ids[_fact(delivery.document)].add(delivery.event_id)
    assert load.facts - ids.keys() == set(), "lost"
    assert {fact: found for fact, found in ids.items() if len(found) != 1} == {}, "an event of two ids"
    events = await notifier.events()
    assert {event_id for found in ids.values() for event_id in found} == set(events)
    assert {row.outcome for row in events.values()} == {"delivered"}
    # Also those whose acknowledgement was lost with the gateway: exactly one event for each row.
    table = approvals.approvals
    async with notifier.database.read() as connection:
        rows = (await connection.execute(select(table.c.request_id, table.c.decided_at))).all()
    asked = {subject for kind, subject in ids if kind == "approval.requested"}
    assert asked == {row.request_id for row in rows}
    decided = {subject for kind, subject in ids if kind == "approval.decided"}
    assert decided >= {row.request_id for row in rows if row.decided_at is not None}
    return {"lost": 0, "events": len(ids), "deliveries": len(accepted), "repeated": len(accepted) - len(ids)}


def _fact(event: dict[str, Any]) -> Fact:
    data = event["data"]
    name = data.get("request_id") or (data["why"] if event["type"] == "paused" else data.get("by"))
    return event["type"], str(name or data["key"]["key_id"])


@pytest.mark.skipif(not LONG, reason="the long form: make acceptance PART=notifications")
@pytest.mark.trust("#327")
@pytest.mark.engines("postgres")
async def test_one_of_two_replicas_sends_and_the_other_one_takes_over(tmp_path: Path, database_url: str) -> None:
    """Once the sender's lease has expired; nothing is sent twice before, and nothing is lost."""
    async with approving(tmp_path, database_url) as place, receiving() as receiver:
        replicas = Replicas(place)
        await replicas.start(2)
        notifier = Notifier.of(place.database, Settings.model_validate(place.guarded.deployment.settings))
        holder = await place.holder()
        await notifier.set(f"{receiver.url}/hook")
        asked = [await place.ask(at, holder, f"Before {at.url}") for at in place.replicas]
        await receiver.wait_for(len(asked))
        await notifier.until_sent()
        assert len(receiver.deliveries) == len(asked)
        sender = (await notifier.row()).sender
        assert sender is not None
        dead = replicas.named(sender)
        await place.replicas[dead].kill()
        asked += [await place.ask(place.replicas[1 - dead], holder, f"After {number}") for number in range(3)]
        await receiver.wait_for(len(asked), 2 * LEASE.total_seconds())
        await notifier.until_sent()
        assert (await notifier.row()).sender not in (None, sender)
        got = Counter(delivery.document["data"]["request_id"] for delivery in receiver.deliveries)
        assert got == Counter(one.request_id for one in asked)
