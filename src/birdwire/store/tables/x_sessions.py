"""X sessions and queued token revocations: rows and statements. Tokens occur only encrypted."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    bindparam,
    case,
    column,
    delete,
    func,
    insert,
    null,
    or_,
    select,
    table,
    type_coerce,
    update,
)

from birdwire.store.engines.change_feed import announce
from birdwire.store.schema import EnumText, Instant, index_of_some, metadata

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Select
    from sqlalchemy.ext.asyncio import AsyncConnection


class LinkState(StrEnum):
    """The state of a link. `accounts.links` owns the legal transitions."""

    PENDING = "pending"
    """The tokens are stored, and no call uses them yet: X has not named the account, or it awaits confirmation."""

    ACTIVE = "active"
    NEEDS_RELINK = "needs_relink"
    """X accepts the tokens no longer: the account's owner must approve again."""

    ENDED = "ended"
    """Never stored: the row of an ended link is deleted."""


class RefreshState(StrEnum):
    """The state of a session's refresh token."""

    IDLE = "idle"
    PRESENTED = "presented"
    """It was sent to X, or is about to be, and the outcome is not known yet."""

    OVER = "over"
    """X refuses it. The access token is used until it expires."""


x_sessions = Table(
    "x_sessions",
    metadata,
    Column("session_id", String, primary_key=True),
    Column("key_id", String, ForeignKey("api_keys.key_id"), nullable=False),
    Column("issuer", String, nullable=False),
    Column("state", EnumText(LinkState), nullable=False),
    Column("gen", Integer, nullable=False),
    Column("access_ct", LargeBinary, nullable=False),
    Column("refresh_ct", LargeBinary),
    Column("expires_at", Instant, nullable=False),
    Column("refresh_state", EnumText(RefreshState), nullable=False, server_default="idle"),
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
"""gen: increases with each new pair of tokens. over_at: when the session ends because its key is revoked, because its
key expired a day before, or because its holder has not confirmed it; null while no end is known.
"""

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


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A row of `x_sessions`, with its columns in their order."""

    session_id: str
    key_id: str
    issuer: str
    state: LinkState
    gen: int
    access_ct: bytes = field(repr=False)
    refresh_ct: bytes | None = field(repr=False)
    expires_at: datetime
    refresh_state: RefreshState
    presented_gen: int | None
    presented_at: datetime | None
    presented_by: str | None
    tries: int
    scopes: str
    user_id: str | None
    username: str | None
    expected_username: str | None
    undo_hash: bytes | None = field(repr=False)
    undo_until: datetime | None
    created_at: datetime
    linked_at: datetime | None
    refreshed_at: datetime | None
    why: str | None
    over_at: datetime | None


@dataclass(frozen=True, slots=True)
class RevocationRow:
    """A row of `revocations`, with its columns in their order."""

    revocation_id: str
    issuer: str
    token_ct: bytes = field(repr=False)
    hint: str
    created_at: datetime
    due_at: datetime
    tries: int


@dataclass(frozen=True, slots=True)
class NamedAccount:
    """An X account that X has named for a session."""

    user_id: str
    username: str


KEPT_AFTER_EXPIRY_US = 86_400_000_000
"""How long a link outlives its key's expiry: until then the operator may extend the key."""

STATE_AFTER_SAVE = {LinkState.NEEDS_RELINK: LinkState.ACTIVE}
"""What a newly stored pair of tokens changes a state to; any other state stays as it is."""

index_of_some("x_sessions_over", x_sessions.c.issuer, x_sessions.c.over_at)

_RENEWED = {name: f"new_{name}" for name in ("gen", "access_ct", "refresh_ct", "expires_at", "scopes", "refreshed_at")}
"""SAVE's parameters, by column."""

_SAVED = (
    update(x_sessions)
    .where(
        x_sessions.c.session_id == bindparam("of"),
        x_sessions.c.gen == bindparam("of_gen"),
        func.coalesce(x_sessions.c.user_id, "") == bindparam("of_user_id"),
    )
    .values(
        {
            **{name: bindparam(parameter) for name, parameter in _RENEWED.items()},
            **dict.fromkeys(("why", "presented_gen", "presented_at", "presented_by"), null()),
            "refresh_state": RefreshState.IDLE,
            "tries": 0,
        }
    )
)

SAVE = _SAVED.where(*(x_sessions.c.state != state for state in STATE_AFTER_SAVE))
"""Store a new pair in a session that still has the generation and the account for which the pair was encrypted.

A session whose state would change stays as it is: `save` stores its pair, so that the change can be reported with it.
"""

_SAVE_ANY = _SAVED.values(state=case(STATE_AFTER_SAVE, value=x_sessions.c.state, else_=x_sessions.c.state))


def saved(row: SessionRow, values: Mapping[str, object]) -> dict[str, object]:
    """Return the parameters of SAVE: the session as it was read, and the columns of its new pair."""
    of = {"of": row.session_id, "of_gen": row.gen, "of_user_id": row.user_id or ""}
    return of | {parameter: values[name] for name, parameter in _RENEWED.items()}


def described(row: SessionRow | None) -> dict[str, object] | None:
    """Return what an act records of a session."""
    return None if row is None else {"user_id": row.user_id, "username": row.username, "state": row.state.value}


async def add(connection: AsyncConnection, session: Mapping[str, object]) -> None:
    """Insert a new session, given by its columns."""
    await connection.execute(insert(x_sessions).values(session))
    await announce(connection, str(session["key_id"]))


async def of_key(connection: AsyncConnection, key_id: str, issuer: str) -> list[SessionRow]:
    """Return a key's sessions with an issuer, newest first: at most one is pending, and at most one is not."""
    query = select(x_sessions).where(x_sessions.c.key_id == key_id, x_sessions.c.issuer == issuer)
    return [SessionRow(*row) for row in await connection.execute(query.order_by(x_sessions.c.created_at.desc()))]


async def of_account(connection: AsyncConnection, user_id: str, issuer: str, now: datetime) -> list[SessionRow]:
    """Return the active sessions of an account with an issuer that have not ended, newest first."""
    wanted = (
        x_sessions.c.issuer == issuer,
        x_sessions.c.user_id == user_id,
        x_sessions.c.state == LinkState.ACTIVE,
        or_(x_sessions.c.over_at.is_(None), x_sessions.c.over_at > now),
    )
    query = select(x_sessions).where(*wanted).order_by(x_sessions.c.created_at.desc())
    return [SessionRow(*row) for row in await connection.execute(query)]


async def accounts_of(connection: AsyncConnection, key_id: str) -> list[NamedAccount]:
    """Return each account that X has named for a key's sessions, that of the link in use first."""
    query = select(x_sessions.c.user_id, x_sessions.c.username)
    named = query.where(x_sessions.c.key_id == key_id, x_sessions.c.user_id.is_not(None))
    in_use_first = named.order_by(x_sessions.c.state != LinkState.ACTIVE, x_sessions.c.created_at.desc())
    return [NamedAccount(*row) for row in await connection.execute(in_use_first)]


async def users_named(connection: AsyncConnection, username: str) -> frozenset[str]:
    """Return the user ids of the linked accounts that X last called by a username, in any case."""
    named = (func.lower(x_sessions.c.username) == username.lower(), x_sessions.c.user_id.is_not(None))
    return frozenset((await connection.execute(select(x_sessions.c.user_id).where(*named))).scalars())


def _issuers() -> Select[Any]:
    """Select the issuers of all sessions, one after the other from the index: to find them all would be a scan."""
    first = select(func.min(x_sessions.c.issuer).label("issuer")).cte("issuers", recursive=True)
    following = select(func.min(x_sessions.c.issuer)).where(x_sessions.c.issuer > first.c.issuer).scalar_subquery()
    every = first.union_all(select(following).select_from(first).where(first.c.issuer.is_not(None)))
    return select(every.c.issuer)


_NAMED = (
    select(x_sessions.c.username)
    .where(
        x_sessions.c.issuer.in_(_issuers()),
        x_sessions.c.user_id == bindparam("of_user_id"),
        x_sessions.c.username.is_not(None),
    )
    .order_by(x_sessions.c.created_at.desc())
    .limit(1)
)


async def named(connection: AsyncConnection, user_id: str) -> dict[str, str | None]:
    """Return an account as events name it; its username is None if it is not linked to any key."""
    username = (await connection.execute(_NAMED, {"of_user_id": user_id})).scalar()
    return {"user_id": user_id, "username": username}


_KEYS = table("api_keys", column("key_id"), column("revoked_at"), column("expires_at"))
"""The columns of a key that end its sessions; `api_keys` owns the table."""


async def end_with_key(connection: AsyncConnection, key_id: str) -> None:
    """Set when a key's sessions end because of the key; due whenever either changes, in the same transaction.

    The sessions of a revoked key end as of their own creation, so that no clock matters. The sessions of any other key
    end a day after the key expires, if it does. A session that awaits confirmation keeps its own end, which is minutes
    away and always earlier; one that `end_pending` has ended stays ended.
    """
    ended = x_sessions.c.over_at == x_sessions.c.created_at
    keeps = (x_sessions.c.state == LinkState.PENDING) & (x_sessions.c.user_id.is_not(None) | ended)
    ends = case(
        (_KEYS.c.revoked_at.is_not(None), x_sessions.c.created_at),
        (keeps, x_sessions.c.over_at),
        else_=type_coerce(type_coerce(_KEYS.c.expires_at, BigInteger) + KEPT_AFTER_EXPIRY_US, Instant),
    )
    over_at = select(ends).where(_KEYS.c.key_id == key_id).scalar_subquery()
    await connection.execute(update(x_sessions).where(x_sessions.c.key_id == key_id).values(over_at=over_at))


async def end_pending(connection: AsyncConnection, key_id: str) -> None:
    """End a key's pending sessions as of their own creation."""
    pending = (x_sessions.c.key_id == key_id, x_sessions.c.state == LinkState.PENDING)
    await connection.execute(update(x_sessions).where(*pending).values(over_at=x_sessions.c.created_at))


def barred(row: SessionRow) -> bool:
    """Return whether a pending session ended with its key's right to link, as `end_pending` marks it."""
    return row.state == LinkState.PENDING and row.over_at == row.created_at


def why_over(row: SessionRow) -> str:
    """Return why a session of a live key is over, as an act records it."""
    if barred(row):
        return "key_may_not_link"
    return "not_confirmed" if row.state == LinkState.PENDING and row.user_id is not None else "key_expired"


async def over(connection: AsyncConnection, issuer: str, now: datetime, limit: int) -> list[SessionRow]:
    """Return sessions that no call can use any longer, starting with the one that ended first."""
    query = select(x_sessions).where(x_sessions.c.issuer == issuer, x_sessions.c.over_at <= now)
    return [SessionRow(*row) for row in await connection.execute(query.order_by(x_sessions.c.over_at).limit(limit))]


async def get(connection: AsyncConnection, session_id: str, *, hold: bool = False) -> SessionRow | None:
    """Return one session; `hold` locks its row until the transaction ends."""
    query = select(x_sessions).where(x_sessions.c.session_id == session_id)
    if hold:
        query = query.with_for_update()
    row = (await connection.execute(query)).first()
    return None if row is None else SessionRow(*row)


async def by_undo(connection: AsyncConnection, issuer: str, undo_hashes: Sequence[bytes]) -> dict[bytes, SessionRow]:
    """Return the sessions that undo tokens end, by the tokens' hashes."""
    query = select(x_sessions).where(x_sessions.c.undo_hash.in_(undo_hashes), x_sessions.c.issuer == issuer)
    rows = [SessionRow(*row) for row in await connection.execute(query)]
    return {row.undo_hash: row for row in rows if row.undo_hash is not None}


async def acts_as(connection: AsyncConnection, row: SessionRow) -> bool:
    """Return whether the key of a deleted session has another link to the same account: X might end both."""
    same = [x_sessions.c[name] == getattr(row, name) for name in ("key_id", "issuer", "user_id")]
    return (await connection.execute(select(x_sessions.c.session_id).where(*same))).first() is not None


async def shared(connection: AsyncConnection, row: SessionRow, now: datetime) -> bool:
    """Return whether another session of the same account is in use: X might end both."""
    continues = x_sessions.c.over_at.is_(None) | (x_sessions.c.over_at > now)
    same = [x_sessions.c[name] == getattr(row, name) for name in ("issuer", "user_id")]
    others = (x_sessions.c.session_id != row.session_id, x_sessions.c.state == LinkState.ACTIVE, continues)
    query = select(x_sessions.c.session_id).where(*same, *others).limit(1)
    return (await connection.execute(query)).first() is not None


async def list_all(connection: AsyncConnection) -> list[SessionRow]:
    """Return every session, oldest first."""
    return [SessionRow(*row) for row in await connection.execute(select(x_sessions).order_by(x_sessions.c.created_at))]


async def change(connection: AsyncConnection, session_id: str, gen: int, values: Mapping[str, object]) -> bool:
    """Change a session if it still has this generation; return whether it had."""
    query = update(x_sessions).where(x_sessions.c.session_id == session_id, x_sessions.c.gen == gen)
    key_id = (await connection.execute(query.values(values).returning(x_sessions.c.key_id))).scalar()
    if key_id is not None:
        await announce(connection, key_id)
    return key_id is not None


async def save(connection: AsyncConnection, row: SessionRow, values: Mapping[str, object]) -> None:
    """Store a new pair as SAVE does, in the caller's transaction and in any state; STATE_AFTER_SAVE is the new one."""
    if (await connection.execute(_SAVE_ANY, saved(row, values))).rowcount:
        await announce(connection, row.key_id)


async def mark(connection: AsyncConnection, row: SessionRow, values: Mapping[str, object]) -> bool:
    """Change the mark of a refresh unless it has changed since `row` was read; return whether it was changed."""
    names = ("session_id", "gen", "refresh_state", "presented_by", "tries")
    same = [x_sessions.c[name] == getattr(row, name) for name in names]
    return (await connection.execute(update(x_sessions).where(*same).values(values))).rowcount == 1


async def remove(connection: AsyncConnection, session_id: str) -> SessionRow | None:
    """Delete a session; return the row as it was, or None if it did not exist."""
    query = delete(x_sessions).where(x_sessions.c.session_id == session_id).returning(x_sessions)
    row = (await connection.execute(query)).first()
    if row is None:
        return None
    removed = SessionRow(*row)
    await announce(connection, removed.key_id)
    return removed


async def queue_revocation(connection: AsyncConnection, revocation: Mapping[str, object]) -> None:
    """Queue a token to be revoked at X, given by its columns."""
    await connection.execute(insert(revocations).values(revocation))


async def due_revocations(connection: AsyncConnection, issuer: str, now: datetime, limit: int) -> list[RevocationRow]:
    """Return queued tokens whose next try is due."""
    query = select(revocations).where(revocations.c.issuer == issuer, revocations.c.due_at <= now)
    return [RevocationRow(*row) for row in await connection.execute(query.order_by(revocations.c.due_at).limit(limit))]


async def postpone_revocation(connection: AsyncConnection, revocation_id: str, due_at: datetime, tries: int) -> None:
    """Set when a queued token is tried again."""
    query = update(revocations).where(revocations.c.revocation_id == revocation_id)
    await connection.execute(query.values(due_at=due_at, tries=tries))


async def drop_revocation(connection: AsyncConnection, revocation_id: str) -> None:
    """Delete a queued token: X has revoked it, or does not know it."""
    await connection.execute(delete(revocations).where(revocations.c.revocation_id == revocation_id))
