"""Backups under load, put back: what was acknowledged is there, and a spent token is presented once and never again."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from birdwire.store import backup
from birdwire.store.encryption.key_files import create_key_file
from harness.processes import Deployment, deploy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from harness.engines import Postgres


@pytest_asyncio.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    """A sandbox and a key; no gateway runs yet."""
    async with deploy(tmp_path) as made:
        yield made


@pytest.mark.trust("G9")
@pytest.mark.trust("F49")
async def test_a_backup_under_load_holds_all_that_was_acknowledged_before_it(deployment: Deployment) -> None:
    """One private file, whole, without a secret; and it never replaces another."""
    at, file = await deployment.serve(), deployment.directory / "copy.db"
    await deployment.link(at)
    acknowledged: list[str] = []
    stop = asyncio.Event()

    async def load() -> None:
        while not stop.is_set():
            answer = await deployment.like(at)
            assert answer.status_code == 200
            acknowledged.append(answer.headers["x-request-id"])

    loads = [asyncio.create_task(load()) for _ in range(4)]
    while len(acknowledged) < 20:  # noqa: ASYNC110 - it happens in another process
        await asyncio.sleep(0)
    before = list(acknowledged)
    code, document = await deployment.command("backup", str(file))
    stop.set()
    await asyncio.gather(*loads)
    assert (code, document["bytes"]) == (0, file.stat().st_size)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    kept = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    assert kept.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert set(before) <= {row[0] for row in kept.execute("SELECT request_id FROM journal")}
    kept.close()
    secrets = (deployment.raw_keys[0], (deployment.directory / "vault.key").read_text().strip())
    assert not [secret for secret in secrets if secret.encode() in file.read_bytes()]
    code, document = await deployment.command("backup", str(file))
    assert (code, "already exists" in document["error"]["message"]) == (2, True)


@pytest.mark.trust("T22")
@pytest.mark.trust("F49")
async def test_a_spent_token_from_a_backup_is_presented_once(deployment: Deployment) -> None:
    """X renewed it since: one try, a clear word, no second try; and linking again mends it."""
    await deployment.x.post("/_sandbox/config", json={"refresh_mode": "family_revoke"})
    at, file = await deployment.serve(), deployment.directory / "copy.db"
    await deployment.link(at)
    assert (await deployment.command("backup", str(file)))[0] == 0
    await deployment.expire()
    assert (await deployment.like(at)).status_code == 200  # the backup's token is spent by this
    code, document = await deployment.command("restore", str(file))
    assert (code, "A gateway is using the database" in document["error"]["message"]) == (2, True)
    assert document["error"]["fix"] == "Stop the gateway first."
    await at.kill()
    code, document = await deployment.command("restore", str(file))
    assert (code, document["sessions"], document["snapshot_at"] is not None) == (0, 1, True)
    again = await deployment.serve()
    assert ((await deployment.status(again))["state"], (await deployment.status(again))["why"]) == (
        "active",
        "restored",
    )
    for _ in range(5):
        assert (await deployment.like(again)).json()["error"]["reason"] == "x_session_expired"
    assert ((await deployment.status(again))["state"], (await deployment.status(again))["why"]) == (
        "needs_relink",
        "restored_backup",
    )
    assert len(await deployment.refreshes()) == 2
    await deployment.link(again)
    assert (await deployment.like(again)).status_code == 200


@pytest.mark.trust("T22")
async def test_an_unspent_token_from_a_backup_goes_on(deployment: Deployment) -> None:
    """One careful renewal, and nothing is left to doubt. What the backup replaced is kept, not lost."""
    at, file = await deployment.serve(), deployment.directory / "copy.db"
    await deployment.link(at)
    assert (await deployment.command("backup", str(file)))[0] == 0
    await at.kill()
    _, document = await deployment.command("restore", str(file))
    again = await deployment.serve()
    await deployment.expire()
    assert (await deployment.like(again)).status_code == 200
    status = await deployment.status(again)
    assert (status["state"], status["why"], status["generation"]) == ("active", None, 2)
    kept = sqlite3.connect(document["replaced"])
    assert kept.execute("SELECT count(*) FROM x_sessions").fetchone() == (1,)
    kept.close()


async def test_an_invalid_backup_is_refused_and_changes_nothing(deployment: Deployment) -> None:
    """Damaged, of another vault key, missing, or no database at all."""
    at, file = await deployment.serve(), deployment.directory / "copy.db"
    await deployment.link(at)
    assert (await deployment.command("backup", str(file)))[0] == 0
    await at.kill()
    damaged, text = deployment.directory / "damaged.db", deployment.directory / "text.db"
    raw = bytearray(file.read_bytes())
    raw[8_192:16_384] = bytes(8_192)
    damaged.write_bytes(raw)
    text.write_text("no database")
    other = deployment.directory / "other.key"
    create_key_file(other)
    for name, settings in (
        (damaged, {}),
        (text, {}),
        (deployment.directory / "none.db", {}),
        (file, {"vault_key_file": str(other)}),
    ):
        code, document = await deployment.command("restore", str(name), **settings)
        assert (code, "error" in document) == (2, True), name
    assert {path.name for path in deployment.directory.glob("birdwire.db*")} <= {
        *("birdwire.db", "birdwire.db-wal", "birdwire.db-shm", "birdwire.db.lock")
    }
    again = await deployment.serve()
    assert (await deployment.like(again)).status_code == 200


@pytest.mark.trust("F49")
async def test_a_backup_put_back_through_a_link_replaces_the_file_that_serves(deployment: Deployment) -> None:
    """Gateways that reach it by another name get it, too; the link stays one."""
    real, link, copy = (deployment.directory / name for name in ("birdwire.db", "link.db", "copy.db"))
    link.symlink_to(real)
    create = sqlite3.connect(real)
    with contextlib.closing(create):
        backup.take(real, copy, datetime.now(UTC))
        create.execute("DELETE FROM api_secrets")
        create.commit()
    code, document = await deployment.command("restore", str(copy), database_url=f"sqlite:///{link}")
    assert (code, link.is_symlink(), real.is_symlink()) == (0, True, False)
    for file, secrets in ((real, 1), (Path(document["replaced"]), 0)):
        with contextlib.closing(sqlite3.connect(file)) as connection:
            assert connection.execute("SELECT count(*) FROM api_secrets").fetchone() == (secrets,)


@pytest.mark.trust("T22")
async def test_a_postgresql_that_was_put_back_is_marked(tmp_path: Path, postgres: Postgres) -> None:
    """PostgreSQL's tools copy it; Birdwire sets the mark, and refuses to while a gateway serves."""
    async with deploy(tmp_path, postgres.database()) as deployment:
        at = await deployment.serve()
        await deployment.link(at)
        code, document = await deployment.command("backup", str(tmp_path / "copy"))
        assert (code, "pg_dump" in document["error"]["fix"]) == (2, True)
        code, document = await deployment.command("restore", "--mark")
        assert (code, "Gateways are connected to this database" in document["error"]["message"]) == (2, True)
        await at.kill()
        await asyncio.to_thread(postgres.stop)  # so that the server notices
        await asyncio.to_thread(postgres.start)
        code, document = await deployment.command("restore", "--mark")
        assert (code, document["sessions"]) == (0, 1)
        again = await deployment.serve()
        assert (await deployment.status(again))["why"] == "restored"
        await deployment.expire()
        assert (await deployment.like(again)).status_code == 200
        assert (await deployment.status(again))["why"] is None
