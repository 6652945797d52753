"""What calls have cost at X: writes by the journal, and reads by the usage that they are charged to."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import BigInteger, func, or_, select, type_coerce

from birdwire.store.tables.journal import NOT_APPLIED, journal, started_since
from birdwire.store.tables.usage import usage

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.ext.asyncio import AsyncConnection

By = Literal["key", "account", "operation", "day"]

READS, READS_USD = "reads", "reads_usd"
"""Measures of a key's reads by day, followed by `:OPERATION:USER_ID`: how many, and what they cost."""

_DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class CostRow:
    """What one key, account, operation or day has cost, in millionths of a dollar."""

    name: str
    writes: int
    reads: int
    microusd: int


async def rows(connection: AsyncConnection, by: By, since: datetime, key_id: str | None = None) -> list[CostRow]:
    """Return the costs since a moment, in the order of their names. Reads are counted by whole days.

    A write counts if X carried it out or may have, or if X may have billed an attempt of it.
    """
    found: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for name, writes, microusd in await _writes(connection, by, since, key_id):
        found[name][0] += writes
        found[name][2] += microusd
    for name, reads, microusd in await _reads(connection, by, since, key_id):
        found[name][1] += reads
        found[name][2] += microusd
    return [CostRow(name, *numbers) for name, numbers in sorted(found.items())]


async def _writes(
    connection: AsyncConnection, by: By, since: datetime, key_id: str | None
) -> list[tuple[str, int, int]]:
    start = func.coalesce(journal.c.started_at, journal.c.created_at)
    names: dict[By, ColumnElement[Any]] = {
        "key": journal.c.key_id,
        "account": journal.c.user_id,
        "operation": journal.c.operation,
        "day": type_coerce(start, BigInteger) // _DAY_US,
    }
    name = names[by].label("name")
    costly = or_(journal.c.state.not_in(NOT_APPLIED), journal.c.spent.is_not(None))
    wanted = [*started_since(since), costly]
    if key_id is not None:
        wanted.append(journal.c.key_id == key_id)
    query = select(name, func.count(), func.sum(journal.c.cost_microusd)).where(*wanted).group_by(name)
    return [
        (_day(row[0]) if by == "day" else row[0], int(row[1]), int(row[2] or 0))
        for row in await connection.execute(query)
    ]


async def _reads(
    connection: AsyncConnection, by: By, since: datetime, key_id: str | None
) -> list[tuple[str, int, int]]:
    # Windows of months are shorter than any day that starts with them, and those of hours are not charged with reads.
    wanted = [usage.c.window >= f"{since:%Y-%m-%d}", or_(*(usage.c.measure.startswith(f"{one}:") for one in _MEASURES))]
    if key_id is not None:
        wanted.append(usage.c.scope == key_id)
    query = select(usage.c.scope, usage.c.measure, usage.c.window, usage.c.amount).where(*wanted)
    found = []
    for scope, measure, window, amount in await connection.execute(query):
        kind, operation, user_id = measure.split(":", 2)
        names: dict[By, str] = {"key": scope, "account": user_id, "operation": operation, "day": window}
        found.append((names[by], amount if kind == READS else 0, amount if kind == READS_USD else 0))
    return found


_MEASURES = (READS, READS_USD)


def _day(number: int) -> str:
    return f"{_EPOCH + timedelta(days=number):%Y-%m-%d}"
