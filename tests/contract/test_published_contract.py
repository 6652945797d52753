"""The six original endpoints as published: what their clients may build on, written down here and in true calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from birdwire.settings import Settings
from birdwire.surfaces.openapi import document
from house import API, GRACE, POST

if TYPE_CHECKING:
    from house import House

BASE = "/apis/v1/twitter/"
DIGITS = "^[0-9]{1,19}$"
ID = {"type": "string", "pattern": DIGITS}
AUDIENCE = {"type": "string", "enum": ["following", "mentionedUsers", "subscribers", "verified"]}
FLAG = {"type": "boolean"}
TEXT = {"type": "string"}


def ids(least: int, most: int) -> dict[str, Any]:
    """A list of ids."""
    return {"type": "array", "minItems": least, "maxItems": most, "items": TEXT}


@dataclass(frozen=True)
class Published:
    """One endpoint: what it takes, what must be there, what it answers with, and the statuses of its refusals."""

    operation_id: str
    takes: dict[str, Any]
    required: tuple[str, ...]
    status: str
    answers: dict[str, Any]
    refusals: tuple[int, ...] = (400, 401, 403, 429, 500, 502)


POST_FIELDS: dict[str, Any] = {
    "text": TEXT,
    "reply": {
        "required": ["in_reply_to_tweet_id"],
        "properties": {
            "in_reply_to_tweet_id": ID,
            "auto_populate_reply_metadata": FLAG,
            "exclude_reply_user_ids": {"type": "array", "maxItems": 10, "items": ID},
        },
    },
    "quote_tweet_id": ID,
    "media": {
        "required": ["media_ids"],
        "properties": {"media_ids": ids(1, 4), "tagged_user_ids": {"type": "array", "maxItems": 10, "items": ID}},
    },
    "poll": {
        "required": ["options", "duration_minutes"],
        "properties": {
            "options": {"type": "array", "minItems": 2, "maxItems": 4, "items": {"type": "string", "maxLength": 25}},
            "duration_minutes": {"type": "integer", "minimum": 5, "maximum": 10080},
            "reply_settings": AUDIENCE,
        },
    },
    "card_uri": TEXT,
    "direct_message_deep_link": TEXT,
    "geo": {"properties": {"place_id": TEXT}},
    "reply_settings": AUDIENCE,
    "for_super_followers_only": FLAG,
    "nullcast": FLAG,
    "paid_partnership": FLAG,
    "made_with_ai": FLAG,
    "community_id": ID,
    "share_with_followers": FLAG,
    "edit_options": {"required": ["previous_post_id"], "properties": {"previous_post_id": ID}},
}

PUBLISHED: dict[str, Published] = {
    "auth_twitter": Published(
        "authTwitterUser",
        {"scopes": {"type": "array", "items": TEXT}},
        (),
        "200",
        {"auth_url": TEXT | {"format": "uri"}, "state": TEXT, "expires_at": TEXT | {"format": "date-time"}},
        (400, 401, 429, 500),
    ),
    "like_twitter": Published(
        "likeTwitter",
        {"tweet_id": ID},
        ("tweet_id",),
        "200",
        {"data": {"liked": FLAG}},
        (400, 401, 403, 404, 429, 500, 502),
    ),
    "unlike_twitter": Published(
        "unlikeTwitter",
        {"tweet_id": ID},
        ("tweet_id",),
        "200",
        {"data": {"liked": FLAG}},
        (400, 401, 403, 404, 429, 500, 502),
    ),
    "follow_twitter": Published(
        "followTwitterUser",
        {"target_user_id": ID},
        ("target_user_id",),
        "200",
        {"data": {"following": FLAG, "pending_follow": FLAG}},
    ),
    "unfollow_twitter": Published(
        "unfollowTwitterUser", {"target_user_id": ID}, ("target_user_id",), "200", {"data": {"following": FLAG}}
    ),
    "post_twitter": Published(
        "postTwitter",
        POST_FIELDS,
        (),
        "201",
        {"data": {"id": ID, "text": TEXT}},
        (400, 401, 403, 404, 409, 429, 500, 502),
    ),
}
DOCUMENT = document(Settings())


def whole(value: Any) -> Any:
    """A schema of the document with its references followed."""
    if isinstance(value, list):
        return [whole(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        name = value["$ref"].removeprefix("#/components/schemas/")
        value = DOCUMENT["components"]["schemas"][name] | {key: other for key, other in value.items() if key != "$ref"}
    return {key: whole(inner) for key, inner in value.items()}


def same_rules(ours: dict[str, Any], published: dict[str, Any], name: str) -> None:
    """What was published holds here; more may be said where it was silent."""
    for rule, value in published.items():
        if rule == "properties":
            assert set(ours["properties"]) == set(value), name
            for inner, schema in value.items():
                same_rules(ours["properties"][inner], schema, f"{name}.{inner}")
        elif rule == "items":
            same_rules(ours["items"], value, f"{name}[]")
        elif rule == "minItems":
            assert ours.get(rule, 0) == value, name
        else:
            assert ours[rule] == value, f"{name}: {rule}"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_endpoint_is_described_as_it_was(name: str) -> None:
    """Its name, fields and their rules, what is required, the answer, and each status."""
    published, ours = PUBLISHED[name], DOCUMENT["paths"][BASE + name]["post"]
    assert ours["operationId"] == published.operation_id
    assert ours["security"]
    body = whole(ours["requestBody"]["content"]["application/json"]["schema"])
    assert tuple(body.get("required", ())) == published.required
    assert ours["requestBody"]["required"] == (name != "auth_twitter")
    assert set(body["properties"]) - {"expected_username", "return_to"} == set(published.takes)
    for field, schema in published.takes.items():
        same_rules(body["properties"][field], schema, field)
    answer = whole(ours["responses"][published.status]["content"]["application/json"]["schema"])
    wanted = {key: {"properties": value} if key == "data" else value for key, value in published.answers.items()}
    same_rules(answer, {"properties": wanted}, name)
    assert {str(status) for status in published.refusals} <= set(ours["responses"])


def test_nothing_was_taken_away() -> None:
    """A success other than the published one would break a client."""
    for name, published in PUBLISHED.items():
        responses = DOCUMENT["paths"][BASE + name]["post"]["responses"]
        assert [status for status in responses if status.startswith("2")] == [published.status]


CALLS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("like_twitter", {"tweet_id": POST}, {"data": {"liked": True}}),
    ("unlike_twitter", {"tweet_id": POST}, {"data": {"liked": False}}),
    ("follow_twitter", {"target_user_id": GRACE}, {"data": {"following": True, "pending_follow": False}}),
    ("unfollow_twitter", {"target_user_id": GRACE}, {"data": {"following": False}}),
]


@pytest.mark.parametrize(("name", "body", "said"), CALLS, ids=lambda item: item if isinstance(item, str) else "")
async def test_an_action_answers_to_the_byte(
    linked: House, name: str, body: dict[str, Any], said: dict[str, Any]
) -> None:
    """The published answer and nothing more; a second call says the same."""
    for _ in range(2):
        answer = await linked.call(name, body)
        assert (answer.status_code, answer.json()) == (200, said)
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("body", [None, {}, {"scopes": ["follows.write", "tweet.read", "users.read"]}])
async def test_a_link_begins_with_exactly_three_members(house: House, body: dict[str, Any] | None) -> None:
    """The body may be left out."""
    answer = await house.call("auth_twitter", body)
    assert answer.status_code == 200
    assert list(answer.json()) == ["auth_url", "state", "expires_at"]
    assert answer.json()["state"] in answer.json()["auth_url"]


POSTS: dict[str, dict[str, Any]] = {
    "plain": {"text": "Hello, World!"},
    "reply": {
        "text": "Totally agree 👌",
        "reply": {"in_reply_to_tweet_id": POST, "auto_populate_reply_metadata": True},
    },
    "poll": {"text": "Pick one:", "poll": {"options": ["Option A", "Option B", "Option C"], "duration_minutes": 60}},
    "quote": {"text": "Worth reading:", "quote_tweet_id": POST},
}


@pytest.mark.parametrize("name", POSTS)
async def test_a_post_answers_201_with_id_and_text(linked: House, name: str) -> None:
    """As X stored it."""
    answer = await linked.call("post_twitter", POSTS[name])
    assert answer.status_code == 201
    data = answer.json()["data"]
    assert answer.json() == {"data": {"id": data["id"], "text": POSTS[name]["text"]}}
    assert (await linked.post_of(data["id"]))["text"] == POSTS[name]["text"]


async def test_a_post_can_be_edited(linked: House) -> None:
    """The answer names the edit."""
    first = (await linked.call("post_twitter", {"text": "A tpyo"})).json()["data"]["id"]
    edit = {"text": "A typo", "edit_options": {"previous_post_id": first}}
    answer = await linked.call("post_twitter", edit)
    assert answer.status_code == 201
    assert answer.json()["data"]["text"] == "A typo"


@pytest.mark.parametrize("name", [name for name, published in PUBLISHED.items() if published.required])
@pytest.mark.parametrize("sent", ["", "12a", "+1", "1" * 20, "1\n", 1346889436626259968, None, ["1"]])
@pytest.mark.asyncio(loop_scope="module")
async def test_an_id_that_is_none_is_an_invalid_request(shared_house: House, name: str, sent: object) -> None:
    """400 invalid-request, whether it is malformed or absent."""
    field = PUBLISHED[name].required[0]
    for body in ({field: sent}, {}):
        answer = await shared_house.call(name, body)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert answer.json()["error"]["code"] == "invalid-request"


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.asyncio(loop_scope="module")
async def test_without_a_key_it_is_401(shared_house: House, name: str) -> None:
    """Before anything else is looked at."""
    answer = await shared_house.bare.post(API + name, json={"tweet_id": "x"})
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "authentication_error"
    assert answer.json()["error"]["code"] == "missing_api_key"


@pytest.mark.parametrize(
    ("name", "body"), [(name, body) for name, body, _ in CALLS] + [("post_twitter", POSTS["plain"])]
)
async def test_without_a_link_it_is_403(house: House, name: str, body: dict[str, Any]) -> None:
    """client-forbidden, with the way to link in its fix."""
    answer = await house.call(name, body)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "client-forbidden"
    assert "auth_twitter" in answer.json()["error"]["fix"]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_scope_that_x_does_not_have_is_400(shared_house: House) -> None:
    """As published: an invalid scopes list."""
    answer = await shared_house.call("auth_twitter", {"scopes": ["tweets.write"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid-request")


@pytest.mark.parametrize(
    "more", [{"poll": POSTS["poll"]["poll"]}, {"media": {"media_ids": ["1"]}}, {"card_uri": "card://1"}]
)
@pytest.mark.asyncio(loop_scope="module")
async def test_what_excludes_one_another_is_400(shared_house: House, more: dict[str, Any]) -> None:
    """At most one of media, poll, quote_tweet_id and card_uri."""
    answer = await shared_house.call("post_twitter", {"text": "x", "quote_tweet_id": POST, **more})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (400, "mutually_exclusive")
