"""Lost answers to posts: each post is searched for in the account's timeline, and its outcome is true or unknown."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from birdwire.store.database import Database
from birdwire.x.limits.capabilities import Capabilities
from harness.gateway import API, POST, MovableClock, RunningGateway

if TYPE_CHECKING:
    from pathlib import Path

LOST: dict[str, tuple[dict[str, Any], bool]] = {
    "the connection ends": ({"drop": "after_apply"}, True),
    "half an answer": ({"truncate": 20}, True),
    "X never saw it": ({"drop": "before_apply"}, False),
    "an error page": ({"status": 503, "body": "<html>"}, False),
    "a gateway timeout": ({"status": 504}, False),
}
"""How an answer is lost: the fault to order, and whether X has the post all the same."""


async def post(running: RunningGateway, text: str, key: str, **more: Any) -> httpx2.Response:
    """Post under an Idempotency-Key."""
    return await running.call("post_twitter", {"text": text, **more}, headers={"idempotency-key": key})


async def outcome(running: RunningGateway, answer: httpx2.Response) -> dict[str, Any]:
    """What requests/{id} says of a call."""
    return dict((await running.client.get(API + f"requests/{answer.headers['x-request-id']}")).json())


async def look(running: RunningGateway, *after_s: float) -> None:
    """Let time pass, and look whenever a look is due."""
    for seconds in after_s:
        running.clock.advance(seconds=seconds)
        await running.gateway.reconciler.round()


async def times(running: RunningGateway, text: str) -> int:
    """How often X has a post of this text."""
    return sum(one["text"] == text and not one["deleted"] for one in (await running.state())["posts"])


@pytest.mark.trust("G6")
@pytest.mark.trust("F28")
@pytest.mark.engines("sqlite", "postgres")
@pytest.mark.parametrize(("do", "applied"), LOST.values(), ids=LOST)
async def test_the_timeline_decides_the_outcome_of_a_lost_post(
    linked: RunningGateway,
    do: dict[str, Any],
    applied: bool,  # noqa: FBT001 - pytest hands it by name
) -> None:
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
async def test_a_lost_post_is_recognised_by_its_text_however_x_writes_it(
    linked: RunningGateway, text: str, more: dict[str, Any]
) -> None:
    """Short links, entities, normal forms; what it answers and quotes."""
    await linked.fault("POST", "/2/tweets", {"drop": "after_apply"})
    first = await post(linked, text, "k", **more)
    await look(linked, 3)
    assert (await outcome(linked, first))["state"] == "found"


async def test_a_post_that_is_not_visible_stays_unknown_with_the_reason(linked: RunningGateway) -> None:
    """X excludes it from timelines, so it cannot be searched for."""
    await linked.fault("POST", "/2/tweets", {"drop": "before_apply"})
    first = await post(linked, "Only for ads", "k", nullcast=True)
    await look(linked, 3, 60)
    told = await outcome(linked, first)
    assert (told["state"], told["why"], told["settled_at"]) == ("unknown", "not_in_timeline", None)


async def test_a_timeline_that_cannot_be_read_leaves_it_unknown_until_it_can(linked: RunningGateway) -> None:
    """429 after 429: no verdict without a reading, and X's wait is kept."""
    await linked.fault("POST", "/2/tweets", {"drop": "after_apply"})
    await linked.fault("GET", "/2/users/*/tweets", {"error": "rate-limited"}, times=None)
    first = await post(linked, "Read me later", "k")
    await look(linked, 3, 60, 60)
    told = await outcome(linked, first)
    assert (told["state"], told["why"]) == ("unknown", "no_read")
    assert len(await linked.calls("/2/users/2244994945/tweets")) == 1, "X had said when to come again"
    await linked.x.delete("/_sandbox/faults")
    await look(linked, 1_000)
    assert (await outcome(linked, first))["state"] == "found"


@pytest.mark.engines("sqlite", "postgres")
async def test_two_posts_that_cannot_be_distinguished_stay_unknown(linked: RunningGateway) -> None:
    """One of them exists, and it is undecidable which; after a day that is final."""
    await linked.fault("POST", "/2/tweets", {"drop": "before_apply"})
    await linked.fault("POST", "/2/tweets", {"drop": "after_apply"})
    lost = [await post(linked, "Twins", key) for key in ("one", "two")]
    await look(linked, 3, 60, 5)
    assert [(await outcome(linked, one))["why"] for one in lost] == ["several_match"] * 2
    await look(linked, 25 * 3_600)
    assert [(await outcome(linked, one))["state"] for one in lost] == ["unknown"] * 2
    reads = len(await linked.calls("/2/users/2244994945/tweets"))
    await look(linked, 60, 24 * 3_600)
    assert len(await linked.calls("/2/users/2244994945/tweets")) == reads


async def test_xs_duplicate_refusal_shows_that_the_lost_one_was_posted(linked: RunningGateway) -> None:
    """The second call is refused, and the first is searched for immediately."""
    await linked.fault("POST", "/2/tweets", {"drop": "after_apply"})
    first = await post(linked, "Said once", "one")
    second = await post(linked, "Said once", "two")
    assert (second.status_code, second.json()["error"]["reason"]) == (409, "duplicate_post")
    await linked.gateway.reconciler.round()
    assert (await post(linked, "Said once", "one")).status_code == 201
    assert (await outcome(linked, first))["state"] == "found"
    assert await times(linked, "Said once") == 1


