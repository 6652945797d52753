"""Sending what a person approved: once, exactly as it was shown, and only while everything still holds."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from birdwire.api.errors import GatewayError
from birdwire.gateway.admission import Admission
from birdwire.gateway.approved_writes import MAX_SENDING, ROUND_EVERY_S
from birdwire.keys.registry import Keys
from birdwire.outcomes.approval_payload import Payload
from birdwire.outcomes.claims import Claims
from birdwire.outcomes.entry import Approved, Entry
from birdwire.outcomes.journal import Journal
from birdwire.outcomes.process_leases import LEASE, ProcessLeases
from birdwire.startup import open_vault
from birdwire.store.database import StorageDownError
from birdwire.store.tables import approvals as store
from birdwire.store.tables.journal import State
from birdwire.store.tables.usage import Charge
from birdwire.x.client.api import X
from harness.approvals import other_key
from harness.gateway import POST, gateway
from harness.guarded_gateway import ADA, OPERATOR, pause, price_of, resume
from harness.sending_desk import SendingDesk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from harness.gateway import RunningGateway

EVERYTHING = {"approve": "*", "budget": {"day_usd": 5.0}}
BODY = {"text": "a post that waits for a person"}
LIKE = {"tweet_id": POST}
NAME = "the name of the call"


@pytest.fixture
async def desk(linked: RunningGateway) -> AsyncIterator[SendingDesk]:
    """The operator of a gateway whose key asks for every write, under a budget."""
    async with SendingDesk.opened(linked, EVERYTHING) as opened:
        yield opened


async def test_an_approved_post_is_sent_once_as_it_was_shown(desk: SendingDesk) -> None:
    """The same post id from the journal, the request's report, and the repeated Idempotency-Key; charged once."""
    asked = await desk.ask("post_twitter", BODY, NAME)
    assert (await desk.sends(), await desk.spent()) == ([], 0)
    await desk.approve(asked)
    ended = await desk.ended(asked)
    assert (ended["state"], await desk.sends()) == ("confirmed", ["POST /2/tweets"])
    assert (await desk.running.post_of(ended["x_id"]))["text"] == BODY["text"]
    again = await desk.repeated(NAME, "post_twitter", BODY)
    assert (again.status_code, again.json()["data"]["id"]) == (201, ended["x_id"])
    assert (await desk.http_report(asked))["data"]["id"] == ended["x_id"]
    assert len(await desk.sends()) == 1
    assert await desk.spent() == await desk.in_journal() == price_of("post_twitter")
    row = (await desk.waiting(asked)).row
    assert (row.payload_ct, row.due_at, row.ended_at is not None) == (None, None, True)


async def test_events_and_metrics_report_a_decision_and_its_end_once(desk: SendingDesk) -> None:
    """Without a text, a note or a token."""
    sent, denied = await desk.ask("post_twitter", BODY), await desk.ask("like_twitter", LIKE)
    desk.running.clock.advance(seconds=90)
    await desk.approve(sent)
    await desk.approvals.deny(denied, OPERATOR, note="a secret note")
    assert (await desk.ended(sent))["state"] == "confirmed"
    await desk.until(denied, lambda _: len(desk.events("approval_decided")) == 2)
    decided = {event["request_id"]: event for event in desk.events("approval_decided")}
    assert {one: decided[one]["verdict"] for one in decided} == {sent: "approved", denied: "denied"}
    assert all(90 <= event["seconds"] < 120 for event in decided.values())
    event = await desk.event("approval_sent")
    assert (event["request_id"], event["outcome"], event["key_id"]) == (sent, "confirmed", desk.running.key_id)
    assert {event["request_id"] for event in desk.events("approval_requested")} == {sent, denied}
    metrics = (await desk.running.bare.get("/metrics")).text if desk.running.settings.metrics_inside else ""
    counts = desk.running.gateway.telemetry.metrics._counts["birdwire_approvals_total"]  # noqa: SLF001
    assert (counts["sent",], counts["denied",], sum(counts.values())) == (1, 1, 2), metrics
    log = desk.running.log.getvalue()
    assert "a secret note" not in log
    assert BODY["text"] not in log


