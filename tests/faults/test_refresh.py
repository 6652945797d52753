"""The refresh of a session under faults: X takes a refresh token once, so nothing may present it twice by accident."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from birdwire.sandbox.app import create_sandbox
from birdwire.sandbox.server import config as sandbox_config
from harness.gateway import gateway, serving

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from birdwire.store.tables.x_sessions import SessionRow
    from harness.gateway import RunningGateway

pytestmark = pytest.mark.engines("sqlite", "postgres")

TOKEN = "/2/oauth2/token"
LEASE_S = 31


async def refreshes(running: RunningGateway) -> list[dict[str, Any]]:
    """The refresh calls that X got; one without an answer has no status."""
    return (await running.calls(TOKEN))[1:]  # the first is the link's exchange


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for a condition that another task fulfils."""
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 - it happens in another program
            await asyncio.sleep(0)


async def near_the_end(running: RunningGateway, left_s: int = 600) -> None:
    """Move both clocks on, so that the token has this long left."""
    running.clock.advance(seconds=7_200 - left_s)
    await running.advance_x(7_200 - left_s)


async def row(running: RunningGateway) -> SessionRow:
    """The session's row."""
    current = (await running.gateway.links.of_key(running.key_id)).current
    assert current is not None
    return current


async def test_a_token_is_renewed_early_and_no_caller_waits(linked: RunningGateway) -> None:
    """Ten minutes before its end the call uses the old token while the new one is fetched."""
    await near_the_end(linked)
    await linked.fault("POST", TOKEN, {"delay_s": 0.3})
    assert (await linked.like()).status_code == 200
    assert (await row(linked)).gen == 1

    async def renewed() -> bool:
        return bool((await row(linked)).gen == 2)

    await until(renewed)
    assert (await linked.like()).status_code == 200
    assert len(await refreshes(linked)) == 1


async def test_a_token_with_time_left_is_not_renewed(linked: RunningGateway) -> None:
    """Half an hour is plenty."""
    await near_the_end(linked, 1_800)
    assert (await linked.like()).status_code == 200
    assert await refreshes(linked) == []


@pytest.mark.trust("R3")
@pytest.mark.trust("F4")
async def test_a_lost_reply_is_repeated_once_after_the_lease_and_then_named(linked: RunningGateway) -> None:
    """X rotated, and its answer is lost: one more request, after the lease, then a new link is required."""
    await near_the_end(linked)
    await linked.fault("POST", TOKEN, {"drop": "after_apply"})
    await linked.like()

    async def lost() -> bool:
        return bool((await row(linked)).refresh_state == "presented" and len(await refreshes(linked)) == 1)

    await until(lost)
    answers = await asyncio.gather(*(linked.like() for _ in range(20)))
    assert {answer.status_code for answer in answers} <= {
        200,
        502,
    }  # X may have ended the old access token along with it
    assert len(await refreshes(linked)) == 1
    linked.clock.advance(seconds=LEASE_S)
    await asyncio.gather(*(linked.like() for _ in range(20)))

    async def told() -> bool:
        return bool((await linked.status())["why"] == "refresh_lost_reply")

    await until(told)
    linked.clock.advance(seconds=600)  # until the old access token ends, all goes on
    await linked.advance_x(600)
    assert (await linked.like()).json()["error"]["reason"] == "x_session_expired"
    assert (await linked.status())["state"] == "needs_relink"
    assert (await linked.like()).json()["error"]["reason"] == "x_session_expired"
    assert len(await refreshes(linked)) == 2


@pytest.mark.trust("F3")
async def test_a_request_that_x_never_took_is_repeated_after_the_lease(linked: RunningGateway) -> None:
    """Then the second try saves the link."""
    await linked.advance_x(7_300)
    await linked.fault("POST", TOKEN, {"drop": "before_apply"})
    first = await linked.like()
    second = await linked.like()
    assert (first.status_code, second.status_code) == (502, 502)
    assert len(await refreshes(linked)) == 1
    linked.clock.advance(seconds=LEASE_S)
    assert (await linked.like()).status_code == 200
    assert (await row(linked)).refresh_state == "idle"


