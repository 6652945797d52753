"""X sessions and the tokens still to be revoked, as rows. Tokens are here only sealed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    RowMapping,
    String,
    Table,
    bindparam,
    case,
    delete,
    func,
    insert,
    select,
    type_coerce,
    update,
)

from birdwire.store.engines.change_feed import announce
from birdwire.store.schema import Instant, index_of_some, metadata
from birdwire.store.tables.api_keys import api_keys

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

x_sessions = Table(
    "x_sessions",
    metadata,
    Column("session_id", String, primary_key=True),
    Column("key_id", String, ForeignKey("api_keys.key_id"), nullable=False),
    Column("issuer", String, nullable=False),
    Column("state", String, nullable=False),
    Column("gen", Integer, nullable=False),
    Column("access_ct", LargeBinary, nullable=False),
    Column("refresh_ct", LargeBinary),
    Column("expires_at", Instant, nullable=False),
    Column("refresh_state", String, nullable=False, server_default="idle"),
    Column("presented_gen", Integer),
    Column("presented_at", Instant),
    Column("presented_by", String),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("scopes", String, nullable=False),
    Column("user_id", String),
    Column("username", String),
    Column("expected_username", String),
    Column("undo_hash", LargeBinary),
    Column("undo_until", Instant),
    Column("created_at", Instant, nullable=False),
    Column("linked_at", Instant),
    Column("refreshed_at", Instant),
    Column("why", String),
    Column("over_at", Instant),
    Index("x_sessions_key", "key_id", "issuer"),
    Index("x_sessions_undo", "undo_hash"),
    Index("x_sessions_account", "issuer", "user_id"),
)
"""state: pending (stored, not yet named), active, needs_relink. gen rises with each new pair of tokens.

over_at: from when on nobody can use it, if that is known: its key is revoked, or expired a day before, or its holder
has not confirmed it.
"""

KEPT_AFTER_EXPIRY_US = 86_400_000_000
"""How long a link outlives its key's expiry: until then the operator may give the key more time."""


SERVES = case((x_sessions.c.state == "needs_relink", "active"), else_=x_sessions.c.state)
"""The state of a session that has a good pair again; a pending one goes on waiting, and one in use stays so."""

index_of_some("x_sessions_over", x_sessions.c.issuer, x_sessions.c.over_at)

