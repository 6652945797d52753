"""The relay dialect: existing clients are served unchanged, and no other client sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from harness.gateway import API, GRACE, PNG, POST, RunningGateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import httpx2

SHORT = "/apis/v1/"
Files = list[tuple[str, tuple[str | None, bytes | str] | tuple[str | None, bytes | str, str | None]]]


@pytest.fixture
def key(linked: RunningGateway) -> dict[str, str]:
    """The key as older clients send it."""
    return {"aisa_api_key": linked.raw_key}


async def send(
    running: RunningGateway, name: str, body: dict[str, Any], how: str = "json", base: str = API
) -> httpx2.Response:
    """Without a header, in one of three encodings."""
    if how == "json":
        return await running.bare.post(base + name, json=body)
    if how == "form":
        return await running.bare.post(base + name, data=body)
    return await running.bare.post(base + name, files={name: (None, value) for name, value in body.items()})


@pytest.mark.parametrize("how", ["json", "form", "multipart"])
@pytest.mark.parametrize("base", [API, SHORT])
async def test_a_like_with_the_key_in_the_body(
    linked: RunningGateway, key: dict[str, str], how: str, base: str
) -> None:
    """In each encoding and on both paths: the integer 200 that those clients look for."""
    answer = await send(linked, "like_twitter", {**key, "tweet_id": POST}, how, base)
    assert (answer.status_code, answer.content) == (200, b'{"code":200,"msg":"ok","data":{"liked":true}}')
    assert answer.headers["x-ratelimit-limit"] == "3000"


@pytest.mark.parametrize("how", ["json", "form", "multipart"])
async def test_a_post_in_the_old_spelling(linked: RunningGateway, key: dict[str, str], how: str) -> None:
    """Content and type: the post's id comes back under both names, with 200."""
    body = {**key, "content": "an old client", "type": "reply", "in_reply_to_tweet_id": POST}
    answer = await send(linked, "post_twitter", body, how)
    data = answer.json()["data"]
    assert (answer.status_code, answer.json()["code"], list(data)) == (200, 200, ["tweet_id", "id", "text"])
    assert (await linked.post_of(data["tweet_id"]))["in_reply_to_tweet_id"] == POST


async def test_the_first_part_of_a_thread_has_a_type_and_no_id(linked: RunningGateway, key: dict[str, str]) -> None:
    """The type is only a hint."""
    answer = await send(linked, "post_twitter", {**key, "content": "one", "type": "reply"})
    assert answer.json()["msg"] == "ok"
    quote = await send(linked, "post_twitter", {**key, "content": "two", "type": "quote", "quote_tweet_id": POST})
    assert (await linked.post_of(quote.json()["data"]["id"]))["quote_tweet_id"] == POST


async def test_content_wins_over_text_unless_it_is_empty(linked: RunningGateway, key: dict[str, str]) -> None:
    """As the contract says."""
    first = await send(linked, "post_twitter", {**key, "content": "content", "text": "text"})
    second = await send(linked, "post_twitter", {**key, "content": "", "text": "text"})
    assert [answer.json()["data"]["text"] for answer in (first, second)] == ["content", "text"]


async def test_a_post_brings_its_two_files(linked: RunningGateway) -> None:
    """Uploaded, then attached, in their order."""
    files: Files = [
        ("aisa_api_key", (None, linked.raw_key)),
        ("content", (None, "two images")),
        ("media_files", ("a.png", PNG, "image/png")),
        ("media_files", ("b.png", PNG, "image/png")),
    ]
    answer = await linked.bare.post(API + "post_twitter", files=files)
    assert answer.status_code == 200, answer.text
    assert len((await linked.post_of(answer.json()["data"]["tweet_id"]))["media_ids"]) == 2


async def test_files_before_the_key_are_not_read(linked: RunningGateway) -> None:
    """A stranger's file goes no further than its beginning."""
    files: Files = [("media_files", ("a.png", PNG, "image/png")), ("aisa_api_key", (None, linked.raw_key))]
    answer = await linked.bare.post(API + "post_twitter", files=files)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (401, "key_missing")


@pytest.mark.parametrize("how", ["json", "form"])
async def test_ids_of_media_in_the_old_place(linked: RunningGateway, key: dict[str, str], how: str) -> None:
    """media_ids at the top level, as a list or in a row."""
    upload = await linked.client.post(API + "upload_media", files={"media_files": ("a.png", PNG, "image/png")})
    media_id = upload.json()["data"]["media_id"]
    body: dict[str, Any] = {**key, "content": "with media", "media_ids": [media_id] if how == "json" else media_id}
    answer = await send(linked, "post_twitter", body, how)
    assert (await linked.post_of(answer.json()["data"]["id"]))["media_ids"] == [media_id]


async def test_authorizing_follows_and_the_rest_speak_it_too(linked: RunningGateway, key: dict[str, str]) -> None:
    """Every POST of a key, each with its documented data inside."""
    auth = (await send(linked, "auth_twitter", {**key, "callback_url": "https://example.com/cb"})).json()
    assert (auth["code"], list(auth["data"])) == (200, ["auth_url", "state", "expires_at"])
    follow = await send(linked, "follow_twitter", {**key, "target_user_id": GRACE}, base=SHORT)
    assert follow.json()["data"] == {"following": True, "pending_follow": False}
    assert (await send(linked, "unlike_twitter", {**key, "tweet_id": POST})).json()["data"] == {"liked": False}


