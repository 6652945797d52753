"""X's limits: learned from its replies, kept from being asked in vain, shared, and never another account's."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from harness.gateway import API, GRACE, POST, RunningGateway, gateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIKES = "/2/users/*/likes"


def refusal(answer: httpx2.Response) -> tuple[int, str, int]:
    """Status, reason and Retry-After of a refusal."""
    error = answer.json()["error"]
    return answer.status_code, error["reason"], int(answer.headers["retry-after"])


async def asked(running: RunningGateway) -> int:
    """How often X was asked to like."""
    return len(await running.calls("/2/users/", method="POST"))


@contextlib.asynccontextmanager
async def another_account(running: RunningGateway, username: str = "grace") -> AsyncIterator[httpx2.AsyncClient]:
    """A client with a key of its own, linked to another account."""
    _, raw_key = await running.gateway.keys.create("test", username, "growth", None)
    async with httpx2.AsyncClient(base_url=running.client.base_url, timeout=30) as client:
        client.headers["authorization"] = f"Bearer {raw_key}"
        auth_url = (await client.post(API + "auth_twitter")).json()["auth_url"]
        decision = {"auth_url": auth_url, "username": username, "action": "allow"}
        redirect = (await running.x.post("/_sandbox/consent", json=decision)).json()["redirect_to"]
        assert (await running.bare.get(redirect)).status_code == 200
        yield client


@contextlib.asynccontextmanager
async def another_gateway(running: RunningGateway) -> AsyncIterator[RunningGateway]:
    """A second gateway on the same database."""
    async with contextlib.AsyncExitStack() as stack:
        options: dict[str, Any] = {"database_url": running.settings.database_url}
        other = await stack.enter_async_context(
            gateway(running.directory, running.sandbox, str(running.settings.x_api_url), stack, **options)
        )
        other.client.headers["authorization"] = f"Bearer {running.raw_key}"
        yield other


async def exchange(*gateways: RunningGateway) -> None:
    """What the background does every few seconds, and now and then in full: now in full, whenever it last was."""
    for running in gateways:
        await running.gateway.clients.windows.sync(everything=True)


@pytest.mark.parametrize(
    ("limit", "reason", "longest_s"),
    [({"likes_per_15m": 2}, "x_window_15m", 900), ({"likes_per_24h": 2}, "x_window_24h", 86_400)],
)
async def test_a_window_that_a_success_showed_as_used_up_is_not_asked(
    linked: RunningGateway, limit: dict[str, int], reason: str, longest_s: int
) -> None:
    """The last call that was allowed said so; X is asked again when it resets."""
    await linked.configure(**limit)
    assert [(await linked.like()).status_code for _ in range(2)] == [200, 200]
    for _ in range(3):
        status, told, wait_s = refusal(await linked.like())
        assert (status, told) == (429, reason)
        assert longest_s - 60 <= wait_s <= longest_s
    assert await asked(linked) == 2
    for forward in (linked.clock.advance, linked.advance_x):
        moved = forward(seconds=wait_s)
        if moved is not None:
            await moved
    assert (await linked.like()).status_code == 200


@pytest.mark.trust("F31")
async def test_a_window_that_x_refused_for_is_not_asked_again(linked: RunningGateway) -> None:
    """Another client of the account may have used it up; the next caller costs no call."""
    await linked.fault("POST", LIKES, {"error": "rate-limited"})
    first, second = refusal(await linked.like()), refusal(await linked.like())
    assert (first[:2], second[:2]) == ((429, "x_window_15m"), (429, "x_window_15m"))
    assert await asked(linked) == 1
    assert (await linked.call("bookmark_twitter", {"tweet_id": POST})).status_code == 200


@pytest.mark.trust("F31")
async def test_one_accounts_window_affects_no_other_account(linked: RunningGateway) -> None:
    """Grace likes on while ada waits."""
    await linked.configure(likes_per_15m=1)
    assert [(await linked.like()).status_code for _ in range(2)] == [200, 429]
    async with another_account(linked) as grace:
        assert (await grace.post(API + "like_twitter", json={"tweet_id": POST})).status_code == 200


async def test_the_apps_window_applies_to_every_account(linked: RunningGateway) -> None:
    """X counts it for all accounts of the app, and says so."""
    await linked.configure(posts_per_24h=1)
    assert (await linked.call("post_twitter", {"text": "the last one"})).status_code == 201
    async with another_account(linked) as grace:
        answer = await grace.post(API + "post_twitter", json={"text": "one too many"})
    assert refusal(answer)[:2] == (429, "x_window_24h")
    assert len(await linked.calls("/2/tweets")) == 1


@pytest.mark.trust("F22")
@pytest.mark.parametrize(("skew_s", "least_s", "most_s"), [(600, 200, 300), (-600, 900, 900), (0, 840, 900)])
async def test_the_wait_goes_by_xs_own_clock_within_the_windows_length(
    linked: RunningGateway, skew_s: int, least_s: int, most_s: int
) -> None:
    """The reset minus X's Date; our own clock does not matter."""
    linked.clock.advance(minutes=10)
    await linked.configure(likes_per_15m=1, date_skew_s=skew_s)
    await linked.like()
    assert least_s <= refusal(await linked.like())[2] <= most_s


