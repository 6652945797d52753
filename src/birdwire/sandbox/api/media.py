"""Uploads, whole or in segments, and their processing until a post can use them. Counts bytes and stores none."""

from __future__ import annotations

import binascii
import logging
from base64 import b64decode
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from python_multipart.multipart import Field, File, FormParser, parse_options_header

from birdwire.sandbox.api.dispatcher import ID, Call, Endpoint, parse_json, read_bounded
from birdwire.sandbox.api.errors import Answer, invalid
from birdwire.sandbox.state.world import Media

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

    from birdwire.sandbox.state.simulator import Simulator
    from birdwire.sandbox.state.world import User

SCOPES = "media.write"
# The largest whole upload, encoded as base64 in JSON.
UPLOAD_BYTES = 24 * 1024 * 1024
# 15 days, as in X's own example.
LIFETIME_S = 1_295_999
LAST_SEGMENT = 999
MEGABYTE = 1_000_000
MULTIPART = b"multipart/form-data"
PARTS = 10
# The parser would log callers' bytes to standard error.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL + 1)
# The body is bounded, so its parts can stay in memory.
IN_MEMORY = {"MAX_MEMORY_FILE_SIZE": UPLOAD_BYTES}


@dataclass(frozen=True)
class Kind:
    """A media category: its media types, maximum size, and the prefix of its media keys."""

    types: frozenset[str]
    most_bytes: int
    prefix: str
    processed_at_once: bool = False


_IMAGES = frozenset(f"image/{name}" for name in ("jpeg", "bmp", "png", "webp", "pjpeg", "tiff"))
_VIDEOS = frozenset({"video/mp4", "video/webm", "video/mp2t", "video/quicktime"})
_IMAGE = Kind(_IMAGES, 5 * MEGABYTE, "3", processed_at_once=True)
_GIF = Kind(frozenset({"image/gif"}), 15 * MEGABYTE, "16")
_VIDEO = Kind(_VIDEOS, 512 * MEGABYTE, "13")
KINDS = {
    "tweet_image": _IMAGE,
    "dm_image": _IMAGE,
    "tweet_gif": _GIF,
    "dm_gif": _GIF,
    "tweet_video": _VIDEO,
    "amplify_video": _VIDEO,
    "dm_video": _VIDEO,
    "subtitles": Kind(frozenset({"text/srt", "text/vtt"}), MEGABYTE, "7", processed_at_once=True),
}


def initialize(platform: Simulator, call: Call) -> Answer:
    """POST /2/media/upload/initialize."""
    category = call.body.get("media_category", "tweet_image")
    media_type, size = call.body.get("media_type"), call.body.get("total_bytes")
    kind = _kind(category)
    if media_type not in kind.types:
        raise invalid(f"The media_type does not fit the media_category [{category}]")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= kind.most_bytes:
        raise invalid(f"The total_bytes must be 1 to {kind.most_bytes} for the media_category [{category}]")
    media = _new(platform, call, kind, size)
    platform.uploads.open(media.id)
    return Answer(200, {"data": _data(platform, media)})


def append(platform: Simulator, call: Call) -> Answer:
    """POST /2/media/upload/{id}/append: a segment, in any order; a segment may be repeated."""
    media = _own(platform, call.viewer, call.ids["id"])
    content, index = _content(call.body), call.body.get("segment_index")
    if isinstance(index, str) and index.isascii() and index.isdecimal() and len(index) <= len(str(LAST_SEGMENT)):
        index = int(index)
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index <= LAST_SEGMENT:
        raise invalid(f"The segment_index must be 0 to {LAST_SEGMENT}")
    if not content or len(content) > media.total_bytes:
        raise invalid("The segment is empty or larger than the upload")
    if not platform.uploads.put(media.id, index, len(content)):
        raise invalid("The upload is not open for segments", id=media.id)
    return Answer(200, {"data": {"expires_at": int(media.expires_at.timestamp())}})


