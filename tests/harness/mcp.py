"""A client of POST /mcp in plain HTTP, for every revision of the protocol."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2

if TYPE_CHECKING:
    from collections.abc import Mapping

    from harness.gateway import RunningGateway

HANDSHAKE = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
"""The revisions that start with `initialize`."""
STATELESS = "2026-07-28"
REVISIONS = (*HANDSHAKE, STATELESS)
USUAL = "2025-06-18"

_ACCEPT = "application/json, text/event-stream"
_INFO = {"name": "test", "version": "1"}


def message(
    method: str, params: dict[str, Any] | None = None, revision: str = USUAL, request_id: str | int = 1
) -> dict[str, Any]:
    """Return a request. That of 2026-07-28 has its envelope in `_meta`."""
    params = dict(params or {})
    if revision == STATELESS:
        params["_meta"] = {
            "io.modelcontextprotocol/protocolVersion": revision,
            "io.modelcontextprotocol/clientInfo": _INFO,
            "io.modelcontextprotocol/clientCapabilities": {},
        }
    if method == "initialize":
        params = {"protocolVersion": revision, "capabilities": {}, "clientInfo": _INFO}
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}


def headers(key: str, request: Mapping[str, Any], revision: str = USUAL) -> dict[str, str]:
    """Return the headers that a client of the revision sends with a request."""
    made = {"authorization": f"Bearer {key}", "accept": _ACCEPT, "mcp-protocol-version": revision}
    if revision == STATELESS:
        made["mcp-method"] = request["method"]
        if "name" in request["params"]:
            made["mcp-name"] = _field(str(request["params"]["name"]))
    return made


def _field(value: str) -> str:
    """Return a value as a header carries it."""
    if value.isascii() and value.isprintable():
        return value
    return f"=?base64?{base64.b64encode(value.encode()).decode()}?="


async def rpc(
    base: str,
    key: str,
    request: dict[str, Any],
    more: Mapping[str, str] | None = None,
    *,
    revision: str = USUAL,
    client: httpx2.AsyncClient | None = None,
) -> httpx2.Response:
    """POST one message to the gateway at a base URL. `more` are further headers; without a `client`, one is made."""
    if client is None:
        async with httpx2.AsyncClient(timeout=60) as own:
            return await rpc(base, key, request, more, revision=revision, client=own)
    given = headers(key, request, revision) | dict(more or {})
    return await client.post(f"{base}/mcp", json=request, headers=given)


async def call_tool(
    base: str,
    key: str,
    tool: str,
    arguments: dict[str, Any] | None = None,
    *,
    revision: str = USUAL,
    client: httpx2.AsyncClient | None = None,
) -> dict[str, Any]:
    """Call a tool and return its result: `content`, `structuredContent` and `isError`."""
    request = message("tools/call", {"name": tool, "arguments": arguments or {}}, revision)
    answer = await rpc(base, key, request, revision=revision, client=client)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["result"])


@dataclass
class Agent:
    """A client with one key and one revision, on a running gateway."""

    on: RunningGateway
    key: str = ""
    revision: str = USUAL

    async def send(self, content: bytes | str, more: Mapping[str, str] | None = None) -> httpx2.Response:
        """POST a body as it is."""
        given = {"authorization": f"Bearer {self.key or self.on.raw_key}", "content-type": "application/json"}
        return await self.on.bare.post("/mcp", content=content, headers=given | dict(more or {}))

    async def request(
        self, method: str, params: dict[str, Any] | None = None, more: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        """Send a request."""
        sent = message(method, params, self.revision)
        return await rpc("", self.key or self.on.raw_key, sent, more, revision=self.revision, client=self.on.bare)

    async def result(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send a request, and return its result."""
        answer = await self.request(method, params)
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["result"])

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool, and return its result."""
        return await self.result("tools/call", {"name": tool, "arguments": arguments})

    async def content(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool, and return its structured content."""
        return dict((await self.call(tool, **arguments))["structuredContent"])

    async def tools(self) -> dict[str, dict[str, Any]]:
        """Return the listed tools by name."""
        return {tool["name"]: tool for tool in (await self.result("tools/list"))["tools"]}
