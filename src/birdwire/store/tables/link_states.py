"""Authorization requests of links: one row per OAuth `state`, kept for a while after its use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import Column, ForeignKey, Index, LargeBinary, String, Table, delete, insert, select, update

from birdwire.store.schema import Instant, metadata
from birdwire.store.tables.api_keys import api_keys
from birdwire.store.tables.x_sessions import SessionRow, x_sessions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

link_states = Table(
    "link_states",
    metadata,
    Column("state_hash", LargeBinary, primary_key=True),
    Column("key_id", String, ForeignKey("api_keys.key_id"), nullable=False),
    Column("issuer", String, nullable=False),
    Column("redirect_uri", String, nullable=False),
    Column("verifier_ct", LargeBinary, nullable=False),
    Column("scopes", String, nullable=False),
    Column("expected_username", String),
    Column("return_to", String),
    Column("created_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    Column("taken_at", Instant),
    Column("session_id", String),
    Column("ended_at", Instant),
    Column("refusal", String),
    Index("link_states_key", "key_id", "created_at"),
    Index("link_states_end", "expires_at"),
)
"""taken_at: the callback started. ended_at: it finished, with a session or with a refusal (JSON: reason and values)."""


@dataclass(frozen=True, slots=True)
class StateRow:
    """A row of `link_states`, with its columns in their order."""

    state_hash: bytes = field(repr=False)
    key_id: str
    issuer: str
    redirect_uri: str
    verifier_ct: bytes = field(repr=False)
    scopes: str
    expected_username: str | None
    return_to: str | None
    created_at: datetime
    expires_at: datetime
    taken_at: datetime | None
    session_id: str | None
    ended_at: datetime | None
    refusal: str | None


@dataclass(frozen=True, slots=True)
class StateKey:
    """What the callback page needs of a state's key."""

    label: str
    actions: Sequence[str] | None
    daily_writes: int | None
    expires_at: datetime | None
    revoked_at: datetime | None
    return_to: Sequence[str] | None


@dataclass(frozen=True, slots=True)
class StateOutcome:
    """A state, its key, and the session that it led to, if that still exists."""

    state: StateRow
    key: StateKey
    session: SessionRow | None


async def add(connection: AsyncConnection, state: Mapping[str, object]) -> None:
    """Insert a new state, given by its columns."""
    await connection.execute(insert(link_states).values(state))


async def trim(
    connection: AsyncConnection, key_id: str, *, keep: int, ended_before: datetime, expired_before: datetime
) -> None:
    """Delete a key's oldest states beyond `keep`, used or not, and every state that expired before a given time.

    A state whose callback is running stays, and so does one that led to a link, until a given time after its end: the
    page of that link still offers its undo.
    """
    await connection.execute(delete(link_states).where(link_states.c.expires_at < expired_before))
    refused = link_states.c.ended_at.is_not(None) & link_states.c.session_id.is_(None)
    idle = link_states.c.taken_at.is_(None) | refused | (link_states.c.ended_at < ended_before)
    own = select(link_states.c.state_hash).where(link_states.c.key_id == key_id, idle)
    surplus = own.order_by(link_states.c.created_at.desc()).offset(keep)
    await connection.execute(delete(link_states).where(link_states.c.state_hash.in_(surplus)))


async def take(connection: AsyncConnection, state_hash: bytes, taken_at: datetime) -> StateRow | None:
    """Mark a state as used unless it was: one statement, so that a thousand concurrent callers have one winner."""
    query = update(link_states).where(link_states.c.state_hash == state_hash, link_states.c.taken_at.is_(None))
    row = (await connection.execute(query.values(taken_at=taken_at).returning(*link_states.c))).first()
    return None if row is None else StateRow(*row)


async def drop_open(connection: AsyncConnection, key_id: str) -> None:
    """Delete a key's states that have not led to a session, including those whose callback is running."""
    await connection.execute(
        delete(link_states).where(link_states.c.key_id == key_id, link_states.c.session_id.is_(None))
    )


async def find(connection: AsyncConnection, state_hash: bytes) -> StateRow | None:
    """Return a state, used or not."""
    row = (await connection.execute(select(link_states).where(link_states.c.state_hash == state_hash))).first()
    return None if row is None else StateRow(*row)


_KEY = [api_keys.c[name] for name in ("label", "actions", "daily_writes", "expires_at", "revoked_at", "return_to")]
_KEY_AT = len(link_states.c)
_SESSION_AT = _KEY_AT + len(_KEY)


async def outcomes(connection: AsyncConnection, state_hashes: Sequence[bytes]) -> dict[bytes, StateOutcome]:
    """Return states, used or not, by hash, each with its key and the session that it led to."""
    led_to = link_states.c.session_id == x_sessions.c.session_id
    joined = link_states.join(api_keys).outerjoin(x_sessions, led_to)
    query = select(*link_states.c, *_KEY, *x_sessions.c).select_from(joined)
    found = {}
    for row in await connection.execute(query.where(link_states.c.state_hash.in_(state_hashes))):
        state, key, session = StateRow(*row[:_KEY_AT]), StateKey(*row[_KEY_AT:_SESSION_AT]), row[_SESSION_AT:]
        # The first column of a session is its primary key: it is null if there is none.
        found[state.state_hash] = StateOutcome(state, key, None if session[0] is None else SessionRow(*session))
    return found


async def newest(connection: AsyncConnection, key_id: str, issuer: str) -> StateRow | None:
    """Return the state that was made last for a key."""
    query = select(link_states).where(link_states.c.key_id == key_id, link_states.c.issuer == issuer)
    row = (await connection.execute(query.order_by(link_states.c.created_at.desc()).limit(1))).first()
    return None if row is None else StateRow(*row)


async def note_session(connection: AsyncConnection, state_hash: bytes, session_id: str) -> bool:
    """Store which session a used state led to; return whether the state still exists."""
    query = update(link_states).where(link_states.c.state_hash == state_hash)
    return (await connection.execute(query.values(session_id=session_id))).rowcount == 1


async def refuse(connection: AsyncConnection, key_id: str, session_id: str, refusal: str) -> None:
    """Store why the state that led to one of a key's sessions has no link any longer."""
    query = update(link_states).where(link_states.c.key_id == key_id, link_states.c.session_id == session_id)
    await connection.execute(query.values(refusal=refusal))


async def end(connection: AsyncConnection, state_hash: bytes, ended_at: datetime, refusal: str | None) -> None:
    """Store that the callback of a used state has finished and, if nothing was linked, why.

    A refusal that is already stored stays: a call may have ended the link in the meantime.
    """
    query = update(link_states).where(link_states.c.state_hash == state_hash).values(ended_at=ended_at)
    await connection.execute(query if refusal is None else query.values(refusal=refusal))
