"""A TCP proxy that misbehaves on demand: slow, cut, silent, gone. Knows nothing of what passes through it.

It stands before X, a database or a cache in a fault test, and is told over a loopback HTTP port of its own:
GET /proxy (what is in force), POST /proxy (set any of it), DELETE /proxy (behave again).
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
HELD_S = 600  # how long an end is hidden
Seconds = Annotated[int | float, Field(ge=0, le=3600)]


class Slicer(BaseModel):
    """Pieces of so many bytes, with a pause before each."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    bytes: Annotated[int, Field(ge=1)] = 1
    delay_s: Seconds = 0


class Toxics(BaseModel):
    """What is wrong with the line. Null: nothing of that kind.

    `direction` says which way the data suffers: up (to the target), down (to the client), or both. `down` refuses
    connections and ends those there are. `timeout_s` swallows data and then ends the connection (0: never).
    `reset_peer_s` resets that long after the first byte. `limit_data` ends after so many bytes. `half_open` swallows
    data and hides the end. `drop` ends a connection at the request's first byte, or at the answer's first.
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
        """A copy with these changed; ValueError names what is wrong."""
        try:
            return Toxics.model_validate({**self.model_dump(), **changes})
        except ValidationError as error:
            found = error.errors(include_url=False)
            raise ValueError(
                "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found[:5])
            ) from None


class _Cut(Exception):  # noqa: N818 - an order carried out, no error
    """This connection ends now."""


class TcpProxy:
    """The line: accepts on a socket, connects to `to`, and carries bytes both ways."""

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
        """Where it listens."""
        port: int = self._address[1]
        return port

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._lines)

    async def set(self, toxics: Toxics) -> None:
        """Have these in force from now on, also on the connections that there are."""
        self.toxics = toxics
        if toxics.down:
            await self.close()
        else:
            await self.open()

    async def open(self) -> None:
        """Begin to accept."""
        if self._server is None:
            listener = self._listener or socket.create_server(self._address[:2], family=self._family)
            self._listener = None  # the server's from now on; a refusal needs the port closed, not merely unheard
            self._server = await asyncio.start_server(self._accept, sock=listener, limit=CHUNK)

    async def close(self) -> None:
        """End everything."""
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
            reset(writer)  # told to end, and this is its end: Python 3.11's streams would log the cancellation
        finally:
            self._lines.discard(line)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                far_reader, far_writer = await asyncio.open_connection(*self._to, limit=CHUNK)
        except OSError:  # TimeoutError is one
            reset(writer)
            return
        for end in (writer, far_writer):
            end.transport.set_write_buffer_limits(0)  # drained means sent: then a cut loses nothing that was carried
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
        """Carry one way until its end, suffering whatever is in force at each moment."""
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
        """The waits and ends that come before any byte goes on."""
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
    """End a connection with a reset, not an end of stream."""
    ours = writer.get_extra_info("socket")
    with suppress(OSError), socket.socket(fileno=os.dup(ours.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def create_proxy(listener: socket.socket, to: tuple[str, int]) -> Starlette:
    """The control surface as an ASGI app, whose lifespan opens and closes the line; `app.state.proxy` is the Proxy.

    `listener` is a bound, listening socket (the app closes it at its end); `to` is the target's host and port.
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
