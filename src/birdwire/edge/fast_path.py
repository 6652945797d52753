"""The fast path: a POST to a known path goes from the edge directly to its handler, without the web framework.

It behaves exactly as the ASGI app does, which can serve the same paths with the same handlers. It saves the CPU that
the framework and ASGI cost, about as much as the rest of a like. It makes no decision of its own.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect

from birdwire.api.messages import Call
from birdwire.edge.asgi import Exchange, headers_in, headers_out
from birdwire.edge.protocol import EdgeProtocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Mapping

    from starlette.types import ASGIApp
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from birdwire.edge.asgi import Handler
    from birdwire.runtime.telemetry import Telemetry


class FastPathProtocol(EdgeProtocol):
    """One connection whose POSTs to the paths of `handlers` bypass the framework."""

    def __init__(self, handlers: Mapping[str, Handler], telemetry: Telemetry, *edge: Any, **uvicorns: Any) -> None:
        super().__init__(*edge, **uvicorns)
        self._handlers = handlers
        self._telemetry = telemetry

    def _dispatch(self, cycle: RequestResponseCycle, app: ASGIApp) -> Coroutine[Any, Any, None]:
        handle = self._handlers.get(cycle.scope["path"]) if cycle.scope["method"] == "POST" else None
        return super()._dispatch(cycle, app) if handle is None else self._answer_directly(cycle, handle)

    async def _answer_directly(self, cycle: RequestResponseCycle, handle: Handler) -> None:
        scope = cycle.scope
        call = Call(
            "POST",
            scope["path"],
            scope["query_string"].decode("ascii", "replace"),
            headers_in(scope["headers"]),
            partial(_body, cycle),
            scope["client"][0] if scope["client"] else "",
            None if cycle.more_body or cycle.waiting_for_100_continue else bytes(cycle.body),
        )
        with Exchange(call, self._telemetry) as exchange:
            exchange.answer = await handle(call)
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
