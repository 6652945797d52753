"""Tool calls: each is one call of the HTTP API, made within the call that carried it; and the list of a key's tools."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from birdwire.api.body import Parsed
from birdwire.api.errors import GatewayError, refuse
from birdwire.api.paths import API
from birdwire.keys.context import CallContext
from birdwire.surfaces.mcp import results
from birdwire.surfaces.mcp.arguments import asked
from birdwire.surfaces.mcp.tools import TOOLS
from birdwire.x.catalog.lookups import LOOKUPS
from birdwire.x.catalog.operations import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from birdwire.accounts.sessions import XSession
    from birdwire.api.messages import Answer
    from birdwire.keys.context import KeyedRoute, Work
    from birdwire.keys.registry import Key
    from birdwire.surfaces.mcp.arguments import Asked
    from birdwire.surfaces.mcp.tools import Tool

_SCOPES: dict[str, tuple[str, ...]] = {
    **{row.name: row.scopes for row in OPERATIONS},
    **{row.name: row.scopes for row in LOOKUPS},
}


class CallResult(NamedTuple):
    """The result of a tool call. If it waits for a person: the request, and how long the caller wants to wait."""

    result: dict[str, Any]
    waits_for: str | None = None
    wait_s: int = 0


class ToolCalls:
    """Calls tools, and lists them. `calls`, `run_within` and `session_of` are those of the endpoint."""

    def __init__(
        self,
        calls: Mapping[str, KeyedRoute],
        run_within: Callable[[CallContext, Work], Awaitable[Answer]],
        session_of: Callable[[str], XSession | None],
    ) -> None:
        self._calls = calls
        self._run_within = run_within
        self._session_of = session_of

    async def call(self, outer: CallContext, tool: Tool, arguments: Mapping[str, Any]) -> CallResult:
        """Call a tool within an admitted call. A refusal is a result, too."""
        try:
            one = asked(tool, arguments)
            answer, inner = await self._answer(outer, tool, one)
        except GatewayError as error:
            called = results.Called(tool, "", outer.call.request_id)
            return CallResult(results.of(called, refuse(error, outer.call)))
        # A repeated call has the id of the first one, which another account may have made.
        session = None if inner.earlier else self._session_of(outer.key.key_id)
        request_id = inner.earlier or outer.call.request_id
        result = results.of(results.Called(tool, one.call, request_id, one.once, session, inner.uncertain), answer)
        if one.wait_s and inner.pending is not None:
            return CallResult(result, inner.pending.request_id, one.wait_s)
        return CallResult(result)

    async def _answer(self, outer: CallContext, tool: Tool, one: Asked) -> tuple[Answer, CallContext]:
        """Make the HTTP call. It shares the request id, the log line and the admission of the call that carried it.

        Raises:
            GatewayError: tool_unavailable.
        """
        keyed = self._calls.get(one.call)
        if keyed is None:
            raise GatewayError("tool_unavailable", tool=tool.name, call=one.call)
        headers = {} if one.once is None else {"idempotency-key": [one.once]}
        call = replace(outer.call, method=keyed.method, path=f"{API}/{one.path}", query="", headers=headers)
        inner = CallContext(call, keyed.rules, Parsed("json", one.fields), admitted=True)
        inner.key = outer.key
        return await self._run_within(inner, keyed.work), inner

    async def listed(self, outer: CallContext) -> list[dict[str, Any]]:
        """Return the tools that the caller's key can use now, sorted by name."""
        account = TOOLS["get_account"]
        answer, _ = await self._answer(outer, account, asked(account, {}))
        status = answer.value if answer.status == 200 else {}
        outer.call.note["operation"] = outer.route.name
        return [tool.document for tool in TOOLS.values() if self._usable(tool, outer.key, status)]

    def _usable(self, tool: Tool, key: Key, status: Mapping[str, Any]) -> bool:
        """Return whether the operator offers a tool, the key allows it, the link has its scopes, and X permits it."""
        offered = all(name in self._calls for name in tool.calls)
        return (
            offered
            and any(self._allows(key, name) and _has_scopes(name, status) for name in tool.calls)
            and not _refused_by_x(tool.calls[0], status)
        )

    def _allows(self, key: Key, name: str) -> bool:
        """Return whether a key may make a call; a call without an action is always allowed."""
        action = self._calls[name].rules.action
        return not action or key.rules.allow(action)


def _has_scopes(name: str, status: Mapping[str, Any]) -> bool:
    """Return whether the link has the scopes of a call, as far as there is a link."""
    granted = status.get("scopes")
    return granted is None or set(_SCOPES.get(name, ())) <= set(granted)


def _refused_by_x(name: str, status: Mapping[str, Any]) -> bool:
    """Return whether X recently refused a call to the gateway's X app at its access level."""
    known = (status.get("capabilities") or {}).get(name)
    return known is not None and not known["allowed"]
