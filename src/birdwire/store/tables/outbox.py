"""The outbox of notifications: an event is a row that is written in the transaction that makes the event true.

Without a destination, or while it is switched off, nothing is written: the insert itself selects the destination, so
what adds an event need not know whether there is one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sqlalchemy import (
    BigInteger,
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
    literal,
    select,
    update,
)
from ulid import ULID

from birdwire.store.engines.group_commit import Part
from birdwire.store.schema import InsertNew, Instant, JSONText, index_of_some, metadata
from birdwire.store.tables.destinations import OPERATOR, destinations
from birdwire.store.tables.usage import usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.store.tables.usage import Key

EventType = Literal[
    "approval.requested",
    "approval.decided",
    "request.settled",
    "account.linked",
    "account.needs_relink",
    "account.recovered",
    "account.undone",
    "budget.reached",
    "paused",
    "resumed",
    "x.changed",
]
"""The types of the events that are delivered."""

TEST = "notification.test"
"""The type of the event by which the operator tests the destination. It goes out also while that is switched off."""

Outcome = Literal["delivered", "given_up", "outdated"]

KEPT = timedelta(days=3)
"""How long an event is kept after it became true, if it has been delivered by then or was given up."""

MAX_PENDING, MAX_PENDING_ASKED = 20_000, 15_000
"""How many events may wait for a destination until no further ones are written, and no further ones of ASKED.

So a key that asks and cancels without end leaves room for the events that its operator must hear of. The events of
budgets are few, and are always written.
"""

ASKED = frozenset({"approval.requested", "approval.decided"})
"""The types of the events that a key can bring about as often as it likes."""

outbox = Table(
    "outbox",
    metadata,
    Column("event_id", String, primary_key=True),
    Column("destination_id", String, ForeignKey("destinations.destination_id", ondelete="CASCADE"), primary_key=True),
    Column("type", String, nullable=False),
    Column("at", Instant, nullable=False),
    Column("data", JSONText, nullable=False),
    Column("extra_ct", LargeBinary),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("due_at", Instant),
    Column("status", Integer),
    Column("error", String),
    Column("outcome", String),
    Column("keep_until", Instant, nullable=False),
    Index("outbox_end", "keep_until"),
)
"""data: the facts of the event, never a text of a post, a token or a key. extra_ct: what the destination gets in
addition, as its options state, encrypted; removed when the delivery ends.

tries: how often it was sent. due_at: when it is sent next; null once it has ended by `outcome`. status and error: what
the last try came to. keep_until: when the row may be deleted, if it has ended.
"""

index_of_some("outbox_due", outbox.c.due_at)

_NEW = ("event_id", "type", "at", "data", "due_at", "keep_until")


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A row of `outbox`, with its columns in their order."""

    event_id: str
    destination_id: str
    type: EventType | Literal["notification.test"]
    at: datetime
    data: Mapping[str, Any]
    extra_ct: bytes | None = field(repr=False)
    tries: int
    due_at: datetime | None
    status: int | None
    error: str | None
    outcome: Outcome | None
    keep_until: datetime


FIRST = datetime(1970, 1, 1, tzinfo=UTC)
"""When a test is due: before every other event, because the operator waits for it."""

_PENDING = select(func.count()).select_from(outbox).where(outbox.c.due_at.is_not(None)).scalar_subquery()


def _insert(*conditions: ColumnElement[bool]) -> InsertNew:
    """Return an insert of an event for the destination, if that is on and the conditions hold."""
    new = [bindparam(f"new_{name}", type_=outbox.c[name].type) for name in _NEW]
    selected = select(*new, literal(0), destinations.c.destination_id)
    selected = selected.where(destinations.c.off_at.is_(None), *conditions)
    # Otherwise a destination that is deleted at the same time would fail the caller's transaction.
    selected = selected.with_for_update(read=True, key_share=True, of=destinations)
    return InsertNew(outbox).from_select([*_NEW, "tries", "destination_id"], selected)


_ADD, _ADD_ASKED = _insert(_PENDING < MAX_PENDING), _insert(_PENDING < MAX_PENDING_ASKED)

# Each limit has few of these, so they need no room. To look at the outbox would double what an insert of nothing costs.
_ADD_ONCE = _insert()

_ADD_IF_SPENT = _insert(
    select(usage.c.amount)
    .where(
        usage.c.scope == bindparam("of_scope"),
        usage.c.measure == bindparam("of_measure"),
        usage.c.window == bindparam("of_window"),
        usage.c.amount >= bindparam("least", type_=BigInteger),
    )
    .exists(),
)


