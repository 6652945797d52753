"""Writes and lookups of guarded keys: what policies refuse, what a call reserves, and what goes back."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import pytest
from sqlalchemy import select

from birdwire.api.errors import GatewayError
from birdwire.outcomes.idempotency import Idempotency
from birdwire.store.database import Database, StorageDownError
from birdwire.store.tables import policies
from birdwire.store.tables.journal import State, journal
from birdwire.store.tables.usage import usage
from harness.gateway import API, POST, RunningGateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx2

COST = "x-birdwire-cost-usd"
BUDGET = {"budget": {"day_usd": 0.05}}


@pytest.fixture
async def database(running: RunningGateway) -> AsyncIterator[Database]:
    """The database of the gateway, as the command line opens it."""
    opened = Database(running.settings.database_url)
    yield opened
    await opened.close()


async def set_rules(
    database: Database, scope: str, rules: dict[str, Any] | None, enforcement: Literal["enforce", "shadow"] = "enforce"
) -> None:
    """Add a version of the operator's policy of a scope, and announce it."""
    async with database.write() as connection:
        version = 1 + max((row.version for row in await policies.latest(connection, [scope])), default=0)
        row = policies.PolicyRow(scope, "operator", version, enforcement, None, rules, datetime.now(UTC), "a test")
        assert await policies.append(connection, row)


async def used(database: Database, scope: str, measure: str = "usd") -> dict[str, int]:
    """Return what a scope has used of a measure, by the kind of window."""
    query = select(usage.c.window, usage.c.amount).where(usage.c.scope == scope, usage.c.measure == measure)
    names = {7: "month", 10: "day", 13: "hour"}
    async with database.read() as connection:
        return {names[len(row.window)]: row.amount for row in await connection.execute(query)}


async def rows(database: Database) -> list[Any]:
    """Return the rows of the journal that are writes; refused attempts are recorded there a little later."""
    query = select(journal).where(journal.c.state != State.NOT_SENT).order_by(journal.c.request_id)
    async with database.read() as connection:
        return list(await connection.execute(query))


async def get(running: RunningGateway, path: str, **query: str) -> httpx2.Response:
    """Send a lookup."""
    return await running.client.get(API + path, params=query)


def reason_of(answer: httpx2.Response) -> str:
    """Return the reason of a refusal."""
    return str(answer.json()["error"]["reason"])


async def test_an_unguarded_call_has_neither_cost_nor_decision(linked: RunningGateway, database: Database) -> None:
    """No header, and no column of the journal that only policies fill."""
    answer = await linked.like()
    assert COST not in answer.headers
    (row,) = await rows(database)
    assert (row.spent, row.decision, row.started_at) == (None, None, None)


async def test_a_call_that_passes_is_charged_in_each_scope(linked: RunningGateway, database: Database) -> None:
    """The key's, the account's and the gateway's budgets each count it, and the answer states what it cost."""
    scopes = (linked.key_id, "gateway", f"account:{(await linked.status())['user_id']}")
    for scope in scopes:
        await set_rules(database, scope, {"budget": {"day_usd": 1, "month_usd": 2}})
    answer = await linked.call("post_twitter", {"text": "Hello"})
    assert (answer.status_code, answer.headers[COST]) == (201, "0.015")
    for scope in scopes:
        assert await used(database, scope) == {"day": 15_000, "month": 15_000}
    (row,) = await rows(database)
    assert row.decision["versions"] == dict.fromkeys(scopes, 1)
    assert row.cost_microusd == 15_000


@pytest.mark.engines("sqlite", "postgres")
async def test_a_budget_lets_exactly_so_many_concurrent_calls_pass(linked: RunningGateway, database: Database) -> None:
    """Each call that is refused wrote nothing, and knows why."""
    await set_rules(database, linked.key_id, BUDGET)
    answers = await asyncio.gather(*(linked.like() for _ in range(20)))
    passed = [answer for answer in answers if answer.is_success]
    refused = [answer for answer in answers if not answer.is_success]
    assert len(passed) == 3
    assert {answer.headers[COST] for answer in passed} == {"0.015"}
    assert {(answer.status_code, reason_of(answer)) for answer in refused} == {(429, "budget_exhausted")}
    assert {answer.headers[COST] for answer in refused} == {"0"}
    (finding,) = refused[0].json()["error"]["findings"]
    assert {"rule": "budget", "outcome": "deny", "scope": linked.key_id, "version": 1}.items() <= finding.items()
    assert int(refused[0].headers["retry-after"]) >= 1
    assert await used(database, linked.key_id) == {"day": 45_000}
    assert len(await linked.calls("/2/users/", method="POST")) == 3


