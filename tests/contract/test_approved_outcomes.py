"""Writes that wait, through a gateway: their names, the order of opposite calls, and a restored backup."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from birdwire.outcomes.states import STATES, State
from harness.approvals import Desk, desk
from harness.gateway import API, POST, RunningGateway
from harness.guarded_gateway import OPERATOR
from harness.processes import Deployment, deploy

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


@pytest_asyncio.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    """A sandbox and a key; no gateway runs yet."""
    async with deploy(tmp_path) as made:
        yield made


async def sent(deployment: Deployment) -> int:
    """Return how many posts X was asked to create."""
    calls = (await deployment.x.get("/_sandbox/calls")).json()["calls"]
    return sum(call["path"] == "/2/tweets" and call["method"] == "POST" for call in calls)


@pytest.mark.parametrize("approved", [False, True], ids=["awaiting approval", "approved"])
async def test_a_restored_backup_sends_nothing_again(
    deployment: Deployment,
    approved: bool,  # noqa: FBT001 - a parameter
) -> None:
    """The post was sent after the backup. In the backup it waits, or was even approved: it ends there."""
    at, file = await deployment.serve(), deployment.directory / "copy.db"
    await deployment.link(at)
    _, keys = await deployment.command("keys", "list")
    key_id = keys["keys"][0]["key_id"]
    assert (await deployment.command("policy", "set", key_id, "approve=post_twitter"))[0] == 0
    headers = {"idempotency-key": "once"}
    asked = (await deployment.call(at, "post_twitter", {"text": "Good morning"}, **headers)).json()["approval"]
    name, words = asked["request_id"], ("--payload", asked["payload_sha256"])
    if approved:
        # While no gateway runs, nobody sends it.
        await at.kill()
        assert (await deployment.command("approvals", "approve", name, *words))[0] == 0
    assert (await deployment.command("backup", str(file)))[0] == 0
    if approved:
        at = await deployment.serve()
    else:
        assert (await deployment.command("approvals", "approve", name, *words))[0] == 0
    async with asyncio.timeout(WAIT_S):
        while await sent(deployment) == 0:  # noqa: ASYNC110 - it happens in another process
            await asyncio.sleep(0.05)
    await at.kill()
    code, document = await deployment.command("restore", str(file))
    assert (code, document["approvals"]) == (0, 1)
    again = await deployment.serve()
    code, document = await deployment.command("approvals", "approve", name, *words)
    assert (code, document["error"]["reason"]) == (3, "restored_backup")
    answer = await deployment.call(again, "post_twitter", {"text": "Good morning"}, **headers)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (409, "restored_backup")
    code, document = await deployment.command("approvals", "list")
    assert (code, document["approvals"]) == (0, [])
    # Several rounds of the gateway pass.
    await asyncio.sleep(2)
    assert await sent(deployment) == 1
