"""What X recently allowed an X app to do, and which refusals a key's own calls met, as rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Column, String, Table, select

from birdwire.store.schema import Instant, insert, metadata

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

capabilities = Table(
    "capabilities",
    metadata,
    Column("client_id", String, primary_key=True),
    Column("operation", String, primary_key=True),
    Column("allowed_at", Instant),
    Column("refused_at", Instant),
    Column("reason", String),
)

refusals_met = Table(
    "refusals_met",
    metadata,
    Column("key_id", String, primary_key=True),
    Column("client_id", String, primary_key=True),
    Column("operation", String, primary_key=True),
    Column("reason", String, nullable=False),
    Column("met_at", Instant, nullable=False),
)
"""Which key's own calls met a refusal of the X app. met_at: when the refusal was last stored."""


@dataclass(frozen=True, slots=True)
class CapabilityRow:
    """A row of `capabilities`, with its columns in their order."""

    client_id: str
    operation: str
    allowed_at: datetime | None
    refused_at: datetime | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class RefusalMetRow:
    """A row of `refusals_met`, with its columns in their order."""

    key_id: str
    client_id: str
    operation: str
    reason: str
    met_at: datetime


async def of_app(connection: AsyncConnection, client_id: str) -> list[CapabilityRow]:
    """Return every operation whose status is stored for an X app."""
    query = select(capabilities).where(capabilities.c.client_id == client_id)
    return [CapabilityRow(*row) for row in await connection.execute(query)]


async def hold(connection: AsyncConnection, client_id: str, operation: str) -> CapabilityRow:
    """Lock the row of an operation until the transaction ends, and return it; a new one has no status yet."""
    same = {"client_id": client_id, "operation": operation}
    await connection.execute(insert(connection, capabilities).values(same).on_conflict_do_nothing())
    query = select(capabilities).where(*(capabilities.c[name] == value for name, value in same.items()))
    return CapabilityRow(*(await connection.execute(query.with_for_update())).one())


async def put(
    connection: AsyncConnection,
    client_id: str,
    operation: str,
    allowed_at: datetime | None,
    refused_at: datetime | None,
    reason: str | None,
) -> None:
    """Store the newest status of an operation."""
    status = {"allowed_at": allowed_at, "refused_at": refused_at, "reason": reason}
    query = insert(connection, capabilities).values(client_id=client_id, operation=operation, **status)
    await connection.execute(query.on_conflict_do_update(index_elements=["client_id", "operation"], set_=status))


async def met_by(connection: AsyncConnection, key_id: str, client_id: str) -> list[RefusalMetRow]:
    """Return the refusals that a key's calls met."""
    query = select(refusals_met).where(refusals_met.c.key_id == key_id, refusals_met.c.client_id == client_id)
    return [RefusalMetRow(*row) for row in await connection.execute(query)]


async def put_met(
    connection: AsyncConnection, key_id: str, client_id: str, operation: str, reason: str, met_at: datetime
) -> None:
    """Store the newest refusal that a key's call of an operation met."""
    keys = {"key_id": key_id, "client_id": client_id, "operation": operation}
    refusal = {"reason": reason, "met_at": met_at}
    query = insert(connection, refusals_met).values(**keys, **refusal)
    await connection.execute(query.on_conflict_do_update(index_elements=list(keys), set_=refusal))
