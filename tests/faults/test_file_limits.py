"""A gateway that may have few files open: it sheds what does not fit, keeps what it has, and is well afterwards."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from birdwire.runtime.file_limits import ConnectionBudget
from harness.processes import deploy

if TYPE_CHECKING:
    from pathlib import Path

FEW = ("sh", "-c", 'ulimit -n 64; exec "$@"', "sh")
CALLERS = 300


def test_scarce_file_descriptors_are_split_between_callers_and_x() -> None:
    """Callers and X get their part; plenty changes nothing."""
    wanted = ConnectionBudget(callers=1_000, refused=100, calls=100, tokens=50)
    assert wanted.within(20_000) == wanted
    few = wanted.within(64)
    assert few == ConnectionBudget(callers=12, refused=3, calls=6, tokens=3)
    assert ConnectionBudget(1, 1, 1, 1).within(0) == ConnectionBudget(1, 1, 1, 1)


async def asked(host: str, port: int, callers: int) -> Counter[int]:
    """Run this many concurrent callers until all are answered; return a count by status, 0 for a closed connection."""
    connections = []
    told: Counter[int] = Counter()

    async def ask() -> None:
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except OSError:
            told[0] += 1
            return
        connections.append(writer)
        try:
            writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
            line = await reader.readline()
        except OSError:
            line = b""
        told[int(line.split()[1]) if line else 0] += 1

    await asyncio.gather(*(ask() for _ in range(callers)))
    for writer in connections:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return told


@pytest.mark.trust("F44")
@pytest.mark.timeout(120)
async def test_with_64_open_files_it_sheds_and_recovers(tmp_path: Path) -> None:
    """Of many open connections some are served, the rest refused or closed; the process does not spin, and recovers."""
    async with deploy(tmp_path) as place:
        served = await place.serve(*FEW)
        await place.link(served)
        await place.client.aclose()
        parts = urlsplit(served.url)
        where = (parts.hostname or "", parts.port or 0)
        for _ in range(3):
            told = await asked(*where, CALLERS)
            assert 200 in told
            assert set(told) <= {200, 503, 0}
        lines = served.log.read_text().splitlines()
        assert '"few_open_files"' in lines[0]
        assert len(lines) < 4 * CALLERS
        assert not [line for line in lines if not line.startswith("{") or '"crash"' in line]
        async with asyncio.timeout(30):
            while not (await asked(*where, 1))[200]:
                pass
        assert served.process.poll() is None
