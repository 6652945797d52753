"""Facts about the whole database that no schema version states: one row for each fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Column, String, Table, select

from birdwire.store.schema import insert, metadata

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

store_facts = Table(
    "store_facts",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", String, nullable=False),
)

PAIRS_BOUND = "pairs_bound"
"""Since when (RFC 3339) every pair of X tokens has been encrypted in form 2."""


async def known(connection: AsyncConnection, name: str) -> bool:
    """Return whether a fact is stored."""
    return (await connection.execute(select(store_facts.c.name).where(store_facts.c.name == name))).first() is not None


async def state(connection: AsyncConnection, name: str, value: str) -> None:
    """Store a fact; a value that is already stored stays."""
    query = insert(connection, store_facts).values(name=name, value=value)
    await connection.execute(query.on_conflict_do_nothing(index_elements=["name"]))
