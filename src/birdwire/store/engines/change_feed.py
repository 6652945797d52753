"""The change feed, which invalidates caches: each change of a key or its link is announced to every process.

On SQLite the announcement is a row, on PostgreSQL a notification. Either is published with the commit, or not at all.
"""

from __future__ import annotations

import sqlite3
from enum import Enum, auto
from math import inf
from typing import TYPE_CHECKING, Literal

from sqlalchemy import Column, Integer, String, Table

from birdwire.store.schema import metadata

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection

KEPT_ROWS = 10_000
"""Rows kept of the past. A process that is further behind gets ALL: everything may have changed."""

TRIM_EVERY = 100

CHANNEL = "birdwire_changes"


class Everything(Enum):
    """The answer for an unknown set of keys."""

    ALL = auto()


ALL = Everything.ALL
Changed = frozenset[str] | Literal[Everything.ALL]
NOTHING: frozenset[str] = frozenset()

changes = Table(
    "changes",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("key_id", String, nullable=False),
    sqlite_autoincrement=True,
)
"""Used on SQLite only. Numbers are never reused, and rise in the order of the commits, as there is one writer."""


_ADD = "INSERT INTO changes (key_id) VALUES (?)"
_TRIM = "DELETE FROM changes WHERE number <= last_insert_rowid() - ? AND last_insert_rowid() % ? < ?"
"""Parameters: KEPT_ROWS, TRIM_EVERY, and the number of rows just added."""

NOTIFY = f"pg_notify('{CHANNEL}', {{}})"
"""PostgreSQL's announcement: a function call for a SELECT, formatted with the key id's parameter."""


async def announce(connection: AsyncConnection, key_id: str) -> None:
    """Announce, in the caller's transaction, that a key or its link changes."""
    if connection.dialect.name == "sqlite":
        await connection.exec_driver_sql(_ADD, (key_id,))
        await connection.exec_driver_sql(_TRIM, (KEPT_ROWS, TRIM_EVERY, 1))
    else:
        await connection.exec_driver_sql(f"SELECT {NOTIFY.format('$1')}", (key_id,))


def announce_all(connection: sqlite3.Connection, key_ids: Sequence[str]) -> None:
    """Announce many keys in the current transaction of a plain SQLite connection."""
    connection.executemany(_ADD, [(key_id,) for key_id in key_ids])
    connection.execute(_TRIM, (KEPT_ROWS, TRIM_EVERY, len(key_ids)))


class FileChangeFeed:
    """Reads the announcements of an SQLite file, in the event loop's thread: three microseconds if there are none."""

    trusted_s = inf

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._last = -1

    def changed(self) -> Changed:
        """See `Database.changed`."""
        try:
            if self._connection is None:
                return self._begin()
            rows = self._connection.execute(
                "SELECT number, key_id FROM changes WHERE number > ? ORDER BY number", (self._last,)
            ).fetchall()
        except sqlite3.Error:
            self.close()
            return ALL
        if not rows:
            return NOTHING
        whole = rows[0][0] == self._last + 1
        self._last = rows[-1][0]
        return frozenset(key_id for _, key_id in rows) if whole else ALL

    def close(self) -> None:
        """Close the connection; the next call starts over with ALL."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _begin(self) -> Changed:
        self._connection = sqlite3.connect(self._path, timeout=0, isolation_level=None)
        found = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'changes'").fetchone()
        self._last = 0 if found is None else found[0]
        return ALL
