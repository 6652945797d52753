"""Which keys changed, for caches: each change of a key or its link is announced, and reaches every process.

On SQLite the announcement is a row, on PostgreSQL a notification; either way it comes with the commit, or not at all.
"""

from __future__ import annotations

import sqlite3
from enum import Enum, auto
from math import inf
from typing import TYPE_CHECKING, Literal

from sqlalchemy import Column, Integer, String, Table, bindparam, delete, func, insert, select

from birdwire.store.schema import metadata

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Dialect
    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.store.appends import Step

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


_ADD = insert(changes)
_FORGET = delete(changes).where(
    changes.c.number <= func.last_insert_rowid() - KEPT, func.last_insert_rowid() % FORGET_EVERY == 0
)
_NOTIFY = select(func.pg_notify(CHANNEL, bindparam("key_id", type_=String)))


def announcement(dialect: Dialect, key_id: str) -> tuple[Step, ...]:
    """Return the statements that announce, in the transaction that they are part of, a change of a key or its link."""
    told = {"key_id": key_id}
    return ((_ADD, told), (_FORGET, {})) if dialect.name == "sqlite" else ((_NOTIFY, told),)


async def announce(connection: AsyncConnection, key_id: str) -> None:
    """Say in the caller's transaction that a key, or what is linked to it, is about to be another."""
    for statement, values in announcement(connection.dialect, key_id):
        await connection.execute(statement, values)


class FileChanges:
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
