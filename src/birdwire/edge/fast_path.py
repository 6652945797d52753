"""The lane: a POST to a known path goes from the edge straight to its handler, and the answer straight to the wire.

One behaviour with the app, which can answer the same paths and has the same handlers: the lane saves the framework's
and ASGI's share of a call, as much CPU again as all the rest of a like. It decides nothing itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect

from birdwire.api.messages import Answer, Call
from birdwire.edge.asgi import headers_in, headers_out
from birdwire.edge.protocol import EdgeProtocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.types import ASGIApp
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

Handle = Callable[[Call], Awaitable[Answer | None]]
"""Answers a call; None if there is nobody left to answer."""


class FastPathProtocol(EdgeProtocol):
    """One connection whose POSTs to the paths of `lane` need no framework."""

    def __init__(self, lane: Mapping[bytes, Handle], *edge: Any, **uvicorns: Any) -> None:
        super().__init__(*edge, **uvicorns)
        self._lane = lane

    def _way(self, cycle: RequestResponseCycle, app: ASGIApp) -> Awaitable[None]:
        handle = self._lane.get(cycle.scope["raw_path"]) if cycle.scope["method"] == "POST" else None
        return super()._way(cycle, app) if handle is None else self._straight(cycle, handle)

    async def _straight(self, cycle: RequestResponseCycle, handle: Handle) -> None:
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
        answer = await handle(call)
        if self.flow.write_paused and not cycle.disconnected:
            await self.flow.drain()
        if answer is None or cycle.disconnected:
            return
        headers = headers_out(call, answer)
        if ("connection", "close") in headers:
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            headers.append(("connection", "close"))
        self._wire.write(self._head(answer.status, headers) + answer.body)
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self._finish()
        self.on_response_complete()


async def _body(cycle: RequestResponseCycle) -> AsyncIterator[bytes]:
    """A request's body as it comes. The edge counts it, and keeps its deadline."""
    more = True
    while more:
        message = await cycle.receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        more = message["more_body"]
        if message["body"]:
            yield message["body"]