def finalize(platform: Simulator, call: Call) -> Answer:
    """POST /2/media/upload/{id}/finalize. Requires all segments; a repeated call returns the same answer."""
    media = _own(platform, call.viewer, call.ids["id"])
    if media.finalized_at is None:
        if not platform.uploads.close(media.id, media.total_bytes):
            raise invalid("Segments do not add up to provided total file size.", id=media.id)
        media.finalized_at = platform.clock.now()
    return Answer(200, {"data": _data(platform, media)})


def status(platform: Simulator, call: Call) -> Answer:
    """GET /2/media/upload?command=STATUS&media_id=."""
    media_id = call.query.get("media_id", "")
    if not ID.fullmatch(media_id) or call.query.get("command", "STATUS") != "STATUS":
        raise invalid("The `media_id` query parameter value is not valid", media_id=media_id)
    return Answer(200, {"data": _data(platform, _own(platform, call.viewer, media_id))})


def upload(platform: Simulator, call: Call) -> Answer:
    """POST /2/media/upload: a whole upload in one request."""
    kind, content = _kind(call.body.get("media_category")), _content(call.body)
    if not 0 < len(content) <= kind.most_bytes:
        raise invalid(f"The media must have 1 to {kind.most_bytes} bytes")
    if call.body.get("media_type", next(iter(kind.types))) not in kind.types:
        raise invalid("The media_type does not fit the media_category")
    media = _new(platform, call, kind, len(content))
    media.finalized_at = platform.clock.now()
    return Answer(200, {"data": _data(platform, media)})


def attachable(platform: Simulator, viewer: User, media_ids: Sequence[str]) -> bool:
    """Check that one post can use these: the user's own, processed, not expired; four photos, one GIF or one video."""
    found = [platform.world.media.get(media_id) for media_id in media_ids]
    now = platform.clock.now()
    for media in found:
        if media is None or viewer.id not in media.owner_ids or media.expires_at <= now:
            return False
        if not media.category.startswith(("tweet_", "amplify_")) or _state(platform, media) != "succeeded":
            return False
    photos = sum(media is not None and media.category == "tweet_image" for media in found)
    return len(set(media_ids)) == len(found) and (photos == len(found) or len(found) == 1)


def _kind(category: Any) -> Kind:
    if not isinstance(category, str) or category not in KINDS:
        raise invalid(f"The media_category is not one of [{','.join(KINDS)}]")
    return KINDS[category]


def _new(platform: Simulator, call: Call, kind: Kind, size: int) -> Media:
    world, now = platform.world, platform.clock.now()
    owners = call.body.get("additional_owners") or []
    owners = owners.split(",") if isinstance(owners, str) else owners
    if not isinstance(owners, list) or not all(isinstance(owner, str) and ID.fullmatch(owner) for owner in owners):
        raise invalid("The additional_owners must be user ids")
    world.media = {key: one for key, one in world.media.items() if one.expires_at > now}
    media_id = world.new_id(now)
    media = world.media[media_id] = Media(
        id=media_id,
        media_key=f"{kind.prefix}_{media_id}",
        owner_ids=[call.viewer.id, *owners[:100]],
        category=str(call.body.get("media_category", "tweet_image")),
        total_bytes=size,
        created_at=now,
        expires_at=now + timedelta(seconds=LIFETIME_S),
    )
    return media


def _own(platform: Simulator, viewer: User, media_id: str) -> Media:
    """Return the upload; answer with the plain 403 if the account has no such upload."""
    media = platform.world.media.get(media_id)
    if media is None or viewer.id not in media.owner_ids or media.expires_at <= platform.clock.now():
        raise platform.catalogue.refusal("missing-scope")
    return media


def _progress(platform: Simulator, media: Media) -> float:
    """Return the processed fraction, 0 to 1."""
    if media.finalized_at is None:
        return 0.0
    needed_s = 0 if KINDS[media.category].processed_at_once else platform.config.media_processing_s
    gone_s = (platform.clock.now() - media.finalized_at).total_seconds()
    return 1.0 if gone_s >= needed_s else max(0.0, gone_s / needed_s)


