"""Middleware between clients and the simulated X: the log of calls, X's headers and Date, and faults on the wire."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from datetime import timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.routing import Match

from birdwire.sandbox.api.dispatcher import FAULT, dressed
from birdwire.sandbox.control.faults import ConnectionDropped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.routing import Route
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from birdwire.sandbox.control.faults import Effect, Faults
    from birdwire.sandbox.state.simulator import Simulator

CALLS_KEPT = 10_000
WIRE = "birdwire.sandbox.transport"
TICK_S = 0.05


class Calls:
    """Log of the most recent calls to X, numbered from 1 since the sandbox started."""

    def __init__(self, platform: Simulator) -> None:
        self._platform = platform
        self._kept: deque[dict[str, Any]] = deque(maxlen=CALLS_KEPT)
        self._n = 0

    def begin(self, method: str, path: str) -> dict[str, Any]:
        """Record a call. Its handler sets `status` (null: no answer yet, or none at all), `user_id`, `grant_type`."""
        self._n += 1
        at = self._platform.clock.now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        call: dict[str, Any] = {"n": self._n, "at": at, "method": method, "path": path[:500], "status": None}
        self._kept.append(call)
        return call

    def since(self, n: int) -> list[dict[str, Any]]:
        """Return the recorded calls with a greater number."""
        return [call for call in self._kept if call["n"] > n]

    def clear(self) -> None:
        """Delete the recorded calls; the numbering continues."""
        self._kept.clear()


class Traffic:
    """ASGI middleware around the whole app."""

    def __init__(
        self,
        app: ASGIApp,
        platform: Simulator,
        endpoints: Sequence[Route],
        faults: Faults,
        calls: Calls,
    ) -> None:
        self._app, self._platform, self._endpoints = app, platform, endpoints
        self._faults, self._calls = faults, calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward one request, or apply its fault."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if not path.startswith(("/2/", "/i/", "/oauth2/")):
            await self._app(scope, receive, self._dated(send))
            return
        call = scope["birdwire.sandbox.call"] = self._calls.begin(scope["method"], path)

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                call["status"] = message["status"]
            await send(message)

        sending = self._as_x(noted) if not path.startswith("/i/") else self._dated(noted)
        effect = self._faults.take(scope["method"], path)
        if effect is None:
            await self._app(scope, receive, sending)
        else:
            await self._befall(effect, scope, receive, sending)

    async def _befall(self, effect: Effect, scope: Scope, receive: Receive, send: Send) -> None:
        if effect.delay_s is not None:
            await asyncio.sleep(effect.delay_s)
        if effect.drop == "before_apply":
            await _drop(scope, receive)
        elif effect.status is not None:
            await _made_up(effect)(scope, receive, send)
        elif effect.error is not None and self._meets_endpoint(scope):
            # The endpoint sends this refusal with its own rate limit headers.
            scope[FAULT] = effect.error
            await self._app(scope, receive, send)
        elif effect.error is not None:
            answer = self._platform.catalogue.answer(effect.error, self._platform.clock.epoch_s())
            await dressed(self._platform, answer)(scope, receive, send)
        elif effect.drop == "after_apply":
            await self._app(scope, receive, _nowhere)
            await _drop(scope, receive)
        elif effect.trickle_bps is not None or effect.truncate is not None:
            await self._slowly_or_cut(effect, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _slowly_or_cut(self, effect: Effect, scope: Scope, receive: Receive, send: Send) -> None:
        start, body = await _answered(self._app, scope, receive)
        headers = MutableHeaders(scope=start)
        headers["content-length"] = str(len(body))
        await send(start)
        if effect.truncate is not None:
            await send({"type": "http.response.body", "body": body[: effect.truncate], "more_body": True})
            await _drop(scope, receive, flush=True)
            return
        pace = effect.trickle_bps or 1
        step = max(1, int(pace * TICK_S))
        for at in range(0, len(body), step):
            await asyncio.sleep(step / pace)
            await send({"type": "http.response.body", "body": body[at : at + step], "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _meets_endpoint(self, scope: Scope) -> bool:
        return any(route.matches(scope)[0] is Match.FULL for route in self._endpoints)

    def _dated(self, send: Send) -> Send:
        """Return a `send` that sets Date from the sandbox's clock and the switch date_skew_s."""

        async def dated(message: Message) -> None:
            if message["type"] == "http.response.start":
                at = self._platform.clock.now() + timedelta(seconds=self._platform.config.date_skew_s)
                MutableHeaders(scope=message)["date"] = format_datetime(at, usegmt=True)
            await send(message)

        return dated

    def _as_x(self, send: Send) -> Send:
        """Return a `send` that adds the headers of every answer of X."""
        began = asyncio.get_running_loop().time()

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                generation = self._platform.config.generation
                headers.setdefault("api-version", "2.167" if generation == "mixed" else generation)
                headers.setdefault("x-transaction-id", secrets.token_hex(8))
                headers.setdefault("x-access-level", "read-write")
                took_ms = int((asyncio.get_running_loop().time() - began) * 1000)
                headers.setdefault("x-response-time", str(took_ms))
            await send(message)

        return self._dated(marked)


def _made_up(effect: Effect) -> Response:
    """Return the answer that a fault specifies."""
    headers = {name.lower(): value for name, value in effect.headers.items()}
    body, kind = effect.made_up_body()
    if body:
        headers.setdefault("content-type", kind)
    return Response(body, effect.status or 200, headers)


async def _nowhere(_message: Message) -> None:
    """Discard a message."""


async def _answered(app: ASGIApp, scope: Scope, receive: Receive) -> tuple[Message, bytes]:
    """Return the app's whole answer without sending it."""
    messages: list[Message] = []

    async def keep(message: Message) -> None:
        messages.append(message)

    await app(scope, receive, keep)
    body = b"".join(message.get("body", b"") for message in messages[1:])
    return messages[0], body


async def _drop(scope: Scope, receive: Receive, *, flush: bool = False) -> None:
    """Cut the connection without an answer; raise if the client is in the same process."""
    wire = scope.get("extensions", {}).get(WIRE)
    if wire is None:
        raise ConnectionDropped
    wire.close() if flush else wire.abort()
    while (await receive())["type"] != "http.disconnect":
        pass
