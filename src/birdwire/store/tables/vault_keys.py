"""Which vault keys encrypted something in this database, as rows: enough to detect a wrong or missing key at start."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import Column, LargeBinary, String, Table, delete, insert, select

from birdwire.store.schema import Instant, metadata

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

vault_keys = Table(
    "vault_keys",
    metadata,
    Column("key_id", String, primary_key=True),
    Column("proof_ct", LargeBinary, nullable=False),
    Column("created_at", Instant, nullable=False),
)


@dataclass(frozen=True, slots=True)
class VaultKeyRow:
    """A row of `vault_keys`, with its columns in their order."""

    key_id: str
    proof_ct: bytes = field(repr=False)
    created_at: datetime


async def list_all(connection: AsyncConnection) -> list[VaultKeyRow]:
    """Return every key that encrypted something and was not retired."""
    return [VaultKeyRow(*row) for row in await connection.execute(select(vault_keys))]


async def add(connection: AsyncConnection, row: Mapping[str, object]) -> None:
    """Insert a key at its first use in this database."""
    await connection.execute(insert(vault_keys).values(row))


async def remove(connection: AsyncConnection, key_id: str) -> None:
    """Delete a key that no longer encrypts anything in this database."""
    await connection.execute(delete(vault_keys).where(vault_keys.c.key_id == key_id))
