"""Forms: urlencoded, and multipart with files, read as they come. For older clients and uploads; JSON is body.py's."""

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

from birdwire.errors import GatewayError

if TYPE_CHECKING:
    from birdwire.call import Call

MAX_FIELDS = 64
MAX_PART_HEAD = 4_096
MAX_PART_HEADERS = 8
"""As newer versions of the parser have it."""
MAX_PARAMETERS = 32
MAX_FILES = 4
IN_MEMORY = 1 << 16
"""Bytes of a file that are kept in memory, and how many are written together, since each thread hop costs."""
_SLICE = 16_384

Take = Callable[[int], None]
"""Reserves room for bytes of a body that have arrived, or refuses them."""

BeforeFile = Callable[[dict[str, Any]], Awaitable[tuple[int, Take]]]
"""Awaited when the first file of a multipart body begins, with the fields so far. Returns how large the whole body may
be, and what to call before more of it is kept; or refuses."""


@dataclass(frozen=True, slots=True)
class Part:
    """A file of a multipart body: on disk if it is large, and gone when the call is. `digest` is its SHA-256."""

    name: str
    file: IO[bytes] = field(repr=False)
    size: int
    digest: bytes

    async def read(self, size: int) -> bytes:
        """The next bytes; what lies on a disk is not waited for in the event loop."""
        return self.file.read(size) if self.size <= IN_MEMORY else await asyncio.to_thread(self.file.read, size)


def too_large(limit: int) -> GatewayError:
    """The refusal of a body over its limit; what is left of it is not read, so the connection ends."""
    return GatewayError("body_too_large", limit=limit, headers=(("connection", "close"),))


def urlencoded(raw: bytes) -> dict[str, Any]:
    """The fields of a urlencoded body; one that comes again makes a list.

    Raises:
        GatewayError: form_malformed.
    """
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


class _Files:
    """The files of one body as they come: in memory up to 64 KiB, else on disk, written and hashed by a thread.

    Raises:
        GatewayError: media_files_malformed: too many files; storage_unavailable: the disk takes no more.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._files: list[tuple[IO[bytes], hashlib._Hash]] = []
        self._waiting: list[tuple[int, bytes]] = []
        self._waiting_bytes = self._bytes = 0

    def begin(self, name: str) -> None:
        """Another file begins."""
        if len(self.names) == MAX_FILES:
            detail = f"there are more than {MAX_FILES} files"
            raise GatewayError("media_files_malformed", detail=detail, wanted=f"1 to {MAX_FILES} files")
        file = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - it lives as long as its Part
        self._files.append((file, hashlib.sha256()))
        self.names.append(name)

    def add(self, data: bytes) -> None:
        """More of the last file."""
        self._waiting.append((len(self._files) - 1, data))
        self._waiting_bytes += len(data)

    async def write(self, *, least: int = 0) -> None:
        """Write what came, if it is at least so much."""
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
            raise GatewayError("storage_unavailable", half="nothing was asked of X") from None

    async def parts(self) -> tuple[Part, ...]:
        """All files, whole, each at its start."""
        await self.write()
        sized = zip(self.names, self._files, strict=True)
        parts = tuple(Part(name, file, file.tell(), sha.digest()) for name, (file, sha) in sized)
        try:
            for part in parts:
                part.file.seek(0)  # which writes what was still to be written
        except OSError:
            raise GatewayError("storage_unavailable", half="nothing was asked of X") from None
        return parts

    def close(self) -> None:
        """Let them go."""
        for file, _ in self._files:
            with contextlib.suppress(OSError):  # it writes the rest first, which nobody wants any more
                file.close()

    def _write(self, waiting: list[tuple[int, bytes]]) -> None:
        for number, data in waiting:
            file, sha = self._files[number]
            file.write(data)
            sha.update(data)


class Multipart:
    """A multipart/form-data body (RFC 7578), read as it comes: fields into memory, files into temporary files."""

    def __init__(self, content_type: str, limit: int, before_file: BeforeFile) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not 0 < len(boundary) <= 70:
            raise GatewayError("form_malformed")
        self._limit = self._field_left = limit  # files may raise the first; fields together never pass the second
        self._before_file = before_file
        self._fields: dict[str, Any] = {}
        self._files = _Files()
        self._parts = 0
        self._head: dict[bytes, bytes] = {}
        self._name, self._value = bytearray(), bytearray()
        self._field = ""
        self._in_file = False
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

    async def read(self, call: Call) -> tuple[dict[str, Any], tuple[Part, ...]]:
        """Its fields and files.

        Raises:
            GatewayError: form_malformed, body_too_large, storage_unavailable, or what was said before the first file.
        """
        try:
            await self._read(call)
            return self._fields, await self._files.parts()
        except MultipartParseError:
            self._files.close()
            raise GatewayError("form_malformed") from None
        except BaseException:
            self._files.close()
            raise

    async def _read(self, call: Call) -> None:
        total = 0
        take: Take = _free
        async for chunk in call.stream():
            for start in range(0, len(chunk), _SLICE):
                piece = chunk[start : start + _SLICE]
                self._parser.write(piece)
                total += len(piece)
                if take is _free and self._files.names:
                    self._limit, take = await self._before_file(self._fields)
                if total > self._limit:
                    raise too_large(self._limit)
                take(len(piece))
                await self._files.write(least=IN_MEMORY)
        if not self._ended:
            raise GatewayError("form_malformed")

    def _grow(self, buffer: bytearray, data: bytes, most: int) -> None:
        if len(buffer) + len(data) > most:
            raise GatewayError("form_malformed")
        buffer += data

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_FIELDS:
            raise GatewayError("form_malformed")
        self._head, self._data, self._in_file = {}, bytearray(), False

    def _header(self) -> None:
        if len(self._head) >= MAX_PART_HEADERS:
            raise GatewayError("form_malformed")
        self._head[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _headers(self) -> None:
        disposition = self._head.get(b"content-disposition", b"")
        if disposition.count(b";") > MAX_PARAMETERS:  # to parse them takes quadratic time
            raise GatewayError("form_malformed")
        kind, options = parse_options_header(disposition)
        try:
            self._field = options.get(b"name", b"").decode("utf-8")
        except UnicodeDecodeError:
            raise GatewayError("form_malformed") from None
        if kind != b"form-data" or not 0 < len(self._field) <= 200:
            raise GatewayError("form_malformed")
        if b"filename" in options:
            self._in_file = True
            self._files.begin(self._field)

    def _chunk(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._files.add(data[start:end])
        else:
            self._field_left -= end - start
            if self._field_left < 0:
                raise too_large(self._limit)
            self._data += data[start:end]

    def _end(self) -> None:
        if self._in_file:
            return
        try:
            _add(self._fields, self._field, self._data.decode("utf-8"))
        except UnicodeDecodeError:
            raise GatewayError("form_malformed") from None

    def _finish(self) -> None:
        self._ended = True


def _free(_: int) -> None:
    """Reserve nothing: what comes before a file is small, and stays in memory."""
