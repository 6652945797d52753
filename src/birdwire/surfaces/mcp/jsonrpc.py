"""JSON-RPC 2.0, as far as MCP uses it: which bodies are messages, and the two forms of a response."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from birdwire.api.messages import Answer
from birdwire.api.models import is_well_formed

if TYPE_CHECKING:
    from collections.abc import Mapping

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600

MAX_NAME: Final = 128
"""The maximum length of a method's name."""
MAX_ID: Final = 255
"""The maximum length of a request's id; a number has as many digits as JavaScript keeps exactly."""
_MAX_NUMBER: Final = 2**53 - 1

Id = str | int


class Message(NamedTuple):
    """A request; or a notification, which has no `id` and gets no response."""

    method: str
    params: dict[str, Any] | None
    id: Id | None


def message_in(body: Mapping[str, Any]) -> Message | None:
    """Return the message that a body is, or None if it is neither a request nor a notification.

    `params` may be null, which some clients send for none.
    """
    method, params = body.get("method"), body.get("params")
    named = isinstance(method, str) and 0 < len(method) <= MAX_NAME and is_well_formed(method)
    if body.get("jsonrpc") != "2.0" or not named or not isinstance(params, dict | None):
        return None
    request_id = id_in(body)
    return None if request_id is None and "id" in body else Message(str(method), params, request_id)


def id_in(body: Mapping[str, Any]) -> Id | None:
    """Return the id of a request, or None if it is absent or malformed."""
    found = body.get("id")
    if isinstance(found, str):
        return found if len(found) <= MAX_ID and is_well_formed(found) else None
    if isinstance(found, int) and not isinstance(found, bool):
        return found if abs(found) <= _MAX_NUMBER else None
    return None


def succeeded(request_id: Id | None, result: Mapping[str, Any]) -> Answer:
    """Return the response with a result."""
    return Answer.of({"jsonrpc": "2.0", "id": request_id, "result": result})


def failed(request_id: Id | None, code: int, message: str, data: object = None, status: int = 400) -> Answer:
    """Return the response with an error. `data` is left out if it is None."""
    error = {"code": code, "message": message} | ({} if data is None else {"data": data})
    return Answer.of({"jsonrpc": "2.0", "id": request_id, "error": error}, status)
