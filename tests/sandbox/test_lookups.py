"""Look-ups, timelines and search: what is shown, in which spelling, and how absence is said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from birdwire.sandbox.state.seed import (
    DELETED_POST_ID,
    OTHER_USER_ID,
    OTHER_USERNAME,
    PROTECTED_POST_ID,
    SUSPENDED_POST_ID,
    VISIBLE_POST_ID,
)

if TYPE_CHECKING:
    from sandbox.conftest import SandboxClient

TIMELINE = f"/2/users/{OTHER_USER_ID}/tweets"
PAT = "2244994948"


@pytest.fixture
async def token(x: SandboxClient) -> str:
    """Ada's access token."""
    access_token: str = (await x.link())["access_token"]
    return access_token


async def get(x: SandboxClient, token: str, path: str) -> Any:
    """The body of a look-up; it must be a 200."""
    answer = await x.call(token, "GET", path)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_user_is_found_by_name_and_id(x: SandboxClient, token: str) -> None:
    """In any case of letters; three members unless more is asked for."""
    expected = {"data": {"id": OTHER_USER_ID, "name": "Grace", "username": OTHER_USERNAME}}
    assert await get(x, token, "/2/users/by/username/GRACE") == expected
    assert await get(x, token, f"/2/users/{OTHER_USER_ID}") == expected
    many = await get(x, token, f"/2/users?ids={OTHER_USER_ID},99")
    assert many["data"] == [expected["data"]]
    assert many["errors"][0]["resource_id"] == "99"
    assert (await get(x, token, "/2/users/by?usernames=grace"))["data"] == [expected["data"]]


@pytest.mark.parametrize(
    "path",
    ["/2/users/by/username/nobody", "/2/users/by/username/gus", "/2/users/99", "/2/users/99/tweets", "/2/tweets/1"],
)
async def test_a_missing_user_or_post_is_a_200_without_data(x: SandboxClient, token: str, path: str) -> None:
    """With errors whose types X's own SDK accepts."""
    body = await get(x, token, path)
    assert body.keys() == {"errors"}
    assert body["errors"][0]["type"] == "https://api.x.com/2/problems/resource-not-found"


async def test_asked_fields_come_in_the_asked_spelling(x: SandboxClient, token: str) -> None:
    """Both spellings work; what is unknown is dropped without a word."""
    older = (await get(x, token, f"/2/tweets/{VISIBLE_POST_ID}?tweet.fields=public_metrics,shoe_size"))["data"]
    newer = (await get(x, token, f"/2/tweets/{VISIBLE_POST_ID}?post.fields=public_metrics&expansions=moon"))["data"]
    assert older.keys() == {"id", "text", "edit_history_tweet_ids", "public_metrics"}
    assert newer.keys() == {"id", "text", "edit_history_post_ids", "public_metrics"}
    user = (await get(x, token, f"/2/users/{OTHER_USER_ID}?user.fields=pinned_tweet_id,public_metrics,protected"))[
        "data"
    ]
    assert user["pinned_tweet_id"] == VISIBLE_POST_ID
    assert user["protected"] is False


@pytest.mark.parametrize("generation", ["2.166", "2.167", "mixed"])
@pytest.mark.parametrize("name", ["tweet.fields", "post.fields"])
async def test_counts_come_under_the_names_of_both_generations(
    x: SandboxClient, token: str, generation: str, name: str
) -> None:
    """Reposts of a post and posts of a user, however the question is spelt."""
    await x.control("config", generation=generation)
    reposted = await x.call(token, "POST", "/2/users/2244994945/retweets", json={"tweet_id": VISIBLE_POST_ID})
    assert reposted.status_code == 200
    post = (await get(x, token, f"/2/tweets/{VISIBLE_POST_ID}?{name}=public_metrics"))["data"]["public_metrics"]
    assert (post["retweet_count"], post["repost_count"]) == (1, 1)
    path = f"/2/users/{OTHER_USER_ID}?user.fields=public_metrics&{name}=id"
    user = (await get(x, token, path))["data"]["public_metrics"]
    assert (user["tweet_count"], user["post_count"]) == (3, 3)


async def test_the_author_comes_as_a_field_or_as_an_expansion(x: SandboxClient, token: str) -> None:
    """The expansion also brings the user."""
    field = await get(x, token, f"/2/tweets/{VISIBLE_POST_ID}?tweet.fields=author_id,created_at")
    assert field["data"]["author_id"] == OTHER_USER_ID
    assert field["data"]["created_at"].startswith("2021-01-06T")
    assert "includes" not in field
    expansion = await get(x, token, f"/2/tweets?ids={VISIBLE_POST_ID}&expansions=author_id")
    assert expansion["includes"]["users"][0]["username"] == OTHER_USERNAME


async def test_some_of_many_posts_may_be_missing(x: SandboxClient, token: str) -> None:
    """Data and errors together: deleted, protected, suspended."""
    ids = f"{VISIBLE_POST_ID},{DELETED_POST_ID},{PROTECTED_POST_ID},{SUSPENDED_POST_ID}"
    body = await get(x, token, f"/2/tweets?ids={ids}")
    assert [post["id"] for post in body["data"]] == [VISIBLE_POST_ID]
    assert [(error["resource_id"], error["type"].rsplit("/", 1)[-1]) for error in body["errors"]] == [
        (DELETED_POST_ID, "resource-not-found"),
        (PROTECTED_POST_ID, "not-authorized-for-resource"),
        (SUSPENDED_POST_ID, "resource-not-found"),
    ]


