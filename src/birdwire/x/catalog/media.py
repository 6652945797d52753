"""Uploads of media to X: checked first, sent in parts of at most 1 MiB, then polled until X has processed them."""

from __future__ import annotations

import asyncio
import math
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from birdwire.api import relay_dialect
from birdwire.api.errors import GatewayError, excerpt
from birdwire.api.forms import FILE_FIELDS
from birdwire.runtime.clock import rfc3339
from birdwire.x.client.requests import ID_PATTERN, Ask, Reading, XData, XRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from birdwire.api.forms import Part
    from birdwire.runtime.clock import Clock
    from birdwire.x.catalog.operations import Operation

CHUNK_BYTES = 1 << 20
MAX_SEGMENTS = 1_000
PROCESSING_DEADLINE_S = 60.0
MAX_KEPT_S = 366 * 86_400
ENDPOINTS = (
    "POST /2/media/upload/initialize",
    "POST /2/media/upload/{id}/append",
    "POST /2/media/upload/{id}/finalize",
    "GET /2/media/upload",
)
"""X's endpoints that one upload calls, in their order."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file, recognized by its first bytes. Sizes are X's (media best practices)."""

    media_type: str
    category: Literal["tweet_image", "tweet_gif", "tweet_video"]
    offset: int
    magic: bytes
    max_bytes: int


_IMAGE, _GIF, _VIDEO = 5 << 20, 15 << 20, 512 << 20

KINDS = (
    Kind("image/jpeg", "tweet_image", 0, b"\xff\xd8\xff", _IMAGE),
    Kind("image/png", "tweet_image", 0, b"\x89PNG\r\n\x1a\n", _IMAGE),
    Kind("image/webp", "tweet_image", 8, b"WEBP", _IMAGE),
    Kind("image/bmp", "tweet_image", 0, b"BM", _IMAGE),
    Kind("image/tiff", "tweet_image", 0, b"II*\x00", _IMAGE),
    Kind("image/tiff", "tweet_image", 0, b"MM\x00*", _IMAGE),
    Kind("image/gif", "tweet_gif", 0, b"GIF8", _GIF),
    Kind("video/quicktime", "tweet_video", 4, b"ftypqt", _VIDEO),
    Kind("video/mp4", "tweet_video", 4, b"ftyp", _VIDEO),
    Kind("video/webm", "tweet_video", 0, b"\x1a\x45\xdf\xa3", _VIDEO),
    Kind("video/mp2t", "tweet_video", 0, b"\x47", _VIDEO),
)
"""The first kind that matches decides."""


class Attached(NamedTuple):
    """A file that X has for a post, and until when X keeps it."""

    media_id: str
    expires_at: datetime

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Attached:
        """Return the file of an answer of upload_media."""
        return cls(data["media_id"], datetime.fromisoformat(data["expires_at"]))


class _Processing(XData):
    """The state of X's processing of a file."""

    state: str
    check_after_secs: int = 1
    error: dict[str, Any] | None = None


class _Medium(XData):
    """X's description of an uploaded file."""

    id: str = Field(pattern=ID_PATTERN)
    media_key: str = ""
    expires_after_secs: int = 86_400
    processing_info: _Processing | None = None


class _Appended(XData):
    """X's description of an uploaded part; every member is optional."""


def kind_of(part: Part) -> Kind:
    """Return the kind of a file, if X accepts it, before a call is spent on it.

    Raises:
        GatewayError: media_files_malformed, media_too_large.
    """
    # A file that has been uploaded is at its end.
    part.file.seek(0)
    head = part.file.read(32)
    part.file.seek(0)
    kind = next((kind for kind in KINDS if head[kind.offset :].startswith(kind.magic)), None)
    if kind is None:
        detail = (
            "it is empty" if not part.size else "it is not a JPEG, PNG, WebP, BMP, TIFF, GIF, MP4, MOV, WebM or TS file"
        )
        raise GatewayError("media_files_malformed", detail=detail, wanted="an image, a GIF or a video")
    if part.size > kind.max_bytes:
        raise GatewayError("media_too_large", kind=kind.media_type, limit=kind.max_bytes >> 20)
    return kind