async def test_refusals_keep_the_documented_body_and_status(linked: RunningGateway, key: dict[str, str]) -> None:
    """Only success is wrapped."""
    answer = await send(linked, "like_twitter", {**key, "tweet_id": "x"})
    assert (answer.status_code, list(answer.json())) == (400, ["error"])


async def test_the_same_key_in_header_and_body_is_one_key(linked: RunningGateway, key: dict[str, str]) -> None:
    """Another one is refused; and one call is spent, not two."""
    both = await linked.call("like_twitter", {**key, "tweet_id": POST})
    assert both.json()["code"] == 200
    remaining = int(both.headers["x-ratelimit-remaining"])
    _, other = await linked.gateway.keys.create("test", "other")
    answer = await linked.call("like_twitter", {"aisa_api_key": other, "tweet_id": POST})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (401, "key_mismatch")
    assert int(answer.headers["x-ratelimit-remaining"]) == remaining - 1


@pytest.mark.parametrize("value", [1, None, "", "bw_test_short", ["x"]])
async def test_a_malformed_key_in_the_body_is_refused_as_a_key(linked: RunningGateway, value: object) -> None:
    """It speaks the dialect, and it speaks it badly."""
    answer = await linked.bare.post(API + "like_twitter", json={"aisa_api_key": value, "tweet_id": POST})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (401, "key_malformed")


async def test_without_the_member_nothing_of_it_is_there(linked: RunningGateway) -> None:
    """Not one byte more than documented: no spellings, no encodings, no envelope."""
    for body in ({"content": "x"}, {"text": "x", "type": "reply"}, {"text": "x", "media_ids": ["1"]}):
        assert (await linked.call("post_twitter", body)).json()["error"]["reason"] == "unknown_field"
    assert (await linked.client.post(API + "like_twitter", data={"tweet_id": POST})).status_code == 415
    multipart = await linked.client.post(API + "like_twitter", files={"tweet_id": (None, POST)})
    assert multipart.status_code == 415
    assert (await linked.like()).content == b'{"data":{"liked":true}}'
    assert (await linked.bare.post(API + "like_twitter", data={"tweet_id": POST})).status_code == 401


@pytest.fixture
async def plain(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    """A gateway whose operator turned the dialect off."""
    async with RunningGateway.built(tmp_path, relay_dialect=False) as running:
        await running.link("ada")
        yield running


async def test_an_operator_can_turn_it_off(plain: RunningGateway) -> None:
    """Then the member is an unknown one, and the short paths are not there."""
    body = {"aisa_api_key": plain.raw_key, "tweet_id": POST}
    assert (await plain.bare.post(API + "like_twitter", json=body)).json()["error"]["reason"] == "key_missing"
    assert (await plain.call("like_twitter", body)).json()["error"]["reason"] == "unknown_field"
    assert (await plain.client.post(SHORT + "like_twitter", json={"tweet_id": POST})).status_code == 404
    assert (await plain.state())["likes"] == []


async def test_a_field_of_any_type_of_bytes_is_a_field(linked: RunningGateway) -> None:
    """Some of those clients call every part application/octet-stream, and give no filename."""
    body = {"aisa_api_key": linked.raw_key, "content": "typed", "in_reply_to_tweet_id": POST}
    files: Files = [(name, (None, value, "application/octet-stream")) for name, value in body.items()]
    posted = await linked.bare.post(API + "post_twitter", files=files)
    pictured = await linked.bare.post(
        API + "post_twitter", files=[*files[:1], ("media_files", (None, PNG, "application/octet-stream"))]
    )
    assert (posted.status_code, pictured.status_code) == (200, 200)
    assert (await linked.post_of(posted.json()["data"]["id"]))["in_reply_to_tweet_id"] == POST


async def test_an_empty_part_alongside_a_file_is_not_a_second_file(linked: RunningGateway) -> None:
    """An empty input of a form."""
    files: Files = [
        ("aisa_api_key", (None, linked.raw_key)),
        ("media", (None, "")),
        ("media_files", ("a.png", PNG, "image/png")),
    ]
    answer = await linked.bare.post(API + "upload_media", files=files)
    assert (answer.status_code, answer.json()["code"]) == (200, 200)


async def test_a_bad_file_is_named_if_a_part_before_it_has_the_key(linked: RunningGateway) -> None:
    """And a bad key before it is named instead."""
    files: Files = [("media_files", ("a.png", PNG, "image/png"))] * 5

    async def reason(*parts: tuple[str, Any]) -> tuple[int, str]:
        answer = await linked.bare.post(API + "post_twitter", files=[*parts, *files])
        return answer.status_code, answer.json()["error"]["reason"]

    assert await reason(("aisa_api_key", (None, linked.raw_key))) == (400, "media_files_malformed")
    assert await reason(("aisa_api_key", (None, linked.raw_key[:-1]))) == (401, "key_malformed")
    assert await reason() == (401, "key_missing")


async def test_fields_alongside_a_file_stay_small(linked: RunningGateway) -> None:
    """A file may be large; the words around it may not."""
    files: Files = [
        ("aisa_api_key", (None, linked.raw_key)),
        ("media_files", ("a.png", PNG, "image/png")),
        ("content", (None, "a" * 100_000)),
    ]
    answer = await linked.bare.post(API + "post_twitter", files=files)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (413, "body_too_large")


async def test_an_unpaired_surrogate_is_not_a_key(linked: RunningGateway) -> None:
    """Only an escape can bring one in; no key has it, and nothing of it is hashed."""
    body = rb'{"aisa_api_key":"\ud800","tweet_id":"1"}'
    answer = await linked.bare.post(API + "like_twitter", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (401, "key_malformed")
