"""Logs every committed act once, from the change feed, and words an act for the log and the command line."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from birdwire.runtime.clock import rfc3339
from birdwire.store.database import StorageDownError
from birdwire.store.tables import acts as store

if TYPE_CHECKING:
    from birdwire.keys.cache import KeyCache
    from birdwire.runtime.telemetry import Level, Telemetry
    from birdwire.store.database import Database

MAX_READ, OVERLAP = 500, 100
"""Rows read in one round, and how many of them an earlier round has read already.

A database server may commit a lower number after a higher one.
"""

_LEVELS: dict[str, Level] = {"link.undone": "warning"}


class ActLog:
    """Logs each act that is committed while this gateway runs, once, whichever process committed it."""

    def __init__(self, database: Database, cache: KeyCache, telemetry: Telemetry) -> None:
        self._database = database
        self._cache = cache
        self._telemetry = telemetry
        self._epoch = -1
        self._logged: set[int] = set()
        self._last = 0

    async def start(self) -> None:
        """Treat the existing acts as logged."""
        async with self._database.read() as connection:
            self._last = await store.last(connection)
            rows = await store.after(connection, self._last - OVERLAP, MAX_READ)
        self._logged = {row.number for row in rows}

    async def round(self) -> None:
        """Log new acts, if the change feed has reported a change since the last round."""
        epoch = self._cache.poll()
        if epoch == self._epoch:
            return
        async with self._database.read() as connection:
            rows = await store.after(connection, self._last - OVERLAP, MAX_READ)
        for row in rows:
            if row.number not in self._logged:
                self._telemetry.event(_LEVELS.get(row.act, "info"), "act", **document(row))
        self._logged = {row.number for row in rows}
        self._last = max(self._logged, default=0)
        if len(rows) < MAX_READ:
            self._epoch = epoch

    async def close(self) -> None:
        """Log what was committed since the last round."""
        with contextlib.suppress(StorageDownError):
            await self.round()


def document(row: store.ActRow) -> dict[str, Any]:
    """Return an act as the log and the command line show it."""
    return {**asdict(row), "at": rfc3339(row.at)}