@pytest.mark.trust("R9")
@pytest.mark.parametrize("left_s", [-100, 600])
async def test_two_server_errors_of_the_token_endpoint_cost_seconds(linked: RunningGateway, left_s: int) -> None:
    """X answered, so no request is in flight: the next attempt follows after 1, then 2 seconds, and not earlier."""
    await near_the_end(linked, left_s)
    await linked.fault("POST", TOKEN, {"status": 503}, times=2)
    waits = []
    for number in range(1, 3):
        for _ in range(2):  # the second call comes during the pause: X is not asked
            answer = await linked.like()
            if left_s > 0:
                assert answer.status_code == 200
                await until(released(linked, number))
                waits.append(str(2 ** (number - 1)))
                continue
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (502, "upstream_unavailable")
            assert (error["reason"], error["whose"], error["retryable"]) == ("x_renewal_failed", "x_outage", True)
            waits.append(answer.headers["retry-after"])
        assert len(await refreshes(linked)) == number
        linked.clock.advance(seconds=int(waits[-1]))
    assert waits == ["1", "1", "2", "2"]
    assert (await linked.like()).status_code == 200

    async def renewed() -> bool:
        return bool((await row(linked)).gen == 2)

    await until(renewed)
    assert len(await refreshes(linked)) == 3


def released(running: RunningGateway, tries: int) -> Callable[[], Awaitable[bool]]:
    """Whether X was asked this often, and the last claim is released."""

    async def seen() -> bool:
        return len(await refreshes(running)) == tries and (await row(running)).refresh_state == "idle"

    return seen


@pytest.mark.trust("R9")
async def test_server_errors_for_hours_end_no_link_and_are_tried_at_most_every_half_minute(
    linked: RunningGateway,
) -> None:
    """The pause doubles up to 32 seconds; the lease for a reply that is lost afterwards is still the shortest."""
    await linked.advance_x(7_300)
    await linked.fault("POST", TOKEN, {"error": "unavailable"}, times=None)
    for _ in range(60):
        assert (await linked.like()).json()["error"]["reason"] == "x_renewal_failed"
        linked.clock.advance(seconds=10)
    assert 15 <= len(await refreshes(linked)) <= 5 + 600 // 32
    await linked.x.delete("/_sandbox/faults")
    linked.clock.advance(seconds=32)
    await linked.fault("POST", TOKEN, {"drop": "before_apply"})
    assert (await linked.like()).json()["error"]["reason"] == "x_5xx"
    linked.clock.advance(seconds=2 * LEASE_S)
    assert (await linked.like()).status_code == 200
    assert (await linked.status())["state"] == "active"


@pytest.mark.trust("R9")
async def test_replies_lost_for_hours_end_no_link(linked: RunningGateway) -> None:
    """Each try without an answer doubles the wait for the next; the first that X takes mends it."""
    await linked.advance_x(7_300)
    await linked.fault("POST", TOKEN, {"drop": "before_apply"}, times=None)
    for minute in range(180):
        assert (await linked.like()).status_code == 502, minute
        linked.clock.advance(minutes=1)
    assert (await linked.status())["state"] == "active"
    assert len(await refreshes(linked)) < 30
    await linked.x.delete("/_sandbox/faults")
    linked.clock.advance(minutes=8)
    assert (await linked.like()).status_code == 200


async def test_a_grace_window_of_x_saves_a_lost_reply(linked: RunningGateway) -> None:
    """Should X have one: the repeat is taken."""
    await linked.configure(refresh_mode="grace", grace_s=120)
    await linked.advance_x(7_300)
    await linked.fault("POST", TOKEN, {"drop": "after_apply"})
    assert (await linked.like()).status_code == 502
    linked.clock.advance(seconds=LEASE_S)
    assert (await linked.like()).status_code == 200


