"""The journal: what was asked of X and what became of it, with the table of states from which every query derives."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import (
    JSON,
    Column,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)
from ulid import ULID

from birdwire.store.schema import EnumText, Instant, index_of_some, metadata
from birdwire.store.schema import insert as dialect_insert

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection


PAGE = 500
"""Rows that `of_key` reads at a time."""

MAX_WAIT = timedelta(hours=25)
"""Maximum time between the creation of a row and the start of its write."""

DELETION = "delete_twitter"
"""The operation that deletes a post; the post's id is its row's `x_id`."""

UPLOAD = "upload_media"
"""The operation that uploads a file; the file's id is its row's `x_id`."""


class State(StrEnum):
    """The state of a write."""

    AWAITING_APPROVAL = "awaiting_approval"
    APPROVED = "approved"
    STARTED = "started"
    CONFIRMED = "confirmed"
    REFUSED = "refused"
    NOT_SENT = "not_sent"
    UNKNOWN = "unknown"
    FOUND = "found"
    NOT_FOUND = "not_found"
    DENIED = "denied"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a state means: whether X did what was asked, and whether the state is final.

    `reconciled`: the state is a verdict of the search for a write whose answer was lost. `asked`: the write waits for a
    person's approval, or ended without being started.
    """

    applied: Literal["yes", "maybe", "no"]
    final: bool
    reconciled: bool = False
    asked: bool = False


STATES: dict[State, Meaning] = {
    State.AWAITING_APPROVAL: Meaning("no", final=False, asked=True),
    State.APPROVED: Meaning("no", final=False, asked=True),
    State.STARTED: Meaning("maybe", final=False),
    State.CONFIRMED: Meaning("yes", final=True),
    State.REFUSED: Meaning("no", final=True),
    State.NOT_SENT: Meaning("no", final=True),
    State.UNKNOWN: Meaning("maybe", final=False),
    State.FOUND: Meaning("yes", final=True, reconciled=True),
    State.NOT_FOUND: Meaning("no", final=True, reconciled=True),
    State.DENIED: Meaning("no", final=True, asked=True),
    State.EXPIRED: Meaning("no", final=True, asked=True),
    State.CANCELLED: Meaning("no", final=True, asked=True),
}
"""The table of states. Every list of states is derived from it."""

APPLIED = frozenset(state for state, meaning in STATES.items() if meaning.applied == "yes")
"""X did what was asked."""

NOT_APPLIED = frozenset(state for state, meaning in STATES.items() if meaning.applied == "no")
"""X did not do what was asked."""

BEGUN = frozenset(state for state, meaning in STATES.items() if meaning.applied == "maybe")
"""The write was started, and it is not known what X did."""

WAITING = frozenset(state for state, meaning in STATES.items() if meaning.asked and not meaning.final)
"""The write waits for a person's approval, or to be sent after it; nothing has been sent."""

PENDING = WAITING | {State.STARTED}
"""The write has no outcome yet, not even an unknown one, so its caller may wait for it."""

RECONCILED = frozenset(state for state, meaning in STATES.items() if meaning.reconciled)
"""The search for a lost write ended with a verdict."""

RESENDABLE = NOT_APPLIED - RECONCILED - {state for state, meaning in STATES.items() if meaning.asked}
"""The response reported that X did not do it, so the same Idempotency-Key may be used for another attempt."""


class Why(StrEnum):
    """Why the outcome of a write is unknown."""

    LOOKING = "looking"
    NO_READ = "no_read"
    SEVERAL_MATCH = "several_match"
    TOO_MANY_POSTS = "too_many_posts"
    NOT_LINKED = "not_linked"
    NOT_IN_TIMELINE = "not_in_timeline"
    UPLOAD = "upload"


