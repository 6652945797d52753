"""A key that is refused again and again: what it tried is on record, and the record stays small.

FAULTS_REFUSED_CALLS sets how many calls of one day are refused.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from birdwire.store.database import Database
from harness.fault_scale import record, scaled
from harness.gateway import API, RunningGateway
from harness.guarded_gateway import places_of, rows_of, set_rules

if TYPE_CHECKING:
    from pathlib import Path

CALLS = scaled("REFUSED_CALLS", 1_500, 100_000)
DAY_S = 86_400
MINUTES = 60
"""In how many minutes of the day the key calls: enough for the cap of the day to be reached."""

MAX_ROWS, MAX_SINGLE_ROWS = 1_100, 1_000
CALLERS = 16
CANARY = "kingfisher-canary"

pytestmark = pytest.mark.timeout(120 + CALLS // 100)


@pytest.mark.trust("#313")
async def test_refused_calls_of_one_day_leave_a_bounded_number_of_rows(tmp_path: Path) -> None:
    """Every call is counted, the first ones have rows of their own, and none has a text."""
    async with RunningGateway.built(tmp_path, rpm=1_000_000) as running:
        await running.link("ada")
        database = Database(running.settings.database_url)
        try:
            await set_rules(database, running.key_id, {"words": {"deny": [CANARY]}})
            await _start_of_a_day(running)
            for _ in range(MINUTES):
                await _refused(running, CALLS // MINUTES)
                running.clock.advance(seconds=DAY_S / MINUTES - 60)
            assert not await running.calls("/2/tweets")
            running.clock.advance(seconds=5)
            rows = await _flushed(running, database)
            assert await places_of(database, [CANARY]) == ["policies.rules"]
        finally:
            await database.close()
    counted = sum(row.times or 1 for row in rows)
    single = [row for row in rows if row.times is None]
    record("refused calls of one key in a day", runs=CALLS, rows=len(rows), counted=counted)
    assert counted == CALLS // MINUTES * MINUTES
    assert len(single) <= MAX_SINGLE_ROWS
    assert len(rows) <= MAX_ROWS
    assert {(row.state, row.status, row.reason) for row in rows} == {("not_sent", 403, "policy_denied")}


async def _start_of_a_day(running: RunningGateway) -> None:
    """Move the clock to shortly after midnight, UTC."""
    now = running.clock.now()
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=1, second=0, microsecond=0)
    running.clock.advance(seconds=(midnight - now).total_seconds())
    await running.advance_x((midnight - now).total_seconds())


async def _refused(running: RunningGateway, calls: int) -> None:
    numbers = iter(range(calls))

    async def caller() -> None:
        for number in numbers:
            answer = await running.call("post_twitter", {"text": f"{CANARY} {number}"})
            assert answer.status_code == 403

    await asyncio.gather(*(caller() for _ in range(CALLERS)))


async def _flushed(running: RunningGateway, database: Database) -> list[Any]:
    """Return the key's rows once the gateway's background task has written what it had counted."""
    async with asyncio.timeout(20):
        while sum(row.times or 1 for row in await rows_of(database, running.key_id)) < CALLS // MINUTES * MINUTES:
            await running.client.get(API + "auth/status")
            await asyncio.sleep(0.05)
    return await rows_of(database, running.key_id)
