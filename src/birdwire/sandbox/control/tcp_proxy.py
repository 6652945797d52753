"""A TCP proxy that injects network faults on demand, independent of the protocol that it forwards.

In fault tests it runs in front of X, a database or Redis. It is controlled over its own loopback HTTP port:
GET /proxy (show the active faults), POST /proxy (set faults), DELETE /proxy (remove all faults).
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.routing import Route

from birdwire.sandbox.control.endpoints import ControlError, guarded, read_object

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

CHUNK = 64 * 1024
TICK_S = 0.05
CONNECT_S = 10
CONNECTIONS = 1000
# How long `half_open` hides the end of a connection.
HELD_S = 600
Seconds = Annotated[int | float, Field(ge=0, le=3600)]


class Slicer(BaseModel):
    """Splits data into pieces of `bytes` bytes, with a pause before each."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    bytes: Annotated[int, Field(ge=1)] = 1
    delay_s: Seconds = 0


class Toxics(BaseModel):
    """The active faults. Null disables a fault.

    `direction` selects the affected data: up (to the target), down (to the client), or both. `down` refuses
    connections and closes the existing ones. `timeout_s` discards data and closes the connection after that time (0:
    never). `reset_peer_s` resets the connection that long after the first byte. `limit_data` closes it after that many
    bytes. `half_open` discards data and hides the end of the connection. `drop` closes the connection at the first
    byte of the request (`before_apply`) or of the answer (`after_apply`).
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    direction: Literal["up", "down", "both"] = "down"
    down: bool = False
    latency_s: Seconds | None = None
    bandwidth_bps: Annotated[int | None, Field(ge=1)] = None
    slicer: Slicer | None = None
    slow_close_s: Seconds | None = None
    timeout_s: Seconds | None = None
    reset_peer_s: Seconds | None = None
    limit_data: Annotated[int | None, Field(ge=0)] = None
    half_open: bool = False
    drop: Literal["before_apply", "after_apply"] | None = None

    def changed(self, changes: dict[str, Any]) -> Toxics:
        """Return a copy with these changes; raise ValueError with the problems if they are invalid."""
        try:
            return Toxics.model_validate({**self.model_dump(), **changes})
        except ValidationError as error:
            found = error.errors(include_url=False)
            raise ValueError(
                "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found[:5])
            ) from None


class _Cut(Exception):  # noqa: N818 - a requested fault, not an error
    """Closes this connection."""


class TcpProxy:
    """Accepts connections on a socket, connects to `to`, and forwards bytes in both directions."""

    def __init__(self, listener: socket.socket, to: tuple[str, int]) -> None:
        self._listener: socket.socket | None = listener
        self._family, self._address, self._to = listener.family, listener.getsockname(), to
        self._server: asyncio.Server | None = None
        self._lines: set[asyncio.Task[None]] = set()
        self.toxics = Toxics()
        self.carried = {"up": 0, "down": 0}
        self.swallowed = 0

    @property
    def port(self) -> int:
        """Return the port that it listens on."""
        port: int = self._address[1]
        return port

    @property
    def connections(self) -> int:
        """Return the number of open connections."""
        return len(self._lines)

    async def set(self, toxics: Toxics) -> None:
        """Activate these faults, also for existing connections."""
        self.toxics = toxics
        if toxics.down:
            await self.close()
        else:
            await self.open()

    async def open(self) -> None:
        """Start accepting connections."""
        if self._server is None:
            listener = self._listener or socket.create_server(self._address[:2], family=self._family)
            # The server owns the socket now. To refuse connections, the port must be closed, not only ignored.
            self._listener = None
            self._server = await asyncio.start_server(self._accept, sock=listener, limit=CHUNK)

    async def close(self) -> None:
        """Stop accepting, and close every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for line in list(self._lines):
            line.cancel()
        await asyncio.gather(*self._lines, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = asyncio.current_task()
        if line is None or len(self._lines) >= CONNECTIONS or self.toxics.down:
            reset(writer)
            return
        self._lines.add(line)
        try:
            await self._carry(reader, writer)
        except asyncio.CancelledError:
            # The cancellation ends here, because Python 3.11's streams would log it.
            reset(writer)
        finally:
            self._lines.discard(line)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                far_reader, far_writer = await asyncio.open_connection(*self._to, limit=CHUNK)
        # TimeoutError is an OSError.
        except OSError:
            reset(writer)
            return
        for end in (writer, far_writer):
            # Without a write buffer, drained data has been sent, so a cut loses no data that counts as forwarded.
            end.transport.set_write_buffer_limits(0)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump("up", reader, far_writer))
                both.create_task(self._pump("down", far_reader, writer))
        except* (_Cut, OSError):
            pass
        finally:
            for end in (writer, far_writer):
                if self.toxics.reset_peer_s is not None or self.toxics.down:
                    reset(end)
                else:
                    end.transport.abort()

    async def _pump(
        self, way: Literal["up", "down"], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Forward one direction until its end, and apply the faults that are active at each moment."""
        sent = 0
        while data := await reader.read(CHUNK):
            toxics = self.toxics
            if toxics.drop == ("before_apply" if way == "up" else "after_apply"):
                raise _Cut
            if toxics.direction not in {way, "both"}:
                toxics = Toxics()
            await self._suffer(toxics)
            if toxics.half_open or toxics.timeout_s is not None:
                self.swallowed += len(data)
                continue
            if toxics.limit_data is not None:
                data = data[: max(0, toxics.limit_data - sent)]
            await self._send(toxics, writer, data)
            sent += len(data)
            self.carried[way] += len(data)
            if toxics.limit_data is not None and sent >= toxics.limit_data:
                raise _Cut
        if self.toxics.half_open:
            await asyncio.sleep(HELD_S)
        await asyncio.sleep(self.toxics.slow_close_s or 0)
        with suppress(OSError):
            writer.write_eof()

    @staticmethod
    async def _suffer(toxics: Toxics) -> None:
        """Apply the delays and cuts that precede forwarding."""
        if toxics.latency_s is not None:
            await asyncio.sleep(toxics.latency_s)
        for wait_s in (toxics.reset_peer_s, toxics.timeout_s or None):
            if wait_s is not None:
                await asyncio.sleep(wait_s)
                raise _Cut

    @staticmethod
    async def _send(toxics: Toxics, writer: asyncio.StreamWriter, data: bytes) -> None:
        step = len(data) or 1
        if toxics.bandwidth_bps is not None:
            step = max(1, int(toxics.bandwidth_bps * TICK_S))
        if toxics.slicer is not None:
            step = min(step, toxics.slicer.bytes)
        for at in range(0, len(data), step):
            piece = data[at : at + step]
            if toxics.slicer is not None:
                await asyncio.sleep(toxics.slicer.delay_s)
            if toxics.bandwidth_bps is not None:
                await asyncio.sleep(len(piece) / toxics.bandwidth_bps)
            writer.write(piece)
            await writer.drain()


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with a reset instead of an end of stream."""
    ours = writer.get_extra_info("socket")
    with suppress(OSError), socket.socket(fileno=os.dup(ours.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def create_proxy(listener: socket.socket, to: tuple[str, int]) -> Starlette:
    """Return the control API as an ASGI app, whose lifespan opens and closes the proxy (`app.state.proxy`).

    `listener` is a bound, listening socket, which the app closes at its end. `to` is the target's host and port.
    """
    proxy = TcpProxy(listener, to)

    def told() -> dict[str, Any]:
        line = {"to": f"{to[0]}:{to[1]}", "port": proxy.port, "connections": proxy.connections}
        return {**line, "bytes": proxy.carried, "swallowed": proxy.swallowed, "toxics": proxy.toxics.model_dump()}

    async def show(_request: Request) -> Any:
        return told()

    async def change(request: Request) -> Any:
        try:
            toxics = proxy.toxics.changed(await read_object(request))
        except ValueError as error:
            raise ControlError(str(error)) from None
        await proxy.set(toxics)
        return told()

    async def clear(_request: Request) -> Any:
        await proxy.set(Toxics())
        return told()

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        await proxy.open()
        try:
            yield
        finally:
            await proxy.close()

    rows = (("GET", show), ("POST", change), ("DELETE", clear))
    app = Starlette(
        routes=[Route("/proxy", guarded(handle), methods=[method]) for method, handle in rows],
        lifespan=lifespan,
    )
    app.state.proxy = proxy
    return app