# What has changed since a person was asked: nothing is sent, and the reason says why.


async def _other_payload(desk: SendingDesk, asked: str) -> None:
    sealed = desk.records.seal_payload(asked, Payload("post_twitter", ADA, {"text": "something else"}))
    await desk.change(asked, payload_ct=sealed)


async def _damaged_payload(desk: SendingDesk, asked: str) -> None:
    sealed = (await desk.waiting(asked)).row.payload_ct
    assert sealed is not None
    await desk.change(asked, payload_ct=sealed[:-1] + bytes([sealed[-1] ^ 1]))


async def _payload_of_another(desk: SendingDesk, asked: str) -> None:
    other = (await desk.waiting(await desk.ask("post_twitter", {"text": "another post"}))).row
    await desk.change(asked, payload_ct=other.payload_ct)


async def _another_account(desk: SendingDesk, _: str) -> None:
    assert (await desk.running.link("grace", body={"expected_username": "grace"})).status_code == 200


async def _linked_again(desk: SendingDesk, _: str) -> None:
    assert (await desk.running.link("ada")).status_code == 200


async def _unlinked(desk: SendingDesk, _: str) -> None:
    assert (await desk.running.call("unlink_twitter")).status_code == 200


async def _revoked(desk: SendingDesk, _: str) -> None:
    await Keys(desk.database, desk.running.clock).revoke(desk.running.key_id)


async def _expired_key(desk: SendingDesk, _: str) -> None:
    clock = desk.running.clock
    await Keys(desk.database, clock).change(desk.running.key_id, expires_at=clock.now() + timedelta(seconds=60))
    clock.advance(seconds=61)


async def _narrowed(desk: SendingDesk, _: str) -> None:
    await Keys(desk.database, desk.running.clock).change(desk.running.key_id, actions=["like_twitter"])


async def _denied_by_a_rule(desk: SendingDesk, _: str) -> None:
    await desk.rule(EVERYTHING | {"words": {"deny": ["waits"]}})


async def _another_finding(desk: SendingDesk, _: str) -> None:
    await desk.rule(EVERYTHING | {"words": {"approve": ["waits"]}})


async def _budget_spent(desk: SendingDesk, _: str) -> None:
    await desk.rule({"approve": ["post_twitter"], "budget": {"day_usd": 0.02}})
    assert (await desk.running.call("bookmark_twitter", LIKE)).status_code == 200
    assert (await desk.running.call("unbookmark_twitter", LIKE)).status_code == 200


async def _costs_more(desk: SendingDesk, asked: str) -> None:
    await desk.change(asked, cost_microusd=price_of("post_twitter") - 1)


Cause = tuple["Callable[[SendingDesk, str], Awaitable[None]]", str, str]

STALE: dict[str, Cause] = {
    "another payload": (_other_payload, "approval_stale", "not the one that was approved"),
    "a damaged payload": (_damaged_payload, "approval_stale", "not the one that was approved"),
    "the payload of another request": (_payload_of_another, "approval_stale", "not the one that was approved"),
    "another account": (_another_account, "approval_stale", "another account"),
    "the same account, linked again": (_linked_again, "approval_stale", "linked again"),
    "no link": (_unlinked, "x_not_linked", "No X account is linked"),
    "a revoked key": (_revoked, "key_revoked", "revoked"),
    "an expired key": (_expired_key, "key_expired", "expired"),
    "a key that may do less": (_narrowed, "key_not_allowed", "not allowed"),
    "a rule that denies": (_denied_by_a_rule, "policy_denied", "the word 'waits'"),
    "a finding that was not shown": (_another_finding, "approval_stale", "word"),
    "a spent budget": (_budget_spent, "budget_exhausted", "budget"),
    "a higher price": (_costs_more, "approval_stale", "costs more"),
}


