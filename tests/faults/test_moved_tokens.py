"""Someone writes to the database: a link moved to another key or account is refused. And X names an account late."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

import pytest

from birdwire.sandbox.app import create_sandbox
from birdwire.sandbox.server import config as sandbox_config
from harness.gateway import gateway, serving
from harness.linking import reason_of

if TYPE_CHECKING:
    from pathlib import Path

    from harness.gateway import RunningGateway

SOMEBODY = "783214"


@pytest.mark.trust("G16")
@pytest.mark.parametrize("column", ["key_id", "user_id"])
async def test_a_link_that_was_moved_in_the_database_is_not_used(tmp_path: Path, column: str) -> None:
    """The key that it was moved to is refused as after any damage, and X is not called with the token."""
    sandbox = create_sandbox()
    async with serving(sandbox_config(sandbox)) as x_url:
        async with contextlib.AsyncExitStack() as stack, gateway(tmp_path, sandbox, x_url, stack) as running:
            keys = running.gateway.keys
            victim, victims = await keys.create("test", "victim", "free")
            thief, thiefs = await keys.create("test", "thief", "free")
            running.client.headers["authorization"] = f"Bearer {victims}"
            await running.link("ada")
        connection = sqlite3.connect(tmp_path / "birdwire.db")
        with contextlib.closing(connection), connection:
            value = thief.key_id if column == "key_id" else SOMEBODY
            connection.execute(f"UPDATE x_sessions SET {column} = ? WHERE key_id = ?", (value, victim.key_id))  # noqa: S608 - our own column
        async with contextlib.AsyncExitStack() as stack, gateway(tmp_path, sandbox, x_url, stack) as running:
            running.client.headers["authorization"] = f"Bearer {thiefs if column == 'key_id' else victims}"
            assert reason_of(await running.like()) == "x_session_expired"
            status = await running.status()
            assert (status["state"], status["why"]) == ("needs_relink", "damaged")
            assert [call["path"] for call in await running.calls("/2/users") if call["path"].endswith("/likes")] == []


@pytest.mark.engines("sqlite", "postgres")
async def test_a_pair_that_was_renewed_while_x_named_its_account_opens(running: RunningGateway) -> None:
    """The renewal began for a pair without an account, and ends for one that has it."""
    await running.fault("GET", "/2/users/me", {"status": 503})
    await running.link("ada")
    assert (await running.status())["state"] == "pending"
    running.clock.advance(seconds=7_200 - 300)
    await running.fault("POST", "/2/oauth2/token", {"delay_s": 0.5})
    assert (await running.like()).status_code == 200
    await running.gateway.sessions.close()  # waits for the renewal
    status = await running.status()
    assert (status["state"], status["generation"], status["username"]) == ("active", 2, "ada")
    assert (await running.like()).status_code == 200
    assert len(await running.calls("/2/oauth2/token")) == 2
