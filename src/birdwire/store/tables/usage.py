"""Usage: what was counted and spent in each window, and the marks of texts, charged and given back by units of writes.

A charge makes its row first, with an amount of zero, and then changes it on condition: one conditional upsert would let
a window's first call pass unchecked.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    String,
    Table,
    and_,
    bindparam,
    case,
    delete,
    func,
    or_,
    select,
    update,
)

from birdwire.store.engines.group_commit import Part
from birdwire.store.schema import EnsureRow, Instant, index_of_some, metadata

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import ColumnElement, Update
    from sqlalchemy.ext.asyncio import AsyncConnection

USD = "usd"
"""The measure of money, in millionths of a dollar. Every other measure counts calls."""

HOURS_KEPT, DAYS_KEPT = timedelta(days=2), timedelta(days=400)
"""How long the windows of an hour and of a day are kept; months are kept for good."""

UNLIMITED = 1 << 62

usage = Table(
    "usage",
    metadata,
    Column("scope", String, primary_key=True),
    Column("measure", String, primary_key=True),
    Column("window", String, primary_key=True),
    Column("amount", BigInteger, nullable=False),
    Column("previous", BigInteger),
    Column("kept_until", Instant),
)
"""scope: a key's id, `account:USER_ID`, or `gateway`. window: an hour, a day or a month by UTC, or empty for a gap.

amount: what was counted or spent; for a gap, the time of the last call in UNIX milliseconds, and `previous` is what it
was before that call. kept_until: when the row may be deleted; null for a row that is kept.
"""

text_marks = Table(
    "text_marks",
    metadata,
    Column("scope", String, primary_key=True),
    Column("mark", String, primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("previous_ms", BigInteger),
    Column("until_ms", BigInteger, nullable=False),
    Column("request_id", String, nullable=False),
    Index("text_marks_end", "until_ms"),
)
"""mark: the HMAC of a text. at_ms: when it was last posted, or zero; previous_ms: what that was before `request_id`.

