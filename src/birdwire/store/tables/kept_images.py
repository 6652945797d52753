"""Images that keys uploaded, kept while X has them: a post that uses one may need a person, who then sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import Column, Index, Integer, LargeBinary, String, Table, bindparam, delete, func, insert, select

from birdwire.store.schema import Instant, metadata

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

kept_images = Table(
    "kept_images",
    metadata,
    Column("key_id", String, primary_key=True),
    Column("media_id", String, primary_key=True),
    Column("media_type", String, nullable=False),
    Column("size", Integer, nullable=False),
    Column("sha256", String, nullable=False),
    Column("blob_ct", LargeBinary, nullable=False),
    Column("until", Instant, nullable=False),
    Index("kept_images_until", "until"),
)
"""blob_ct: the image, encrypted. until: when X deletes it; then it is deleted here, too."""

_DROPPED_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class KeptImage:
    """A row of `kept_images`, with its columns in their order."""

    key_id: str
    media_id: str
    media_type: str
    size: int
    sha256: str
    blob_ct: bytes = field(repr=False)
    until: datetime


async def add(connection: AsyncConnection, row: Mapping[str, object]) -> None:
    """Insert an image, in place of an earlier one with its media id."""
    same = (kept_images.c.key_id == row["key_id"], kept_images.c.media_id == row["media_id"])
    await connection.execute(delete(kept_images).where(*same))
    await connection.execute(insert(kept_images).values(row))


async def drop_oldest(connection: AsyncConnection, key_id: str, room: int) -> None:
    """Delete those images of a key, the oldest first, that do not fit into this many bytes together."""
    excess, of_this = await bytes_kept(connection, key_id) - room, kept_images.c.key_id == key_id
    oldest = select(kept_images.c.media_id, func.length(kept_images.c.blob_ct)).where(of_this)
    oldest = oldest.order_by(kept_images.c.until, kept_images.c.media_id).limit(_DROPPED_AT_ONCE)
    while excess > 0:
        dropped = []
        for media_id, size in await connection.execute(oldest):
            if excess > 0:
                dropped.append(media_id)
                excess -= size
        await connection.execute(delete(kept_images).where(of_this, kept_images.c.media_id.in_(dropped)))


async def of_key(
    connection: AsyncConnection, key_id: str, media_ids: Collection[str], now: datetime
) -> dict[str, KeptImage]:
    """Return those of these files that a key uploaded and that are kept, by their media ids."""
    if not media_ids:
        return {}
    wanted = (kept_images.c.key_id == key_id, kept_images.c.media_id.in_(media_ids), kept_images.c.until > now)
    rows = await connection.execute(select(kept_images).where(*wanted))
    return {row.media_id: KeptImage(*row) for row in rows}


async def bytes_kept(connection: AsyncConnection, key_id: str) -> int:
    """Return how many bytes the images that a key uploaded take up."""
    query = select(func.coalesce(func.sum(func.length(kept_images.c.blob_ct)), 0))
    return int((await connection.execute(query.where(kept_images.c.key_id == key_id))).scalar_one())


async def any_ended(connection: AsyncConnection, now: datetime) -> bool:
    """Return whether X has deleted an image that is still kept."""
    return (
        await connection.execute(select(kept_images.c.media_id).where(kept_images.c.until <= now).limit(1))
    ).first() is not None


async def purge(connection: AsyncConnection, now: datetime, limit: int) -> int:
    """Delete up to `limit` images that X has deleted; return how many."""
    ended, keys = kept_images.c.until <= now, (kept_images.c.key_id, kept_images.c.media_id)
    found = sorted(map(tuple, await connection.execute(select(*keys).where(ended).limit(limit))))
    rows = [{"of_key_id": key_id, "of_media_id": media_id} for key_id, media_id in found]
    if rows:
        same = (kept_images.c.key_id == bindparam("of_key_id"), kept_images.c.media_id == bindparam("of_media_id"))
        await connection.execute(delete(kept_images).where(*same, ended), rows)
    return len(rows)