@pytest.mark.engines("sqlite", "postgres")
async def test_what_x_refuses_is_given_back(linked: RunningGateway, database: Database) -> None:
    """The money, the count, the gap and the text: the same call may be tried again."""
    rules = {"caps": {"*": "1/h"}, "min_gap_s": {"post_twitter": 600}, "duplicate_text": {"days": 1}}
    await set_rules(database, linked.key_id, BUDGET | rules)
    forbidden = {"title": "Forbidden", "detail": "no", "status": 403}
    await linked.fault("POST", "/2/tweets", {"status": 403, "body": forbidden})
    refused = await linked.call("post_twitter", {"text": "Hello"})
    assert (refused.status_code, refused.headers[COST]) == (403, "0")
    assert await used(database, linked.key_id) == {"day": 0}
    again = await linked.call("post_twitter", {"text": "Hello"})
    assert (again.status_code, again.headers[COST]) == (201, "0.015")
    third = await linked.call("post_twitter", {"text": "Hello"})
    assert {finding["rule"] for finding in third.json()["error"]["findings"]} == {"caps", "min_gap_s", "duplicate_text"}
    assert reason_of(third) == "duplicate_text"


async def test_a_retry_that_x_may_have_counted_is_charged(linked: RunningGateway, database: Database) -> None:
    """X lost the answer to the first attempt of a like, and confirmed the second one."""
    await set_rules(database, linked.key_id, {"budget": {"day_usd": 0.015}})
    await linked.fault("POST", "/2/users/*/likes", {"drop": "after_apply"})
    answer = await linked.like()
    assert (answer.status_code, answer.headers[COST]) == (200, "0.03")
    assert await used(database, linked.key_id) == {"day": 30_000}


async def test_what_may_have_been_done_stays_charged(linked: RunningGateway, database: Database) -> None:
    """A post whose answer is lost."""
    await set_rules(database, linked.key_id, BUDGET)
    await linked.fault("POST", "/2/tweets", {"drop": "after_apply"})
    answer = await linked.call("post_twitter", {"text": "Hello"})
    assert (reason_of(answer), answer.headers[COST]) == ("outcome_unknown", "0.015")
    assert await used(database, linked.key_id) == {"day": 15_000}


async def test_a_refusal_lists_every_finding(linked: RunningGateway, database: Database) -> None:
    """Denials come first, and what waiting does not cure decides."""
    rules = {"links": "deny", "words": {"deny": ["giveaway"]}, "mentions": {"max": 0, "else": "approve"}}
    await set_rules(database, linked.key_id, rules | {"caps": {"post_twitter": "1/d"}})
    assert (await linked.call("post_twitter", {"text": "Hello"})).status_code == 201
    answer = await linked.call("post_twitter", {"text": "A giveaway by @grace: example.com"})
    error = answer.json()["error"]
    assert (answer.status_code, error["reason"]) == (403, "policy_denied")
    assert [finding["rule"] for finding in error["findings"]] == ["caps", "links", "words", "mentions"]
    assert "retry-after" not in answer.headers
    assert len(await rows(database)) == 1


async def test_a_policy_in_shadow_mode_changes_nothing(linked: RunningGateway, database: Database) -> None:
    """The answers are the same to the byte, and the journal has what would have been refused."""
    before = await linked.like()
    await set_rules(database, linked.key_id, {"approve": "*", "caps": {"like_twitter": "1/d"}}, "shadow")
    answers = [await linked.like() for _ in range(2)]
    for answer in answers:
        assert answer.content == before.content
        assert answer.headers.keys() == before.headers.keys()
    found = [[finding["rule"] for finding in row.decision["shadow"]] for row in (await rows(database))[1:]]
    assert found == [["approve"], ["caps", "approve"]]
    assert await used(database, linked.key_id, "writes:like_twitter") == {"day": 1}


