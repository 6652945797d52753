"""Many writes that wait, and many callers that wait for them: what that costs a gateway.

The short form counts statements, connections and slots. The long form measures the processor time of real processes on
either engine, over FAULTS_IDLE_S seconds, and writes it into the report.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.pool import Pool

from birdwire.store.database import Database
from harness.approving import ApprovingDeployment, Asked, approving, fill
from harness.fault_scale import LONG, record, scaled
from harness.gateway import RunningGateway
from harness.guarded_gateway import OPERATOR
from harness.processes import environment
from harness.sending_desk import SendingDesk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import httpx2

    from harness.guarded_gateway import Holder
    from harness.processes import GatewayProcess

WAITING = scaled("WAITING", 300, 10_000)
IDLE_S = scaled("IDLE_S", 3, 20)
CALLERS = 200
"""Callers that one process holds at a time."""

REQUESTS = 10
HELD_S = 30
FIRST = 200
"""Requests that `birdwire approvals list` shows without --limit."""

SLOTS = 20
"""Calls that may run at a time: far fewer than are held."""

POLLS_A_S = 2
"""How often a gateway reads what is due, and what has ended for its held callers."""

SOON_S = 15.0
TOKEN = "scale-metrics-token"
TICKS_A_S = os.sysconf("SC_CLK_TCK")

pytestmark = pytest.mark.timeout(240 + 30 * IDLE_S)


@pytest.mark.trust("#322")
async def test_what_waits_costs_a_gateway_one_read_a_round(tmp_path: Path) -> None:
    """However many writes wait: nothing is read for each of them."""
    async with _gateway(tmp_path) as desk:
        idle: list[int] = []
        for count in (0, WAITING):
            await fill(desk.database, desk.records, desk.running.key_id, count)
            with _statements() as executed:
                await asyncio.sleep(IDLE_S)
            due = [one for one in executed if "approvals.due_at <=" in one]
            assert IDLE_S * POLLS_A_S / 2 <= len(due) <= IDLE_S * POLLS_A_S + 2
            idle.append(len(executed))
        # The other tasks of a gateway read at intervals of their own.
        assert idle[1] <= idle[0] + 20, idle


@pytest.mark.trust("#318", "#319")
async def test_held_callers_take_up_nothing_and_all_learn_the_same_post(tmp_path: Path) -> None:
    """Two hundred callers at a gateway with twenty slots; one more is answered immediately, and other calls pass."""
    async with _gateway(tmp_path, max_calls=SLOTS, max_calls_each=SLOTS, metrics_token=TOKEN) as desk:
        running = desk.running
        callers: list[asyncio.Task[httpx2.Response]] = []
        while len(callers) < CALLERS:
            # Not more at a time than have slots: a burst would be refused.
            callers += [asyncio.create_task(_held(running, len(callers) + one)) for one in range(SLOTS)]
            await _until_held(running, len(callers))
        assert await _metric(running, 'birdwire_calls_running{lane="calls"}') == 0
        with _connections() as pool:
            await asyncio.sleep(IDLE_S)
        # A round and a poll every half a second, and the background tasks; not one for each caller.
        assert pool.taken <= IDLE_S * POLLS_A_S * 3 + 10
        assert pool.most <= 3
        one_more = await _held(running, CALLERS)
        assert (one_more.status_code, "preference-applied" in one_more.headers) == (202, False)
        assert (await running.like()).status_code == 200
        waiting = {one.row.request_id for one in await desk.records.listed(CALLERS)}
        assert len(waiting) == REQUESTS
        for request_id in waiting:
            await desk.approve(request_id)
        answers = await asyncio.wait_for(asyncio.gather(*callers), SOON_S)
        assert {answer.status_code for answer in answers} == {201}
        assert {answer.headers["preference-applied"] for answer in answers} == {f"wait={HELD_S}"}
        ids = [str(answer.json()["data"]["id"]) for answer in answers]
        assert Counter(Counter(ids).values()) == {CALLERS // REQUESTS: REQUESTS}
        await _same_post_everywhere(desk, waiting, ids)
    record("callers that are held at a gateway with 20 slots", runs=CALLERS, connections_taken=pool.taken)


async def _same_post_everywhere(desk: SendingDesk, request_ids: set[str], ids: list[str]) -> None:
    """Compare the answers to held calls with the repeated calls, the requests, `birdwire explain`, and X."""
    reports = {request_id: await desk.http_report(request_id) for request_id in sorted(request_ids)}
    assert {report["data"]["id"] for report in reports.values()} == set(ids)
    posts = {post["id"]: post["text"] for post in (await desk.running.state())["posts"]}
    for number in range(REQUESTS):
        again = await desk.repeated(_name(number), "post_twitter", {"text": _text(number)})
        assert (again.status_code, again.json()["data"]["id"]) == (201, ids[number])
        assert again.headers["idempotent-replayed"] == "true"
        assert posts[ids[number]] == _text(number)
    request_id, report = next(iter(reports.items()))
    explained = await _explain(desk.running, request_id)
    assert (explained["state"], explained["data"]["id"]) == ("confirmed", report["data"]["id"])


async def _explain(running: RunningGateway, request_id: str) -> dict[str, Any]:
    """Run `birdwire explain` as a process of its own, and return what it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "birdwire.cli", "explain", request_id, "--json"),
        env=environment(url=running.settings.base_url, api_key=running.raw_key),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    return dict(json.loads(out))


