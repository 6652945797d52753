"""Servers behind the edge, on a real socket in this process."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvicorn
from pydantic import SecretStr

from birdwire.app import create_app
from birdwire.edge import server as edge_server
from birdwire.runtime.clock import Clock
from birdwire.runtime.telemetry import Telemetry
from birdwire.settings import Settings
from harness.http_corpus import KEY, PROBE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from starlette.types import ASGIApp

    from birdwire.edge.connections import EdgeLimits

GUARD_S = 20.0
"""A test that takes longer has hung."""


@dataclass
class RunningServer:
    """A running server, its key and its log."""

    port: int
    key: str
    log: io.StringIO
    server: uvicorn.Server

    async def open(self, source: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection from any loopback address."""
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22, local_addr=(source, 0))

    async def talk(self, sent: bytes, *, eof: bool = False) -> bytes:
        """Send everything in one write, and read until the server ends the connection."""
        async with asyncio.timeout(GUARD_S):
            reader, writer = await self.open()
            try:
                writer.write(sent.replace(KEY, self.key.encode()))
                if eof:
                    writer.write_eof()
                return await reader.read()
            finally:
                await hang_up(writer)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close the connection, whatever the peer did before."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(
    app: ASGIApp, limits: EdgeLimits, log: io.StringIO | None = None, **options: Any
) -> AsyncIterator[RunningServer]:
    """Serve an app through the edge, which logs to `log`."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    log = io.StringIO() if log is None else log
    server = uvicorn.Server(edge_server.config(app, limits=limits, telemetry=Telemetry(log, Clock()), **options))
    task = asyncio.create_task(server._serve([listener]))  # noqa: SLF001 - serve() would take the test runner's signals
    try:
        yield RunningServer(listener.getsockname()[1], "", log, server)
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, GUARD_S)


@contextlib.asynccontextmanager
async def gateway(directory: Path, limits: EdgeLimits, way: str = "lane") -> AsyncIterator[RunningServer]:
    """Serve the real app, or the lane in front of it, with a key that has no linked account."""
    settings = Settings.model_validate(
        {
            "database_url": f"sqlite:///{directory / 'birdwire.db'}",
            "vault_key": SecretStr(base64.b64encode(bytes(32)).decode()),
            "x_api_url": "http://127.0.0.1:1",
        }
    )
    log = io.StringIO()
    built = create_app(settings, log=log, upgrade=True)
    options: dict[str, Any] = {"protocol": built.protocol()} if way == "lane" else {}
    async with serving(built.app, limits, log, **options) as served:
        await served.talk(PROBE)  # the database is ready once the first request is answered
        _, served.key = await built.keys.create("test", "test", "growth", 1_000_000)
        yield served
