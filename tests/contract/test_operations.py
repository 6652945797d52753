"""Every operation of the contract, seen from outside and in X's own state."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from birdwire.sandbox.state import seed
from birdwire.x.catalog.operations import OPERATIONS
from harness.gateway import API, GRACE, PNG, POST

if TYPE_CHECKING:
    from harness.gateway import RunningGateway


async def user_id(running: RunningGateway, username: str) -> str:
    """A seeded user's id."""
    return str(next(user["id"] for user in (await running.state())["users"] if user["username"] == username))


async def post(running: RunningGateway, **body: Any) -> str:
    """Post something; its id."""
    answer = await running.call("post_twitter", body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["data"]["id"])


@pytest.mark.parametrize(
    ("name", "body", "answer"),
    [
        ("like_twitter", {"tweet_id": POST}, b'{"data":{"liked":true}}'),
        ("unlike_twitter", {"tweet_id": POST}, b'{"data":{"liked":false}}'),
        ("follow_twitter", {"target_user_id": GRACE}, b'{"data":{"following":true,"pending_follow":false}}'),
        ("unfollow_twitter", {"target_user_id": GRACE}, b'{"data":{"following":false}}'),
        ("retweet_twitter", {"tweet_id": POST}, b'{"data":{"retweeted":true}}'),
        ("unretweet_twitter", {"tweet_id": POST}, b'{"data":{"retweeted":false}}'),
        ("bookmark_twitter", {"tweet_id": POST}, b'{"data":{"bookmarked":true}}'),
        ("unbookmark_twitter", {"tweet_id": POST}, b'{"data":{"bookmarked":false}}'),
    ],
)
async def test_a_change_that_is_made_twice_answers_alike(
    linked: RunningGateway, name: str, body: dict[str, str], answer: bytes
) -> None:
    """The documented bytes, once and again, with the default bodies of both generations."""
    answers = [(await linked.call(name, body)) for _ in range(2)]
    assert [(given.status_code, given.content) for given in answers] == [(200, answer)] * 2


@pytest.mark.parametrize("generation", ["2.166", "2.167", "mixed"])
async def test_both_generations_of_x_read_alike(linked: RunningGateway, generation: str) -> None:
    """X's two spellings end in one answer."""
    await linked.configure(generation=generation)
    assert (await linked.call("retweet_twitter", {"tweet_id": POST})).content == b'{"data":{"retweeted":true}}'
    assert (await linked.call("post_twitter", {"text": "hello"})).json()["data"].keys() == {"id", "text"}
    assert (await linked.like(seed.DELETED_POST_ID)).json()["error"]["reason"] == "tweet_not_found"


async def test_a_follow_of_a_protected_user_waits_for_them(linked: RunningGateway) -> None:
    """X says pending, and so do we."""
    answer = await linked.call("follow_twitter", {"target_user_id": await user_id(linked, "pat")})
    assert answer.json() == {"data": {"following": False, "pending_follow": True}}


async def test_a_user_that_is_not_there_is_not_found(linked: RunningGateway) -> None:
    """404, whatever X's form of saying so."""
    error = (await linked.call("follow_twitter", {"target_user_id": "9999999999999999999"})).json()["error"]
    assert (error["code"], error["reason"]) == ("resource-not-found", "user_not_found")


async def test_a_thread_an_edit_and_a_deletion_change_xs_state(linked: RunningGateway) -> None:
    """Three posts in a row, the first edited, the last deleted."""
    first = await post(linked, text="one")
    second = await post(linked, text="two", reply={"in_reply_to_tweet_id": first})
    third = await post(linked, text="three", reply={"in_reply_to_tweet_id": second, "exclude_reply_user_ids": [GRACE]})
    edited = await post(linked, text="one, fixed", edit_options={"previous_post_id": first})
    assert (await linked.call("delete_twitter", {"tweet_id": third})).content == b'{"data":{"deleted":true}}'
    assert (await linked.post_of(second))["in_reply_to_tweet_id"] == first
    assert (await linked.post_of(third))["deleted"] is True
    assert (await linked.post_of(edited))["previous_post_id"] == first


async def test_an_answer_that_was_not_asked_for_is_passed_on_and_logged(linked: RunningGateway) -> None:
    """X decides what it did; the log line tells such an answer from the others."""
    odd = {"status": 200, "body": {"data": {"liked": False}}}
    await linked.fault("POST", "/2/users/*/likes", odd)
    answers = [await linked.like() for _ in range(2)]
    assert [answer.json() for answer in answers] == [{"data": {"liked": False}}, {"data": {"liked": True}}]
    linked.gateway.telemetry.flush()
    lines = [json.loads(line) for line in linked.log.getvalue().splitlines() if '"operation":"like_twitter"' in line]
    assert [line.get("unexpected") for line in lines] == [True, None]


