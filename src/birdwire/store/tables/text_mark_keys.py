"""The key under which the texts of posts are marked, encrypted, as the one row of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Column, LargeBinary, String, Table, select

from birdwire.store.schema import Instant, insert, metadata

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

text_mark_keys = Table(
    "text_mark_keys",
    metadata,
    Column("name", String, primary_key=True),
    Column("key_ct", LargeBinary, nullable=False),
    Column("created_at", Instant, nullable=False),
)


async def find(connection: AsyncConnection, name: str) -> bytes | None:
    """Return a key as it is stored, encrypted."""
    query = select(text_mark_keys.c.key_ct).where(text_mark_keys.c.name == name)
    key_ct: bytes | None = (await connection.execute(query)).scalar()
    return key_ct


async def add(connection: AsyncConnection, name: str, key_ct: bytes, at: datetime) -> None:
    """Store a key; one that is already stored stays."""
    query = insert(connection, text_mark_keys).values(name=name, key_ct=key_ct, created_at=at)
    await connection.execute(query.on_conflict_do_nothing(index_elements=["name"]))
