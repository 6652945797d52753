"""A real gateway that gets a signal reports it, finishes its calls and exits 0; a second signal stops it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from typing import TYPE_CHECKING

import httpx2
import pytest

from harness.gateway import API
from harness.processes import START_S, deploy, environment

if TYPE_CHECKING:
    from pathlib import Path

    from harness.processes import Deployment, GatewayProcess

LIKES = "/2/users/*/likes"


async def liking(street_: Deployment, served: GatewayProcess, delay_s: float) -> asyncio.Task[httpx2.Response]:
    """A like for which X takes its time, and which has reached X."""
    await street_.fault(LIKES, {"delay_s": delay_s})
    task = asyncio.create_task(street_.like(served))
    faults = True
    async with asyncio.timeout(30):
        while faults:
            faults = bool((await street_.x.get("/_sandbox/faults")).json()["faults"])
    return task


async def until_draining(street_: Deployment, served: GatewayProcess) -> httpx2.Response:
    """Ask until it says that it is shutting down."""
    async with asyncio.timeout(30):
        while (answer := await street_.client.get(f"{served.url}/readyz")).status_code == 200:
            pass
    return answer


@pytest.mark.trust("F9")
async def test_a_gateway_that_is_asked_to_stop_finishes_its_calls_first(tmp_path: Path) -> None:
    """/readyz turns red, running and new calls are answered, and the process exits with 0."""
    async with deploy(tmp_path) as place:
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
    """Calls that X keeps for long do not keep the gateway, and its log stays one JSON object a line."""
    async with deploy(tmp_path) as place:
        served = await place.serve(drain_notice_s="60")
        await place.link(served)
        body = {"match": {"method": "GET", "path": "/2/users/by/username/*"}, "times": 1, "do": {"delay_s": 30}}
        (await place.x.post("/_sandbox/faults", json=body)).raise_for_status()
        headers = {"authorization": f"Bearer {place.raw_keys[0]}"}
        looking = asyncio.create_task(
            place.client.get(f"{served.url}{API}user/info", params={"userName": "grace"}, headers=headers)
        )
        running = await liking(place, served, 30)
        served.signal(signal.SIGTERM)
        await until_draining(place, served)
        served.signal(signal.SIGINT)
        assert await served.ended() == 0
        cut = await asyncio.gather(running, looking, return_exceptions=True)
        assert all(isinstance(one, httpx2.HTTPError) for one in cut), cut
        lines = [json.loads(line) for line in served.log.read_text().splitlines()]
        assert {line["event"] for line in lines} - {"act"} == {"request", "cut_off"}
        unknown = {line["operation"]: line["outcome"] for line in lines if line["event"] == "cut_off"}
        assert unknown == {"like_twitter": "unknown", "user/info": "unknown"}
        assert len({line["request_id"] for line in lines if line["event"] == "cut_off"}) == len(unknown)


async def test_two_signals_end_a_dev_gateway_without_a_traceback(tmp_path: Path) -> None:
    """A like is under way in the gateway and in its sandbox; neither reports that it was cut off."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "birdwire.cli", "dev", "--json", "--link", "ada", "--data", str(tmp_path / "dev")),
        *("--port", "0", "--sandbox-port", "0"),
        env=environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        offer = json.loads(await asyncio.wait_for(process.stdout.readline(), START_S))
        async with httpx2.AsyncClient(timeout=30) as client:
            body = {"match": {"method": "POST", "path": LIKES}, "times": 1, "do": {"delay_s": 30}}
            (await client.post(f"{offer['sandbox']}/_sandbox/faults", json=body)).raise_for_status()
            headers = {"authorization": f"Bearer {offer['api_key']}"}
            like = client.post(
                f"{offer['gateway']}{API}like_twitter", json={"tweet_id": offer["tweet_id"]}, headers=headers
            )
            running = asyncio.create_task(like)
            async with asyncio.timeout(30):
                while (await client.get(f"{offer['sandbox']}/_sandbox/faults")).json()["faults"]:
                    pass
            process.send_signal(signal.SIGINT)
            await until_refused(client, offer["gateway"])
            process.send_signal(signal.SIGINT)
            _, said = await asyncio.wait_for(process.communicate(), START_S)
            assert (process.returncode, said.decode()) == (0, "")
            assert isinstance((await asyncio.gather(running, return_exceptions=True))[0], httpx2.HTTPError)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until_refused(client: httpx2.AsyncClient, url: str) -> None:
    """Ask until nothing is let in any more."""
    async with asyncio.timeout(30):
        with contextlib.suppress(httpx2.HTTPError):
            while True:
                await client.get(f"{url}/livez", headers={"connection": "close"})
