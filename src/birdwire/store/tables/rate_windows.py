"""What is left of X's windows, as rows: one for an X app, account, endpoint and window."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import BigInteger, Column, Index, Integer, RowMapping, String, Table, delete, or_, select, type_coerce

from birdwire.store.schema import Instant, insert, metadata

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

APART_US = 5_000_000
"""Resets that lie closer together are of the same window: X names whole seconds, by a machine's clock each time."""

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


async def put(connection: AsyncConnection, rows: Sequence[Mapping[str, object]]) -> None:
    """What is left now; a row that knows of a later window, or of less in the same one, stays as it is."""
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
    connection: AsyncConnection, client_id: str, after: datetime, now: datetime, most: int
) -> Sequence[RowMapping]:
    """The windows of an X app that changed after a time and are not over; those that changed last come last."""
    query = select(x_windows).where(
        x_windows.c.client_id == client_id, x_windows.c.changed_at > after, x_windows.c.reset_at > now
    )
    return (await connection.execute(query.order_by(x_windows.c.changed_at).limit(most))).mappings().all()


async def forget(connection: AsyncConnection, before: datetime) -> None:
    """Drop the windows that were over then."""
    await connection.execute(delete(x_windows).where(x_windows.c.reset_at < before))
