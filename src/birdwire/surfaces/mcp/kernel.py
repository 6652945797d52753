"""The kernel: one JSON-RPC message in, one answer out, by the official SDK's kernel. Nothing else imports the SDK.

Its transport is left out: it parses each body again, keeps sessions, and takes three times as long. The revisions with
a handshake (2024-11-05 to 2025-11-25) and 2026-07-28, which has none, are all served without state.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
from mcp.server.caching import CacheHint
from mcp.server.connection import Connection
from mcp.server.lowlevel import Server
from mcp.server.runner import serve_one
from mcp.shared.exceptions import MCPError, NoBackChannelError
from mcp.shared.inbound import (
    ERROR_CODE_HTTP_STATUS,
    InboundLadderRejection,
    classify_inbound_request,
    find_duplicated_routing_header,
)
from mcp.shared.transport_context import TransportContext
from mcp_types import (
    PROTOCOL_VERSION_META_KEY,
    CallToolRequestParams,
    PaginatedRequestParams,
)
from mcp_types.jsonrpc import HEADER_MISMATCH, INVALID_PARAMS
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic import ValidationError

from birdwire import __version__
from birdwire.api.errors import excerpt
from birdwire.api.messages import Answer, encode
from birdwire.keys.context import Pending
from birdwire.surfaces.mcp import jsonrpc
from birdwire.surfaces.mcp.tool_calls import ToolCalls
from birdwire.surfaces.mcp.tools import INSTRUCTIONS, TOOLS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mcp.server.context import ServerRequestContext
    from mcp.shared.dispatcher import CallOptions

    from birdwire.keys.context import CallContext
    from birdwire.surfaces.mcp.jsonrpc import Id, Message

_VERSION: Final = "mcp-protocol-version"
_DEFAULT_VERSION: Final = "2025-03-26"
"""The revision of a request without the header, as the revisions with a handshake state."""

_TRANSPORT: Final = TransportContext(kind="streamable-http", can_send_request=False)
_LISTED_FOR_MS: Final = 60_000
_ANSWERS: Final = ("inputResponses", "requestState")
"""Parameters that answer what a server asked its client. Birdwire asks for nothing, and to check long ones takes the
SDK more than a second, in which no other call is served.
"""
MAX_ENVELOPE: Final = 8_192
"""The maximum length of the parameters besides a tool's arguments, in bytes. The SDK checks them on the event loop, at
some microseconds a byte; arguments are checked by Birdwire alone.
"""
_COMPLETE: Final = "complete"
"""The type of every result, which 2026-07-28 requires and the SDK leaves out for the others."""

# What the SDK logs may quote callers. Its bugs reach the client as an internal error, and tests look for that.
logging.getLogger("mcp").addHandler(logging.NullHandler())
logging.getLogger("mcp").propagate = False


class Kernel:
    """Answers JSON-RPC messages."""

    def __init__(self, tools: ToolCalls) -> None:
        self._tools = tools
        self._server: Server[Any] = Server(
            "birdwire",
            version=__version__,
            title="Birdwire",
            instructions=INSTRUCTIONS,
            cache_hints={"tools/list": CacheHint(ttl_ms=_LISTED_FOR_MS, scope="private")},
        )
        self._server.add_request_handler("tools/list", PaginatedRequestParams, self._list)
        self._server.add_request_handler("tools/call", CallToolRequestParams, self._call)
        # Spans would carry what callers sent.
        self._server.middleware.clear()

    async def answer(self, context: CallContext) -> Answer:
        """Answer the message in an admitted call's body.

        A notification is accepted and ignored: nothing is left of an earlier request that it could be about.
        """
        body, headers = context.parsed.fields, context.call.headers
        request_id = jsonrpc.id_in(body)
        message = jsonrpc.message_in(body)
        if message is None:
            detail = "The body is not a JSON-RPC 2.0 request or notification."
            return jsonrpc.failed(request_id, jsonrpc.INVALID_REQUEST, detail)
        twice = find_duplicated_routing_header((name, value) for name, values in headers.items() for value in values)
        if twice is not None:
            return _failed(request_id, HEADER_MISMATCH, f"The header {twice} appears more than once.")
        message = _without_answers(message)
        if _envelope_length(message) > MAX_ENVELOPE:
            detail = f"The parameters besides a tool's arguments are longer than {MAX_ENVELOPE:,} bytes."
            return _failed(request_id, INVALID_PARAMS, detail)
        version = context.call.header(_VERSION) or _DEFAULT_VERSION
        client_info = capabilities = None
        if version not in HANDSHAKE_PROTOCOL_VERSIONS or _has_envelope(message):
            first = {name: values[0] for name, values in headers.items()}
            route = classify_inbound_request(body, headers=first)
            if isinstance(route, InboundLadderRejection):
                return _failed(request_id, route.code, route.message, route.data)
            version, client_info, capabilities = route.protocol_version, route.client_info, route.client_capabilities
        if message.id is None:
            return Answer(202)
        return await self._result(context, message, Connection.from_envelope(version, client_info, capabilities))

    async def _result(self, context: CallContext, message: Message, connection: Connection) -> Answer:
        """Answer a request. An error is HTTP 200 in the revisions with a handshake, whose clients expect that."""
        try:
            result = await serve_one(
                self._server,
                _Exchange(message.id),
                message.method,
                message.params,
                connection=connection,
                lifespan_state=context,
            )
        except MCPError as error:
            answer = _failed(message.id, error.code, error.message, error.data)
        except ValidationError:
            answer = _failed(message.id, INVALID_PARAMS, "The parameters are malformed.")
        else:
            return jsonrpc.succeeded(message.id, result)
        if connection.protocol_version in HANDSHAKE_PROTOCOL_VERSIONS:
            answer.status = 200
        return answer

    async def _list(self, context: ServerRequestContext[CallContext], params: PaginatedRequestParams) -> dict[str, Any]:
        """Return the tools that the caller's key can use. They fit on one page."""
        if params.cursor is not None:
            raise MCPError(code=INVALID_PARAMS, message="The list of tools has a single page.")
        return {"resultType": _COMPLETE, "tools": await self._tools.listed(context.lifespan_context)}

    async def _call(self, context: ServerRequestContext[CallContext], params: CallToolRequestParams) -> dict[str, Any]:
        """Call a tool. The answer of one that waits for a person is held afterwards, without a slot."""
        if params.name not in TOOLS:
            raise MCPError(code=INVALID_PARAMS, message=f"Unknown tool: {excerpt(params.name)}")
        outer = context.lifespan_context
        try:
            called = await self._tools.call(outer, TOOLS[params.name], params.arguments or {})
        except ValidationError as error:
            # A bug of Birdwire, which must not pass for malformed parameters.
            raise RuntimeError("a tool call failed").with_traceback(error.__traceback__) from None
        if called.waits_for is not None and outer.pending is None:
            outer.pending = Pending(called.waits_for, partial(self.answer, outer), called.wait_s)
        return {"resultType": _COMPLETE, **called.result}