async def test_a_quote_and_a_poll_are_posted(linked: RunningGateway) -> None:
    """Both need no media."""
    quote = await post(linked, text="look", quote_tweet_id=POST)
    poll = await post(linked, text="which?", poll={"options": ["a", "b"], "duration_minutes": 60})
    assert (await linked.post_of(quote))["quote_tweet_id"] == POST
    assert (await linked.post_of(poll))["poll"]["options"]


@pytest.mark.parametrize("part", ["media_files", "media", "media_file", "file"])
async def test_an_uploaded_image_can_be_posted(linked: RunningGateway, part: str) -> None:
    """Under each name that clients give the part."""
    answer = await linked.client.post(API + "upload_media", files={part: ("a.png", PNG, "image/png")})
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert list(data) == ["media_id", "media_key", "expires_at"]
    posted = await post(linked, text="an image", media={"media_ids": [data["media_id"]]})
    assert (await linked.post_of(posted))["media_ids"] == [data["media_id"]]


async def test_a_large_video_goes_in_parts_and_is_waited_for(linked: RunningGateway) -> None:
    """Parts of at most 1 MiB, X's processing polled."""
    video = b"\x00\x00\x00\x18ftypmp42" + bytes(2_500_000)
    answer = await linked.client.post(API + "upload_media", files={"media_files": ("a.mp4", video, "video/mp4")})
    assert answer.status_code == 200, answer.text
    paths = [call["path"].rsplit("/", 1)[-1] for call in await linked.calls("/2/media/upload")]
    assert paths.count("append") == 3
    assert paths[0] == "initialize"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([("media_files", ("a.txt", b"no image", "image/png"))], "media_files_malformed"),
        ([("media_files", ("a.png", b"", "image/png"))], "media_files_malformed"),
        ([("media_files", ("a.png", PNG + bytes(5 << 20), "image/png"))], "media_too_large"),
        ([("other", ("a.png", PNG, "image/png"))], "unknown_field"),
        ([("media_files", ("a.png", PNG, "image/png"))] * 2, "media_files_malformed"),
    ],
)
async def test_a_file_that_x_would_not_take_costs_no_call(linked: RunningGateway, files: Any, reason: str) -> None:
    """Type and size are checked here first."""
    before = len(await linked.calls("/2/media"))
    answer = await linked.client.post(API + "upload_media", files=files)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (400, reason)
    assert len(await linked.calls("/2/media")) == before


async def test_an_upload_requires_a_key(linked: RunningGateway) -> None:
    """The body of a stranger is not read into a file."""
    answer = await linked.bare.post(API + "upload_media", files={"media_files": ("a.png", PNG, "image/png")})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (401, "key_missing")