async def test_a_timeline_is_newest_first_in_pages(x: SandboxClient, token: str) -> None:
    """The pinned post in its place; the pages together hold each post once."""
    posts = [{"author": OTHER_USERNAME, "text": f"note {n}", "id": str(2 * 10**18 + n)} for n in range(12)]
    await x.control("seed", posts=posts)
    seen: list[str] = []
    more = ""
    while True:
        body = await get(x, token, f"{TIMELINE}?max_results=5{more}")
        page = [post["id"] for post in body["data"]]
        assert body["meta"]["result_count"] == len(page)
        assert (body["meta"]["newest_id"], body["meta"]["oldest_id"]) == (page[0], page[-1])
        seen += page
        if "next_token" not in body["meta"]:
            break
        more = f"&pagination_token={body['meta']['next_token']}"
    assert len(seen) == len(set(seen)) == 15
    assert seen == sorted(seen, key=int, reverse=True)
    assert VISIBLE_POST_ID in seen[5:]


async def test_a_timeline_can_be_narrowed(x: SandboxClient, token: str) -> None:
    """Without replies, between ids, between times."""
    reply = {
        "author": OTHER_USERNAME,
        "text": "well",
        "id": "1700000000000000000",
        "in_reply_to_tweet_id": VISIBLE_POST_ID,
    }
    await x.control("seed", posts=[reply])

    async def ids(query: str) -> list[str]:
        return [post["id"] for post in (await get(x, token, f"{TIMELINE}?{query}")).get("data", [])]

    assert reply["id"] in await ids("max_results=5")
    assert reply["id"] not in await ids("exclude=replies,retweets")
    assert await ids("since_id=1603419180975409154") == [reply["id"]]
    assert VISIBLE_POST_ID in await ids("until_id=1521943230163595264")
    assert await ids("start_time=0001-01-01T00:00:00%2B23:59&end_time=9999-12-31T23:59:59-23:59")
    assert await ids("start_time=2021-01-01T00:00:00Z&end_time=2021-12-31T00:00:00Z") == [VISIBLE_POST_ID]


async def test_an_empty_timeline_has_no_data(x: SandboxClient, token: str) -> None:
    """result_count 0 and nothing else."""
    await x.control("seed", users=[{"username": "eve", "id": "55"}])
    assert await get(x, token, "/2/users/55/tweets") == {"meta": {"result_count": 0}}


async def test_a_protected_timeline_is_for_followers(x: SandboxClient, token: str) -> None:
    """And for its owner."""
    body = await get(x, token, f"/2/users/{PAT}/tweets")
    assert body["errors"][0]["type"].endswith("/not-authorized-for-resource")
    pat = (await x.link("pat"))["access_token"]
    assert len((await get(x, pat, f"/2/users/{PAT}/tweets"))["data"]) == 2


async def test_users_are_searched_by_name(x: SandboxClient, token: str) -> None:
    """Suspended users are not found; pages continue; an empty result has no data."""
    names = [user["username"] for user in (await get(x, token, "/2/users/search?query=a"))["data"]]
    assert names == ["ada", "grace", "alan", "pat"]
    first = await get(x, token, "/2/users/search?query=a&max_results=3")
    rest = await get(x, token, f"/2/users/search?query=a&max_results=3&next_token={first['meta']['next_token']}")
    assert [user["username"] for user in first["data"] + rest["data"]] == names
    assert await get(x, token, "/2/users/search?query=gus") == {"meta": {}}


async def test_recent_posts_are_searched_by_terms(x: SandboxClient, token: str) -> None:
    """Words, phrases, authors, and what must not be there; a week back at most."""
    for text in ("the quick fox", "the quick red fox"):
        await x.call(token, "POST", "/2/tweets", json={"text": text})

    async def found(query: str) -> list[str]:
        path = f"/2/tweets/search/recent?query={query}"
        return [post["text"] for post in (await get(x, token, path)).get("data", [])]

    assert await found("quick%20fox") == ["the quick red fox", "the quick fox"]
    assert await found("%22quick%20fox%22%20from:ada") == ["the quick fox"]
    assert await found("fox%20-red") == ["the quick fox"]
    assert await found("fox%20from:grace") == []
    assert await found("relay") == []
    await x.control("config", access_token_s=10**7)
    token = (await x.link())["access_token"]
    await x.control("clock", advance_s=8 * 86_400)
    assert await found("fox") == []


@pytest.mark.parametrize(
    "path",
    [
        "/2/users/by/username/much-too-strange",
        "/2/users/by/username/sixteen_letters_",
        "/2/users/abc",
        "/2/users?ids=",
        "/2/tweets",
        "/2/tweets?ids=1,x",
        "/2/tweets?ids=" + ",".join(["1"] * 101),
        f"{TIMELINE}?max_results=4",
        f"{TIMELINE}?max_results=101",
        f"{TIMELINE}?max_results=ten",
        f"{TIMELINE}?pagination_token=b26v6",
        f"{TIMELINE}?since_id=x",
        f"{TIMELINE}?start_time=yesterday",
        "/2/users/search",
        "/2/users/search?query=%3Cscript%3E",
        "/2/tweets/search/recent?query=",
        "/2/tweets/search/recent?query=a&max_results=9",
    ],
)
async def test_a_wrong_parameter_is_a_400(x: SandboxClient, token: str, path: str) -> None:
    """X's invalid-request."""
    answer = await x.call(token, "GET", path)
    assert (answer.status_code, answer.json()["title"]) == (400, "Invalid Request")
