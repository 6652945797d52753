"""What was asked of X and what became of it, as rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import (
    JSON,
    Column,
    Index,
    Integer,
    LargeBinary,
    RowMapping,
    String,
    Table,
    bindparam,
    delete,
    insert,
    select,
    update,
)

from birdwire.store.schema import Instant, index_of_some, metadata

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection

journal = Table(
    "journal",
    metadata,
    Column("request_id", String, primary_key=True),
    Column("key_id", String, nullable=False),
    Column("user_id", String, nullable=False),
    Column("operation", String, nullable=False),
    Column("target", String),
    Column("asked", LargeBinary, nullable=False),
    Column("state", String, nullable=False),
    Column("status", Integer),
    Column("reason", String),
    Column("why", String),
    Column("data", JSON(none_as_null=True)),
    Column("x_id", String),
    Column("words_ct", LargeBinary),
    Column("cost_microusd", Integer),
    Column("owner", String),
    Column("created_at", Instant, nullable=False),
    Column("settled_at", Instant),
    Column("lost_at", Instant),
    Column("due_at", Instant),
    Column("looks", Integer, nullable=False, server_default="0"),
    Column("reads", Integer, nullable=False, server_default="0"),
    Index("journal_key", "key_id", "created_at"),
)
"""state: started, confirmed, refused, not_sent, unknown, found, not_found. asked: a SHA-256 of what was asked for.

x_id: what X made, or the post that it deleted. words_ct: a post's words, sealed. cost_microusd: what X bills if it does
it. owner: the process that began it. due_at: when somebody must look after it (started: whether its process lives;
unknown: whether X has it); looks and reads: how often that was tried, and how often it worked.
"""

index_of_some("journal_made", journal.c.x_id)
index_of_some("journal_due", journal.c.due_at)
index_of_some("journal_account", journal.c.user_id, journal.c.due_at)

ADD = insert(journal)
"""One write that was asked of X."""

_SETTLED = ("state", "status", "reason", "why", "data", "x_id", "words_ct", "settled_at", "lost_at", "due_at")

SETTLE = (
    update(journal)
    .where(journal.c.request_id == bindparam("of"))
    .values({name: bindparam(f"new_{name}") for name in _SETTLED})
)
"""What became of it: parameters are `of`, the request's id, and the columns with new_ before."""


def settled(request_id: str, values: Mapping[str, object]) -> dict[str, object]:
    """The parameters of SETTLE; columns that are not named become null."""
    return {"of": request_id} | {f"new_{name}": values.get(name) for name in _SETTLED}


async def change(
    connection: AsyncConnection, request_id: str, values: Mapping[str, object], *, while_in: Collection[str]
) -> bool:
    """Change a row while it is in one of these states; whether it was."""
    same = (journal.c.request_id == request_id, journal.c.state.in_(while_in))
    return (await connection.execute(update(journal).where(*same).values(values))).rowcount == 1


async def get(connection: AsyncConnection, request_id: str) -> RowMapping | None:
    """One row."""
    query = select(journal).where(journal.c.request_id == request_id)
    return (await connection.execute(query)).mappings().first()


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


async def listed(
    connection: AsyncConnection, equal: Mapping[str, str], since: datetime | None, limit: int
) -> Sequence[RowMapping]:
    """The newest rows, by their ids, whose columns equal these values."""
    wanted: list[ColumnElement[bool]] = [journal.c[name] == value for name, value in equal.items()]
    if since is not None:
        wanted.append(journal.c.created_at >= since)
    query = select(journal).where(*wanted).order_by(journal.c.request_id.desc()).limit(limit)
    return (await connection.execute(query)).mappings().all()


async def due(connection: AsyncConnection, now: datetime, limit: int) -> Sequence[RowMapping]:
    """Rows that somebody must look after, the longest overdue first."""
    query = select(journal).where(journal.c.due_at <= now).order_by(journal.c.due_at).limit(limit)
    return (await connection.execute(query)).mappings().all()


async def open_of(connection: AsyncConnection, user_id: str, limit: int) -> Sequence[RowMapping]:
    """An account's rows that are looked for, due or not, and those that were begun and have not ended; oldest first."""
    wanted = (
        journal.c.due_at.is_not(None),
        journal.c.state.in_(("started", "unknown")),
        journal.c.user_id == user_id,
    )
    query = select(journal).where(*wanted).order_by(journal.c.created_at).limit(limit)
    return (await connection.execute(query)).mappings().all()


async def made(connection: AsyncConnection, x_ids: Collection[str]) -> frozenset[str]:
    """Those of X's ids that some row has already."""
    query = select(journal.c.x_id).where(journal.c.x_id.in_(x_ids))
    return frozenset((await connection.execute(query)).scalars())


async def of_post(connection: AsyncConnection, user_id: str, post_id: str) -> Sequence[RowMapping]:
    """An account's rows that made or deleted a post."""
    query = select(journal.c.operation).where(journal.c.x_id == post_id, journal.c.user_id == user_id)
    return (await connection.execute(query.limit(10))).mappings().all()


async def hasten(connection: AsyncConnection, now: datetime) -> None:
    """What was begun and has not ended is due now."""
    await connection.execute(
        update(journal).where(journal.c.due_at > now, journal.c.state == "started").values(due_at=now)
    )


async def hurry(connection: AsyncConnection, user_id: str, now: datetime) -> None:
    """An account's rows that are looked for are due now."""
    wanted = (journal.c.due_at > now, journal.c.state == "unknown", journal.c.user_id == user_id)
    await connection.execute(update(journal).where(*wanted).values(due_at=now))


async def purge(connection: AsyncConnection, before_id: str, before: datetime, limit: int) -> int:
    """Drop up to `limit` of the oldest rows made before a moment (ids rise with time); how many were dropped."""
    old = select(journal.c.request_id).where(journal.c.request_id < before_id, journal.c.created_at < before)
    oldest = old.order_by(journal.c.request_id).limit(limit)
    return (await connection.execute(delete(journal).where(journal.c.request_id.in_(oldest)))).rowcount
