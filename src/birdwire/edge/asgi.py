"""The ASGI app: a Starlette request becomes a Call, an Answer becomes a response. Includes the router's own errors."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute

from birdwire.api.body import within
from birdwire.api.errors import GatewayError, excerpt, refuse
from birdwire.api.messages import Answer, Call
from birdwire.edge.request_head import is_multipart

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractAsyncContextManager
    from typing import Self

    from starlette.types import Receive, Scope, Send

    from birdwire.runtime.telemetry import Telemetry

Handler = Callable[[Call], Awaitable[Answer]]
Refuser = Callable[[GatewayError, Call], Answer]

ALWAYS = (("x-content-type-options", "nosniff"), ("cache-control", "no-store"))
"""Headers of every response."""

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})|%00")


@dataclass(frozen=True, slots=True)
class Route:
    """One path and method, its handler, and the bounds of its body: `limit` in bytes, and `deadline_s`.

    `files` gives the bytes and seconds of a multipart body. `head` answers HEAD, which is refused without it.
    `otherwise` answers the methods that the path does not accept. A `reserved` route is served even when the process
    has no connection left for others.
    """

    method: str
    path: str
    handle: Handler
    head: Handler | None = field(default=None, kw_only=True)
    otherwise: Refuser | None = field(default=None, kw_only=True)
    limit: int = 16_384
    deadline_s: float = 10.0
    files: tuple[int, float] | None = None
    reserved: bool = False


class Front:
    """The ASGI endpoint of one path, or of every unknown path (no routes). Every refusal has the error envelope."""

    def __init__(self, routes: Sequence[Route], telemetry: Telemetry) -> None:
        self._methods = {route.method: route.handle for route in routes}
        for route in routes:
            if route.head is not None:
                self._methods["HEAD"] = route.head
        self._otherwise = next((route.otherwise for route in routes if route.otherwise is not None), None)
        self._deadline_s = max((route.deadline_s for route in routes), default=0.0)
        self._files_s = max((route.files[1] for route in routes if route.files), default=self._deadline_s)
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._turn_away(scope, receive, send)
            return
        request = Request(scope, receive)
        call = Call(
            method=request.method,
            path=scope["path"],
            query=scope["query_string"].decode("ascii", "replace"),
            headers=headers_in(scope["headers"]),
            peer=request.client.host if request.client else "",
        )
        call.stream = partial(self._stream, request, call.header_values("content-type"))
        raw_path: bytes = scope.get("raw_path") or call.path.encode()
        with Exchange(call, self._telemetry) as exchange:
            exchange.answer = await self._answer(raw_path, call)
        if exchange.answer is not None:
            await respond(call, exchange.answer)(scope, receive, send)

    async def _answer(self, raw_path: bytes, call: Call) -> Answer:
        if _BAD_ESCAPE.search(raw_path):
            raise GatewayError("http_malformed", detail="the path contains an invalid percent-encoding")
        # No path needs an escape, so an escaped spelling of one is not that path.
        if not self._methods or b"%" in raw_path:
            raise GatewayError("route_unknown")
        handle = self._methods.get(call.method)
        if handle is None:
            allow = ", ".join(self._methods)
            error = GatewayError(
                "method_not_allowed", headers=(("allow", allow),), method=excerpt(call.method, 10), allow=allow
            )
            if self._otherwise is not None:
                return self._otherwise(error, call)
            raise error
        return await handle(call)

    async def _stream(self, request: Request, types: Sequence[str]) -> AsyncIterator[bytes]:
        """Yield the body as it arrives, within its deadline, which holds even under a server without the edge."""
        deadline_s = self._files_s if is_multipart(types) else self._deadline_s
        ends_at = asyncio.get_running_loop().time() + deadline_s
        async for chunk in within(request.stream(), lambda: ends_at):
            yield chunk

    async def _turn_away(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a WebSocket handshake with an ordinary HTTP response, as RFC 6455 §4.2.2 allows."""
        call = Call(method="GET", path=scope.get("path", ""))
        answer = refuse(GatewayError("route_unknown"), call)
        await receive()
        await send(
            {
                "type": "websocket.http.response.start",
                "status": answer.status,
                "headers": respond(call, answer).raw_headers,
            }
        )
        await send({"type": "websocket.http.response.body", "body": answer.body})


class Exchange:
    """One call and its answer, as a context manager: a refusal or a bug in its block becomes the answer.

    It writes the one log line of the call. `answer` stays None if the client has disconnected.
    """

    __slots__ = ("_call", "_started_at", "_telemetry", "answer")

    def __init__(self, call: Call, telemetry: Telemetry) -> None:
        self._call = call
        self._telemetry = telemetry
        self.answer: Answer | None = None

    def __enter__(self) -> Self:
        self._started_at = asyncio.get_running_loop().time()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> bool:
        if error is not None:
            self._refuse(error)
        if self.answer is not None:
            seconds = asyncio.get_running_loop().time() - self._started_at
            self._telemetry.request(self._call, self.answer.status, seconds)
        return error is None or isinstance(error, Exception)

    def _refuse(self, error: BaseException) -> None:
        if isinstance(error, GatewayError):
            self.answer = refuse(error, self._call)
        elif isinstance(error, asyncio.CancelledError):
            self._telemetry.cut_off(self._call)
        elif isinstance(error, Exception) and not isinstance(error, ClientDisconnect):
            self._telemetry.crash(self._call.request_id, error)
            self.answer = refuse(GatewayError("internal"), self._call)


def headers_in(raw_headers: Iterable[tuple[bytes, bytes]]) -> dict[str, list[str]]:
    """Decode a request's headers for a Call; ASGI gives their names in lower case."""
    headers: dict[str, list[str]] = {}
    for name, value in raw_headers:
        headers.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    return headers


def headers_out(call: Call, answer: Answer) -> list[tuple[str, str]]:
    """Return an answer's headers, with those that every response has."""
    given = dict(answer.headers)
    return [
        ("content-length", str(len(answer.body))),
        *answer.headers,
        *[pair for pair in ALWAYS if pair[0] not in given],
        ("x-request-id", call.request_id),
    ]


def respond(call: Call, answer: Answer) -> Response:
    """Return the Starlette response of an answer: for HEAD without its body (RFC 9110 §9.3.2)."""
    response = Response(b"" if call.method == "HEAD" else answer.body, answer.status)
    headers = headers_out(call, answer)
    # The body of a GET was not built, so its length is unknown.
    if call.method == "HEAD" and not answer.body:
        headers = [pair for pair in headers if pair[0] != "content-length"]
    response.raw_headers = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return response


def create(
    routes: Sequence[Route],
    *,
    lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]] | None = None,
    telemetry: Telemetry,
) -> Starlette:
    """Build the ASGI app of a list of routes. Paths are exact: a redirect for a slash would repeat a POST."""
    paths: dict[str, list[Route]] = {}
    for route in routes:
        paths.setdefault(route.path, []).append(route)
    fronts = [StarletteRoute(path, Front(own, telemetry)) for path, own in paths.items()]
    app = Starlette(routes=fronts, lifespan=lifespan)
    app.router.redirect_slashes = False
    app.router.default = Front([], telemetry)
    return app
