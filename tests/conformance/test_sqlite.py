"""What only a file can do to the store: be open to others, be damaged, be busy with another process."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from collections import Counter
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Update, func, select

from birdwire.store.database import Database, StorageDownError, StoreError
from birdwire.store.engines.group_commit import MAX_QUEUED
from birdwire.store.engines.sqlite import WRITE_WAIT_S
from birdwire.store.tables import journal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable
    from pathlib import Path

NOW = datetime(2026, 4, 18, 7, tzinfo=UTC)


def an_entry(number: int) -> dict[str, Any]:
    """A journal row."""
    row = {"request_id": f"req_{number:05}", "key_id": "key_1", "user_id": "1", "operation": "like_twitter"}
    return row | {"asked": b"", "state": "confirmed", "created_at": NOW, "looks": 0, "reads": 0}


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Database]:
    """The database in a file, not yet looked at."""
    database = Database(f"sqlite:///{path}")
    try:
        yield database
    finally:
        await database.close()


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    """A database with a thousand rows, at rest."""
    path = tmp_path / "birdwire.db"
    async with opened(path) as database:
        await database.prepare(upgrade=False)
        await asyncio.gather(*(database.append(journal.ADD, an_entry(number)) for number in range(1_000)))
    return path


def modes(folder: Path) -> set[int]:
    """The rights of the files in a folder."""
    return {path.stat().st_mode & 0o777 for path in folder.iterdir()}


def spoil(file: Path, place: str) -> bytes:
    """Overwrite a part of a file; what it holds then."""
    raw = bytearray(file.read_bytes())
    begin, end = {"head": (0, 100), "middle": (4_096, len(raw) - 4_096), "whole": (0, len(raw))}[place]
    raw[begin:end] = b"\xa5" * (end - begin)
    file.write_bytes(raw)
    return bytes(raw)


async def count(database: Database) -> int:
    """How many rows the journal has."""
    async with database.read() as connection:
        return len(await journal.listed(connection, {}, None, 100_000))


async def test_a_new_file_is_the_owners_alone(tmp_path: Path) -> None:
    """No other user of the machine can read it."""
    async with opened(tmp_path / "birdwire.db") as database:
        await database.prepare(upgrade=False)
    assert modes(tmp_path) == {0o600}


@pytest.mark.trust("F12")
@pytest.mark.parametrize(
    ("mode", "words"), [(0o604, "open to every user"), (0o602, "open to every user"), (None, "cannot be opened")]
)
async def test_a_file_with_the_wrong_rights_is_refused(file: Path, mode: int | None, words: str) -> None:
    """In one sentence that says what to do."""
    if mode is None:
        file = file / "below" / "a" / "file"
    else:
        file.chmod(mode)
    async with opened(file) as database:
        with pytest.raises(StoreError, match=words):
            await database.prepare(upgrade=True)


@pytest.mark.trust("F13", "G16")
@pytest.mark.parametrize("place", ["head", "middle", "whole"])
async def test_a_damaged_file_is_refused_and_left_alone(file: Path, place: str) -> None:
    """Nothing is guessed, and nothing is created over it."""
    raw = spoil(file, place)
    async with opened(file) as database:
        with pytest.raises(StoreError, match=r"damaged|cannot be opened"):
            await database.prepare(upgrade=True)
    assert file.read_bytes() == raw  # noqa: ASYNC240 - nothing else runs


@pytest.mark.trust("F14")
async def test_rows_wait_for_another_process_without_blocking_the_loop(file: Path) -> None:
    """A command that writes for a while delays the rows, and nothing else."""
    async with opened(file) as database:
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = asyncio.gather(*(database.append(journal.ADD, an_entry(2_000 + number)) for number in range(9)))
            for _ in range(100):
                await asyncio.sleep(0)
                assert await count(database) == 1_000
            assert not waiting.done()
            other.execute("COMMIT")
            await waiting
        assert await count(database) == 1_009


@pytest.mark.trust("F14")
async def test_waits_for_another_process_do_not_add_up_beyond_five_seconds(file: Path) -> None:
    """Ten transactions, rows and a saved pair wait together, and the waits do not add up."""

    async def waited(writing: Awaitable[object]) -> float:
        with pytest.raises(StorageDownError):
            await writing
        return loop.time()

    async def wrote(database: Database) -> None:
        async with database.write():
            pass

    loop = asyncio.get_running_loop()
    async with opened(file) as database:
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            began_at = loop.time()
            ends = await asyncio.gather(
                *(waited(wrote(database)) for _ in range(10)),
                *(waited(database.append(journal.ADD, an_entry(2_000 + number))) for number in range(10)),
                waited(database.save(journal.SETTLE, journal.settled("req_00001", {"state": "refused"}), "key_1")),
            )
            other.execute("ROLLBACK")
        assert max(ends) < began_at + 2 * WRITE_WAIT_S
        await wrote(database)
        assert await count(database) == 1_000


async def test_a_pair_is_saved_ahead_of_every_write_that_waits(file: Path) -> None:
    """A transaction is under way, others and rows wait: the pair is next."""
    order: list[str] = []

    async def noted(name: str, writing: Awaitable[object]) -> None:
        await writing
        order.append(name)

    async def wrote(database: Database) -> None:
        async with database.write():
            await asyncio.sleep(0)

    async with opened(file) as database:
        async with database.write():
            waiting = [asyncio.create_task(noted("transaction", wrote(database))) for _ in range(3)]
            waiting.append(asyncio.create_task(noted("row", database.append(journal.ADD, an_entry(2_000)))))
            await asyncio.sleep(0)
            saving = database.save(journal.SETTLE, journal.settled("req_00001", {"state": "refused"}), "key_1")
            waiting.append(asyncio.create_task(noted("pair", saving)))
            for _ in range(5):  # so that all of them wait
                await asyncio.sleep(0)
        await asyncio.gather(*waiting)
    assert order == ["pair", "transaction", "transaction", "transaction", "row"]


async def test_fifty_pairs_that_are_saved_together_cost_two_statements_each(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row and the announcement of its key; the rest is there once in a transaction."""
    statements: list[str] = []
    connect = sqlite3.connect

    def traced(*args: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **options)
        connection.set_trace_callback(statements.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", traced)
    async with opened(file) as database:
        await database.ready(journal.SETTLE)
        statements.clear()
        rows = [journal.settled(f"req_{number:05}", {"state": "refused"}) for number in range(50)]
        saves = (database.save(journal.SETTLE, row, f"key_{number}") for number, row in enumerate(rows))
        assert all(await asyncio.gather(*saves))
        counted = Counter(statement.split()[0] for statement in statements)
    assert counted == {"BEGIN": 1, "UPDATE": 50, "INSERT": 50, "DELETE": 1, "COMMIT": 1}


async def test_the_first_pair_finds_its_connection_open_and_its_statement_compiled(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ready` did that before X was asked: both take longer than to store a pair."""

    def too_late(*_: object, **__: object) -> None:
        raise AssertionError

    async with opened(file) as database:
        await asyncio.gather(*(database.ready(journal.SETTLE) for _ in range(10)))
        with monkeypatch.context() as patched:
            patched.setattr(sqlite3, "connect", too_late)
            patched.setattr(Update, "compile", too_late)
            assert await database.save(journal.SETTLE, journal.settled("req_00001", {"state": "refused"}), "key_1")


async def test_a_file_that_cannot_be_opened_is_not_ready(tmp_path: Path) -> None:
    """Then no refresh token is presented."""
    async with opened(tmp_path / "nowhere" / "birdwire.db") as database:
        with pytest.raises(StorageDownError):
            await database.ready(journal.SETTLE)


async def test_rows_beyond_the_queue_limit_are_refused_immediately(file: Path) -> None:
    """A disk that stands still costs refusals, not memory."""
    async with opened(file) as database:
        rows = (database.append(journal.ADD, an_entry(2_000 + number)) for number in range(MAX_QUEUED + 7))
        results = await asyncio.gather(*rows, return_exceptions=True)
        assert [type(result) for result in results].count(StorageDownError) == 7
        assert await count(database) == 1_000 + MAX_QUEUED


@pytest.mark.trust("F48")
async def test_a_new_file_that_another_process_is_about_to_write_is_opened_after_that(tmp_path: Path) -> None:
    """SQLite refuses to switch it to write-ahead logging, without waiting; the start tries again."""
    path = tmp_path / "birdwire.db"
    path.touch(0o600)
    async with opened(path) as database:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            preparing = asyncio.create_task(database.prepare(upgrade=False))
            done, _ = await asyncio.wait({preparing}, timeout=0.3)
            assert not done
            other.execute("COMMIT")
        await preparing
        async with database.read() as connection:
            assert (await connection.exec_driver_sql("PRAGMA journal_mode")).scalar() == "wal"


async def test_a_second_opening_drops_no_lock_of_the_first(file: Path) -> None:
    """The last process to close a file deletes its log: without the lock, from under those that still use it."""
    async with opened(file) as first, opened(file) as second:
        await first.prepare(upgrade=False)
        await first.append(journal.ADD, an_entry(2_000))
        await second.prepare(upgrade=False)
        reading = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM journal'); c.close()"
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", reading, file)
        assert await asyncio.wait_for(process.wait(), 30) == 0
        assert {path.name for path in file.parent.iterdir()} >= {"birdwire.db-wal", "birdwire.db-shm"}


@pytest.mark.parametrize("name", ["a%2Eb.db", "a%41b.db", "a?mode=ro.db", "a#b.db", "a b.db"])
async def test_a_file_has_the_very_name_that_the_settings_give(tmp_path: Path, name: str) -> None:
    """Every part of the program opens one file: none decodes the name, or takes an option from it."""
    async with opened(tmp_path / name) as database:
        await database.prepare(upgrade=False)
        await database.append(journal.ADD, an_entry(1))
        async with database.write() as connection:
            assert (await connection.execute(select(func.count()).select_from(journal.journal))).scalar() == 1
    assert os.listdir(tmp_path) == [name]  # noqa: PTH208 - nothing else waits meanwhile


@pytest.mark.parametrize("gone", ["moved", "deleted"])
async def test_a_deleted_file_is_noticed(tmp_path: Path, gone: str) -> None:
    """Writes would go on into a file that no start would find again."""
    path = tmp_path / "birdwire.db"
    async with opened(path) as database:
        await database.prepare(upgrade=False)
        if gone == "moved":
            path.rename(tmp_path / "elsewhere.db")
        else:
            path.unlink()
        with pytest.raises(StorageDownError):
            await database.probe()


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
async def test_files_alongside_the_database_must_be_private_too(tmp_path: Path, suffix: str) -> None:
    """SQLite reads committed rows from there."""
    path = tmp_path / "birdwire.db"
    async with opened(path) as database:
        await database.prepare(upgrade=False)
    companion = path.with_name(path.name + suffix)
    companion.touch()
    companion.chmod(0o666)
    async with opened(path) as database:
        with pytest.raises(StoreError, match=f"chmod 600 {companion}"):
            await database.prepare(upgrade=False)