@pytest.mark.trust("F4")
@pytest.mark.parametrize("applied", [False, True])
async def test_a_gateway_killed_while_it_asked_leaves_its_mark(tmp_path: Path, applied: bool) -> None:  # noqa: FBT001
    """The next start waits for the lease, presents the token once more, and says so if it is lost."""
    sandbox = create_sandbox()
    async with contextlib.AsyncExitStack() as stack:
        x_url = await stack.enter_async_context(serving(sandbox_config(sandbox)))
        async with gateway(tmp_path, sandbox, x_url, stack) as running:
            key, raw_key = await running.gateway.keys.create("test", "kept", "free")
            running.client.headers["authorization"] = f"Bearer {raw_key}"
            await running.link("ada")
            await running.advance_x(7_300)
            await running.fault("POST", TOKEN, {"drop": "after_apply" if applied else "before_apply"})
            await running.like()
            running.key_id = key.key_id
            assert (await row(running)).refresh_state == "presented"
        async with gateway(tmp_path, sandbox, x_url, stack) as again:
            again.client.headers["authorization"] = f"Bearer {raw_key}"
            again.key_id = key.key_id
            assert (await again.like()).status_code == 502
            again.clock.advance(seconds=LEASE_S)
            assert (await again.like()).status_code == (403 if applied else 200)
            assert (await row(again)).state == ("needs_relink" if applied else "active")
            assert len(await refreshes(again)) == 2


@pytest.mark.engines("sqlite")
@pytest.mark.trust("F14")
async def test_a_store_that_is_busy_when_the_new_pair_comes_loses_nothing(linked: RunningGateway) -> None:
    """The pair is kept until it is stored, and used only then."""
    await linked.advance_x(7_300)
    await linked.fault("POST", TOKEN, {"delay_s": 0.5})
    liking = asyncio.create_task(linked.like())

    async def asked() -> bool:
        return bool(await refreshes(linked))

    await until(asked)
    other = sqlite3.connect(linked.directory / "birdwire.db", isolation_level=None)
    with contextlib.closing(other):
        other.execute("BEGIN IMMEDIATE")

        async def answered() -> bool:
            return bool((await refreshes(linked))[0]["status"] == 200)

        await until(answered)
        assert not liking.done()
        other.execute("ROLLBACK")
    assert (await liking).status_code == 200
    assert (await row(linked)).gen == 2


@pytest.mark.trust("F42")
async def test_an_unlink_during_a_refresh_wins(linked: RunningGateway) -> None:
    """The new pair is not stored, but revoked, when X hears of it."""
    await linked.advance_x(7_300)
    await linked.fault("POST", "/2/oauth2/revoke", {"status": 503}, times=2)
    await linked.fault("POST", TOKEN, {"delay_s": 0.5})
    liking = asyncio.create_task(linked.like())

    async def asked() -> bool:
        return bool(await refreshes(linked))

    await until(asked)
    await linked.call("unlink_twitter")
    assert (await liking).json()["error"]["reason"] == "x_not_linked"
    assert (await linked.status())["linked"] is False

    linked.clock.advance(minutes=1)
    await linked.gateway.links.sweep()
    assert [call["status"] for call in await linked.calls("/2/oauth2/revoke")].count(200) == 4


@pytest.mark.trust("R11")
async def test_a_cancelled_caller_does_not_cancel_the_refresh(linked: RunningGateway) -> None:
    """It goes on, and the next caller has its fruit."""
    await linked.advance_x(7_300)
    await linked.fault("POST", TOKEN, {"delay_s": 0.3})
    liking = asyncio.create_task(linked.like())

    async def asked() -> bool:
        return bool(await refreshes(linked))

    await until(asked)
    liking.cancel()
    assert (await linked.like()).status_code == 200
    assert len(await refreshes(linked)) == 1
