"""Acts on keys and links: those of a link, recorded and counted by outcome; every act, logged from the change feed."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from birdwire.runtime.clock import rfc3339
from birdwire.store.database import StorageDownError
from birdwire.store.tables import acts as store
from birdwire.store.tables import x_sessions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.keys.cache import KeyCache
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.telemetry import Level, Telemetry
    from birdwire.store.database import Database

OUTCOMES: dict[store.Act, str] = {
    "link.activated": "linked",
    "link.undone": "undone",
    "link.denied": "denied",
    "link.mismatched": "mismatch",
    "link.unlinked": "unlinked",
    "link.expired": "expired",
}
"""How a link that was started comes into use, or ends, as `birdwire_links_total` counts it."""

UNDO_SHOWN_FOR = timedelta(hours=24)

MAX_READ, OVERLAP = 500, 100
"""Rows read in one round, and how many of them were read before: a server may commit a lower number after a higher."""

_LEVELS: dict[str, Level] = {"link.undone": "warning"}


class LinkActs:
    """The acts on links in one database. Acts are recorded in the caller's transaction, and counted after it."""

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
        before: RowMapping | None = None,
        after: Mapping[str, object] | None = None,
    ) -> None:
        """Record an act in the caller's transaction; `before` is the session as it was."""
        now, was = self._clock.now(), x_sessions.described(before)
        await store.append(connection, now, by, act, key_id, before=was, after=after)

    def count(self, act: store.Act) -> None:
        """Count the outcome of an act that is committed."""
        self._outcomes[OUTCOMES[act]] += 1

    async def refuse(self, key_id: str, act: store.Act, reason: str, **more: str) -> None:
        """Record that a link that was started ended without an approval, which changes no link; `more` says why."""
        async with self._database.write() as connection:
            await self.record(connection, owner_of(None), act, key_id, None, {"reason": reason, **more})
        self.count(act)

    async def undone(self, key_id: str) -> bool:
        """Return whether the account's owner undid the key's last link, in the last 24 hours."""
        async with self._database.read() as connection:
            return await store.undone_since(connection, key_id, self._clock.now() - UNDO_SHOWN_FOR)


class ActLog:
    """Logs each act that is committed while this gateway runs, once, whichever process committed it."""

    def __init__(self, database: Database, recall: KeyCache, telemetry: Telemetry) -> None:
        self._database = database
        self._recall = recall
        self._telemetry = telemetry
        self._turn = -1
        self._logged: set[int] = set()
        self._last = 0

    async def start(self) -> None:
        """Take what is there for logged."""
        async with self._database.read() as connection:
            self._last = await store.last(connection)
            rows = await store.after(connection, self._last - OVERLAP, MAX_READ)
        self._logged = {row["number"] for row in rows}

    async def round(self) -> None:
        """Log what is new, if the change feed has had news since the last round."""
        turn = self._recall.poll()
        if turn == self._turn:
            return
        async with self._database.read() as connection:
            rows = await store.after(connection, self._last - OVERLAP, MAX_READ)
        for row in rows:
            if row["number"] not in self._logged:
                self._telemetry.event(_LEVELS.get(row["act"], "info"), "act", **told(row))
        self._logged = {row["number"] for row in rows}
        self._last = max(self._logged, default=0)
        if len(rows) < MAX_READ:
            self._turn = turn

    async def close(self) -> None:
        """Log what was committed since the last round."""
        with contextlib.suppress(StorageDownError):
            await self.round()


def owner_of(session: Mapping[str, Any] | RowMapping | None) -> store.Actor:
    """Return the account's owner, who acts by a page."""
    named = session is not None and session["username"]
    return store.Actor(f"@{session['username']}" if session and named else store.UNNAMED_OWNER, "page")


def told(row: RowMapping) -> dict[str, Any]:
    """Return an act as the log and the command line show it."""
    return {**row, "at": rfc3339(row["at"])}
