"""Posts that a write names: which field is wrong, and why X did not take an edit, as far as the gateway knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from birdwire.sandbox.state import seed
from birdwire.settings import Settings
from birdwire.surfaces.openapi.document import document
from harness.gateway import POST, RunningGateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx2

pytestmark = pytest.mark.asyncio(loop_scope="module")

EDITED = "edit_options.previous_post_id"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    """Start a gateway with a key linked to ada, who may edit her posts."""
    async with RunningGateway.built(tmp_path_factory.mktemp("edits"), rpm=1_000_000) as running:
        await running.link("ada")
        yield running


async def posted(place: RunningGateway, text: str) -> str:
    """Post; the post's id."""
    return str((await place.call("post_twitter", {"text": text})).raise_for_status().json()["data"]["id"])


async def edit(place: RunningGateway, post_id: str, text: str = "edited") -> httpx2.Response:
    """Edit a post."""
    return await place.call("post_twitter", {"text": text, "edit_options": {"previous_post_id": post_id}})


def refused(answer: httpx2.Response) -> tuple[int, str, str]:
    """The status, the code and the reason."""
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["reason"]


CLOSED = (409, "conflict", "edit_window_closed")
GONE = (404, "resource-not-found", "tweet_not_found")
REFUSED = (403, "client-forbidden", "x_refused")


@pytest.mark.parametrize("words", ["forbidden", "not-permitted-action", "not-permitted-feature"])
async def test_the_journal_records_why_an_edit_was_refused(place: RunningGateway, words: str) -> None:
    """Whatever words X has for it: too old, by X's clock; deleted through this gateway; or neither."""
    await place.configure(edit_refusal=words)
    old, deleted, young = [await posted(place, f"{words} {name}") for name in ("old", "deleted", "young")]
    assert (await place.call("delete_twitter", {"tweet_id": deleted})).status_code == 200
    answer = await edit(place, deleted)
    assert refused(answer) == GONE
    assert answer.json()["error"]["fix"] == f"Check {EDITED}."
    await place.configure(edit_window_s=1)
    await place.advance_x(1_900)  # X may say no by now: one of its pages says 30 minutes
    answer = await edit(place, young)
    assert refused(answer) == REFUSED
    fix = answer.json()["error"]["fix"]
    assert "X Premium" in fix
    assert "within one hour" in fix
    assert "30 minutes" in fix
    await place.advance_x(1_800)
    answer = await edit(place, old)
    assert refused(answer) == CLOSED
    assert answer.json()["error"]["upstream"]["status"] == 403
    assert answer.json()["error"]["retryable"] is False
    assert refused(await edit(place, deleted)) == GONE
    await place.configure(edit_window_s=3_600)


async def test_x_decides_how_long_a_post_can_be_edited(place: RunningGateway) -> None:
    """The gateway keeps no window of its own."""
    await place.configure(edit_window_s=86_400)
    post_id = await posted(place, "a day")
    await place.advance_x(7_000)
    place.clock.advance(seconds=7_000)
    assert (await edit(place, post_id, "a day later")).status_code == 201
    await place.configure(edit_window_s=3_600)


async def test_x_decides_on_edits_of_posts_missing_from_the_journal(place: RunningGateway) -> None:
    """With its rules for edits in the fix; another account's, and one that X alone knows."""
    for post_id in (POST, seed.DELETED_POST_ID):
        answer = await edit(place, post_id)
        assert refused(answer) == REFUSED
        assert "X Premium" in answer.json()["error"]["fix"]


async def test_a_refusal_of_another_call_does_not_mention_edits(place: RunningGateway) -> None:
    """The same reason, without X's rules for them."""
    await place.fault("POST", "/2/tweets", {"error": "not-permitted-action"})
    answer = await place.call("post_twitter", {"text": "refused"})
    assert refused(answer) == REFUSED
    assert answer.json()["error"]["fix"].startswith("Check the account")


@pytest.mark.parametrize(
    ("name", "body", "fields"),
    [
        ("like_twitter", {"tweet_id": "404"}, "tweet_id"),
        ("delete_twitter", {"tweet_id": "404"}, "tweet_id"),
        ("retweet_twitter", {"tweet_id": seed.PROTECTED_POST_ID}, "tweet_id"),
        ("post_twitter", {"text": "a quote", "quote_tweet_id": "404"}, "quote_tweet_id"),
        (
            "post_twitter",
            {"text": "both", "quote_tweet_id": "404", "reply": {"in_reply_to_tweet_id": POST}},
            "quote_tweet_id and reply.in_reply_to_tweet_id",
        ),
    ],
)
async def test_a_post_that_is_not_there_is_named_by_its_field(
    place: RunningGateway, name: str, body: dict[str, Any], fields: str
) -> None:
    """So that the caller knows which of its ids to check."""
    answer = await place.call(name, body)
    assert refused(answer) == GONE
    assert answer.json()["error"]["fix"] == f"Check {fields}."


async def test_a_place_needs_its_id(place: RunningGateway) -> None:
    """X would refuse it; the published schema does not say so, and stays as it is."""
    before = len(await place.calls())
    answer = await place.call("post_twitter", {"text": "somewhere", "geo": {}})
    assert refused(answer) == (400, "missing_parameter", "place_id_missing")
    assert len(await place.calls()) == before
    schemas = document(Settings())["components"]["schemas"]
    assert "required" not in schemas["Geo"]
