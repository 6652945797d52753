"""Where notifications go: the destination, its encrypted URL and secrets, and how its last deliveries went."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sqlalchemy import Boolean, Column, Integer, LargeBinary, String, Table, delete, select, update

from birdwire.store.schema import Instant, insert, metadata

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

OPERATOR = "operator"
"""The id of the only destination, which is the operator's."""

Kind = Literal["standard", "ntfy", "slack"]

destinations = Table(
    "destinations",
    metadata,
    Column("destination_id", String, primary_key=True),
    Column("kind", String, nullable=False),
    Column("host", String, nullable=False),
    Column("url_ct", LargeBinary, nullable=False),
    Column("secret_ct", LargeBinary, nullable=False),
    Column("old_secret_ct", LargeBinary),
    Column("old_secret_until", Instant),
    Column("with_link", Boolean, nullable=False),
    Column("with_text", Boolean, nullable=False),
    Column("set_at", Instant, nullable=False),
    Column("set_by", String, nullable=False),
    Column("secret_at", Instant, nullable=False),
    Column("off_at", Instant),
    Column("off_why", String),
    Column("failing_since", Instant),
    Column("tried_at", Instant),
    Column("delivered_at", Instant),
    Column("status", Integer),
    Column("error", String),
    Column("sender", String),
)
"""host: the host of the URL, which may be shown. secret_ct: what deliveries are signed with since secret_at;
old_secret_ct: what they are signed with in addition until old_secret_until.

off_at: when Birdwire switched the destination off, because of off_why (`410` or `failing`); null while it is on.
failing_since: the first failure since the last delivery. status and error: what the delivery tried last, at tried_at,
came to; status is null if no status arrived, and error is null if it was delivered. sender: the gateway process that
sends; another one takes over if its lease has expired.
"""


@dataclass(frozen=True, slots=True)
class DestinationRow:
    """A row of `destinations`, with its columns in their order."""

    destination_id: str
    kind: Kind
    host: str
    url_ct: bytes = field(repr=False)
    secret_ct: bytes = field(repr=False)
    old_secret_ct: bytes | None = field(repr=False)
    old_secret_until: datetime | None
    with_link: bool
    with_text: bool
    set_at: datetime
    set_by: str
    secret_at: datetime
    off_at: datetime | None
    off_why: str | None
    failing_since: datetime | None
    tried_at: datetime | None
    delivered_at: datetime | None
    status: int | None
    error: str | None
    sender: str | None


async def get(connection: AsyncConnection, *, hold: bool = False) -> DestinationRow | None:
    """Return the destination, or None if there is none; `hold` locks its row until the transaction ends.

    What adds an event to the outbox does not wait for that lock.
    """
    query = select(destinations).where(destinations.c.destination_id == OPERATOR)
    row = (await connection.execute(query.with_for_update(key_share=True) if hold else query)).first()
    return None if row is None else DestinationRow(*row)


async def put(connection: AsyncConnection, row: Mapping[str, object]) -> None:
    """Store the destination, given by its columns, in place of an earlier one; columns that are not given become null.

    What waits in the outbox goes to the new one.
    """
    values = {column.name: row.get(column.name) for column in destinations.columns} | {"destination_id": OPERATOR}
    query = insert(connection, destinations).values(values)
    # A key that is set would lock the row against what adds an event.
    changed = {name: value for name, value in values.items() if name != "destination_id"}
    await connection.execute(query.on_conflict_do_update(index_elements=["destination_id"], set_=changed))


async def change(connection: AsyncConnection, values: Mapping[str, object]) -> bool:
    """Change the destination; return whether there is one."""
    query = update(destinations).where(destinations.c.destination_id == OPERATOR)
    return (await connection.execute(query.values(values))).rowcount == 1


async def take_over(connection: AsyncConnection, sender: str | None, *, instead_of: str | None) -> bool:
    """Make a process the sender in place of another one (None: nobody); return whether it is the sender now."""
    same = (destinations.c.destination_id == OPERATOR, destinations.c.sender.is_not_distinct_from(instead_of))
    return (await connection.execute(update(destinations).where(*same).values(sender=sender))).rowcount == 1


async def remove(connection: AsyncConnection) -> bool:
    """Delete the destination with its secrets and all that waits for it; return whether there was one."""
    query = delete(destinations).where(destinations.c.destination_id == OPERATOR)
    return (await connection.execute(query)).rowcount == 1
