"""The endpoint POST /mcp: checks where a request comes from, admits its key, reads its body, and loads the kernel."""

from __future__ import annotations

import asyncio
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

from birdwire.api.errors import GatewayError
from birdwire.keys.context import RouteRules
from birdwire.runtime.addresses import is_loopback
from birdwire.settings import listed
from birdwire.surfaces.mcp import jsonrpc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from birdwire.accounts.sessions import XSession
    from birdwire.api.messages import Answer, Call
    from birdwire.keys.context import CallContext, KeyedRoute, Work
    from birdwire.settings import Settings

MAX_MESSAGE: Final = 65_536
"""The maximum length of a JSON-RPC message, in bytes."""

# The message names what must be done once, so an Idempotency-Key header means nothing.
RULES: Final = RouteRules("mcp", max_bytes=MAX_MESSAGE, unnamed=True)
_CODES: Final = {
    "json_malformed": jsonrpc.PARSE_ERROR,
    "duplicate_field": jsonrpc.PARSE_ERROR,
    "body_not_object": jsonrpc.INVALID_REQUEST,
}
"""Reasons for which a body is not a JSON-RPC message, and their codes in JSON-RPC."""
_FIX: Final = "Send one JSON-RPC 2.0 message as a JSON object in UTF-8. Batches are not supported."


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
        self._own_host = _host_of(settings.base_url)
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
        refusal = answer.value.get("error", {}) if answer.status == 400 else {}
        code = _CODES.get(refusal.get("reason", ""))
        return answer if code is None else _not_a_message(answer, code, refusal)

    def _check_source(self, call: Call) -> None:
        """Check the Host and the Origin, so that a web page cannot reach a gateway on its reader's machine."""
        if any(not self._serves(_host_of(f"//{host}")) for host in call.header_values("host")):
            raise GatewayError("host_not_allowed")
        if any(not self._serves(_host_of(origin)) for origin in call.header_values("origin")):
            raise GatewayError("origin_not_allowed")

    def _serves(self, host: str) -> bool:
        """Return whether a host is one of those in `hosts`; by default, of the public URL or of this machine."""
        if self._hosts:
            return host in self._hosts
        return host != "" and (host == self._own_host or is_loopback(host.strip("[]")))

    async def _serve(self, context: CallContext) -> Answer:
        kernel = self._kernel or await self._loaded()
        answer: Answer = await kernel.answer(context)
        return answer

    async def _loaded(self) -> Any:
        """Return the kernel, imported with the first call in a thread: the import takes a second.

        Raises:
            GatewayError: mcp_unavailable: the SDK cannot be imported.
        """
        async with self._loading:
            if self._kernel is None:
                try:
                    module = await asyncio.to_thread(import_module, "birdwire.surfaces.mcp.kernel")
                except ImportError as error:
                    # An import within Birdwire that fails is a bug.
                    if (error.name or "").startswith("birdwire"):
                        raise
                    raise GatewayError("mcp_unavailable") from None
                tools = module.ToolCalls(self._calls, self._pipeline.run_within, self._session_of)
                self._kernel = module.Kernel(tools)
            return self._kernel


def _host_of(url: str) -> str:
    """Return the host of a URL as the setting `hosts` names it, or an empty string if it has none."""
    try:
        name = (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""
    return f"[{name}]" if ":" in name else name


def _not_a_message(answer: Answer, code: int, refusal: Mapping[str, Any]) -> Answer:
    """Return the refusal of a body that is not a JSON-RPC message, as a JSON-RPC error."""
    error = {**refusal, "fix": _FIX}
    return jsonrpc.failed(None, code, f"{refusal['message']} {_FIX}", error).adding(answer.headers[1:])
