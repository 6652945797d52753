"""Reads bodies strictly (RFC 8259, and beyond it), for HTTP and every other surface; never guesses.

Calls take JSON. Forms (urlencoded, multipart) are read too, for older clients and uploads; the caller of `read` decides
whether a call may use one (`check_kind`).
"""

from __future__ import annotations

import asyncio
import json
import math
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from birdwire.api.errors import PROBLEMS, GatewayError, excerpt, reason_named
from birdwire.api.forms import Multipart, looks_like_json, other_type, too_large, untyped_json, urlencoded, wrong_type
from birdwire.api.messages import JSON_TYPE
from birdwire.api.models import Body, is_well_formed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping

    from birdwire.api.forms import BeforeFile, Part
    from birdwire.api.messages import Call

MAX_DEPTH = 32
MAX_DIGITS = 4_300
MAX_TYPE = 256
"""The maximum length of a Content-Type; a form's boundary has 70 characters at most."""


@dataclass(slots=True)
class Parsed:
    """A body that has been read. `kind` is its form; a form's repeated fields are lists."""

    kind: Literal["none", "json", "form", "multipart"]
    fields: dict[str, Any] = field(default_factory=dict, repr=False)
    files: tuple[Part, ...] = ()

    def close(self) -> None:
        """Close the files, which deletes them."""
        for part in self.files:
            part.file.close()


NO_BODY: Final = Parsed("none")
"""What a call has until its body is read. It is shared by all of them, and nothing may be added to it."""

AnyBody = TypeVar("AnyBody", bound=Body)


async def read(
    call: Call,
    limit: int,
    before_file: BeforeFile,
    file_names: Collection[str] = (),
    fields: dict[str, Any] | None = None,
) -> Parsed:
    """Return the call's body, read once, up to `limit` bytes; with files, up to what `before_file` returns.

    An empty body has the kind `none`, whatever its Content-Type. A part with one of `file_names` is a file even without
    a filename. The fields of a multipart body are added to `fields` as they arrive: a caller may need them if the rest
    is refused.

    Raises:
        GatewayError: 400, 413 or 415, naming what is wrong.
    """
    types = call.header_values("content-type")
    name, _, parameter = (types[0] if types else "").partition(";")
    name = name.strip().lower()
    # A long type is not parsed: parsing its parameters takes quadratic time.
    usable = len(types) == 1 and len(types[0]) <= MAX_TYPE
    if usable and name == "multipart/form-data" and not call.header("content-encoding"):
        form = Multipart(types[0], limit, before_file, file_names, {} if fields is None else fields)
        read_fields, files = await form.read(call)
        return Parsed("multipart" if form.size else "none", read_fields, files)
    raw = await _load(call, limit)
    if not raw:
        return Parsed("none")
    if not types and looks_like_json(raw):
        raise untyped_json(file_names)
    if not usable:
        raise wrong_type("JSON with a single Content-Type: application/json")
    if [value.strip().lower() for value in call.header_values("content-encoding")] not in ([], ["identity"]):
        raise wrong_type("JSON in an uncompressed body")
    charset = parameter.strip().lower().replace('"', "")
    if charset not in ("", "charset=utf-8"):
        raise wrong_type("JSON in UTF-8")
    if name == "application/json":
        return Parsed("json", parse(raw))
    if looks_like_json(raw):
        raise untyped_json(file_names)
    # Where a file is expected, a body outside ASCII is a file that curl's --data-binary sent with this type.
    if name == "application/x-www-form-urlencoded" and (raw.isascii() or not file_names):
        return Parsed("form", urlencoded(raw))
    raise other_type(file_names)


def whole_json(call: Call, limit: int) -> Parsed | None:
    """Return a body that has arrived and is declared in the commonest way; None: `read` decides what it is.

    Raises:
        GatewayError: as `read`.
    """
    body, types = call.whole, call.header_values("content-type")
    if not body or len(types) != 1 or types[0] != JSON_TYPE or "content-encoding" in call.headers:
        return None
    if len(body) > limit:
        raise too_large(limit)
    return Parsed("json", parse(body))


def check_kind(kind: str, model: type[Body], file_names: Collection[str]) -> None:
    """Check that a call takes a body of this kind, which is not JSON.

    Raises:
        GatewayError: json_malformed: the body is empty, and a field is required; unsupported_media_type.
    """
    if kind == "none":
        if any(field.is_required() for field in model.model_fields.values()):
            raise GatewayError("json_malformed", detail="the body is empty")
    elif kind != "multipart" or not file_names:
        raise other_type(file_names)


def read_query(query: str) -> Parsed:
    """Return a query as fields, each at most once.

    Raises:
        GatewayError: http_malformed, duplicate_field.
    """
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict", max_num_fields=16)
    except ValueError:
        raise GatewayError("http_malformed", detail="the query string cannot be parsed") from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise GatewayError("duplicate_field", field="a query parameter")
    return Parsed("form" if fields else "none", fields)


async def within(chunks: AsyncIterator[bytes], due: Callable[[], float | None]) -> AsyncIterator[bytes]:
    """Yield a body's chunks until `due`, a time of the event loop that is read before each chunk; None: no deadline.

    Raises:
        GatewayError: request_timeout.
    """
    while True:
        try:
            async with asyncio.timeout_at(due()):
                chunk = await anext(chunks, None)
        except TimeoutError:
            raise GatewayError("request_timeout", headers=(("connection", "close"),)) from None
        if chunk is None:
            return
        if chunk:
            yield chunk


async def _load(call: Call, limit: int) -> bytes:
    if call.whole is not None:
        if len(call.whole) > limit:
            raise too_large(limit)
        return call.whole
    body = bytearray()
    async for chunk in call.stream():
        body += chunk
        if len(body) > limit:
            raise too_large(limit)
    return bytes(body)


