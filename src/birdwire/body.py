"""One strict parse of a body (RFC 8259, and then stricter), for HTTP and every other surface; never guesses."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from birdwire.errors import GatewayError, excerpt

if TYPE_CHECKING:
    from birdwire.call import Call

MAX_DEPTH = 32
MAX_DIGITS = 4_300


class Body(BaseModel):
    """What a call takes. Strict: a number is no string, half a character is none, an unknown member is refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _is_text(cls, value: object) -> object:
        texts = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
        if not all(map(_whole, texts)):
            raise PydanticCustomError("string_unicode", "half a character")
        return value


class Empty(Body):
    """A call that takes nothing."""


AnyBody = TypeVar("AnyBody", bound=Body)


def read(call: Call, model: type[AnyBody]) -> AnyBody:
    """The call's body as `model`; a body may be absent if every field of the model may.

    Raises:
        GatewayError: 400 or 415, naming what is wrong.
    """
    if call.query:
        raise GatewayError("unexpected_query", field=excerpt(call.query.partition("&")[0].partition("=")[0]))
    if not call.body and not call.header_values("content-type") and not _required(model):
        return model()
    _check_type(call)
    return check(parse(call.body), model)


def parse(raw: bytes) -> dict[str, Any]:
    """A JSON object from bytes: UTF-8 without BOM, no member twice, no NaN, depth and digits bounded, nothing after it.

    A string in it may hold a lone surrogate (RFC 8259 §8.2): `check` refuses it, and names its field.

    Raises:
        GatewayError: json_malformed, duplicate_field, body_not_object.
    """
    try:
        text = raw.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_float, parse_int=_int
        )
    except UnicodeError:
        raise GatewayError("json_malformed", detail="it is not UTF-8") from None
    except RecursionError:
        raise GatewayError("json_malformed", detail="it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise GatewayError("json_malformed", detail=f"see line {error.lineno}, column {error.colno}") from None
    if not isinstance(value, dict):
        raise GatewayError("body_not_object", example='{"tweet_id": "1346889436626259968"}')
    if _depth(value) > MAX_DEPTH:
        raise GatewayError("json_malformed", detail="it is nested too deeply")
    return value


def check(value: dict[str, Any], model: type[AnyBody]) -> AnyBody:
    """The parsed object as `model`.

    Raises:
        GatewayError: FIELD_missing, unknown_field or FIELD_malformed, in this order if several apply.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = min(error.errors(include_url=False), key=lambda item: _ORDER.get(item["type"], 2))
    field = next(part for part in reversed(found["loc"]) if isinstance(part, str))
    if found["type"] == "extra_forbidden":
        raise GatewayError("unknown_field", field=excerpt(field), known=", ".join(model.model_fields) or "no members")
    wanted = _wanted(model, found["loc"])
    if found["type"] == "missing":
        raise GatewayError(f"{field}_missing", wanted=wanted)
    raise GatewayError(f"{field}_malformed", detail=_detail(found["type"], found["input"]), wanted=wanted)


_ORDER = {"missing": 0, "extra_forbidden": 1}


def _required(model: type[Body]) -> bool:
    return any(field.is_required() for field in model.model_fields.values())


def _check_type(call: Call) -> None:
    types = call.header_values("content-type")
    encodings = call.header_values("content-encoding")
    name, _, parameter = (types[0] if types else "").partition(";")
    charset = parameter.strip().lower().replace('"', "")
    if not types and not call.body:
        raise GatewayError("json_malformed", detail="the body is empty")
    if len(types) != 1 or name.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
        raise GatewayError("unsupported_media_type", wanted="Content-Type: application/json")
    if encodings and [value.strip().lower() for value in encodings] != ["identity"]:
        raise GatewayError("unsupported_media_type", wanted="an uncompressed body")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if not all(map(_whole, value)):
        raise GatewayError("json_malformed", detail="the name of a member is no text")
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise GatewayError("duplicate_field", field=excerpt(twice))
    return value


def _whole(text: str) -> bool:
    """Whether text is free of lone surrogates, which only an escape can bring in."""
    return text.isascii() or text.encode("utf-8", "replace").decode() == text


def _no_constant(_: str) -> NoReturn:
    raise GatewayError("json_malformed", detail="NaN and Infinity are no JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise GatewayError("json_malformed", detail="a number is too large")
    return value


def _int(text: str) -> int:
    if len(text) > min(MAX_DIGITS, sys.get_int_max_str_digits() or MAX_DIGITS):
        raise GatewayError("json_malformed", detail="a number has too many digits")
    return int(text)


def _depth(value: object) -> int:
    """How deep the nesting goes; counts level by level, so that no input can exhaust the stack."""
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


def _wanted(model: type[Body], place: tuple[int | str, ...]) -> str:
    field = model.model_fields.get(str(place[0]))
    return (field.description or "see /openapi.json").rstrip(".") if field else "see /openapi.json"


def _detail(kind: str, sent: object) -> str:
    if kind == "string_type" and isinstance(sent, int | float) and not isinstance(sent, bool):
        return "it is a number, and large numbers lose digits on the way; send it as a string"
    if kind == "string_pattern_mismatch" and isinstance(sent, str) and "/" in sent and "status" in sent:
        return "it looks like a link; send only the digits at its end"
    return _SAYINGS.get(kind, "it does not fit")


_SAYINGS = {
    "string_type": "it is not a string",
    "string_unicode": "it is no text: half of a character is missing",
    "string_pattern_mismatch": "it has the wrong form",
    "list_type": "it is not a list",
    "string_too_short": "it is too short",
    "string_too_long": "it is too long",
    "too_short": "it has too few items",
    "too_long": "it has too many items",
    "bool_type": "it is neither true nor false",
    "int_type": "it is not a whole number",
    "literal_error": "it is none of the known words",
    "model_type": "it is not an object",
    "dict_type": "it is not an object",
}