until_ms: when the row may be deleted.
"""

index_of_some("usage_end", usage.c.kept_until)

Key = tuple[str, str, str]
"""Scope, measure and window of a row of `usage`."""

Spent = list[list[Any]]
"""Charges as JSON: kind, scope, measure, window and amount of each."""


class Charge(NamedTuple):
    """What one rule adds to a counter when a call passes, and the limit that decides whether it passes.

    add: `amount` is added to a row of `usage`, if the sum is at most `limit` (None: unconditionally).
    gap: `amount` is now and `limit` the minimum distance to the row's last call, both in milliseconds.
    text: `window` is a text's mark, `amount` is now, and `limit` how long the mark holds, both in milliseconds.
    """

    kind: Literal["add", "gap", "text"]
    scope: str
    measure: str
    window: str
    amount: int
    limit: int | None
    rule: str = ""


def _key(row: Table) -> tuple[Any, ...]:
    return tuple(column == bindparam(f"of_{column.name}", type_=column.type) for column in row.primary_key.columns)


def _number(name: str) -> Any:
    return bindparam(name, type_=BigInteger)


_MAKE = EnsureRow(usage)
_MAKE_MARK = EnsureRow(text_marks)

_ADD = (
    update(usage)
    .where(*_key(usage), usage.c.amount + _number("plus") <= _number("most"))
    .values(amount=usage.c.amount + _number("plus"))
)
_GAP = (
    update(usage)
    .where(*_key(usage), usage.c.amount <= _number("most"))
    .values(previous=usage.c.amount, amount=_number("now"))
)
_MARK = (
    update(text_marks)
    .where(*_key(text_marks), text_marks.c.at_ms <= _number("most"))
    .values(
        previous_ms=text_marks.c.at_ms,
        at_ms=_number("now"),
        # A rule of fewer days must not end a mark before a rule of more days does.
        until_ms=case((text_marks.c.until_ms > _number("end"), text_marks.c.until_ms), else_=_number("end")),
        request_id=bindparam("request"),
    )
)
_CHANGES: dict[str, Update] = {"add": _ADD, "gap": _GAP, "text": _MARK}

_TAKE = (
    update(usage)
    .where(*_key(usage))
    .values(amount=case((usage.c.amount > _number("minus"), usage.c.amount - _number("minus")), else_=0))
)
_UNDO_GAP = (
    update(usage)
    .where(*_key(usage), usage.c.amount == _number("now"))
    .values(amount=func.coalesce(usage.c.previous, 0), previous=None)
)
_UNDO_MARK = (
    update(text_marks)
    .where(*_key(text_marks), text_marks.c.request_id == bindparam("request"))
    .values(at_ms=func.coalesce(text_marks.c.previous_ms, 0), previous_ms=None, request_id="")
)


def charging(charges: Sequence[Charge], request_id: str) -> list[Part]:
    """Return the parts of a unit that makes these charges, or none of them if one does not pass."""
    merged = merge(charges)
    made = [_made(charge.kind, charge.scope, charge.measure, charge.window) for charge in merged]
    return made + [Part(_CHANGES[charge.kind], _values(charge, request_id), required=True) for charge in merged]


def locking(key: Key) -> Part:
    """Return the part of a unit that locks a counter on PostgreSQL. SQLite has one writer at a time."""
    return _made_row(*key)


def refused_by(charges: Sequence[Charge], index: int) -> int | None:
    """Return which of the charges did not pass, by the index of a part of `charging`; None if it is another part."""
    merged = merge(charges)
    place = index - len(merged)
    return charges.index(merged[place]) if 0 <= place < len(merged) else None


def giving_back(
    spent: Sequence[Sequence[Any]], request_id: str, *, usd: int | None = None, billed: int = 0, counts: bool = True
) -> list[Part]:
    """Return the parts of a unit that undoes charges, given as `encode` returned them.

    Money stays as often as X may have `billed` the call: not at all, once as it was charged, or several times. Or
    `usd` is what goes back of each charge of money, in millionths of a dollar; a negative number charges more.
    `counts`: whether all other charges go back.
    """
    made, undone = [], []
    for kind, scope, measure, window, amount in spent:
        back = amount * counts
        if measure == USD:
            back = amount * (1 - billed) if usd is None else min(usd, amount)
        if back:
            made.append(_made(kind, scope, measure, window))
            undone.append(_undoing(kind, (scope, measure, window), back, request_id))
    return made + undone


def left(spent: Sequence[Sequence[Any]], *, billed: int, counts: bool) -> Spent:
    """Return what remains of charges after `giving_back` with the same arguments."""
    return [
        [kind, scope, measure, window, amount * billed if measure == USD else amount]
        for kind, scope, measure, window, amount in spent
        if (billed if measure == USD else not counts)
    ]


def encode(charges: Sequence[Charge]) -> Spent:
    """Return charges as the journal keeps them, for `giving_back`."""
    return [[one.kind, one.scope, one.measure, one.window, one.amount] for one in merge(charges)]


def decode(spent: Sequence[Sequence[Any]]) -> tuple[Charge, ...]:
    """Return the charges that `encode` returned; their limits and rules are not kept."""
    return tuple(Charge(kind, scope, measure, window, amount, None) for kind, scope, measure, window, amount in spent)


def usd_in(spent: Sequence[Sequence[Any]]) -> int:
    """Return what a call spends, in millionths of a dollar: each scope's counter is charged the same sum."""
    return max((int(amount) for _, _, measure, _, amount in spent if measure == USD), default=0)


def merge(charges: Sequence[Charge]) -> list[Charge]:
    """Return one charge for each row, the strictest, in the order in which rows are locked.

    Two policies of one scope may limit the same counter, which must count a call only once.
    """
    found: dict[tuple[bool, str, str, str], Charge] = {}
    for charge in charges:
        # Marks first, as the group commit orders rows by table and key.
        key = (charge.kind != "text", charge.scope, charge.measure, charge.window)
        other = found.get(key)
        if other is None or _strictness(charge) > _strictness(other):
            found[key] = charge
    return [found[key] for key in sorted(found)]


def _strictness(charge: Charge) -> tuple[int, int]:
    limit = UNLIMITED if charge.limit is None else charge.limit
    return (charge.amount, -limit) if charge.kind == "add" else (0, limit)


