"""Approvals: the writes that a person is asked about, the images that are shown with them, and signed links.

The state of a write is that of its row in the journal, and nowhere else. A row here holds what a decision needs, and
what Birdwire needs to send the write later. The unit that ends the write removes its payload and its files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    and_,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from birdwire.store.engines.group_commit import Part
from birdwire.store.schema import Instant, index_of_some, metadata
from birdwire.store.tables.journal import SETTLE, SETTLE_CHARGED, WAITING, JournalRow, State, Why, journal

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection

approvals = Table(
    "approvals",
    metadata,
    Column("request_id", String, ForeignKey("journal.request_id", ondelete="CASCADE"), primary_key=True),
    Column("key_id", String, nullable=False),
    Column("user_id", String, nullable=False),
    Column("username", String, nullable=False),
    Column("session_id", String),
    Column("operation", String, nullable=False),
    Column("payload_sha256", String, nullable=False),
    Column("payload_ct", LargeBinary),
    Column("approve_by", String, nullable=False),
    Column("cost_microusd", Integer),
    Column("ordered", Boolean, nullable=False),
    Column("expires_at", Instant, nullable=False),
    Column("media_until", Instant),
    Column("edited_from", String),
    Column("decided_at", Instant),
    Column("decided_by", String),
    Column("note", String),
    Column("due_at", Instant),
    Column("ended_at", Instant),
    Column("refusal_ct", LargeBinary),
    Index("approvals_waiting", "ended_at", "expires_at"),
    Index("approvals_key", "key_id", "payload_sha256"),
)
"""session_id: the link by which the write was asked for; null: any active link to the account. payload_ct: what is to
be sent, encrypted (`outcomes.approval_payload`); null once the write has ended. ordered: the operator ordered the write
and nobody was asked; rules of the key, policies and pauses do not hold it.

expires_at: when the write ends if nothing happens: without a decision, or approved and not sent. media_until: five
minutes before X deletes the first of its files; null without files. edited_from: the hash of what the caller asked
for, if a person has edited it.

due_at: when a gateway must act on it: let it expire, send it, see whether its process is alive, or report its end;
null: nothing is to be done. ended_at: when the write ended, or its outcome became unknown. refusal_ct: the body of the
final refusal, encrypted, if it is more than the journal's reason.
"""

approval_files = Table(
    "approval_files",
    metadata,
    Column("request_id", String, ForeignKey("approvals.request_id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("blob_ct", LargeBinary, nullable=False),
)
"""The images that are shown to the person who decides, encrypted. `number` is the file's place in the payload."""

approval_links = Table(
    "approval_links",
    metadata,
    Column("token_hash", LargeBinary, primary_key=True),
    Column("request_id", String, ForeignKey("approvals.request_id", ondelete="CASCADE"), nullable=False),
    Column("made_by", String, nullable=False),
    Column("made_at", Instant, nullable=False),
    Column("used_at", Instant),
    Index("approval_links_request", "request_id"),
)
"""token_hash: the SHA-256 of the token, which is stored nowhere. used_at: when it decided."""

index_of_some("approvals_due", approvals.c.due_at)
index_of_some("approvals_edited", approvals.c.edited_from)


@dataclass(frozen=True, slots=True)
class ApprovalRow:
    """A row of `approvals`, with its columns in their order."""

    request_id: str
    key_id: str
    user_id: str
    username: str
    session_id: str | None
    operation: str
    payload_sha256: str
    payload_ct: bytes | None = field(repr=False)
    approve_by: str
    cost_microusd: int | None
    ordered: bool
    expires_at: datetime
    media_until: datetime | None
    edited_from: str | None
    decided_at: datetime | None
    decided_by: str | None
    note: str | None
    due_at: datetime | None
    ended_at: datetime | None
    refusal_ct: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class LinkRow:
    """A row of `approval_links`, with its columns in their order."""

    token_hash: bytes = field(repr=False)
    request_id: str
    made_by: str
    made_at: datetime
    used_at: datetime | None


# Parts of the units of the group commit.

