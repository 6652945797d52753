"""Images that a key uploads before it posts them: kept, so that the person who is asked about the post sees them.

Most callers upload first, and the call that a person is asked about has media ids alone.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from birdwire.gateway.guardrails import asking
from birdwire.gateway.guardrails.policy import may_ask
from birdwire.store.database import StorageDownError
from birdwire.store.tables import api_keys, approvals
from birdwire.store.tables import kept_images as store
from birdwire.x.catalog import media
from birdwire.x.catalog.media import Attached

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.api.forms import Part
    from birdwire.gateway.guardrails.policy import Policy
    from birdwire.outcomes.approval_records import ApprovalRecords
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database
    from birdwire.store.tables.kept_images import KeptImage

POSTING: Final = "post_twitter"
"""The operation that takes media ids."""

MAX_UPLOADED_BYTES: Final = asking.MAX_KEPT_BYTES // 2
"""Bytes of the uploads that are kept for one key. The other half remains for the images of writes that wait."""


class KeptImages:
    """The images of one database that keys uploaded."""

    def __init__(self, database: Database, records: ApprovalRecords, clock: Clock) -> None:
        self._database = database
        self._records = records
        self._clock = clock

    async def keep(self, key_id: str, policies: Sequence[Policy], file: Part, data: Mapping[str, Any]) -> None:
        """Keep an uploaded image until X deletes it, if its key's policies may ask about posts.

        `data` is the answer to the upload. The key's oldest uploads make room for it. If there is no room, or the
        database does not answer, it is not kept.
        """
        if file.size > asking.MAX_IMAGE_BYTES or not may_ask(policies, POSTING):
            return
        media_type = media.kind_of(file).media_type
        if media_type not in asking.SHOWN_TYPES:
            return
        media_id, until = Attached.of(data)
        content = await file.read(file.size)
        blob = await asyncio.to_thread(self._records.seal_upload, key_id, media_id, content)
        row = {"key_id": key_id, "media_id": media_id, "media_type": media_type, "size": file.size, "blob_ct": blob}
        row |= {"sha256": file.digest.hex(), "until": until}
        try:
            async with self._database.write() as connection:
                if not await api_keys.hold(connection, key_id):
                    return
                shared = asking.MAX_KEPT_BYTES - await approvals.bytes_kept(connection, key_id)
                others = min(MAX_UPLOADED_BYTES, shared) - len(blob)
                if others >= 0:
                    await store.drop_oldest(connection, key_id, others)
                    await store.add(connection, row)
        except StorageDownError:
            # X has the file, and the upload has succeeded. The person sees its media id.
            return

    async def room(self, connection: AsyncConnection, key_id: str) -> int:
        """Return how many more bytes of images may be kept for a key, whose row is locked."""
        taken = await approvals.bytes_kept(connection, key_id) + await store.bytes_kept(connection, key_id)
        return asking.MAX_KEPT_BYTES - taken

    async def of_post(self, connection: AsyncConnection, key_id: str, media_ids: Sequence[str]) -> list[KeptImage]:
        """Return those of a post's files that its key uploaded and that are kept, in the order of their ids."""
        kept = await store.of_key(connection, key_id, media_ids, self._clock.now())
        return [kept[one] for one in media_ids if one in kept]

    async def shown(self, request_id: str, first: int, images: Sequence[KeptImage]) -> list[tuple[int, bytes]]:
        """Return images of a write, encrypted for it, numbered from `first`; without those that cannot be decrypted."""
        copies = []
        for number, image in enumerate(images, first):
            # Several MiB take milliseconds, in which no other call may have to wait.
            blob = await asyncio.to_thread(self._copy, request_id, number, image)
            if blob is not None:
                copies.append((number, blob))
        return copies

    def _copy(self, request_id: str, number: int, image: KeptImage) -> bytes | None:
        content = self._records.open_upload(image.key_id, image.media_id, image.blob_ct)
        return None if content is None else self._records.seal_file(request_id, number, content)


def described(image: KeptImage) -> dict[str, Any]:
    """Return what a payload states about an uploaded file."""
    return {"media_id": image.media_id, "sha256": image.sha256, "size": image.size, "type": image.media_type}