POST_REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "missing_parameter", "text_missing"),
    ({"text": ""}, "invalid-request", "text_empty"),
    ({"text": " \n"}, "invalid-request", "text_empty"),
    ({"text": None}, "invalid-request", "text_malformed"),
    ({"text": 1}, "invalid-request", "text_malformed"),
    ({"text": ["a"]}, "invalid-request", "text_malformed"),
    ({"text": "a\u0000"}, "invalid-request", "text_malformed"),
    ({"text": "a" * 281}, "invalid-request", "text_too_long"),
    ({"text": "界" * 141}, "invalid-request", "text_too_long"),
    ({"text": "a", "reply": {}}, "missing_parameter", "in_reply_to_tweet_id_missing"),
    ({"text": "a", "reply": "1"}, "invalid-request", "reply_malformed"),
    ({"text": "a", "reply": {"in_reply_to_tweet_id": "1\n"}}, "invalid-request", "in_reply_to_tweet_id_malformed"),
    ({"text": "a", "reply": {"in_reply_to_tweet_id": "1", "x": 1}}, "invalid-request", "unknown_field"),
    (
        {"text": "a", "reply": {"in_reply_to_tweet_id": "1", "exclude_reply_user_ids": ["1"] * 11}},
        "invalid-request",
        "exclude_reply_user_ids_malformed",
    ),
    ({"text": "a", "quote_tweet_id": "x"}, "invalid-request", "quote_tweet_id_malformed"),
    ({"text": "a", "media": {}}, "missing_parameter", "media_ids_missing"),
    ({"text": "a", "media": {"media_ids": []}}, "invalid-request", "media_ids_malformed"),
    ({"text": "a", "media": {"media_ids": ["1"] * 5}}, "invalid-request", "media_ids_malformed"),
    ({"text": "a", "media": {"media_ids": [1]}}, "invalid-request", "media_ids_malformed"),
    (
        {"text": "a", "media": {"media_ids": ["1"], "tagged_user_ids": ["1"] * 11}},
        "invalid-request",
        "tagged_user_ids_malformed",
    ),
    ({"text": "a", "poll": {"options": ["a"], "duration_minutes": 5}}, "invalid-request", "options_malformed"),
    ({"text": "a", "poll": {"options": ["a", ""], "duration_minutes": 5}}, "invalid-request", "options_malformed"),
    (
        {"text": "a", "poll": {"options": ["a", "b" * 26], "duration_minutes": 5}},
        "invalid-request",
        "options_malformed",
    ),
    (
        {"text": "a", "poll": {"options": ["a", "b"], "duration_minutes": 4}},
        "invalid-request",
        "duration_minutes_malformed",
    ),
    ({"text": "a", "poll": {"options": ["a", "b"]}}, "missing_parameter", "duration_minutes_missing"),
    (
        {"text": "a", "poll": {"options": ["a", "b"], "duration_minutes": 10_081}},
        "invalid-request",
        "duration_minutes_malformed",
    ),
    ({"text": "a", "reply_settings": "everyone"}, "invalid-request", "reply_settings_malformed"),
    ({"text": "a", "nullcast": "true"}, "invalid-request", "nullcast_malformed"),
    ({"text": "a", "edit_options": {}}, "missing_parameter", "previous_post_id_missing"),
    ({"text": "a", "quote_tweet_id": "1", "media": {"media_ids": ["1"]}}, "invalid-request", "mutually_exclusive"),
    ({"text": "a", "quote_tweet_id": "1", "card_uri": "card://1"}, "invalid-request", "mutually_exclusive"),
    (
        {"text": "a", "card_uri": "card://1", "direct_message_deep_link": "https://x.com"},
        "invalid-request",
        "mutually_exclusive",
    ),
    ({"text": "a", "tweet_id": "1"}, "invalid-request", "unknown_field"),
    ({"content": "a"}, "invalid-request", "unknown_field"),
]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("body", "code", "reason"), POST_REFUSALS)
async def test_a_post_that_cannot_be_names_its_field(
    shared_gateway: RunningGateway, body: dict[str, Any], code: str, reason: str
) -> None:
    """Every constraint of the contract is reported by its field before X is called."""
    before = len(await shared_gateway.calls("/2/tweets"))
    answer = await shared_gateway.call("post_twitter", body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["reason"]) == (400, code, reason)
    assert "unknown" not in error["message"] + error["fix"] or reason == "unknown_field"
    assert len(await shared_gateway.calls("/2/tweets")) == before


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "text",
    [
        "a" * 280,
        "界" * 140,
        "👨‍👩‍👧‍👦" * 140,
        "line one\nline two",
        "e\u0301 not composed",
        "\u202eright to left",
        "a < b & c",
    ],
)
async def test_a_text_that_fits_is_posted_unchanged(shared_gateway: RunningGateway, text: str) -> None:
    """Counted as X counts, and never altered."""
    answer = await shared_gateway.call("post_twitter", {"text": text})
    assert (answer.status_code, answer.json()["data"]["text"]) == (201, text)


async def test_a_link_weighs_what_x_makes_of_it(linked: RunningGateway) -> None:
    """However long: X shortens it, and the answer holds the text as X stored it."""
    answer = await linked.call("post_twitter", {"text": "see https://example.com/" + "x" * 300})
    assert answer.status_code == 201
    assert answer.json()["data"]["text"].startswith("see https://t.co/")


async def test_the_same_text_twice_is_a_conflict(linked: RunningGateway) -> None:
    """X's 403 is our 409."""
    await post(linked, text="again")
    answer = await linked.call("post_twitter", {"text": "again"})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (409, "duplicate_post")


@pytest.mark.parametrize("do", [{"drop": "after_apply"}, {"drop": "before_apply"}, {"status": 503}, {"truncate": 5}])
async def test_a_post_whose_answer_is_lost_is_called_unknown(linked: RunningGateway, do: dict[str, Any]) -> None:
    """Neither success nor failure, not retryable, and sent exactly once."""
    await linked.fault("POST", "/2/tweets", do)
    answer = await linked.call("post_twitter", {"text": "lost?"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["retryable"]) == (502, "outcome_unknown", False)
    assert len(await linked.calls("/2/tweets")) == 1


@pytest.mark.parametrize("refusal", ["client-not-enrolled", "access-level-453", "forbidden", "not-permitted-feature"])
@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("like_twitter", {"tweet_id": POST}),
        ("follow_twitter", {"target_user_id": GRACE}),
        ("post_twitter", {"text": "q", "quote_tweet_id": POST}),
    ],
)
async def test_the_tiers_refusal_is_explained_in_every_form_x_gives_it(
    linked: RunningGateway, refusal: str, name: str, body: dict[str, str]
) -> None:
    """Most people's first answer from the real X: it must say since when, why, and what works instead."""
    await linked.configure(tier="self_serve_2026_04", tier_refusal=refusal)
    error = (await linked.call(name, body)).json()["error"]
    assert (error["reason"], error["whose"]) == ("x_tier_lacks_action", "x_rule")
    assert "2026-04-20" in error["fix"]
    assert (await linked.status())["capabilities"]


