"""The store on one SQLite file: WAL, every commit synced, one writer at a time. Knows no owner's tables."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
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
from birdwire.store.engines.group_commit import REFUSED
from birdwire.store.schema import StorageDownError, StoreError, json_text, migrate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sqlalchemy import Dialect
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
    from sqlalchemy.pool import ConnectionPoolEntry

    from birdwire.store.engines.group_commit import Take, Unit

READERS = 8
POOL_WAIT_S = 5
CHECK_S = 0.25
BUSY_MS = 5_000
SWITCH_TRIES, SWITCH_PAUSE_S = 250, 0.02
WRITE_WAIT_S = 5.0
"""How long a write waits in all: for its turn, and for another process that writes."""

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
"""What one row can do wrong. Each undoes its own statement only."""
_PRIMARY = 0xFF
"""The bits of SQLite's extended error codes that hold the general one."""


class SQLite:
    """One file. Every method that talks to it raises StorageDownError if it does not answer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._engine = _engine(path, READERS)
        self._writer = _engine(path, 1)  # of its own: a write does not wait for readers
        self._file: tuple[int, int] | None = None
        self._write_slot = Slots(1)
        self._appending: sqlite3.Connection | None = None
        self.changes = FileChangeFeed(path)
        self._disk = ThreadPoolExecutor(1, "birdwire-disk")
        event.listen(self._engine.sync_engine, "connect", _set_up)
        event.listen(self._writer.sync_engine, "connect", _set_up_to_write)

    @property
    def dialect(self) -> Dialect:
        """How statements are written here."""
        return self._engine.dialect

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection on which every statement stands alone."""
        try:
            async with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StorageDownError(type(error).__name__) from None

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """One transaction, alone in this file from its first statement on."""
        ends_at = asyncio.get_running_loop().time() + WRITE_WAIT_S
        try:
            async with self._turn(ends_at), self._writer.connect() as connection:
                await _begin(lambda: connection.exec_driver_sql("BEGIN IMMEDIATE"), ends_at)
                try:
                    yield connection
                    await connection.exec_driver_sql("COMMIT")
                except BaseException:
                    with contextlib.suppress(SQLAlchemyError):  # the pool rolls back what this cannot
                        await asyncio.shield(connection.exec_driver_sql("ROLLBACK"))
                    raise
        except SQLAlchemyError as error:
            raise StorageDownError(type(error).__name__) from None

    async def append(self, take: Take, since: float) -> list[int]:
        """As `Appends` wants it."""
        return await self._commit(take, since, urgent=False)

    async def save(self, take: Take, since: float) -> list[int]:
        """As `Appends` wants it, ahead of every other write that waits."""
        return await self._commit(take, since, urgent=True)

    async def ready(self) -> None:
        """Open the connection for `append` and `save`, which are not to wait for one."""
        try:
            await self._to_append()
        except sqlite3.Error as error:
            raise StorageDownError(type(error).__name__) from None

    @asynccontextmanager
    async def _turn(self, ends_at: float, *, urgent: bool = False) -> AsyncIterator[None]:
        """Hold the only write slot. SQLite has one writer: waiting here is cheaper and fairer than its busy loop.

        Raises:
            StorageDownError: other writes took until `ends_at`, a time of the loop's clock.
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

    async def _to_append(self) -> sqlite3.Connection:
        if self._appending is None:
            return await asyncio.get_running_loop().run_in_executor(self._disk, self._start_appending)
        return self._appending

    async def _commit(self, take: Take, since: float, *, urgent: bool) -> list[int]:
        """Write units in one transaction.

        The loop's own thread puts them in, a few microseconds each: were it the other thread, the two would hand
        Python's lock to and fro for every row, up to 5 ms each time when the loop is busy. The disk is waited for in
        the other thread, and another process without any.
        """
        run, ends_at = asyncio.get_running_loop().run_in_executor, since + WRITE_WAIT_S
        async with self._turn(ends_at, urgent=urgent):
            try:
                connection = await self._to_append()

                async def begin() -> None:
                    connection.execute("BEGIN IMMEDIATE")

                await _begin(begin, ends_at)
                units = take()
                changed = [_put(connection, unit) for unit in units]
                key_ids = [unit.key_id for unit, rows in zip(units, changed, strict=True) if unit.key_id and rows > 0]
                if key_ids:
                    announce_all(connection, key_ids)
                for unit in units:
                    if unit.written is not None:
                        unit.written()
                await run(self._disk, connection.commit)
            except BaseException as error:
                await run(self._disk, self._stop_appending)
                if isinstance(error, sqlite3.Error):
                    raise StorageDownError(type(error).__name__) from None
                raise
        return changed

    async def probe(self) -> None:
        """Write something harmless to the disk; see that it is still the file that has our name."""
        if self._file is not None and self._file != _identity(self._path):
            raise StorageDownError("the file was moved or deleted")
        async with self.write() as connection:
            await connection.exec_driver_sql("PRAGMA user_version=1")

    async def prepare(self, *, upgrade: bool, migrated: Callable[[], None]) -> None:
        """See that the file is private, whole and of this version; make it if it is not there.

        Raises:
            StoreError: it is not.
        """
        self._make_file()
        self._file = _identity(self._path)
        if await asyncio.to_thread(_damaged, self._path):
            raise StoreError(f"The database {self._path} is damaged; restore it from a backup.")
        await asyncio.to_thread(_switch_to_wal, self._path)
        async with self.write() as connection:
            await connection.run_sync(lambda sync: migrate(sync, upgrade=upgrade, migrated=migrated))

    async def close(self) -> None:
        """Close every connection."""
        self.changes.close()
        await asyncio.get_running_loop().run_in_executor(self._disk, self._stop_appending)
        self._disk.shutdown()
        await self._writer.dispose()
        await self._engine.dispose()

    def _start_appending(self) -> sqlite3.Connection:
        """In the disk's thread, as `_stop_appending`: however many ask for the connection, it is opened once."""
        if self._appending is None:
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            _set_up_to_write(connection, None)
            self._appending = connection
        return self._appending

    def _stop_appending(self) -> None:
        """What was not committed is rolled back."""
        if self._appending is not None:
            self._appending.close()
            self._appending = None

    def _make_file(self) -> None:
        """Make the file if it is not there, and see that it is private.

        A file that is there is never opened here: when a process closes any descriptor of a file, the system drops
        every lock that the process holds on it, those of its open SQLite connections too.
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
                f"The database {self._path} cannot be opened: this process may not read and write it. "
                "Run Birdwire as the file's owner."
            )


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file has this name; None: there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _make_private(path: Path) -> None:
    """Make an empty file for its owner alone, closed before it has its name; one that is there by then stays."""
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
        URL.create("sqlite+aiosqlite", database=str(path)),  # in a string, `%2E` and `?` would name another file
        pool_size=connections,
        max_overflow=0,
        pool_timeout=POOL_WAIT_S,
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,
        json_serializer=json_text,
    )


async def _begin(begin: Callable[[], Awaitable[object]], ends_at: float) -> None:
    """Begin a transaction as soon as no other process writes; raises the driver's error when that takes too long."""
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


