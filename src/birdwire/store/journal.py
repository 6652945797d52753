"""What was asked of X and what became of it, as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import JSON, Column, Index, Integer, RowMapping, String, Table, insert, select, update

from birdwire.store.schema import Instant, metadata

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
    Column("status", Integer),
    Column("reason", String),
    Column("data", JSON),
    Column("created_at", Instant, nullable=False),
    Column("settled_at", Instant),
    Index("journal_key", "key_id", "created_at"),
)


async def add(connection: AsyncConnection, row: Mapping[str, object]) -> None:
    """One write that was asked of X."""
    await connection.execute(insert(journal).values(row))


async def settle(connection: AsyncConnection, request_id: str, values: Mapping[str, object]) -> None:
    """What became of it."""
    await connection.execute(update(journal).where(journal.c.request_id == request_id).values(values))


async def unsettle(connection: AsyncConnection) -> int:
    """Rows that were started and never settled are unknown; how many there were."""
    query = (
        update(journal)
        .where(journal.c.state == "started")
        .values(state="unknown", reason="outcome_unknown", status=502)
    )
    return (await connection.execute(query)).rowcount


async def find(connection: AsyncConnection, key_id: str, request_id: str) -> RowMapping | None:
    """One row of a key."""
    query = select(journal).where(journal.c.request_id == request_id, journal.c.key_id == key_id)
    return (await connection.execute(query)).mappings().first()


async def newer(connection: AsyncConnection, request_id: str, user_id: str, operation: str, target: str) -> bool:
    """Whether a later request, by the ids' time, asked for `operation` on the target and may have had it done."""
    query = select(journal.c.request_id).where(
        journal.c.request_id > request_id,
        journal.c.user_id == user_id,
        journal.c.operation == operation,
        journal.c.target == target,
        journal.c.state.not_in(("refused", "not_sent")),
    )
    return (await connection.execute(query.limit(1))).first() is not None


async def of_key(connection: AsyncConnection, key_id: str, limit: int) -> Sequence[RowMapping]:
    """A key's newest rows."""
    query = select(journal).where(journal.c.key_id == key_id).order_by(journal.c.created_at.desc()).limit(limit)
    return (await connection.execute(query)).mappings().all()
