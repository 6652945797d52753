"""The endpoint POST /mcp: checks where a request comes from, admits its key, reads its body, and loads the kernel."""

from __future__ import annotations

import asyncio
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

from birdwire.api.errors import GatewayError
from birdwire.api.messages import Answer, encode
from birdwire.keys.context import RouteRules
from birdwire.runtime.addresses import is_loopback
from birdwire.settings import listed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from birdwire.accounts.sessions import XSession
    from birdwire.api.messages import Call
    from birdwire.keys.context import CallContext, KeyedRoute, Work
    from birdwire.settings import Settings

MAX_MESSAGE: Final = 65_536
"""The maximum length of a JSON-RPC message, in bytes."""

# The message names what must be done once, so an Idempotency-Key header means nothing.
RULES: Final = RouteRules("mcp", max_bytes=MAX_MESSAGE, unnamed=True)
_CODES: Final = {"json_malformed": -32700, "duplicate_field": -32700, "body_not_object": -32600}
"""Reasons for which a body is not a JSON-RPC message, and their codes in JSON-RPC."""


class Runs(Protocol):
    """The pipeline, as far as this surface uses it."""

    def run(self, route: RouteRules, work: Work, call: Call) -> Awaitable[Answer]:
        """Answer a call over HTTP."""

    def run_within(self, context: CallContext, work: Work) -> Awaitable[Answer]:
        """Answer a call that is part of an admitted one."""


class McpEndpoint:
    """Answers POST /mcp. `calls` are the HTTP calls behind the tools, by name.

    `session_of` returns the X session of a key that this process holds ready, if any.
    """

    def __init__(
        self,
        pipeline: Runs,
        session_of: Callable[[str], XSession | None],
        settings: Settings,
        calls: Mapping[str, KeyedRoute],
    ) -> None:
        self._pipeline = pipeline
        self._session_of = session_of
        self._calls = calls
        self._hosts = frozenset(host.lower() for host in listed(settings.hosts))
        self._own_host = (urlsplit(settings.base_url).hostname or "").lower()
        self._installed = find_spec("mcp") is not None
        self._loading = asyncio.Lock()
        self._kernel: Any = None

    async def answer(self, call: Call) -> Answer:
        """Answer one JSON-RPC message.

        Raises:
            GatewayError: host_not_allowed, origin_not_allowed, mcp_unavailable.
        """
        call.note["operation"] = RULES.name
        self._check_source(call)
        if not self._installed:
            raise GatewayError("mcp_unavailable")
        answer = await self._pipeline.run(RULES, self._serve, call)
        code = _CODES.get(answer.value["error"].get("reason", "")) if answer.status == 400 else None
        return answer if code is None else _not_a_message(answer, code)

    def _check_source(self, call: Call) -> None:
        """Check the Host and the Origin, so that a web page cannot reach a gateway on its reader's machine."""
        host = call.header("host")
        if host is not None and not self._knows(f"//{host}"):
            raise GatewayError("host_not_allowed")
        if any(not self._knows(origin) for origin in call.header_values("origin")):
            raise GatewayError("origin_not_allowed")

    def _knows(self, url: str) -> bool:
        """Return whether the host of a URL is this gateway's."""
        try:
            name = (urlsplit(url).hostname or "").lower()
        except ValueError:
            return False
        if self._hosts:
            return name in self._hosts or f"[{name}]" in self._hosts
        return name == self._own_host or is_loopback(name)

    async def _serve(self, context: CallContext) -> Answer:
        async with self._loading:
            if self._kernel is None:
                kernel = await asyncio.to_thread(import_module, "birdwire.surfaces.mcp.kernel")
                self._kernel = kernel.Kernel(self._calls, self._pipeline.run_within, self._session_of)
        answer: Answer = await self._kernel.answer(context)
        return answer


def _not_a_message(answer: Answer, code: int) -> Answer:
    """Return the refusal of a body that is not a JSON-RPC message, as a JSON-RPC error."""
    refusal = answer.value["error"]
    error = {"code": code, "message": f"{refusal['message']} {refusal['fix']}", "data": refusal}
    value = {"jsonrpc": "2.0", "id": None, "error": error}
    return Answer(answer.status, answer.headers, encode(value), value)
