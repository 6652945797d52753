"""A pause stops what it should, before the first byte to X, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from birdwire.gateway.guardrails.pauses import pause
from birdwire.store.database import Database
from birdwire.store.tables import pauses, policies
from birdwire.store.tables.acts import Actor
from birdwire.store.tables.pauses import PauseRow
from birdwire.store.tables.policies import PolicyRow
from harness.acts import recorded
from harness.gateway import API, PNG, POST, RunningGateway
from harness.raw_http import RawRequest, SlowRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import httpx2

OPERATOR = Actor("uid 0", "cli")
ADA = "1000000000000000001"
PAUSED = (403, "paused")


@contextlib.asynccontextmanager
async def elsewhere(running: RunningGateway) -> AsyncIterator[Database]:
    """Open the gateway's database as another process does."""
    database = Database(running.settings.database_url)
    try:
        yield database
    finally:
        await database.close()


async def pause_scope(running: RunningGateway, scope: str, minutes: int | None = None, why: str = "a test") -> None:
    """Pause a scope, as the command line does."""
    now = running.clock.now()
    until = None if minutes is None else now + timedelta(minutes=minutes)
    async with elsewhere(running) as database, database.write() as connection:
        await pause(connection, OPERATOR, PauseRow(scope, "operator", now, until, why, OPERATOR.who))


async def resume_scope(running: RunningGateway, scope: str) -> None:
    """Resume a scope."""
    async with elsewhere(running) as database, database.write() as connection:
        assert await pauses.lift(connection, scope, "operator") is not None


async def set_policy(running: RunningGateway, scope: str, rules: object, enforcement: Any = "enforce") -> None:
    """Set the first version of a policy."""
    row = PolicyRow(scope, "operator", 1, enforcement, None, rules, running.clock.now(), OPERATOR.who)
    async with elsewhere(running) as database, database.write() as connection:
        assert await policies.append(connection, row)


async def scope_of(running: RunningGateway, kind: str) -> str:
    """Return the scope of the gateway's key, of its account, or of the gateway."""
    if kind == "key":
        return running.key_id
    return "gateway" if kind == "gateway" else f"account:{(await running.status())['user_id']}"


def outcome(answer: httpx2.Response) -> tuple[int, str]:
    """Status and reason."""
    return answer.status_code, str(answer.json().get("error", {}).get("reason", ""))


async def sent(running: RunningGateway) -> int:
    """How many requests the sandbox got so far."""
    return len(await running.calls("/2/"))


# On entry.


def upload(running: RunningGateway) -> Awaitable[httpx2.Response]:
    """Upload a file."""
    return running.client.post(f"{API}upload_media", files={"media": ("a.png", PNG, "image/png")})


CALLS: dict[str, Callable[[RunningGateway], Awaitable[httpx2.Response]]] = {
    "like": lambda running: running.like(),
    "post": lambda running: running.call("post_twitter", {"text": "paused?"}),
    "upload": upload,
    "lookup": lambda running: running.client.get(f"{API}user/info?userName=ada"),
    "link": lambda running: running.call("auth_twitter", {}),
    "confirm": lambda running: running.call("auth/confirm", {"state": "a" * 43, "username": "ada"}),
}


@pytest.mark.engines("sqlite", "postgres")
@pytest.mark.parametrize("kind", ["key", "account", "gateway"])
async def test_a_pause_refuses_every_call_that_asks_something_of_x(linked: RunningGateway, kind: str) -> None:
    """Within a second of its commit, until it is lifted; nothing leaves for X."""
    scope = await scope_of(linked, kind)
    assert outcome(await linked.like()) == (200, "")
    await pause_scope(linked, scope, why="it misbehaves.")
    async with asyncio.timeout(20):
        while (answer := await linked.like()).status_code == 200:  # noqa: ASYNC110 - nothing else reports it
            await asyncio.sleep(0.01)
    assert outcome(answer) == PAUSED
    assert answer.json()["error"]["message"].endswith(": it misbehaves.")
    before = await sent(linked)
    assert {name: outcome(await call(linked)) for name, call in CALLS.items()} == dict.fromkeys(CALLS, PAUSED)
    assert await sent(linked) == before
    await resume_scope(linked, scope)
    async with asyncio.timeout(20):
        while (answer := await linked.like()).status_code == 403:  # noqa: ASYNC110 - nothing else reports it
            await asyncio.sleep(0.01)
    assert outcome(answer) == (200, "")


async def test_a_pause_leaves_what_only_shows_or_ends(linked: RunningGateway) -> None:
    """The holder can see why, ask for outcomes, try what would happen, and unlink the account."""
    request_id = (await linked.like()).headers["x-request-id"]
    await pause_scope(linked, "gateway")
    assert outcome(await linked.like()) == PAUSED
    status = await linked.status()
    assert (status["linked"], status["usable"], status["paused"]["scope"]) == (True, True, "gateway")
    assert outcome(await linked.client.get(f"{API}requests/{request_id}")) == (200, "")
    dry = await linked.call("dry_run/like_twitter", {"tweet_id": POST})
    assert (dry.status_code, dry.json()["would"]["refusals"][0]["reason"]) == (200, "paused")
    assert outcome(await linked.call("unlink_twitter")) == (200, "")


async def test_a_link_that_was_started_before_a_pause_can_be_finished_and_undone(running: RunningGateway) -> None:
    """The account's owner is asked once, and what the owner decides counts."""
    redirect = await running.consent("ada")
    await pause_scope(running, "gateway")
    page = await running.bare.get(redirect, headers={"accept": "text/html"})
    assert page.status_code == 200
    assert (await running.status())["linked"] is True
    assert outcome(await running.like()) == PAUSED


