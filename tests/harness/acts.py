"""Read the record of acts in tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from birdwire.outcomes.acts import document
from birdwire.store.database import Database
from birdwire.store.tables import acts

if TYPE_CHECKING:
    from harness.gateway import RunningGateway


async def recorded(url: str, since: int = 0) -> list[dict[str, Any]]:
    """Return every act with a number above `since`, in order."""
    database = Database(url)
    try:
        async with database.read() as connection:
            return [document(row) for row in await acts.after(connection, since, 10_000)]
    finally:
        await database.close()


async def acts_of(running: RunningGateway) -> list[tuple[str, str, str]]:
    """Return the act, its actor and its channel for each act on a gateway's key."""
    rows = await recorded(running.settings.database_url)
    return [(row["act"], row["who"], row["via"]) for row in rows if row["subject"] == running.key_id]
