"""What X lately let an X app do, as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Column, RowMapping, String, Table, select

from birdwire.store.schema import Instant, insert, metadata

if TYPE_CHECKING:
    from collections.abc import Sequence
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


async def of_app(connection: AsyncConnection, client_id: str) -> Sequence[RowMapping]:
    """Everything known of one X app."""
    query = select(capabilities).where(capabilities.c.client_id == client_id)
    return (await connection.execute(query)).mappings().all()


async def put(
    connection: AsyncConnection,
    client_id: str,
    operation: str,
    allowed_at: datetime | None,
    refused_at: datetime | None,
    reason: str | None,
) -> None:
    """The newest word on one operation."""
    word = {"allowed_at": allowed_at, "refused_at": refused_at, "reason": reason}
    query = insert(connection, capabilities).values(client_id=client_id, operation=operation, **word)
    await connection.execute(query.on_conflict_do_update(index_elements=["client_id", "operation"], set_=word))
