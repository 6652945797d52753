"""The way to a first like, and what the contract promises about likes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from birdwire.sandbox.state import seed
from harness.gateway import API, POST

if TYPE_CHECKING:
    from harness.gateway import RunningGateway

pytestmark = pytest.mark.engines("sqlite", "postgres")


async def test_a_linked_key_likes_a_post(linked: RunningGateway) -> None:
    """The published answer, to the byte, and X has the like."""
    answer = await linked.like()
    assert (answer.status_code, answer.content) == (200, b'{"data":{"liked":true}}')
    state = (await linked.x.get("/_sandbox/state")).json()
    ada = next(user["id"] for user in state["users"] if user["username"] == "ada")
    assert state["likes"] == [{"user_id": ada, "tweet_id": POST}]


async def test_a_second_like_answers_like_the_first(linked: RunningGateway) -> None:
    """Liking twice is not an error."""
    assert [(await linked.like()).content for _ in range(2)] == [b'{"data":{"liked":true}}'] * 2


async def test_an_unlike_takes_the_like_back_once_and_again(linked: RunningGateway) -> None:
    """Unliking a post that is not liked is not an error either."""
    await linked.like()
    answers = [(await linked.call("unlike_twitter", {"tweet_id": POST})).content for _ in range(2)]
    assert answers == [b'{"data":{"liked":false}}'] * 2
    assert (await linked.x.get("/_sandbox/state")).json()["likes"] == []


@pytest.mark.parametrize("tweet_id", [seed.PROTECTED_POST_ID, seed.DELETED_POST_ID, "404", "9999999999999999999"])
async def test_a_post_that_cannot_be_seen_is_not_found(linked: RunningGateway, tweet_id: str) -> None:
    """A protected author's post, a deleted one and unknown ones are one and the same 404."""
    answer = await linked.like(tweet_id)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "resource-not-found")
    assert answer.json()["error"]["reason"] == "tweet_not_found"


async def test_a_key_without_a_link_is_refused_with_how_to_link(running: RunningGateway) -> None:
    """The refusal that everybody meets first names the next call."""
    error = (await running.like()).json()["error"]
    assert (error["code"], error["reason"], error["whose"]) == ("client-forbidden", "x_not_linked", "account_owner")
    assert "/apis/v1/twitter/auth_twitter" in error["fix"]


async def test_every_answer_to_a_known_key_states_its_allowance(linked: RunningGateway) -> None:
    """Both spellings of the contract and the IETF draft's, on success and refusal alike."""
    for answer in (
        await linked.like(),
        await linked.call("like_twitter", {}),
        await linked.client.get(API + "auth/status"),
    ):
        assert answer.headers["x-ratelimit-limit-requests"] == answer.headers["x-ratelimit-limit"] == "3000"
        assert answer.headers["x-ratelimit-remaining-requests"] == answer.headers["x-ratelimit-remaining"]
        assert int(answer.headers["x-ratelimit-reset-requests"]) == int(answer.headers["x-ratelimit-reset"])
        assert answer.headers["ratelimit-policy"] == '"rpm";q=3000;w=60'
        assert answer.headers["x-request-id"].startswith("req_")


async def test_the_call_over_the_limit_waits_for_the_window(running: RunningGateway) -> None:
    """429 with a whole Retry-After and the allowance; after the wait the key works again."""
    await running.gateway.keys.change(running.key_id, rpm=2)
    first, second, third = [await running.client.get(API + "auth/status") for _ in range(3)]
    assert [first.status_code, second.status_code, third.status_code] == [200, 200, 429]
    assert third.json()["error"]["code"] == "rate_limit_exceeded"
    assert third.headers["x-ratelimit-remaining"] == "0"
    running.clock.advance(seconds=int(third.headers["retry-after"]))
    assert (await running.client.get(API + "auth/status")).status_code == 200


async def test_a_hundred_concurrent_callers_are_admitted_exactly_up_to_the_limit(linked: RunningGateway) -> None:
    """The window is exact, not roughly so."""
    await linked.gateway.keys.change(linked.key_id, rpm=20)
    linked.clock.advance(minutes=2)
    answers = await asyncio.gather(*(linked.client.get(API + "auth/status") for _ in range(60)))
    assert sorted(answer.status_code for answer in answers) == [200] * 20 + [429] * 40
