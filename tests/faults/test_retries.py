"""What is asked of X again and what never is; opposite calls in their order; an X that fails altogether."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2
import pytest

from birdwire.sandbox.control.tcp_proxy import TcpProxy, Toxics
from birdwire.x.limits.circuit_breaker import FAILURE_THRESHOLD, PROBE_INTERVAL_S
from harness.gateway import API, GRACE, PNG, POST, RunningGateway, bound, gateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

LIKES = "/2/users/*/likes"


def reason(answer: httpx2.Response) -> tuple[int, str | None]:
    """How it ended."""
    return answer.status_code, answer.json().get("error", {}).get("reason")


async def until(true: Callable[[], object]) -> None:
    """Let others go on until it is."""
    async with asyncio.timeout(10):
        while True:
            if true():
                return
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def second(running: RunningGateway, **options: Any) -> AsyncIterator[RunningGateway]:
    """Another gateway on the same database."""
    x_url = str(running.settings.x_api_url)
    async with contextlib.AsyncExitStack() as stack:
        other = await stack.enter_async_context(
            gateway(running.directory, running.sandbox, options.pop("x_api_url", x_url), stack, **options)
        )
        other.client.headers["authorization"] = f"Bearer {running.raw_key}"
        yield other


@contextlib.asynccontextmanager
async def another_key(running: RunningGateway, username: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A client with a key of its own, linked to another account."""
    _, raw_key = await running.gateway.keys.create("test", username, "growth", None)
    async with httpx2.AsyncClient(base_url=running.client.base_url, timeout=30) as client:
        client.headers["authorization"] = f"Bearer {raw_key}"
        auth_url = (await client.post(API + "auth_twitter")).json()["auth_url"]
        decision = {"auth_url": auth_url, "username": username, "action": "allow"}
        redirect = (await running.x.post("/_sandbox/consent", json=decision)).json()["redirect_to"]
        assert (await running.bare.get(redirect)).status_code == 200
        yield client


# What is asked again.


@pytest.mark.parametrize("do", [{"drop": "before_apply"}, {"drop": "after_apply"}, {"status": 503}, {"truncate": 5}])
@pytest.mark.trust("F28")
async def test_a_like_that_x_lost_or_cut_is_asked_again(linked: RunningGateway, do: dict[str, Any]) -> None:
    """Twice at most; the caller sees the success."""
    await linked.fault("POST", LIKES, do, times=2)
    assert reason(await linked.like()) == (200, None)
    assert len(await linked.calls("/2/users/", method="POST")) == 3


async def test_a_third_failure_is_returned(linked: RunningGateway) -> None:
    """As X's, and retryable."""
    await linked.fault("POST", LIKES, {"status": 503}, times=3)
    assert reason(await linked.like()) == (502, "x_5xx")
    assert len(await linked.calls("/2/users/", method="POST")) == 3
    assert reason(await linked.like()) == (200, None)


@pytest.mark.parametrize(
    ("name", "body", "path"),
    [
        ("unlike_twitter", {"tweet_id": POST}, "/2/users/*/likes/*"),
        ("follow_twitter", {"target_user_id": GRACE}, "/2/users/*/following"),
        ("delete_twitter", {"tweet_id": "1"}, "/2/tweets/*"),
        ("retweet_twitter", {"tweet_id": POST}, "/2/users/*/retweets"),
        ("bookmark_twitter", {"tweet_id": POST}, "/2/users/*/bookmarks"),
    ],
)
async def test_whatever_does_no_harm_twice_is_asked_again(
    linked: RunningGateway, name: str, body: dict[str, str], path: str
) -> None:
    """By the row of the operation."""
    if name == "delete_twitter":
        body = {"tweet_id": (await linked.call("post_twitter", {"text": "gone soon"})).json()["data"]["id"]}
    await linked.fault("*", path, {"status": 500}, times=2)
    assert reason(await linked.call(name, body)) == (200, None)


