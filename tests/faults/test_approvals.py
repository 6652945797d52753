"""Many people approve one request at the same time, at several gateways: it is sent once.

FAULTS_APPROVED sets how many requests are approved through links and the operator's functions, FAULTS_APPROVED_COMMANDS
how many with real commands, too.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from birdwire.api.errors import GatewayError
from birdwire.store.database import StorageDownError
from harness.approving import ApprovingDeployment, Asked, approving
from harness.fault_scale import record, scaled
from harness.guarded_gateway import OPERATOR

if TYPE_CHECKING:
    from pathlib import Path

    from harness.guarded_gateway import Holder

RUNS = scaled("APPROVED", 2, 200)
COMMAND_RUNS = scaled("APPROVED_COMMANDS", 1, 5)
PEOPLE = 50
COMMANDS = scaled("APPROVING_COMMANDS", 2, 25)
"""Real processes among the people who approve one request."""

ENDED_S = 30.0
LATE = "approval_not_waiting"
"""What a person gets who decides after somebody else."""

BUSY = "storage_unavailable"
"""What a person gets who waited too long for those before: nothing was decided."""

pytestmark = pytest.mark.timeout(240 + 5 * RUNS + 60 * COMMAND_RUNS)


@pytest.mark.trust("#315")
@pytest.mark.engines("postgres")
async def test_concurrent_approvals_of_one_request_send_it_once(tmp_path: Path, database_url: str, engine: str) -> None:
    """Half of them press the button of a signed link at one of three replicas, the others decide as commands do.

    In some runs, some are `birdwire approvals approve`, each a process of its own.
    """
    async with approving(tmp_path, database_url, replicas=3) as place:
        holder = await place.holder()
        for what, runs, commands in (("functions", RUNS, 0), ("commands", COMMAND_RUNS, COMMANDS)):
            told: Counter[str] = Counter()
            for number in range(runs):
                text = f"Approved by {what} {number}"
                asked = await place.ask(place.replicas[number % 3], holder, text)
                told += Counter(await _approve(place, asked, PEOPLE, commands=commands))
                await _sent_once(place, holder, asked, text)
            assert len(await place.posted(f"Approved by {what} ")) == runs
            assert set(told) <= {"approved", LATE, BUSY}, told
            assert told["approved"] == runs
            figures = {"sent": runs, "commands": commands * runs, "too_late": told[LATE], "busy": told[BUSY]}
            record(
                f"{PEOPLE} concurrent approvals of one request, by links and {what} ({engine})", runs=runs, **figures
            )


async def _approve(place: ApprovingDeployment, asked: Asked, people: int, commands: int) -> list[str]:
    """Let people approve a request concurrently, and return what each of them gets."""
    by_link = (people - commands) // 2
    links = await asyncio.gather(*(place.link(asked.request_id) for _ in range(by_link)))
    assert await place.open_link(place.replicas[0], links[0]) == asked.sha256
    desks = people - commands - by_link
    return await asyncio.gather(
        *(_by_link(place, number, path, asked) for number, path in enumerate(links)),
        *(_by_desk(place, asked) for _ in range(desks)),
        *(_by_command(place, asked) for _ in range(commands)),
    )


async def _by_link(place: ApprovingDeployment, number: int, path: str, asked: Asked) -> str:
    answer = await place.press(place.replicas[number % 3], path, asked.sha256)
    return "approved" if answer.status_code == 200 else str(answer.json()["error"]["reason"])


async def _by_desk(place: ApprovingDeployment, asked: Asked) -> str:
    try:
        await place.desk.approve(asked.request_id, asked.sha256, OPERATOR)
    except GatewayError as error:
        return error.reason
    except StorageDownError:
        return BUSY
    return "approved"


async def _by_command(place: ApprovingDeployment, asked: Asked) -> str:
    words = ("approvals", "approve", asked.request_id, "--payload", asked.sha256)
    code, found = await place.guarded.deployment.command(*words)
    if code in (0, 3):
        return "approved" if code == 0 else str(found["error"]["reason"])
    assert code in (2, 6), found
    return BUSY


async def _sent_once(place: ApprovingDeployment, holder: Holder, asked: Asked, text: str) -> None:
    """Wait for the end of a request, and compare every account of it with what X has."""
    rows = await place.until_ended([asked.request_id], ENDED_S)
    assert rows[asked.request_id].state == "confirmed"
    assert await place.posted(text) == [text]
    reports = [await place.report(at, holder, asked.request_id) for at in place.replicas]
    assert {report["data"]["text"] for report in reports} == {text}
    assert {report["state"] for report in reports} == {"confirmed"}