def _name(number: int) -> str:
    return f"held {number}"


def _text(number: int) -> str:
    return f"Held post {number % REQUESTS}"


async def _held(running: RunningGateway, number: int) -> httpx2.Response:
    headers = {"idempotency-key": _name(number), "prefer": f"wait={HELD_S}"}
    return await running.call("post_twitter", {"text": _text(number)}, headers=headers, timeout=60)


async def _metric(running: RunningGateway, name: str) -> float:
    answer = await running.bare.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"})
    return next(float(line.rsplit(" ", 1)[1]) for line in answer.text.splitlines() if line.startswith(f"{name} "))


async def _until_held(running: RunningGateway, callers: int) -> None:
    async with asyncio.timeout(SOON_S):
        while await _metric(running, "birdwire_approval_waits") != callers:  # noqa: ASYNC110 - a metric is polled
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def _gateway(directory: Path, **settings: Any) -> AsyncIterator[SendingDesk]:
    """Start a gateway in this process, whose key asks for every post, and other calls pass."""
    async with RunningGateway.built(directory, rpm=1_000_000, **settings) as running:
        await running.link("ada")
        async with SendingDesk.opened(running, {"approve": ["post_twitter"]}) as desk:
            yield desk


@contextlib.contextmanager
def _statements() -> Iterator[list[str]]:
    """Collect the statements that this process executes."""
    executed: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        executed.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield executed
    finally:
        event.remove(Engine, "before_cursor_execute", note)


class _Taken:
    """How often connections were taken from pools, how many are held, and how many were at most."""

    def __init__(self) -> None:
        self.taken = self.held = self.most = 0

    def out(self, *_: object) -> None:
        self.taken += 1
        self.held += 1
        self.most = max(self.most, self.held)

    def back(self, *_: object) -> None:
        self.held -= 1


@contextlib.contextmanager
def _connections() -> Iterator[_Taken]:
    """Count the connections that this process takes from pools of connections to the database."""
    pool = _Taken()
    event.listen(Pool, "checkout", pool.out)
    event.listen(Pool, "checkin", pool.back)
    try:
        yield pool
    finally:
        event.remove(Pool, "checkout", pool.out)
        event.remove(Pool, "checkin", pool.back)


