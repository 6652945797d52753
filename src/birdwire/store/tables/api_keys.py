"""API keys, their secrets and their daily writes, as rows. Of a secret, only the SHA-256 is stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sqlalchemy import (
    JSON,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
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


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A row of `api_keys`, with its columns in their order."""

    key_id: str
    mode: Literal["live", "test"]
    label: str
    tier: str
    rpm: int | None
    text_limit: int | None
    daily_writes: int | None
    actions: list[str] | None
    ips: list[str] | None
    return_to: list[str] | None
    account_username: str | None
    account_user_id: str | None
    expires_at: datetime | None
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class SecretRow:
    """A row of `api_secrets`, with its columns in their order. `hint`: the secret's last four characters."""

    secret_hash: bytes = field(repr=False)
    key_id: str
    hint: str
    created_at: datetime
    dies_at: datetime | None


@dataclass(frozen=True, slots=True)
class FoundKey:
    """A key that was found by a secret, with the secret's hash and expiry."""

    key: KeyRow
    secret_hash: bytes = field(repr=False)
    dies_at: datetime | None


@dataclass(frozen=True, slots=True)
class Pin:
    """The X account that a key is pinned to; `account_user_id` is None until a link has identified the account."""

    account_username: str
    account_user_id: str | None


async def add(connection: AsyncConnection, key: Mapping[str, object]) -> None:
    """Insert a key, given by its columns."""
    await connection.execute(insert(connection, api_keys).values(key))


async def add_secret(connection: AsyncConnection, secret: Mapping[str, object]) -> None:
    """Insert a secret of a key, given by its columns."""
    await connection.execute(insert(connection, api_secrets).values(secret))
    await announce(connection, str(secret["key_id"]))


async def find(connection: AsyncConnection, secret_hash: bytes) -> FoundKey | None:
    """Return the key whose secret has this hash."""
    return (await find_all(connection, [secret_hash])).get(secret_hash)


async def find_all(connection: AsyncConnection, secret_hashes: Sequence[bytes]) -> dict[bytes, FoundKey]:
    """Return the keys whose secrets have these hashes, by hash, in one lookup."""
    query = select(api_keys, api_secrets.c.secret_hash, api_secrets.c.dies_at).join(api_secrets)
    rows = await connection.execute(query.where(api_secrets.c.secret_hash.in_(secret_hashes)))
    return {secret_hash: FoundKey(KeyRow(*key), secret_hash, dies_at) for *key, secret_hash, dies_at in rows}


async def get(connection: AsyncConnection, key_id: str) -> KeyRow | None:
    """Return one key."""
    row = (await connection.execute(select(api_keys).where(api_keys.c.key_id == key_id))).first()
    return None if row is None else KeyRow(*row)


async def named(connection: AsyncConnection, key_id: str) -> dict[str, str]:
    """Return a key as events name it."""
    label = (await connection.execute(select(api_keys.c.label).where(api_keys.c.key_id == key_id))).scalar()
    return {"key_id": key_id, "label": key_id if label is None else label}


async def hold(connection: AsyncConnection, key_id: str) -> bool:
    """Lock what belongs to a key (its secrets, its links) until the transaction ends; return whether the key is live.

    Every transaction that reads them before it changes them starts with this lock, so that transactions cannot
    deadlock. It does not block calls that use the key.
    """
    query = select(api_keys.c.revoked_at).where(api_keys.c.key_id == key_id).with_for_update(key_share=True)
    row = (await connection.execute(query)).first()
    return row is not None and row.revoked_at is None


async def may(connection: AsyncConnection, key_id: str, action: str) -> bool:
    """Return whether a key may do an action; a key without a list of actions may do everything."""
    row = await get(connection, key_id)
    return row is not None and (not row.actions or action in row.actions)


async def list_all(connection: AsyncConnection) -> list[KeyRow]:
    """Return every key, oldest first."""
    return [KeyRow(*row) for row in await connection.execute(select(api_keys).order_by(api_keys.c.created_at))]


async def secrets_of(connection: AsyncConnection, key_id: str) -> list[SecretRow]:
    """Return a key's secrets, newest first: the newest is the one that never expires, even if a clock stepped back."""
    order = (api_secrets.c.dies_at.is_not(None), api_secrets.c.created_at.desc())
    query = select(api_secrets).where(api_secrets.c.key_id == key_id).order_by(*order)
    return [SecretRow(*row) for row in await connection.execute(query)]


async def expire_secret(connection: AsyncConnection, secret_hash: bytes, dies_at: datetime) -> None:
    """Set when a secret expires."""
    query = update(api_secrets).where(api_secrets.c.secret_hash == secret_hash).values(dies_at=dies_at)
    for key_id in (await connection.execute(query.returning(api_secrets.c.key_id))).scalars().all():
        await announce(connection, key_id)


async def change(connection: AsyncConnection, key_id: str, values: Mapping[str, object]) -> None:
    """Change a key's label, limits or rules."""
    await connection.execute(update(api_keys).where(api_keys.c.key_id == key_id).values(values))
    await announce(connection, key_id)


async def pin_of(connection: AsyncConnection, key_id: str) -> Pin | None:
    """Return the account that a key is pinned to."""
    pinned = (api_keys.c.key_id == key_id, api_keys.c.account_username.is_not(None))
    query = select(api_keys.c.account_username, api_keys.c.account_user_id).where(*pinned)
    row = (await connection.execute(query)).first()
    return None if row is None else Pin(*row)


async def identify(connection: AsyncConnection, key_id: str, user_id: str, username: str) -> None:
    """Store which account a pinned key is linked to; a key without a pin stays as it is."""
    pinned = update(api_keys).where(api_keys.c.key_id == key_id, api_keys.c.account_username.is_not(None))
    if (await connection.execute(pinned.values(account_user_id=user_id, account_username=username))).rowcount:
        await announce(connection, key_id)


async def revoke(connection: AsyncConnection, key_id: str, revoked_at: datetime) -> bool:
    """Revoke a key, unless it is revoked already; return whether this call revoked it."""
    query = update(api_keys).where(api_keys.c.key_id == key_id, api_keys.c.revoked_at.is_(None))
    revoked = (await connection.execute(query.values(revoked_at=revoked_at))).rowcount == 1
    await announce(connection, key_id)
    return revoked


async def spend_write(connection: AsyncConnection, key_id: str, day: str, cap: int) -> bool:
    """Count one write of a key's day (such as 2026-04-18), unless `cap` are counted already; return whether it was."""
    other_days = delete(daily_writes).where(daily_writes.c.key_id == key_id, daily_writes.c.day != day)
    first = insert(connection, daily_writes).values(key_id=key_id, day=day, used=1).on_conflict_do_nothing()
    if (await connection.execute(first)).rowcount:
        await connection.execute(other_days)
        return True
    today = (daily_writes.c.key_id == key_id, daily_writes.c.day == day, daily_writes.c.used < cap)
    query = update(daily_writes).where(*today).values(used=daily_writes.c.used + 1)
    return (await connection.execute(query)).rowcount == 1


async def spent_writes(connection: AsyncConnection, key_id: str, day: str) -> int:
    """Return how many writes of a key's day are counted."""
    query = select(daily_writes.c.used).where(daily_writes.c.key_id == key_id, daily_writes.c.day == day)
    return (await connection.execute(query)).scalar() or 0
