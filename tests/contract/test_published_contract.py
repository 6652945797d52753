"""The six original endpoints as published: what their clients may build on, written down here and in true calls."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from birdwire.sandbox.state import seed
from birdwire.settings import Settings
from birdwire.surfaces.openapi.document import document
from harness.gateway import API, GRACE, POST, RunningGateway, address, bound, gateway
from harness.raw_http import MEMBERS

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


def test_no_published_success_status_was_removed() -> None:
    """A success other than the published one would break a client: 202 needs a policy that asks a person."""
    for name, published in PUBLISHED.items():
        responses = DOCUMENT["paths"][BASE + name]["post"]["responses"]
        waits = ["202"] * (name != "auth_twitter")
        assert [status for status in responses if status.startswith("2")] == [published.status, *waits]


CALLS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("like_twitter", {"tweet_id": POST}, {"data": {"liked": True}}),
    ("unlike_twitter", {"tweet_id": POST}, {"data": {"liked": False}}),
    ("follow_twitter", {"target_user_id": GRACE}, {"data": {"following": True, "pending_follow": False}}),
    ("unfollow_twitter", {"target_user_id": GRACE}, {"data": {"following": False}}),
]


@pytest.mark.parametrize(("name", "body", "said"), CALLS, ids=lambda item: item if isinstance(item, str) else "")
async def test_an_action_answers_to_the_byte(
    linked: RunningGateway, name: str, body: dict[str, Any], said: dict[str, Any]
) -> None:
    """The published answer and nothing more; a second call says the same."""
    for _ in range(2):
        answer = await linked.call(name, body)
        assert (answer.status_code, answer.json()) == (200, said)
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("body", [None, {}, {"scopes": ["follows.write", "tweet.read", "users.read"]}])
async def test_a_link_begins_with_exactly_three_members(running: RunningGateway, body: dict[str, Any] | None) -> None:
    """The body may be left out."""
    answer = await running.call("auth_twitter", body)
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
async def test_a_post_answers_201_with_id_and_text(linked: RunningGateway, name: str) -> None:
    """As X stored it."""
    answer = await linked.call("post_twitter", POSTS[name])
    assert answer.status_code == 201
    data = answer.json()["data"]
    assert answer.json() == {"data": {"id": data["id"], "text": POSTS[name]["text"]}}
    assert (await linked.post_of(data["id"]))["text"] == POSTS[name]["text"]


async def test_a_post_can_be_edited(linked: RunningGateway) -> None:
    """The answer names the edit."""
    first = (await linked.call("post_twitter", {"text": "A tpyo"})).json()["data"]["id"]
    edit = {"text": "A typo", "edit_options": {"previous_post_id": first}}
    answer = await linked.call("post_twitter", edit)
    assert answer.status_code == 201
    assert answer.json()["data"]["text"] == "A typo"


@pytest.mark.parametrize("name", [name for name, published in PUBLISHED.items() if published.required])
@pytest.mark.parametrize("sent", ["", "12a", "+1", "1" * 20, "1\n", 1346889436626259968, None, ["1"]])
@pytest.mark.asyncio(loop_scope="module")
async def test_a_malformed_id_is_an_invalid_request(shared_gateway: RunningGateway, name: str, sent: object) -> None:
    """400 invalid-request, whether it is malformed or absent."""
    field = PUBLISHED[name].required[0]
    for body in ({field: sent}, {}):
        answer = await shared_gateway.call(name, body)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert answer.json()["error"]["code"] == "invalid-request"


@pytest.mark.parametrize(
    "more", [{"poll": POSTS["poll"]["poll"]}, {"media": {"media_ids": ["1"]}}, {"card_uri": "card://1"}]
)
@pytest.mark.asyncio(loop_scope="module")
async def test_mutually_exclusive_fields_are_refused_with_400(
    shared_gateway: RunningGateway, more: dict[str, Any]
) -> None:
    """At most one of media, poll, quote_tweet_id and card_uri."""
    answer = await shared_gateway.call("post_twitter", {"text": "x", "quote_tweet_id": POST, **more})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (400, "mutually_exclusive")


# Row by row: each operation and each status that was published for it, as a gateway answers it that runs.

LIKES, FOLLOWS = ("like_twitter", "unlike_twitter"), ("follow_twitter", "unfollow_twitter")
ACTING = (*LIKES, *FOLLOWS, "post_twitter")
ALL = tuple(PUBLISHED)
BODIES: dict[str, Any] = {
    "auth_twitter": {},
    **{name: {"tweet_id": POST} for name in LIKES},
    **{name: {"target_user_id": GRACE} for name in FOLLOWS},
    "post_twitter": {"text": "Hello, World!"},
}
SCOPES = ["tweet.read", "users.read", "offline.access"]
PAST_THE_WINDOW_S = 3_601
"""X's edit window is an hour at most."""