async def upload(part: Part, ask: Ask, clock: Clock) -> dict[str, Any]:
    """Upload one file, and return the answer of upload_media.

    Raises:
        GatewayError: the file is not ready to be attached, with the reason.
    """
    kind = kind_of(part)
    about = {"media_type": kind.media_type, "media_category": kind.category, "total_bytes": part.size}
    request = XRequest("POST", "/2/media/upload/initialize", about, endpoint=ENDPOINTS[0])
    started = _Medium.model_validate(await ask(request, Reading(_Medium)))
    segments = math.ceil(part.size / CHUNK_BYTES)
    if segments > MAX_SEGMENTS:
        raise GatewayError("media_too_large", kind=kind.media_type, limit=MAX_SEGMENTS)
    for index in range(segments):
        content_type, content = _form(index, await part.read(CHUNK_BYTES))
        path = f"/2/media/upload/{started.id}/append"
        request = XRequest("POST", path, content=content, content_type=content_type, endpoint=ENDPOINTS[1])
        await ask(request, Reading(_Appended, bare=True))
    request = XRequest("POST", f"/2/media/upload/{started.id}/finalize", endpoint=ENDPOINTS[2])
    finished = await ask(request, Reading(_Medium))
    medium = await _processed(_Medium.model_validate(finished), ask, clock)
    expires_at = clock.now() + timedelta(seconds=min(MAX_KEPT_S, max(0, medium.expires_after_secs)))
    return {
        "media_id": medium.id,
        "media_key": medium.media_key or started.media_key,
        "expires_at": rfc3339(expires_at),
    }


async def _processed(medium: _Medium, ask: Ask, clock: Clock) -> _Medium:
    """Poll until X has processed the file, at the intervals that X asks for, within the deadline."""
    ends_at = clock.monotonic() + PROCESSING_DEADLINE_S
    status = XRequest("GET", f"/2/media/upload?command=STATUS&media_id={medium.id}", endpoint=ENDPOINTS[3])
    while (info := medium.processing_info) is not None and info.state != "succeeded":
        if info.state == "failed":
            words = (info.error or {}).get("message") or (info.error or {}).get("name") or "it could not be processed"
            raise GatewayError("media_rejected", message=excerpt(words, 200))
        pause_s = min(10.0, max(0.5, info.check_after_secs))
        if clock.monotonic() + pause_s >= ends_at:
            raise GatewayError("x_timeout", outcome="unknown")
        await asyncio.sleep(pause_s)
        medium = _Medium.model_validate(await ask(status, Reading(_Medium)))
    return medium


def _form(index: int, chunk: bytes) -> tuple[str, bytes]:
    """Return one part of the file as multipart/form-data (RFC 7578)."""
    boundary = secrets.token_hex(16)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="segment_index"\r\n\r\n{index}\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="media"; filename="media"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return f"multipart/form-data; boundary={boundary}", head.encode() + chunk + f"\r\n--{boundary}--\r\n".encode()


def fields_of(operation: Operation, fields: Mapping[str, Any], files: Sequence[Part]) -> Mapping[str, Any]:
    """Return the fields of a call; a post's files, which have no media ids yet, count as attached.

    Raises:
        GatewayError: media_files_missing.
    """
    if operation.takes_file and not files:
        raise GatewayError("media_files_missing")
    if files and not operation.takes_file:
        return with_ids(fields, ["0"] * len(files))
    return fields


def check_files(operation: Operation, files: Sequence[Part]) -> None:
    """Check the files that an operation works on, before anything is spent on them.

    Raises:
        GatewayError: unknown_field, media_files_malformed, media_too_large.
    """
    names = FILE_FIELDS if operation.takes_file else (relay_dialect.FILE_PART,)
    stray = next((file.name for file in files if file.name not in names), None)
    if stray is not None or (files and not operation.takes_file and "media" not in operation.body.model_fields):
        raise GatewayError("unknown_field", field=excerpt(stray or files[0].name), known=", ".join(names))
    if operation.takes_file and len(files) != 1:
        raise GatewayError(
            "media_files_malformed", detail="the form contains more than one file", wanted="one image, GIF or video"
        )
    for file in files:
        kind_of(file)


def with_ids(fields: Mapping[str, Any], media_ids: Sequence[str]) -> Mapping[str, Any]:
    """Return the fields of a post with more media attached; without media ids, the fields as they are."""
    if not media_ids:
        return fields
    given = fields.get("media")
    before = given if isinstance(given, dict) else {}
    return {**fields, "media": {**before, "media_ids": [*before.get("media_ids", []), *media_ids]}}
