"""Backups of an SQLite database: taking and restoring them, and marking the links of a restored database."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import Column, Integer, Table, func, select, text, update

from birdwire.store.schema import Instant, StoreError, insert, metadata
from birdwire.store.tables import approvals, outbox, policies
from birdwire.store.tables.x_sessions import LinkState, x_sessions

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection

restores = Table(
    "restores",
    metadata,
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("snapshot_at", Instant),
    Column("restored_at", Instant),
    Column("sessions", Integer),
)
"""One row for each time that an older state replaced a newer one. Without restored_at: written with a backup."""

WAIT_S = 30


class Marked(NamedTuple):
    """The number of links marked, when the snapshot was taken, if known, and how many policies hold in it.

    `approvals` is how many writes had waited for a person or were being sent after an approval: they are ended.
    """

    sessions: int
    snapshot_at: datetime | None
    policies: int
    approvals: int


def take(source: Path, target: Path, at: datetime) -> int:
    """Write the committed state into a new file (0600) while others write; return its size in bytes.

    The file is complete and on the disk when this returns, and never partly written under its name.

    Raises:
        StoreError: the file cannot be created, or exists.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        part.unlink(missing_ok=True)
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with contextlib.closing(sqlite3.connect(f"file:{source}?mode=rw", uri=True, timeout=WAIT_S)) as connection:
            connection.execute("VACUUM INTO ?", (str(part),))
        _stamp(part, at)
        _sync(part)
        # A link fails if the target exists; a rename would replace it.
        os.link(part, target)
        _sync(target.parent)
        return target.stat().st_size
    except OSError as error:
        raise StoreError(f"The backup {target} cannot be created: {error.strerror or type(error).__name__}.") from None
    except sqlite3.Error as error:
        raise StoreError(f"The backup {target} cannot be created: {type(error).__name__}.") from None
    finally:
        part.unlink(missing_ok=True)


def stage(copy: Path, target: Path) -> Path:
    """Copy a backup next to a database (0600) and check it, before `switch`.

    Raises:
        StoreError: the backup cannot be read, copied, or is damaged.
    """
    new = target.with_name(f"{target.name}.new")
    for name in _with_companions(new):
        name.unlink(missing_ok=True)
    try:
        with copy.open("rb") as file, os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            while chunk := file.read(1 << 20):
                out.write(chunk)
        with contextlib.closing(sqlite3.connect(new)) as connection:
            found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    except OSError as error:
        raise StoreError(f"The backup {copy} cannot be restored: {error.strerror}.") from None
    except sqlite3.Error:
        found = "no database"
    if found != "ok":
        discard(new)
        raise StoreError(f"The backup {copy} is damaged. Nothing was changed.")
    return new


def discard(new: Path) -> None:
    """Delete what `stage` wrote."""
    for name in _with_companions(new):
        name.unlink(missing_ok=True)


def switch(new: Path, target: Path) -> Path | None:
    """Replace a database with the staged copy; return where the old one is kept, or None if there was none.

    Raises:
        StoreError: the replacement failed; it is safe to repeat.
    """
    kept = target.with_name(f"{target.name}.replaced-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}")
    there = target.exists() and target.stat().st_size > 0
    try:
        _sync(new)
        if there:
            os.link(target, kept)
        for name, old in zip(_with_companions(target)[1:], _with_companions(kept)[1:], strict=True):
            # A companion of the old file: SQLite would apply it to the new one.
            if name.exists():
                name.rename(old)
        new.replace(target)
        _sync(target.parent)
    except OSError as error:
        raise StoreError(f"The database {target} cannot be replaced: {error.strerror}.") from None
    return kept if there else None


async def mark_restored(connection: AsyncConnection, at: datetime) -> Marked:
    """Mark each link, because its refresh token may have been spent since the snapshot, and end what waits.

    A link that has ended stays ended; a mark from before stays. A write that waits for a person may have been sent
    since the snapshot, so it is never sent. Notifications that wait are news of an older state, so they are dropped.
    """
    live = x_sessions.c.state.in_((LinkState.ACTIVE, LinkState.PENDING)) & x_sessions.c.refresh_ct.is_not(None)
    sessions = (await connection.execute(update(x_sessions).where(live).values(why="restored"))).rowcount
    query = select(restores.c.epoch, restores.c.snapshot_at).where(restores.c.restored_at.is_(None))
    made = (await connection.execute(query.order_by(restores.c.epoch.desc()).limit(1))).first()
    ended = await approvals.end_all(connection, at, "restored_backup")
    await outbox.drop_pending(connection)
    held = sum(row.rules is not None for row in await policies.all_latest(connection))
    if made is not None:
        values = {"restored_at": at, "sessions": sessions}
        await connection.execute(update(restores).where(restores.c.epoch == made.epoch).values(values))
        return Marked(sessions, made.snapshot_at, held, ended)
    epoch = (await connection.execute(select(func.coalesce(func.max(restores.c.epoch), 0)))).scalar_one() + 1
    values = {"epoch": epoch, "restored_at": at, "sessions": sessions}
    await connection.execute(insert(connection, restores).values(values))
    return Marked(sessions, None, held, ended)


async def count_gateways(connection: AsyncConnection) -> int:
    """Return how many other gateways use this PostgreSQL database; 0 for an SQLite file, which has a lock instead."""
    if connection.dialect.name == "sqlite":
        return 0
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'birdwire' AND pid <> pg_backend_pid()"
    )
    return int((await connection.execute(query)).scalar_one())


def _stamp(file: Path, at: datetime) -> None:
    """Record in a backup when it was taken."""
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("PRAGMA synchronous=FULL")
        (epoch,) = connection.execute("SELECT coalesce(max(epoch), 0) + 1 FROM restores").fetchone()
        micros = int(at.timestamp() * 1_000_000)
        connection.execute("INSERT INTO restores (epoch, snapshot_at) VALUES (?, ?)", (epoch, micros))


def _with_companions(path: Path) -> list[Path]:
    """Return a database file and the companion files that SQLite keeps with it."""
    return [path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")]


def _sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
