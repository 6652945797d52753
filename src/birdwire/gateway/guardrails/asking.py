"""What a person is asked: the write that waits, the images that are shown with it, and until when it may be sent."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from birdwire.api.errors import GatewayError
from birdwire.runtime.clock import rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from birdwire.api.forms import Part
    from birdwire.gateway.guardrails.decision import Decision
    from birdwire.store.tables.journal import JournalRow
    from birdwire.x.catalog.media import Attached

MEDIA_MARGIN: Final = timedelta(minutes=5)
"""How long before X deletes a file of a post its approval ends."""

MIN_TIME: Final = timedelta(minutes=5)
"""The shortest time that a person gets to decide."""

SHOWN_TYPES: Final = frozenset({"image/jpeg", "image/png", "image/webp", "image/gif"})
"""The types of files that can be shown to a person."""

MAX_IMAGE_BYTES: Final = 5 << 20
MAX_KEPT_BYTES: Final = 50 << 20
"""Bytes of the images that are kept for one key: of all its waiting writes, and of its uploads."""


def asked_about(decision: Decision) -> list[Mapping[str, Any]]:
    """Return the findings that ask for a person's approval, as they are shown."""
    return [one.document() for one in decision.findings if one.outcome == "require_approval"]


def given_media_ids(fields: Mapping[str, Any]) -> list[str]:
    """Return the ids of files that the caller uploaded before, each once."""
    media = fields.get("media")
    ids = media.get("media_ids") if isinstance(media, dict) else None
    return list(dict.fromkeys(str(one) for one in ids or ()))


def media_until(attached: Iterable[Attached], uploads: Iterable[JournalRow], now: datetime) -> datetime | None:
    """Return when the approval of a post must end because of its files: those of the call, and earlier uploads.

    Raises:
        GatewayError: approval_expired: X deletes a file too soon for a person to decide.
    """
    ends = [one.expires_at for one in attached]
    ends += [datetime.fromisoformat(row.data["expires_at"]) for row in uploads if row.data and "expires_at" in row.data]
    if not ends:
        return None
    first = min(ends)
    if first - MEDIA_MARGIN < now + MIN_TIME:
        detail = f"X deletes a file of the post at {rfc3339(first)}, too soon for a person to decide"
        raise GatewayError("approval_expired", detail=detail)
    return first - MEDIA_MARGIN


async def shown_images(
    files: Sequence[Part], described: Sequence[Mapping[str, Any]], seal: Callable[[int, bytes], bytes]
) -> list[tuple[int, bytes]]:
    """Return the images that can be shown to a person, by their place among the files, encrypted."""
    sealed = []
    for number, (file, about) in enumerate(zip(files, described, strict=True)):
        if about["type"] in SHOWN_TYPES and file.size <= MAX_IMAGE_BYTES:
            file.file.seek(0)
            data = await file.read(file.size)
            # An image of some MiB takes milliseconds, in which no other call may have to wait.
            sealed.append((number, await asyncio.to_thread(seal, number, data)))
    return sealed
