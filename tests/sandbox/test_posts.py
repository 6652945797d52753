"""Posting and deleting: shapes, lengths, replies, quotes, edits, polls, tiers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from birdwire.sandbox.api import post_text
from birdwire.sandbox.state.seed import DELETED_POST_ID, OTHER_USERNAME, PROTECTED_POST_ID, VISIBLE_POST_ID

if TYPE_CHECKING:
    import httpx2

    from sandbox.conftest import SandboxClient

ADAS_POST_ID = "1346889436626259840"


@pytest.fixture
async def token(x: SandboxClient) -> str:
    """Ada's access token."""
    access_token: str = (await x.link())["access_token"]
    return access_token


async def post(x: SandboxClient, token: str, **body: Any) -> httpx2.Response:
    """A new post."""
    return await x.call(token, "POST", "/2/tweets", json=body)


def detail(answer: httpx2.Response) -> str:
    """X's sentence of a 403."""
    assert answer.status_code == 403, answer.text
    sentence: str = answer.json()["detail"]
    return sentence


@pytest.mark.parametrize(
    ("generation", "history"),
    [("mixed", "edit_history_tweet_ids"), ("2.167", "edit_history_post_ids"), ("2.166", None)],
)
async def test_a_post_is_a_201_with_id_and_text(
    x: SandboxClient, token: str, generation: str, history: str | None
) -> None:
    """And the history as each generation spells it."""
    await x.control("config", generation=generation)
    answer = await post(x, token, text=" Hello, Wörld \n")
    data = answer.json()["data"]
    expected: dict[str, Any] = {"id": data["id"], "text": "Hello, Wörld"}
    assert answer.status_code == 201
    assert data == expected | ({history: [data["id"]]} if history else {})
    assert (await x.state())["posts"][-1] == {
        "id": data["id"],
        "text": "Hello, Wörld",
        "author_id": "2244994945",
        "deleted": False,
    }


async def test_ids_rise_and_tell_the_time(x: SandboxClient, token: str) -> None:
    """Snowflakes."""
    ids = [int((await post(x, token, text=f"post {n}")).json()["data"]["id"]) for n in range(3)]
    assert ids == sorted(set(ids))
    assert len(str(ids[0])) == 19


async def test_the_limits_of_posting_have_user_and_app_headers(x: SandboxClient, token: str) -> None:
    """15 minutes by user; 24 hours by user and by app."""
    await x.control("config", posts_per_24h=1)
    answer = await post(x, token, text="first")
    assert answer.headers["x-rate-limit-limit"] == "100"
    assert answer.headers["x-app-limit-24hour-remaining"] == "0"
    assert answer.headers["x-user-limit-24hour-remaining"] == "0"
    assert (await post(x, token, text="second")).status_code == 429


async def test_the_same_text_again_is_a_duplicate(x: SandboxClient, token: str) -> None:
    """Until it is deleted; another account may say it."""
    post_id = (await post(x, token, text="again")).json()["data"]["id"]
    assert (
        detail(await post(x, token, text="again ")) == "You are not allowed to create a Tweet with duplicate content."
    )
    alan = (await x.link("alan"))["access_token"]
    assert (await post(x, alan, text="again")).status_code == 201
    await x.call(token, "DELETE", f"/2/tweets/{post_id}")
    assert (await post(x, token, text="again")).status_code == 201


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": ""},
        {"text": "  "},
        {"text": 5},
        {"text": "a", "colour": "red"},
        {"text": "a", "reply": {}},
        {"text": "a", "reply": {"in_reply_to_tweet_id": 5}},
        {"text": "a", "reply": {"in_reply_to_tweet_id": "1\n"}},
        {"text": "a", "quote_tweet_id": "x"},
        {"text": "a", "media": {"media_ids": []}},
        {"text": "a", "media": {"media_ids": ["1", "2", "3", "4", "5"]}},
        {"text": "a", "media": {"media_ids": ["1"], "tagged_user_ids": ["1"] * 11}},
        {"text": "a", "poll": {"options": ["one"], "duration_minutes": 5}},
        {"text": "a", "poll": {"options": ["one", "t" * 26], "duration_minutes": 5}},
        {"text": "a", "poll": {"options": ["one", "two"], "duration_minutes": 4}},
        {"text": "a", "poll": {"options": ["one", "two"], "duration_minutes": 10_081}},
        {"text": "a", "reply_settings": "everyone"},
        {"text": "a", "nullcast": "yes"},
        {"text": "a", "edit_options": {}},
        {"text": "a", "quote_tweet_id": VISIBLE_POST_ID, "poll": {"options": ["1", "2"], "duration_minutes": 5}},
        {"text": "a", "card_uri": "card://1", "direct_message_deep_link": "https://x.com"},
    ],
)
async def test_what_the_specification_forbids_is_a_400(x: SandboxClient, token: str, body: dict[str, Any]) -> None:
    """X's invalid-request, and nothing is posted."""
    before = len((await x.state())["posts"])
    answer = await post(x, token, **body)
    assert (answer.status_code, answer.json()["title"]) == (400, "Invalid Request")
    assert len((await x.state())["posts"]) == before


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        ("a" * 280, 280),
        ("日" * 140, 280),
        ("é", 1),
        ("👨‍👩‍👧‍👦", 2),
        ("🇩🇪", 2),
        ("👍🏽", 2),
        ("❤️", 2),
        ("1️⃣", 2),
        ("see https://example.com/a/very/long/path?with=query#and-fragment.", 4 + 23 + 1),
        ("http://a.b " * 2, 2 * 23 + 2),
    ],
)
def test_a_text_has_the_weight_that_x_counts(text: str, weight: int) -> None:
    """X's page on counting characters."""
    assert post_text.weight(text) == weight


