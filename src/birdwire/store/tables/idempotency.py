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
    tuple_,
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
    Column("request_id", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("state", String, nullable=False),
    Column("status", Integer),
    Column("body", LargeBinary),
    Column("created_at", Instant, nullable=False),
    Index("idempotency_age", "created_at"),
)
"""state: started, kept (with the answer), unknown. request_id: the call that has the name now; owner: its process."""


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


async def change(
    connection: AsyncConnection, row: Mapping[str, object] | RowMapping, values: Mapping[str, object]
) -> bool:
    """Change a name that the same call as in `row` still has, in the same state; whether it had."""
    same = [idempotency.c[name] == row[name] for name in ("key_id", "name", "request_id", "state")]
    return (await connection.execute(update(idempotency).where(*same).values(values))).rowcount == 1


async def settle(
    connection: AsyncConnection, key_id: str, name: str, request_id: str, values: Mapping[str, object]
) -> None:
    """How a call ended, if it still has the name."""
    query = update(idempotency).where(*_same(key_id, name), idempotency.c.request_id == request_id)
    await connection.execute(query.values(values))


async def remove(connection: AsyncConnection, key_id: str, name: str, request_id: str) -> None:
    """As if the call had not been, if it still has the name."""
    await connection.execute(delete(idempotency).where(*_same(key_id, name), idempotency.c.request_id == request_id))


async def holds(connection: AsyncConnection, key_id: str, request_id: str) -> bool:
    """Whether some name is this call's."""
    query = select(idempotency.c.name).where(idempotency.c.key_id == key_id, idempotency.c.request_id == request_id)
    return (await connection.execute(query)).first() is not None


async def forget(connection: AsyncConnection, before: datetime, limit: int) -> int:
    """Drop up to `limit` calls that began before a moment; how many were dropped."""
    names = tuple_(idempotency.c.key_id, idempotency.c.name)
    old = select(idempotency.c.key_id, idempotency.c.name).where(idempotency.c.created_at < before)
    oldest = old.order_by(idempotency.c.created_at).limit(limit)
    return (await connection.execute(delete(idempotency).where(names.in_(oldest)))).rowcount
