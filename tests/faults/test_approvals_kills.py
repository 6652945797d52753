"""A gateway that dies at each step of an approval, with callers that wait: nothing is sent twice, and all of it ends.

FAULTS_APPROVAL_KILLS sets how many requests there are at each step.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from datetime import UTC, datetime
from subprocess import TimeoutExpired
from typing import TYPE_CHECKING

import httpx2
import pytest

from birdwire.api.errors import GatewayError
from birdwire.store.tables.journal import STATES, State
from harness.approving import ApprovingDeployment, approving
from harness.fault_scale import LONG, record, scaled
from harness.guarded_gateway import OPERATOR

if TYPE_CHECKING:
    from pathlib import Path

    from harness.guarded_gateway import Holder
    from harness.processes import GatewayProcess

REQUESTS = scaled("APPROVAL_KILLS", 3, 25)
ENDED_S = 90.0
"""How long after the restart each request has ended, in the long form."""

ENOUGH_S = 30.0
"""How long the short form waits until each has ended or is searched for."""

REPLICAS = {"sqlite": 1, "postgres": 2}
HELD_S = 5
PAUSE_S = 0.5
MOST_CALLS = 400
"""How often a caller repeats its call: longer than a dead process keeps the name of one."""

KEY_HOLDS = 10
"""Requests of one key; twenty may wait."""

WAVE, WAVES, WAVE_S = 5, 6, 10.0
"""Of two replicas, chance may let the other one do all that leads to a step: then more requests come."""

POINTS = (
    *("asked_before_store", "asked_after_store", "decided_after_store", "approved_before_claim"),
    *("approved_after_claim", "approved_after_send", "approved_after_reply", "approved_after_end"),
)
ENDS = {"confirmed", "refused", "found", "not_found", "expired"}
"""How a request may end here, where nothing becomes stale."""

REASONS = {"outcome_unknown", "not_applied", "approval_expired"}
"""What a caller may be answered with, but the post."""

pytestmark = pytest.mark.timeout(300 + 10 * REQUESTS)


class Drill:
    """One gateway that dies at one step, callers that do not give up, and a person who approves everything."""

    def __init__(self, place: ApprovingDeployment, point: str, holders: list[Holder]) -> None:
        self.place, self.point, self.holders = place, point, holders
        self.text = f"Killed {point} "
        self.since = datetime.now(UTC)
        self.answers: dict[int, httpx2.Response] = {}
        self.told: Counter[int | str] = Counter()

    async def caller(self, number: int) -> None:
        """Make a call, and repeat it under its name until it is answered with something that is final."""
        holder, body = self.holders[number // KEY_HOLDS], {"text": f"{self.text}{number}"}
        headers = {"idempotency_key": f"{self.point}-{number}", "prefer": f"wait={HELD_S}"}
        for _ in range(MOST_CALLS):
            at = self.place.replicas[number % len(self.place.replicas)]
            try:
                answer = await self.place.call(at, holder, "post_twitter", body, **headers)
            except httpx2.HTTPError:
                self.told["no answer"] += 1
                await asyncio.sleep(PAUSE_S)
                continue
            self.told[answer.status_code] += 1
            if answer.status_code not in (202, 503) and not _runs(answer):
                self.answers[number] = answer
                return
            await asyncio.sleep(PAUSE_S)

    async def person(self) -> None:
        """Approve whatever waits, through a signed link and as a command does, until told to stop."""
        while True:
            for waiting in await self.place.records.listed(1_000):
                try:
                    await self._approve(waiting.row.request_id, waiting.row.payload_sha256)
                except (GatewayError, httpx2.HTTPError):
                    # Decided by now, or the gateway has just died: the next round shows it.
                    self.told["decided again"] += 1
            await asyncio.sleep(0.05)

    async def _approve(self, request_id: str, sha256: str) -> None:
        if self.point == "decided_after_store" or random.random() < 0.5:  # noqa: S311 - which way is no secret
            path = await self.place.link(request_id)
            await self.place.press(self.place.replicas[0], path, sha256)
        else:
            await self.place.desk.approve(request_id, sha256, OPERATOR)


@pytest.mark.trust("#316")
@pytest.mark.engines("sqlite", "postgres")
async def test_a_gateway_that_dies_at_any_step_sends_nothing_twice(
    tmp_path: Path, database_url: str, engine: str
) -> None:
    """One of the requests dies with the gateway; its callers and the person go on with the next one."""
    if engine == "postgres" and not LONG:
        pytest.skip("the long form: make acceptance")
    dice = random.Random(REQUESTS)  # noqa: S311 - which request meets the end, no secret
    async with approving(tmp_path, database_url, REPLICAS[engine], x_deadline_s="5") as place:
        holders = [await place.holder() for _ in range(1 + (REQUESTS + WAVES * WAVE) // KEY_HOLDS)]
        for point in POINTS:
            await _die(place, Drill(place, point, holders), dice.randrange(1, REQUESTS + 1), engine)


async def _die(place: ApprovingDeployment, drill: Drill, nth: int, engine: str) -> None:
    point = drill.point
    # Of two replicas, the other one goes on; each of the requests may be sent by either.
    dying = await place.restart(0, failpoints=f"{point}=kill*{nth if engine == 'sqlite' else 1}", x_deadline_s="5")
    if point == "approved_after_send":
        await place.guarded.deployment.fault("/2/tweets", {"trickle_bps": 200}, times=None)
    person = asyncio.create_task(drill.person())
    callers = [asyncio.create_task(drill.caller(number)) for number in range(REQUESTS)]
    try:
        await _until_dead(dying, drill, callers)
        await place.restart(0, x_deadline_s="5")
        states = await _settled(place, drill, callers)
    finally:
        for task in (person, *callers):
            task.cancel()
        await asyncio.gather(person, *callers, return_exceptions=True)
        await place.guarded.deployment.x.delete("/_sandbox/faults")
    posted = Counter(await place.posted(drill.text))
    assert max(posted.values(), default=0) <= 1, point
    _check(drill, states, posted)
    record(f"killed at {point} ({engine})", runs=len(states), doubles=0, **Counter(states.values()))


async def _until_dead(dying: GatewayProcess, drill: Drill, callers: list[asyncio.Task[None]]) -> None:
    """Wait until the gateway has died at its step, and let more requests come as long as it has not."""
    for _ in range(WAVES):
        with contextlib.suppress(TimeoutExpired):
            await asyncio.to_thread(dying.process.wait, WAVE_S)
            break
        callers += [asyncio.create_task(drill.caller(len(callers) + more)) for more in range(WAVE)]
    assert dying.process.returncode == -9, dying.log.read_text()[-2_000:]


async def _settled(place: ApprovingDeployment, drill: Drill, callers: list[asyncio.Task[None]]) -> dict[str, str]:
    """Wait until every request has ended, or, in the short form, is searched for; return the states."""
    key_ids = [holder.key_id for holder in drill.holders]
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + (ENDED_S if LONG else ENOUGH_S)
    while True:
        rows = await place.rows_since(key_ids, drill.since)
        final = all(STATES[State(row.state)].final or (not LONG and row.state == "unknown") for row in rows)
        if len(rows) == len(callers) and final and (not LONG or all(task.done() for task in callers)):
            return {row.request_id: row.state for row in rows}
        found = Counter(f"{row.state} {row.reason or row.why or ''}" for row in rows)
        assert loop.time() < ends_at, (drill.point, found, drill.told, [row for row in rows if row.state == "started"])
        await asyncio.sleep(0.1)


def _check(drill: Drill, states: dict[str, str], posted: Counter[str]) -> None:
    """Compare what the journal and the callers know with what X has."""
    ends = Counter(states.values())
    done, searched = ends["confirmed"] + ends["found"], ends["unknown"]
    assert done <= len(posted) <= done + searched, (drill.point, ends)
    assert set(ends) <= ENDS | {"unknown"}, (drill.point, ends)
    assert drill.told["no answer"], drill.point
    for number, answer in drill.answers.items():
        text = f"{drill.text}{number}"
        if answer.status_code == 201:
            assert answer.json()["data"]["text"] == text
            assert posted[text] == 1
        else:
            assert answer.json()["error"]["reason"] in REASONS, answer.text
            assert not posted[text] or answer.json()["error"]["reason"] == "outcome_unknown"
    assert not LONG or len(drill.answers) == len(states)


def _runs(answer: httpx2.Response) -> bool:
    """Return whether the call is answered with the wish to try again: another process still runs it."""
    return answer.status_code == 409 and answer.json()["error"]["reason"] == "idempotency_in_flight"