@pytest.mark.trust("#317")
@pytest.mark.parametrize("case", STALE)
async def test_what_has_changed_since_is_never_sent(desk: SendingDesk, case: str) -> None:
    """The request ends as stale, with the cause, and nothing stays charged."""
    change, cause, words = STALE[case]
    asked = await desk.ask("post_twitter", BODY, NAME)
    await change(desk, asked)
    before, spent = await desk.sends(), await desk.spent()
    await desk.approve(asked)
    ended = await desk.ended(asked)
    assert (ended["state"], ended["reason"]) == ("not_sent", "approval_stale")
    assert await desk.sends() == before
    # A new link has X name its account, which costs a read.
    assert await desk.spent() == spent
    assert await desk.in_journal() == (price_of("bookmark_twitter") * 2 if change is _budget_spent else 0)
    event = await desk.event("approval_stale")
    assert (event["request_id"], event["reason"]) == (asked, cause)
    answer = await desk.records.answer(asked)
    error = answer.value["error"]
    assert (answer.status, error["reason"]) == (409, "approval_stale")
    assert words in error["message"], error["message"]


async def test_a_post_is_not_sent_when_x_is_about_to_delete_its_file(desk: SendingDesk) -> None:
    """Never less is posted than was approved."""
    asked = await desk.ask("post_twitter", BODY)
    await pause(desk.database, "gateway")
    await _approve_regardless(desk, asked)
    await desk.tried(asked)
    await desk.change(asked, media_until=desk.running.clock.now())
    await resume(desk.database, "gateway")
    desk.running.clock.advance(seconds=40)
    ended = await desk.ended(asked)
    assert (ended["state"], ended["reason"], await desk.sends()) == ("not_sent", "approval_stale", [])
    error = (await desk.records.answer(asked)).value["error"]
    assert "X deletes the uploaded files" in error["message"]


async def test_an_opposite_call_since_then_supersedes_what_was_approved(desk: SendingDesk) -> None:
    """The caller has changed its mind."""
    liked = await desk.ask("like_twitter", LIKE, NAME)
    await desk.rule({"approve": ["like_twitter"], "budget": {"day_usd": 5.0}})
    assert (await desk.running.call("unlike_twitter", LIKE)).status_code == 200
    before = await desk.sends()
    await desk.approve(liked)
    ended = await desk.ended(liked)
    assert (ended["state"], ended["reason"], await desk.sends()) == ("not_sent", "superseded", before)
    answer = await desk.repeated(NAME, "like_twitter", LIKE)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (409, "superseded")
    assert await desk.spent() == await desk.in_journal() == price_of("unlike_twitter")


async def test_nobody_decides_in_time(desk: SendingDesk) -> None:
    """The request expires, and cannot be approved afterwards."""
    asked = await desk.ask("post_twitter", BODY, NAME)
    desk.running.clock.advance(seconds=desk.running.settings.approval_ttl_s + 1)
    ended = await desk.ended(asked)
    assert (ended["state"], ended["reason"]) == ("expired", "approval_expired")
    with pytest.raises(GatewayError):
        await desk.approve(asked)
    answer = await desk.repeated(NAME, "post_twitter", BODY)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (409, "approval_expired")
    assert (await desk.sends(), await desk.spent()) == ([], 0)
    event = await desk.event("approval_expired")
    assert event["approved"] is False


@pytest.mark.parametrize("first", ["approve", "deny"])
async def test_a_second_decision_changes_nothing(desk: SendingDesk, first: str) -> None:
    """The first one stands, and a denied call is not sent."""
    asked = await desk.ask("post_twitter", BODY)
    await (desk.approve(asked) if first == "approve" else desk.approvals.deny(asked, OPERATOR))
    for again in (desk.approve(asked), desk.approvals.deny(asked, OPERATOR)):
        with pytest.raises(GatewayError) as refused:
            await again
        assert refused.value.reason == "approval_not_waiting"
    ended = await desk.ended(asked)
    assert ended["state"] == ("confirmed" if first == "approve" else "denied")
    assert len(await desk.sends()) == (first == "approve")