async def test_a_look_up_is_asked_again(linked: RunningGateway) -> None:
    """Reading does nothing."""
    await linked.fault("GET", "/2/users/by/*", {"drop": "before_apply"}, times=2)
    assert (await linked.client.get(API + "user/info?userName=grace")).status_code == 200


@pytest.mark.parametrize(
    "do",
    [{"drop": "before_apply"}, {"drop": "after_apply"}, {"status": 500}, {"status": 503}, {"truncate": 5}],
)
@pytest.mark.trust("F28")
async def test_a_post_that_may_have_arrived_is_never_sent_again(linked: RunningGateway, do: dict[str, Any]) -> None:
    """Whatever became of it; it is said to be unknown."""
    await linked.fault("POST", "/2/tweets", do)
    assert reason(await linked.call("post_twitter", {"text": "once"})) == (502, "outcome_unknown")
    assert len(await linked.calls("/2/tweets")) == 1


async def test_a_part_of_an_upload_that_may_have_arrived_is_not_sent_again(linked: RunningGateway) -> None:
    """The caller uploads again."""
    await linked.fault("POST", "/2/media/upload/*/append", {"status": 503})
    answer = await linked.client.post(API + "upload_media", files={"media": ("a.png", PNG, "image/png")})
    assert reason(answer) == (502, "outcome_unknown")
    assert len([call for call in await linked.calls("/2/media") if call["path"].endswith("/append")]) == 1


@pytest.mark.parametrize("error", ["rate-limited", "not-permitted-action", "invalid-parameter", "credits-depleted-new"])
@pytest.mark.trust("F31")
async def test_a_call_that_x_refuses_is_not_retried(linked: RunningGateway, error: str) -> None:
    """A refusal is an answer."""
    await linked.fault("POST", LIKES, {"error": error}, times=None)
    assert (await linked.like()).status_code in {400, 403, 429}
    assert len(await linked.calls("/2/users/", method="POST")) == 1


@pytest.mark.parametrize("do", [{"status": 200, "body": "<html>"}, {"status": 200}, {"status": 302}])
@pytest.mark.trust("F30")
async def test_a_call_with_an_unreadable_reply_is_not_retried(linked: RunningGateway, do: dict[str, Any]) -> None:
    """It would be read no better."""
    await linked.fault("POST", LIKES, do)
    assert reason(await linked.like()) == (502, "x_reply_malformed")


@pytest.mark.trust("F23")
async def test_a_post_that_never_left_is_sent_when_x_is_there_again(linked: RunningGateway) -> None:
    """Nothing was sent, so sending it does not repeat it."""
    url = urlsplit(str(linked.settings.x_api_url))
    proxy = TcpProxy(bound(), (str(url.hostname), int(url.port or 0)))
    await proxy.open()
    await proxy.set(Toxics(down=True))
    async with second(linked, x_api_url=f"http://127.0.0.1:{proxy.port}") as other:

        async def heal() -> None:
            await proxy.set(Toxics())

        other.clock.meanwhile = heal
        try:
            assert reason(await other.call("post_twitter", {"text": "late"})) == (201, None)
        finally:
            await proxy.close()
    assert len(await linked.calls("/2/tweets")) == 1


@pytest.mark.trust("F33")
async def test_a_token_that_cannot_be_renewed_causes_no_retry(linked: RunningGateway) -> None:
    """The refresh engine has its own patience."""
    await linked.fault("POST", LIKES, {"error": "unauthorized"})
    await linked.fault("POST", "/2/oauth2/token", {"status": 500})
    assert reason(await linked.like()) == (502, "x_renewal_failed")
    assert len(await linked.calls("/2/users/", method="POST")) == 1


@pytest.mark.trust("F26")
async def test_no_attempt_is_started_without_time_for_it(tmp_path: Path) -> None:
    """The deadline is one for all tries."""
    async with RunningGateway.built(tmp_path, x_deadline_s=1.5) as running:
        await running.link("ada")
        await running.fault("POST", LIKES, {"status": 503}, times=None)
        assert reason(await running.like()) == (502, "x_5xx")
        assert len(await running.calls("/2/users/", method="POST")) == 1


