"""Dry runs: what a call would do, without any effect."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from birdwire.store.database import Database
from birdwire.store.schema import metadata
from birdwire.store.tables import pauses
from birdwire.x.catalog.operations import OPERATIONS
from contract.test_guarded_writes import set_rules
from harness.gateway import API, GRACE, PNG, POST, RunningGateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MEMBERS = [
    *("outcome", "operation", "account", "refusals", "findings", "payload_sha256", "approve_by", "text", "cost_usd"),
    *("listed_on", "budget", "x", "request", "warnings"),
]
BODIES: dict[str, dict[str, Any]] = {
    row.name: {"text": "Hello"} if row.name == "post_twitter" else {row.target: GRACE if row.about == "user" else POST}
    for row in OPERATIONS
    if not row.takes_file
}


@pytest.fixture
async def database(running: RunningGateway) -> AsyncIterator[Database]:
    """The database of the gateway, as the command line opens it."""
    opened = Database(running.settings.database_url)
    yield opened
    await opened.close()


async def dry(running: RunningGateway, operation: str, body: object = None, **options: Any) -> dict[str, Any]:
    """Return what a call would do."""
    answer = await running.call(f"dry_run/{operation}", body, **options)
    assert answer.status_code == 200, answer.text
    would = answer.json()["would"]
    assert list(would) == MEMBERS
    return dict(would)


async def contents(database: Database) -> dict[str, list[str]]:
    """Return every row of every table but the leases of processes."""
    found = {}
    async with database.read() as connection:
        for table in metadata.sorted_tables:
            if table.name != "processes":
                found[table.name] = sorted(repr(tuple(row)) for row in await connection.execute(select(table)))
    return found


async def test_nothing_is_sent_or_stored(linked: RunningGateway, database: Database) -> None:
    """Of every operation, with a policy of every kind, also with an Idempotency-Key."""
    rules = {"caps": {"*": "9/h"}, "budget": {"day_usd": 1}, "duplicate_text": {"days": 1}, "delete": "own"}
    await set_rules(database, linked.key_id, rules)
    await linked.status()
    before, calls = await contents(database), await linked.calls()
    for name, body in BODIES.items():
        await dry(linked, name, body, headers={"idempotency-key": "k"})
    await dry(linked, "upload_media", files={"media_files": ("a.png", PNG, "image/png")})
    assert await contents(database) == before
    assert await linked.calls() == calls


@pytest.mark.parametrize("operation", BODIES)
async def test_what_is_allowed_is_done(linked: RunningGateway, operation: str) -> None:
    """The request that X gets is the one that was shown."""
    would = await dry(linked, operation, BODIES[operation])
    assert (would["outcome"], would["refusals"], would["findings"]) == ("allow", [], [])
    answer = await linked.call(operation, BODIES[operation])
    (call,) = await linked.calls(would["request"]["path"], method=would["request"]["method"])
    assert call["status"] == answer.status_code or operation == "delete_twitter"


async def test_a_post_is_described(linked: RunningGateway) -> None:
    """Its weight, its links and its mentions, what it costs, and what identifies it."""
    body = {"text": "Hi @grace, see https://Example.com/a"}
    would = await dry(linked, "post_twitter", body)
    assert would["text"] == {"weight": 38, "limit": 280, "links": ["example.com"], "mentions": ["grace"]}
    assert would["cost_usd"] == 0.2
    assert would["request"] == {"method": "POST", "path": "/2/tweets", "json": body}
    assert would["account"]["username"] == "ada"
    payload = {"fields": body, "files": [], "operation": "post_twitter", "user_id": would["account"]["user_id"]}
    canonical = json.dumps(payload, separators=(",", ":"), sort_keys=True)
    assert would["payload_sha256"] == hashlib.sha256(canonical.encode()).hexdigest()


async def test_every_step_tells_its_refusal(running: RunningGateway, database: Database) -> None:
    """A key without a link, whose rules do not allow the operation, that is paused, with a body that is too long."""
    await running.gateway.keys.change(running.key_id, actions=["link"], daily_writes=1)
    await set_rules(database, running.key_id, {"approve": "*"})
    async with database.write() as connection:
        await pauses.put(connection, pauses.PauseRow(running.key_id, "operator", datetime.now(UTC), None, "why", "me"))
    would = await dry(running, "post_twitter", {"text": "x" * 281})
    assert [one["reason"] for one in would["refusals"]] == [
        "key_not_allowed",
        "text_too_long",
        "x_not_linked",
        "paused",
    ]
    assert (would["outcome"], would["account"], would["request"], would["text"]) == ("deny", None, None, None)
    would = await dry(running, "post_twitter", {"text": "Hello"})
    reasons = [one["reason"] for one in would["refusals"]]
    assert reasons == ["key_not_allowed", "x_not_linked", "paused"]
    assert [(one["rule"], one["outcome"]) for one in would["findings"]] == [("approve", "require_approval")]


async def test_what_needs_a_person_is_not_denied(linked: RunningGateway, database: Database) -> None:
    """The call itself would wait: nothing refuses it."""
    await set_rules(database, linked.key_id, {"approve": "*"})
    would = await dry(linked, "like_twitter", {"tweet_id": POST})
    assert (would["outcome"], would["approve_by"], would["refusals"]) == ("require_approval", "operator", [])
    assert [finding["rule"] for finding in would["findings"]] == ["approve"]


async def test_counting_rules_are_judged_by_what_is_counted(linked: RunningGateway, database: Database) -> None:
    """The same findings as the call gets."""
    await set_rules(database, linked.key_id, {"caps": {"like_twitter": "1/h"}, "budget": {"day_usd": 0.02}})
    assert (await dry(linked, "like_twitter", {"tweet_id": POST}))["outcome"] == "allow"
    assert (await linked.like()).status_code == 200
    would = await dry(linked, "like_twitter", {"tweet_id": POST})
    error = (await linked.like()).json()["error"]
    assert would["findings"] == error["findings"]
    assert [one["reason"] for one in would["refusals"]] == [error["reason"]]
    assert would["budget"]["day"]["used_usd"] == 0.015


async def test_a_used_up_window_is_no_refusal_that_counts(linked: RunningGateway) -> None:
    """A look at X's windows does not count as a call that was spared."""
    await linked.configure(likes_per_15m=1)
    assert (await linked.like()).status_code == 200
    would = await dry(linked, "like_twitter", {"tweet_id": POST})
    assert [one["reason"] for one in would["refusals"]] == ["x_window_15m"]
    assert would["x"]["windows"]["15m"]["remaining"] == 0
    assert linked.gateway.clients.windows.refused == 0


