"""The file under the store: full, read only, damaged. Nothing is lost in silence, no token is spent for nothing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from birdwire.api.errors import GatewayError
from birdwire.store.database import Database, StorageDownError, StoreError
from birdwire.store.encryption.vault import VaultError
from harness.auth_server import LOST, SECRET, processes
from harness.fault_scale import record, scaled
from harness.processes import Deployment, GatewayProcess, deploy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

FLIPS = scaled("FLIPS", 40, 500)
ACCOUNTS = 8


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes; only root can make one."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a file system of its own needs root on Linux")
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)], check=True)  # noqa: S603 - our own command
    try:
        yield place
    finally:
        subprocess.run(["/bin/umount", "--lazy", str(place)], check=True)  # noqa: S603 - our own command


@pytest_asyncio.fixture
async def deployment(tmp_path: Path, small_disk: Path) -> AsyncIterator[Deployment]:
    """A sandbox and a key, with the database alone on the small disk."""
    async with deploy(tmp_path, f"sqlite:///{small_disk / 'birdwire.db'}") as made:
        yield made


def fill(place: Path) -> None:
    """Leave no byte free, and no room in the write-ahead log either."""
    with contextlib.closing(sqlite3.connect(place / "birdwire.db", timeout=30)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with (place / "filler").open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def remount(place: Path, how: str) -> None:
    """Let the file system take writes (`rw`), or not (`ro`)."""
    subprocess.run(["/bin/mount", "-o", f"remount,{how}", str(place)], check=True)  # noqa: S603 - our own command


async def serves_again(deployment: Deployment, at: GatewayProcess) -> None:
    """Wait until a like succeeds and the gateway is ready, without help."""
    async with asyncio.timeout(40):
        while (await deployment.like(at)).status_code != 200:
            pass
        while (await deployment.client.get(f"{at.url}/readyz")).status_code != 200:
            pass


@pytest.mark.trust("F10", "R4")
async def test_a_full_disk_refuses_what_must_be_kept_and_spends_no_token(
    deployment: Deployment, small_disk: Path
) -> None:
    """Links and posts are refused before anything is sent; X is asked for no new token; with room all goes on."""
    at = await deployment.serve()
    await deployment.link(at)
    assert (await deployment.like(at)).status_code == 200
    fill(small_disk)
    for name, body in (("auth_twitter", None), ("post_twitter", {"text": "full"})):
        answer = await deployment.call(at, name, body)
        assert (answer.status_code, answer.json()["error"]["reason"]) == (503, "storage_unavailable"), name
        assert int(answer.headers["retry-after"]) >= 1
    assert not [one for one in (await deployment.x.get("/_sandbox/state")).json()["posts"] if one["text"] == "full"]
    assert (await deployment.client.get(f"{at.url}/readyz")).status_code == 503
    assert (await deployment.client.get(f"{at.url}/livez")).status_code == 200
    await deployment.expire()
    assert (await deployment.like(at)).status_code in (502, 503)
    assert await deployment.refreshes() == []
    (small_disk / "filler").unlink()
    await serves_again(deployment, at)
    assert [call["status"] for call in await deployment.refreshes()] == [200]


@pytest.mark.trust("F10", "R4")
async def test_a_disk_that_fills_up_behind_the_claim_loses_no_pair(deployment: Deployment, small_disk: Path) -> None:
    """X's new pair waits in memory; nothing is presented twice; with room it is stored and used."""
    at = await deployment.serve(failpoints="refresh_after_reply=delay(1)*1")
    await deployment.link(at)
    await deployment.expire()
    liking = asyncio.create_task(deployment.like(at))
    async with asyncio.timeout(30):
        while not await deployment.refreshes():
            pass
        await asyncio.to_thread(fill, small_disk)
        while "persist_failure" not in at.log.read_text():
            await deployment.client.get(f"{at.url}/livez")
    assert (await deployment.client.get(f"{at.url}/readyz")).status_code == 503
    (small_disk / "filler").unlink()
    assert (await liking).status_code == 200
    await serves_again(deployment, at)
    status = await deployment.status(at)
    assert (status["state"], status["generation"]) == ("active", 2)
    assert [call["status"] for call in await deployment.refreshes()] == [200]


