"""The proxy that misbehaves on demand, between a client and an echoing server."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from birdwire.sandbox.control.tcp_proxy import create_proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Echo:
    """A server that sends back what it gets, after `hello`, and knows what it got."""

    def __init__(self) -> None:
        self.got = b""
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while data := await reader.read(1024):
                self.got += data
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self.ended.set()
            writer.close()


class Line:
    """The proxy, its control, and the echo behind it."""

    def __init__(self, port: int, echo: Echo, control: httpx2.AsyncClient) -> None:
        self.port, self.echo, self._control = port, echo, control

    async def suffer(self, **toxics: Any) -> Any:
        """Order something; it must be accepted."""
        answer = await self._control.post("/proxy", json=toxics)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def heal(self) -> None:
        """Order nothing."""
        assert (await self._control.delete("/proxy")).status_code == 200

    async def state(self) -> Any:
        """What is in force."""
        return (await self._control.get("/proxy")).json()

    async def refusal(self, **toxics: Any) -> str:
        """The sentence of a refused order."""
        answer = await self._control.post("/proxy", json=toxics)
        assert answer.status_code == 400
        sentence: str = answer.json()["error"]
        return sentence

    @asynccontextmanager
    async def client(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection through the proxy."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.close()

    async def ask(self, data: bytes) -> bytes:
        """Send, end, and read all that comes back."""
        async with self.client() as (reader, writer):
            writer.write(data)
            writer.write_eof()
            return await reader.read()


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    """A connection without faults until a test sets some."""
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    app = create_proxy(socket.create_server(("127.0.0.1", 0)), server.sockets[0].getsockname()[:2])
    control = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1")
    async with server, app.router.lifespan_context(app), control:
        yield Line(app.state.proxy.port, echo, control)


async def test_a_healthy_line_carries_everything(line: Line) -> None:
    """Both ways, to the last byte, and counts it."""
    data = bytes(range(256)) * 4000
    assert await line.ask(data) == data
    assert (await line.state())["bytes"] == {"up": len(data), "down": len(data)}


async def test_a_line_that_is_down_refuses_and_comes_back(line: Line) -> None:
    """Connections there are end; new ones are refused; healed, the same port answers."""
    async with line.client() as (reader, writer):
        writer.write(b"a")
        assert await reader.read(1) == b"a"
        await line.suffer(down=True)
        with pytest.raises(ConnectionResetError):
            await reader.read()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", line.port)
    await line.heal()
    assert await line.ask(b"again") == b"again"


@pytest.mark.parametrize(
    "toxics",
    [
        {"latency_s": 0.01},
        {"bandwidth_bps": 100_000},
        {"slicer": {"bytes": 7, "delay_s": 0}},
        {"slow_close_s": 0.01},
        {"direction": "both", "latency_s": 0.01, "slicer": {"bytes": 400}, "bandwidth_bps": 1_000_000},
    ],
)
async def test_a_slow_line_loses_nothing(line: Line, toxics: dict[str, Any]) -> None:
    """Latency, bandwidth, slices, a late end."""
    await line.suffer(**toxics)
    data = b"0123456789" * 100
    assert await line.ask(data) == data


async def test_slices_arrive_one_by_one(line: Line) -> None:
    """A reader sees the pieces."""
    await line.suffer(slicer={"bytes": 2, "delay_s": 0.01})
    async with line.client() as (reader, writer):
        writer.write(b"abcd")
        assert await reader.read(100) == b"ab"


@pytest.mark.parametrize(("when", "applied"), [("before_apply", b""), ("after_apply", b"like")])
async def test_a_drop_comes_before_or_after_the_target_heard(line: Line, when: str, applied: bytes) -> None:
    """The client hears nothing either way."""
    await line.suffer(drop=when)
    async with line.client() as (reader, writer):
        writer.write(b"like")
        assert await reader.read() == b""
    await line.echo.ended.wait()
    assert line.echo.got == applied


async def test_an_answer_is_cut_after_so_many_bytes(line: Line) -> None:
    """All up to there arrives."""
    await line.suffer(limit_data=5)
    assert await line.ask(b"0123456789") == b"01234"


async def test_a_request_is_cut_after_so_many_bytes(line: Line) -> None:
    """The other direction."""
    await line.suffer(direction="up", limit_data=3)
    async with line.client() as (_, writer):
        writer.write(b"0123456789")
        await line.echo.ended.wait()
    assert line.echo.got == b"012"


async def test_a_reset_is_a_reset(line: Line) -> None:
    """Not an end of stream."""
    await line.suffer(reset_peer_s=0)
    async with line.client() as (reader, writer):
        writer.write(b"a")
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def test_a_timeout_swallows_and_then_ends(line: Line) -> None:
    """Nothing of the answer arrives."""
    await line.suffer(timeout_s=0.01)
    async with line.client() as (reader, writer):
        writer.write(b"a")
        assert await reader.read() == b""
    assert line.echo.got == b"a"


async def test_a_half_open_line_hides_the_end(line: Line) -> None:
    """The client gets neither data nor an end; the connection still ends with its proxy."""
    await line.suffer(direction="both", half_open=True)
    async with line.client() as (reader, writer):
        writer.write(b"a")
        writer.write_eof()
        while (await line.state())["swallowed"] == 0:  # noqa: ASYNC110 - the proxy tells of it over HTTP alone
            await asyncio.sleep(0)
        assert (await line.state())["connections"] == 1
        await line.suffer(down=True)
        with pytest.raises(ConnectionResetError):
            await reader.read()
    assert line.echo.got == b""


async def test_a_target_that_is_not_there_is_a_reset() -> None:
    """As if the target had done it."""
    gone = socket.create_server(("127.0.0.1", 0))
    address = gone.getsockname()
    gone.close()
    app = create_proxy(socket.create_server(("127.0.0.1", 0)), address)
    async with app.router.lifespan_context(app):
        reader, writer = await asyncio.open_connection("127.0.0.1", app.state.proxy.port)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_orders_are_checked_by_name(line: Line) -> None:
    """Unknown ones, wrong values; nothing changes."""
    before = await line.state()
    assert "colour" in await line.refusal(colour="red")
    assert "latency_s" in await line.refusal(latency_s=-1)
    assert "slicer.bytes" in await line.refusal(slicer={"bytes": 0})
    assert await line.state() == before
