"""Who looks for an account's lost posts: one process at a time, as rows."""

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
    """Look for an account's posts until a moment, if nobody does now; whether it is the caller's turn."""
    free = (lookings.c.user_id == user_id, lookings.c.until <= now)
    if (await connection.execute(update(lookings).where(*free).values(until=until))).rowcount == 1:
        return True
    first = insert(connection, lookings).values(user_id=user_id, until=until).on_conflict_do_nothing()
    return (await connection.execute(first)).rowcount == 1


async def release(connection: AsyncConnection, user_id: str, until: datetime) -> None:
    """The look is over; the next may begin at a moment."""
    await connection.execute(update(lookings).where(lookings.c.user_id == user_id).values(until=until))


async def forget(connection: AsyncConnection, before: datetime) -> None:
    """Drop the accounts that nobody has looked at since before a moment."""
    await connection.execute(delete(lookings).where(lookings.c.until < before))
