"""The MCP bridge as a process of its own: what goes in on stdin, and what comes out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.processes import environment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

COMMAND = (sys.executable, "-m", "birdwire.cli", "mcp")
SOON_S = 20.0
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
"""The envelope of a request of 2026-07-28, its member `_meta`."""


def request(method: str, request_id: object = 1, **params: Any) -> dict[str, Any]:
    """Return a JSON-RPC request."""
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}


def call(tool: str, request_id: object = 1, given: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
    """Return the request that calls a tool."""
    return request("tools/call", request_id, name=tool, arguments=arguments | (given or {}))


@dataclass
class BridgeProcess:
    """A running bridge."""

    process: asyncio.subprocess.Process

    async def send(self, *messages: object) -> None:
        """Write messages, one a line; bytes as they are."""
        assert self.process.stdin is not None
        for message in messages:
            line = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
            self.process.stdin.write(line)
        await self.process.stdin.drain()

    async def receive(self) -> dict[str, Any]:
        """Read the next answer."""
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), SOON_S)
        document = json.loads(line)
        assert document["jsonrpc"] == "2.0"
        return dict(document)

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return its answer, which is the next line."""
        await self.send(message)
        answer = await self.receive()
        assert answer["id"] == message["id"], answer
        return answer

    async def ended(self) -> tuple[int, bytes, str]:
        """Close stdin; return the exit code and what was still written to stdout and stderr."""
        out, err = await asyncio.wait_for(self.process.communicate(b""), SOON_S)
        assert self.process.returncode is not None
        return self.process.returncode, out, err.decode()


@contextlib.asynccontextmanager
async def bridging(
    url: str, raw_key: str = "", *options: str, program: tuple[str, ...] = COMMAND
) -> AsyncIterator[BridgeProcess]:
    """Start a bridge; at the end, check that its key is in neither its arguments nor its diagnostics."""
    given = {"url": url} | ({"api_key": raw_key} if raw_key else {})
    process = await asyncio.create_subprocess_exec(
        *program,
        *options,
        env=environment(**given),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=1 << 24,
    )
    try:
        arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes()  # noqa: ASYNC240 - not on a disk
        yield BridgeProcess(process)
    finally:
        if process.returncode is None:
            process.kill()
        out, err = await process.communicate()
    if raw_key:
        assert raw_key.encode() not in arguments + out + err
