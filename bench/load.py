"""Drives likes at a server with wrk, a key for each connection, and counts what each cost."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.machine import LOAD_CORE, pinned, plain_environment

if TYPE_CHECKING:
    from bench.machine import Process

PATH = "/apis/v1/twitter/like_twitter"
SCRIPT = Path(__file__).parent / "peers" / "like.lua"
TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one contender. CPU is of its process tree; `beside_us` is that of the databases it came with."""

    contender: str
    round: int
    connections: int
    requests: int
    rate: float
    cpu_us: float
    beside_us: float
    p50_us: int
    p99_us: int
    max_us: int
    peak_mib: float
    refused: int
    broken: int


@dataclass(frozen=True, slots=True)
class Load:
    """Where the keys are, and how long to warm up and to measure, in whole seconds.

    A connection keeps to its one key; with `spread` it takes another with each like, so that all are used in turn.
    """

    keys: Path
    seconds: int
    warm_up: int = 1
    spread: bool = False

    def run(self, process: Process, number: int, connections: int) -> Run:
        """Warm a contender up, then measure it.

        Raises:
            RuntimeError: it refused or dropped requests, so that its figures would mean something else.
        """
        if self.warm_up:
            self._wrk(process.port, connections, self.warm_up)
        cpu_s, beside_s = process.cpu_s(), sum(one.cpu_s() for one in process.attendants)
        told = self._wrk(process.port, connections, self.seconds)
        if not told["requests"]:  # a slow one on a busy machine
            told = self._wrk(process.port, connections, self.seconds * 5)
        cpu_s, beside_s = process.cpu_s() - cpu_s, sum(one.cpu_s() for one in process.attendants) - beside_s
        requests = max(1, told["requests"])
        if told["refused"] or not told["requests"]:
            raise RuntimeError(f"it refused {told['refused']} of the {told['requests']} likes that it answered")
        return Run(
            contender=process.name,
            round=number,
            connections=connections,
            requests=told["requests"],
            rate=round(told["requests"] / told["duration_us"] * 1e6, 1),
            cpu_us=round(cpu_s / requests * 1e6, 2),
            beside_us=round(beside_s / requests * 1e6, 2),
            p50_us=told["p50_us"],
            p99_us=told["p99_us"],
            max_us=told["max_us"],
            peak_mib=round(process.peak_mib(), 1),
            refused=told["refused"],
            broken=told["broken"],
        )

    def _wrk(self, port: int, connections: int, seconds: int) -> dict[str, int]:
        """What wrk says: one thread a connection, so that each has its own key."""
        argv = ["wrk", "-t", str(connections), "-c", str(connections), "-d", f"{seconds}s", "--latency"]
        argv += ["--timeout", f"{TIMEOUT_S}s", "-s", str(SCRIPT), f"http://127.0.0.1:{port}{PATH}", str(self.keys)]
        if self.spread:
            argv.append(str(connections))
        with pinned(LOAD_CORE):
            done = subprocess.run(
                argv,
                capture_output=True,
                text=True,
                check=True,
                timeout=seconds + 2 * TIMEOUT_S,
                env=plain_environment(),
            )
        told: dict[str, int] = json.loads(done.stdout.strip().splitlines()[-1])
        return told
