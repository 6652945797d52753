"""A gateway that may have little more memory than it starts with: bodies that pile up stay within their caps."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from harness.gateway import API, PNG
from harness.processes import GatewayProcess, deploy

if sys.platform != "win32":
    import resource

if TYPE_CHECKING:
    from asyncio import StreamWriter

MORE = 128 << 20
BODIES = 150
UPLOAD = 48 << 20


def in_memory(served: GatewayProcess, name: str) -> int:
    """A line of the process's status, in bytes."""
    lines = Path(f"/proc/{served.process.pid}/status").read_text("ascii").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) << 10


@pytest.mark.trust("F45")
@pytest.mark.trust("T13")
@pytest.mark.timeout(120)
async def test_with_little_memory_the_caps_hold(tmp_path: Path) -> None:
    """150 posts whose bodies stay almost whole, an upload of 48 MiB, which goes to disk; and calls are served."""
    async with deploy(tmp_path) as place:
        served = await place.serve(max_calls_each="50")
        await place.link(served)
        parts = urlsplit(served.url)
        size = in_memory(served, "VmSize") + MORE
        resource.prlimit(served.process.pid, resource.RLIMIT_AS, (size, size))
        before = in_memory(served, "VmRSS")
        head = (
            f"POST {API}post_twitter HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {place.raw_keys[0]}\r\n"
            "Content-Type: application/json\r\nContent-Length: 65000\r\n\r\n"
        ).encode()
        open_: list[StreamWriter] = []
        for _ in range(BODIES):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(head + b" " * 64_900)
            await writer.drain()
            open_.append(writer)
        files = {"media_files": ("a.png", PNG + bytes(UPLOAD), "image/png")}
        sent = {"authorization": f"Bearer {place.raw_keys[0]}"}
        answer = await place.client.post(f"{served.url}{API}upload_media", files=files, headers=sent)
        assert (answer.status_code, answer.json()["error"]["reason"]) == (400, "media_too_large")
        assert (await place.like(served)).status_code == 200
        assert in_memory(served, "VmRSS") - before < BODIES * 66_000 + UPLOAD / 2
        for writer in open_:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        assert (await place.like(served)).status_code == 200
        assert '"crash"' not in served.log.read_text()
