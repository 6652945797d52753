"""API keys and their secrets, as rows. A secret is here only as its SHA-256."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import (
    JSON,
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
    update,
)

from birdwire.store.engines.change_feed import announce
from birdwire.store.schema import Instant, insert, metadata

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

api_keys = Table(
    "api_keys",
    metadata,
    Column("key_id", String, primary_key=True),
    Column("mode", String, nullable=False),
    Column("label", String, nullable=False),
    Column("tier", String, nullable=False),
    Column("rpm", Integer),
    Column("text_limit", Integer),
    Column("daily_writes", Integer),
    Column("actions", JSON),
    Column("ips", JSON),
    Column("return_to", JSON),
    Column("account_username", String),
    Column("account_user_id", String),
    Column("expires_at", Instant),
    Column("created_at", Instant, nullable=False),
    Column("revoked_at", Instant),
)

api_secrets = Table(
    "api_secrets",
    metadata,
    Column("secret_hash", LargeBinary, primary_key=True),
    Column("key_id", String, ForeignKey("api_keys.key_id"), nullable=False),
    Column("hint", String, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("dies_at", Instant),
    Index("api_secrets_key", "key_id"),
)

daily_writes = Table(
    "daily_writes",
    metadata,
    Column("key_id", String, ForeignKey("api_keys.key_id"), primary_key=True),
    Column("day", String, primary_key=True),
    Column("used", Integer, nullable=False),
)


async def add(connection: AsyncConnection, key: Mapping[str, object]) -> None:
    """A new key."""
    await connection.execute(insert(connection, api_keys).values(key))


async def add_secret(connection: AsyncConnection, secret: Mapping[str, object]) -> None:
    """A new secret of a key."""
    await connection.execute(insert(connection, api_secrets).values(secret))
    await announce(connection, str(secret["key_id"]))


async def find(connection: AsyncConnection, secret_hash: bytes) -> RowMapping | None:
    """The key and secret with this hash, in one look-up."""
    return (await find_all(connection, [secret_hash])).get(secret_hash)


async def find_all(connection: AsyncConnection, secret_hashes: Sequence[bytes]) -> dict[bytes, RowMapping]:
    """Return the keys and secrets with these hashes, in one look-up, by hash."""
    query = select(api_keys, api_secrets.c.secret_hash, api_secrets.c.dies_at).join(api_secrets)
    rows = (await connection.execute(query.where(api_secrets.c.secret_hash.in_(secret_hashes)))).mappings()
    return {row["secret_hash"]: row for row in rows}


async def get(connection: AsyncConnection, key_id: str) -> RowMapping | None:
    """One key."""
    return (await connection.execute(select(api_keys).where(api_keys.c.key_id == key_id))).mappings().first()


async def hold(connection: AsyncConnection, key_id: str) -> bool:
    """Let nobody else change what hangs on a key (its secrets, its links) until the transaction ends; whether it lives.

    Every transaction that looks at them before it changes them begins with this, so that none waits for another in a
    circle. Calls with the key are not held up.
    """
    query = select(api_keys.c.revoked_at).where(api_keys.c.key_id == key_id).with_for_update(key_share=True)
    row = (await connection.execute(query)).first()
    return row is not None and row.revoked_at is None


async def may(connection: AsyncConnection, key_id: str, action: str) -> bool:
    """Return whether a key's actions name this one; a key without a list may do everything."""
    row = await get(connection, key_id)
    return row is not None and (not row["actions"] or action in row["actions"])


async def list_all(connection: AsyncConnection) -> Sequence[RowMapping]:
    """Every key, oldest first."""
    return (await connection.execute(select(api_keys).order_by(api_keys.c.created_at))).mappings().all()


async def secrets_of(connection: AsyncConnection, key_id: str) -> Sequence[RowMapping]:
    """A key's secrets, newest first: it is the one without an end, whatever a clock that was put back has written."""
    order = (api_secrets.c.dies_at.is_not(None), api_secrets.c.created_at.desc())
    query = select(api_secrets).where(api_secrets.c.key_id == key_id).order_by(*order)
    return (await connection.execute(query)).mappings().all()


async def let_secret_die(connection: AsyncConnection, secret_hash: bytes, dies_at: datetime) -> None:
    """Give a secret its end."""
    query = update(api_secrets).where(api_secrets.c.secret_hash == secret_hash).values(dies_at=dies_at)
    for key_id in (await connection.execute(query.returning(api_secrets.c.key_id))).scalars().all():
        await announce(connection, key_id)


async def change(connection: AsyncConnection, key_id: str, values: Mapping[str, object]) -> None:
    """Give a key another label, limit or rule."""
    await connection.execute(update(api_keys).where(api_keys.c.key_id == key_id).values(values))
    await announce(connection, key_id)


async def pin_of(connection: AsyncConnection, key_id: str) -> RowMapping | None:
    """Return `account_username` and `account_user_id` of a pinned key."""
    pinned = (api_keys.c.key_id == key_id, api_keys.c.account_username.is_not(None))
    query = select(api_keys.c.account_username, api_keys.c.account_user_id).where(*pinned)
    return (await connection.execute(query)).mappings().first()


async def identify(connection: AsyncConnection, key_id: str, user_id: str, username: str) -> None:
    """Store which account a pinned key is linked to; a key without a pin stays as it is."""
    pinned = update(api_keys).where(api_keys.c.key_id == key_id, api_keys.c.account_username.is_not(None))
    if (await connection.execute(pinned.values(account_user_id=user_id, account_username=username))).rowcount:
        await announce(connection, key_id)


async def revoke(connection: AsyncConnection, key_id: str, revoked_at: datetime) -> bool:
    """End a key; the first end stands. Returns whether this is it."""
    query = update(api_keys).where(api_keys.c.key_id == key_id, api_keys.c.revoked_at.is_(None))
    ended = (await connection.execute(query.values(revoked_at=revoked_at))).rowcount == 1
    await announce(connection, key_id)
    return ended


async def spend_write(connection: AsyncConnection, key_id: str, day: str, cap: int) -> bool:
    """Count one write of a key's day (such as 2026-04-18), if fewer than `cap` are counted; whether it was."""
    other_days = delete(daily_writes).where(daily_writes.c.key_id == key_id, daily_writes.c.day != day)
    begin = insert(connection, daily_writes).values(key_id=key_id, day=day, used=1).on_conflict_do_nothing()
    if (await connection.execute(begin)).rowcount:
        await connection.execute(other_days)
        return True
    today = (daily_writes.c.key_id == key_id, daily_writes.c.day == day, daily_writes.c.used < cap)
    query = update(daily_writes).where(*today).values(used=daily_writes.c.used + 1)
    return (await connection.execute(query)).rowcount == 1
