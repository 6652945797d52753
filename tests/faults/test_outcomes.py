"""Lost answers to posts: each is looked for in the account's timeline, and what is told of it is true, or unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from house import API, POST

if TYPE_CHECKING:
    import httpx2

    from house import House

LOST: dict[str, tuple[dict[str, Any], bool]] = {
    "the connection ends": ({"drop": "after_apply"}, True),
    "half an answer": ({"truncate": 20}, True),
    "X never saw it": ({"drop": "before_apply"}, False),
    "an error page": ({"status": 503, "body": "<html>"}, False),
    "a gateway timeout": ({"status": 504}, False),
}
"""How an answer is lost: the fault to order, and whether X has the post all the same."""


async def post(house: House, text: str, key: str, **more: Any) -> httpx2.Response:
    """Post under an Idempotency-Key."""
    return await house.call("post_twitter", {"text": text, **more}, headers={"idempotency-key": key})


async def outcome(house: House, answer: httpx2.Response) -> dict[str, Any]:
    """What requests/{id} says of a call."""
    return dict((await house.client.get(API + f"requests/{answer.headers['x-request-id']}")).json())


async def look(house: House, *after_s: float) -> None:
    """Let time pass, and look whenever a look is due."""
    for seconds in after_s:
        house.clock.advance(seconds=seconds)
        await house.gateway.reconciler.round()


async def times(house: House, text: str) -> int:
    """How often X has a post of this text."""
    return sum(one["text"] == text and not one["deleted"] for one in (await house.state())["posts"])


@pytest.mark.trust("G6")
@pytest.mark.trust("F28")
@pytest.mark.parametrize(("do", "applied"), LOST.values(), ids=LOST)
async def test_a_lost_post_is_told_by_what_the_timeline_shows(linked: House, do: dict[str, Any], applied: bool) -> None:  # noqa: FBT001 - a parameter
    """Unknown at first, the truth within 65 seconds; the same key tells it, and nothing is sent again."""
    await linked.fault("POST", "/2/tweets", do)
    first = await post(linked, "Is it there?", "k")
    assert first.json()["error"]["reason"] == "outcome_unknown"
    assert (await outcome(linked, first))["state"] == "unknown"
    await look(linked, 3, 8, 20, 30, 3)
    told = await outcome(linked, first)
    again = await post(linked, "Is it there?", "k")
    if applied:
        assert (told["state"], told["status"], told["data"]["text"]) == ("found", 201, "Is it there?")
        assert (again.status_code, again.json()["data"]) == (201, told["data"])
        assert (await linked.post_of(told["data"]["id"]))["text"] == "Is it there?"
    else:
        assert (told["state"], told["reason"], told["data"]) == ("not_found", "not_applied", None)
        assert (again.status_code, again.json()["error"]["reason"]) == (502, "not_applied")
    assert again.headers["idempotent-replayed"] == "true"
    assert await times(linked, "Is it there?") == applied
    assert len(await linked.calls("/2/tweets", method="POST")) == 1


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("Fish & chips <b>", {}),
        ("caf\u0065\u0301 au lait  ", {}),
        ("Read https://example.com/a?b=1&c=2 and http://example.org/", {}),
        ("An answer", {"reply": {"in_reply_to_tweet_id": POST}}),
        ("Worth reading:", {"quote_tweet_id": POST}),
        ("line one\n\nline two", {}),
    ],
)
async def test_a_lost_post_is_known_by_its_words_however_x_writes_them(
    linked: House, text: str, more: dict[str, Any]
) -> None:
    """Short links, entities, normal forms; what it answers and quotes."""
    await linked.fault("POST", "/2/tweets", {"drop": "after_apply"})
    first = await post(linked, text, "k", **more)
    await look(linked, 3)
    assert (await outcome(linked, first))["state"] == "found"
