"""uvicorn for the sandbox: the app can cut its own connection, and responses have no headers that X would not send."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from birdwire.sandbox.control.traffic import WIRE

if TYPE_CHECKING:
    import asyncio

    from starlette.types import ASGIApp


class Wire:
    """A connection that the app can close."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def abort(self) -> None:
        """Close it immediately and lose unsent data."""
        self._transport.abort()

    def close(self) -> None:
        """Close it after all written data is sent."""
        self._transport.close()


class SandboxProtocol(HttpToolsProtocol):
    """uvicorn's protocol with the connection as an ASGI extension of each request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Disable Nagle's algorithm, which asyncio leaves on for sockets that do not state their protocol."""
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def on_message_begin(self) -> None:
        """Start a request."""
        super().on_message_begin()
        extensions: dict[str, Any] = {WIRE: Wire(self.transport)}
        self.scope["extensions"] = extensions


def config(app: ASGIApp, **overrides: Any) -> uvicorn.Config:
    """Return the configuration to run the sandbox with; `overrides` are uvicorn's options."""
    options: dict[str, Any] = {
        "http": SandboxProtocol,
        "ws": "none",
        "log_level": "warning",
        "access_log": False,
        "date_header": False,
        "server_header": False,
        # The control API trusts the connection's address, so no header may replace it.
        "proxy_headers": False,
        "lifespan": "on",
        "timeout_keep_alive": 75,
        # An answer that a fault delays must not block the shutdown.
        "timeout_graceful_shutdown": 3,
        "loop": "auto",
    }
    return uvicorn.Config(app, **(options | overrides))
