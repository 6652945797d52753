"""What remains of X's rate-limit windows, as rows: one for each X app, account, endpoint and window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import BigInteger, Column, Index, Integer, String, Table, delete, or_, select, type_coerce

from birdwire.store.schema import Instant, insert, metadata

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

APART_US = 5_000_000
"""Resets closer together than this belong to the same window: X reports whole seconds, each by one machine's clock."""

x_windows = Table(
    "x_windows",
    metadata,
    Column("client_id", String, primary_key=True),
    Column("user_id", String, primary_key=True),
    Column("endpoint", String, primary_key=True),
    Column("span", String, primary_key=True),
    Column("most", Integer),
    Column("remaining", Integer, nullable=False),
    Column("reset_at", Instant, nullable=False),
    Column("changed_at", Instant, nullable=False),
    Index("x_windows_changed", "client_id", "changed_at"),
    Index("x_windows_end", "reset_at"),
)


@dataclass(frozen=True, slots=True)
class WindowRow:
    """A row of `x_windows`, with its columns in their order. `span` names the window, `most` is X's limit."""

    client_id: str
    user_id: str
    endpoint: str
    span: str
    most: int | None
    remaining: int
    reset_at: datetime
    changed_at: datetime


async def put(connection: AsyncConnection, rows: Sequence[Mapping[str, object]]) -> None:
    """Store what remains; a row of a later window, or with less remaining in the same one, stays as it is."""
    query = insert(connection, x_windows)
    new, old = query.excluded, x_windows.c
    later = type_coerce(new.reset_at, BigInteger) > type_coerce(old.reset_at, BigInteger) + APART_US
    values = {name: new[name] for name in ("most", "remaining", "reset_at", "changed_at")}
    query = query.on_conflict_do_update(
        index_elements=list(x_windows.primary_key.columns),
        set_=values,
        where=or_(later, new.remaining < old.remaining),
    )
    await connection.execute(query, list(rows))


async def changed(
    connection: AsyncConnection, client_id: str, after: datetime, now: datetime, limit: int
) -> list[WindowRow]:
    """Return the windows of an X app that changed after a time and have not ended, in the order of their changes."""
    query = select(x_windows).where(
        x_windows.c.client_id == client_id, x_windows.c.changed_at > after, x_windows.c.reset_at > now
    )
    return [WindowRow(*row) for row in await connection.execute(query.order_by(x_windows.c.changed_at).limit(limit))]


async def purge(connection: AsyncConnection, before: datetime) -> None:
    """Delete the windows that ended before a moment."""
    await connection.execute(delete(x_windows).where(x_windows.c.reset_at < before))
