"""Pending links: one row per `state` given out, kept for a while after its use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Column, ForeignKey, Index, LargeBinary, RowMapping, String, Table, delete, insert, select, update

from birdwire.store.schema import Instant, metadata
from birdwire.store.tables.api_keys import api_keys
from birdwire.store.tables.x_sessions import x_sessions

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
"""taken_at: the callback began. ended_at: it ended, with a session or with a refusal (JSON: its reason and values)."""


async def add(connection: AsyncConnection, state: Mapping[str, object]) -> None:
    """A new state."""
    await connection.execute(insert(link_states).values(state))


async def trim(
    connection: AsyncConnection, key_id: str, *, keep: int, ended_before: datetime, expired_before: datetime
) -> None:
    """Drop a key's oldest states over `keep`, used or not, and every state that expired before a given time.

    A state whose callback is under way stays, and so does one that led to a link, until a time after its end: the
    page of that link still offers its undo.
    """
    await connection.execute(delete(link_states).where(link_states.c.expires_at < expired_before))
    refused = link_states.c.ended_at.is_not(None) & link_states.c.session_id.is_(None)
    idle = link_states.c.taken_at.is_(None) | refused | (link_states.c.ended_at < ended_before)
    own = select(link_states.c.state_hash).where(link_states.c.key_id == key_id, idle)
    surplus = own.order_by(link_states.c.created_at.desc()).offset(keep)
    await connection.execute(delete(link_states).where(link_states.c.state_hash.in_(surplus)))


async def take(connection: AsyncConnection, state_hash: bytes, taken_at: datetime) -> RowMapping | None:
    """Use a state up, if nobody did before: one statement, so that a thousand at once still have one winner."""
    query = update(link_states).where(link_states.c.state_hash == state_hash, link_states.c.taken_at.is_(None))
    taken = await connection.execute(query.values(taken_at=taken_at).returning(*link_states.c))
    return taken.mappings().first()


async def drop_open(connection: AsyncConnection, key_id: str) -> None:
    """Drop the states of a key that have not led to a session, those whose callback is under way included."""
    await connection.execute(
        delete(link_states).where(link_states.c.key_id == key_id, link_states.c.session_id.is_(None))
    )


async def find(connection: AsyncConnection, state_hash: bytes) -> RowMapping | None:
    """A state, taken or not."""
    query = select(link_states).where(link_states.c.state_hash == state_hash)
    return (await connection.execute(query)).mappings().first()


async def outcomes(connection: AsyncConnection, state_hashes: Sequence[bytes]) -> dict[bytes, RowMapping]:
    """Return states, taken or not, by hash; with each its key, and the session it led to if that still exists.

    `state`, `expires_at` and what follows them are the session's.
    """
    led_to = link_states.c.session_id == x_sessions.c.session_id
    query = select(
        link_states.c.state_hash,
        *(link_states.c[name] for name in ("session_id", "taken_at", "ended_at", "return_to", "refusal")),
        *(api_keys.c[name] for name in ("label", "actions", "daily_writes", "revoked_at")),
        api_keys.c.expires_at.label("key_expires_at"),
        api_keys.c.return_to.label("return_to_allowed"),
        *(x_sessions.c[name] for name in ("state", "why", "username", "scopes", "undo_hash", "undo_until")),
        *(x_sessions.c[name] for name in ("expires_at", "refresh_ct", "refresh_state")),
    ).select_from(link_states.join(api_keys).outerjoin(x_sessions, led_to))
    rows = (await connection.execute(query.where(link_states.c.state_hash.in_(state_hashes)))).mappings()
    return {row["state_hash"]: row for row in rows}


async def newest(connection: AsyncConnection, key_id: str, issuer: str) -> RowMapping | None:
    """Return the state that a key was given last."""
    query = select(link_states).where(link_states.c.key_id == key_id, link_states.c.issuer == issuer)
    return (await connection.execute(query.order_by(link_states.c.created_at.desc()).limit(1))).mappings().first()


async def note_session(connection: AsyncConnection, state_hash: bytes, session_id: str) -> bool:
    """Store which session a taken state led to; whether the state is still there."""
    query = update(link_states).where(link_states.c.state_hash == state_hash)
    return (await connection.execute(query.values(session_id=session_id))).rowcount == 1


async def refuse(connection: AsyncConnection, key_id: str, session_id: str, refusal: str) -> None:
    """Record why the state that led to one of a key's sessions has no link any more."""
    query = update(link_states).where(link_states.c.key_id == key_id, link_states.c.session_id == session_id)
    await connection.execute(query.values(refusal=refusal))


async def end(connection: AsyncConnection, state_hash: bytes, ended_at: datetime, refusal: str | None) -> None:
    """Record that the callback of a taken state has ended, and why nothing was linked, if so.

    A refusal that is recorded already stays: a call may have ended the link meanwhile.
    """
    query = update(link_states).where(link_states.c.state_hash == state_hash).values(ended_at=ended_at)
    await connection.execute(query if refusal is None else query.values(refusal=refusal))