journal = Table(
    "journal",
    metadata,
    Column("request_id", String, primary_key=True),
    Column("key_id", String, nullable=False),
    Column("user_id", String, nullable=False),
    Column("operation", String, nullable=False),
    Column("target", String),
    Column("asked", LargeBinary, nullable=False),
    Column("state", EnumText(State), nullable=False),
    Column("status", Integer),
    Column("reason", String),
    Column("why", EnumText(Why)),
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
    Column("started_at", Instant),
    Column("spent", JSON(none_as_null=True)),
    Column("decision", JSON(none_as_null=True)),
    Column("features_ct", LargeBinary),
    Column("times", Integer),
    Index("journal_key", "key_id", "created_at"),
)
"""asked: the SHA-256 of what was asked for. owner: the process that started the write.

x_id: what X created, or the post that it deleted. words_ct: the text of a post, encrypted. cost_microusd: what X bills
if it does the write. due_at: when the reconciler must check the row (started: whether its process is alive; unknown:
whether X has the post); looks and reads: how many such checks there were, and how many could read the timeline.

started_at: when the write was started, null if that is `created_at`. spent: what it has charged to `usage`, as
`usage.encode` returns it. decision: what the policies decided. features_ct: what they judged of a post, encrypted.
times: in a row of an attempt that was refused before it became a write, how many attempts it stands for; otherwise
null.
"""


@dataclass(frozen=True, slots=True)
class JournalRow:
    """A row of `journal`, with its columns in their order."""

    request_id: str
    key_id: str
    user_id: str
    operation: str
    target: str | None
    asked: bytes = field(repr=False)
    state: State
    status: int | None
    reason: str | None
    why: Why | None
    data: dict[str, Any] | None = field(repr=False)
    x_id: str | None
    words_ct: bytes | None = field(repr=False)
    cost_microusd: int | None
    owner: str | None
    created_at: datetime
    settled_at: datetime | None
    lost_at: datetime | None
    due_at: datetime | None
    looks: int
    reads: int
    started_at: datetime | None = None
    spent: list[list[Any]] | None = field(default=None, repr=False)
    decision: dict[str, Any] | None = field(default=None, repr=False)
    features_ct: bytes | None = field(default=None, repr=False)
    times: int | None = None

    @property
    def start(self) -> datetime:
        """Return when the write was started: it may have waited since it was created."""
        return self.started_at or self.created_at


index_of_some("journal_made", journal.c.x_id)
index_of_some("journal_due", journal.c.due_at)
index_of_some("journal_account", journal.c.user_id, journal.c.due_at)
index_of_some("journal_started", journal.c.started_at)
index_of_some("journal_attempts", journal.c.created_at, journal.c.times)

_START = func.coalesce(journal.c.started_at, journal.c.created_at, type_=Instant)

ADD = insert(journal)
"""Insert one write."""

_OUTCOME = ("state", "status", "reason", "why", "data", "x_id", "words_ct", "settled_at", "lost_at", "due_at")
"""The columns that record what became of a write."""

SETTLE = (
    update(journal)
    .where(journal.c.request_id == bindparam("of"))
    .values({name: bindparam(f"new_{name}") for name in _OUTCOME})
)
"""Store what became of a write. Its parameters are `of`, the request's id, and new_COLUMN for each column."""


SETTLE_CHARGED = (
    update(journal)
    .where(journal.c.request_id == bindparam("of"), or_(*(journal.c.state == state for state in sorted(BEGUN))))
    .values({name: bindparam(f"new_{name}") for name in (*_OUTCOME, "spent", "cost_microusd")})
)
"""SETTLE of a row that has charges, unless it was settled before. It also sets what remains of them, and the cost."""


def settled(request_id: str, values: Mapping[str, object]) -> dict[str, object]:
    """Return the parameters of SETTLE; columns that `values` does not name become null."""
    return {"of": request_id} | {f"new_{name}": values.get(name) for name in _OUTCOME}