Provoked = Callable[["RunningGateway", str], Awaitable[httpx2.Response]]


async def sound(running: RunningGateway, name: str) -> httpx2.Response:
    """A call that was published."""
    return await running.call(name, BODIES[name])


def sent(body: dict[str, Any]) -> Provoked:
    """A call with this body."""
    return lambda running, name: running.call(name, body)


def authorized(value: str | None) -> Provoked:
    """A call with this Authorization header, or without one."""
    headers = {} if value is None else {"authorization": value}
    return lambda running, name: running.bare.post(API + name, json=BODIES[name], headers=headers)


def with_x(do: dict[str, Any]) -> Provoked:
    """A call while X does this."""

    async def call(running: RunningGateway, name: str) -> httpx2.Response:
        for path in ("/2/users/*", "/2/tweets"):
            await running.fault("*", path, do, times=None)
        return await sound(running, name)

    return call


async def revoked(running: RunningGateway, name: str) -> httpx2.Response:
    """A key that the operator revoked."""
    key, raw_key = await running.gateway.keys.create("test", name, "growth", None)
    await running.gateway.keys.revoke(key.key_id)
    return await authorized(f"Bearer {raw_key}")(running, name)


async def unlinked(running: RunningGateway, name: str) -> httpx2.Response:
    """A key without a link."""
    _, raw_key = await running.gateway.keys.create("test", name, "growth", None)
    return await authorized(f"Bearer {raw_key}")(running, name)


async def spent(running: RunningGateway, name: str) -> httpx2.Response:
    """The second call of a key that may make one a minute."""
    _, raw_key = await running.gateway.keys.create("test", name, "growth", 1)
    await authorized(f"Bearer {raw_key}")(running, name)
    return await authorized(f"Bearer {raw_key}")(running, name)


async def unticked(running: RunningGateway, name: str) -> httpx2.Response:
    """A link whose owner approved reading alone."""
    await running.link("ada", scopes=SCOPES)
    return await sound(running, name)


async def ended(running: RunningGateway, name: str) -> httpx2.Response:
    """A link that its owner ended at X."""
    (await running.x.post("/_sandbox/users/2244994945/revoke_app")).raise_for_status()
    return await sound(running, name)


async def repeated(running: RunningGateway, name: str) -> httpx2.Response:
    """The same once more: it was in place already."""
    await sound(running, name)
    return await sound(running, name)


async def posted(running: RunningGateway, text: str) -> str:
    """Post something; its id."""
    return str((await running.call("post_twitter", {"text": text})).raise_for_status().json()["data"]["id"])


async def edit_of_a_deleted_post(running: RunningGateway, name: str) -> httpx2.Response:
    """The target is one that this gateway deleted."""
    previous = await posted(running, "to be deleted")
    (await running.call("delete_twitter", {"tweet_id": previous})).raise_for_status()
    return await running.call(name, {"text": "x", "edit_options": {"previous_post_id": previous}})