async def test_why_x_refuses_the_app_is_shown_to_keys_that_met_it_and_if_it_is_the_tier(linked: RunningGateway) -> None:
    """Refusals of other tenants' calls, such as the operator's unpaid bill, are not shown to a key."""
    _, other = await linked.gateway.keys.create("test", "another tenant", "free")
    linked.client.headers["authorization"] = f"Bearer {other}"
    await linked.link("grace")

    async def reasons() -> list[str | None]:
        found = []
        for raw_key in (linked.raw_key, other):
            linked.client.headers["authorization"] = f"Bearer {raw_key}"
            found.append((await linked.status())["capabilities"]["like_twitter"]["reason"])
        return found

    async def like_as(raw_key: str) -> None:
        linked.client.headers["authorization"] = f"Bearer {raw_key}"
        await linked.like()

    await linked.configure(billing="credits_depleted")
    await like_as(linked.raw_key)
    assert await reasons() == ["x_credits_depleted", None]
    await like_as(other)
    assert await reasons() == ["x_credits_depleted", "x_credits_depleted"]
    await linked.configure(billing="ok")
    await like_as(other)
    assert await reasons() == [None, None]
    await linked.configure(billing="credits_depleted")
    await like_as(linked.raw_key)
    assert await reasons() == ["x_credits_depleted", None]
    await linked.configure(billing="ok", tier="self_serve_2026_04")
    await like_as(other)
    assert await reasons() == ["x_tier_lacks_action", "x_tier_lacks_action"]


async def test_a_bare_403_on_a_recently_allowed_operation_concerns_the_account(linked: RunningGateway) -> None:
    """The app may like: so this no is not about its tier."""
    await linked.like()
    await linked.fault("POST", "/2/users/*/likes", {"error": "missing-scope"})
    assert (await linked.like()).json()["error"]["reason"] == "x_refused"
    assert (await linked.status())["capabilities"]["like_twitter"] == {"allowed": True, "reason": None}


async def test_every_operation_has_a_route_and_a_row_in_the_journal(linked: RunningGateway) -> None:
    """One row in the table is enough for both."""
    paths = {route.path for route in linked.gateway.routes}
    assert {f"{API}{operation.name}" for operation in OPERATIONS} <= paths


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", ["follow_twitter", "unfollow_twitter"])
@pytest.mark.parametrize(
    ("body", "code", "reason"),
    [
        ({}, "invalid-request", "target_user_id_missing"),
        ({"target_user_id": None}, "invalid-request", "target_user_id_malformed"),
        ({"target_user_id": 2244994945}, "invalid-request", "target_user_id_malformed"),
        ({"target_user_id": "2244994945\n"}, "invalid-request", "target_user_id_malformed"),
        ({"target_user_id": "12345678901234567890"}, "invalid-request", "target_user_id_malformed"),
        ({"target_user_id": "@grace"}, "invalid-request", "target_user_id_malformed"),
        ({"target_user_id": "../2"}, "invalid-request", "target_user_id_malformed"),
        ({"target_user_id": "1", "username": "grace"}, "invalid-request", "unknown_field"),
        ({"username": "grace"}, "invalid-request", "target_user_id_missing"),
    ],
)
async def test_a_user_is_named_by_one_id(
    shared_gateway: RunningGateway, name: str, body: dict[str, Any], code: str, reason: str
) -> None:
    """A string of digits and no other member; otherwise X is not called."""
    before = len(await shared_gateway.calls("/2/users/", method="POST"))
    answer = await shared_gateway.call(name, body)
    assert (answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["reason"]) == (400, code, reason)
    assert len(await shared_gateway.calls("/2/users/", method="POST")) == before


@pytest.mark.trust("#215")
async def test_following_oneself_is_refused_as_x_refuses_it(linked: RunningGateway) -> None:
    """400 or 403, never a success and never an internal error."""
    answer = await linked.call("follow_twitter", {"target_user_id": await user_id(linked, "ada")})
    assert answer.status_code in {400, 403}
