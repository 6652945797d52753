"""The SQLite engine: one file in WAL mode, every commit synced, one writer at a time. Knows no table."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sqlite3
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, event
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import create_async_engine

from birdwire.runtime import private_files
from birdwire.runtime.backoff import Backoff
from birdwire.runtime.slots import Slots
from birdwire.store.engines.change_feed import FileChangeFeed, announce_all
from birdwire.store.engines.disk_thread import DiskThread
from birdwire.store.engines.group_commit import REFUSED
from birdwire.store.schema import StorageDownError, StoreError, json_text, migrate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from sqlalchemy import Dialect
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
    from sqlalchemy.pool import ConnectionPoolEntry

    from birdwire.store.engines.group_commit import Step, Take, Unit

READERS = 8
POOL_WAIT_S = 5
CHECK_S = 0.25
BUSY_MS = 5_000
SWITCH_TRIES, SWITCH_PAUSE_S = 250, 0.02
WRITE_WAIT_S = 5.0
"""Maximum total wait of a write: in the queue, and for another process that writes."""

BUSY_PAUSES = Backoff(initial_s=0.001, max_s=0.05)
_PRAGMAS = ("synchronous=FULL", f"busy_timeout={BUSY_MS}", "foreign_keys=ON", "secure_delete=ON")
_REFUSALS = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    UnicodeError,
)
"""Errors of a single row. Each rolls back its own statement only."""
_PRIMARY = 0xFF
"""The bits of an extended result code of SQLite that hold the primary one."""


class SQLite:
    """One SQLite file. Every method that uses it raises StorageDownError if it does not answer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._engine = _engine(path, READERS)
        # A separate pool, so that a write does not wait for readers.
        self._writer = _engine(path, 1)
        self._file: tuple[int, int] | None = None
        self._write_slot = Slots(1)
        self._appender: sqlite3.Connection | None = None
        self.changes = FileChangeFeed(path)
        self._disk = DiskThread()
        event.listen(self._engine.sync_engine, "connect", _set_up)
        event.listen(self._writer.sync_engine, "connect", _set_up_writer)

    @property
    def dialect(self) -> Dialect:
        """The SQL dialect that statements are compiled for."""
        return self._engine.dialect

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """Return a connection on which every statement is its own transaction."""
        try:
            async with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StorageDownError(type(error).__name__) from None

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """Return one transaction, which excludes all other writers from its first statement on."""
        ends_at = asyncio.get_running_loop().time() + WRITE_WAIT_S
        try:
            async with self._hold_write_slot(ends_at), self._writer.connect() as connection:
                await _begin(lambda: connection.exec_driver_sql("BEGIN IMMEDIATE"), ends_at)
                try:
                    yield connection
                    await connection.exec_driver_sql("COMMIT")
                except BaseException:
                    # If this fails, the pool rolls back.
                    with contextlib.suppress(SQLAlchemyError):
                        await asyncio.shield(connection.exec_driver_sql("ROLLBACK"))
                    raise
        except SQLAlchemyError as error:
            raise StorageDownError(type(error).__name__) from None

    async def append(self, take: Take, since: float) -> list[int]:
        """Commit a batch, as GroupCommit requires."""
        return await self._commit(take, since, urgent=False)

    async def save(self, take: Take, since: float) -> list[int]:
        """Commit a batch, as GroupCommit requires, ahead of every other queued write."""
        return await self._commit(take, since, urgent=True)

    async def ready(self) -> None:
        """Open the connection of `append` and `save`, so that neither waits for it."""
        try:
            await self._append_connection()
        except sqlite3.Error as error:
            raise StorageDownError(type(error).__name__) from None

    @asynccontextmanager
    async def _hold_write_slot(self, ends_at: float, *, urgent: bool = False) -> AsyncIterator[None]:
        """Hold the only write slot: SQLite has one writer, and waiting here is cheaper and fairer than its busy loop.

        Raises:
            StorageDownError: the slot was not free by `ends_at`, a time of the loop's clock.
        """
        if not self._write_slot.try_acquire():
            try:
                await self._write_slot.wait(ends_at, urgent=urgent)
            except TimeoutError:
                raise StorageDownError("other writes took too long") from None
        try:
            yield
        finally:
            self._write_slot.release()

    async def _append_connection(self) -> sqlite3.Connection:
        if self._appender is None:
            return await self._disk.run(self._open_appender)
        return self._appender

    async def _commit(self, take: Take, since: float, *, urgent: bool) -> list[int]:
        """Write units in one transaction.

        The event loop's thread executes the statements, a few microseconds each: in another thread, each row would pass
        Python's global lock back and forth, up to 5 ms each time on a busy loop. Only the commit, which waits for the
        disk, runs in the other thread. Waiting for another process needs no thread.
        """
        ends_at = since + WRITE_WAIT_S
        async with self._hold_write_slot(ends_at, urgent=urgent):
            try:
                connection = await self._append_connection()

                async def begin() -> None:
                    connection.execute("BEGIN IMMEDIATE")

                await _begin(begin, ends_at)
                units = take()
                changed = [_execute(connection, unit) for unit in units]
                key_ids = [unit.key_id for unit, rows in zip(units, changed, strict=True) if unit.key_id and rows > 0]
                if key_ids:
                    announce_all(connection, key_ids)
                for unit in units:
                    if unit.written is not None:
                        unit.written()
                await self._disk.run(connection.commit)
            except BaseException as error:
                await self._disk.run(self._close_appender)
                if isinstance(error, sqlite3.Error):
                    raise StorageDownError(type(error).__name__) from None
                raise
        return changed

    async def probe(self) -> None:
        """Write something harmless, and check that the path still names the opened file."""
        if self._file is not None and self._file != _identity(self._path):
            raise StorageDownError("the file was moved or deleted")
        async with self.write() as connection:
            await connection.exec_driver_sql("PRAGMA user_version=1")

    async def prepare(self, *, upgrade: bool, migrated: Callable[[], None]) -> None:
        """Create the file if it does not exist, and check that it is private, undamaged and of this version.

        Raises:
            StoreError: one of these checks fails.
        """
        self._make_file()
        self._file = _identity(self._path)
        if await asyncio.to_thread(_is_damaged, self._path):
            raise StoreError(f"The database {self._path} is damaged; restore it from a backup.")
        await asyncio.to_thread(_switch_to_wal, self._path)
        async with self.write() as connection:
            await connection.run_sync(lambda sync: migrate(sync, upgrade=upgrade, migrated=migrated))

    async def close(self) -> None:
        """Close every connection."""
        self.changes.close()
        await self._disk.run(self._close_appender)
        self._disk.close()
        await self._writer.dispose()
        await self._engine.dispose()

    def _open_appender(self) -> sqlite3.Connection:
        """Open the connection of group commits; runs in the disk's thread, so that it is opened once."""
        if self._appender is None:
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            _set_up_writer(connection, None)
            self._appender = connection
        return self._appender

    def _close_appender(self) -> None:
        """Close that connection, which rolls back anything uncommitted."""
        if self._appender is not None:
            self._appender.close()
            self._appender = None

    def _make_file(self) -> None:
        """Create the file if it does not exist, and check that it is private.

        An existing file is never opened here: when a process closes any descriptor of a file, the system drops every
        lock that the process holds on it, including those of its SQLite connections.
        """
        try:
            if not self._path.exists():
                _make_private(self._path)
            companions = [Path(f"{self._path}{suffix}") for suffix in ("-wal", "-shm")]
            files = [self._path, *(file for file in companions if file.exists())]
            fault = next(filter(None, (private_files.fault(file, "database") for file in files)), None)
        except OSError as error:
            raise StoreError(
                f"The database {self._path} cannot be opened: {error.strerror}. Check BIRDWIRE_DATABASE_URL."
            ) from None
        if fault is not None:
            raise StoreError(fault)
        if not os.access(self._path, os.R_OK | os.W_OK):
            raise StoreError(
                f"The database {self._path} cannot be opened: this process has no permission to read and write it. "
                "Run Birdwire as the file's owner."
            )