def outcome_in(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that parameters of SETTLE set."""
    return {name: parameters[f"new_{name}"] for name in _OUTCOME}


async def change(
    connection: AsyncConnection, request_id: str, values: Mapping[str, object], *, while_in: State
) -> bool:
    """Change a row that is still in a state; return whether it was."""
    same = (journal.c.request_id == request_id, journal.c.state == while_in)
    return (await connection.execute(update(journal).where(*same).values(values))).rowcount == 1


async def get(connection: AsyncConnection, request_id: str) -> JournalRow | None:
    """Return one row."""
    row = (await connection.execute(select(journal).where(journal.c.request_id == request_id))).first()
    return None if row is None else JournalRow(*row)


async def add(connection: AsyncConnection, row: Mapping[str, object]) -> None:
    """Insert one write in the caller's transaction."""
    await connection.execute(ADD, dict(row))


async def hold(connection: AsyncConnection, request_id: str) -> JournalRow | None:
    """Lock one row until the transaction ends, and return it."""
    query = select(journal).where(journal.c.request_id == request_id).with_for_update()
    row = (await connection.execute(query)).first()
    return None if row is None else JournalRow(*row)


async def newer(connection: AsyncConnection, request_id: str, user_id: str, operation: str, target: str) -> bool:
    """Return whether a later request asked for `operation` on the target, and X may have done it.

    The time of a request is that of its id, unless it waited and started later.
    """
    own = select(journal.c.started_at).where(journal.c.request_id == request_id)
    started_at = (await connection.execute(own)).scalar()
    after_id = request_id if started_at is None else id_at(started_at)
    same = (
        journal.c.request_id != request_id,
        journal.c.user_id == user_id,
        journal.c.operation == operation,
        journal.c.target == target,
        journal.c.state.not_in(NOT_APPLIED),
    )
    created_later = select(journal.c.request_id).where(journal.c.request_id > after_id, *same).limit(1)
    if (await connection.execute(created_later)).first() is not None:
        return True
    waited = select(journal.c.started_at).where(journal.c.started_at.is_not(None), *same)
    last = (await connection.execute(waited.order_by(journal.c.started_at.desc()).limit(1))).scalar()
    return last is not None and id_at(last) > after_id


async def listed(
    connection: AsyncConnection, equal: Mapping[str, str], since: datetime | None, limit: int
) -> list[JournalRow]:
    """Return the newest rows, by their ids, whose columns equal these values."""
    wanted: list[ColumnElement[bool]] = [journal.c[name] == value for name, value in equal.items()]
    if since is not None:
        wanted.append(journal.c.created_at >= since)
    query = select(journal).where(*wanted).order_by(journal.c.request_id.desc()).limit(limit)
    return [JournalRow(*row) for row in await connection.execute(query)]


async def due(connection: AsyncConnection, now: datetime, limit: int) -> list[JournalRow]:
    """Return rows that must be checked, starting with the longest overdue."""
    query = select(journal).where(journal.c.due_at <= now).order_by(journal.c.due_at).limit(limit)
    return [JournalRow(*row) for row in await connection.execute(query)]


async def open_of(connection: AsyncConnection, user_id: str, limit: int) -> list[JournalRow]:
    """Return an account's open rows that are to be checked, due or not yet due; oldest first."""
    wanted = (journal.c.due_at.is_not(None), journal.c.state.in_(BEGUN), journal.c.user_id == user_id)
    query = select(journal).where(*wanted).order_by(_START).limit(limit)
    return [JournalRow(*row) for row in await connection.execute(query)]


async def made(connection: AsyncConnection, x_ids: Collection[str]) -> frozenset[str]:
    """Return those of X's ids that a row already has."""
    query = select(journal.c.x_id).where(journal.c.x_id.in_(x_ids))
    return frozenset((await connection.execute(query)).scalars())


async def uploads(connection: AsyncConnection, media_ids: Collection[str]) -> list[JournalRow]:
    """Return the uploads through which X got these files."""
    query = select(journal).where(journal.c.x_id.in_(media_ids), journal.c.operation == UPLOAD)
    return [JournalRow(*row) for row in await connection.execute(query)] if media_ids else []


async def of_post(connection: AsyncConnection, user_id: str, post_id: str) -> frozenset[str]:
    """Return the operations through which an account created or deleted a post."""
    query = select(journal.c.operation).where(journal.c.x_id == post_id, journal.c.user_id == user_id)
    return frozenset((await connection.execute(query.limit(10))).scalars())


async def made_by(connection: AsyncConnection, key_id: str, post_id: str) -> bool:
    """Return whether a key created a post."""
    wanted = (journal.c.x_id == post_id, journal.c.key_id == key_id, journal.c.operation == "post_twitter")
    return (await connection.execute(select(journal.c.request_id).where(*wanted).limit(1))).first() is not None


async def expedite_started(connection: AsyncConnection, now: datetime) -> None:
    """Make every started row due now."""
    wanted = (journal.c.due_at > now, journal.c.state == State.STARTED)
    await connection.execute(update(journal).where(*wanted).values(due_at=now))


async def expedite(connection: AsyncConnection, user_id: str, now: datetime) -> None:
    """Make the rows of an account's lost posts due now."""
    wanted = (journal.c.due_at > now, journal.c.state == State.UNKNOWN, journal.c.user_id == user_id)
    await connection.execute(update(journal).where(*wanted).values(due_at=now))


async def purge(connection: AsyncConnection, before_id: str, before: datetime, limit: int) -> int:
    """Delete up to `limit` of the oldest rows created before a moment; ids rise with time. Return how many.

    What waits for a person stays. What took over a day to end stays longer: it may answer for its Idempotency-Keys.
    """
    ended = or_(journal.c.settled_at.is_(None), journal.c.settled_at < before + timedelta(days=1))
    passed = (journal.c.created_at < before, ended, journal.c.state.not_in(WAITING))
    old = select(journal.c.request_id).where(journal.c.request_id < before_id, *passed)
    oldest = old.order_by(journal.c.request_id).limit(limit)
    return (await connection.execute(delete(journal).where(journal.c.request_id.in_(oldest)))).rowcount


async def refused_since(connection: AsyncConnection, key_id: str, since: datetime, reason: str | None = None) -> int:
    """Count a key's writes that were started since a moment and that X has refused, for one reason or for any."""
    wanted = [journal.c.key_id == key_id, journal.c.state == State.REFUSED]
    if reason is not None:
        wanted.append(journal.c.reason == reason)
    # Two indexes find the writes that were started when they were created, and those that waited.
    at_once = (journal.c.created_at >= since, journal.c.started_at.is_(None))
    count = select(func.count()).select_from(journal).where(*wanted)
    numbers = [count.where(*at_once), count.where(journal.c.started_at >= since)]
    return sum([int((await connection.execute(query)).scalar_one()) for query in numbers])


async def account_refused_since(
    connection: AsyncConnection, user_id: str, since: datetime, reasons: Collection[str]
) -> int:
    """Count an account's writes, by any key, that were started since a moment and that X has refused for a reason."""
    wanted = (*started_since(since), journal.c.user_id == user_id, journal.c.state == State.REFUSED)
    query = select(func.count()).select_from(journal).where(*wanted, journal.c.reason.in_(reasons))
    return int((await connection.execute(query)).scalar_one())


async def of_key(
    connection: AsyncConnection, key_id: str, since: datetime, limit: int
) -> AsyncIterator[list[JournalRow]]:
    """Yield a key's writes since a moment in pages, oldest first, up to `limit` rows; attempts are left out."""
    at, request_id = since, ""
    while limit > 0:
        after = or_(journal.c.created_at > at, journal.c.request_id > request_id)
        query = select(journal).where(
            journal.c.key_id == key_id, journal.c.created_at >= at, after, journal.c.times.is_(None)
        )
        query = query.order_by(journal.c.created_at, journal.c.request_id).limit(min(PAGE, limit))
        rows = [JournalRow(*row) for row in await connection.execute(query)]
        if not rows:
            return
        yield rows
        limit -= len(rows)
        at, request_id = rows[-1].created_at, rows[-1].request_id


async def recent(
    connection: AsyncConnection,
    since: datetime,
    operations: Collection[str],
    limit: int,
    *,
    key_id: str | None = None,
    user_id: str | None = None,
) -> list[JournalRow]:
    """Return what X created by these operations since a moment and was not deleted by this gateway; newest first.

    `key_id` and `user_id` narrow it to one key or account.
    """
    deleted = journal.alias("deleted")
    wanted = [*started_since(since), journal.c.operation.in_(operations), journal.c.x_id.is_not(None)]
    wanted.append(journal.c.state.in_(APPLIED))
    wanted += [column == value for column, value in _narrowed(key_id, user_id)]
    gone = select(deleted.c.request_id).where(
        deleted.c.x_id == journal.c.x_id,
        deleted.c.user_id == journal.c.user_id,
        deleted.c.operation == DELETION,
        deleted.c.state.in_(APPLIED),
    )
    query = select(journal).where(*wanted, ~gone.exists()).order_by(_START.desc(), journal.c.request_id.desc())
    return [JournalRow(*row) for row in await connection.execute(query.limit(limit))]


def _narrowed(key_id: str | None, user_id: str | None) -> list[tuple[Column[Any], str]]:
    found = ((journal.c.key_id, key_id), (journal.c.user_id, user_id))
    return [(column, value) for column, value in found if value is not None]


def started_since(since: datetime) -> list[ColumnElement[bool]]:
    """Return the conditions of a write that was started at a moment or later; the index of the ids finds it."""
    return [journal.c.request_id >= id_at(since - MAX_WAIT), since <= _START]


def id_at(moment: datetime) -> str:
    """Return the lowest request id of a moment's millisecond: ids rise with time."""
    return f"req_{ULID.from_bytes(ULID.from_datetime(moment).bytes[:6] + bytes(10))}"


# Attempts: calls that were refused before they became writes.


def attempt(
    request_id: str, key_id: str, user_id: str, operation: str, status: int, reason: str, at: datetime
) -> dict[str, Any]:
    """Return the row of one attempt. `user_id` is empty if the account was not known yet."""
    row: dict[str, Any] = {"request_id": request_id, "key_id": key_id, "user_id": user_id, "operation": operation}
    row |= {"asked": b"", "state": State.NOT_SENT, "status": status, "reason": reason}
    return row | {"created_at": at, "settled_at": at, "times": 1}


async def add_attempts(connection: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert attempts; one that is stored already stays."""
    if rows:
        query = dialect_insert(connection, journal).on_conflict_do_nothing(index_elements=["request_id"])
        await connection.execute(query, [dict(row) for row in rows])


async def count_attempts(connection: AsyncConnection, key_id: str, since: datetime) -> int:
    """Count the rows of a key's attempts since a moment."""
    wanted = (journal.c.key_id == key_id, journal.c.created_at >= since, journal.c.times.is_not(None))
    return int((await connection.execute(select(func.count()).select_from(journal).where(*wanted))).scalar_one())


async def bump_hour(connection: AsyncConnection, row: Mapping[str, Any], times: int) -> None:
    """Count attempts in the one row of their key and hour. `row` is the newest of them, whose reason the row shows."""
    hour = row["created_at"].replace(minute=0, second=0, microsecond=0)
    random = hashlib.sha256(f"{row['key_id']} {hour.isoformat()}".encode()).digest()[:10]
    request_id = f"req_{ULID.from_bytes(ULID.from_datetime(hour).bytes[:6] + random)}"
    query = dialect_insert(connection, journal).values(
        dict(row) | {"request_id": request_id, "created_at": hour, "times": times}
    )
    shown = {name: query.excluded[name] for name in ("user_id", "operation", "status", "reason", "settled_at")}
    counted = {"times": journal.c.times + query.excluded.times}
    await connection.execute(query.on_conflict_do_update(index_elements=["request_id"], set_=shown | counted))


async def purge_attempts(connection: AsyncConnection, before: datetime, limit: int) -> int:
    """Delete up to `limit` of the oldest attempts before a moment; return how many."""
    old = select(journal.c.request_id).where(journal.c.created_at < before, journal.c.times.is_not(None))
    oldest = old.order_by(journal.c.created_at).limit(limit)
    return (await connection.execute(delete(journal).where(journal.c.request_id.in_(oldest)))).rowcount
