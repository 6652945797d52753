"""Hostile callers against a real process: half requests by the thousand, broken ones by the million."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from harness.fault_scale import record, scaled
from harness.gateway import API
from harness.processes import Deployment, GatewayProcess, deploy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HALVES = scaled("HALVES", 60, 1_000)
"""Half-sent heads, and as many half-sent bodies; 1,000 of them assert the figures, too."""
MALFORMED = scaled("MALFORMED", 2_000, 50_000)
"""Broken requests."""
LONG = HALVES >= 1_000
DEADLINE_S = 10 if LONG else 2
NORMAL = 200

pytestmark = pytest.mark.timeout(3_600)


def post(*lines: str, body: bytes = b"", path: str = f"{API}like_twitter") -> bytes:
    """A POST with these header lines."""
    head = "\r\n".join((f"POST {path} HTTP/1.1", "Host: a", "Connection: close", *lines, "", ""))
    return head.encode("latin-1") + body


def whole(*lines: str, body: bytes) -> bytes:
    """The same with its length, and with a good key in the place of KEY."""
    return post(
        "Authorization: Bearer KEY", "Content-Type: application/json", *lines, f"Content-Length: {len(body)}", body=body
    )


BROKEN = (
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET /%zz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"G\x00T / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 120 + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 17_000 + b"\r\n\r\n",
    post("Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    post("Content-Length: 99999999999999999999999"),
    post("Transfer-Encoding: chunked", "Content-Type: application/json", body=b"ffffffffffffffffff\r\n"),
    post("Authorization: Bearer bw_test_" + "A" * 5_000, "Content-Length: 0"),
    whole(body=b'{"tweet_id":"1","tweet_id":"2"}'),
    whole(body=b"[" * 10_000),
    whole(body=b'{"tweet_id":' + b"9" * 5_000 + b"}"),
    whole(body=b"\xff\xfe{}"),
    whole(body=b" " * 20_000),
    post("Content-Type: multipart/form-data; boundary=a", "Content-Length: 7", body=b"--a\r\n\r\n"),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade, close\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
)


def resident_kib(served: GatewayProcess) -> int:
    """What the process has in memory."""
    lines = Path(f"/proc/{served.process.pid}/status").read_text("ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


@contextlib.asynccontextmanager
async def gateway(folder: Path) -> AsyncIterator[tuple[Deployment, GatewayProcess, tuple[str, int]]]:
    """A linked gateway, and where it listens."""
    async with deploy(folder) as place:
        served = await place.serve(request_deadline_s=str(DEADLINE_S), max_connections="5000", max_calls_each="100")
        await place.link(served)
        parts = urlsplit(served.url)
        yield place, served, (parts.hostname or "", parts.port or 0)


async def talk(where: tuple[str, int], sent: bytes) -> bytes:
    """Send, and read until the connection ends; what came."""
    reader, writer = await asyncio.open_connection(*where)
    try:
        writer.write(sent)
        return await reader.read()
    except OSError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def asking(place: Deployment, served: GatewayProcess) -> float:
    """Return the 99th percentile of this many ordinary calls, in seconds."""
    took = []
    for _ in range(NORMAL):
        began = time.monotonic()
        assert (await place.status(served))["linked"] is True
        took.append(time.monotonic() - began)
    return sorted(took)[int(NORMAL * 0.99)]


@pytest.mark.trust("G15")
@pytest.mark.trust("T13")
async def test_half_requests_are_closed_in_time_while_others_are_served(tmp_path: Path) -> None:
    """Each ends with 408 soon after its deadline; ordinary calls go on as fast as before."""
    ends: list[float] = []

    async def half(where: tuple[str, int], sent: bytes) -> asyncio.Task[None]:
        reader, writer = await asyncio.open_connection(*where)
        writer.write(sent)
        began = time.monotonic()

        async def end() -> None:
            assert (await reader.read()).startswith(b"HTTP/1.1 408")
            ends.append(time.monotonic() - began)
            writer.close()
            await writer.wait_closed()

        return asyncio.create_task(end())

    async with gateway(tmp_path) as (place, served, where):
        before_s = await asking(place, served)
        kinds = (b"GET /livez HTTP/1.1\r\nHo", post("Content-Type: application/json", "Content-Length: 9"))
        halves = [await half(where, kinds[number % 2]) for number in range(2 * HALVES)]
        during_s = await asking(place, served)
        await asyncio.gather(*halves)
    told = f"{2 * HALVES} halves, the last closed after {max(ends):.1f} s; "
    told += f"p99 of others {before_s * 1e3:.1f} ms before, {during_s * 1e3:.1f} ms meanwhile"
    record("half requests", closed=len(ends), last_s=round(max(ends), 1), others_p99_ms=round(during_s * 1e3, 1))
    assert len(ends) == 2 * HALVES
    assert min(ends) >= DEADLINE_S * 0.9
    assert not LONG or (max(ends) < DEADLINE_S + 1 and during_s <= 2 * before_s), told


@pytest.mark.trust("G3")
@pytest.mark.trust("T13")
async def test_broken_requests_leave_nothing_behind(tmp_path: Path) -> None:
    """Each is answered in the envelope or cut off, never with 5xx; memory stays as it was; the log tells of no bug."""
    async with gateway(tmp_path) as (place, served, where):
        numbers = iter(range(MALFORMED))
        measured: dict[int, int] = {}
        key = place.raw_keys[0].encode()

        async def caller() -> None:
            for number in numbers:
                got = await talk(where, BROKEN[number % len(BROKEN)].replace(b"KEY", key))
                if got:
                    head, _, body = got.partition(b"\r\n\r\n")
                    assert head.split()[1][:1] == b"4", got[:300]
                    assert json.loads(body)["error"]["request_id"].startswith("req_")
                if number == MALFORMED // 10:
                    measured[0] = resident_kib(served)

        await asyncio.gather(*(caller() for _ in range(30)))
        measured[1] = resident_kib(served)
        assert (await place.like(served)).status_code == 200
        assert '"crash"' not in served.log.read_text()
    told = f"{MALFORMED} broken requests; {measured[0]} KiB after a tenth of them, {measured[1]} at the end"
    record("broken requests", runs=MALFORMED, before_kib=measured[0], after_kib=measured[1])
    assert measured[1] <= 1.1 * measured[0], told
