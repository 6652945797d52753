"""Starlette's side: a request becomes a Call, an Answer becomes a response. The router's own errors are here too."""

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

    from starlette.types import Receive, Scope, Send

    from birdwire.runtime.telemetry import Telemetry

Handler = Callable[[Call], Awaitable[Answer]]
Refuser = Callable[[GatewayError, Call], Answer]

ALWAYS = (("x-content-type-options", "nosniff"), ("cache-control", "no-store"))
"""Headers of every answer."""

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})|%00")


@dataclass(frozen=True, slots=True)
class Route:
    """One path and method, who answers it, and how much may be sent in how long; `files`: that of multipart bodies.

    `head` answers a HEAD, which is refused without it. `otherwise` answers a method that the path does not accept, or
    raises that refusal. `reserved`: answered even when the process has no connection
    left for others.
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
    """Answers for one path, or for none (no routes): every refusal and every bug in the one shape."""

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
        """ASGI."""
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
            stream=partial(self._stream, request),
        )
        raw_path: bytes = scope.get("raw_path") or call.path.encode()
        answer = await attend(partial(self._answer, raw_path), self._telemetry, call)
        if answer is not None:
            await respond(call, answer)(scope, receive, send)

    async def _answer(self, raw_path: bytes, call: Call) -> Answer:
        if _BAD_ESCAPE.search(raw_path):
            raise GatewayError("http_malformed", detail="a percent sign in the path stands for nothing")
        if not self._methods or b"%" in raw_path:  # no path of ours needs an escape: only the canonical spelling is one
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

    async def _stream(self, request: Request) -> AsyncIterator[bytes]:
        """The body as it comes, within the deadline. The edge keeps it too, and counts; this holds under any server."""
        types = [value for name, value in request.scope["headers"] if name.lower() == b"content-type"]
        deadline_s = self._files_s if is_multipart(types) else self._deadline_s
        ends_at = asyncio.get_running_loop().time() + deadline_s
        async for chunk in within(request.stream(), lambda: ends_at):
            yield chunk

    async def _turn_away(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A websocket: there is none here (RFC 6455 §4.2.2 allows any HTTP answer to the handshake)."""
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


async def attend(handle: Handler, telemetry: Telemetry, call: Call) -> Answer | None:
    """The handler's answer, its refusal, or a 500 for whatever broke; one log line. None: the caller went away."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    try:
        answer = await handle(call)
    except GatewayError as error:
        answer = refuse(error, call)
    except ClientDisconnect:
        return None
    except asyncio.CancelledError:
        telemetry.cut_off(call)
        raise
    except Exception as error:  # noqa: BLE001 - the last net: whatever breaks, the caller gets the envelope
        telemetry.crash(call.request_id, error)
        answer = refuse(GatewayError("internal"), call)
    telemetry.request(call, answer.status, loop.time() - started)
    return answer


def headers_in(raw_headers: Iterable[tuple[bytes, bytes]]) -> dict[str, list[str]]:
    """A request's headers as a Call has them; ASGI and the edge give the names in lower case."""
    headers: dict[str, list[str]] = {}
    for name, value in raw_headers:
        headers.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    return headers


def headers_out(call: Call, answer: Answer) -> list[tuple[str, str]]:
    """An answer's headers, with those that every answer has."""
    given = [name for name, _ in answer.headers]
    return [
        ("content-length", str(len(answer.body))),
        *answer.headers,
        *[pair for pair in ALWAYS if pair[0] not in given],
        ("x-request-id", call.request_id),
    ]


def respond(call: Call, answer: Answer) -> Response:
    """The answer as Starlette sends it: to a HEAD the head alone (RFC 9110 §9.3.2)."""
    response = Response(b"" if call.method == "HEAD" else answer.body, answer.status)
    headers = headers_out(call, answer)
    if call.method == "HEAD" and not answer.body:  # what a GET would get was not made, so its length is not known
        headers = [pair for pair in headers if pair[0] != "content-length"]
    response.raw_headers = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return response


def create(
    routes: Sequence[Route],
    *,
    lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]] | None = None,
    telemetry: Telemetry,
) -> Starlette:
    """The ASGI app over a list of routes. Paths are exact: a redirect for a slash would send a POST again."""
    paths: dict[str, list[Route]] = {}
    for route in routes:
        paths.setdefault(route.path, []).append(route)
    fronts = [StarletteRoute(path, Front(own, telemetry)) for path, own in paths.items()]
    app = Starlette(routes=fronts, lifespan=lifespan)
    app.router.redirect_slashes = False
    app.router.default = Front([], telemetry)
    return app
