"""The fast path: a POST to a known path goes from the edge directly to its handler, without the web framework.

It behaves exactly as the ASGI app does, which can serve the same paths with the same handlers. It saves the CPU that
the framework and ASGI cost, about as much as the rest of a like. It makes no decision of its own.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from birdwire.api.messages import Call
from birdwire.edge.asgi import Exchange, headers_out
from birdwire.edge.protocol import EdgeProtocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Mapping

    from starlette.types import ASGIApp

    from birdwire.edge.asgi import Handler
    from birdwire.runtime.telemetry import Telemetry


class DirectCycle(RequestResponseCycle):
    """A request that bypasses the framework: uvicorn's cycle, whose `receive` yields the body, without a scope.

    It does not call uvicorn's constructor, which needs a scope: `receive` and the connection use only what is here.
    """

    disconnected = response_started = response_complete = False
    more_body = True

    def __init__(self, call: Call, handle: Handler, connection: EdgeProtocol) -> None:
        self.call = call
        self.handle = handle
        self.transport = connection.transport
        self.flow = connection.flow
        self.keep_alive = connection.parser.should_keep_alive()
        self.waiting_for_100_continue = connection.expect_100_continue
        self.body = bytearray()
        self.message_event = asyncio.Event()


class FastPathProtocol(EdgeProtocol):
    """One connection whose POSTs to the paths of `handlers` bypass the framework."""

    def __init__(self, handlers: Mapping[str, Handler], telemetry: Telemetry, *edge: Any, **uvicorns: Any) -> None:
        super().__init__(*edge, **uvicorns)
        self._handlers = handlers
        self._telemetry = telemetry

    def _dispatch(self, cycle: RequestResponseCycle, app: ASGIApp) -> Coroutine[Any, Any, None]:
        return self._answer_directly(cycle) if isinstance(cycle, DirectCycle) else super()._dispatch(cycle, app)

    def _begin(self, method: bytes, path: str, query: str, client: tuple[str, int] | None) -> None:
        handle = self._handlers.get(path) if method == b"POST" else None
        if handle is None:
            super()._begin(method, path, query, client)
            return
        # What uvicorn keeps of an earlier request may be another caller's.
        self.headers, self.scope = [], {}  # type: ignore[typeddict-item]
        call = Call("POST", path, query, self._fields, peer=client[0] if client else "")
        self.cycle = cycle = DirectCycle(call, handle, self)
        if self._running is None:
            self._start_asgi_task(cycle, self.app)
        else:
            self.pipeline.appendleft((cycle, self.app))

    async def _answer_directly(self, cycle: DirectCycle) -> None:
        # The call refers to its cycle. If the cycle kept the call, both would live until a garbage collection.
        call = cycle.call
        del cycle.call
        call.stream = partial(_body, cycle)
        if not (cycle.more_body or cycle.waiting_for_100_continue):
            call.whole = bytes(cycle.body)
        with Exchange(call, self._telemetry) as exchange:
            exchange.answer = await cycle.handle(call)
        answer = exchange.answer
        if self.flow.write_paused and not cycle.disconnected:
            await self.flow.drain()
        if answer is None or cycle.disconnected:
            return
        headers = headers_out(call, answer)
        if ("connection", "close") in headers:
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            headers.append(("connection", "close"))
        self._socket_transport.write(self._head(answer.status, headers) + answer.body)
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self._close()
        self.on_response_complete()


async def _body(cycle: RequestResponseCycle) -> AsyncIterator[bytes]:
    """Yield a request's body as it arrives. The edge counts its bytes and enforces its deadline."""
    more = True
    while more:
        message = await cycle.receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        more = message["more_body"]
        if message["body"]:
            yield message["body"]
