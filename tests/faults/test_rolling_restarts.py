"""Two replicas behind haproxy, restarted one after the other under load: no caller notices."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import pytest

from harness.fault_scale import record, scaled
from harness.gateway import API, POST, address, bound
from harness.replicas import Cluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from harness.engines import Postgres

pytestmark = pytest.mark.timeout(3_600)

RESTARTS = scaled("RESTARTS", 4, 20)
"""How many."""
CALLERS = 8
ACCOUNTS = ("ada", "grace", "alan", "pat")
CONFIG = Path(__file__).parents[2] / "docs" / "fronts" / "haproxy.cfg"
DRAINED_S = 30.0


@dataclass
class Front:
    """haproxy, as we ship its configuration, in front of two replicas."""

    url: str
    control: Path

    async def up(self) -> int:
        """How many replicas it sends calls to; none while it starts."""
        try:
            reader, writer = await asyncio.open_unix_connection(self.control)
        except (FileNotFoundError, ConnectionRefusedError):
            return 0
        writer.write(b"show stat\n")
        rows = [row.split(b",") for row in (await reader.read()).splitlines()]
        writer.close()
        return sum(row[1] in {b"one", b"two"} and row[17] == b"UP" for row in rows if len(row) > 17)

    async def all_up(self) -> None:
        """Wait until it sends calls to both."""
        async with asyncio.timeout(30):
            while await self.up() < 2:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def fronted(cluster: Cluster) -> AsyncIterator[Front]:
    """Start it, and end it."""
    listener = bound()
    url = address(listener)
    listener.close()
    control, more = cluster.folder / "haproxy.sock", cluster.folder / "more.cfg"
    more.write_text(f"global\n    stats socket {control} level user\n", "utf-8")
    one, two = (replica.url.removeprefix("http://") for replica in cluster.replicas)
    process = await asyncio.create_subprocess_exec(
        *(shutil.which("haproxy") or "haproxy", "-db", "-f", CONFIG, "-f", more),
        env={"FRONT_PLAIN": url.removeprefix("http://"), "REPLICA_ONE": one, "REPLICA_TWO": two},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    front = Front(url, control)
    try:
        await front.all_up()
        yield front
    finally:
        process.kill()
        await process.wait()


@dataclass
class Load:
    """Callers without a pause, and what they were answered."""

    url: str
    answers: Counter[int | str] = field(default_factory=Counter)
    ended: bool = False

    async def call(self, headers: dict[str, str]) -> None:
        """Like and request the status over one kept connection, until stopped."""
        async with httpx2.AsyncClient(base_url=self.url + API, headers=headers, timeout=30) as client:
            turn = 0
            while not self.ended:
                turn += 1
                try:
                    if turn % 3:
                        answer = await client.post("like_twitter", json={"tweet_id": POST})
                    else:
                        answer = await client.get("auth/status")
                    self.answers[answer.status_code] += 1
                except httpx2.HTTPError as error:
                    self.answers[type(error).__name__] += 1


@pytest.mark.skipif(shutil.which("haproxy") is None and "CI" not in os.environ, reason="haproxy is not installed")
@pytest.mark.trust("G8")
@pytest.mark.trust("F9")
async def test_rolling_restarts_under_load_lose_no_request(tmp_path: Path, postgres: Postgres) -> None:
    """SIGTERM, end, start again, back in the pool, the next: every call is answered, and every end is in time and 0."""
    longest_s = 0.0
    async with Cluster.built(tmp_path, postgres, None, replicas=2) as cluster, fronted(cluster) as front:
        load, callers = Load(front.url), []
        for number in range(CALLERS):
            _, headers = await cluster.key()
            await cluster.link(headers, username=ACCOUNTS[number % len(ACCOUNTS)])
            callers.append(asyncio.create_task(load.call(headers)))
        for number in range(RESTARTS):
            replica = cluster.replicas[number % 2]
            before = sum(load.answers.values())
            began = time.monotonic()
            assert await replica.end(signal.SIGTERM) == 0
            longest_s = max(longest_s, time.monotonic() - began)
            port = int(replica.url.rpartition(":")[2])
            cluster.replicas[number % 2] = await cluster.start(str(number % 2), port)
            await front.all_up()
            assert sum(load.answers.values()) > before
        load.ended = True
        await asyncio.gather(*callers)
    record(
        "replicas restarted under load",
        runs=RESTARTS,
        longest_end_s=round(longest_s, 1),
        answered=load.answers.total(),
        failed=load.answers.total() - load.answers[200],
    )
    assert set(load.answers) == {200}, load.answers
    assert longest_s < DRAINED_S