@pytest.mark.trust("F39")
async def test_the_outcome_of_a_call_is_recorded_after_its_caller_disconnects(linked: RunningGateway) -> None:
    """X was asked; the journal says how it ended."""
    arrived = asyncio.Event()

    async def gone() -> None:
        arrived.set()

    linked.clock.meanwhile = gone
    await linked.fault("POST", LIKES, {"status": 503})
    calling = asyncio.create_task(linked.like())
    await arrived.wait()
    calling.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await calling
    await until(lambda: journalled(linked))
    assert journalled(linked) == [("like_twitter", "confirmed")]
    assert len((await linked.state())["likes"]) == 1


def journalled(running: RunningGateway) -> list[tuple[str, str]]:
    """The journal's operations and states."""
    import sqlite3  # noqa: PLC0415 - a look from outside

    with contextlib.closing(sqlite3.connect(running.directory / "birdwire.db")) as database:
        return database.execute("select operation, state from journal order by request_id").fetchall()


# The order of opposite calls.


async def test_an_unlike_waits_for_the_like_before_it(linked: RunningGateway) -> None:
    """So that what came last holds."""
    await linked.fault("POST", LIKES, {"delay_s": 0.2})
    like = asyncio.create_task(linked.like())
    await until(lambda: linked.gateway.clients.budget.running)
    unlike = asyncio.create_task(
        linked.call("unlike_twitter", {"tweet_id": "0" + POST[1:] if POST[0] == "0" else POST})
    )
    await until(lambda: linked.gateway.order.waiting)
    assert [reason(await one) for one in (like, unlike)] == [(200, None)] * 2
    assert [call["method"] for call in await linked.calls("/2/users/") if "likes" in call["path"]] == ["POST", "DELETE"]
    assert (await linked.state())["likes"] == []


async def test_a_like_is_dropped_when_an_unlike_has_come_before_its_second_try(linked: RunningGateway) -> None:
    """409 superseded; the unlike goes on."""
    unlikes: list[asyncio.Task[httpx2.Response]] = []

    async def unlike() -> None:
        if not unlikes:
            unlikes.append(asyncio.create_task(linked.call("unlike_twitter", {"tweet_id": POST})))
            await until(lambda: linked.gateway.order.waiting)

    linked.clock.meanwhile = unlike
    await linked.fault("POST", LIKES, {"drop": "after_apply"})
    assert reason(await linked.like()) == (409, "superseded")
    assert reason(await unlikes[0]) == (200, None)
    assert [call["method"] for call in await linked.calls("/2/users/") if "likes" in call["path"]] == ["POST", "DELETE"]
    assert (await linked.state())["likes"] == []


async def test_a_like_is_dropped_when_another_process_was_asked_to_unlike(linked: RunningGateway) -> None:
    """The journal knows. An unlike that X refused changes nothing."""
    async with second(linked) as other:

        async def unlike() -> None:
            linked.clock.meanwhile = None
            assert reason(await other.call("unlike_twitter", {"tweet_id": POST})) == (200, None)

        linked.clock.meanwhile = unlike
        await linked.fault("POST", LIKES, {"drop": "after_apply"})
        assert reason(await linked.like()) == (409, "superseded")
        assert (await linked.state())["likes"] == []

        async def refused() -> None:
            linked.clock.meanwhile = None
            await linked.fault("DELETE", "/2/users/*/likes/*", {"error": "not-permitted-action"})
            assert (await other.call("unlike_twitter", {"tweet_id": POST})).status_code == 403

        linked.clock.meanwhile = refused
        await linked.fault("POST", LIKES, {"status": 503}, times=2)
        assert reason(await linked.like()) == (200, None)


async def test_calls_on_other_targets_and_of_other_accounts_do_not_wait(linked: RunningGateway) -> None:
    """Only what undoes each other is in a queue."""
    await linked.fault("POST", LIKES, {"delay_s": 1})
    like = asyncio.create_task(linked.like())
    await until(lambda: linked.gateway.clients.budget.running)
    async with another_key(linked, "grace") as grace:
        calls = (
            linked.call("bookmark_twitter", {"tweet_id": POST}),
            linked.call("unlike_twitter", {"tweet_id": "1"}),
            grace.post(API + "unlike_twitter", json={"tweet_id": POST}),
        )
        await asyncio.gather(*calls)
    assert not like.done()
    like.cancel()


