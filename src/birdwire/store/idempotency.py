"""Calls with an Idempotency-Key, as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import (
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    RowMapping,
    String,
    Table,
    delete,
    select,
    update,
)

from birdwire.store.schema import Instant, insert, metadata

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection

idempotency = Table(
    "idempotency",
    metadata,
    Column("key_id", String, ForeignKey("api_keys.key_id"), primary_key=True),
    Column("name", String, primary_key=True),
    Column("asked", LargeBinary, nullable=False),
    Column("repeatable", Boolean, nullable=False),
    Column("state", String, nullable=False),
    Column("status", Integer),
    Column("body", LargeBinary),
    Column("created_at", Instant, nullable=False),
    Index("idempotency_age", "created_at"),
)
"""state: started, kept (with the answer), unknown."""


def _same(key_id: str, name: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return idempotency.c.key_id == key_id, idempotency.c.name == name


async def add(connection: AsyncConnection, row: Mapping[str, object]) -> bool:
    """A call that begins; whether it is the first of its name."""
    query = insert(connection, idempotency).values(row).on_conflict_do_nothing()
    return (await connection.execute(query)).rowcount == 1


async def find(connection: AsyncConnection, key_id: str, name: str) -> RowMapping | None:
    """A call by its name."""
    query = select(idempotency).where(*_same(key_id, name))
    return (await connection.execute(query)).mappings().first()


async def settle(connection: AsyncConnection, key_id: str, name: str, values: Mapping[str, object]) -> None:
    """How it ended."""
    await connection.execute(update(idempotency).where(*_same(key_id, name)).values(values))


async def remove(connection: AsyncConnection, key_id: str, name: str) -> None:
    """As if it had not been."""
    await connection.execute(delete(idempotency).where(*_same(key_id, name)))


async def forget(connection: AsyncConnection, before: datetime) -> None:
    """Drop the calls that began before a moment."""
    await connection.execute(delete(idempotency).where(idempotency.c.created_at < before))


async def unsettle(connection: AsyncConnection) -> None:
    """Drop what began and may be repeated; what may not is unknown."""
    began = idempotency.c.state == "started"
    await connection.execute(delete(idempotency).where(began, idempotency.c.repeatable))
    await connection.execute(update(idempotency).where(began).values(state="unknown"))
