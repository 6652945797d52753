"""What every API call meets: tokens, scopes, ids, windows, tiers, bills; and likes, follows, reposts, bookmarks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from birdwire.sandbox.state.seed import (
    DELETED_POST_ID,
    OTHER_USER_ID,
    PROTECTED_POST_ID,
    SUSPENDED_POST_ID,
    VISIBLE_POST_ID,
)

if TYPE_CHECKING:
    import httpx2

    from sandbox.conftest import SandboxClient

ADA = "2244994945"
PAT = "2244994948"
GUS = "2244994949"
LIKES = f"/2/users/{ADA}/likes"
FOLLOWING = f"/2/users/{ADA}/following"
GONE = "This tweet cannot be found."


async def like(x: SandboxClient, token: str, post_id: str = VISIBLE_POST_ID) -> httpx2.Response:
    """A like by ada."""
    return await x.call(token, "POST", LIKES, json={"tweet_id": post_id})


async def test_x_answers_unauthorized_without_a_valid_token(x: SandboxClient) -> None:
    """X's own bytes: two blanks of indentation, application/problem+json."""
    for headers in ({}, {"authorization": "Bearer made-up"}, {"authorization": "Basic YTpi"}):
        answer = await x.http.get("/2/users/me", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/problem+json"
        body = {"title": "Unauthorized", "type": "about:blank", "status": 401, "detail": "Unauthorized"}
        assert answer.text == json.dumps(body, indent=2)
        assert answer.headers["x-rate-limit-limit"] == "75"


async def test_an_apps_own_token_is_refused(x: SandboxClient) -> None:
    """403 unsupported-authentication: all of this is for people."""
    form = {"grant_type": "client_credentials"}
    token = (await x.http.post("/oauth2/token", data=form, auth=("confidential", "a-secret"))).json()["access_token"]
    answer = await x.call(token, "GET", "/2/users/me")
    assert answer.status_code == 403
    assert answer.json()["type"].endswith("/unsupported-authentication")


async def test_a_missing_scope_is_the_bare_forbidden(x: SandboxClient) -> None:
    """93 bytes, as seen at X."""
    token = (await x.link(scope="tweet.read users.read"))["access_token"]
    answer = await like(x, token)
    assert (answer.status_code, len(answer.content)) == (403, 93)


async def test_an_unknown_path_is_an_empty_404_without_limits(x: SandboxClient) -> None:
    """Also a method that a path does not have."""
    for method, path in (("GET", "/2/nothing"), ("PUT", LIKES), ("GET", "/2/users/me/")):
        answer = await x.http.request(method, path)
        assert (answer.status_code, answer.content) == (404, b"")
        assert "x-rate-limit-limit" not in answer.headers


async def test_every_answer_carries_xs_headers(x: SandboxClient) -> None:
    """Refusals, empty answers and the token endpoint included."""
    for answer in (await x.http.get("/2/users/me"), await x.http.get("/2/nothing"), await x.refresh("made-up")):
        for name in ("api-version", "x-transaction-id", "x-access-level", "date"):
            assert name in answer.headers


async def test_another_users_id_is_refused(x: SandboxClient) -> None:
    """X's sentence."""
    token = (await x.link())["access_token"]
    answer = await x.call(token, "POST", f"/2/users/{OTHER_USER_ID}/likes", json={"tweet_id": VISIBLE_POST_ID})
    assert answer.status_code == 400
    expected = f"The `id` query parameter value [{OTHER_USER_ID}] must be the same as the authenticating user [{ADA}]"
    assert answer.json()["errors"][0]["message"] == expected


@pytest.mark.parametrize("wrong", ["", "abc", "1" * 20, "-1", "1\n", "١٢٣", 5, None, ["1"], {"a": 1}])
async def test_a_malformed_id_is_refused(x: SandboxClient, wrong: Any) -> None:
    """1 to 19 ASCII digits, as a string."""
    token = (await x.link())["access_token"]
    answer = await x.call(token, "POST", LIKES, json={"tweet_id": wrong})
    assert answer.status_code == 400
    assert answer.json()["title"] == "Invalid Request"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"tweet_id":NaN}', b'{"a":"\\ud800"}', b"\xff"]
)
async def test_a_body_that_is_not_an_object_is_refused(x: SandboxClient, body: bytes) -> None:
    """X's 400, never a failure of the sandbox."""
    token = (await x.link())["access_token"]
    answer = await x.call(token, "POST", LIKES, content=body)
    assert answer.status_code == 400


