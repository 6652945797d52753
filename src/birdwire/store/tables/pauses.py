"""Pauses: which keys, accounts, or the whole gateway are paused, as rows that `resume` deletes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sqlalchemy import Column, String, Table, delete, select

from birdwire.store.engines.change_feed import announce
from birdwire.store.schema import Instant, insert, metadata

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

pauses = Table(
    "pauses",
    metadata,
    Column("scope", String, primary_key=True),
    Column("author", String, primary_key=True),
    Column("since", Instant, nullable=False),
    Column("until", Instant),
    Column("why", String, nullable=False),
    Column("by", String, nullable=False),
)
"""scope: a key's id, `account:USER_ID`, or `gateway`. until: null if the pause does not end by itself."""


@dataclass(frozen=True, slots=True)
class PauseRow:
    """A row of `pauses`, with its columns in their order."""

    scope: str
    author: Literal["operator", "owner"]
    since: datetime
    until: datetime | None
    why: str
    by: str


async def of(connection: AsyncConnection, scopes: Collection[str]) -> list[PauseRow]:
    """Return the pauses of these scopes, including those whose end has passed."""
    query = select(pauses).where(pauses.c.scope.in_(scopes)).order_by(pauses.c.scope, pauses.c.author)
    return [PauseRow(*row) for row in await connection.execute(query)]


async def all_of(connection: AsyncConnection) -> list[PauseRow]:
    """Return every pause."""
    query = select(pauses).order_by(pauses.c.scope, pauses.c.author)
    return [PauseRow(*row) for row in await connection.execute(query)]


async def put(connection: AsyncConnection, row: PauseRow) -> None:
    """Store a pause in place of an earlier one of the same author, and announce its scope."""
    values = {column.name: getattr(row, column.name) for column in pauses.columns}
    query = insert(connection, pauses).values(values)
    changed = {name: query.excluded[name] for name in ("since", "until", "why", "by")}
    await connection.execute(query.on_conflict_do_update(index_elements=list(pauses.primary_key.columns), set_=changed))
    await announce(connection, row.scope)


async def lift(connection: AsyncConnection, scope: str, author: str) -> PauseRow | None:
    """Delete a pause and announce its scope; return it, or None if there was none."""
    same = (pauses.c.scope == scope, pauses.c.author == author)
    row = (await connection.execute(delete(pauses).where(*same).returning(*pauses.columns))).first()
    if row is None:
        return None
    await announce(connection, scope)
    return PauseRow(*row)