async def late_edit(running: RunningGateway, name: str) -> httpx2.Response:
    """The target is older than X's edit window."""
    previous = await posted(running, "an old post")
    await running.advance_x(PAST_THE_WINDOW_S)
    running.clock.advance(seconds=PAST_THE_WINDOW_S)
    return await running.call(name, {"text": "x", "edit_options": {"previous_post_id": previous}})


async def broken(running: RunningGateway, name: str) -> httpx2.Response:
    """Cause an internal error: a key whose row has a value that Birdwire never writes."""
    key, raw_key = await running.gateway.keys.create("test", name, "growth", None)
    with contextlib.closing(sqlite3.connect(running.directory / "birdwire.db", isolation_level=None)) as database:
        database.execute("UPDATE api_keys SET actions = '{' WHERE key_id = ?", (key.key_id,))
    return await authorized(f"Bearer {raw_key}")(running, name)


async def without_x(running: RunningGateway, name: str) -> httpx2.Response:
    """A gateway on the same database, for which X is where nothing listens."""
    with bound() as listener:
        nowhere = address(listener)
    async with contextlib.AsyncExitStack() as stack:
        lost = await stack.enter_async_context(gateway(running.directory, running.sandbox, nowhere, stack))
        lost.client.headers["authorization"] = f"Bearer {running.raw_key}"
        return await sound(lost, name)


PROTECTED, GONE = seed.PROTECTED_POST_ID, seed.DELETED_POST_ID
INVALID, FORBIDDEN, ABSENT = "invalid-request", "client-forbidden", "resource-not-found"
MISSING = "missing_parameter"
BOTH = {"text": "x", "quote_tweet_id": POST, "poll": {"options": ["a", "b"], "duration_minutes": 60}}
REPLY, QUOTE = {"text": "x", "reply": {"in_reply_to_tweet_id": GONE}}, {"text": "x", "quote_tweet_id": GONE}
EDIT = {"text": "x", "edit_options": {"previous_post_id": GONE}}
LOST = "outcome_unknown"
POSTING = ("post_twitter",)


@dataclass(frozen=True)
class Row:
    """What was published of some operations: what happens, the status, the code (of a success: none), our reason.

    `decided`: this was published otherwise or not at all, and X's behaviour decides it.
    """

    names: tuple[str, ...]
    status: int
    what: str
    provoke: Provoked
    code: str = ""
    reason: str = ""
    decided: bool = False