def parse(raw: bytes) -> dict[str, Any]:
    """Return the JSON object in `raw`: UTF-8 without BOM, no member twice, no NaN, depth and digits bounded.

    A string in it may contain a lone surrogate (RFC 8259 §8.2): `check` refuses it, and names its field.

    Raises:
        GatewayError: json_malformed, duplicate_field, body_not_object.
    """
    if (strings := _strings(raw)) is not None:
        return strings
    try:
        text = raw.decode("utf-8")
        value = _DECODER.decode(text)
    except UnicodeError:
        raise GatewayError("json_malformed", detail="it is not UTF-8") from None
    except RecursionError:
        raise GatewayError("json_malformed", detail="it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise GatewayError(
            "json_malformed", detail=f"syntax error at line {error.lineno}, column {error.colno}"
        ) from None
    if not isinstance(value, dict):
        raise GatewayError("body_not_object", example='{"tweet_id": "1346889436626259968"}')
    # Each level needs a bracket of its own; counting them is much faster.
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
        raise GatewayError("json_malformed", detail="it is nested too deeply")
    return value


def _strings(raw: bytes) -> dict[str, Any] | None:
    """Return a JSON object whose members are distinct strings without escapes; None: the strict decoder decides.

    Most bodies are such an object, and the strict decoder takes ten times as long. The fast one ignores a member that
    comes twice, but then there are more than four quotes for each member that is left. A longer body is left to the
    strict decoder, since the fast one does not bound the digits of a number.
    """
    if len(raw) > MAX_DIGITS or b"\\" in raw:
        return None
    try:
        value = from_json(raw, cache_strings="none")
    except ValueError:
        return None
    if not isinstance(value, dict) or raw.count(b'"') != 4 * len(value):
        return None
    return value if {str}.issuperset(map(type, value.values())) else None


def check(value: Mapping[str, Any], model: type[AnyBody], context: dict[str, Any] | None = None) -> AnyBody:
    """Return the parsed object as `model`; `context` holds what its rules depend on.

    Raises:
        GatewayError: FIELD_missing, unknown_field, FIELD_malformed or a rule of the model; this order if several apply.
    """
    try:
        return model.model_validate(value, context=context)
    except ValidationError as error:
        found = min(error.errors(include_url=False), key=lambda item: _ORDER.get(item["type"], 2))
    # A rule of the model raises with the reason as the error's type.
    if found["type"] in PROBLEMS:
        raise GatewayError(reason_named(found["type"]), **found.get("ctx", {}))
    path = [part for part in found["loc"] if isinstance(part, str)]
    name = path[-1]
    if found["type"] == "extra_forbidden":
        known = ", ".join(model.model_fields) or "no fields"
        raise GatewayError("unknown_field", field=excerpt(".".join(path)), known=known)
    wanted = _wanted(model, path)
    if found["type"] == "missing":
        raise GatewayError(reason_named(f"{name}_missing"), wanted=wanted)
    detail = _detail(found["type"], found["input"])
    raise GatewayError(reason_named(f"{name}_malformed"), detail=detail, wanted=wanted)


_ORDER = {"missing": 0, "extra_forbidden": 1}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if not all(map(is_well_formed, value)):
        raise GatewayError("json_malformed", detail="a field name contains an unpaired surrogate")
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise GatewayError("duplicate_field", field=excerpt(twice))
    return value


def _no_constant(_: str) -> NoReturn:
    raise GatewayError("json_malformed", detail="NaN and Infinity are not JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise GatewayError("json_malformed", detail="a number is too large")
    return value


def _int(text: str) -> int:
    if len(text) > min(MAX_DIGITS, sys.get_int_max_str_digits() or MAX_DIGITS):
        raise GatewayError("json_malformed", detail="a number has too many digits")
    return int(text)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_float, parse_int=_int)


def _depth(value: object) -> int:
    """Return the depth of the nesting. Counts level by level, so that no input can exhaust the stack."""
    depth, level = 0, [value]
    while level:
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        depth += 1
        level = [item for item in inner if isinstance(item, dict | list)]
    return depth


def _wanted(model: type[Body], path: list[str]) -> str:
    """Return the description of the field at a path of names."""
    field_info = model.model_fields.get(path[0])
    for name in path[1:]:
        inner = _model_of(field_info.annotation) if field_info else None
        field_info = inner.model_fields.get(name) if inner else None
    return (field_info.description if field_info and field_info.description else "see /openapi.json").rstrip(".")


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model in `Model` or `Model | None`."""
    options = [annotation, *getattr(annotation, "__args__", ())]
    return next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None)


def _detail(kind: str, sent: object) -> str:
    if kind == "string_type" and isinstance(sent, int | float) and not isinstance(sent, bool):
        return "it is a number, and large numbers lose digits in transit; send it as a string"
    if kind == "string_pattern_mismatch" and isinstance(sent, str) and "/" in sent and "status" in sent:
        return "it looks like a link; send only the digits at the end of the link"
    return _DETAILS.get(kind, "it is invalid")


_DETAILS = {
    "string_type": "it is not a string",
    "string_unicode": "it contains an unpaired surrogate",
    "string_pattern_mismatch": "it has the wrong format",
    "list_type": "it is not a list",
    "string_too_short": "it is too short",
    "string_too_long": "it is too long",
    "too_short": "it has too few items",
    "too_long": "it has too many items",
    "bool_type": "it is not true or false",
    "int_type": "it is not a whole number",
    "greater_than_equal": "it is too small",
    "less_than_equal": "it is too large",
    "literal_error": "it is not one of the allowed values",
    "model_type": "it is not an object",
    "dict_type": "it is not an object",
    "null": "it is null; omit it instead",
    "control_character": "it contains a control character",
}