async def test_a_restored_backup_sends_nothing(desk: SendingDesk) -> None:
    """What waited, and what was approved, ends when a backup is restored."""
    waits = await desk.ask("post_twitter", BODY, NAME)
    async with desk.database.write() as connection:
        assert await store.end_all(connection, desk.running.clock.now(), "restored_backup") == 1
    with pytest.raises(GatewayError) as refused:
        await desk.approve(waits)
    assert refused.value.reason == "restored_backup"
    ended = await desk.ended(waits)
    assert (ended["state"], ended["reason"], await desk.sends()) == ("expired", "restored_backup", [])


# What passes: the request stays approved, and goes out later.


@contextlib.asynccontextmanager
async def _paused(desk: SendingDesk, _: pytest.MonkeyPatch) -> AsyncIterator[None]:
    await pause(desk.database, "gateway")
    yield
    await resume(desk.database, "gateway")


@contextlib.asynccontextmanager
async def _window(desk: SendingDesk, _: pytest.MonkeyPatch) -> AsyncIterator[None]:
    reset = int(desk.running.clock.unix_s()) + 120
    headers = {"x-rate-limit-limit": "100", "x-rate-limit-remaining": "0", "x-rate-limit-reset": str(reset)}
    await desk.running.fault("POST", "/2/tweets", {"status": 429, "headers": headers, "body": {"title": "Too Many"}})
    yield


@contextlib.asynccontextmanager
async def _breaker(desk: SendingDesk, _: pytest.MonkeyPatch) -> AsyncIterator[None]:
    breaker = desk.running.gateway.clients.breaker
    for _number in range(20):
        breaker.record_failure("POST /2/tweets", ADA)
    yield


