"""Calls with an Idempotency-Key, as rows: one for each key and name, for a day."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from sqlalchemy import (
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    bindparam,
    delete,
    or_,
    select,
    tuple_,
    update,
)

from birdwire.store.schema import EnumText, InsertNew, Instant, metadata
from birdwire.store.tables.approvals import approvals, not_ended_before

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection


class NameState(StrEnum):
    """The state of the call that holds a name."""

    STARTED = "started"
    KEPT = "kept"
    """It is answered, and its answer is stored."""

    UNKNOWN = "unknown"
    """Its outcome is unknown: it must never be done again under this name."""

    AWAITING = "awaiting"
    """A person was asked: the request answers for the name, until a day after its end."""


idempotency = Table(
    "idempotency",
    metadata,
    Column("key_id", String, ForeignKey("api_keys.key_id"), primary_key=True),
    Column("name", String, primary_key=True),
    Column("asked", LargeBinary, nullable=False),
    Column("repeatable", Boolean, nullable=False),
    Column("request_id", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("state", EnumText(NameState), nullable=False),
    Column("status", Integer),
    Column("body", LargeBinary),
    Column("created_at", Instant, nullable=False),
    Index("idempotency_age", "created_at"),
)
"""request_id: the call that holds the name now; owner: its process. status, body: the stored answer, encrypted."""


@dataclass(frozen=True, slots=True)
class NameRow:
    """A row of `idempotency`, with its columns in their order."""

    key_id: str
    name: str
    asked: bytes = field(repr=False)
    repeatable: bool
    request_id: str
    owner: str
    state: NameState
    status: int | None
    body: bytes | None = field(repr=False)
    created_at: datetime


def _same(key_id: str, name: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return idempotency.c.key_id == key_id, idempotency.c.name == name


ADD = InsertNew(idempotency)
"""Insert a call that starts, unless another call holds its name."""

_MINE = (
    idempotency.c.key_id == bindparam("of_key"),
    idempotency.c.name == bindparam("of_name"),
    idempotency.c.request_id == bindparam("held_by"),
    # A request answers for the name from then on, whatever becomes of the call that asked.
    idempotency.c.state != NameState.AWAITING,
)

SETTLE = (
    update(idempotency).where(*_MINE).values({name: bindparam(f"new_{name}") for name in ("state", "status", "body")})
)
"""Store how a call ended, if it still holds the name. Its parameters are those that `held` returns, and new_COLUMN."""

RELEASE = delete(idempotency).where(*_MINE)
"""Delete a call, if it still holds the name. `held` returns its parameters."""


def held(key_id: str, name: str, request_id: str) -> dict[str, object]:
    """Return the parameters of SETTLE and RELEASE for a name that a call holds."""
    return {"of_key": key_id, "of_name": name, "held_by": request_id}


async def add(connection: AsyncConnection, row: Mapping[str, object]) -> bool:
    """Insert a call that starts, given by its columns; return whether no call holds its name yet."""
    return (await connection.execute(ADD, row)).rowcount == 1


async def find(connection: AsyncConnection, key_id: str, name: str) -> NameRow | None:
    """Return the call that holds a name."""
    row = (await connection.execute(select(idempotency).where(*_same(key_id, name)))).first()
    return None if row is None else NameRow(*row)


async def change(
    connection: AsyncConnection,
    key_id: str,
    name: str,
    values: Mapping[str, object],
    *,
    held_by: str,
    while_in: NameState,
) -> bool:
    """Change a name that the call `held_by` still holds, in the same state; return whether it does."""
    same = (*_same(key_id, name), idempotency.c.request_id == held_by, idempotency.c.state == while_in)
    return (await connection.execute(update(idempotency).where(*same).values(values))).rowcount == 1


async def await_person(connection: AsyncConnection, key_id: str, held_by: str, request_id: str) -> bool:
    """Let a request that waits for a person answer for the name that a call holds; return whether it holds one."""
    same = (idempotency.c.key_id == key_id, idempotency.c.request_id == held_by)
    waits = {"state": NameState.AWAITING, "request_id": request_id}
    started = update(idempotency).where(*same, idempotency.c.state == NameState.STARTED)
    return (await connection.execute(started.values(waits))).rowcount == 1


async def holds(connection: AsyncConnection, key_id: str, request_id: str) -> bool:
    """Return whether a call still holds its name."""
    query = select(idempotency.c.name).where(idempotency.c.key_id == key_id, idempotency.c.request_id == request_id)
    return (await connection.execute(query)).first() is not None


async def purge(connection: AsyncConnection, before: datetime, limit: int) -> int:
    """Delete up to `limit` calls that started before a moment; return the number deleted.

    A name for which a request answers stays until its end lies before that moment, too.
    """
    names = tuple_(idempotency.c.key_id, idempotency.c.name)
    answering = select(approvals.c.request_id).where(
        approvals.c.request_id == idempotency.c.request_id, not_ended_before(before)
    )
    past = or_(idempotency.c.state != NameState.AWAITING, ~answering.exists())
    old = select(idempotency.c.key_id, idempotency.c.name).where(idempotency.c.created_at < before, past)
    oldest = old.order_by(idempotency.c.created_at).limit(limit)
    return (await connection.execute(delete(idempotency).where(names.in_(oldest)))).rowcount