@dataclass
class _Exchange:
    """One request, as the SDK sees it. Nothing but its answer can be sent to the client."""

    request_id: Id | None
    transport: TransportContext = _TRANSPORT
    message_metadata: None = None
    can_send_request: bool = False
    cancel_requested: anyio.Event = field(default_factory=anyio.Event)

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        """Refuse to send a request to the client."""
        del params, opts
        raise NoBackChannelError(method)

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None) -> None:
        """Drop a notification."""

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Drop a report of progress."""


def _without_answers(message: Message) -> Message:
    """Return a message without the parameters that answer a server."""
    params = message.params and {name: value for name, value in message.params.items() if name not in _ANSWERS}
    return message._replace(params=params)


def _envelope_length(message: Message) -> int:
    """Return the length of a message's parameters besides a tool's arguments, in bytes."""
    return len(encode({name: value for name, value in (message.params or {}).items() if name != "arguments"}))


def _has_envelope(message: Message) -> bool:
    """Return whether a request has the envelope of 2026-07-28, a revision that has no `initialize`."""
    meta = (message.params or {}).get("_meta")
    return isinstance(meta, dict) and PROTOCOL_VERSION_META_KEY in meta and message.method != "initialize"


def _failed(request_id: Id | None, code: int, message: str, data: object = None) -> Answer:
    """Return a JSON-RPC error, with the status that 2026-07-28 gives its code."""
    return jsonrpc.failed(request_id, code, message, data, ERROR_CODE_HTTP_STATUS.get(code, 200))


__all__ = ["Kernel", "ToolCalls"]
