"""Policies: append-only versions of the rules of a key, an account or the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Column, Integer, String, Table, func, select

from birdwire.store.engines.change_feed import announce
from birdwire.store.schema import Instant, JSONText, insert, metadata

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from sqlalchemy import Select
    from sqlalchemy.ext.asyncio import AsyncConnection

policies = Table(
    "policies",
    metadata,
    Column("scope", String, primary_key=True),
    Column("author", String, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("enforcement", String, nullable=False),
    Column("preset", String),
    Column("rules", JSONText),
    Column("changed_at", Instant, nullable=False),
    Column("changed_by", String, nullable=False),
)
"""scope: a key's id, `account:USER_ID`, or `gateway`. rules: null in a version that removes the policy.

The database refuses to change or delete a row.
"""


@dataclass(frozen=True, slots=True)
class PolicyRow:
    """A row of `policies`, with its columns in their order. `rules` is not checked: it may be any JSON value."""

    scope: str
    author: Literal["operator", "owner"]
    version: int
    enforcement: Literal["enforce", "shadow"]
    preset: str | None
    rules: object | None
    changed_at: datetime
    changed_by: str


async def latest(connection: AsyncConnection, scopes: Collection[str]) -> list[PolicyRow]:
    """Return the newest version of each policy of these scopes, including those that remove it."""
    query = _newest().where(policies.c.scope.in_(scopes))
    return [PolicyRow(*row) for row in await connection.execute(query)]


async def all_latest(connection: AsyncConnection) -> list[PolicyRow]:
    """Return the newest version of every policy."""
    return [PolicyRow(*row) for row in await connection.execute(_newest())]


async def history(connection: AsyncConnection, scope: str, limit: int) -> list[PolicyRow]:
    """Return the newest versions of a scope's policies, the last one first."""
    query = select(policies).where(policies.c.scope == scope)
    query = query.order_by(policies.c.changed_at.desc(), policies.c.version.desc(), policies.c.author).limit(limit)
    return [PolicyRow(*row) for row in await connection.execute(query)]


async def append(connection: AsyncConnection, row: PolicyRow) -> bool:
    """Add a version and announce its scope; return False if another process has added this version first."""
    values = {column.name: getattr(row, column.name) for column in policies.columns}
    added = await connection.execute(insert(connection, policies).values(values).on_conflict_do_nothing())
    if added.rowcount == 1:
        await announce(connection, row.scope)
    return added.rowcount == 1


def _newest() -> Select[Any]:
    other = policies.alias("other")
    same = (other.c.scope == policies.c.scope, other.c.author == policies.c.author)
    last = select(func.max(other.c.version)).where(*same).scalar_subquery()
    return select(policies).where(policies.c.version == last).order_by(policies.c.scope, policies.c.author)
