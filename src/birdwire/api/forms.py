"""Forms: urlencoded, and multipart with files, parsed as they arrive. For older clients and uploads."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from birdwire.api.errors import GatewayError, excerpt

if TYPE_CHECKING:
    from collections.abc import Collection

    from birdwire.api.messages import Call

MAX_BOUNDARY = 70
MAX_FIELDS = 64
MAX_PART_HEAD = 4_096
MAX_PART_HEADERS = 8
"""The limit that newer versions of the parser have."""
MAX_PARAMETERS = 32
MAX_NAME = 200
MAX_FILES = 4
IN_MEMORY = 1 << 16
"""Bytes of a file that are kept in memory, and bytes that are written together: each change of thread costs time."""
_SLICE = 16_384
FILE_FIELDS = ("media_files", "media", "media_file", "file")
"""Names of a part that holds a file; the first is the documented one."""
_FILE_TYPES = (b"image/", b"video/")
"""Prefixes of the Content-Type of a part that is a file even without a filename, which RFC 7578 §4.2 leaves open."""
_ANY_TYPE = b"application/octet-stream"
"""Some clients give every field this type, so it means nothing, unless the name is one of FILE_FIELDS: then the part is
a file."""

_AS_JSON = "Send `Content-Type: application/json` and an uncompressed UTF-8 body"

Take = Callable[[int], None]
"""Reserves space for bytes of a body that have arrived, or refuses them."""

BeforeFile = Callable[[dict[str, Any]], Awaitable[tuple[int, Take]]]
"""Awaited when the first file of a multipart body starts, with the fields so far; may refuse it. Returns the limit of
the whole body, and what reserves space for each further piece."""


@dataclass(frozen=True, slots=True)
class Part:
    """A file of a multipart body, deleted when the call ends. A large one is on disk. `digest` is its SHA-256."""

    name: str
    file: IO[bytes] = field(repr=False)
    size: int
    digest: bytes

    async def read(self, size: int) -> bytes:
        """Return the next bytes. A file on disk is read in a thread, so that it does not block the event loop."""
        return self.file.read(size) if self.size <= IN_MEMORY else await asyncio.to_thread(self.file.read, size)


def too_large(limit: int) -> GatewayError:
    """Return the refusal of a body over its limit. The rest is not read, so the connection is closed."""
    return GatewayError("body_too_large", limit=limit, headers=(("connection", "close"),))


def looks_like_json(raw: bytes) -> bool:
    """Return whether a body with another Content-Type looks like a JSON object. No form starts like one."""
    return raw.lstrip()[:1] == b"{"


def wrong_type(wanted: str = "JSON with Content-Type: application/json", how: str = _AS_JSON) -> GatewayError:
    """Return the refusal of a body by its Content-Type or its encoding."""
    return GatewayError("unsupported_media_type", wanted=wanted, how=how)


def untyped_json(file_names: Collection[str]) -> GatewayError:
    """Return the refusal of JSON without its Content-Type: curl -d and urllib declare every body a form."""
    return other_type(file_names) if file_names else wrong_type(how="Add the header Content-Type: application/json")


def other_type(file_names: Collection[str]) -> GatewayError:
    """Return the refusal of a body that is not JSON or, with names of a file part, not multipart."""
    if not file_names:
        return wrong_type()
    name = next(iter(file_names))
    how = f"Send the file as part of a multipart form: curl -F {name}=@FILE"
    return wrong_type("a file in a multipart/form-data body", how)


def broken(detail: str) -> GatewayError:
    """Return the refusal of a form that cannot be parsed."""
    return GatewayError("form_malformed", detail=detail)


def urlencoded(raw: bytes) -> dict[str, Any]:
    """Return the fields of a urlencoded body; a repeated field becomes a list.

    Raises:
        GatewayError: form_malformed.
    """
    try:
        pairs = parse_qsl(
            raw.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=MAX_FIELDS
        )
    except ValueError:
        raise broken(f"it must consist of at most {MAX_FIELDS} name=value pairs in ASCII") from None
    fields: dict[str, Any] = {}
    for name, value in pairs:
        _add(fields, name, value)
    return fields


def _add(fields: dict[str, Any], name: str, value: str) -> None:
    """Add a field; a repeated one becomes a list, since a form has no other way to express one."""
    if name not in fields:
        fields[name] = value
    elif isinstance(fields[name], list):
        fields[name].append(value)
    else:
        fields[name] = [fields[name], value]


class _Files:
    """The files of one body as they arrive: in memory up to 64 KiB, else on disk, written and hashed by a thread.

    Raises:
        GatewayError: media_files_malformed: too many files; storage_unavailable: the disk is full or failing.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._files: list[tuple[IO[bytes], hashlib._Hash]] = []
        self._waiting: list[tuple[int, bytes]] = []
        self._waiting_bytes = self._bytes = 0

    def begin(self, name: str) -> None:
        """Start another file."""
        if len(self.names) == MAX_FILES:
            detail = f"there are more than {MAX_FILES} files"
            raise GatewayError("media_files_malformed", detail=detail, wanted=f"1 to {MAX_FILES} files")
        file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - the Part closes it
        self._files.append((file, hashlib.sha256()))
        self.names.append(name)

    def add(self, data: bytes) -> None:
        """Add bytes to the last file."""
        self._waiting.append((len(self._files) - 1, data))
        self._waiting_bytes += len(data)

    async def write(self, *, least: int = 0) -> None:
        """Write the bytes that have arrived, if they are at least this many."""
        if self._waiting_bytes < least:
            return
        waiting, self._waiting = self._waiting, []
        self._bytes += self._waiting_bytes
        self._waiting_bytes = 0
        try:
            if self._bytes <= IN_MEMORY:
                self._write(waiting)
            else:
                await asyncio.to_thread(self._write, waiting)
        except OSError:
            raise GatewayError("storage_unavailable", half="nothing was sent to X") from None

    async def parts(self) -> tuple[Part, ...]:
        """Return all files, complete, each at its start."""
        await self.write()
        sized = zip(self.names, self._files, strict=True)
        parts = tuple(Part(name, file, file.tell(), sha.digest()) for name, (file, sha) in sized)
        try:
            for part in parts:
                # This writes what is still in the buffer.
                part.file.seek(0)
        except OSError:
            raise GatewayError("storage_unavailable", half="nothing was sent to X") from None
        return parts

    def close(self) -> None:
        """Close the files, which deletes them."""
        for file, _ in self._files:
            # Closing writes the buffer first. If that fails, nothing is lost: the file is deleted.
            with contextlib.suppress(OSError):
                file.close()

    def _write(self, waiting: list[tuple[int, bytes]]) -> None:
        for number, data in waiting:
            file, sha = self._files[number]
            file.write(data)
            sha.update(data)


