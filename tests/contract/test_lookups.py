"""The look-ups, in the shapes that published clients read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from birdwire.sandbox.state import seed
from harness.gateway import API, RunningGateway

if TYPE_CHECKING:
    from pathlib import Path

    import httpx2


async def get(running: RunningGateway, path: str, **query: str) -> httpx2.Response:
    """A look-up."""
    return await running.client.get(API + path, params=query)


async def test_a_user_is_found_by_name_and_asked_for_once(linked: RunningGateway) -> None:
    """X bills each look, so a second one within the minute costs nothing."""
    answers = [(await get(linked, "user/info", userName=name)).json() for name in ("grace", "@Grace")]
    assert answers[0] == answers[1]
    assert answers[0]["status"] == "success"
    assert {"id": seed.OTHER_USER_ID, "userName": "grace"}.items() <= answers[0]["data"].items()
    assert len(await linked.calls("/2/users/by/username")) == 1


@pytest.mark.parametrize("path", ["user/info", "user/last_tweets"])
async def test_an_unknown_user_is_not_found(linked: RunningGateway, path: str) -> None:
    """X says 200 with errors; we say 404."""
    answer = await get(linked, path, userName="nobody_here")
    assert (answer.status_code, answer.json()["error"]["reason"]) == (404, "user_not_found")


async def test_a_protected_account_s_posts_are_not_found(linked: RunningGateway) -> None:
    """X answers 200 with an error that says so; the account itself can be seen."""
    pat = (await get(linked, "user/info", userName="pat")).json()["data"]
    assert pat["protected"] is True
    for query in ({"userName": "pat"}, {"userId": pat["id"]}):
        answer = await get(linked, "user/last_tweets", **query)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["reason"]) == (404, "resource-not-found", "user_not_found")
        assert "protected" in error["fix"]
        assert error["upstream"]["status"] == 200


@pytest.mark.parametrize("query", [{"userName": "grace"}, {"userId": seed.OTHER_USER_ID}])
async def test_a_users_newest_posts_come_in_the_old_shape(linked: RunningGateway, query: dict[str, str]) -> None:
    """Newest first, each with its author, address and X's old form of time."""
    answer = (await get(linked, "user/last_tweets", **query)).json()
    posts = answer["data"]["tweets"]
    assert [post["id"] for post in posts] == sorted((post["id"] for post in posts), key=int, reverse=True)
    assert list(posts[0]) == ["id", "text", "createdAt", "url", "author"]
    assert posts[0]["author"]["userName"] == "grace"
    assert posts[0]["url"] == f"https://x.com/grace/status/{posts[0]['id']}"
    assert posts[0]["createdAt"].split()[4] == "+0000"
    assert answer["has_next_page"] is False


async def test_a_long_timeline_has_pages(linked: RunningGateway) -> None:
    """The cursor of one leads to the next, without a post twice."""
    for number in range(25):
        await linked.call("post_twitter", {"text": f"post {number}"})
    first = (await get(linked, "user/last_tweets", userName="ada")).json()
    second = (await get(linked, "user/last_tweets", userName="ada", cursor=first["next_cursor"])).json()
    ids = [[post["id"] for post in page["data"]["tweets"]] for page in (first, second)]
    assert first["has_next_page"] is True
    assert len(ids[0]) == 20
    assert not set(ids[0]) & set(ids[1])


async def test_users_are_searched_for(linked: RunningGateway) -> None:
    """Both spellings of a name are there, and nobody found is an empty list."""
    found = (await get(linked, "user/search", query="grace")).json()
    assert found["users"][0] == {**found["users"][0], "screen_name": "grace", "userName": "grace"}
    assert (await get(linked, "user/search", query="zzzz")).json() == {"status": "success", "users": []}


@pytest.mark.parametrize(
    ("path", "query", "reason"),
    [
        ("user/info", {}, "userName_missing"),
        ("user/info", {"userName": "a-b"}, "userName_malformed"),
        ("user/info", {"userName": "a" * 16}, "userName_malformed"),
        ("user/info", {"userName": "grace", "x": "1"}, "unknown_field"),
        ("user/last_tweets", {}, "mutually_exclusive"),
        ("user/last_tweets", {"userId": "1\n"}, "userId_malformed"),
        ("user/search", {"query": "a" * 51}, "query_malformed"),
    ],
)
async def test_a_query_that_cannot_be_names_its_parameter(
    linked: RunningGateway, path: str, query: dict[str, str], reason: str
) -> None:
    """400, before X is asked."""
    answer = await get(linked, path, **query)
    error = answer.json()["error"]
    assert (answer.status_code, error["reason"]) == (400, reason)
    assert "body" not in error["message"].lower()


async def test_an_operator_can_switch_look_ups_off(tmp_path: Path) -> None:
    """One by one: a disabled look-up has no endpoint."""
    async with RunningGateway.built(tmp_path, reads="user/info") as running:
        await running.link("ada")
        assert (await get(running, "user/info", userName="grace")).status_code == 200
        assert (await get(running, "user/search", query="grace")).json()["error"]["code"] == "unknown_endpoint"