async def test_the_wait_for_ones_turn_is_part_of_the_deadline(tmp_path: Path) -> None:
    """Nothing of it was sent."""
    async with RunningGateway.built(tmp_path, x_deadline_s=0.3) as running:
        await running.link("ada")
        await running.fault("POST", LIKES, {"delay_s": 1}, times=None)
        like = asyncio.create_task(running.like())
        await until(lambda: running.gateway.clients.budget.running)
        unlikes = [asyncio.create_task(running.call("unlike_twitter", {"tweet_id": POST})) for _ in range(2)]
        assert reason(await like) == (502, "x_timeout")
        ends = {reason(await unlike) for unlike in unlikes}
        assert ends <= {(502, "x_timeout"), (502, "x_unreachable"), (200, None)}  # as soon as there is time to send
        assert running.gateway.order.waiting == 0


# An X that fails altogether.


@pytest.mark.trust("G10")
@pytest.mark.trust("F32")
@pytest.mark.parametrize("callers", [1, 20])
async def test_calls_to_a_failing_x_are_paused_until_it_recovers(linked: RunningGateway, callers: int) -> None:
    """Few calls more than were asked for, quick refusals, and back with the first probe."""
    await linked.fault("*", LIKES, {"status": 503}, times=None)
    answers = []
    for _ in range(100 // callers):
        answers += await asyncio.gather(*(linked.like() for _ in range(callers)))
    assert {reason(answer) for answer in answers} == {(502, "x_5xx"), (502, "x_breaker_open")}
    asked = len(await linked.calls("/2/users/", method="POST"))
    assert FAILURE_THRESHOLD <= asked <= 1.2 * len(answers)
    last = answers[-1]
    assert last.json()["error"]["retryable"]
    assert 1 <= int(last.headers["retry-after"]) <= PROBE_INTERVAL_S
    await linked.x.delete("/_sandbox/faults")
    assert reason(await linked.like()) == (502, "x_breaker_open")
    assert reason(await linked.call("bookmark_twitter", {"tweet_id": POST})) == (200, None)
    linked.clock.advance(seconds=PROBE_INTERVAL_S)
    assert [reason(await linked.like()) for _ in range(3)] == [(200, None)] * 3


@pytest.mark.trust("F31")
async def test_a_storm_of_refusals_opens_no_breaker(linked: RunningGateway) -> None:
    """4xx and 429 are answers: X is there."""
    await linked.fault("*", LIKES, {"error": "not-permitted-action"}, times=None)
    for _ in range(2 * FAILURE_THRESHOLD):
        assert (await linked.like()).status_code == 403
    await linked.x.delete("/_sandbox/faults")
    assert reason(await linked.like()) == (200, None)


async def test_one_accounts_outage_affects_no_other_account(linked: RunningGateway) -> None:
    """X fails for ada alone: grace is not refused."""
    ada = (await linked.status())["user_id"]
    await linked.fault("POST", f"/2/users/{ada}/likes", {"status": 500}, times=None)
    for _ in range(FAILURE_THRESHOLD):
        await linked.like()
    assert reason(await linked.like()) == (502, "x_breaker_open")
    async with another_key(linked, "grace") as grace:
        assert (await grace.post(API + "like_twitter", json={"tweet_id": POST})).status_code == 200


@pytest.mark.trust("F25")
async def test_an_unreachable_x_opens_the_breaker(linked: RunningGateway) -> None:
    """Refused connections are as good as silence."""
    with bound() as listener:
        nowhere = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with second(linked, x_api_url=nowhere) as lost:
        ends = [reason(await lost.like()) for _ in range(FAILURE_THRESHOLD)]
    assert ends[0] == (502, "x_unreachable")
    assert ends[-1] == (502, "x_breaker_open")