async def test_the_pause_of_the_gateway_holds_for_a_key_without_a_link(running: RunningGateway) -> None:
    """And the pause of an account does not."""
    await pause_scope(running, f"account:{ADA}")
    assert outcome(await running.call("auth_twitter", {})) == (200, "")
    await pause_scope(running, "gateway")
    assert outcome(await running.call("auth_twitter", {})) == PAUSED


async def test_a_pause_ends_at_its_end_without_being_lifted(linked: RunningGateway) -> None:
    """Nothing is announced then."""
    await pause_scope(linked, "gateway", minutes=5)
    assert outcome(await linked.like()) == PAUSED
    linked.clock.advance(minutes=5)
    assert outcome(await linked.like()) == (200, "")


async def test_no_byte_of_a_file_is_read_while_paused(linked: RunningGateway) -> None:
    """The caller is answered when the file would begin."""
    await pause_scope(linked, linked.key_id)
    assert outcome(await linked.like()) == PAUSED
    head = b'--b\r\nContent-Disposition: form-data; name="media"; filename="a.png"\r\n\r\n' + PNG
    request = RawRequest(head, target=f"{API}upload_media", types=("multipart/form-data; boundary=b",))
    async with SlowRequest.started(str(linked.client.base_url), linked.raw_key, request) as slow:
        got = await slow.answered()
    assert (got.status, json.loads(got.body)["error"]["reason"]) == PAUSED


@pytest.mark.parametrize("rules", [{"no_such_rule": 1}, "deny"])
async def test_a_policy_that_cannot_be_read_refuses_every_write(linked: RunningGateway, rules: object) -> None:
    """Nobody knows what it forbids."""
    await set_policy(linked, "gateway", rules)
    before = await sent(linked)
    for name in ("like", "post", "upload"):
        assert outcome(await CALLS[name](linked)) == (403, "policy_unreadable")
    assert await sent(linked) == before


# Trips.


async def paused_by_x(running: RunningGateway, scope: str) -> list[tuple[str, str, str]]:
    """Return the acts that paused a scope: who, through what, and why."""
    rows = [row for row in await recorded(running.settings.database_url) if row["act"] == "paused"]
    return [(row["who"], row["via"], row["after"]["why"]) for row in rows if row["subject"] == scope]


REFUSED = (403, "x_refused")


async def x_refuses(running: RunningGateway, times: int) -> None:
    """Have X refuse the next posts."""
    await running.fault("POST", "/2/tweets", {"status": 403}, times)


async def post(running: RunningGateway) -> tuple[int, str]:
    """Post another text each time."""
    return outcome(await running.call("post_twitter", {"text": f"post {await sent(running)}"}))


@pytest.mark.parametrize(("scope", "paused"), [("key", "key"), ("gateway", "key"), ("account", "account")])
async def test_refusals_of_x_that_add_up_pause_the_key_or_the_account(
    linked: RunningGateway, scope: str, paused: str
) -> None:
    """The third within ten minutes does, and is answered as itself."""
    await set_policy(linked, await scope_of(linked, scope), {"trip": {"x_refused": "3/10m"}})
    held = await scope_of(linked, paused)
    await x_refuses(linked, times=4)
    assert await post(linked) == REFUSED
    linked.clock.advance(minutes=11)
    for _ in range(2):
        assert await post(linked) == REFUSED
    assert await paused_by_x(linked, held) == []
    assert await post(linked) == REFUSED
    [(who, via, why)] = await paused_by_x(linked, held)
    assert (who, via) == ("birdwire", "gateway")
    assert "X refused 3 calls" in why
    assert outcome(await linked.like()) == PAUSED
    # Resumed, the key is not paused again by what was refused before.
    await resume_scope(linked, held)
    linked.clock.advance(minutes=11)
    assert outcome(await linked.like()) == (200, "")


async def test_a_policy_in_shadow_mode_never_trips(linked: RunningGateway) -> None:
    """Nothing of it is obeyed."""
    await set_policy(linked, linked.key_id, {"trip": {"x_refused": 1}}, "shadow")
    await x_refuses(linked, times=2)
    for _ in range(2):
        assert await post(linked) == REFUSED
    assert await post(linked) == (201, "")


async def test_what_x_refuses_for_other_causes_does_not_add_up(linked: RunningGateway) -> None:
    """A deleted post, and X's rate limits, are no fault of the account."""
    await set_policy(linked, linked.key_id, {"trip": {"x_refused": 1}})
    assert outcome(await linked.like("1"))[0] == 404
    assert outcome(await linked.like()) == (200, "")


@pytest.mark.parametrize("name", ["like", "lookup"])
@pytest.mark.parametrize("scope", ["key", "gateway"])
async def test_a_suspension_by_x_pauses_the_account_at_once(linked: RunningGateway, scope: str, name: str) -> None:
    """For every policy with the rule, and for every key that acts for the account."""
    await set_policy(linked, await scope_of(linked, scope), {"trip": {"x_user_suspended": 1}})
    await linked.fault("*", "/2/users/*", {"error": "suspended-user"})
    assert outcome(await CALLS[name](linked)) == (403, "x_user_suspended")
    held = await scope_of(linked, "account")
    assert await paused_by_x(linked, held) == [
        ("birdwire", "gateway", "X has suspended or locked the account (rule trip)")
    ]
    assert outcome(await linked.like()) == PAUSED
