"""From a file to a server: keys go on working, accounts stay linked, and the file is not served again."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from birdwire.cli import run_servers
from birdwire.cli.command_line import build
from birdwire.cli.database import lock_of
from birdwire.sandbox.app import create_sandbox
from birdwire.sandbox.server import config as sandbox_config
from birdwire.store.database import Database
from birdwire.store.schema import metadata
from birdwire.store.tables import pauses, policies
from birdwire.store.tables.pauses import PauseRow
from birdwire.store.tables.policies import PolicyRow
from birdwire.store.tables.usage import Charge, charging
from birdwire.store.transfer import TABLES
from harness.gateway import RunningGateway, gateway, serving
from harness.linking import reason_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.engines("postgres")


async def run(*words: str, **environment: str) -> Any:
    """Run a command."""
    return await asyncio.to_thread(CliRunner().invoke, build(), list(words), env=environment)


async def migrate(directory: Path, url: str) -> Any:
    """Move the file in a directory into a database."""
    settings = {"BIRDWIRE_DATABASE_URL": url, "BIRDWIRE_VAULT_KEY_FILE": str(directory / "vault.key")}
    return await run("migrate", "--json", "--from", str(directory / "birdwire.db"), **settings)


async def contents(url: str) -> dict[str, list[dict[str, Any]]]:
    """Every row that is to be moved, by table."""
    database = Database(url)
    async with database.read() as connection:
        found = {}
        for table in TABLES:
            rows = (await connection.execute(select(table).order_by(*table.primary_key.columns))).mappings().all()
            found[table.name] = [dict(row) for row in rows]
    await database.close()
    return found


async def fill(url: str) -> None:
    """Write rows that a key without guardrails would not have."""
    database = Database(url)
    at = datetime(2026, 11, 28, tzinfo=UTC)
    charges = [Charge("add", "gateway", "usd", "2026-11", 15_000, 10**9), Charge("text", "gateway", "text", "ab", 1, 0)]
    assert await database.append_all(charging(charges, "req_1")) is None
    async with database.write() as connection:
        await policies.append(
            connection, PolicyRow("gateway", "operator", 1, "enforce", None, {"words": {"deny": ["x"]}}, at, "ada")
        )
        await pauses.put(connection, PauseRow("key_other", "operator", at, None, "why", "ada"))
    await database.close()


def test_every_table_is_moved_except_those_of_processes() -> None:
    """A new table is in the list, or a reason stands here."""
    assert {table.name for table in TABLES} == set(metadata.tables) - {"changes", "processes"}


async def test_a_file_becomes_a_server(tmp_path: Path, empty_url: str) -> None:
    """A link, a like and a key: all as they were, with the same secret, and the old token is renewed there."""
    sandbox = create_sandbox()
    async with contextlib.AsyncExitStack() as every:
        x_url = await every.enter_async_context(serving(sandbox_config(sandbox)))
        async with contextlib.AsyncExitStack() as stack, gateway(tmp_path, sandbox, x_url, stack) as running:
            _, raw_key = await running.gateway.keys.create("test", "kept", "free", secret=None)
            running.client.headers["authorization"] = f"Bearer {raw_key}"
            await running.link("ada")
            liked = (await running.like()).headers["x-request-id"]
            await fill(running.settings.database_url)
        before = await contents(running.settings.database_url)
        assert all(before[table] for table in ("policies", "pauses", "usage", "text_marks"))
        moved = await migrate(tmp_path, empty_url)
        assert moved.exit_code == 0, moved.stderr
        after = await contents(empty_url)
        act = after["acts"].pop()  # the only one that the file has not
        assert (act["act"], act["via"], act["number"]) == ("database.moved", "cli", len(before["acts"]) + 1)
        assert after == before
        assert not (tmp_path / "birdwire.db").exists()
        async with (
            contextlib.AsyncExitStack() as stack,
            gateway(tmp_path, sandbox, x_url, stack, database_url=empty_url) as running,
        ):
            running.client.headers["authorization"] = f"Bearer {raw_key}"
            await running.advance_x(7_300)
            assert (await running.like()).status_code == 200
            told = await running.client.get(f"/apis/v1/twitter/requests/{liked}")
            assert told.json()["state"] == "confirmed"


async def test_nothing_is_moved_where_it_does_not_fit(tmp_path: Path, empty_url: str, running: RunningGateway) -> None:
    """Into a database that is in use, with another vault key, or from no file: refused, and the file stays."""
    async with RunningGateway.built(tmp_path, database_url=f"sqlite:///{tmp_path / 'birdwire.db'}") as old:
        await old.link("ada")
    used = await migrate(tmp_path, running.settings.database_url)
    assert (used.exit_code, "is not empty" in used.stderr) == (2, True)
    with run_servers.alone(lock_of(tmp_path / "birdwire.db"), "", ""):
        served = await migrate(tmp_path, empty_url)
    assert (served.exit_code, "A gateway is using" in served.stderr) == (2, True)
    (tmp_path / "vault.key").rename(tmp_path / "old.key")
    (tmp_path / "other").mkdir()
    assert (await run("vault", "create", str(tmp_path / "vault.key"))).exit_code == 0
    other = await migrate(tmp_path, empty_url)
    assert (other.exit_code, "This database was encrypted with a different vault key" in other.stderr) == (2, True)
    assert (tmp_path / "birdwire.db").exists()
    missing = await migrate(tmp_path / "other", empty_url)
    assert (missing.exit_code, "does not exist" in missing.stderr) == (2, True)
    file = await migrate(tmp_path, f"sqlite:///{tmp_path / 'third.db'}")
    assert (file.exit_code, "is an SQLite file, too" in file.stderr) == (2, True)
    assert reason_of(await running.like()) == "x_not_linked"
