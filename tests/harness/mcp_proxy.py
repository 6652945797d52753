"""A loopback proxy that adds an API key to requests, for programs that have no option for a header."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MAX_HEAD = 65_536
_END = b"\r\n\r\n"


@contextlib.asynccontextmanager
async def adding_key(gateway: str, key: str) -> AsyncIterator[str]:
    """Relay requests to the gateway with the key added, and yield the proxy's base URL.

    Each connection carries one request, so that nothing after its head has to be understood. Every other header is
    relayed as it was sent, Host and Origin included.
    """
    to = urlsplit(gateway)
    relays: set[asyncio.Task[None]] = set()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        relays.add(task)
        try:
            head = await reader.readuntil(_END)
            own_reader, own_writer = await asyncio.open_connection(to.hostname, to.port)
            try:
                own_writer.write(_with_key(head, key))
                upward = asyncio.create_task(_copy(reader, own_writer))
                await _copy(own_reader, writer)
                upward.cancel()
                await asyncio.gather(upward, return_exceptions=True)
            finally:
                own_writer.close()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            # A client that connects without a request, or leaves early, ends its own relay only.
            pass
        finally:
            writer.close()
            relays.discard(task)

    server = await asyncio.start_server(relay, "127.0.0.1", 0, limit=MAX_HEAD)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for task in relays:
        task.cancel()
    await asyncio.gather(*relays, return_exceptions=True)


def _with_key(head: bytes, key: str) -> bytes:
    """Return the head of a request with the key, and without keep-alive."""
    first, *lines = head.removesuffix(_END).split(b"\r\n")
    kept = [line for line in lines if line.partition(b":")[0].lower() not in {b"connection", b"keep-alive"}]
    added = [b"Authorization: Bearer " + key.encode(), b"Connection: close"]
    return b"\r\n".join([first, *kept, *added]) + _END


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while block := await reader.read(MAX_HEAD):
        writer.write(block)
        await writer.drain()