revocations = Table(
    "revocations",
    metadata,
    Column("revocation_id", String, primary_key=True),
    Column("issuer", String, nullable=False),
    Column("token_ct", LargeBinary, nullable=False),
    Column("hint", String, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("due_at", Instant, nullable=False),
    Column("tries", Integer, nullable=False, server_default="0"),
    Index("revocations_due", "issuer", "due_at"),
)


_RENEWED = {name: f"new_{name}" for name in ("gen", "access_ct", "refresh_ct", "expires_at", "scopes", "refreshed_at")}
"""By column: SAVE's parameters."""

SAVE = (
    update(x_sessions)
    .where(
        x_sessions.c.session_id == bindparam("of"),
        x_sessions.c.gen == bindparam("of_gen"),
        func.coalesce(x_sessions.c.user_id, "") == bindparam("of_user_id"),
    )
    .values(
        {
            **{name: bindparam(parameter) for name, parameter in _RENEWED.items()},
            **dict.fromkeys(("why", "presented_gen", "presented_at", "presented_by")),
            "state": SERVES,
            "refresh_state": "idle",
            "tries": 0,
        }
    )
)
"""A new pair for a session that still has the generation and the account for which the pair was sealed."""


def saved(row: RowMapping | Mapping[str, Any], values: Mapping[str, object]) -> dict[str, object]:
    """Return the parameters of SAVE: the session as it was read, and the columns of its new pair."""
    of = {"of": row["session_id"], "of_gen": row["gen"], "of_user_id": row["user_id"] or ""}
    return of | {parameter: values[name] for name, parameter in _RENEWED.items()}


def described(row: RowMapping | None) -> dict[str, object] | None:
    """Return what an act records of a session."""
    return None if row is None else {name: row[name] for name in ("user_id", "username", "state")}


async def add(connection: AsyncConnection, session: Mapping[str, object]) -> None:
    """A new session."""
    await connection.execute(insert(x_sessions).values(session))
    await announce(connection, str(session["key_id"]))


async def of_key(connection: AsyncConnection, key_id: str, issuer: str) -> Sequence[RowMapping]:
    """A key's sessions with an issuer, newest first: at most one pending, and one that is not."""
    query = select(x_sessions).where(x_sessions.c.key_id == key_id, x_sessions.c.issuer == issuer)
    return (await connection.execute(query.order_by(x_sessions.c.created_at.desc()))).mappings().all()


async def accounts_of(connection: AsyncConnection, key_id: str) -> Sequence[RowMapping]:
    """Return `user_id` and `username` of each account that X has named for a key's sessions."""
    query = select(x_sessions.c.user_id, x_sessions.c.username)
    named = query.where(x_sessions.c.key_id == key_id, x_sessions.c.user_id.is_not(None))
    return (await connection.execute(named)).mappings().all()


async def end_with_key(connection: AsyncConnection, key_id: str) -> None:
    """Set when a key's sessions end because of the key; due whenever either changes, in the same transaction.

    Those of a revoked key end from their own beginning on, whatever clock is right; those of another a day after it
    expires, if it does. One that waits for confirmation keeps its own end, minutes away, which is always the earlier;
    one that `end_pending` has ended stays so.
    """
    ended = x_sessions.c.over_at == x_sessions.c.created_at
    keeps = (x_sessions.c.state == "pending") & (x_sessions.c.user_id.is_not(None) | ended)
    ends = case(
        (api_keys.c.revoked_at.is_not(None), x_sessions.c.created_at),
        (keeps, x_sessions.c.over_at),
        else_=type_coerce(type_coerce(api_keys.c.expires_at, BigInteger) + KEPT_AFTER_EXPIRY_US, Instant),
    )
    over_at = select(ends).where(api_keys.c.key_id == key_id).scalar_subquery()
    await connection.execute(update(x_sessions).where(x_sessions.c.key_id == key_id).values(over_at=over_at))


async def end_pending(connection: AsyncConnection, key_id: str) -> None:
    """End the sessions of a key that are not in use yet, from their own beginning on."""
    pending = (x_sessions.c.key_id == key_id, x_sessions.c.state == "pending")
    await connection.execute(update(x_sessions).where(*pending).values(over_at=x_sessions.c.created_at))


def barred(row: RowMapping) -> bool:
    """Return whether a pending session ended with its key's right to link, as `end_pending` marks it."""
    return bool(row["state"] == "pending" and row["over_at"] == row["created_at"])


def why_over(row: RowMapping) -> str:
    """Return why a session of a key that lives is over, as an act records it."""
    if barred(row):
        return "key_may_not_link"
    return "not_confirmed" if row["state"] == "pending" and row["user_id"] is not None else "key_expired"


async def over(connection: AsyncConnection, issuer: str, now: datetime, limit: int) -> Sequence[RowMapping]:
    """Sessions that nobody can use any more, the longest over first."""
    query = select(x_sessions).where(x_sessions.c.issuer == issuer, x_sessions.c.over_at <= now)
    return (await connection.execute(query.order_by(x_sessions.c.over_at).limit(limit))).mappings().all()


async def get(connection: AsyncConnection, session_id: str, *, hold: bool = False) -> RowMapping | None:
    """One session; `hold` keeps others from changing it until the transaction ends."""
    query = select(x_sessions).where(x_sessions.c.session_id == session_id)
    if hold:
        query = query.with_for_update()
    return (await connection.execute(query)).mappings().first()


async def by_undo(connection: AsyncConnection, issuer: str, undo_hashes: Sequence[bytes]) -> dict[bytes, RowMapping]:
    """Return the sessions that these undo tokens end, by the tokens' hashes."""
    query = select(x_sessions).where(x_sessions.c.undo_hash.in_(undo_hashes), x_sessions.c.issuer == issuer)
    return {row["undo_hash"]: row for row in (await connection.execute(query)).mappings()}


async def acts_as(connection: AsyncConnection, row: RowMapping | Mapping[str, Any]) -> bool:
    """Whether the key of a session that is gone has another link of the same account: X might end both."""
    same = [x_sessions.c[name] == row[name] for name in ("key_id", "issuer", "user_id")]
    return (await connection.execute(select(x_sessions.c.session_id).where(*same))).first() is not None


async def shared(connection: AsyncConnection, row: Mapping[str, object] | RowMapping, now: datetime) -> bool:
    """Whether another session of the same account is in use: X might end both."""
    goes_on = x_sessions.c.over_at.is_(None) | (x_sessions.c.over_at > now)
    same = [x_sessions.c[name] == row[name] for name in ("issuer", "user_id")]
    others = (x_sessions.c.session_id != row["session_id"], x_sessions.c.state == "active", goes_on)
    return (
        await connection.execute(select(x_sessions.c.session_id).where(*same, *others).limit(1))
    ).first() is not None


async def list_all(connection: AsyncConnection) -> Sequence[RowMapping]:
    """Every session, oldest first."""
    return (await connection.execute(select(x_sessions).order_by(x_sessions.c.created_at))).mappings().all()


async def change(connection: AsyncConnection, session_id: str, gen: int, values: Mapping[str, object]) -> bool:
    """Change a session if it still is of this generation; whether it was."""
    query = update(x_sessions).where(x_sessions.c.session_id == session_id, x_sessions.c.gen == gen)
    key_id = (await connection.execute(query.values(values).returning(x_sessions.c.key_id))).scalar()
    if key_id is not None:
        await announce(connection, key_id)
    return key_id is not None


async def save(connection: AsyncConnection, row: RowMapping | Mapping[str, Any], values: Mapping[str, object]) -> None:
    """Store a new pair as SAVE does, in the caller's transaction."""
    if (await connection.execute(SAVE, saved(row, values))).rowcount:
        await announce(connection, row["key_id"])


async def mark(connection: AsyncConnection, row: RowMapping | Mapping[str, Any], values: Mapping[str, object]) -> bool:
    """Change the mark of a refresh, unless somebody did since `row` was read; whether it is now the caller's."""
    names = ("session_id", "gen", "refresh_state", "presented_by", "tries")
    same = [x_sessions.c[name] == row[name] for name in names]
    return (await connection.execute(update(x_sessions).where(*same).values(values))).rowcount == 1


async def remove(connection: AsyncConnection, session_id: str) -> RowMapping | None:
    """Take a session away; the row as it was, or None if it was gone."""
    query = delete(x_sessions).where(x_sessions.c.session_id == session_id).returning(x_sessions)
    row = (await connection.execute(query)).mappings().first()
    if row is not None:
        await announce(connection, row["key_id"])
    return row


async def queue_revocation(connection: AsyncConnection, revocation: Mapping[str, object]) -> None:
    """A token to be revoked at X."""
    await connection.execute(insert(revocations).values(revocation))


async def due_revocations(connection: AsyncConnection, issuer: str, now: datetime, limit: int) -> Sequence[RowMapping]:
    """Tokens whose next try is due."""
    query = select(revocations).where(revocations.c.issuer == issuer, revocations.c.due_at <= now)
    return (await connection.execute(query.order_by(revocations.c.due_at).limit(limit))).mappings().all()


async def postpone_revocation(connection: AsyncConnection, revocation_id: str, due_at: datetime, tries: int) -> None:
    """Try again later."""
    query = update(revocations).where(revocations.c.revocation_id == revocation_id)
    await connection.execute(query.values(due_at=due_at, tries=tries))


async def drop_revocation(connection: AsyncConnection, revocation_id: str) -> None:
    """The token is dead, or X knows nothing of it."""
    await connection.execute(delete(revocations).where(revocations.c.revocation_id == revocation_id))