_STARTED = ("owner", "started_at", "due_at", "words_ct", "cost_microusd", "spent", "decision", "features_ct")
_IS_STARTED, _IS_OWN = journal.c.state == State.STARTED, journal.c.owner == bindparam("of_owner")


def starting(request_id: str, values: Mapping[str, object]) -> dict[str, object]:
    """Return the parameters of START and PUT_BACK; columns that `values` does not name become null."""
    return {"of": request_id} | {f"new_{name}": values.get(name) for name in _STARTED}


START = (
    update(journal)
    .where(journal.c.request_id == bindparam("of"), journal.c.state == State.APPROVED)
    .values({name: bindparam(f"new_{name}") for name in _STARTED} | {"state": State.STARTED})
)
"""Start an approved write: the only claim. Its parameters are `of` and new_COLUMN for each column of STARTED."""

PUT_BACK = (
    update(journal)
    .where(journal.c.request_id == bindparam("of"), _IS_OWN, _IS_STARTED)
    .values({name: bindparam(f"new_{name}") for name in _STARTED} | {"state": State.APPROVED})
)
"""Undo START while its process still owns the write."""

TAKE_OVER = (
    update(journal)
    .where(journal.c.request_id == bindparam("of"), _IS_OWN, _IS_STARTED)
    .values(owner=bindparam("new_owner"), looks=journal.c.looks + 1)
)
"""Make another process the owner of a started write, whose process is dead."""

SETTLE_OWN, SETTLE_OWN_CHARGED = SETTLE.where(_IS_OWN), SETTLE_CHARGED.where(_IS_OWN)
"""SETTLE and SETTLE_CHARGED of a row whose owner is still `of_owner`: no other process has taken the write over."""

CLAIM = (
    update(approvals)
    .where(
        approvals.c.request_id == bindparam("of"),
        approvals.c.payload_sha256 == bindparam("of_sha256"),
        approvals.c.expires_at > bindparam("of_now"),
    )
    .values(due_at=bindparam("new_due_at"))
)
"""Part of the unit that starts an approved write: its payload must be the one that was judged, and its time not over.

Its parameters are `of`, of_sha256, of_now and new_due_at.
"""

WAKE = update(approvals).where(approvals.c.request_id == bindparam("of")).values(due_at=bindparam("new_due_at"))
"""Set when a gateway acts on an approval next."""

CLOSE = (
    update(approvals)
    .where(approvals.c.request_id == bindparam("of"))
    .values(
        payload_ct=None,
        due_at=bindparam("new_due_at"),
        ended_at=bindparam("new_ended_at"),
        refusal_ct=bindparam("new_refusal_ct"),
    )
)
"""End a write's approval. Its parameters are those that `closed` returns."""

DROP_FILES = delete(approval_files).where(approval_files.c.request_id == bindparam("of"))


def closing(
    request_id: str, ended_at: datetime, *, refusal_ct: bytes | None = None, report_at: datetime | None = None
) -> list[Part]:
    """Return the parts that end a write's approval and remove its payload; a gateway reports it at `report_at`."""
    row = {"of": request_id, "new_ended_at": ended_at, "new_refusal_ct": refusal_ct, "new_due_at": report_at}
    return [Part(CLOSE, row), Part(DROP_FILES, {"of": request_id})]


async def close(
    connection: AsyncConnection,
    request_id: str,
    ended_at: datetime,
    *,
    refusal_ct: bytes | None = None,
    report_at: datetime | None = None,
) -> None:
    """End a write's approval in the caller's transaction, as `closing` does."""
    for part in closing(request_id, ended_at, refusal_ct=refusal_ct, report_at=report_at):
        await connection.execute(part.statement, part.row)


async def add(
    connection: AsyncConnection, row: Mapping[str, object], files: Sequence[Mapping[str, object]] = ()
) -> None:
    """Insert an approval and the images that are shown with it. Its row in the journal exists."""
    await connection.execute(insert(approvals).values(row))
    if files:
        await connection.execute(insert(approval_files), [dict(one) for one in files])


def new(values: Mapping[str, Any]) -> ApprovalRow:
    """Return the row that `add` inserts."""
    columns: dict[str, Any] = dict.fromkeys(approvals.c.keys())
    return ApprovalRow(**(columns | dict(values)))


