"""Connections that never finish what they ask take no place from those that do."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx2
import pytest

from harness.edge_server import hang_up
from harness.gateway import API, RunningGateway

if TYPE_CHECKING:
    from pathlib import Path

SLOTS = 100
HALVES = {
    "heads": b"GET /livez HTTP/1.1\r\nHost: a\r\n",
    "bodies": f"POST {API}like_twitter HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n".encode(),
    "silence": b"",
}


@pytest.mark.trust("G15")
@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
async def test_half_open_connections_from_several_addresses_block_no_other_caller(tmp_path: Path, half: bytes) -> None:
    """More of them than there are places: health answers each time, and a link is ended."""
    async with RunningGateway.built(tmp_path, max_connections=SLOTS) as running:
        assert (await running.link()).status_code == 200
        url = urlsplit(str(running.client.base_url))
        halves = [
            await asyncio.open_connection(url.hostname, url.port, local_addr=(f"127.0.0.{2 + number % 6}", 0))
            for number in range(SLOTS + SLOTS // 10)
        ]
        try:
            for _, writer in halves:
                writer.write(half)
            for _ in range(38):
                assert await ask(running, "GET", "/livez") == (200, {"status": "ok"})
            assert await ask(running, "POST", API + "unlink_twitter") == (200, {"data": {"linked": False}})
        finally:
            for _, writer in halves:
                with contextlib.suppress(OSError):
                    await hang_up(writer)


async def ask(running: RunningGateway, method: str, path: str) -> tuple[int, object]:
    """The status and document of an answer, by a connection of its own."""
    async with httpx2.AsyncClient(base_url=running.client.base_url, timeout=30) as client:
        answer = await client.request(method, path, headers={"authorization": f"Bearer {running.raw_key}"})
        return answer.status_code, answer.json()
