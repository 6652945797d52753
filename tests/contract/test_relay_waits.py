"""Clients of the relay dialect and a post that waits: none of them takes it for a published one.

The readers here have the logic by which published clients read an answer: the integer 200, the ids of a post, the
status, or all of these. Each returns what the client would report as published.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from harness.approvals import Desk, desk
from harness.gateway import API, GRACE, PNG, POST

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import httpx2

    from harness.gateway import RunningGateway

SHORT = "/apis/v1/"
LIMIT = 12
"""The length of a part of a thread, in characters."""


@pytest.fixture
async def asked(linked: RunningGateway) -> AsyncIterator[Desk]:
    """A gateway at which every write of the key waits."""
    async with desk(linked) as opened:
        yield opened


def by_code(answer: httpx2.Response) -> str | None:
    """Read the integer code of the envelope, then the post's id; without an id, the client reports a failure."""
    body = answer.json() if answer.status_code < 400 else {"ok": False, "payload": answer.json()}
    if body.get("ok") is False or body.get("code") != 200:
        return None
    data = body.get("data")
    found = data.get("tweet_id") if isinstance(data, dict) else None
    return str(found) if found else None


def by_status(answer: httpx2.Response) -> str | None:
    """Take HTTP 200 and no other status for a success."""
    return str(answer.json()["data"]["tweet_id"]) if answer.status_code == 200 else None


def by_data(answer: httpx2.Response) -> str | None:
    """Take every status below 400 for an answer, and look for the post under both of its names."""
    answer.raise_for_status()
    data = answer.json().get("data") or {}
    return data.get("tweet_id") or data.get("id")


def by_message(answer: httpx2.Response) -> str | None:
    """Read the word of the envelope."""
    body = answer.json()
    return str(body["data"]["id"]) if body.get("msg") == "ok" else None


def by_member(answer: httpx2.Response) -> str | None:
    """Go straight to the id, and report an exception as a failure."""
    try:
        return str(answer.json()["data"]["tweet_id"])
    except (KeyError, TypeError):
        return None


READERS: tuple[Callable[[httpx2.Response], str | None], ...] = (by_code, by_status, by_data, by_message, by_member)


async def post(running: RunningGateway, how: str, base: str, **headers: str) -> httpx2.Response:
    """Post as older clients do: without a header of authorization, in one of three encodings."""
    body = {"aisa_api_key": running.raw_key, "content": "an old client asks"}
    if how == "json":
        return await running.bare.post(base + "post_twitter", json=body, headers=headers)
    if how == "form":
        return await running.bare.post(base + "post_twitter", data=body, headers=headers)
    parts = [(name, (None, value)) for name, value in body.items()]
    files: Any = [*parts, ("media_files", ("a.png", PNG, "image/png"))]
    return await running.bare.post(base + "post_twitter", files=files, headers=headers)


@pytest.mark.trust("#321")
@pytest.mark.parametrize("how", ["json", "form", "multipart"])
@pytest.mark.parametrize("base", [API, SHORT])
async def test_no_client_reports_a_post_that_waits_and_each_reports_the_published_one(
    asked: Desk, how: str, base: str
) -> None:
    """Also when it repeats the call while a person decides; once it is sent, each reports the one post that X has."""
    waiting = await post(asked.running, how, base, **{"idempotency-key": "old"})
    again = await post(asked.running, how, base, **{"idempotency-key": "old"})
    for answer in (waiting, again):
        body = answer.json()
        assert (answer.status_code, body["code"], body["msg"]) == (202, 202, "awaiting approval")
        assert {"data", "error", "ok"}.isdisjoint(body)
        assert [read(answer) for read in READERS] == [None] * len(READERS)
    # A client that only prints the answer shows this to the agent.
    assert waiting.json()["approval"]["next"].startswith("Nothing was published.")
    assert not [one for one in (await asked.running.state())["posts"] if one["text"] == "an old client asks"]
    await asked.approve(waiting.json()["approval"])
    done = await post(asked.running, how, base, **{"idempotency-key": "old", "prefer": "wait=20"})
    posts = [one["id"] for one in (await asked.running.state())["posts"] if one["text"] == "an old client asks"]
    assert [read(done) for read in READERS] == posts * len(READERS)
    assert len(posts) == 1


@dataclass
class ThreadClient:
    """A client that cuts a long text into parts, each of which quotes the one before."""

    running: RunningGateway
    results: list[httpx2.Response] = field(default_factory=list)

    async def publish(self, text: str) -> dict[str, Any]:
        """Publish the parts until one fails; report whether all were published, and where it stopped."""
        parts, before = [text[start : start + LIMIT] for start in range(0, len(text), LIMIT)], None
        for number, part in enumerate(parts, 1):
            body = {"aisa_api_key": self.running.raw_key, "content": part, "type": "quote"}
            if before is not None:
                body["quote_tweet_id"] = before
            self.results.append(await self.running.bare.post(API + "post_twitter", json=body))
            before = by_code(self.results[-1])
            if before is None:
                return {"ok": False, "failed_at_chunk": number}
        return {"ok": True, "total_chunks": len(parts)}


@pytest.mark.trust("#321")
async def test_a_thread_stops_at_the_part_that_waits(asked: Desk) -> None:
    """Nothing is published, and no later part is asked for; without a rule that asks, all parts are published."""
    client = ThreadClient(asked.running)
    assert await client.publish("one thread of many parts") == {"ok": False, "failed_at_chunk": 1}
    assert (len(client.results), await asked.waiting()) == (1, 1)
    await asked.rules({})
    assert await ThreadClient(asked.running).publish("another of many parts") == {"ok": True, "total_chunks": 2}


@pytest.mark.trust("#321")
@pytest.mark.parametrize(
    ("name", "body", "member"),
    [
        ("like_twitter", {"tweet_id": POST}, "liked"),
        ("follow_twitter", {"target_user_id": GRACE}, "following"),
        ("retweet_twitter", {"tweet_id": POST}, "retweeted"),
    ],
)
async def test_no_client_reports_another_action_that_waits(
    asked: Desk, name: str, body: dict[str, Any], member: str
) -> None:
    """Whether it looks for the code, or for the member of the action."""
    answer = await asked.running.bare.post(API + name, json={"aisa_api_key": asked.running.raw_key, **body})
    found = answer.json()
    assert (answer.status_code, found["code"]) == (202, 202)
    assert member not in found
    assert member not in (found.get("data") or {})
    assert await asked.waiting() == 1