def _made(kind: str, scope: str, measure: str, window: str) -> Part:
    if kind == "text":
        return Part(_MAKE_MARK, {"scope": scope, "mark": window, "at_ms": 0, "until_ms": 0, "request_id": ""})
    return _made_row(scope, measure, window)


@lru_cache(maxsize=1024)
def _made_row(scope: str, measure: str, window: str) -> Part:
    row = {"scope": scope, "measure": measure, "window": window, "amount": 0, "kept_until": _kept_until(window)}
    return Part(_MAKE, row)


def _values(charge: Charge, request_id: str) -> dict[str, Any]:
    limit, amount = UNLIMITED if charge.limit is None else charge.limit, charge.amount
    if charge.kind == "text":
        mark = {"of_scope": charge.scope, "of_mark": charge.window, "request": request_id}
        return mark | {"now": amount, "most": amount - limit, "end": amount + limit}
    row = {"of_scope": charge.scope, "of_measure": charge.measure, "of_window": charge.window}
    if charge.kind == "gap":
        return row | {"now": amount, "most": amount - limit}
    return row | {"plus": amount, "most": limit}


def _undoing(kind: str, place: Key, amount: int, request_id: str) -> Part:
    if kind == "text":
        return Part(_UNDO_MARK, {"of_scope": place[0], "of_mark": place[2], "request": request_id})
    row = dict(zip(("of_scope", "of_measure", "of_window"), place, strict=True))
    if kind == "gap":
        return Part(_UNDO_GAP, row | {"now": amount})
    return Part(_TAKE, row | {"minus": amount})


def _kept_until(window: str) -> datetime | None:
    """Return when the row of a window may be deleted, by the form of its name: an hour, a day, or another."""
    try:
        if "T" in window:
            return datetime.strptime(window, "%Y-%m-%dT%H").replace(tzinfo=UTC) + HOURS_KEPT
        return datetime.strptime(window, "%Y-%m-%d").replace(tzinfo=UTC) + DAYS_KEPT
    except ValueError:
        return None


async def amounts(connection: AsyncConnection, keys: Collection[Key]) -> dict[Key, int]:
    """Return what was counted under each of these keys; a key without a row is missing."""
    if not keys:
        return {}
    wanted = (
        and_(usage.c.scope == scope, usage.c.measure == measure, usage.c.window == window)
        for scope, measure, window in keys
    )
    query = select(usage.c.scope, usage.c.measure, usage.c.window, usage.c.amount).where(or_(*wanted))
    return {(row[0], row[1], row[2]): int(row[3]) for row in await connection.execute(query)}


async def marks_at(connection: AsyncConnection, pairs: Collection[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Return when each of these marks, by scope and mark, was last made, in UNIX milliseconds."""
    if not pairs:
        return {}
    wanted = (and_(text_marks.c.scope == scope, text_marks.c.mark == mark) for scope, mark in pairs)
    query = select(text_marks.c.scope, text_marks.c.mark, text_marks.c.at_ms).where(or_(*wanted))
    return {(row[0], row[1]): int(row[2]) for row in await connection.execute(query) if row[2]}


async def purge(connection: AsyncConnection, now: datetime, limit: int) -> int:
    """Delete up to `limit` windows and as many marks that are kept no longer; return the larger number.

    Rows are locked in the order in which units lock them: marks first, and each table by its key.
    """
    # A unit may make a mark again between the two statements.
    return max(
        await _purge(connection, text_marks, text_marks.c.until_ms < int(now.timestamp() * 1_000), limit),
        await _purge(connection, usage, usage.c.kept_until < now, limit),
    )


async def _purge(connection: AsyncConnection, table: Table, ended: ColumnElement[bool], limit: int) -> int:
    keys = table.primary_key.columns
    found = sorted(map(tuple, await connection.execute(select(*keys).where(ended).limit(limit))))
    rows = [{f"of_{column.name}": part for column, part in zip(keys, row, strict=True)} for row in found]
    if rows:
        await connection.execute(delete(table).where(*_key(table), ended), rows)
    return len(rows)
