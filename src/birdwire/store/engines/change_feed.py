"""Which keys changed, for caches: each change of a key or its link is announced, and reaches every process.

On SQLite the announcement is a row, on PostgreSQL a notification; either way it comes with the commit, or not at all.
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

KEPT = 10_000
"""Rows of the past that are kept. A process that was away for longer is told that everything may have changed."""

FORGET_EVERY = 100

CHANNEL = "birdwire_changes"


class Everything(Enum):
    """The one answer that is no set of keys."""

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
"""On SQLite alone. Numbers are never given out twice, and rise in the order of the commits: there is one writer."""


_ADD = "INSERT INTO changes (key_id) VALUES (?)"
_FORGET = "DELETE FROM changes WHERE number <= last_insert_rowid() - ? AND last_insert_rowid() % ? < ?"
"""Its parameters: KEPT, FORGET_EVERY, how many were just added."""

NOTIFY = f"pg_notify('{CHANNEL}', {{}})"
"""PostgreSQL's announcement: a call in a SELECT, with the key's id or its parameter to be put in."""


async def announce(connection: AsyncConnection, key_id: str) -> None:
    """Say in the caller's transaction that a key, or what is linked to it, is about to be another."""
    if connection.dialect.name == "sqlite":
        await connection.exec_driver_sql(_ADD, (key_id,))
        await connection.exec_driver_sql(_FORGET, (KEPT, FORGET_EVERY, 1))
    else:
        await connection.exec_driver_sql(f"SELECT {NOTIFY.format('$1')}", (key_id,))


def announce_all(connection: sqlite3.Connection, key_ids: Sequence[str]) -> None:
    """Say the same of many keys, in the transaction under way on a connection of SQLite's own."""
    connection.executemany(_ADD, [(key_id,) for key_id in key_ids])
    connection.execute(_FORGET, (KEPT, FORGET_EVERY, len(key_ids)))


class FileChangeFeed:
    """What was announced in an SQLite file, read in the loop's own thread: three microseconds if there is nothing."""

    trusted_s = inf

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._last = -1

    def changed(self) -> Changed:
        """As `Database.changed`."""
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
        """Stop reading; the next question starts over."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _begin(self) -> Changed:
        self._connection = sqlite3.connect(self._path, timeout=0, isolation_level=None)
        found = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'changes'").fetchone()
        self._last = 0 if found is None else found[0]
        return ALL
