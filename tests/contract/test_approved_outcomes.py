"""Writes that wait, through a gateway: their names, the order of opposite calls, and a restored backup."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from typer.testing import CliRunner

from birdwire.cli.command_line import build
from birdwire.outcomes.states import STATES, State
from birdwire.sandbox.app import create_sandbox
from birdwire.sandbox.server import config as sandbox_config
from birdwire.store import backup
from harness.approvals import Desk, desk
from harness.gateway import API, POST, RunningGateway, gateway, serving
from harness.guarded_gateway import OPERATOR

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import httpx2

WAIT_S = 15.0
"""How long a test waits for what a gateway does within a second."""


@pytest_asyncio.fixture
async def asked(linked: RunningGateway) -> AsyncIterator[Desk]:
    """A linked gateway, whose every write waits for a person."""
    async with desk(linked) as made:
        yield made


async def once(desk: Desk, name: str, body: dict[str, Any], key: str = "k") -> httpx2.Response:
    """Call with an Idempotency-Key."""
    return await desk.running.call(name, body, headers={"idempotency-key": key})


async def settled(desk: Desk, request_id: str) -> dict[str, Any]:
    """Wait until a request has ended; return its report."""
    async with asyncio.timeout(WAIT_S):
        while not STATES[State((report := await desk.report(request_id))["state"])].final:  # noqa: ASYNC110 - a caller polls
            await asyncio.sleep(0.05)
    return report


async def posted(running: RunningGateway) -> list[dict[str, Any]]:
    """Return the calls by which X was asked to create a post or a like."""
    calls = [*await running.calls("/2/tweets", method="POST"), *await running.calls("/2/users/", method="POST")]
    return [call for call in calls if not call["path"].endswith("/me")]


async def test_a_name_answers_what_its_request_has_come_to(asked: Desk) -> None:
    """The 202 is not an answer for a day: once the post is sent, its name answers with the post."""
    first = await once(asked, "post_twitter", {"text": "Good morning"})
    assert (first.status_code, "idempotent-replayed" in first.headers) == (202, False)
    again = await once(asked, "post_twitter", {"text": "Good morning"})
    assert (again.status_code, again.headers["idempotent-replayed"]) == (202, "true")
    assert (again.headers["location"], again.headers["retry-after"]) == (
        f"{API}requests/{first.json()['approval']['request_id']}",
        "5",
    )
    assert again.json() == first.json()
    await asked.approve(first.json()["approval"])
    report = await settled(asked, first.json()["approval"]["request_id"])
    done = await once(asked, "post_twitter", {"text": "Good morning"})
    assert (done.status_code, done.headers["idempotent-replayed"]) == (201, "true")
    assert done.json()["data"]["id"] == report["data"]["id"]
    assert done.json()["data"]["text"] == report["data"]["text"] == "Good morning"
    assert (report["state"], report["approval"]["state"], report["approval"]["decided_by"]) == (
        "confirmed",
        "approved",
        "tester",
    )
    assert len(await posted(asked.running)) == 1


@pytest.mark.parametrize("end", ["denied", "cancelled", "expired"])
async def test_a_like_is_not_done_again_under_its_name(asked: Desk, end: str) -> None:
    """A like is safe to repeat, but this one was not allowed: a retry of its caller is refused, and asks nobody."""
    liked = {"tweet_id": POST}
    first = (await once(asked, "like_twitter", liked)).json()["approval"]
    if end == "denied":
        await asked.approvals.deny(first["request_id"], OPERATOR, note="no likes")
    elif end == "cancelled":
        (await asked.cancel(first["request_id"])).raise_for_status()
    else:
        asked.running.clock.advance(hours=2)
    report = await settled(asked, first["request_id"])
    assert (report["state"], report["cost_usd"], report["approval"]["state"]) == (end, 0, end)
    wanted = {"denied": (403, "approval_denied"), "cancelled": (409, "cancelled"), "expired": (409, "approval_expired")}
    for hours in (0, 20):
        asked.running.clock.advance(hours=hours)
        again = await once(asked, "like_twitter", liked)
        assert (again.status_code, again.json()["error"]["reason"]) == wanted[end]
        assert again.json()["error"]["request_id"] == first["request_id"]
    assert (await asked.waiting(), await posted(asked.running)) == (0, [])
    reused = await once(asked, "like_twitter", {"tweet_id": "1"})
    assert reused.json()["error"]["reason"] == "idempotency_key_reused"


async def test_a_like_that_waits_does_not_supersede_an_unlike(asked: Desk) -> None:
    """The unlike fails at first, and is tried again, though a like was asked for meanwhile."""
    await asked.rules({"approve": ["like_twitter"]})
    likes: list[dict[str, Any]] = []

    async def ask() -> None:
        if not likes:
            likes.append(await asked.ask({"tweet_id": POST}, "like_twitter"))

    asked.running.clock.meanwhile = ask
    await asked.running.fault("DELETE", "/2/*", {"status": 503})
    answer = await asked.running.call("unlike_twitter", {"tweet_id": POST})
    assert (answer.status_code, len(likes)) == (200, 1), answer.text
    assert [call["status"] for call in await asked.running.calls("/2/users/", method="DELETE")] == [503, 200]
    assert await asked.state(likes[0]["request_id"]) == "awaiting_approval"


async def test_a_request_that_waits_is_reported_with_what_a_person_decided(asked: Desk) -> None:
    """Its cost is open until it has ended; a write that nobody was asked about has no approval."""
    first = await asked.post()
    report = await asked.report(first["request_id"])
    assert report["approval"] == {
        "state": "waiting",
        "payload_sha256": first["payload_sha256"],
        "approve_by": "operator",
        "expires_at": first["expires_at"],
        "decided_at": None,
        "decided_by": None,
        "note": None,
        "edited_from": None,
    }
    assert (report["state"], report["cost_usd"], report["started_at"], report["settled_at"]) == (
        "awaiting_approval",
        None,
        None,
        None,
    )
    await asked.approvals.deny(first["request_id"], OPERATOR, note="not today")
    report = await asked.report(first["request_id"])
    assert (report["state"], report["reason"], report["status"]) == ("denied", "approval_denied", 403)
    assert (report["approval"]["state"], report["approval"]["note"]) == ("denied", "not today")
    await asked.rules({})
    plain = await asked.running.like()
    assert (await asked.report(plain.headers["x-request-id"]))["approval"] is None


@dataclass
class Restarts:
    """A sandbox, and gateways that serve one directory one after the other."""

    directory: Path
    sandbox: Any
    x_url: str
    key_id: str = ""
    raw_key: str = ""

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[Desk]:
        """Serve with a gateway; the first creates a key, whose posts wait for a person."""
        async with (
            contextlib.AsyncExitStack() as stack,
            gateway(self.directory, self.sandbox, self.x_url, stack) as running,
        ):
            linked = bool(self.key_id)
            if not linked:
                key, self.raw_key = await running.gateway.keys.create("test", "test", "growth")
                self.key_id = key.key_id
            running.key_id, running.raw_key = self.key_id, self.raw_key
            running.client.headers["authorization"] = f"Bearer {self.raw_key}"
            if not linked:
                await running.link("ada")
            async with desk(running, {"approve": ["post_twitter"]}) as made:
                yield made

    async def restore(self, file: Path) -> dict[str, Any]:
        """Restore a backup by the command line; return its document."""
        given = {"BIRDWIRE_DATABASE_URL": f"sqlite:///{self.directory / 'birdwire.db'}"}
        given["BIRDWIRE_VAULT_KEY_FILE"] = str(self.directory / "vault.key")
        done = await asyncio.to_thread(CliRunner().invoke, build(), ["restore", "--json", str(file)], env=given)
        assert done.exit_code == 0, done.stderr
        return dict(json.loads(done.stdout))


async def sent(running: RunningGateway) -> None:
    """Wait until X was asked to create a post."""
    async with asyncio.timeout(WAIT_S):
        while not await posted(running):  # noqa: ASYNC110 - the gateway does it by itself
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("approved", [False, True], ids=["awaiting approval", "approved"])
async def test_a_restored_backup_sends_nothing_again(
    tmp_path: Path,
    approved: bool,  # noqa: FBT001 - a parameter
) -> None:
    """The post was sent after the backup. In the backup it waits, or was even approved: it ends there."""
    sandbox, source, file = create_sandbox(), tmp_path / "birdwire.db", tmp_path / "copy.db"
    async with serving(sandbox_config(sandbox, log_level="error")) as x_url:
        gateways = Restarts(tmp_path, sandbox, x_url)
        async with gateways.served() as first:
            asked = (await once(first, "post_twitter", {"text": "Good morning"})).json()["approval"]
            if not approved:
                backup.take(source, file, first.running.clock.now())
                await first.approve(asked)
                await sent(first.running)
        if approved:
            # While no gateway runs, nobody sends it.
            async with desk(first.running, {"approve": ["post_twitter"]}) as operator:
                await operator.approve(asked)
            backup.take(source, file, first.running.clock.now())
            async with gateways.served() as second:
                await sent(second.running)
        assert (await gateways.restore(file))["approvals"] == 1
        async with gateways.served() as again:
            refused = await again.refused(again.approve(asked))
            assert refused.reason == "restored_backup"
            answer = await once(again, "post_twitter", {"text": "Good morning"})
            assert (answer.status_code, answer.json()["error"]["reason"]) == (409, "restored_backup")
            report = await again.report(asked["request_id"])
            assert (report["state"], report["reason"], report["cost_usd"]) == ("expired", "restored_backup", 0)
            assert await again.waiting() == 0
            # Several rounds of the gateway pass.
            await asyncio.sleep(2)
            assert len(await posted(again.running)) == 1
