"""Calls that need a person: what they answer, who is asked and when nobody is, and what is kept meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from sqlalchemy import select

from birdwire.gateway.guardrails import asking
from birdwire.gateway.guardrails.held_writes import MAX_WAITING
from birdwire.runtime.clock import rfc3339
from birdwire.sandbox.api import media as sandbox_media
from birdwire.store.database import StorageDownError
from birdwire.store.tables import approvals as store
from birdwire.store.tables.idempotency import NameState, idempotency
from birdwire.store.tables.journal import WAITING, journal
from harness.approvals import TTL_S, desk, other_key
from harness.gateway import API, GRACE, PNG, POST, RunningGateway
from harness.guarded_gateway import ACCOUNT, ADA, GATEWAY, OPERATOR, contents, pause, places_of, set_rules

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx2

    from harness.approvals import Desk

HELLO = {"text": "Good morning"}
HELLO_SHA256 = hashlib.sha256(
    b'{"fields":{"text":"Good morning"},"files":[],"operation":"post_twitter","user_id":"2244994945"}'
).hexdigest()
GIF, MP4 = b"GIF89a" + bytes(64), b"\x00\x00\x00\x18ftypmp42" + bytes(64)
_HOUR = datetime.now(UTC).hour
QUIET = {"hours": f"{_HOUR:02}:00-{(_HOUR + 6) % 24:02}:00", "zone": "UTC", "then": "approve"}
"""Hours that began before this run and end after it."""


@pytest_asyncio.fixture
async def asked(linked: RunningGateway) -> AsyncIterator[Desk]:
    """A linked gateway, on which every write of the key waits."""
    async with desk(linked) as made:
        yield made


async def calls_at_x(running: RunningGateway) -> int:
    """Return how many writes X got."""
    calls = [*await running.calls("/2/tweets"), *await running.calls("/2/users")]
    return len([call for call in calls if call["method"] != "GET"])


def expected(asked: Desk, approval: dict[str, Any]) -> dict[str, Any]:
    """Return what the answer to HELLO must be, but for its id and its time."""
    request_id = approval["request_id"]
    return {
        "request_id": request_id,
        "state": "awaiting_approval",
        "operation": "post_twitter",
        "account": {"user_id": ADA, "username": "ada"},
        "payload_sha256": HELLO_SHA256,
        "approve_by": "operator",
        "cost_usd": 0.015,
        "findings": [
            {
                "rule": "approve",
                "outcome": "require_approval",
                "reason": "policy_denied",
                "message": "post_twitter needs a person's approval",
                "scope": asked.running.key_id,
                "version": 1,
            }
        ],
        "expires_at": approval["expires_at"],
        "edited_from": None,
        "review_url": None,
        "next": "Nothing was published. A person must decide first: the operator can run "
        f"`birdwire approvals approve {request_id}`. Birdwire then sends the request itself. "
        f"Poll GET {API}requests/{request_id}, or repeat the call with the same Idempotency-Key.",
    }


# The answer.


async def test_a_call_that_waits_is_answered_202_to_the_byte(asked: Desk) -> None:
    """No `data`, which clients take for X's answer, and no `error`, at which they would retry."""
    before = asked.running.clock.now()
    answer = await asked.running.call("post_twitter", HELLO)
    approval = answer.json()["approval"]
    assert answer.status_code == 202
    wanted = {"approval": expected(asked, approval)}
    assert answer.content == json.dumps(wanted, separators=(",", ":")).encode()
    expires_at = datetime.fromisoformat(approval["expires_at"])
    assert timedelta(seconds=-2) < expires_at - before - timedelta(seconds=TTL_S) < timedelta(seconds=10)
    assert approval["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["location"] == f"{API}requests/{approval['request_id']}"
    assert (answer.headers["retry-after"], answer.headers["x-birdwire-cost-usd"]) == ("5", "0")
    assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("application/json", "no-store")
    assert await calls_at_x(asked.running) == 0


async def test_the_relay_dialect_never_answers_code_200(asked: Desk) -> None:
    """Its clients take 200 for a post that was published."""
    body = {"aisa_api_key": asked.running.raw_key, "content": "Good morning"}
    answer = await asked.running.bare.post(API + "post_twitter", json=body)
    envelope = answer.json()
    assert (answer.status_code, list(envelope)) == (202, ["code", "msg", "approval"])
    assert (envelope["code"], envelope["msg"]) == (202, "awaiting approval")
    assert envelope["approval"] == expected(asked, envelope["approval"])
    assert answer.headers["location"] == f"{API}requests/{envelope['approval']['request_id']}"
    # An identical call over HTTP is the same request, and a repetition in the dialect answers the same.
    assert await asked.post() == envelope["approval"]
    again = await asked.running.bare.post(API + "post_twitter", json=body)
    assert (again.status_code, again.content) == (202, answer.content)


async def test_a_name_is_answered_by_its_request(asked: Desk) -> None:
    """To the byte, while it waits and after it was cancelled; nothing is done again under the name."""
    headers = {"idempotency-key": "morning"}
    first = await asked.running.call("post_twitter", HELLO, headers=headers)
    again = await asked.running.call("post_twitter", HELLO, headers=headers)
    assert (again.status_code, again.content) == (202, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    request_id = first.json()["approval"]["request_id"]
    assert (await asked.cancel(request_id)).status_code == 200
    ended = await asked.running.call("post_twitter", HELLO, headers=headers)
    assert (ended.status_code, ended.json()["error"]["reason"]) == (409, "cancelled")
    assert await asked.waiting() == 0
    other = await asked.running.call("post_twitter", {"text": "Other"}, headers=headers)
    assert other.json()["error"]["reason"] == "idempotency_key_reused"


async def test_the_report_of_a_call_that_waits(asked: Desk) -> None:
    """Nothing was sent, so it has neither a status nor a start."""
    approval = await asked.post()
    report = await asked.report(approval["request_id"])
    assert (report["state"], report["status"], report["started_at"], report["settled_at"]) == (
        "awaiting_approval",
        None,
        None,
        None,
    )
    wanted = {"payload_sha256": HELLO_SHA256, "approve_by": "operator", "expires_at": approval["expires_at"]}
    assert report["approval"].items() >= wanted.items()
    assert await asked.running.status() | {"rules": None} == await asked.running.status() | {"rules": None}
    assert (await asked.running.status())["rules"]["waiting"] == 1


async def test_an_event_tells_of_the_question_without_its_text(asked: Desk) -> None:
    """Once, also if an identical call follows."""
    approval = await asked.post("Text of the post")
    await asked.post("Text of the post")
    lines = [json.loads(line) for line in asked.running.log.getvalue().splitlines()]
    (event,) = [line for line in lines if line["event"] == "approval_requested"]
    about = {"request_id": approval["request_id"], "key_id": asked.running.key_id, "operation": "post_twitter"}
    assert {name: event[name] for name in about} == about
    assert "Text of the post" not in asked.running.log.getvalue()


# Which calls wait.


RULES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "approve": ({"approve": ["post_twitter"]}, HELLO, "post_twitter"),
    "approve a like": ({"approve": ["like_twitter"]}, {"tweet_id": POST}, "like_twitter"),
    "kinds": ({"kinds": {"reply": "approve"}}, HELLO | {"reply": {"in_reply_to_tweet_id": POST}}, "post_twitter"),
    "links": ({"links": "approve"}, {"text": "see example.org"}, "post_twitter"),
    "links only": ({"links": {"only": ["a.org"], "else": "approve"}}, {"text": "see example.org"}, "post_twitter"),
    "mentions": ({"mentions": {"max": 0, "else": "approve"}}, {"text": "Hello @grace"}, "post_twitter"),
    "words": ({"words": {"approve": ["price"]}}, {"text": "A price"}, "post_twitter"),
    "quiet hours": ({"quiet_hours": QUIET}, HELLO, "post_twitter"),
    "unpriced": ({"budget": {"day_usd": 5, "unpriced": "approve"}}, HELLO | {"quote_tweet_id": POST}, "post_twitter"),
}


@pytest.mark.parametrize("scope", ["", ACCOUNT, GATEWAY], ids=["key", "account", "gateway"])
@pytest.mark.parametrize("rule", RULES)
async def test_each_rule_that_asks_lets_the_call_wait(linked: RunningGateway, rule: str, scope: str) -> None:
    """The dry run states the same: outcome, findings, price and hash, and no refusal."""
    rules, body, name = RULES[rule]
    async with desk(linked, {"mentions": {"max": 50, "else": "deny"}}) as asked:
        await asked.rules(rules, scope)
        would = (await linked.call(f"dry_run/{name}", body)).json()["would"]
        assert (would["outcome"], would["refusals"]) == ("require_approval", [])
        approval = await asked.ask(body, name)
        for member in ("findings", "payload_sha256", "cost_usd", "approve_by", "operation", "account"):
            assert approval[member] == would[member], member
        (finding,) = approval["findings"]
        assert (finding["scope"], finding["outcome"]) == (scope or linked.key_id, "require_approval")
        assert await calls_at_x(linked) == 0


CALLED: dict[str, dict[str, Any]] = {
    "post_twitter": {"text": "Tea?", "poll": {"options": ["Yes", "No"], "duration_minutes": 60}, "nullcast": False},
    "delete_twitter": {"tweet_id": POST},
    "follow_twitter": {"target_user_id": GRACE},
    "unfollow_twitter": {"target_user_id": GRACE},
    **{f"{name}_twitter": {"tweet_id": POST} for name in ("like", "unlike", "retweet", "unretweet", "bookmark")},
}


@pytest.mark.parametrize("name", CALLED)
async def test_every_operation_waits_under_the_hash_of_its_dry_run(asked: Desk, name: str) -> None:
    """And its target is as it was sent."""
    would = (await asked.running.call(f"dry_run/{name}", CALLED[name])).json()["would"]
    approval = await asked.ask(CALLED[name], name)
    assert approval["payload_sha256"] == would["payload_sha256"]
    waiting = await asked.records.find(approval["request_id"])
    assert waiting is not None
    assert waiting.payload is not None
    assert dict(waiting.payload.fields) == CALLED[name]
    assert waiting.payload.sha256 == approval["payload_sha256"]


async def test_a_denial_is_stricter_than_a_question(asked: Desk) -> None:
    """Nothing waits, and all findings are listed."""
    await asked.rules({"approve": "*", "links": "deny"})
    answer = await asked.running.call("post_twitter", {"text": "see example.org"})
    error = answer.json()["error"]
    assert (answer.status_code, error["reason"]) == (403, "policy_denied")
    assert [one["outcome"] for one in error["findings"]] == ["deny", "require_approval"]
    assert await asked.waiting() == 0


async def test_what_publishes_nothing_never_waits(asked: Desk) -> None:
    """An upload and a look-up, by rules that ask for everything."""
    await asked.rules({"approve": "*", "quiet_hours": QUIET})
    files = {"media_files": ("bird.png", PNG, "image/png")}
    upload = await asked.running.client.post(API + "upload_media", files=files)
    assert upload.json()["error"]["reason"] == "quiet_hours"
    looked = await asked.running.client.get(API + "user/info?userName=grace")
    assert looked.status_code != 202
    assert await asked.waiting() == 0


async def test_a_policy_in_shadow_mode_asks_nobody(linked: RunningGateway) -> None:
    """It is recorded, and the call goes on."""
    async with desk(linked, {"mentions": {"max": 9, "else": "deny"}}) as asked:
        await set_rules(asked.database, linked.key_id, {"approve": "*"}, enforcement="shadow")
        assert (await linked.call("post_twitter", HELLO)).status_code == 201
        assert await asked.waiting() == 0


# Identical calls.


@pytest.mark.engines("sqlite", "postgres")
async def test_identical_calls_are_one_request(asked: Desk) -> None:
    """Whatever their names; each name is answered by it. Another payload, or another key, is another request."""
    names = [f"call {number}" for number in range(8)]
    answers = await asyncio.gather(
        *(asked.running.call("post_twitter", HELLO, headers={"idempotency-key": name}) for name in names)
    )
    assert {answer.status_code for answer in answers} == {202}
    (request_id,) = {answer.json()["approval"]["request_id"] for answer in answers}
    assert await asked.waiting() == 1
    async with asked.database.read() as connection:
        rows = (await connection.execute(select(idempotency).where(idempotency.c.key_id == asked.running.key_id))).all()
    assert {(row.state, row.request_id) for row in rows if row.name in names} == {(NameState.AWAITING, request_id)}
    # The member's order and white space make no other payload.
    spelled, headers = b'{ "text" : "Good morning" }', {"content-type": "application/json"}
    same = await asked.running.client.post(API + "post_twitter", content=spelled, headers=headers)
    assert same.json()["approval"]["request_id"] == request_id
    assert (await asked.post("Good evening"))["request_id"] != request_id
    async with other_key(asked.running) as key_id:
        await asked.rules({"approve": "*"}, key_id)
        assert (await asked.post())["request_id"] != request_id


async def test_what_has_ended_is_not_answered_for_an_identical_call(asked: Desk) -> None:
    """Cancelled, or out of time: the next call asks again, also before a gateway has noticed the time."""
    first = (await asked.post())["request_id"]
    assert (await asked.cancel(first)).is_success
    second = (await asked.post())["request_id"]
    asked.running.clock.advance(seconds=TTL_S)
    third = (await asked.post())["request_id"]
    assert len({first, second, third}) == 3
    assert await asked.state(third) == "awaiting_approval"


# Denied, and too many.


async def test_a_denied_call_is_remembered_for_a_day(asked: Desk) -> None:
    """The same call by the same key is refused without asking, with the note; the dry run states the same."""
    approval = await asked.post()
    await asked.approvals.deny(approval["request_id"], OPERATOR, note="Not on a Sunday.")
    would = (await asked.running.call("dry_run/post_twitter", HELLO)).json()["would"]
    answer = await asked.running.call("post_twitter", HELLO)
    error = answer.json()["error"]
    assert (answer.status_code, error["reason"], error["retryable"]) == (403, "approval_denied", False)
    assert "Not on a Sunday." in error["message"]
    assert (would["outcome"], [one["reason"] for one in would["refusals"]]) == ("deny", ["approval_denied"])
    assert would["refusals"][0]["message"] == error["message"]
    assert await asked.waiting() == 0
    # The refusal is on record as an attempt, and the denied request is a row of its own.
    async with asyncio.timeout(20):
        while await asked.row(answer.headers["x-request-id"]) is None:  # noqa: ASYNC110 - a background task writes it
            await asyncio.sleep(0.05)
    row = await asked.row(answer.headers["x-request-id"])
    assert row is not None
    assert (row.state, row.reason, row.times) == ("not_sent", "approval_denied", 1)
    async with other_key(asked.running) as key_id:
        await asked.rules({"approve": "*"}, key_id)
        await asked.post()
    await asked.post("Good evening")
    asked.running.clock.advance(hours=24, seconds=1)
    await asked.running.advance_x(24 * 3_600 + 1)
    assert (await asked.post())["request_id"] != approval["request_id"]


@pytest.mark.engines("sqlite", "postgres")
async def test_at_most_twenty_calls_of_a_key_wait(asked: Desk) -> None:
    """Of thirty at once, exactly twenty; an identical call of one of them is still answered by it."""
    answers = await asyncio.gather(
        *(asked.running.call("post_twitter", {"text": f"Number {number}"}) for number in range(MAX_WAITING + 10))
    )
    waiting = [answer for answer in answers if answer.status_code == 202]
    full = [answer for answer in answers if answer.status_code == 429]
    assert sorted({answer.status_code for answer in answers}) == [202, 429], [answer.text for answer in answers]
    assert (len(waiting), len(full), await asked.waiting()) == (MAX_WAITING, 10, MAX_WAITING)
    error = full[0].json()["error"]
    assert (error["reason"], error["code"], error["whose"]) == ("approvals_full", "quota_exceeded", "operator")
    assert (error["retryable"], full[0].headers["retry-after"]) == (True, "60")
    assert (await asked.running.status())["rules"]["waiting"] == MAX_WAITING
    number = next(number for number, answer in enumerate(answers) if answer.status_code == 202)
    again = await asked.post(f"Number {number}")
    assert again["request_id"] == answers[number].json()["approval"]["request_id"]
    would = (await asked.running.call("dry_run/post_twitter", HELLO)).json()["would"]
    assert [one["reason"] for one in would["refusals"]] == ["approvals_full"]
    async with other_key(asked.running) as key_id:
        await asked.rules({"approve": "*"}, key_id)
        await asked.post()
    assert (await asked.cancel(again["request_id"])).is_success
    await asked.post()


async def test_a_refused_question_frees_its_name(asked: Desk) -> None:
    """So that the caller can ask again under it once there is room."""
    for number in range(MAX_WAITING):
        await asked.post(f"Number {number}")
    headers = {"idempotency-key": "later"}
    assert (await asked.running.call("post_twitter", HELLO, headers=headers)).status_code == 429
    assert (await asked.cancel((await asked.post("Number 0"))["request_id"])).is_success
    assert (await asked.running.call("post_twitter", HELLO, headers=headers)).status_code == 202


async def test_a_key_that_was_revoked_meanwhile_asks_nobody(asked: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images were being sealed when the operator revoked it."""
    images = asking.shown_images

    async def revoking(*given: Any) -> list[tuple[int, bytes]]:
        await asked.running.gateway.keys.revoke(asked.running.key_id)
        return await images(*given)

    monkeypatch.setattr(asking, "shown_images", revoking)
    answer = await asked.running.call("post_twitter", HELLO)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (401, "key_revoked")
    assert await asked.waiting() == 0


async def test_a_call_that_was_taken_over_asks_nobody(asked: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process was so slow that another one did the call under the same name."""
    images = asking.shown_images

    async def taken(*given: Any) -> list[tuple[int, bytes]]:
        async with asked.database.write() as connection:
            await connection.execute(idempotency.update().values(request_id="req_OTHER"))
        return await images(*given)

    monkeypatch.setattr(asking, "shown_images", taken)
    answer = await asked.running.call("post_twitter", HELLO)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (409, "idempotency_in_flight")
    assert await asked.waiting() == 0


async def test_nothing_waits_while_the_store_is_down(asked: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call is refused and can be sent again under its name."""

    async def fail(*_: object) -> list[tuple[int, bytes]]:
        await asyncio.sleep(0)
        raise StorageDownError("a test")

    headers = {"idempotency-key": "later"}
    with monkeypatch.context() as patch:
        patch.setattr(asking, "shown_images", fail)
        answer = await asked.running.call("post_twitter", HELLO, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["reason"], error["retryable"]) == (503, "storage_unavailable", True)
    assert "nothing was published" in error["message"]
    assert await asked.waiting() == 0
    assert (await asked.running.call("post_twitter", HELLO, headers=headers)).status_code == 202


# Media.


def form(raw_key: str, *files: tuple[str, bytes, str], text: str = "With a file") -> list[Any]:
    """Return a post in the relay dialect with files."""
    fields = [("aisa_api_key", (None, raw_key)), ("content", (None, text))]
    return [*fields, *(("media_files", file) for file in files)]


async def with_files(asked: Desk, *files: tuple[str, bytes, str], text: str = "With a file") -> httpx2.Response:
    """Ask for a post with files."""
    sent = form(asked.running.raw_key, *files, text=text)
    return await asked.running.bare.post(API + "post_twitter", files=sent)


async def test_the_files_of_a_post_are_uploaded_before_it_waits(asked: Desk) -> None:
    """Images are kept sealed, to be shown; of a video, only what it is. The hash is the dry run's."""
    files = (("a.png", PNG, "image/png"), ("b.gif", GIF, "image/gif"))
    sent = form(asked.running.raw_key, *files)
    would = (await asked.running.bare.post(API + "dry_run/post_twitter", files=sent)).json()["data"]["would"]
    answer = await with_files(asked, *files)
    approval = answer.json()["approval"]
    assert approval["payload_sha256"] == would["payload_sha256"]
    waiting = await asked.records.find(approval["request_id"])
    assert waiting is not None
    assert waiting.payload is not None
    described = [
        {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "type": kind} for _, data, kind in files
    ]
    assert list(waiting.payload.files) == described
    assert "media" not in waiting.payload.fields
    finished = [call["path"] for call in await asked.running.calls("/2/media/upload/") if "finalize" in call["path"]]
    assert [f"/2/media/upload/{one}/finalize" for one in waiting.payload.media_ids] == finished
    assert [await asked.records.file(approval["request_id"], number) for number in range(3)] == [PNG, GIF, None]
    assert not [call for call in await asked.running.calls("/2/tweets") if call["method"] == "POST"]


async def test_a_post_that_nobody_is_asked_about_uploads_nothing(asked: Desk) -> None:
    """It was denied, or too many wait: its files never leave for X, and the refusal is an attempt."""
    file = ("a.png", PNG, "image/png")
    denied = (await with_files(asked, file)).json()["approval"]
    await asked.approvals.deny(denied["request_id"], OPERATOR)
    for number in range(MAX_WAITING):
        await asked.post(f"Number {number}")
    before = await asked.running.calls("/2/media/")
    for text, reason in (("With a file", "approval_denied"), ("With another", "approvals_full")):
        answer = await with_files(asked, file, text=text)
        assert answer.json()["error"]["reason"] == reason
        assert (await asked.records.find(answer.headers["x-request-id"])) is None
    assert await asked.running.calls("/2/media/") == before


async def test_only_images_of_some_mebibytes_are_kept(asked: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a video, not a large image, and not what a key has no room for."""
    video = (await with_files(asked, ("a.mp4", MP4, "video/mp4"), text="A video")).json()["approval"]["request_id"]
    monkeypatch.setattr(asking, "MAX_IMAGE_BYTES", len(PNG) - 1)
    large = (await with_files(asked, ("a.png", PNG, "image/png"), text="A large one")).json()["approval"]["request_id"]
    monkeypatch.undo()
    monkeypatch.setattr(asking, "MAX_KEPT_BYTES", 2 * len(PNG))
    kept = [
        (await with_files(asked, ("a.png", PNG, "image/png"), text=f"Number {number}")).json()["approval"]["request_id"]
        for number in range(2)
    ]
    async with asked.database.read() as connection:
        files = [await store.files_kept(connection, one) for one in (video, large, *kept)]
    assert files == [frozenset(), frozenset(), frozenset({0}), frozenset()]
    assert (await asked.cancel(kept[0])).is_success
    async with asked.database.read() as connection:
        assert await store.bytes_kept(connection, asked.running.key_id) == 0


async def test_an_approval_ends_before_x_deletes_its_files(asked: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five minutes before the first one: those of the call, and what was uploaded before."""
    monkeypatch.setattr(sandbox_media, "LIFETIME_S", 1_800)
    files = {"media_files": ("bird.png", PNG, "image/png")}
    upload = (await asked.running.client.post(API + "upload_media", files=files)).json()["data"]
    monkeypatch.setattr(sandbox_media, "LIFETIME_S", 2_400)
    until = datetime.fromisoformat(upload["expires_at"]) - timedelta(minutes=5)
    by_id = await asked.ask({"text": "By its id", "media": {"media_ids": [upload["media_id"]]}})
    assert by_id["expires_at"] == rfc3339(until)
    row = await asked.approval(by_id["request_id"])
    assert (row.media_until, row.expires_at, row.due_at) == (until, until, until)
    own = (await with_files(asked, ("a.png", PNG, "image/png"))).json()["approval"]
    left = datetime.fromisoformat(own["expires_at"]) - asked.running.clock.now()
    assert timedelta(minutes=34) < left <= timedelta(minutes=35)
    unknown = await asked.ask({"text": "An unknown file", "media": {"media_ids": ["1346889436626259968"]}})
    assert (await asked.approval(unknown["request_id"])).media_until is None


async def test_nobody_is_asked_about_a_file_that_ends_too_soon(asked: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than five minutes would be left to decide: refused with the reason, and nothing waits."""
    monkeypatch.setattr(sandbox_media, "LIFETIME_S", 599)
    answer = await with_files(asked, ("a.png", PNG, "image/png"))
    error = answer.json()["error"]
    assert (answer.status_code, error["reason"]) == (409, "approval_expired")
    assert "X deletes a file of the post" in error["message"]
    assert await asked.waiting() == 0


# Cancelling.


async def test_the_key_that_asked_can_cancel(asked: Desk) -> None:
    """Also while everything is paused. The answer is the report; the second time there is nothing to cancel."""
    request_id = (await asked.post())["request_id"]
    await pause(asked.database, GATEWAY)
    answer = await asked.cancel(request_id)
    assert answer.status_code == 200
    report = answer.json()
    assert report == await asked.report(request_id)
    assert (report["state"], report["status"], report["reason"]) == ("cancelled", 409, "cancelled")
    assert (report["approval"]["state"], report["cost_usd"]) == ("cancelled", 0)
    again = await asked.cancel(request_id)
    assert (again.status_code, again.json()["error"]["reason"]) == (409, "approval_not_waiting")
    assert "cancelled" in again.json()["error"]["message"]
    (act,) = await asked.acts()
    assert (act.act, act.who, act.via) == ("approval.cancelled", asked.running.key_id, "http")
    assert act.after == {"request_id": request_id, "payload_sha256": HELLO_SHA256}
    row = await asked.approval(request_id)
    assert (row.payload_ct, row.ended_at is not None) == (None, True)


async def test_a_key_cancels_its_own_requests_alone(asked: Desk) -> None:
    """Another key's request does not exist for it; nor does one that never waited."""
    request_id = (await asked.post())["request_id"]
    async with other_key(asked.running, linked=False):
        foreign = await asked.cancel(request_id)
        assert (foreign.status_code, foreign.json()["error"]["reason"]) == (404, "request_not_found")
    assert await asked.state(request_id) == "awaiting_approval"
    await asked.rules(None)
    liked = await asked.running.like()
    for unknown in (liked.headers["x-request-id"], "req_01JBQ2V3N4K5M6P7Q8R9S0T1V2", "x"):
        assert (await asked.cancel(unknown)).json()["error"]["reason"] == "request_not_found"


async def test_a_cancellation_is_repeated_under_its_name_for_its_own_request_alone(asked: Desk) -> None:
    """Under the same Idempotency-Key, another request is not answered with the report of the first."""
    first, second = [(await asked.post(text))["request_id"] for text in ("One", "Two")]
    name = {"idempotency-key": "cancel"}
    answers = [await asked.running.call(f"requests/{first}/cancel", headers=name) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert (answers[1].json(), answers[1].headers["idempotent-replayed"]) == (answers[0].json(), "true")
    other = await asked.running.call(f"requests/{second}/cancel", headers=name)
    assert (other.status_code, other.json()["error"]["reason"]) == (409, "idempotency_key_reused")
    assert await asked.state(second) == "awaiting_approval"


async def test_a_cancellation_takes_no_members(asked: Desk) -> None:
    """It works in both dialects, and with an empty body."""
    request_id = (await asked.post())["request_id"]
    path = f"requests/{request_id}/cancel"
    answer = await asked.running.call(path, {"why": "changed my mind"})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (400, "unknown_field")
    assert await asked.state(request_id) == "awaiting_approval"
    relayed = await asked.running.bare.post(API + path, json={"aisa_api_key": asked.running.raw_key})
    assert (relayed.json()["code"], relayed.json()["data"]["state"]) == (200, "cancelled")
    assert (await asked.running.client.get(API + path)).status_code == 405
    assert (await asked.running.bare.post(API + path)).json()["error"]["reason"] == "key_missing"


# What is kept.


CANARY = "kestrel-canary-7741"
HOST = "plover-canary.example.org"


@pytest.mark.trust("#320")
@pytest.mark.engines("sqlite", "postgres")
async def test_no_text_that_waits_is_at_rest_in_clear(asked: Desk) -> None:
    """While it waits, once it is edited, denied, cancelled or out of time: no table and no log has it."""
    option = {"poll": {"options": [CANARY, "No"], "duration_minutes": 60}}
    bodies = [{"text": f"{CANARY} {number} https://{HOST}/{number}"} for number in range(4)]
    denied, cancelled, edited, late = [await asked.ask(body) for body in bodies]
    polled = await asked.ask({"text": "A poll", **option})
    files = (("a.gif", b"GIF89a" + CANARY.encode() * 3, "image/gif"),)
    assert (await with_files(asked, *files, text=f"{CANARY} with a file")).status_code == 202
    assert await places_of(asked.database, [CANARY, HOST]) == []
    row = await asked.approvals.edit(edited["request_id"], f"{CANARY} {HOST}", edited["payload_sha256"], OPERATOR)
    assert row.edited_from == edited["payload_sha256"]
    await asked.approvals.deny(denied["request_id"], OPERATOR, note="No.")
    assert (await asked.cancel(cancelled["request_id"])).is_success
    assert await places_of(asked.database, [CANARY, HOST]) == []
    asked.running.clock.advance(seconds=TTL_S)
    async with asyncio.timeout(20):
        while await asked.waiting():  # noqa: ASYNC110 - a background task ends them
            await asyncio.sleep(0.05)
    assert await asked.state(late["request_id"]) == "expired"
    assert await places_of(asked.database, [CANARY, HOST]) == []
    # The unit that ends a write removes what it would have sent.
    for one in (denied, cancelled, late):
        assert (await asked.approval(one["request_id"])).payload_ct is None
    async with asked.database.read() as connection:
        assert (await connection.execute(select(store.approval_files))).all() == []
    assert polled["findings"]
    for text in (CANARY, HOST):
        assert text not in asked.running.log.getvalue()


async def test_an_unguarded_call_leaves_nothing_of_all_this(linked: RunningGateway) -> None:
    """No row of an approval, and no question."""
    async with desk(linked) as asked:
        await asked.rules(None)
        assert (await linked.call("post_twitter", HELLO)).status_code == 201
        tables = await contents(asked.database)
        assert (tables["approvals"], tables["approval_files"], tables["approval_links"]) == ([], [], [])
        async with asked.database.read() as connection:
            assert not (await connection.execute(select(journal).where(journal.c.state.in_(WAITING)))).all()
