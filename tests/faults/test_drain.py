"""A real gateway that is told to end: it says so, finishes what runs, and ends well; told twice, it ends at once."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import httpx2
import pytest

from served import street

if TYPE_CHECKING:
    from pathlib import Path

    from served import Serving, Street

LIKES = "/2/users/*/likes"


async def liking(street_: Street, served: Serving, delay_s: float) -> asyncio.Task[httpx2.Response]:
    """A like for which X takes its time, and which has reached X."""
    await street_.fault(LIKES, {"delay_s": delay_s})
    task = asyncio.create_task(street_.like(served))
    faults = True
    async with asyncio.timeout(30):
        while faults:
            faults = bool((await street_.x.get("/_sandbox/faults")).json()["faults"])
    return task


async def until_draining(street_: Street, served: Serving) -> httpx2.Response:
    """Ask until it says that it is shutting down."""
    async with asyncio.timeout(30):
        while (answer := await street_.client.get(f"{served.url}/readyz")).status_code == 200:
            pass
    return answer


@pytest.mark.trust("F9")
async def test_a_gateway_that_is_told_to_end_finishes_first(tmp_path: Path) -> None:
    """/readyz turns red, a call under way is answered, and calls that come meanwhile too; then it is gone, with 0."""
    async with street(tmp_path) as place:
        served = await place.serve()
        await place.link(served)
        running = await liking(place, served, 1.0)
        served.signal(signal.SIGTERM)
        answer = await until_draining(place, served)
        assert (answer.status_code, answer.json()["error"]["reason"]) == (503, "draining")
        assert (await place.status(served))["linked"] is True
        assert (await running).json() == {"data": {"liked": True}}
        assert await served.ended() == 0
        with pytest.raises(httpx2.ConnectError):
            await place.client.get(f"{served.url}/livez")
        assert '"crash"' not in served.log.read_text()


async def test_a_second_signal_waits_for_nothing(tmp_path: Path) -> None:
    """A call that X keeps for long does not keep the gateway."""
    async with street(tmp_path) as place:
        served = await place.serve(drain_notice_s="60")
        await place.link(served)
        running = await liking(place, served, 5.0)
        served.signal(signal.SIGTERM)
        await until_draining(place, served)
        served.signal(signal.SIGTERM)
        assert await served.ended() == 0
        assert isinstance(
            (await asyncio.gather(running, return_exceptions=True))[0], httpx2.HTTPError | httpx2.Response
        )
