"""One strict reading of a body (RFC 8259, and then stricter), for HTTP and every other surface; never guesses.

JSON is what calls take. Forms (urlencoded, multipart) are read too, for older clients and uploads; whether a call may
use one is for its caller to say.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Literal, NoReturn, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from birdwire.errors import PROBLEMS, GatewayError, excerpt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from birdwire.call import Call

MAX_DEPTH = 32
MAX_DIGITS = 4_300
MAX_FIELDS = 64
MAX_PART_HEAD = 4_096
IN_MEMORY = 1 << 20
_SLICE = 16_384


class Body(BaseModel):
    """What a call takes. Strict: a number is no string, half a character is none, an unknown member is refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _is_there(cls, value: object) -> object:
        """A member is left out, not null: X would take null for a value of its own. And text is whole characters."""
        if value is None:
            raise PydanticCustomError("null", "null")
        texts = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
        if not all(map(_whole, texts)):
            raise PydanticCustomError("string_unicode", "half a character")
        return value


class Empty(Body):
    """A call that takes nothing."""


@dataclass(frozen=True, slots=True)
class Part:
    """A file of a multipart body: on disk if it is large, and gone when the call is."""

    name: str
    file: IO[bytes] = field(repr=False)
    size: int


@dataclass(frozen=True, slots=True)
class Parsed:
    """A body as it was read. `kind` says how it was written; a form's repeated fields are lists."""

    kind: Literal["none", "json", "form", "multipart"]
    fields: dict[str, Any] = field(default_factory=dict, repr=False)
    files: tuple[Part, ...] = ()

    def close(self) -> None:
        """Let the files go."""
        for part in self.files:
            part.file.close()


BeforeFile = Callable[[dict[str, Any]], Awaitable[int]]
"""Asked when the first file of a multipart body begins, with the fields so far: how large may the whole body be?"""

AnyBody = TypeVar("AnyBody", bound=Body)


async def read(call: Call, limit: int, before_file: BeforeFile) -> Parsed:
    """The call's body, read once, up to `limit` bytes (files: up to what `before_file` says).

    Raises:
        GatewayError: 400, 413 or 415, naming what is wrong.
    """
    types = call.header_values("content-type")
    name, _, parameter = (types[0] if types else "").partition(";")
    if len(types) == 1 and name.strip().lower() == "multipart/form-data" and not call.header("content-encoding"):
        return await _Multipart(types[0], limit, before_file).read(call)
    raw = await _load(call, limit)
    if not raw and not types:
        return Parsed("none")
    if len(types) != 1:
        raise GatewayError("unsupported_media_type", wanted="one Content-Type: application/json")
    if [value.strip().lower() for value in call.header_values("content-encoding")] not in ([], ["identity"]):
        raise GatewayError("unsupported_media_type", wanted="an uncompressed body")
    charset = parameter.strip().lower().replace('"', "")
    if charset not in ("", "charset=utf-8"):
        raise GatewayError("unsupported_media_type", wanted="UTF-8")
    if name.strip().lower() == "application/json":
        return Parsed("json", parse(raw))
    if name.strip().lower() == "application/x-www-form-urlencoded":
        return Parsed("form", _form(raw))
    raise GatewayError("unsupported_media_type", wanted="Content-Type: application/json")


async def _load(call: Call, limit: int) -> bytes:
    body = bytearray()
    async for chunk in call.stream():
        body += chunk
        if len(body) > limit:
            raise too_large(limit)
    return bytes(body)


def too_large(limit: int) -> GatewayError:
    """The refusal of a body over its limit; what is left of it is not read, so the connection ends."""
    return GatewayError("body_too_large", limit=limit, headers=(("connection", "close"),))


def parse(raw: bytes) -> dict[str, Any]:
    """A JSON object from bytes: UTF-8 without BOM, no member twice, no NaN, depth and digits bounded, nothing after it.

    A string in it may hold a lone surrogate (RFC 8259 §8.2): `check` refuses it, and names its field.

    Raises:
        GatewayError: json_malformed, duplicate_field, body_not_object.
    """
    if not raw:
        raise GatewayError("json_malformed", detail="the body is empty")
    try:
        text = raw.decode("utf-8")
        value = _DECODER.decode(text)
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


def check(value: Mapping[str, Any], model: type[AnyBody], context: Mapping[str, Any] | None = None) -> AnyBody:
    """The parsed object as `model`; `context` holds what its rules depend on.

    Raises:
        GatewayError: FIELD_missing, unknown_field, FIELD_malformed or a rule of the model; this order if several apply.
    """
    try:
        return model.model_validate(value, context=dict(context or {}))
    except ValidationError as error:
        found = min(error.errors(include_url=False), key=lambda item: _ORDER.get(item["type"], 2))
    if found["type"] in PROBLEMS:  # a rule of the model, which raises with the reason as its type
        raise GatewayError(found["type"], **found.get("ctx", {}))
    path = [part for part in found["loc"] if isinstance(part, str)]
    name = path[-1]
    if found["type"] == "extra_forbidden":
        known = ", ".join(model.model_fields) or "no members"
        raise GatewayError("unknown_field", field=excerpt(".".join(path)), known=known)
    wanted = _wanted(model, path)
    if found["type"] == "missing":
        raise GatewayError(f"{name}_missing", wanted=wanted)
    raise GatewayError(f"{name}_malformed", detail=_detail(found["type"], found["input"]), wanted=wanted)


