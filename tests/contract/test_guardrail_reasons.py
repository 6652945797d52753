"""Every reason of the guardrails, as a caller meets it; and what a refused text leaves behind: nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import pytest

from birdwire.api.errors import PROBLEMS
from birdwire.store.database import Database
from harness.gateway import API, POST, RunningGateway
from harness.guarded_gateway import ACCOUNT, GATEWAY, pause, places_of, rows_of, set_rules, used_today

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx2

KEY = "the key"
"""Stands for the id of the test's own key."""

NEW_REASONS = frozenset(
    {"policy_denied", "owner_denied", "quiet_hours", "cap_reached", "budget_exhausted", "price_unknown"}
    | {"policy_unreadable", "duplicate_text", "paused", "paused_by_owner"}
)


@dataclass(frozen=True)
class Refused:
    """A call that is refused: by which rules of which scope, after which calls, and with what other members."""

    reason: str
    rules: dict[str, Any]
    body: dict[str, Any]
    operation: str = "post_twitter"
    before: tuple[dict[str, Any], ...] = ()
    scope: str = KEY
    author: Literal["operator", "owner"] = "operator"
    rule: str = ""


def text(words: str, **more: Any) -> dict[str, Any]:
    """Return a post's body."""
    return {"text": words, **more}


_HOUR = datetime.now(UTC).hour
QUIET = {"hours": f"{_HOUR:02}:00-{(_HOUR + 6) % 24:02}:00", "zone": "UTC", "then": "deny"}
"""Hours that began before this run and end after it."""

REFUSED = [
    Refused("policy_denied", {"words": {"deny": ["giveaway"]}}, text("A GIVEAWAY!"), rule="words"),
    Refused("policy_denied", {"links": "deny"}, text("see example.org"), rule="links"),
    Refused("policy_denied", {"links": {"only": ["example.org"], "else": "deny"}}, text("http://example.com/")),
    Refused("policy_denied", {"mentions": {"max": 0, "else": "deny"}}, text("Hello @grace"), rule="mentions"),
    Refused("policy_denied", {"kinds": {"quote": "deny"}}, text("See", quote_tweet_id=POST), rule="kinds"),
    Refused("policy_denied", {"delete": "own"}, {"tweet_id": POST}, "delete_twitter", rule="delete"),
    Refused("policy_denied", {"links": "deny"}, text("see example.org"), scope=GATEWAY),
    Refused("owner_denied", {"links": "deny"}, text("see example.org"), scope=ACCOUNT, author="owner"),
    Refused("cap_reached", {"caps": {"post_twitter": "1/d"}}, text("Two"), before=(text("One"),), rule="caps"),
    Refused("cap_reached", {"min_gap_s": {"post_twitter": 60}}, text("Two"), before=(text("One"),), rule="min_gap_s"),
    Refused("cap_reached", {"caps": {"*": "1/d"}}, text("Two"), before=(text("One"),), scope=ACCOUNT),
    Refused("budget_exhausted", {"budget": {"day_usd": 0.02}}, text("Two"), before=(text("One"),), rule="budget"),
    Refused("price_unknown", {"budget": {"day_usd": 5}}, text("See", quote_tweet_id=POST), rule="budget"),
    Refused("duplicate_text", {"duplicate_text": {"days": 1, "across": "account"}}, text("One"), before=(text("One"),)),
    Refused("duplicate_text", {"duplicate_text": {"days": 1, "across": "gateway"}}, text("One"), before=(text("One"),)),
    Refused("quiet_hours", {"quiet_hours": QUIET}, text("Shh"), rule="quiet_hours"),
    Refused("policy_unreadable", {"no_such_rule": 1}, text("One")),
    Refused("policy_unreadable", {"caps": ["not", "caps"]}, {"tweet_id": POST}, "like_twitter", scope=GATEWAY),
]


@pytest.fixture
async def database(linked: RunningGateway) -> AsyncIterator[Database]:
    """The database of the gateway, as the command line opens it."""
    opened = Database(linked.settings.database_url)
    yield opened
    await opened.close()


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case.reason} {case.rule or case.scope}")
async def test_a_rule_refuses_a_call_with_its_reason(linked: RunningGateway, database: Database, case: Refused) -> None:
    """Nothing is sent or spent; the answer names the rule; a dry run states the same; the attempt is on record."""
    scope = linked.key_id if case.scope == KEY else case.scope
    await set_rules(database, scope, case.rules, author=case.author)
    for body in case.before:
        assert (await linked.call(case.operation, body)).is_success
    calls, spent = await linked.calls(), await used_today(database, scope)
    would = (await linked.call(f"dry_run/{case.operation}", case.body)).raise_for_status().json()["would"]
    answer = await linked.call(case.operation, case.body)
    error = _refusal(answer, case.reason)
    assert await linked.calls() == calls
    assert await used_today(database, scope) == spent
    assert would["refusals"][0]["reason"] == case.reason
    assert would["outcome"] == "deny"
    if case.reason != "policy_unreadable":
        assert would["findings"] == error["findings"]
        [finding] = error["findings"]
        assert finding["scope"] == scope
        assert finding["version"] == 1
        assert case.rule in ("", finding["rule"])
    await _recorded(linked, database, answer, case.operation)


