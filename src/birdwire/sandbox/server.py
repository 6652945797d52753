"""uvicorn for the sandbox: a protocol that lets the app cut its own connection, and no header that X would not send."""

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
    """One connection, as the app may end it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def abort(self) -> None:
        """End it at once; what was not sent yet is lost."""
        self._transport.abort()

    def close(self) -> None:
        """End it after what was written is sent."""
        self._transport.close()


class SandboxProtocol(HttpToolsProtocol):
    """uvicorn's protocol, whose requests carry their connection as an ASGI extension."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Answer at once: asyncio leaves Nagle's algorithm on for sockets that do not name their protocol."""
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        extensions: dict[str, Any] = {WIRE: Wire(self.transport)}
        self.scope["extensions"] = extensions


def config(app: ASGIApp, **overrides: Any) -> uvicorn.Config:
    """The configuration to run the sandbox with; `overrides` are uvicorn's own options."""
    options: dict[str, Any] = {
        "http": SandboxProtocol,
        "ws": "none",
        "log_level": "warning",
        "access_log": False,
        "date_header": False,
        "server_header": False,
        "proxy_headers": False,  # who calls is who is connected: the control surface trusts it
        "lifespan": "on",
        "timeout_keep_alive": 75,
        "timeout_graceful_shutdown": 3,  # an answer that a fault delays must not outlive the server
        "loop": "auto",
    }
    return uvicorn.Config(app, **(options | overrides))