class Multipart:
    """A multipart/form-data body (RFC 7578), parsed as it arrives: fields into `fields`, files into temporary files."""

    def __init__(
        self,
        content_type: str,
        limit: int,
        before_file: BeforeFile,
        file_names: Collection[str],
        fields: dict[str, Any],
    ) -> None:
        self._boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        self._file_names = file_names
        self.size = 0
        """The bytes of the body so far."""
        # The first file may raise `_limit`. `_field_left` limits the fields together, and never rises.
        self._limit = self._field_left = limit
        self._before_file = before_file
        self._fields = fields
        self._files = _Files()
        self._parts = 0
        self._head: dict[bytes, bytes] = {}
        self._name, self._value = bytearray(), bytearray()
        self._field = ""
        self._in_file = self._file_ahead = False
        self._data = bytearray()
        self._ended = False
        self._parser = MultipartParser(
            self._boundary,
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
        # The parser's own logger would report every broken body on standard error, outside of the gateway's log.
        self._parser.logger = logging.Logger("multipart", logging.CRITICAL)  # noqa: LOG001 - without handlers

    async def read(self, call: Call) -> tuple[dict[str, Any], tuple[Part, ...]]:
        """Return the fields and files.

        Raises:
            GatewayError: form_malformed, body_too_large, storage_unavailable, or the refusal of `before_file`.
        """
        try:
            await self._read(call)
            return self._fields, await self._files.parts()
        except MultipartParseError:
            self._files.close()
            raise broken("it is not valid multipart/form-data (RFC 7578)") from None
        except BaseException:
            self._files.close()
            raise

    async def _read(self, call: Call) -> None:
        take: Take = _free
        async for chunk in call.stream():
            if chunk and not self.size:
                self._check_start(chunk)
            for start in range(0, len(chunk), _SLICE):
                piece = chunk[start : start + _SLICE]
                self._parser.write(piece)
                self.size += len(piece)
                if take is _free and self._files.names:
                    self._limit, take = await self._before_file(self._fields)
                if self.size > self._limit:
                    raise too_large(self._limit)
                take(len(piece))
                await self._files.write(least=IN_MEMORY)
        if self.size and not self._ended:
            raise broken("it ends before the final boundary")

    def _check_start(self, first: bytes) -> None:
        """Check, before a body is parsed, that it has a valid boundary and is not JSON."""
        if looks_like_json(first):
            raise untyped_json(self._file_names)
        if not 0 < len(self._boundary) <= MAX_BOUNDARY:
            raise broken(f"its Content-Type has no boundary of 1 to {MAX_BOUNDARY} characters")

    def _grow(self, buffer: bytearray, data: bytes, max_bytes: int) -> None:
        if len(buffer) + len(data) > max_bytes:
            raise broken(f"the headers of a part are larger than {max_bytes} bytes")
        buffer += data

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_FIELDS:
            raise broken(f"it has more than {MAX_FIELDS} parts")
        self._head, self._data, self._in_file = {}, bytearray(), False

    def _header(self) -> None:
        if len(self._head) >= MAX_PART_HEADERS:
            raise broken(f"a part has more than {MAX_PART_HEADERS} headers")
        self._head[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _headers(self) -> None:
        disposition = self._head.get(b"content-disposition", b"")
        # More are not parsed: that takes quadratic time.
        if disposition.count(b";") > MAX_PARAMETERS:
            raise broken(f"a part has more than {MAX_PARAMETERS} parameters")
        kind, options = parse_options_header(disposition)
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        if kind != b"form-data" or not 0 < len(self._field) <= MAX_NAME or "\ufffd" in self._field:
            raise broken(f"a part has no valid name of 1 to {MAX_NAME} characters")
        content_type = self._head.get(b"content-type", b"").lower()
        self._file_ahead = (
            self._field in self._file_names
            or content_type.startswith(_FILE_TYPES)
            or (content_type.startswith(_ANY_TYPE) and self._field in FILE_FIELDS)
        )
        if b"filename" in options:
            self._begin_file()

    def _begin_file(self) -> None:
        self._in_file = True
        self._files.begin(self._field)

    def _chunk(self, data: bytes, start: int, end: int) -> None:
        # A part without a filename is a file only if it is not empty.
        if self._file_ahead and not self._in_file:
            self._begin_file()
        if self._in_file:
            self._files.add(data[start:end])
        else:
            self._field_left -= end - start
            if self._field_left < 0:
                raise too_large(self._limit)
            self._data += data[start:end]

    def _end(self) -> None:
        if self._in_file or (self._field in self._file_names and not self._data):
            return
        try:
            _add(self._fields, self._field, self._data.decode("utf-8"))
        except UnicodeDecodeError:
            raise broken(
                f"the part {excerpt(self._field)} is not UTF-8 text; if it is a file, add a filename"
            ) from None

    def _finish(self) -> None:
        self._ended = True


def _free(_: int) -> None:
    """Reserve nothing: the parts before the first file are small, and stay in memory."""