@contextlib.asynccontextmanager
async def _unreachable(_: SendingDesk, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    async def send(*_: Any) -> None:
        raise GatewayError("x_unreachable")

    with monkeypatch.context() as patched:
        patched.setattr(X, "send", send)
        yield


@contextlib.asynccontextmanager
async def _storage_down(_: SendingDesk, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    async def start(*_: Any) -> None:
        raise StorageDownError("a drill")

    with monkeypatch.context() as patched:
        patched.setattr(Claims, "start", start)
        yield


PASSING = {"pause": _paused, "window": _window, "breaker": _breaker, "X": _unreachable, "storage": _storage_down}


async def _approve_regardless(desk: SendingDesk, asked: str) -> None:
    """Approve a request as if what now stands in the way had come right after the decision."""
    now = desk.running.clock.now()
    await desk.change_row(asked, state=State.APPROVED)
    values = {"decided_at": now, "decided_by": OPERATOR.who, "due_at": now, "expires_at": now + timedelta(minutes=10)}
    await desk.change(asked, **values)


@pytest.mark.parametrize("obstacle", PASSING)
async def test_what_passes_leaves_a_write_approved(
    desk: SendingDesk, obstacle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is charged meanwhile; it goes out once the obstacle has passed, and is charged once."""
    asked = await desk.ask("post_twitter", BODY)
    async with PASSING[obstacle](desk, monkeypatch):
        await _approve_regardless(desk, asked)
        tried = await desk.tried(asked)
        assert (tried.entry.started_at, tried.entry.owner, tried.entry.spent) == (None, None, None)
        assert await desk.spent() == 0
    desk.running.clock.advance(seconds=150)
    ended = await desk.ended(asked)
    assert ended["state"] == "confirmed"
    assert len(await desk.sends()) == 1 + (obstacle == "window")
    assert await desk.spent() == await desk.in_journal() == price_of("post_twitter")
    await desk.event("approval_decided")


async def test_an_approval_ends_ten_minutes_after_it_was_given(desk: SendingDesk) -> None:
    """A yes is for now."""
    asked = await desk.ask("post_twitter", BODY)
    await pause(desk.database, "gateway")
    await _approve_regardless(desk, asked)
    await desk.tried(asked)
    desk.running.clock.advance(seconds=599)
    assert (await desk.report(asked))["state"] == "approved"
    desk.running.clock.advance(seconds=2)
    ended = await desk.ended(asked)
    assert (ended["state"], ended["reason"], await desk.sends()) == ("expired", "approval_expired", [])
    event = await desk.event("approval_expired")
    assert event["approved"] is True
    await resume(desk.database, "gateway")
    assert (await desk.report(asked))["state"] == "expired"


async def _others(desk: SendingDesk, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Approve more requests than a process sends at a time, none of which this gateway can send."""
    requests = [await desk.ask("post_twitter", {"text": f"post {number}"}) for number in range(MAX_SENDING + 1)]
    if how == "mode":
        serves, key_id = Admission.serves, desk.running.key_id
        monkeypatch.setattr(Admission, "serves", lambda self, key: key.key_id != key_id and serves(self, key))
    for request_id in requests:
        if how == "operation":
            await desk.change(request_id, operation="an operation of a newer version")
        await desk.approve(request_id)


@pytest.mark.parametrize("how", ["mode", "operation"])
async def test_what_a_gateway_cannot_send_does_not_hold_up_the_rest(
    desk: SendingDesk, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of keys of the other mode, and requests at which a send fails; each failure is logged once."""
    await _others(desk, how, monkeypatch)
    await asyncio.sleep(2 * ROUND_EVERY_S)
    async with other_key(desk.running):
        await desk.rule(EVERYTHING)
        asked = await desk.ask("post_twitter", BODY)
        await desk.approve(asked)
        assert (await desk.ended(asked, within_s=5))["state"] == "confirmed"
    assert len(desk.events("crash")) == (0 if how == "mode" else MAX_SENDING + 1)


@pytest.mark.parametrize("body", [BODY, LIKE], ids=["post", "like"])
@pytest.mark.parametrize(("owner", "step", "state"), [(Journal, "begin", "expired"), (Claims, "check", "not_sent")])
async def test_a_process_that_was_suspended_sends_nothing_after_its_time(
    desk: SendingDesk, owner: type, step: str, state: str, body: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood still before it started the write, or between that and the send."""
    real = getattr(owner, step)

    async def later(*given: Any) -> Any:
        desk.running.clock.advance(minutes=11)
        return await real(*given)

    asked = await desk.ask("post_twitter" if body is BODY else "like_twitter", body, NAME)
    monkeypatch.setattr(owner, step, later)
    await desk.approve(asked)
    ended = await desk.ended(asked)
    assert (ended["state"], ended["reason"]) == (state, "approval_expired")
    assert (await desk.sends(), await desk.spent(), await desk.in_journal()) == ([], 0, 0)


async def test_what_x_refuses_is_an_ordinary_refusal(desk: SendingDesk) -> None:
    """It ends with X's reason, which the caller gets, and the charge goes back."""
    asked = await desk.ask("like_twitter", {"tweet_id": "1346889436626259969"}, NAME)
    await desk.approve(asked)
    ended = await desk.ended(asked)
    assert (ended["state"], ended["reason"]) == ("refused", "tweet_not_found")
    answer = await desk.repeated(NAME, "like_twitter", {"tweet_id": "1346889436626259969"})
    error = answer.json()["error"]
    assert (answer.status_code, error["reason"], error["request_id"]) == (404, "tweet_not_found", asked)
    assert await desk.spent() == 0
    event = await desk.event("approval_sent")
    assert event["outcome"] == "refused"


async def test_a_lost_post_is_found_under_the_same_name_and_request(desk: SendingDesk) -> None:
    """It is looked for, never sent again, and keeps its charge."""
    asked = await desk.ask("post_twitter", BODY, NAME)
    await desk.running.fault("POST", "/2/tweets", {"drop": "after_apply"})
    await desk.approve(asked)
    found = await desk.until(asked, lambda state: state not in (*_OPEN_STATES, "unknown"), within_s=30)
    assert (found["state"], len(await desk.sends())) == ("found", 1)
    answer = await desk.repeated(NAME, "post_twitter", BODY)
    assert (answer.status_code, answer.json()["data"]["id"]) == (201, found["x_id"])
    assert (await desk.http_report(asked))["data"]["id"] == found["x_id"]
    # X bills the reading by which it was found.
    assert await desk.in_journal() == price_of("post_twitter")
    assert await desk.spent() == price_of("post_twitter") + price_of("post read")


_OPEN_STATES = ("awaiting_approval", "approved", "started")


# Several processes.


async def _start_as_dead_process(desk: SendingDesk, asked: str, price: int) -> None:
    """Start an approved write and charge it, as a process would that dies before X answers."""
    running = desk.running
    leases = ProcessLeases(desk.database, running.clock)
    journal = Journal(desk.database, open_vault(running.settings), leases, running.clock, running.gateway.telemetry)
    row, entry = (await desk.waiting(asked)).row, (await desk.waiting(asked)).entry
    day = f"{running.clock.now():%Y-%m-%d}"
    started = Entry(asked, row.key_id, row.user_id, row.operation, entry.target or "", entry.asked, price)
    started.charges = (Charge("add", row.key_id, "usd", day, price, None),)
    started.approved = Approved(row.payload_sha256, row.expires_at)
    await journal.begin(started)


async def test_a_like_of_a_dead_process_is_sent_again_without_another_charge(desk: SendingDesk) -> None:
    """X may have billed the first one as well, so its price stays, too."""
    asked = await desk.ask("like_twitter", LIKE, NAME)
    await pause(desk.database, "gateway")
    await _approve_regardless(desk, asked)
    await desk.tried(asked)
    await _start_as_dead_process(desk, asked, price_of("like_twitter"))
    await resume(desk.database, "gateway")
    assert await desk.sends() == []
    desk.running.clock.advance(seconds=LEASE.total_seconds() + 1)
    ended = await desk.ended(asked)
    assert (ended["state"], len(await desk.sends())) == ("confirmed", 1)
    assert await desk.spent() == await desk.in_journal() == 2 * price_of("like_twitter")
    answer = await desk.repeated(NAME, "like_twitter", LIKE)
    assert (answer.status_code, answer.json()["data"]) == (200, {"liked": True})


async def test_a_like_of_a_dead_process_is_not_sent_against_what_holds_now(desk: SendingDesk) -> None:
    """Its outcome is unknown: the dead process may have sent it."""
    asked = await desk.ask("like_twitter", LIKE)
    await pause(desk.database, "gateway")
    await _approve_regardless(desk, asked)
    await desk.tried(asked)
    await _start_as_dead_process(desk, asked, price_of("like_twitter"))
    await desk.rule(EVERYTHING | {"kinds": {"reply": "deny"}, "approve": "*", "quiet_hours": _always()})
    await resume(desk.database, "gateway")
    desk.running.clock.advance(seconds=LEASE.total_seconds() + 1)
    ended = await desk.ended(asked)
    assert (ended["state"], await desk.sends()) == ("unknown", [])
    assert await desk.spent() == await desk.in_journal() == price_of("like_twitter")


def _always() -> dict[str, str]:
    return {"hours": "00:00-24:00", "zone": "UTC", "then": "deny"}


async def test_a_post_of_a_dead_process_is_never_sent_again(desk: SendingDesk) -> None:
    """The reconciler looks for it."""
    asked = await desk.ask("post_twitter", BODY)
    await pause(desk.database, "gateway")
    await _approve_regardless(desk, asked)
    await desk.tried(asked)
    await _start_as_dead_process(desk, asked, price_of("post_twitter"))
    await resume(desk.database, "gateway")
    desk.running.clock.advance(seconds=LEASE.total_seconds() + 1)
    ended = await desk.ended(asked)
    assert (ended["state"], await desk.sends()) == ("unknown", [])
    assert await desk.spent() == await desk.in_journal() == price_of("post_twitter")


@pytest.mark.engines("postgres")
async def test_two_gateways_send_each_approved_post_once(desk: SendingDesk, tmp_path: Path, engine: str) -> None:
    """Whichever comes first; the other one records nothing."""
    assert engine == "postgres"
    running = desk.running
    async with contextlib.AsyncExitStack() as stack:
        other = await stack.enter_async_context(
            gateway(
                tmp_path, running.sandbox, running.settings.x_api_url, stack, database_url=running.settings.database_url
            )
        )
        asked = [await desk.ask("post_twitter", {"text": f"post {number}"}) for number in range(12)]
        for request_id in asked:
            await desk.approve(request_id)
        ended = [await desk.ended(request_id, within_s=30) for request_id in asked]
        assert {one["state"] for one in ended} == {"confirmed"}
        assert len(await desk.sends()) == len(asked)
        assert await desk.spent() == await desk.in_journal() == len(asked) * price_of("post_twitter")
        for _ in range(100):
            logs = running.log.getvalue() + other.log.getvalue()
            if logs.count('"approval_decided"') + logs.count('"approval_sent"') >= 2 * len(asked):
                break
            await asyncio.sleep(0.05)
        assert logs.count('"approval_sent"') == logs.count('"approval_decided"') == len(asked)


# What the operator ordered.


async def test_an_ordered_deletion_is_sent_whatever_holds_for_its_key(desk: SendingDesk) -> None:
    """Neither the pause, nor the policy, nor the key's rules stop it; its price counts, over the budget as well."""
    asked = await desk.ask("post_twitter", BODY)
    await desk.approve(asked)
    await desk.ended(asked)
    made = (await desk.waiting(asked)).entry
    await desk.rule({"approve": "*", "delete": "own", "budget": {"day_usd": 0.015}, "caps": {"*": "1/d"}})
    await Keys(desk.database, desk.running.clock).change(desk.running.key_id, actions=["like_twitter"])
    await pause(desk.database, "gateway")
    ordered = await desk.approvals.order_deletion(made, OPERATOR)
    ended = await desk.ended(ordered)
    assert (ended["state"], ended["x_id"]) == ("confirmed", made.x_id)
    assert (await desk.sends())[-1] == f"DELETE /2/tweets/{made.x_id}"
    both = price_of("post_twitter") + price_of("delete_twitter")
    assert await desk.spent() == await desk.in_journal() == both


async def test_an_ordered_deletion_goes_through_another_link_of_the_account(desk: SendingDesk) -> None:
    """The key that made the post is revoked, and its link with it."""
    running = desk.running
    asked = await desk.ask("post_twitter", BODY)
    await desk.approve(asked)
    await desk.ended(asked)
    made, first = (await desk.waiting(asked)).entry, running.key_id
    key, raw_key = await running.gateway.keys.create("test", "another key", "growth")
    running.key_id, running.client.headers["authorization"] = key.key_id, f"Bearer {raw_key}"
    await running.link("ada")
    await Keys(desk.database, running.clock).revoke(first)
    ordered = await desk.approvals.order_deletion(made, OPERATOR)
    assert (await desk.ended(ordered))["state"] == "confirmed"
    assert (await desk.sends())[-1] == f"DELETE /2/tweets/{made.x_id}"


async def test_an_ordered_deletion_does_not_outlive_the_link(desk: SendingDesk) -> None:
    """Without a link of the account, nothing can be sent for it."""
    asked = await desk.ask("post_twitter", BODY)
    await desk.approve(asked)
    await desk.ended(asked)
    made = (await desk.waiting(asked)).entry
    await _unlinked(desk, asked)
    before = await desk.sends()
    ordered = await desk.approvals.order_deletion(made, OPERATOR)
    ended = await desk.ended(ordered)
    assert (ended["state"], ended["reason"], await desk.sends()) == ("not_sent", "approval_stale", before)
