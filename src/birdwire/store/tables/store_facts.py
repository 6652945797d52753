"""What is true of the whole database and no schema version states: one row a fact."""

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
"""Since when (RFC 3339) every pair of X tokens is sealed in form 2."""


async def known(connection: AsyncConnection, name: str) -> bool:
    """Return whether a fact is there."""
    return (await connection.execute(select(store_facts.c.name).where(store_facts.c.name == name))).first() is not None


async def state(connection: AsyncConnection, name: str, value: str) -> None:
    """Add a fact; the first value stays."""
    query = insert(connection, store_facts).values(name=name, value=value)
    await connection.execute(query.on_conflict_do_nothing(index_elements=["name"]))
