"""Drives likes at a server with wrk, a key for each connection, and counts what each cost."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.machine import LOAD_CORE, pinned, plain_environment

if TYPE_CHECKING:
    from bench.machine import Process

PATH = "/apis/v1/twitter/like_twitter"
DEEDS = {"like": PATH, "post": "/apis/v1/twitter/post_twitter"}
"""What a caller does, and at which path."""

SCRIPT = Path(__file__).parent / "peers" / "callers.lua"
TIMEOUT_S = 20
CALLER_S = 120.0
BODIES = {"like": '{"tweet_id":"1346889436626259968"}', "post": '{"text":"Post %06d of this caller"}'}
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


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
    deed: str = "like"

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
            raise RuntimeError(f"it refused {told['refused']} of the {told['requests']} calls that it answered")
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
        argv += ["--timeout", f"{TIMEOUT_S}s", "-s", str(SCRIPT)]
        argv += [f"http://127.0.0.1:{port}{DEEDS[self.deed]}", str(self.keys), self.deed]
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


class Caller:
    """One connection with one key that sends likes or posts one at a time, each in one piece, for a counted server."""

    def __init__(self, port: int, key: str, deed: str = "like") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), CALLER_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._body = BODIES[deed]
        self._sent = 0
        length = len(self._body.replace("%06d", "000000"))
        self._head = f"POST {DEEDS[deed]} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
        self._head += f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"

    def send(self) -> None:
        """Send a like, or the next post."""
        self._sent += 1
        self._socket.sendall((self._head + self._body.replace("%06d", f"{self._sent:06}")).encode())

    def receive(self) -> None:
        """Read the last answer.

        Raises:
            RuntimeError: the call was refused, or the connection was closed.
        """
        read = b""
        while not (found := _LENGTH.search(read)) or len(read.partition(b"\r\n\r\n")[2]) < int(found[1]):
            piece = self._socket.recv(1 << 16)
            read += piece
            if not piece:
                break
        if not read.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 201 ")):
            raise RuntimeError(f"a call was refused: {read.decode(errors='replace')}")

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()
