"""Health checks: liveness, readiness, draining, and the lag of the event loop. Never calls X."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from birdwire.api.errors import GatewayError
from birdwire.api.messages import Answer

if TYPE_CHECKING:
    from birdwire.api.messages import Call
    from birdwire.runtime.telemetry import Telemetry

BEAT_S = 0.25
KEPT_S = 15.0
STALLED_S = 2.0
STALLED_FOR_S = 5.0
"""A stall of STALLED_S makes the process unready for this long, so that a load balancer sends traffic elsewhere."""


class Pulse:
    """Measures the lag of the event loop by a heartbeat every BEAT_S, in the loop's own time."""

    def __init__(self, now: float) -> None:
        self._due = now + BEAT_S
        self._worst, self._worst_at = 0.0, now

    def beat(self, now: float) -> None:
        """Record a heartbeat."""
        late = max(0.0, now - self._due)
        if late >= self._worst or now - self._worst_at > KEPT_S:
            self._worst, self._worst_at = late, now
        self._due = now + BEAT_S

    def lag_s(self, now: float, within_s: float = KEPT_S) -> float:
        """Return the longest stall that ended within `within_s`, or the current one if it is longer."""
        return max(now - self._due, self._worst if now - self._worst_at <= within_s else 0.0, 0.0)


Probe = Callable[[], Awaitable[None]]


class Health:
    """Answers liveness and readiness probes.

    `probe` raises a GatewayError while the process cannot serve calls; each of `on_drain` runs when the process starts
    to shut down.
    """

    def __init__(
        self, telemetry: Telemetry, probe: Probe, *on_drain: Callable[[], None], stalled_s: float = STALLED_S
    ) -> None:
        self._stalled_s = stalled_s
        self._probe = probe
        self._on_drain = on_drain
        self._pulse: Pulse | None = None
        self._draining = False
        telemetry.metrics.watch("birdwire_draining", self.draining)
        telemetry.metrics.watch("birdwire_loop_lag_seconds", self._lag_s)

    def drain(self) -> None:
        """Mark this process as shutting down: it reports so from now on, and starts nothing of its own accord."""
        self._draining = True
        for prepare in self._on_drain:
            prepare()

    def draining(self) -> bool:
        """Whether it is."""
        return self._draining

    async def live(self, _: Call) -> Answer:
        """The process answers."""
        return Answer.of({"status": "ok"})

    async def ready(self, _: Call) -> Answer:
        """Whether calls can be served here. X is left out, or its outage would empty the pool of replicas.

        Raises:
            GatewayError: draining; overloaded: the event loop was blocked; or what the probe raises.
        """
        if self._draining:
            raise GatewayError("draining")
        if self._lag_s(STALLED_FOR_S) >= self._stalled_s:
            raise GatewayError("overloaded", retry_after_s=int(STALLED_FOR_S))
        await self._probe()
        return Answer.of({"status": "ready"})

    async def beat(self) -> None:
        """Until cancelled: see that the loop comes round in time."""
        loop = asyncio.get_running_loop()
        self._pulse = Pulse(loop.time())
        while True:
            await asyncio.sleep(BEAT_S)
            self._pulse.beat(loop.time())

    def _lag_s(self, within_s: float = KEPT_S) -> float:
        return self._pulse.lag_s(asyncio.get_running_loop().time(), within_s) if self._pulse else 0.0