async def test_extra_members_are_refused_except_by_the_older_generation(x: SandboxClient) -> None:
    """2.167 forbids them, 2.166 let them pass."""
    token = (await x.link())["access_token"]
    body = {"tweet_id": VISIBLE_POST_ID, "extra": 1}
    assert (await x.call(token, "POST", LIKES, json=body)).status_code == 400
    await x.control("config", generation="2.166")
    assert (await x.call(token, "POST", LIKES, json=body)).status_code == 200


async def test_liking_and_unliking_answer_the_same_however_often(x: SandboxClient) -> None:
    """And the state follows."""
    token = (await x.link())["access_token"]
    for _ in range(2):
        assert (await like(x, token)).json() == {"data": {"liked": True}}
    assert (await x.state())["likes"] == [{"user_id": ADA, "tweet_id": VISIBLE_POST_ID}]
    for _ in range(2):
        answer = await x.call(token, "DELETE", f"{LIKES}/{VISIBLE_POST_ID}")
        assert answer.json() == {"data": {"liked": False}}
    assert (await x.state())["likes"] == []


async def test_reposting_answers_with_the_reposts_id(x: SandboxClient) -> None:
    """rest_id, the same when repeated; plain id in the older generation."""
    token = (await x.link())["access_token"]
    path = f"/2/users/{ADA}/retweets"
    first = (await x.call(token, "POST", path, json={"tweet_id": VISIBLE_POST_ID})).json()["data"]
    assert first["retweeted"] is True
    assert (await x.call(token, "POST", path, json={"tweet_id": VISIBLE_POST_ID})).json()["data"] == first
    await x.control("config", generation="2.166")
    older = (await x.call(token, "POST", path, json={"tweet_id": VISIBLE_POST_ID})).json()["data"]
    assert older == {"retweeted": True, "id": first["rest_id"]}
    undone = await x.call(token, "DELETE", f"{path}/{VISIBLE_POST_ID}")
    assert undone.json() == {"data": {"retweeted": False}}
    assert (await x.state())["retweets"] == []


async def test_bookmarking_and_back(x: SandboxClient) -> None:
    """Twice each, the same answer."""
    token = (await x.link())["access_token"]
    path = f"/2/users/{ADA}/bookmarks"
    for _ in range(2):
        answer = await x.call(token, "POST", path, json={"tweet_id": VISIBLE_POST_ID})
        assert answer.json() == {"data": {"bookmarked": True}}
    for _ in range(2):
        answer = await x.call(token, "DELETE", f"{path}/{VISIBLE_POST_ID}")
        assert answer.json() == {"data": {"bookmarked": False}}


async def test_following_answers_by_the_target(x: SandboxClient) -> None:
    """Open: following; protected: pending; unknown: 200 with errors; suspended and oneself: the bare 403."""
    token = (await x.link())["access_token"]

    async def follow(target: str) -> httpx2.Response:
        return await x.call(token, "POST", FOLLOWING, json={"target_user_id": target})

    for _ in range(2):
        assert (await follow(OTHER_USER_ID)).json() == {"data": {"following": True, "pending_follow": False}}
        assert (await follow(PAT)).json() == {"data": {"following": False, "pending_follow": True}}
    nobody = await follow("99")
    assert nobody.status_code == 200
    assert nobody.json()["errors"][0]["resource_type"] == "user"
    assert "data" not in nobody.json()
    assert (await follow(GUS)).status_code == 403
    assert (await follow(ADA)).status_code == 403
    assert {"source_user_id": ADA, "target_user_id": PAT, "pending": True} in (await x.state())["follows"]
    for target in (OTHER_USER_ID, OTHER_USER_ID, PAT):
        answer = await x.call(token, "DELETE", f"{FOLLOWING}/{target}")
        assert answer.json() == {"data": {"following": False}}
    assert (await x.state())["follows"] == []


