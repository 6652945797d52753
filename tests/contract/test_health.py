"""Health: alive, ready, shutting down; and what is still answered while a process ends."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from birdwire.api.errors import GatewayError
from birdwire.api.messages import Call
from birdwire.runtime.health import BEAT_S, KEPT_S, STALLED_FOR_S, STALLED_S, Health, Pulse

if TYPE_CHECKING:
    from harness.gateway import RunningGateway


async def test_a_process_that_is_shutting_down_reports_it_and_still_serves(linked: RunningGateway) -> None:
    """/readyz turns red immediately; calls are answered, and each answer is its connection's last."""
    assert (await linked.bare.get("/readyz")).json() == {"status": "ready"}
    linked.gateway.health.drain()
    answer = await linked.bare.get("/readyz")
    assert (answer.status_code, answer.json()["error"]["reason"]) == (503, "draining")
    assert int(answer.headers["retry-after"]) >= 1
    assert (await linked.bare.get("/livez")).json() == {"status": "ok"}
    for client in (linked.client, linked.client):
        answer = await client.post("/apis/v1/twitter/like_twitter", json={"tweet_id": "1346889436626259968"})
        assert answer.status_code == 200
    assert answer.headers["connection"] == "close"


async def test_a_process_that_is_shutting_down_starts_no_early_renewal(linked: RunningGateway) -> None:
    """Another can do it in time; a call whose token has ended is still served."""
    linked.gateway.health.drain()
    linked.clock.advance(seconds=7_200 - 600)
    assert (await linked.like()).status_code == 200
    assert len(await linked.calls("/2/oauth2/token", grant_type="refresh_token")) == 0
    linked.clock.advance(seconds=660)
    assert (await linked.like()).status_code == 200
    assert len(await linked.calls("/2/oauth2/token", grant_type="refresh_token")) == 1


@pytest.mark.trust("F46")
async def test_a_process_whose_loop_stood_still_is_not_ready(running: RunningGateway) -> None:
    """The longest stall is measured, also for a request before the next beat."""
    health = Health(running.gateway.telemetry, StillThere().probe, lambda: None, stalled_s=0.05)
    beating = asyncio.create_task(health.beat())
    await asyncio.sleep(0)
    assert (await health.ready(Call("GET", "/readyz"))).status == 200
    began = time.monotonic()
    while time.monotonic() - began < BEAT_S + 0.1:
        pass  # what blocks a loop is code that does not yield
    with pytest.raises(GatewayError, match="overloaded"):
        await health.ready(Call("GET", "/readyz"))
    beating.cancel()


class StillThere:
    """A database that takes a write."""

    async def probe(self) -> None:
        """It does."""


@pytest.mark.trust("F46")
def test_a_loop_that_stood_still_is_late_for_a_while() -> None:
    """A stall counts while it lasts, at its end, and for some seconds after; then it is forgotten."""
    pulse = Pulse(100.0)
    pulse.beat(100.0 + BEAT_S)
    assert pulse.lag_s(100.0 + 2 * BEAT_S) == 0.0
    ended = 100.0 + 2 * BEAT_S + STALLED_S
    assert pulse.lag_s(ended) == pytest.approx(STALLED_S)  # asked before the beat had its turn
    for number in range(int(KEPT_S / BEAT_S) + 2):
        now = ended + number * BEAT_S
        pulse.beat(now)
        assert (pulse.lag_s(now, STALLED_FOR_S) >= STALLED_S) is (now - ended <= STALLED_FOR_S)
        assert (pulse.lag_s(now) >= STALLED_S) is (now - ended <= KEPT_S)