@pytest.mark.skipif(not LONG, reason="the long form: make acceptance")
@pytest.mark.trust("#319", "#322")
@pytest.mark.engines("sqlite", "postgres")
async def test_the_cost_of_waiting_is_measured(tmp_path: Path, database_url: str, engine: str) -> None:
    """An idle process without and with ten thousand writes that wait, its list of them, and its held callers."""
    async with approving(tmp_path, database_url, metrics_token=TOKEN) as place:
        holder, [at] = await place.holder(), place.replicas
        before = await _cpu_percent(at, IDLE_S)
        asked = [await place.ask(at, holder, f"Held post {number}") for number in range(REQUESTS)]
        callers = [asyncio.create_task(_held_at(place, at, holder, number)) for number in range(CALLERS)]
        await _until_all_are_held(place, at)
        held, active = await asyncio.gather(_cpu_percent(at, IDLE_S), _active(database_url, engine, IDLE_S))
        await _approve(place, asked)
        answers = await asyncio.wait_for(asyncio.gather(*callers), 60)
        assert {answer.status_code for answer in answers} == {201}
        await fill(place.database, place.records, holder.key_id, WAITING)
        full = await _cpu_percent(at, IDLE_S)
        first_s, first_cpu_s = await _listing_s(place, FIRST)
        all_s, all_cpu_s = await _listing_s(place, WAITING)
    figures = {"idle_cpu_percent": before, "held_cpu_percent": held, "waiting_cpu_percent": full}
    figures |= {"list_s": first_s, "list_cpu_s": first_cpu_s, "list_all_s": all_s, "list_all_cpu_s": all_cpu_s}
    figures |= {"connections_in_use": active}
    record(f"200 held callers, and {WAITING:,} writes that wait ({engine})", runs=1, **figures)
    assert held <= 2.0 + before
    assert full - before <= 1.0
    assert active <= 0.05


async def _held_at(place: ApprovingDeployment, at: GatewayProcess, holder: Holder, number: int) -> httpx2.Response:
    """Ask and wait for the end; a burst of callers is refused in part, and those repeat their call."""
    headers = {"idempotency_key": _name(number), "prefer": f"wait={HELD_S}"}
    async with asyncio.timeout(2 * HELD_S):
        while True:
            answer = await place.call(at, holder, "post_twitter", {"text": _text(number)}, **headers)
            if answer.status_code not in (202, 503):
                return answer
            await asyncio.sleep(0.5)


async def _approve(place: ApprovingDeployment, asked: list[Asked]) -> None:
    for one in asked:
        await place.desk.approve(one.request_id, one.sha256, OPERATOR)


async def _cpu_percent(at: GatewayProcess, seconds: float) -> float:
    """Return the processor time that a process takes, as a share of one core in percent."""
    ticks, began = _ticks(at.process.pid), time.monotonic()
    await asyncio.sleep(seconds)
    return round(100 * (_ticks(at.process.pid) - ticks) / TICKS_A_S / (time.monotonic() - began), 2)


def _ticks(pid: int) -> int:
    """Return the clock ticks that a process has run, in its own code and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def _active(url: str, engine: str, seconds: float) -> float:
    """Return how many connections to PostgreSQL are in use on average: they run a statement or are in a transaction."""
    if engine != "postgres":
        return 0.0
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND backend_type = 'client backend' AND state <> 'idle'"
    )
    seen, database = [], Database(url)
    try:
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            async with database.read() as connection:
                seen.append(int((await connection.execute(query)).scalar_one()))
            await asyncio.sleep(0.1)
    finally:
        await database.close()
    return round(sum(seen) / len(seen), 3)


async def _listing_s(place: ApprovingDeployment, limit: int) -> tuple[float, float]:
    """Return how long `birdwire approvals list` takes, and its processor time, from start to end; the best of three."""
    taken = []
    for _ in range(3):
        began, before = time.monotonic(), _children_s()
        code, found = await place.guarded.deployment.command("approvals", "list", "--limit", str(limit))
        taken.append((time.monotonic() - began, _children_s() - before))
        assert (code, len(found["approvals"])) == (0, limit)
    return round(min(wall for wall, _ in taken), 2), round(min(cpu for _, cpu in taken), 2)


def _children_s() -> float:
    """Return the processor time of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


async def _until_all_are_held(place: ApprovingDeployment, at: GatewayProcess) -> None:
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with asyncio.timeout(HELD_S):
        while True:
            page = await place.guarded.deployment.client.get(f"{at.url}/metrics", headers=headers)
            if f"birdwire_approval_waits {CALLERS}.0" in page.text:
                return
            await asyncio.sleep(0.05)