def _put(connection: sqlite3.Connection, unit: Unit) -> int:
    """Execute a unit's statement in the transaction under way: one that the database refuses undoes itself alone."""
    try:
        return connection.execute(unit.sql, unit.values).rowcount
    except _REFUSALS:
        return REFUSED


def _set_up(connection: Any, _: ConnectionPoolEntry | None) -> None:
    """Run on every new connection."""
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _set_up_to_write(connection: Any, entry: ConnectionPoolEntry | None) -> None:
    """The same for one that writes: SQLite itself does not wait for another process, since `_begin` does."""
    _set_up(connection, entry)
    connection.execute("PRAGMA busy_timeout=0")


def _switch_to_wal(path: Path) -> None:
    """Switch the file to write-ahead logging, which it then keeps; nothing is written where it is so already.

    SQLite's own wait for locks does not help: it answers SQLITE_BUSY immediately where another process that has the
    file in the old mode is about to write, as it is when several make one new file.

    Raises:
        StorageDownError: it stayed busy for five seconds, or cannot be written.
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


def _damaged(path: Path) -> bool:
    """Whether SQLite finds damage within a quarter of a second.

    That reads some tens of megabytes. What lies beyond is looked at when it is used: a start must not grow with
    the store, and tokens are sealed, so that a flipped bit in one is found in any case.

    Raises:
        StoreError: the file is not a database.
        StorageDownError: the file cannot be read.
    """
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=POOL_WAIT_S, check_same_thread=False)) as connection:
            # A whole table is one step of SQLite's machine, so a progress handler would come too late.
            end = threading.Timer(CHECK_S, connection.interrupt)
            end.start()
            try:
                return bool(connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok")
            finally:
                end.cancel()
                end.join()
    except UnicodeDecodeError:  # SQLite's words for what is damaged quote some of it
        return True
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            return False
        raise StorageDownError(type(error).__name__) from None
    except sqlite3.Error as error:
        if error.sqlite_errorcode & _PRIMARY == sqlite3.SQLITE_NOTADB:
            raise StoreError(
                f"{path} is not a database of Birdwire. Check BIRDWIRE_DATABASE_URL, or restore a backup."
            ) from None
        raise StorageDownError(type(error).__name__) from None
