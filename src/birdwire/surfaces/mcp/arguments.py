"""What a tool call asks for: the HTTP call behind it, and that call's fields.

Fields of the HTTP call keep their names and are checked by it. Here are only the parameters that no body has.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from birdwire.api.errors import GatewayError
from birdwire.api.messages import REQUEST_ID_PATTERN
from birdwire.api.paths import DRY_RUN
from birdwire.keys.secrets import KEY_PATTERN
from birdwire.outcomes.idempotency import NAME_FORM
from birdwire.surfaces.mcp.tools import MAX_WAIT_S

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from birdwire.surfaces.mcp.tools import Tool

_REQUEST_ID: Final = re.compile(REQUEST_ID_PATTERN)


class Asked(NamedTuple):
    """An HTTP call by its name, its path below the API's prefix, and its fields.

    `once` is its Idempotency-Key. `wait_s`: how long the answer may be held until a person has decided.
    """

    call: str
    path: str
    fields: dict[str, Any]
    once: str | None = None
    wait_s: int = 0


def asked(tool: Tool, arguments: Mapping[str, Any]) -> Asked:
    """Return the HTTP call that a tool call asks for.

    Raises:
        GatewayError: arguments_malformed, naming the parameter.
    """
    fields = dict(arguments)
    take = _Taker(fields)
    match tool.name:
        case "preview":
            known = tool.input_schema["properties"]["operation"]["enum"]
            operation = take("operation", known.__contains__, f"one of {', '.join(known)}")
            inner = take("arguments", _is_object, "an object: the body of the operation", default={})
            take.nothing_else()
            return Asked(f"{DRY_RUN}/{operation}", f"{DRY_RUN}/{operation}", inner)
        case "get_request":
            request_id = take("request_id", _is_request_id, "the request_id of an earlier answer, such as req_…")
            wait_s = take("wait_s", _is_wait, f"a whole number of seconds from 0 to {MAX_WAIT_S}", default=0)
            return Asked("requests", f"requests/{request_id}", fields, wait_s=int(wait_s))
    undo, once = False, None
    if len(tool.calls) > 1:
        undo = take("undo", _is_bool, "true or false", default=False)
    if "once" in tool.input_schema["properties"]:
        once = take("once", _is_once, "a string of 1 to 255 printable ASCII characters, no API key", default=None)
    return Asked(tool.calls[undo], tool.calls[undo], fields, once)


class _Taker:
    """Takes parameters out of a tool's arguments."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields

    def __call__(self, name: str, good: Callable[[Any], bool], wanted: str, default: Any = ...) -> Any:
        """Return one parameter, checked; its default if it is absent."""
        value = self._fields.pop(name, default)
        if value is ...:
            raise GatewayError("arguments_malformed", detail=f"`{name}` is missing", wanted=f"{name}: {wanted}")
        if value is not default and not good(value):
            raise GatewayError("arguments_malformed", detail=f"`{name}` is not valid", wanted=f"{name}: {wanted}")
        return value

    def nothing_else(self) -> None:
        """Check that no other parameter was sent."""
        if self._fields:
            raise GatewayError(
                "arguments_malformed",
                detail="it has other parameters than `operation` and `arguments`",
                wanted="the fields of the operation in `arguments`",
            )


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_request_id(value: Any) -> bool:
    return isinstance(value, str) and _REQUEST_ID.fullmatch(value) is not None


def _is_wait(value: Any) -> bool:
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    return whole and not isinstance(value, bool) and 0 <= value <= MAX_WAIT_S


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_once(value: Any) -> bool:
    """Return whether a value can be an Idempotency-Key. The answer repeats it, so it must not be a secret."""
    return isinstance(value, str) and NAME_FORM.fullmatch(value) is not None and KEY_PATTERN.search(value) is None