async def get(connection: AsyncConnection, request_id: str, *, hold: bool = False) -> ApprovalRow | None:
    """Return one approval; `hold` locks its row for the transaction."""
    query = select(approvals).where(approvals.c.request_id == request_id)
    row = (await connection.execute(query.with_for_update() if hold else query)).first()
    return None if row is None else ApprovalRow(*row)


async def change(connection: AsyncConnection, request_id: str, values: Mapping[str, object]) -> None:
    """Change columns of an approval."""
    await connection.execute(update(approvals).where(approvals.c.request_id == request_id).values(values))


async def count_waiting(connection: AsyncConnection, key_id: str | None = None) -> int:
    """Count the writes that wait for a person's decision, of one key or of all."""
    wanted: list[ColumnElement[bool]] = [approvals.c.ended_at.is_(None), approvals.c.decided_at.is_(None)]
    if key_id is not None:
        wanted.append(approvals.c.key_id == key_id)
    return int((await connection.execute(select(func.count()).select_from(approvals).where(*wanted))).scalar_one())


async def same_payload(connection: AsyncConnection, key_id: str, sha256: str) -> list[tuple[ApprovalRow, State]]:
    """Return a key's requests for one payload, each with its state; newest first, at most 100.

    A request that a person has edited counts for what its caller asked for, too.
    """
    query = select(*approvals.c, journal.c.state).join(journal, journal.c.request_id == approvals.c.request_id)
    same = (approvals.c.payload_sha256 == sha256, approvals.c.edited_from == sha256)
    query = query.where(or_(*(and_(approvals.c.key_id == key_id, one) for one in same)))
    rows = await connection.execute(query.order_by(approvals.c.request_id.desc()).limit(100))
    return [(ApprovalRow(*row[:-1]), row[-1]) for row in rows]


async def waiting(
    connection: AsyncConnection, limit: int, *, key_id: str | None = None
) -> list[tuple[ApprovalRow, JournalRow]]:
    """Return the writes that wait for a decision or for being sent; those that expire first come first."""
    query = select(*approvals.c, *journal.c).join(journal, journal.c.request_id == approvals.c.request_id)
    query = query.where(approvals.c.ended_at.is_(None), journal.c.state.in_(WAITING))
    if key_id is not None:
        query = query.where(approvals.c.key_id == key_id)
    rows = await connection.execute(query.order_by(approvals.c.expires_at, approvals.c.request_id).limit(limit))
    columns = len(approvals.c)
    return [(ApprovalRow(*row[:columns]), JournalRow(*row[columns:])) for row in rows]


async def due(connection: AsyncConnection, now: datetime, limit: int) -> list[tuple[ApprovalRow, State]]:
    """Return the approvals on which a gateway must act, each with its state; the longest overdue first."""
    query = select(*approvals.c, journal.c.state).join(journal, journal.c.request_id == approvals.c.request_id)
    query = query.where(approvals.c.due_at <= now).order_by(approvals.c.due_at).limit(limit)
    return [(ApprovalRow(*row[:-1]), row[-1]) for row in await connection.execute(query)]


async def postpone(connection: AsyncConnection, row: ApprovalRow, due_at: datetime | None) -> bool:
    """Set when a gateway acts on an approval next, unless another process did since; return whether it was set."""
    same = (approvals.c.request_id == row.request_id, approvals.c.due_at == row.due_at)
    return (await connection.execute(update(approvals).where(*same).values(due_at=due_at))).rowcount == 1


async def retry_at(connection: AsyncConnection, request_id: str, due_at: datetime) -> None:
    """Set when an approval that has not ended is acted on next, after its write was made to wait again."""
    open_row = (approvals.c.request_id == request_id, approvals.c.ended_at.is_(None))
    await connection.execute(update(approvals).where(*open_row).values(due_at=due_at))


async def answers(connection: AsyncConnection, request_id: str, since: datetime) -> bool:
    """Return whether a write has not ended, or ended after a moment: then it answers for its Idempotency-Keys."""
    query = select(approvals.c.request_id).where(approvals.c.request_id == request_id, not_ended_before(since))
    return (await connection.execute(query)).first() is not None


