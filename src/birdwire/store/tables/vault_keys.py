"""Which vault keys sealed something in this database, as rows: enough to tell a wrong or missing key at start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Column, LargeBinary, RowMapping, String, Table, delete, insert, select

from birdwire.store.schema import Instant, metadata

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

vault_keys = Table(
    "vault_keys",
    metadata,
    Column("key_id", String, primary_key=True),
    Column("proof_ct", LargeBinary, nullable=False),
    Column("created_at", Instant, nullable=False),
)


async def list_all(connection: AsyncConnection) -> Sequence[RowMapping]:
    """Every key that sealed something and was not retired."""
    return (await connection.execute(select(vault_keys))).mappings().all()


async def add(connection: AsyncConnection, row: Mapping[str, object]) -> None:
    """A key's first use here."""
    await connection.execute(insert(vault_keys).values(row))


async def remove(connection: AsyncConnection, key_id: str) -> None:
    """A key that seals nothing here any more."""
    await connection.execute(delete(vault_keys).where(vault_keys.c.key_id == key_id))
