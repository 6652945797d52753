"""One gateway per database file, by any path; SQLite's own locks work alongside that lock."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from birdwire.cli.database import alone, lock_of
from birdwire.cli.stop import Stop
from birdwire.settings import Settings
from birdwire.store.database import Database
from birdwire.store.tables import api_keys
from harness.processes import Deployment, deploy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

WRITER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
try:
    connection.execute("BEGIN IMMEDIATE")
except sqlite3.OperationalError:
    print("busy", flush=True)
else:
    print("writing", flush=True)
    sys.stdin.readline()
    connection.execute("COMMIT")
"""


def settings(file: Path) -> Settings:
    """The settings of a gateway on a file."""
    return Settings(database_url=f"sqlite:///{file}")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A database file."""
    file = tmp_path / "data" / "birdwire.db"
    file.parent.mkdir()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE birds (name)")
    file.chmod(0o600)
    return file


@pytest_asyncio.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    """A sandbox and a key; no gateway runs yet."""
    async with deploy(tmp_path) as made:
        yield made


@asynccontextmanager
async def writer(file: Path) -> AsyncIterator[str]:
    """Another process that tries to begin a write, without waiting: "writing" until the block ends, or "busy"."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, file, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()
    finally:
        await asyncio.wait_for(process.communicate(b"\n"), 30)


@pytest.mark.parametrize("way", ["itself", "folder", "link", "dots", "hard link"])
def test_no_path_or_link_leads_around_the_lock(file: Path, way: str) -> None:
    """The lock is on the file, not on a name for it, and ends with its block."""
    root = file.parent.parent
    others = {
        "itself": file,
        "folder": root / "folder" / "birdwire.db",
        "link": root / "link.db",
        "dots": root / "data" / ".." / "data" / "birdwire.db",
        "hard link": root / "hard.db",
    }
    (root / "folder").symlink_to(file.parent)
    (root / "link.db").symlink_to(file)
    if way == "hard link":
        (root / "hard.db").hardlink_to(file)
    with alone(settings(file)), pytest.raises(Stop, match="Another gateway is using"), alone(settings(others[way])):
        pass
    with alone(settings(others[way])), pytest.raises(Stop, match="Another gateway is using"), alone(settings(file)):
        pass


@pytest.mark.parametrize("name", ["data/birdwire.db", "etc/birdwire.db"])
def test_the_lock_of_earlier_versions_is_taken_too(file: Path, name: str) -> None:
    """A gateway of such a version and one of this cannot serve one file. Those lock by the name in their settings."""
    import fcntl  # noqa: PLC0415 - as those versions do

    root = file.parent.parent
    (root / "etc").mkdir()
    (root / "etc" / "birdwire.db").symlink_to(file)
    with lock_of(root / name).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Stop, match="Another gateway is using"), alone(settings(root / "etc" / "birdwire.db")):
            pass


async def test_a_second_gateway_is_refused_and_commands_go_on(deployment: Deployment, tmp_path: Path) -> None:
    """By a link to the folder as well. What the first one held is free once it is killed."""
    at = await deployment.serve()
    (tmp_path / "folder").symlink_to(tmp_path)
    url = f"sqlite:///{tmp_path / 'folder' / 'birdwire.db'}"
    (tmp_path / "hard.db").hardlink_to(tmp_path / "birdwire.db")
    with pytest.raises(Stop, match="Another gateway is using"), alone(settings(tmp_path / "hard.db")):
        pass
    (code, document), _ = await asyncio.gather(
        deployment.command("serve", "--port", "0", database_url=url), deployment.key("another")
    )
    assert (code, "Another gateway is using" in document["error"]["message"]) == (2, True)
    assert (
        await deployment.call(at, "auth_twitter", authorization=f"Bearer {deployment.raw_keys[1]}")
    ).status_code == 200
    await at.kill()
    with alone(settings(tmp_path / "folder" / "birdwire.db")):
        pass


async def test_sqlites_own_locks_hold_under_ours_and_after_it(tmp_path: Path) -> None:
    """A write waits for that of another process, and excludes it in turn."""
    file = tmp_path / "birdwire.db"

    async def both_ways() -> None:
        database = Database(f"sqlite:///{file}")
        try:
            await database.prepare(upgrade=False)
            async with writer(file) as state:
                assert state == "writing"
                ours = sqlite3.connect(file, timeout=0, isolation_level=None)
                with closing(ours), pytest.raises(sqlite3.OperationalError, match="locked"):
                    ours.execute("BEGIN IMMEDIATE")
            async with database.write() as connection:
                await api_keys.get(connection, "key_1")
                async with writer(file) as state:
                    assert state == "busy"
        finally:
            await database.close()

    with alone(settings(file)):
        await both_ways()
    await both_ways()