ROWS = [
    Row(ALL[:-1], 200, "done", sound),
    Row(ALL[:-1], 200, "in place already", repeated),
    Row(POSTING, 201, "created", sound),
    Row(("auth_twitter",), 400, "an unsupported scope", sent({"scopes": ["tweets.write"]}), INVALID, "scope_unknown"),
    Row(LIKES, 400, "no tweet_id", sent({}), INVALID, "tweet_id_missing"),
    Row(LIKES, 400, "a malformed tweet_id", sent({"tweet_id": "x"}), INVALID, "tweet_id_malformed"),
    Row(FOLLOWS, 400, "no target_user_id", sent({}), INVALID, "target_user_id_missing"),
    Row(FOLLOWS, 400, "a malformed target_user_id", sent({"target_user_id": "x"}), INVALID, "target_user_id_malformed"),
    Row(POSTING, 400, "two of four", sent(BOTH), INVALID, "mutually_exclusive"),
    Row(POSTING, 400, "no text", sent({}), MISSING, "text_missing"),
    Row(POSTING, 400, "a reply to nothing", sent({"text": "x", "reply": {}}), MISSING, "in_reply_to_tweet_id_missing"),
    Row(POSTING, 400, "too long", sent({"text": "x" * 281}), INVALID, "text_too_long"),
    Row(ALL, 401, "no key", authorized(None), "missing_api_key", "key_missing"),
    Row(ALL, 401, "not a key", authorized("Bearer x"), "invalid_api_key", "key_malformed"),
    Row(ALL, 401, "a revoked key", revoked, "revoked_api_key", "key_revoked"),
    Row(ACTING, 403, "no session", unlinked, FORBIDDEN, "x_not_linked"),
    Row(ACTING, 403, "a session that ended", ended, FORBIDDEN, "x_session_expired"),
    Row(ACTING, 403, "without the scope", unticked, FORBIDDEN, "x_scope_missing"),
    Row(LIKES, 404, "a deleted post", sent({"tweet_id": GONE}), ABSENT, "tweet_not_found"),
    Row(LIKES, 404, "a post that ada may not see", sent({"tweet_id": PROTECTED}), ABSENT, "tweet_not_found"),
    Row(POSTING, 404, "a reply to a deleted post", sent(REPLY), ABSENT, "reply_target_not_found"),
    Row(POSTING, 404, "a quote of a deleted post", sent(QUOTE), ABSENT, "tweet_not_found"),
    Row(POSTING, 404, "an edit of a deleted post", edit_of_a_deleted_post, ABSENT, "tweet_not_found"),
    Row(POSTING, 409, "the same text again", repeated, "conflict", "duplicate_post"),
    Row(POSTING, 409, "an edit past the window", late_edit, "conflict", "edit_window_closed"),
    Row(ALL, 429, "the key's limit", spent, "rate_limit_exceeded", "rpm_exceeded"),
    Row(ACTING, 429, "X's limit", with_x({"error": "rate-limited"}), "upstream_rate_limit", "x_window_15m"),
    Row(ALL, 500, "a fault of Birdwire", broken, "internal_error", "internal"),
    Row(ACTING, 502, "X is unreachable", without_x, "upstream_unavailable", "x_unreachable"),
    Row(ACTING[:-1], 502, "X fails", with_x({"status": 503}), "upstream_unavailable", "x_5xx"),
    Row(FOLLOWS[:1], 404, "an unknown user", sent({"target_user_id": "404"}), ABSENT, "user_not_found", decided=True),
    Row(POSTING, 403, "an edit of an unknown post", sent(EDIT), FORBIDDEN, "x_refused", decided=True),
    Row(POSTING, 502, "X fails, and may have posted", with_x({"status": 503}), LOST, LOST),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def published(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    """Start one gateway for all rows."""
    async with RunningGateway.built(tmp_path_factory.mktemp("published")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def fresh(published: RunningGateway) -> AsyncIterator[RunningGateway]:
    """Give the gateway a new key, linked to ada; afterwards reset the sandbox, and let windows and breakers expire."""
    _, published.raw_key = await published.gateway.keys.create("test", "row", "growth", None)
    published.client.headers["authorization"] = f"Bearer {published.raw_key}"
    await published.link("ada")
    yield published
    await published.x.delete("/_sandbox/faults")
    (await published.x.post("/_sandbox/reset", json={})).raise_for_status()
    published.clock.advance(hours=25)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.status} {row.what}")
@pytest.mark.asyncio(loop_scope="module")
async def test_each_published_status_is_answered(fresh: RunningGateway, row: Row) -> None:
    """For each operation of the row: the status, the code, an error's members, and the way to link if that helps."""
    for name in row.names:
        answer = await row.provoke(fresh, name)
        if not row.code:
            assert answer.status_code == row.status, answer.text
            continue
        error = answer.json()["error"]
        assert (name, answer.status_code, error["code"], error["reason"]) == (name, row.status, row.code, row.reason)
        assert set(MEMBERS) <= set(error)
        if row.status == 403 and not row.decided:
            assert "auth_twitter" in error["fix"]


def test_the_rows_have_every_published_status() -> None:
    """And no other."""
    shown = {(name, row.status) for row in ROWS for name in row.names if not row.decided}
    assert shown == {
        (name, status)
        for name, published in PUBLISHED.items()
        for status in (int(published.status), *published.refusals)
    }
