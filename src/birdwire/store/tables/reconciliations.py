"""Claims on the reconciliation of an account's lost posts, as rows: one process at a time holds one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Column, Index, String, Table, delete, update

from birdwire.store.schema import Instant, insert, metadata

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

lookings = Table(
    "lookings",
    metadata,
    Column("user_id", String, primary_key=True),
    Column("until", Instant, nullable=False),
    Index("lookings_end", "until"),
)


async def claim(connection: AsyncConnection, user_id: str, now: datetime, until: datetime) -> bool:
    """Claim an account until a moment, unless another claim has not expired; return whether the claim was granted."""
    free = (lookings.c.user_id == user_id, lookings.c.until <= now)
    if (await connection.execute(update(lookings).where(*free).values(until=until))).rowcount == 1:
        return True
    first = insert(connection, lookings).values(user_id=user_id, until=until).on_conflict_do_nothing()
    return (await connection.execute(first)).rowcount == 1


async def release(connection: AsyncConnection, user_id: str, until: datetime) -> None:
    """End a claim; the next may start at a moment."""
    await connection.execute(update(lookings).where(lookings.c.user_id == user_id).values(until=until))


async def purge(connection: AsyncConnection, before: datetime) -> None:
    """Delete the claims that expired before a moment."""
    await connection.execute(delete(lookings).where(lookings.c.until < before))