async def test_a_blocking_author_cannot_be_followed_nor_seen(x: SandboxClient) -> None:
    """Blocks are set up; posts of a blocking author count as deleted."""
    await x.control("seed", users=[{"username": "grace", "blocks": ["ada"]}])
    token = (await x.link())["access_token"]
    answer = await x.call(token, "POST", FOLLOWING, json={"target_user_id": OTHER_USER_ID})
    assert answer.status_code == 403
    assert (await like(x, token)).json()["errors"][0]["message"] == GONE


@pytest.mark.parametrize("post_id", [DELETED_POST_ID, PROTECTED_POST_ID, SUSPENDED_POST_ID, "1"])
async def test_a_deleted_or_hidden_post_cannot_be_found(x: SandboxClient, post_id: str) -> None:
    """400, not 404, for likes, unlikes and reposts."""
    token = (await x.link())["access_token"]
    answers = [
        await like(x, token, post_id),
        await x.call(token, "DELETE", f"{LIKES}/{post_id}"),
        await x.call(token, "POST", f"/2/users/{ADA}/retweets", json={"tweet_id": post_id}),
    ]
    for answer in answers:
        assert answer.status_code == 400
        assert answer.json()["errors"] == [{"message": GONE}]


async def test_a_hidden_post_can_be_refused_with_another_message(x: SandboxClient) -> None:
    """The switch `invisible`; a deleted post stays not found."""
    token = (await x.link())["access_token"]
    await x.control("config", invisible="not-authorized")
    answer = await like(x, token, PROTECTED_POST_ID)
    assert answer.status_code == 200
    assert answer.json()["errors"][0]["type"].endswith("/not-authorized-for-resource")
    await x.control("config", invisible="forbidden")
    assert (await like(x, token, PROTECTED_POST_ID)).status_code == 403
    assert (await like(x, token, DELETED_POST_ID)).status_code == 400


async def test_a_protected_author_can_like_their_own_post(x: SandboxClient) -> None:
    """Pat sees what Pat wrote."""
    token = (await x.link("pat"))["access_token"]
    answer = await x.call(token, "POST", f"/2/users/{PAT}/likes", json={"tweet_id": PROTECTED_POST_ID})
    assert answer.status_code == 200


async def test_a_suspended_account_gets_its_own_refusal(x: SandboxClient) -> None:
    """403 user-suspended, whatever it asks."""
    token = (await x.link("gus"))["access_token"]
    answer = await x.call(token, "GET", "/2/users/me")
    assert answer.status_code == 403
    assert answer.json()["type"].endswith("/user-suspended")


async def test_the_window_counts_down_and_closes(x: SandboxClient) -> None:
    """15 minutes; a 429 without Retry-After; open again after."""
    await x.control("config", likes_per_15m=2)
    token = (await x.link())["access_token"]
    seen = [
        (answer.status_code, answer.headers["x-rate-limit-remaining"])
        for answer in [await like(x, token) for _ in range(3)]
    ]
    assert seen == [(200, "1"), (200, "0"), (429, "0")]
    refused = await like(x, token)
    assert refused.json() == {
        "title": "Too Many Requests",
        "detail": "Too Many Requests",
        "type": "about:blank",
        "status": 429,
    }
    assert "retry-after" not in refused.headers
    await x.control("clock", advance_s=901)
    assert (await like(x, token)).status_code == 200


async def test_the_day_window_has_headers_of_its_own(x: SandboxClient) -> None:
    """x-user-limit-24hour-*; it outlasts the quarter hour."""
    await x.control("config", likes_per_24h=1)
    token = (await x.link())["access_token"]
    first = await like(x, token)
    assert first.headers["x-user-limit-24hour-limit"] == "1"
    await x.control("clock", advance_s=901)
    refused = await like(x, token)
    assert (refused.status_code, refused.headers["x-user-limit-24hour-remaining"]) == (429, "0")
    assert refused.headers["x-rate-limit-remaining"] == "50"
    await x.control("clock", advance_s=86_400)
    later = (await x.link())["access_token"]
    assert (await like(x, later)).status_code == 200