async def test_a_text_may_weigh_280_and_no_more(x: SandboxClient, token: str) -> None:
    """The refusal is X's general one."""
    assert (await post(x, token, text="日" * 140)).status_code == 201
    assert detail(await post(x, token, text="日" * 140 + "a")) == "You are not permitted to perform this action."


async def test_half_a_character_is_not_taken_in(x: SandboxClient, token: str) -> None:
    """A lone surrogate could never be returned."""
    assert (await x.call(token, "POST", "/2/tweets", content=rb'{"text":"\ud800"}')).status_code == 400
    assert (await x.call(token, "POST", "/2/tweets", content=rb'{"text":"\ud83d\udc26"}')).status_code == 201


async def test_links_are_shortened_and_listed_in_the_entities(x: SandboxClient, token: str) -> None:
    """In the answer and in look-ups; look-ups also escape."""
    answer = (await post(x, token, text="R&D: https://example.com/a?b=1&c=2 by @grace")).json()["data"]
    assert answer["text"].startswith("R&D: https://t.co/")
    look = (await x.call(token, "GET", f"/2/tweets/{answer['id']}?tweet.fields=entities")).json()["data"]
    assert look["text"] == answer["text"].replace("&", "&amp;")
    link, mention = look["entities"]["urls"][0], look["entities"]["mentions"][0]
    assert look["text"][link["start"] : link["end"]] == link["url"]
    assert link["expanded_url"] == "https://example.com/a?b=1&c=2"
    assert look["text"][mention["start"] : mention["end"]] == "@grace"


async def test_a_reply_needs_a_target_that_is_there(x: SandboxClient, token: str) -> None:
    """X's message is the same for deleted and hidden."""
    good = await post(x, token, text="a reply", reply={"in_reply_to_tweet_id": VISIBLE_POST_ID})
    assert good.status_code == 201
    assert (await x.state())["posts"][-1]["in_reply_to_tweet_id"] == VISIBLE_POST_ID
    for target in ("1", DELETED_POST_ID, PROTECTED_POST_ID):
        answer = await post(x, token, text="b", reply={"in_reply_to_tweet_id": target})
        assert detail(answer) == "You attempted to reply to a Tweet that is deleted or not visible to you."


async def test_an_author_decides_who_may_reply(x: SandboxClient, token: str) -> None:
    """reply_settings of the target; the author always may, the mentioned mostly."""
    grace, alan = (await x.link("grace"))["access_token"], (await x.link("alan"))["access_token"]
    target = (await post(x, grace, text="only @ada", reply_settings="mentionedUsers")).json()["data"]["id"]
    answer = await post(x, alan, text="may I?", reply={"in_reply_to_tweet_id": target})
    assert detail(answer).startswith("Reply to this conversation is not allowed")
    for who in (token, grace):
        assert (await post(x, who, text="yes", reply={"in_reply_to_tweet_id": target})).status_code == 201


async def test_a_quote_is_stored_and_a_deleted_target_refused(x: SandboxClient, token: str) -> None:
    """Deleted, with the same answer as for a like."""
    assert (await post(x, token, text="look", quote_tweet_id=VISIBLE_POST_ID)).status_code == 201
    assert (await x.state())["posts"][-1]["quote_tweet_id"] == VISIBLE_POST_ID
    assert (await post(x, token, text="gone", quote_tweet_id=DELETED_POST_ID)).status_code == 400


async def test_self_serve_may_not_quote_and_reply_only_when_summoned(x: SandboxClient, token: str) -> None:
    """Summoned: mentioned by the target's author, or quoted by it; one's own posts are free."""
    await x.control("config", tier="self_serve_2026_04")
    assert (await post(x, token, text="q", quote_tweet_id=VISIBLE_POST_ID)).status_code == 403
    answer = await post(x, token, text="r", reply={"in_reply_to_tweet_id": VISIBLE_POST_ID})
    assert detail(answer).startswith("You can only reply to or quote posts where you are mentioned")
    await x.control("config", reply_refusal="reply-not-allowed")
    answer = await post(x, token, text="r", reply={"in_reply_to_tweet_id": VISIBLE_POST_ID})
    assert detail(answer).startswith("Reply to this conversation is not allowed")
    posts = [
        {"author": OTHER_USERNAME, "text": "What do you say, @ada?", "id": "7001"},
        {"author": OTHER_USERNAME, "text": "This!", "id": "7002", "quote_tweet_id": ADAS_POST_ID},
    ]
    await x.control("seed", posts=posts)
    for number, target in enumerate(("7001", "7002", ADAS_POST_ID)):
        answer = await post(x, token, text=f"summoned {number}", reply={"in_reply_to_tweet_id": target})
        assert answer.status_code == 201