def _state(platform: Simulator, media: Media) -> str:
    """Return X's name for the state of the processing."""
    progress = _progress(platform, media)
    if progress >= 1:
        return "succeeded" if KINDS[media.category].processed_at_once else platform.config.media_result
    return "pending" if progress < 1 / 3 else "in_progress"


def _data(platform: Simulator, media: Media) -> dict[str, Any]:
    left_s = int((media.expires_at - platform.clock.now()).total_seconds())
    data: dict[str, Any] = {"id": media.id, "media_key": media.media_key, "expires_after_secs": left_s}
    if media.finalized_at is None:
        return data
    data["size"] = media.total_bytes
    if KINDS[media.category].processed_at_once:
        return data
    info: dict[str, Any] = {"state": _state(platform, media)}
    if info["state"] == "failed":
        info["error"] = {"code": 1, "name": "InvalidMedia", "message": "Unsupported media"}
    elif info["state"] != "succeeded":
        info["check_after_secs"] = 1
    if info["state"] != "pending":
        info["progress_percent"] = int(100 * _progress(platform, media))
    return data | {"processing_info": info}


def _content(body: Any) -> bytes:
    """Return the media's bytes, from a form or as base64 in a JSON body."""
    content = body.get("media")
    if isinstance(content, str):
        try:
            return b64decode(content, validate=True)
        except (binascii.Error, ValueError):
            raise invalid("The media is not base64") from None
    if not isinstance(content, bytes):
        raise invalid("The `media` field can not be empty")
    return content


async def read_media(request: Request) -> dict[str, Any]:
    """Read a multipart form or a JSON object, bounded."""
    raw = await read_bounded(request, UPLOAD_BYTES)
    kind, parameters = parse_options_header(request.headers.get("content-type"))
    return _parts(raw, parameters.get(b"boundary")) if kind == MULTIPART else parse_json(raw)


def _parts(raw: bytes, boundary: bytes | None) -> dict[str, Any]:
    """Return the parts of a multipart form: `media` as bytes, with or without a filename, and all others as text."""
    parts: dict[str, Any] = {}

    def keep(name: bytes | None, content: bytes) -> None:
        if len(parts) == PARTS:
            raise ValueError("too many parts")
        key = (name or b"").decode()
        parts[key] = content if key == "media" else content.decode()

    def on_field(field: Field) -> None:
        keep(field.field_name, field.value or b"")

    def on_file(file: File) -> None:
        file.file_object.seek(0)
        keep(file.field_name, file.file_object.read())

    try:
        parser = FormParser(MULTIPART.decode(), on_field, on_file, boundary=boundary, config=IN_MEMORY)
        parser.write(raw)
        parser.finalize()
    except ValueError:
        raise invalid("The request body is not a form") from None
    return parts


ENDPOINTS = (
    Endpoint(
        "POST",
        "/2/media/upload/initialize",
        SCOPES,
        initialize,
        1875,
        app_per_24h=180_000,
        body=frozenset({"media_type", "media_category", "total_bytes", "shared", "additional_owners"}),
    ),
    Endpoint(
        "POST",
        "/2/media/upload/{id}/append",
        SCOPES,
        append,
        1875,
        app_per_24h=180_000,
        body=frozenset({"media", "segment_index"}),
        read=read_media,
    ),
    Endpoint("POST", "/2/media/upload/{id}/finalize", SCOPES, finalize, 1875, app_per_24h=180_000),
    Endpoint("GET", "/2/media/upload", SCOPES, status, 1000, app_per_24h=100_000),
    Endpoint(
        "POST",
        "/2/media/upload",
        SCOPES,
        upload,
        500,
        app_per_24h=50_000,
        body=frozenset({"media", "media_category", "media_type", "shared", "additional_owners"}),
        read=read_media,
    ),
)
