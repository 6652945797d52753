"""What was asked of X and what became of it, as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Column, Index, Integer, RowMapping, String, Table, insert, select

from birdwire.store.db import Instant, metadata

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

journal = Table(
    "journal",
    metadata,
    Column("request_id", String, primary_key=True),
    Column("key_id", String, nullable=False),
    Column("user_id", String, nullable=False),
    Column("operation", String, nullable=False),
    Column("target", String),
    Column("state", String, nullable=False),
    Column("status", Integer, nullable=False),
    Column("reason", String),
    Column("created_at", Instant, nullable=False),
    Column("settled_at", Instant, nullable=False),
    Index("journal_key", "key_id", "created_at"),
)


async def add(connection: AsyncConnection, row: Mapping[str, object]) -> None:
    """One write that was asked of X."""
    await connection.execute(insert(journal).values(row))


async def of_key(connection: AsyncConnection, key_id: str, limit: int) -> Sequence[RowMapping]:
    """A key's newest rows."""
    query = select(journal).where(journal.c.key_id == key_id).order_by(journal.c.created_at.desc()).limit(limit)
    return (await connection.execute(query)).mappings().all()