@pytest.mark.trust("F12")
async def test_a_disk_that_takes_no_writes_is_named_at_the_start(deployment: Deployment, small_disk: Path) -> None:
    """One sentence, exit 2, nothing half started."""
    remount(small_disk, "ro")
    try:
        code, document = await deployment.command("serve", "--port", "0")
    finally:
        remount(small_disk, "rw")
    assert (code, os.strerror(errno.EROFS) in document["error"]["message"]) == (2, True)


@pytest.mark.trust("F12")
@pytest.mark.parametrize("mode", [0o604, 0o602, 0o666])
async def test_a_database_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    """With the command that mends it."""
    file = tmp_path / "birdwire.db"
    file.touch()
    file.chmod(mode)
    database = Database(f"sqlite:///{file}")
    with pytest.raises(StoreError, match="chmod 600"):
        await database.prepare(upgrade=False)
    await database.close()


@pytest.mark.trust("F13", "G16")
async def test_flipped_bytes_are_found_or_do_no_harm(tmp_path: Path) -> None:
    """Whatever byte of the file is another: no token is used that was not the account's own."""
    whole = tmp_path / "whole.db"
    async with processes(f"sqlite:///{whole}", 1) as (_, (a,)):
        owners = {await a.link(f"user{number}"): f"user{number}" for number in range(ACCOUNTS)}
        async with a.database.write() as connection:
            await connection.exec_driver_sql("PRAGMA user_version=1")
    with contextlib.closing(sqlite3.connect(whole)) as file_:
        file_.execute("PRAGMA journal_mode=DELETE")
    raw, chance = whole.read_bytes(), random.Random(7)  # noqa: S311 - a test's dice
    refused = harmless = 0
    for number in range(FLIPS):
        file = tmp_path / f"flipped-{number}.db"
        changed = bytearray(raw)
        changed[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        file.write_bytes(changed)
        file.chmod(0o600)
        try:
            right = await _tokens(f"sqlite:///{file}", owners)
        except (StoreError, StorageDownError, VaultError):
            right = False
        refused, harmless = refused + (not right), harmless + right
        file.unlink()
    record("a byte of the database is flipped", runs=FLIPS, found=refused, harmless=harmless, wrong_tokens=0)


@pytest.mark.trust("F13")
async def test_damage_that_sqlite_cannot_say_in_characters_is_damage(tmp_path: Path) -> None:
    """A broken statement of the schema, which its words for it quote: one clear line, as for any other damage."""
    file = tmp_path / "birdwire.db"
    database = Database(f"sqlite:///{file}")
    await database.prepare(upgrade=True)
    await database.close()
    raw = file.read_bytes()
    file.write_bytes(raw.replace(b"CREATE TABLE x_sessions (", b"CREATE T\xec\xff\xfeE x_sessions ("))
    database = Database(f"sqlite:///{file}")
    with pytest.raises(StoreError, match="is damaged"):
        await database.prepare(upgrade=False)
    await database.close()


async def _tokens(url: str, owners: dict[str, str]) -> bool:
    """Return whether every account's token is present; a wrong one fails the test immediately."""
    complete = True
    async with processes(url, 1) as (_, (a,)):
        a.x.answers.put_nowait(LOST)
        for key_id, owner in owners.items():
            links = await a.links.of_key(key_id)
            if links.current is None:
                complete = False
                continue
            a.x.answers.put_nowait(LOST)  # a damaged access token is renewed: X does not answer here
            try:
                token = (await a.sessions.open(links.current)).access_token
            except GatewayError:
                complete = False
            else:
                assert token == f"{SECRET}-at-{owner}1"
        assert set(a.x.sent) <= {f"{SECRET}-rt-{owner}1" for owner in owners.values()}
    return complete