@pytest.mark.parametrize(
    ("scope", "author", "reason"),
    [
        (KEY, "operator", "paused"),
        (ACCOUNT, "operator", "paused"),
        (GATEWAY, "operator", "paused"),
        (ACCOUNT, "owner", "paused_by_owner"),
    ],
)
async def test_a_pause_refuses_writes_and_look_ups(
    linked: RunningGateway, database: Database, scope: str, author: Literal["operator", "owner"], reason: str
) -> None:
    """Uploads and new links, too; reports and whatever ends something continue to work."""
    await pause(database, linked.key_id if scope == KEY else scope, author=author, why="we look into it")
    calls = await linked.calls()
    answer = await linked.like()
    error = _refusal(answer, reason)
    assert "we look into it" in error["message"]
    looked = await linked.client.get(API + "user/info?userName=grace")
    assert _refusal(looked, reason)
    files = {"media_files": ("bird.png", b"not read", "image/png")}
    assert _refusal(await linked.client.post(API + "upload_media", files=files), reason)
    if scope != ACCOUNT:
        assert _refusal(await linked.call("auth_twitter"), reason)
    assert await linked.calls() == calls
    status = await linked.status()
    assert status["paused"]["why"] == "we look into it"
    asked = await linked.client.get(API + f"requests/{answer.headers['x-request-id']}")
    assert asked.status_code == 200
    assert (await linked.call("unlink_twitter")).is_success
    await _recorded(linked, database, answer, "like_twitter")


def test_every_new_reason_is_raised_here() -> None:
    """The closed set, and nothing that the tests above leave out."""
    raised = {case.reason for case in REFUSED} | {"paused", "paused_by_owner"}
    assert raised == NEW_REASONS
    assert set(PROBLEMS) >= NEW_REASONS


def _refusal(answer: httpx2.Response, reason: str) -> dict[str, Any]:
    """Return the error of a refused call, which must match its row of PROBLEMS."""
    error: dict[str, Any] = answer.json()["error"]
    problem = PROBLEMS[reason]
    assert (error["reason"], answer.status_code) == (reason, problem.status)
    assert (error["code"], error["whose"], error["retryable"]) == (problem.code, problem.whose, problem.retryable)
    assert ("retry-after" in answer.headers) == problem.retryable
    assert "{" not in error["message"] + error["fix"]
    return error


async def _recorded(running: RunningGateway, database: Database, answer: httpx2.Response, operation: str) -> None:
    """Check that the journal has the attempt, once the gateway has written what it buffers."""
    request_id = answer.headers["x-request-id"]
    async with asyncio.timeout(20):
        while not [row for row in await rows_of(database, running.key_id) if row.request_id == request_id]:  # noqa: ASYNC110 - a background task writes it
            await asyncio.sleep(0.05)
    [row] = [row for row in await rows_of(database, running.key_id) if row.request_id == request_id]
    error = answer.json()["error"]
    assert (row.operation, row.state, row.status, row.reason) == (
        operation,
        "not_sent",
        answer.status_code,
        error["reason"],
    )


CANARY = "kestrel-canary-5309"
HOST = "plover-canary.example.org"
GUARDED: dict[str, Any] = {
    "words": {"deny": ["giveaway"]},
    "links": {"only": ["example.org"], "else": "deny"},
    "duplicate_text": {"days": 30, "across": "account"},
    "budget": {"day_usd": 5},
    "caps": {"post_twitter": "20/h"},
}


@pytest.mark.trust("#314")
@pytest.mark.engines("sqlite", "postgres")
async def test_no_text_of_a_guarded_post_is_at_rest_in_clear(linked: RunningGateway, database: Database) -> None:
    """Published, refused by each kind of rule, tried, lost and found: no table and no log has it."""
    await set_rules(database, linked.key_id, GUARDED)
    option = {"poll": {"options": [CANARY, "No"], "duration_minutes": 60}}
    published = [text(f"{CANARY} one https://{HOST}/a"), text("A poll", **option)]
    for body in published:
        assert (await linked.call("post_twitter", body)).is_success
    for body in (text(f"{CANARY} giveaway"), text(f"{CANARY} https://{CANARY}.example.com"), published[0]):
        assert not (await linked.call("post_twitter", body)).is_success
    assert (await linked.call("dry_run/post_twitter", text(f"{CANARY} tried"))).is_success
    await linked.fault("POST", "/2/tweets", {"drop": "after_apply"})
    lost = await linked.call("post_twitter", text(f"{CANARY} lost https://{HOST}/b"))
    assert lost.json()["error"]["reason"] == "outcome_unknown"
    assert await places_of(database, [CANARY, HOST]) == []
    linked.clock.advance(seconds=5)
    await linked.gateway.reconciler.round()
    asked = await linked.client.get(API + f"requests/{lost.headers['x-request-id']}")
    assert asked.json()["state"] == "found"
    assert await places_of(database, [CANARY, HOST]) == []
    assert CANARY not in linked.log.getvalue()
    assert HOST not in linked.log.getvalue()


async def test_the_wait_of_a_cap_ends_with_its_window(linked: RunningGateway, database: Database) -> None:
    """Retry-After is the time until the clock hour ends, and the call succeeds then."""
    now = linked.clock.now()
    hour = (now + timedelta(hours=1)).replace(minute=30, second=0, microsecond=0)
    linked.clock.advance(seconds=(hour - now).total_seconds())
    await linked.advance_x((hour - now).total_seconds())
    await set_rules(database, linked.key_id, {"caps": {"post_twitter": "1/h"}})
    assert (await linked.call("post_twitter", text("One"))).is_success
    refused = await linked.call("post_twitter", text("Two"))
    wait_s = int(refused.headers["retry-after"])
    assert 1_740 <= wait_s <= 1_801
    linked.clock.advance(seconds=wait_s)
    await linked.advance_x(wait_s)
    assert (await linked.call("post_twitter", text("Two"))).is_success
