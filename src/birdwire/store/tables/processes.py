"""Leases of the gateway processes of one database, as rows."""

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
    Column("address", String),
)
"""address: the URL that the process serves, without a path; null until it serves."""


async def renew(connection: AsyncConnection, owner: str, until: datetime, address: str | None = None) -> None:
    """Renew the lease of a process, which serves at `address` if that is known."""
    renewed = {"alive_until": until, "address": address}
    query = insert(connection, processes).values({"owner": owner, **renewed})
    await connection.execute(query.on_conflict_do_update(index_elements=["owner"], set_=renewed))


async def any_alive(connection: AsyncConnection, now: datetime) -> bool:
    """Return whether any gateway process holds a lease that has not expired."""
    return (
        await connection.execute(select(processes.c.owner).where(processes.c.alive_until > now).limit(1))
    ).first() is not None


async def address(connection: AsyncConnection, now: datetime) -> str | None:
    """Return the URL that a living process serves, the one that renewed its lease last; None if there is none."""
    living = (processes.c.alive_until > now, processes.c.address.is_not(None))
    query = select(processes.c.address).where(*living).order_by(processes.c.alive_until.desc())
    return (await connection.execute(query.limit(1))).scalar()


async def alive(connection: AsyncConnection, owner: str, now: datetime) -> bool:
    """Return whether a process holds a lease that has not expired."""
    query = select(processes.c.owner).where(processes.c.owner == owner, processes.c.alive_until > now)
    return (await connection.execute(query)).first() is not None


async def remove(connection: AsyncConnection, owner: str) -> None:
    """Delete the lease of a process that ends."""
    await connection.execute(delete(processes).where(processes.c.owner == owner))


async def purge(connection: AsyncConnection, before: datetime) -> None:
    """Delete the leases that expired before a moment."""
    await connection.execute(delete(processes).where(processes.c.alive_until < before))


async def remove_others(connection: AsyncConnection, owner: str) -> None:
    """Delete the leases of all processes except one."""
    await connection.execute(delete(processes).where(processes.c.owner != owner))
