"""Which gateway processes run, as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Column, String, Table, delete, select

from birdwire.store.schema import Instant, insert, metadata

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

processes = Table(
    "processes",
    metadata,
    Column("owner", String, primary_key=True),
    Column("alive_until", Instant, nullable=False),
)


async def beat(connection: AsyncConnection, owner: str, until: datetime) -> None:
    """A process says that it runs until a moment at least."""
    row = {"owner": owner, "alive_until": until}
    query = insert(connection, processes).values(row)
    await connection.execute(query.on_conflict_do_update(index_elements=["owner"], set_={"alive_until": until}))


async def alive(connection: AsyncConnection, owner: str, now: datetime) -> bool:
    """Whether a process said that it would still run now."""
    query = select(processes.c.owner).where(processes.c.owner == owner, processes.c.alive_until > now)
    return (await connection.execute(query)).first() is not None


async def remove(connection: AsyncConnection, owner: str) -> None:
    """A process has ended."""
    await connection.execute(delete(processes).where(processes.c.owner == owner))


async def forget(connection: AsyncConnection, before: datetime) -> None:
    """Drop the processes that were alive until before a moment."""
    await connection.execute(delete(processes).where(processes.c.alive_until < before))


async def only(connection: AsyncConnection, owner: str) -> None:
    """Drop every process but one."""
    await connection.execute(delete(processes).where(processes.c.owner != owner))