async def test_windows_are_by_user_and_endpoint(x: SandboxClient) -> None:
    """Ada's likes cost neither her unlikes nor Alan's likes; any endpoint's limit can be set."""
    await x.control("config", likes_per_15m=1, limits={"GET /2/users/me": 1})
    ada, alan = (await x.link("ada"))["access_token"], (await x.link("alan"))["access_token"]
    assert (await like(x, ada)).status_code == 200
    assert (await x.call(ada, "DELETE", f"{LIKES}/{VISIBLE_POST_ID}")).status_code == 200
    assert [(await x.call(alan, "GET", "/2/users/me")).status_code for _ in range(2)] == [200, 429]


@pytest.mark.parametrize(
    ("billing", "status", "mark"),
    [
        ("credits_depleted", 402, "CreditsDepleted"),
        ("spend_cap", 403, "SpendCapReached"),
        ("usage_cap", 429, "UsageCapExceeded"),
        ("user_not_enrolled", 403, "user-not-enrolled"),
    ],
)
async def test_a_bill_wins_and_leaves_the_limits_headers_alone(
    x: SandboxClient, billing: str, status: int, mark: str
) -> None:
    """The headers go on as if nothing were wrong."""
    token = (await x.link())["access_token"]
    await x.control("config", billing=billing)
    answer = await like(x, token)
    assert answer.status_code == status
    assert mark in answer.text
    assert answer.headers["x-rate-limit-remaining"] == "49"


async def test_credits_run_out_in_two_forms(x: SandboxClient) -> None:
    """Both 402 bodies."""
    token = (await x.link())["access_token"]
    await x.control("config", billing="credits_depleted", credits_form="credits-depleted-new")
    assert (await like(x, token)).json()["detail"] == "credits depleted"


@pytest.mark.parametrize(
    ("refusal", "mark"),
    [
        ("forbidden", '"Forbidden"'),
        ("client-not-enrolled", "client-not-enrolled"),
        ("access-level-453", "453"),
        ("not-permitted-feature", "not permitted to access this feature"),
    ],
)
async def test_self_serve_may_not_like_or_follow(x: SandboxClient, refusal: str, mark: str) -> None:
    """In every form that the refusal may have; undoing is free."""
    token = (await x.link())["access_token"]
    await like(x, token)
    await x.control("config", tier="self_serve_2026_04", tier_refusal=refusal)
    follow = await x.call(token, "POST", FOLLOWING, json={"target_user_id": OTHER_USER_ID})
    for answer in (await like(x, token), follow):
        assert answer.status_code == 403
        assert mark in answer.text
    assert (await x.call(token, "DELETE", f"{LIKES}/{VISIBLE_POST_ID}")).status_code == 200
    await x.control("config", tier_refuses_deletes=True)
    assert (await x.call(token, "DELETE", f"{LIKES}/{VISIBLE_POST_ID}")).status_code == 403


async def test_the_generation_decides_the_host_of_problem_types(x: SandboxClient) -> None:
    """Api.twitter.com before 2.167, api.x.com since."""
    token = (await x.link())["access_token"]
    for generation, host in (("2.166", "https://api.twitter.com/"), ("2.167", "https://api.x.com/")):
        await x.control("config", generation=generation)
        answer = await like(x, token, DELETED_POST_ID)
        assert answer.json()["type"].startswith(host)
        assert answer.headers["api-version"] == generation


async def test_the_date_follows_the_clock_and_its_skew(x: SandboxClient) -> None:
    """It is the only clock of theirs that clients see."""
    before = (await x.http.get("/2/users/me")).headers["date"]
    await x.control("clock", advance_s=86_400 * 365)
    moved = (await x.http.get("/2/users/me")).headers["date"]
    assert before != moved
    year = int(moved.split()[3])
    await x.control("config", date_skew_s=86_400 * 366)
    assert int((await x.http.get("/2/users/me")).headers["date"].split()[3]) == year + 1