async def test_what_shadow_mode_counted_is_given_back_once(
    linked: RunningGateway, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if a post is stopped after its row was written: the row's end gives back, and nothing else does."""
    await set_rules(database, linked.key_id, {"caps": {"*": "9/d"}} | BUDGET, "shadow")
    assert (await linked.call("post_twitter", {"text": "One"})).status_code == 201

    async def lost(*_: object) -> None:
        raise GatewayError("idempotency_in_flight", retry_after_s=1)

    monkeypatch.setattr(Idempotency, "hold", lost)
    assert reason_of(await linked.call("post_twitter", {"text": "Two"})) == "idempotency_in_flight"
    assert await used(database, linked.key_id) == {"day": 15_000}
    assert await used(database, linked.key_id, "writes:*") == {"day": 1}


async def test_a_deletion_of_an_own_post_is_known_by_the_journal(linked: RunningGateway, database: Database) -> None:
    """What the key has made may be deleted, and nothing else."""
    made = (await linked.call("post_twitter", {"text": "Hello"})).json()["data"]["id"]
    await set_rules(database, linked.key_id, {"delete": "own"})
    assert reason_of(await linked.call("delete_twitter", {"tweet_id": POST})) == "policy_denied"
    assert (await linked.call("delete_twitter", {"tweet_id": made})).status_code == 200


@pytest.mark.engines("sqlite", "postgres")
async def test_a_lookup_costs_what_came(linked: RunningGateway, database: Database) -> None:
    """It reserves the most, is corrected to what X returned, and a cached answer costs nothing."""
    await set_rules(database, linked.key_id, {"budget": {"day_usd": 0.25}})
    found = await get(linked, "user/search", query="grace")
    users = len(found.json()["users"])
    assert found.headers[COST] == f"{users * 0.01:g}"
    first, second = [await get(linked, "user/info", userName="grace") for _ in range(2)]
    assert (first.headers[COST], second.headers[COST]) == ("0.01", "0")
    assert await used(database, linked.key_id) == {"day": (users + 1) * 10_000}


async def test_a_lookup_that_the_budget_does_not_cover_is_not_sent(linked: RunningGateway, database: Database) -> None:
    """The most that it may return counts."""
    await set_rules(database, linked.key_id, {"budget": {"day_usd": 0.19}})
    answer = await get(linked, "user/search", query="grace")
    assert (answer.status_code, reason_of(answer), answer.headers[COST]) == (429, "budget_exhausted", "0")
    assert not await linked.calls("/2/users/search")
    assert (await get(linked, "user/info", userName="grace")).status_code == 200


async def test_reads_that_nobody_asked_for_count_and_are_never_refused(
    running: RunningGateway, database: Database
) -> None:
    """X bills the name of an account that is linked, also with a budget that is used up."""
    await set_rules(database, running.key_id, {"budget": {"day_usd": 0.005}})
    await running.link("ada")
    assert (await running.status())["linked"] is True
    user_id = (await running.status())["user_id"]
    assert await used(database, running.key_id) == {"day": 10_000}
    assert await used(database, running.key_id, f"reads:users/me:{user_id}") == {"day": 1}
    assert await used(database, running.key_id, f"reads_usd:users/me:{user_id}") == {"day": 10_000}


async def test_an_unreadable_policy_refuses_what_costs(linked: RunningGateway, database: Database) -> None:
    """Nobody knows what it forbids, so nothing is sent; `auth/status` states this."""
    await set_rules(database, linked.key_id, {"no_such_rule": 1})
    for answer in (await linked.like(), await get(linked, "user/info", userName="grace")):
        assert (answer.status_code, reason_of(answer)) == (403, "policy_unreadable")
    assert not await linked.calls("/2/users/", method="POST")
    (sentence,) = (await linked.status())["rules"]["sentences"]
    assert linked.key_id in sentence
    would = (await linked.call("dry_run/like_twitter", {"tweet_id": POST})).json()["would"]
    assert [one["reason"] for one in would["refusals"]] == ["policy_unreadable"]


async def test_a_call_that_waits_is_judged_by_the_rules_of_now(linked: RunningGateway, database: Database) -> None:
    """X fails once, and the policy that is set before the retry refuses it: X may have done the first attempt."""
    await linked.fault("POST", "/2/users/*/likes", {"drop": "before_apply"})

    async def forbid() -> None:
        linked.clock.meanwhile = None
        await set_rules(database, linked.key_id, {"approve": "*"})

    linked.clock.meanwhile = forbid
    answer = await linked.like()
    assert reason_of(answer) == "approval_stale"
    assert len(await linked.calls("/2/users/", method="POST")) <= 1


async def test_an_upload_counts_as_nothing(linked: RunningGateway, database: Database) -> None:
    """X's list has no price for it, and the policy does not refuse it for that."""
    await set_rules(database, linked.key_id, BUDGET)
    files = {"media_files": ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(64), "image/png")}
    answer = await linked.client.post(API + "upload_media", files=files)
    assert (answer.status_code, answer.headers[COST]) == (200, "0")


async def test_a_call_that_cannot_be_counted_is_not_sent(
    linked: RunningGateway, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the store, a guarded like is refused; a policy in shadow mode refuses nothing."""
    await set_rules(database, linked.key_id, BUDGET)
    assert (await linked.like()).status_code == 200

    async def down(*_: object) -> None:
        raise StorageDownError("a test")

    monkeypatch.setattr(Database, "append_all", down)
    answer = await linked.like()
    assert (answer.status_code, reason_of(answer)) == (503, "storage_unavailable")
    await set_rules(database, linked.key_id, BUDGET, "shadow")
    assert (await linked.like()).status_code == 200


async def test_the_status_shows_rules_and_budget(linked: RunningGateway, database: Database) -> None:
    """Nothing holds: null. Otherwise in words, with what is used."""
    status = await linked.status()
    assert (status["rules"], status["budget"], status["paused"]) == (None, None, None)
    await set_rules(database, linked.key_id, BUDGET | {"caps": {"post_twitter": "3/h"}})
    assert (await linked.like()).status_code == 200
    status = await linked.status()
    assert status["rules"]["enforcement"] == "enforce"
    assert len(status["rules"]["sentences"]) == 2
    assert {"limit_usd": 0.05, "used_usd": 0.015}.items() <= status["budget"]["day"].items()
    assert status["budget"]["month"] is None
