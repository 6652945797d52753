"""The outbox as tests see it: a destination to which nothing is sent, and the events that were written for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from birdwire.store.tables import destinations
from birdwire.store.tables.outbox import outbox

if TYPE_CHECKING:
    from birdwire.store.database import Database

NOW = datetime(2026, 11, 28, 5, 30, tzinfo=UTC)
WHERE: dict[str, object] = {
    "kind": "standard",
    "host": "hooks.example",
    "url_ct": b"an url",
    "secret_ct": b"a secret",
    "with_link": False,
    "with_text": False,
    "set_at": NOW,
    "set_by": "tester",
    "secret_at": NOW,
}
"""The columns of a destination whose URL cannot be opened, so that no gateway sends anything there."""

Event = tuple[str, dict[str, Any]]
"""The type and the data of an event."""


@dataclass
class Outbox:
    """The events of a database. Its destination is on unless a test switches it off or removes it."""

    database: Database
    seen: set[str] = field(default_factory=set)

    async def switch(self, *, on: bool) -> None:
        """Switch the destination on or off, or set it first."""
        values = dict(WHERE) if on else WHERE | {"off_at": NOW, "off_why": "failing"}
        async with self.database.write() as connection:
            if not await destinations.change(connection, {"off_at": values.get("off_at")}):
                await destinations.put(connection, values)

    async def remove(self) -> None:
        """Delete the destination with its events."""
        async with self.database.write() as connection:
            await destinations.remove(connection)

    async def rows(self) -> list[Any]:
        """Return all rows, the earliest first."""
        async with self.database.read() as connection:
            return list(await connection.execute(select(outbox).order_by(outbox.c.at, outbox.c.event_id)))

    async def new(self) -> list[Event]:
        """Return the events that were written since this was called last."""
        rows = [row for row in await self.rows() if row.event_id not in self.seen]
        self.seen |= {row.event_id for row in rows}
        return [(row.type, row.data) for row in rows]

    async def types(self) -> list[str]:
        """Return the types of the events that were written since this or `new` was called last."""
        return [kind for kind, _ in await self.new()]