def new_event_id() -> str:
    """Return a random id for an event, by which its receiver recognizes a repeated delivery."""
    return f"evt_{ULID()}"


def _values(
    event_id: str, event: str, at: datetime, data: Mapping[str, object], keep_until: datetime
) -> dict[str, Any]:
    values = {"event_id": event_id, "type": event, "at": at, "data": dict(data), "due_at": at, "keep_until": keep_until}
    return {f"new_{name}": value for name, value in values.items()}


async def add(connection: AsyncConnection, event: EventType, at: datetime, data: Mapping[str, object]) -> None:
    """Write an event in the caller's transaction, if a destination is on. `data` are its facts, as JSON."""
    query = _ADD_ASKED if event in ASKED else _ADD
    await connection.execute(query, _values(new_event_id(), event, at, data, at + KEPT))


async def add_test(connection: AsyncConnection, event_id: str, at: datetime) -> None:
    """Write an event that only tests the destination, also while that is switched off."""
    row = {"event_id": event_id, "destination_id": OPERATOR, "type": TEST, "at": at, "data": {}, "due_at": FIRST}
    await connection.execute(outbox.insert().values(row | {"keep_until": at + KEPT}))


class BudgetNews(NamedTuple):
    """That a budget is used up to a part: the facts of the event, and the counter of the budget's money.

    `event_id` derives from the facts, so that each event is written once: one of the same id stays in the table until
    `keep_until`.
    """

    event_id: str
    at: datetime
    data: Mapping[str, object]
    keep_until: datetime
    key: Key


def adding_once(news: BudgetNews) -> Part:
    """Return the part of a unit that writes an event, unless it was written before."""
    return Part(_ADD_ONCE, _values(news.event_id, "budget.reached", news.at, news.data, news.keep_until))


def adding_if_spent(news: BudgetNews, least: int) -> Part:
    """Return the part of a unit that writes an event, as `adding_once` does, if the counter has `least` by then."""
    of = dict(zip(("of_scope", "of_measure", "of_window"), news.key, strict=True))
    row = {**adding_once(news).row, **of, "least": least}
    return Part(_ADD_IF_SPENT, row, looks=True)


async def get(connection: AsyncConnection, event_id: str) -> OutboxRow | None:
    """Return an event of the outbox."""
    row = (await connection.execute(select(outbox).where(outbox.c.event_id == event_id))).first()
    return None if row is None else OutboxRow(*row)


async def due(connection: AsyncConnection, now: datetime, limit: int) -> list[OutboxRow]:
    """Return events that are to be sent now; the one that has been due the longest comes first."""
    query = select(outbox).where(outbox.c.due_at <= now).order_by(outbox.c.due_at, outbox.c.event_id).limit(limit)
    return [OutboxRow(*row) for row in await connection.execute(query)]


async def pending(connection: AsyncConnection) -> tuple[int, datetime | None]:
    """Return how many events wait to be sent, and when the oldest of them became true."""
    query = select(func.count(), func.min(outbox.c.at)).where(outbox.c.due_at.is_not(None))
    row = (await connection.execute(query)).one()
    return int(row[0]), row[1]


async def change(connection: AsyncConnection, event_id: str, tries: int, values: Mapping[str, object]) -> bool:
    """Change an event that waits, if it was tried as often as `tries`; return whether it was changed."""
    same = and_(outbox.c.event_id == event_id, outbox.c.tries == tries, outbox.c.due_at.is_not(None))
    return (await connection.execute(update(outbox).where(same).values(dict(values)))).rowcount == 1


async def add_extra(connection: AsyncConnection, event_id: str, tries: int, extra_ct: bytes) -> bool:
    """Store what goes out with an event, unless that was done before; return whether it was stored."""
    same = and_(outbox.c.event_id == event_id, outbox.c.tries == tries, outbox.c.due_at.is_not(None))
    query = update(outbox).where(same, outbox.c.extra_ct.is_(None)).values(extra_ct=extra_ct)
    return (await connection.execute(query)).rowcount == 1


async def drop_pending(connection: AsyncConnection) -> int:
    """Delete every event that waits, except tests; return how many there were."""
    query = delete(outbox).where(outbox.c.due_at.is_not(None), outbox.c.type != TEST)
    return (await connection.execute(query)).rowcount


async def purge(connection: AsyncConnection, now: datetime, limit: int) -> int:
    """Delete up to `limit` events that have ended and are kept no longer; return how many there were."""
    ended = and_(outbox.c.keep_until < now, outbox.c.due_at.is_(None))
    keys = select(outbox.c.event_id).where(ended).limit(limit)
    return (await connection.execute(delete(outbox).where(outbox.c.event_id.in_(keys), ended))).rowcount