_ORDER = {"missing": 0, "extra_forbidden": 1}


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


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_float, parse_int=_int)


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


def _form(raw: bytes) -> dict[str, Any]:
    try:
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=MAX_FIELDS
        )
    except ValueError:
        raise GatewayError("form_malformed") from None
    fields: dict[str, Any] = {}
    for name, value in pairs:
        _add(fields, name, value)
    return fields


def _add(fields: dict[str, Any], name: str, value: str) -> None:
    """A form has no lists: a field that comes again makes one."""
    if name not in fields:
        fields[name] = value
    elif isinstance(fields[name], list):
        fields[name].append(value)
    else:
        fields[name] = [fields[name], value]


class _Multipart:
    """A multipart/form-data body (RFC 7578), read as it comes: fields into memory, files into temporary files."""

    def __init__(self, content_type: str, limit: int, before_file: BeforeFile) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not 0 < len(boundary) <= 70:
            raise GatewayError("form_malformed")
        self._limit = self._field_left = limit  # files may raise the first; fields together never pass the second
        self._before_file = before_file
        self._fields: dict[str, Any] = {}
        self._files: list[Part] = []
        self._parts = 0
        self._head: dict[bytes, bytes] = {}
        self._name, self._value = bytearray(), bytearray()
        self._field = ""
        self._file: IO[bytes] | None = None
        self._data = bytearray()
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._grow(self._name, data[start:end], MAX_PART_HEAD),
                "on_header_value": lambda data, start, end: self._grow(self._value, data[start:end], MAX_PART_HEAD),
                "on_header_end": self._header,
                "on_headers_finished": self._headers,
                "on_part_data": self._chunk,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )
        # The parser's own would write of every broken body to standard error, past our log and its limits.
        self._parser.logger = logging.Logger("multipart", logging.CRITICAL)  # noqa: LOG001 - nobody is to hear it

    async def read(self, call: Call) -> Parsed:
        try:
            await self._read(call)
        except MultipartParseError:
            self._close()
            raise GatewayError("form_malformed") from None
        except BaseException:
            self._close()
            raise
        return Parsed("multipart", self._fields, tuple(self._files))

    async def _read(self, call: Call) -> None:
        total, asked = 0, False
        async for chunk in call.stream():
            for start in range(0, len(chunk), _SLICE):
                piece = chunk[start : start + _SLICE]
                self._parser.write(piece)
                if not asked and (self._file is not None or self._files):
                    asked = True
                    self._limit = await self._before_file(self._fields)
                total += len(piece)
                if total > self._limit:
                    raise too_large(self._limit)
        if not self._ended:
            raise GatewayError("form_malformed")

    def _close(self) -> None:
        for file in (self._file, *(part.file for part in self._files)):
            if file is not None:
                file.close()

    def _grow(self, buffer: bytearray, data: bytes, most: int) -> None:
        if len(buffer) + len(data) > most:
            raise GatewayError("form_malformed")
        buffer += data

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_FIELDS:
            raise GatewayError("form_malformed")
        self._head, self._data, self._file = {}, bytearray(), None

    def _header(self) -> None:
        self._head[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _headers(self) -> None:
        kind, options = parse_options_header(self._head.get(b"content-disposition", b""))
        try:
            self._field = options.get(b"name", b"").decode("utf-8")
        except UnicodeDecodeError:
            raise GatewayError("form_malformed") from None
        if kind != b"form-data" or not 0 < len(self._field) <= 200:
            raise GatewayError("form_malformed")
        if b"filename" in options:
            self._file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - it lives as long as its Part

    def _chunk(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(data[start:end])
        else:
            self._field_left -= end - start
            if self._field_left < 0:
                raise too_large(self._limit)
            self._data += data[start:end]

    def _end(self) -> None:
        if self._file is not None:
            size = self._file.tell()
            self._file.seek(0)
            self._files.append(Part(self._field, self._file, size))
            self._file = None
            return
        try:
            _add(self._fields, self._field, self._data.decode("utf-8"))
        except UnicodeDecodeError:
            raise GatewayError("form_malformed") from None

    def _finish(self) -> None:
        self._ended = True


def _wanted(model: type[Body], path: list[str]) -> str:
    """The description of the field at a path of names."""
    field_info = model.model_fields.get(path[0])
    for name in path[1:]:
        inner = _model_of(field_info.annotation) if field_info else None
        field_info = inner.model_fields.get(name) if inner else None
    return (field_info.description if field_info and field_info.description else "see /openapi.json").rstrip(".")


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The model in `Model` or `Model | None`."""
    options = [annotation, *getattr(annotation, "__args__", ())]
    return next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None)


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
    "greater_than_equal": "it is too small",
    "less_than_equal": "it is too large",
    "literal_error": "it is none of the known words",
    "model_type": "it is not an object",
    "dict_type": "it is not an object",
    "null": "it is null; leave it out instead",
    "control_character": "it has a control character",
}
