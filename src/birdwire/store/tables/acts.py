"""Acts: append-only rows of who changed which key, link or database, written with the change itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sqlalchemy import JSON, Column, Index, Integer, String, Table, func, insert, select

from birdwire.runtime.clock import rfc3339
from birdwire.store.engines.change_feed import announce
from birdwire.store.schema import Instant, json_text, metadata

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Select
    from sqlalchemy.ext.asyncio import AsyncConnection

Act = Literal[
    "key.created",
    "key.changed",
    "key.rotated",
    "key.revoked",
    "link.started",
    "link.approved",
    "link.named",
    "link.activated",
    "link.denied",
    "link.mismatched",
    "link.undone",
    "link.unlinked",
    "link.expired",
    "link.needs_relink",
    "policy.set",
    "policy.unset",
    "paused",
    "resumed",
    "approval.approved",
    "approval.denied",
    "approval.edited",
    "approval.cancelled",
    "approval.link_made",
    "deletion.ordered",
    "notify.set",
    "notify.rotated",
    "notify.off",
    "notify.switched_off",
    "notify.switched_on",
    "vault.key_added",
    "vault.rotated",
    "database.moved",
    "database.restored",
]


class Actor(NamedTuple):
    """Who acts, and through what: an OS user by the command line, a key by HTTP, an account's owner by a page."""

    who: str
    via: Literal["cli", "http", "page", "gateway"]


GATEWAY = Actor("birdwire", "gateway")
"""The gateway itself, which records what expires and what X ends."""

NOTIFICATION = Actor("notification", "gateway")
"""Birdwire, which makes the links of notifications. A decision by such a link names it, since its holder is unknown."""

UNNAMED_OWNER = "account_owner"
"""Stands for an account's owner where X has not named the account."""

DATABASE = "database"
"""The subject of an act on the whole database. Other subjects are the ids of API keys, of vault keys, and scopes."""

MAX_WHO, MAX_VALUE = 100, 1_000
"""Characters of `who`, and of one changed field as JSON."""

REPEATABLE = frozenset(
    {"link.started", "link.approved", "link.named", "link.denied", "link.mismatched", "link.expired"}
    | {"approval.cancelled", "approval.link_made"}
)
"""Acts that callers can repeat without limit and without changing a link in use. So is the end of a pending link.

Each request for an approval can make Birdwire add a link to a notification, for which it records an act.
"""

MAX_REPEATED, REPEATED_WITHIN = 20, timedelta(minutes=10)
"""How many acts of one REPEATABLE kind are recorded per key, so that a caller cannot fill the disk with them."""

acts = Table(
    "acts",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("at", Instant, nullable=False),
    Column("who", String, nullable=False),
    Column("via", String, nullable=False),
    Column("act", String, nullable=False),
    Column("subject", String, nullable=False),
    Column("before", JSON(none_as_null=True)),
    Column("after", JSON(none_as_null=True)),
    Index("acts_subject", "subject", "act", "number"),
    sqlite_autoincrement=True,
)
"""before, after: the fields that the act changed, never a secret. The database refuses to change or delete a row."""


@dataclass(frozen=True, slots=True)
class ActRow:
    """A row of `acts`, with its columns in their order."""

    number: int
    at: datetime
    who: str
    via: str
    act: Act
    subject: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


async def append(
    connection: AsyncConnection,
    at: datetime,
    by: Actor,
    act: Act,
    subject: str,
    *,
    before: Mapping[str, object] | None = None,
    after: Mapping[str, object] | None = None,
) -> None:
    """Record an act in the transaction that makes the change, and announce it to the gateways, which log it."""
    repeatable = act in REPEATABLE or (before is not None and before.get("state") == "pending")
    if repeatable and by.via != "cli":
        earlier = (await connection.execute(_newest(subject, act).offset(MAX_REPEATED - 1))).first()
        if earlier is not None and earlier.at > at - REPEATED_WITHIN:
            return
    row = {"at": at, "who": by.who[:MAX_WHO], "via": by.via, "act": act, "subject": subject}
    await connection.execute(insert(acts).values(**row, before=_bounded(before), after=_bounded(after)))
    await announce(connection, subject)


async def listed(connection: AsyncConnection, subject: str | None, since: datetime | None, limit: int) -> list[ActRow]:
    """Return the newest acts, the last one first."""
    query = select(acts).order_by(acts.c.number.desc()).limit(limit)
    if subject is not None:
        query = query.where(acts.c.subject == subject)
    if since is not None:
        query = query.where(acts.c.at >= since)
    return [ActRow(*row) for row in await connection.execute(query)]


async def after(connection: AsyncConnection, number: int, limit: int) -> list[ActRow]:
    """Return the first acts with a higher number than this one."""
    query = select(acts).where(acts.c.number > number).order_by(acts.c.number).limit(limit)
    return [ActRow(*row) for row in await connection.execute(query)]


async def last(connection: AsyncConnection) -> int:
    """Return the highest number, or 0 if there is no act."""
    return int((await connection.execute(select(func.coalesce(func.max(acts.c.number), 0)))).scalar_one())


async def undone_since(connection: AsyncConnection, key_id: str, since: datetime) -> bool:
    """Return whether the account's owner undid the key's last link after the given time."""
    undone = (await connection.execute(_newest(key_id, "link.undone"))).first()
    if undone is None or undone.at <= since:
        return False
    linked = (await connection.execute(_newest(key_id, "link.activated"))).first()
    return linked is None or bool(linked.number < undone.number)


def _newest(subject: str, act: Act) -> Select[Any]:
    """Select the last act of a kind; an index finds it, however many acts there are."""
    return select(acts).where(acts.c.subject == subject, acts.c.act == act).order_by(acts.c.number.desc()).limit(1)


def _bounded(fields: Mapping[str, object] | None) -> dict[str, object] | None:
    """Return fields as JSON can hold them; the length replaces a value that is too long."""
    if fields is None:
        return None
    values = {name: rfc3339(value) if isinstance(value, datetime) else value for name, value in fields.items()}
    sizes = {name: len(json_text(value)) for name, value in values.items()}
    return {name: value if sizes[name] <= MAX_VALUE else f"{sizes[name]} characters" for name, value in values.items()}
