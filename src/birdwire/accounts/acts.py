"""Records the acts on links, and writes their events, in the caller's transaction; counts how links start and end."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from birdwire.store.tables import acts as store
from birdwire.store.tables import api_keys, outbox, x_sessions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.runtime.clock import Clock
    from birdwire.runtime.telemetry import Telemetry
    from birdwire.store.database import Database

OUTCOMES: dict[store.Act, str] = {
    "link.activated": "linked",
    "link.undone": "undone",
    "link.denied": "denied",
    "link.mismatched": "mismatch",
    "link.unlinked": "unlinked",
    "link.expired": "expired",
}
"""How a link becomes active or ends, by act, as `birdwire_links_total` counts it."""

UNDO_REPORTED_FOR = timedelta(hours=24)


class LinkActs:
    """The acts on links in one database. An act is recorded in the caller's transaction, and counted after it."""

    def __init__(self, database: Database, clock: Clock, telemetry: Telemetry) -> None:
        self._database = database
        self._clock = clock
        self._outcomes = dict.fromkeys(OUTCOMES.values(), 0.0)
        telemetry.metrics.watch("birdwire_links_total", lambda: {(name,): n for name, n in self._outcomes.items()})

    async def record(
        self,
        connection: AsyncConnection,
        by: store.Actor,
        act: store.Act,
        key_id: str,
        before: x_sessions.SessionRow | None = None,
        after: Mapping[str, object] | None = None,
    ) -> None:
        """Record an act in the caller's transaction; `before` is the session as it was."""
        was = x_sessions.described(before)
        await store.append(connection, self._clock.now(), by, act, key_id, before=was, after=after)

    def count(self, act: store.Act) -> None:
        """Count the outcome of an act that is committed."""
        self._outcomes[OUTCOMES[act]] += 1

    async def refuse(self, key_id: str, act: store.Act, reason: str, **more: str) -> None:
        """Record that a started link ended without an approval, which changes no link; `more` adds why."""
        async with self._database.write() as connection:
            await self.record(connection, owner_of(None), act, key_id, None, {"reason": reason, **more})
        self.count(act)

    async def undone(self, key_id: str) -> bool:
        """Return whether the account's owner undid the key's last link in the last 24 hours."""
        async with self._database.read() as connection:
            return await store.undone_since(connection, key_id, self._clock.now() - UNDO_REPORTED_FOR)


async def notify(
    connection: AsyncConnection, event: outbox.EventType, at: datetime, row: x_sessions.SessionRow, **more: object
) -> None:
    """Write an event about a link in the caller's transaction."""
    key = await api_keys.named(connection, row.key_id)
    account = {"user_id": row.user_id, "username": row.username}
    await outbox.add(connection, event, at, {"key": key, "account": account, **more})


def owner_of(username: str | None) -> store.Actor:
    """Return the account's owner, who acts through a page; None: X has not named the account."""
    return store.Actor(f"@{username}" if username else store.UNNAMED_OWNER, "page")


def account_of(row: x_sessions.SessionRow) -> str:
    """Return the account of a link, as a sentence names it."""
    return f"@{row.username}" if row.username else "the linked account"