async def test_self_serve_may_name_one_cashtag(x: SandboxClient, token: str) -> None:
    """Prices are not cashtags; Enterprise may name many."""
    assert (await post(x, token, text="$AAPL $MSFT")).status_code == 201
    await x.control("config", tier="self_serve_2026_04")
    assert (await post(x, token, text="$AAPL costs $5 or US$10")).status_code == 201
    assert detail(await post(x, token, text="$AAPL or $BRK.A")).startswith(
        "Posts are limited to a maximum of one cashtag"
    )


async def test_a_poll_is_kept(x: SandboxClient, token: str) -> None:
    """Its reply_settings are dropped, as X says."""
    poll = {"options": ["yes", "no"], "duration_minutes": 5, "reply_settings": "following"}
    assert (await post(x, token, text="?", poll=poll)).status_code == 201
    assert (await x.state())["posts"][-1]["poll"] == {"options": ["yes", "no"], "duration_minutes": 5}


async def test_an_edit_is_a_new_post_with_a_history(x: SandboxClient, token: str) -> None:
    """Five times, and only the newest version."""
    last = first = (await post(x, token, text="v0")).json()["data"]["id"]
    for number in range(1, 6):
        answer = await post(x, token, text=f"v{number}", edit_options={"previous_post_id": last})
        assert answer.status_code == 201
        assert len(answer.json()["data"]["edit_history_tweet_ids"]) == number + 1
        last = answer.json()["data"]["id"]
    assert (await post(x, token, text="v6", edit_options={"previous_post_id": last})).status_code == 403
    assert (await post(x, token, text="v6", edit_options={"previous_post_id": first})).status_code == 403
    timeline = (await x.call(token, "GET", "/2/users/2244994945/tweets")).json()["data"]
    assert [one["text"] for one in timeline if one["text"].startswith("v")] == ["v5"]
    await x.call(token, "DELETE", f"/2/tweets/{first}")
    deleted = [one["deleted"] for one in (await x.state())["posts"] if one["text"].startswith("v")]
    assert deleted == [True] * 6


async def test_an_edit_has_a_window_and_needs_premium(x: SandboxClient, token: str) -> None:
    """An hour from the first version; replies to others, polls and others' posts never."""
    mine = (await post(x, token, text="mine")).json()["data"]["id"]
    poll = {"options": ["1", "2"], "duration_minutes": 5}
    asked = (await post(x, token, text="?", poll=poll)).json()["data"]["id"]
    reply = (await post(x, token, text="hi", reply={"in_reply_to_tweet_id": VISIBLE_POST_ID})).json()["data"]["id"]
    for previous in (asked, reply, VISIBLE_POST_ID, "1"):
        answer = await post(x, token, text="edited", edit_options={"previous_post_id": previous})
        assert answer.status_code == 403
    await x.control("seed", users=[{"username": "ada", "premium": False}])
    assert (await post(x, token, text="edited", edit_options={"previous_post_id": mine})).status_code == 403
    await x.control("seed", users=[{"username": "ada", "premium": True}])
    await x.control("clock", advance_s=3601)
    assert (await post(x, token, text="edited", edit_options={"previous_post_id": mine})).status_code == 403


@pytest.mark.parametrize(
    ("switch", "detail"),
    [
        (None, "Forbidden"),
        ("forbidden", "Forbidden"),
        ("not-permitted-action", "You are not permitted to perform this action."),
        ("not-permitted-feature", "Your account is not permitted to access this feature."),
    ],
)
async def test_an_edit_is_refused_in_each_possible_reading(
    x: SandboxClient, token: str, switch: str | None, detail: str
) -> None:
    """X's own words are not known: the window, Premium, and a post that is not there share the switch."""
    if switch is not None:
        await x.control("config", edit_refusal=switch)
    mine = (await post(x, token, text="mine")).json()["data"]["id"]
    await x.control("clock", advance_s=3601)
    for previous in (mine, "1"):
        answer = await post(x, token, text="edited", edit_options={"previous_post_id": previous})
        assert (answer.status_code, answer.json()["detail"]) == (403, detail)


async def test_a_post_is_deleted_once_and_by_its_author_only(x: SandboxClient, token: str) -> None:
    """Again: 404 with a problem; another's: the bare 403."""
    post_id = (await post(x, token, text="short-lived")).json()["data"]["id"]
    assert (await x.call(token, "DELETE", f"/2/tweets/{post_id}")).json() == {"data": {"deleted": True}}
    again = await x.call(token, "DELETE", f"/2/tweets/{post_id}")
    assert (again.status_code, again.json()["resource_id"]) == (404, post_id)
    assert (await x.call(token, "DELETE", f"/2/tweets/{VISIBLE_POST_ID}")).status_code == 403