def not_ended_before(moment: datetime) -> ColumnElement[bool]:
    """Return the condition of an approval that has not ended, or ended at a moment or later."""
    return or_(approvals.c.ended_at.is_(None), approvals.c.ended_at >= moment)


async def settled(connection: AsyncConnection, request_ids: Collection[str]) -> frozenset[str]:
    """Return those of these requests that have ended, or whose outcome is unknown."""
    query = select(approvals.c.request_id).where(
        approvals.c.request_id.in_(request_ids), approvals.c.ended_at.is_not(None)
    )
    return frozenset((await connection.execute(query)).scalars())


async def file_of(connection: AsyncConnection, request_id: str, number: int) -> bytes | None:
    """Return an image that is shown with a write, encrypted."""
    same = (approval_files.c.request_id == request_id, approval_files.c.number == number)
    return (await connection.execute(select(approval_files.c.blob_ct).where(*same))).scalar()


async def files_kept(connection: AsyncConnection, request_id: str) -> frozenset[int]:
    """Return the numbers of a write's images that can be shown."""
    query = select(approval_files.c.number).where(approval_files.c.request_id == request_id)
    return frozenset((await connection.execute(query)).scalars())


async def bytes_kept(connection: AsyncConnection, key_id: str) -> int:
    """Return how many bytes the images of a key's waiting writes take up."""
    query = select(func.coalesce(func.sum(func.length(approval_files.c.blob_ct)), 0)).join(
        approvals, approvals.c.request_id == approval_files.c.request_id
    )
    wanted = (approvals.c.key_id == key_id, approvals.c.ended_at.is_(None))
    return int((await connection.execute(query.where(*wanted))).scalar_one())


# Signed links.


async def add_link(connection: AsyncConnection, token_hash: bytes, request_id: str, by: str, at: datetime) -> None:
    """Insert a signed link to a request."""
    row = {"token_hash": token_hash, "request_id": request_id, "made_by": by, "made_at": at}
    await connection.execute(insert(approval_links).values(row))


async def links(connection: AsyncConnection, token_hashes: Collection[bytes]) -> dict[bytes, LinkRow]:
    """Return signed links by the hashes of their tokens; unknown ones are left out."""
    query = select(approval_links).where(approval_links.c.token_hash.in_(token_hashes))
    return {row.token_hash: LinkRow(*row) for row in await connection.execute(query)}


async def use_link(connection: AsyncConnection, token_hash: bytes, at: datetime) -> bool:
    """Record that a link decided; return whether it had not before."""
    same = (approval_links.c.token_hash == token_hash, approval_links.c.used_at.is_(None))
    return (await connection.execute(update(approval_links).where(*same).values(used_at=at))).rowcount == 1


async def end_all(connection: AsyncConnection, at: datetime, reason: str) -> int:
    """End every write that waits, because the database was restored from a backup; return how many there were.

    Of those that were started, none is sent again: one that X may have carried out has an unknown outcome.
    """
    expired = {"state": State.EXPIRED, "status": 409, "reason": reason, "settled_at": at, "due_at": None}
    waiting = journal.c.state.in_(WAITING)
    # A post that was started is lost: the reconciler searches for it.
    lost = and_(_IS_STARTED, journal.c.started_at.is_not(None), journal.c.due_at.is_(None))
    unknown = {"state": State.UNKNOWN, "status": 502, "reason": "outcome_unknown", "why": Why.NOT_IN_TIMELINE}
    unknown["lost_at"] = journal.c.started_at
    number = 0
    for ended, values in ((waiting, expired), (lost, unknown)):
        ids = select(journal.c.request_id).where(ended)
        await connection.execute(delete(approval_files).where(approval_files.c.request_id.in_(ids)))
        closed = {"payload_ct": None, "due_at": None, "ended_at": at}
        await connection.execute(update(approvals).where(approvals.c.request_id.in_(ids)).values(closed))
        number += (await connection.execute(update(journal).where(ended).values(values))).rowcount
    return number