def _identity(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of a file, or None if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _make_private(path: Path) -> None:
    """Create an empty file (0600), closed before it gets its name; an existing file stays."""
    path = Path(os.path.realpath(path))
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with contextlib.suppress(FileExistsError):
            os.link(new, path)
    finally:
        new.unlink()


def _engine(path: Path, connections: int) -> AsyncEngine:
    return create_async_engine(
        # In a URL string, `%2E` and `?` would name another file.
        URL.create("sqlite+aiosqlite", database=str(path)),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=POOL_WAIT_S,
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,
        json_serializer=json_text,
    )


async def _begin(begin: Callable[[], Awaitable[object]], ends_at: float) -> None:
    """Begin a transaction once no other process writes; raise the driver's error after `ends_at`."""
    loop = asyncio.get_running_loop()
    for pause_s in BUSY_PAUSES:
        try:
            await begin()
        except (sqlite3.OperationalError, OperationalError) as error:
            cause, left_s = getattr(error, "orig", error), ends_at - loop.time()
            if getattr(cause, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY or left_s <= 0:
                raise
        else:
            return
        await asyncio.sleep(min(pause_s, left_s))


def _execute(connection: sqlite3.Connection, unit: Unit) -> int:
    """Execute a unit in the current transaction; a refused one rolls back alone."""
    if unit.steps:
        return _execute_steps(connection, unit.steps)
    try:
        return connection.execute(unit.sql, unit.values).rowcount
    except _REFUSALS:
        return REFUSED


def _execute_steps(connection: sqlite3.Connection, steps: Sequence[Step]) -> int:
    """Execute the steps of a unit, or none of them; return what Unit describes.

    The rows that a unit ensures exist already, except in the first unit of a window. Nobody else writes, so they need
    no lock either: the other steps are tried without them first.
    """
    connection.execute("SAVEPOINT unit")
    result = _try_steps(connection, steps, ensure=False)
    if result not in (REFUSED, len(steps)) and any(step.ensures for step in steps):
        connection.execute("ROLLBACK TO unit")
        result = _try_steps(connection, steps, ensure=True)
    if result != len(steps):
        connection.execute("ROLLBACK TO unit")
    connection.execute("RELEASE unit")
    return result


def _try_steps(connection: sqlite3.Connection, steps: Sequence[Step], *, ensure: bool) -> int:
    """Execute steps up to the first that is required and changes no row; return its index, or as Unit describes."""
    try:
        for index, (sql, values, required, _, ensures, _) in enumerate(steps):
            if ensures and not ensure:
                continue
            if connection.execute(sql, values).rowcount == 0 and required:
                return index
    except _REFUSALS:
        return REFUSED
    return len(steps)


def _set_up(connection: Any, _: ConnectionPoolEntry | None) -> None:
    """Set up a new connection."""
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _set_up_writer(connection: Any, entry: ConnectionPoolEntry | None) -> None:
    """Set up a connection that writes: `_begin` waits for other processes, so SQLite itself must not."""
    _set_up(connection, entry)
    connection.execute("PRAGMA busy_timeout=0")


def _switch_to_wal(path: Path) -> None:
    """Switch the file to write-ahead logging, which it keeps; nothing is written if it is set already.

    SQLite's own wait for locks does not help: it returns SQLITE_BUSY immediately while another process is about to
    write in the old mode, as happens when several processes create one new file.

    Raises:
        StorageDownError: the file stayed busy for five seconds, or cannot be written.
    """
    for tries_left in reversed(range(SWITCH_TRIES)):
        try:
            with contextlib.closing(sqlite3.connect(path, timeout=0)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
                return
        except sqlite3.Error as error:
            if not tries_left or error.sqlite_errorcode & _PRIMARY != sqlite3.SQLITE_BUSY:
                raise StorageDownError(type(error).__name__) from None
        time.sleep(SWITCH_PAUSE_S)


def _is_damaged(path: Path) -> bool:
    """Return whether SQLite finds damage within a quarter of a second.

    That covers some tens of megabytes; the rest is checked when it is read. A start must not take longer as the store
    grows, and tokens are sealed, so that a flipped bit in one is found in any case.

    Raises:
        StoreError: the file is not a database.
        StorageDownError: the file cannot be read.
    """
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=POOL_WAIT_S, check_same_thread=False)) as connection:
            # A whole table is one step of SQLite's virtual machine: a progress handler would run too late.
            end = threading.Timer(CHECK_S, connection.interrupt)
            end.start()
            try:
                return bool(connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok")
            finally:
                end.cancel()
                end.join()
    except UnicodeDecodeError:
        # SQLite's message quotes some of the damaged bytes.
        return True
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            return False
        raise StorageDownError(type(error).__name__) from None
    except sqlite3.Error as error:
        if error.sqlite_errorcode & _PRIMARY == sqlite3.SQLITE_NOTADB:
            raise StoreError(
                f"{path} is not a Birdwire database. Check BIRDWIRE_DATABASE_URL, or restore a backup."
            ) from None
        raise StorageDownError(type(error).__name__) from None