@pytest.mark.parametrize(
    ("reset", "wait_s"), [("1", 1), (None, 60), ("soon", 60), ("1000000000000000000", 60), ("99999999999", 60)]
)
@pytest.mark.trust("#258")
@pytest.mark.trust("#259")
async def test_a_reset_that_cannot_be_holds_the_window_for_a_moment(
    linked: RunningGateway, reset: str | None, wait_s: int
) -> None:
    """For the stated wait; then X is called again."""
    headers = {"x-rate-limit-remaining": "0"} | ({"x-rate-limit-reset": reset} if reset else {})
    await linked.fault("POST", LIKES, {"status": 429, "headers": headers})
    assert [refusal(await linked.like())[2] for _ in range(2)] == [wait_s, wait_s]
    linked.clock.advance(seconds=wait_s)
    assert (await linked.like()).status_code == 200
    assert await asked(linked) == 2


@pytest.mark.parametrize("headers", [{}, {"x-rate-limit-remaining": "7", "x-rate-limit-limit": "50"}])
async def test_a_429_that_shows_no_window_holds_none(linked: RunningGateway, headers: dict[str, str]) -> None:
    """It is passed on with a wait; the next call goes to X."""
    await linked.fault("POST", LIKES, {"status": 429, "headers": headers})
    assert refusal(await linked.like()) == (429, "x_window_15m", 60)
    assert (await linked.like()).status_code == 200


@pytest.mark.parametrize(
    ("error", "reason"), [("usage-capped", "x_usage_capped"), ("spend-cap", "x_spend_cap"), ("client-not-enrolled", "")]
)
async def test_caps_credits_and_tiers_are_not_windows(linked: RunningGateway, error: str, reason: str) -> None:
    """Waiting does not help, and they have their own reasons."""
    await linked.fault("POST", LIKES, {"error": error})
    assert (await linked.like()).json()["error"]["reason"] == (reason or "x_tier_lacks_action")
    assert (await linked.like()).status_code == 200


async def test_a_call_that_was_not_made_costs_nothing(linked: RunningGateway) -> None:
    """Neither a write of the key's day, nor its Idempotency-Key."""
    await linked.configure(likes_per_15m=1)
    await linked.like()
    once = {"idempotency-key": "held"}
    assert refusal(await linked.call("like_twitter", {"tweet_id": POST}, headers=once))[1] == "x_window_15m"
    linked.clock.advance(minutes=15)
    await linked.advance_x(900)
    again = await linked.call("like_twitter", {"tweet_id": POST}, headers=once)
    assert (again.status_code, again.headers.get("idempotent-replayed")) == (200, None)


async def test_the_last_call_of_a_window_is_not_spent_on_a_second_try(linked: RunningGateway) -> None:
    """What was lost may have been counted."""
    await linked.configure(likes_per_15m=3)
    await linked.like()
    await linked.fault("POST", LIKES, {"status": 503})
    assert (await linked.like()).status_code == 200
    await linked.fault("POST", LIKES, {"status": 503})
    assert (await linked.like()).json()["error"]["reason"] == "x_5xx"


@pytest.mark.engines("sqlite", "postgres")
async def test_another_gateway_on_the_database_knows_what_one_learned(linked: RunningGateway) -> None:
    """It does not call X either; a window learned later takes precedence."""
    async with another_gateway(linked) as other:
        await linked.configure(likes_per_15m=3)
        await linked.like()
        await exchange(linked, other)
        assert (await other.like()).status_code == 200
        assert (await linked.like()).status_code == 200
        await exchange(other, linked, other)
        assert refusal(await other.like())[:2] == (429, "x_window_15m")
        assert refusal(await linked.like())[:2] == (429, "x_window_15m")
        assert await asked(linked) == 3
        for running in (linked, other):
            running.clock.advance(minutes=15)
        await linked.advance_x(900)
        assert (await linked.like()).status_code == 200
        await exchange(linked, other)
        assert (await other.status())["limits"]["like_twitter"]["15m"]["remaining"] == 2


@pytest.mark.engines("sqlite", "postgres")
async def test_a_restart_forgets_no_window(linked: RunningGateway) -> None:
    """A starting gateway knows the windows that its predecessor learned."""
    await linked.configure(likes_per_15m=1)
    async with another_gateway(linked) as first:
        assert (await first.like()).status_code == 200
        await first.call("follow_twitter", {"target_user_id": GRACE})
    async with another_gateway(linked) as second:
        assert refusal(await second.like())[:2] == (429, "x_window_15m")
        limits: dict[str, Any] = (await second.status())["limits"]
    assert await asked(linked) == 2
    assert limits["follow_twitter"]["15m"]["remaining"] == 49


async def test_the_status_shows_the_remaining_calls(linked: RunningGateway) -> None:
    """By operation or look-up, and by window; nothing is made up."""
    assert (await linked.status())["limits"] == {}
    await linked.configure(likes_per_15m=3)
    await linked.like()
    await linked.client.get(API + "user/info?userName=grace")
    await linked.call("post_twitter", {"text": "counted"})
    limits = (await linked.status())["limits"]
    assert {name: sorted(windows) for name, windows in limits.items()} == {
        "like_twitter": ["15m", "24h"],
        "user/info": ["15m"],
        "post_twitter": ["15m", "24h", "24h_app"],
    }
    window = limits["like_twitter"]["15m"]
    assert (window["limit"], window["remaining"], window["reset_at"][-1]) == (3, 2, "Z")
    linked.clock.advance(minutes=16)
    assert sorted((await linked.status())["limits"]["like_twitter"]) == ["24h"]