async def test_a_file_is_inspected(linked: RunningGateway) -> None:
    """Its kind and its size; nothing is uploaded."""
    would = await dry(linked, "upload_media", files={"media_files": ("a.txt", b"text", "image/png")})
    assert [one["reason"] for one in would["refusals"]] == ["media_files_malformed"]
    would = await dry(linked, "upload_media", files={"media_files": ("a.png", PNG, "image/png")})
    assert (would["outcome"], would["cost_usd"]) == ("allow", 0)
    assert would["warnings"] == ["X's price list has no price for an upload; a budget counts it as 0."]
    assert len(would["payload_sha256"]) == 64


async def test_a_file_needs_no_link(running: RunningGateway) -> None:
    """The refusal is part of the answer."""
    would = await dry(running, "upload_media", files={"media_files": ("a.png", PNG, "image/png")})
    assert [one["reason"] for one in would["refusals"]] == ["x_not_linked"]


async def test_malformed_json_is_an_error(linked: RunningGateway) -> None:
    """There is nothing that could be previewed."""
    headers = {"content-type": "application/json"}
    answer = await linked.client.post(API + "dry_run/like_twitter", content=b"{", headers=headers)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (400, "json_malformed")


async def test_older_clients_may_ask_too(linked: RunningGateway) -> None:
    """In their spelling, on either path."""
    body = {"aisa_api_key": linked.raw_key, "content": "Hello"}
    for path in (API, API.replace("twitter/", "")):
        answer = (await linked.bare.post(f"{path}dry_run/post_twitter", json=body)).json()
        assert (answer["code"], answer["data"]["would"]["text"]["weight"]) == (200, 5)


async def test_it_takes_one_of_the_key_s_calls(linked: RunningGateway) -> None:
    """And nothing else of any limit."""
    await linked.gateway.keys.change(linked.key_id, daily_writes=1)
    answers = [await linked.call("dry_run/like_twitter", {"tweet_id": POST}) for _ in range(2)]
    left = [int(answer.headers["x-ratelimit-remaining-requests"]) for answer in answers]
    assert left[0] - left[1] == 1
    assert (await linked.like()).status_code == 200
    would = await dry(linked, "like_twitter", {"tweet_id": POST})
    assert [one["reason"] for one in would["refusals"]] == ["daily_cap"]