async def test_no_timeline_of_an_unlinked_account_is_read(linked: RunningGateway) -> None:
    """The owner has ended it: nothing is read any more, and the row says so."""
    await linked.fault("POST", "/2/tweets", {"drop": "after_apply"})
    first = await post(linked, "Gone", "k")
    await linked.call("unlink_twitter", {})
    await look(linked, 3)
    assert (await outcome(linked, first))["why"] == "not_linked"
    assert not await linked.calls("/2/users/2244994945/tweets")


@pytest.mark.trust("F22")
@pytest.mark.parametrize("skew_s", [-600, 600])
@pytest.mark.parametrize("how", ["clock", "date"])
async def test_a_clock_that_is_wrong_by_ten_minutes_changes_no_verdict(
    running: RunningGateway, skew_s: int, how: str
) -> None:
    """X's Date says how far it is off; what X has is found, and what it has not is not."""
    if how == "date":
        await running.configure(date_skew_s=skew_s)
    elif skew_s > 0:
        await running.advance_x(skew_s)
    else:
        running.clock.advance(seconds=-skew_s)
    await running.link("ada")
    await running.fault("POST", "/2/tweets", {"drop": "after_apply"})
    there = await post(running, "There", "there")
    await running.fault("POST", "/2/tweets", {"drop": "before_apply"})
    away = await post(running, "Away", "away")
    for seconds in (3, 30, 30, 3):
        running.clock.advance(seconds=seconds)
        await running.advance_x(seconds)
        await running.gateway.reconciler.round()
    assert (await outcome(running, there))["state"] == "found"
    assert (await outcome(running, away))["state"] == "not_found"


@pytest.mark.trust("F39")
async def test_a_caller_that_disconnects_can_ask_for_the_outcome(linked: RunningGateway) -> None:
    """The caller disconnected; the outcome of the post is recorded all the same."""
    await linked.fault("POST", "/2/tweets", {"delay_s": 0.5})
    with pytest.raises(httpx2.ReadTimeout):
        await linked.call("post_twitter", {"text": "Gone"}, headers={"idempotency-key": "k"}, timeout=0.1)
    async with asyncio.timeout(20):
        while (again := await post(linked, "Gone", "k")).status_code != 201:
            assert again.json()["error"]["reason"] == "idempotency_in_flight"
    assert await times(linked, "Gone") == 1


async def test_half_a_character_in_xs_answer_spoils_no_post(linked: RunningGateway) -> None:
    """X has the post, and its caller hears so: the half is a `?`, as in every answer."""
    body = '{"data":{"id":"77","text":"cut \\ud83d"}}'
    await linked.fault("POST", "/2/tweets", {"status": 201, "body": body})
    first = await post(linked, "cut", "k")
    assert (first.status_code, first.json()) == (201, {"data": {"id": "77", "text": "cut ?"}})
    assert (await outcome(linked, first))["data"] == first.json()["data"]


@pytest.mark.trust("G6")
@pytest.mark.engines("sqlite", "postgres")
async def test_a_running_post_is_not_mistaken_for_a_lost_one_with_the_same_text(linked: RunningGateway) -> None:
    """X never saw the first; the timeline shows the second before its answer arrives."""
    await linked.fault("POST", "/2/tweets", {"drop": "before_apply"})
    first = await post(linked, "Once more", "k")
    await linked.fault("POST", "/2/tweets", {"trickle_bps": 150})
    second = asyncio.create_task(post(linked, "Once more", "other"))
    async with asyncio.timeout(10):
        while not await times(linked, "Once more"):  # noqa: ASYNC110 - X's side tells
            await asyncio.sleep(0)
    await look(linked, 3, 8)
    assert not second.done()
    assert (await outcome(linked, first))["state"] == "unknown"
    answer = await second
    assert answer.status_code == 201
    await look(linked, 20, 30, 3)
    assert ((await outcome(linked, first))["state"], await times(linked, "Once more")) == ("not_found", 1)


@pytest.mark.trust("F10")
async def test_a_call_succeeds_if_the_store_cannot_record_xs_limits_and_prices(tmp_path: Path) -> None:
    """They are taken after X's answer: its caller must get it, and not hear that nothing was asked of X."""
    nowhere = Database(f"sqlite:///{tmp_path / 'nowhere' / 'birdwire.db'}")
    record = Capabilities(nowhere, MovableClock(), "client")
    await record.record("post_twitter", None, "key_1")
    await record.record("post_twitter", "x_not_enrolled", "key_1")
    assert not await record.recently_allowed("post_twitter")
    await nowhere.close()


@pytest.mark.trust("G6")
async def test_a_bug_after_the_send_leaves_the_outcome_unknown(tmp_path: Path) -> None:
    """Its caller is not asked to retry; the post is searched for immediately, and the log names the bug."""
    async with RunningGateway.built(tmp_path, failpoints="post_after_send=raise") as running:
        await running.link("ada")
        first = await post(running, "There", "k")
        assert (first.status_code, first.json()["error"]["reason"]) == (502, "outcome_unknown")
        assert "FailpointError" in running.log.getvalue()
        await look(running, 3)
        assert (await outcome(running, first))["state"] == "found"
        assert (await post(running, "There", "k")).status_code == 201
        assert await times(running, "There") == 1
