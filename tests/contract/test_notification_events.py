"""Events for notifications: each is written in the transaction that makes it true, with its facts and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from birdwire.api.errors import GatewayError
from birdwire.gateway.guardrails.registry import Policies
from birdwire.runtime.clock import rfc3339
from birdwire.store.database import StorageDownError
from birdwire.store.tables import capabilities, outbox, pauses
from birdwire.store.tables.journal import STATES, State
from harness.approvals import Desk, desk
from harness.guarded_gateway import ACCOUNT, ADA, OPERATOR, POST_MICROUSD, rows_of
from harness.linking import press_undo, undo_token
from harness.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from harness.gateway import RunningGateway
    from harness.outbox import Event

on_both_engines = pytest.mark.engines("sqlite", "postgres")
"""For what depends on transactions; the data of an event is the same on both."""

ADA_NAMED = {"user_id": ADA, "username": "ada"}
WAIT_S = 20.0


@pytest_asyncio.fixture
async def at(running: RunningGateway) -> AsyncIterator[Desk]:
    """Start a gateway with a linked key without rules, and the operator's process on its database."""
    await running.link("ada")
    async with desk(running, {}) as made:
        yield made


@pytest_asyncio.fixture
async def events(at: Desk) -> Outbox:
    """Set a destination, whose events are those from here on."""
    made = Outbox(at.database)
    await made.switch(on=True)
    return made


@pytest_asyncio.fixture
async def asking(at: Desk) -> Desk:
    """Let every write of the key wait for a person."""
    await at.rules({"approve": "*"})
    return at


def key_of(at: Desk) -> dict[str, str]:
    """Return the gateway's key as an event names it."""
    return {"key_id": at.running.key_id, "label": "test key"}


def about(at: Desk, request_id: str, operation: str = "post_twitter") -> dict[str, Any]:
    """Return how an event names a request."""
    return {"request_id": request_id, "operation": operation, "account": ADA_NAMED, "key": key_of(at)}


def policies(at: Desk) -> Policies:
    """Return the operator's functions on pauses, as the command line uses them."""
    return Policies(at.database, at.running.clock, OPERATOR)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what a background task of the gateway does."""
    async with asyncio.timeout(WAIT_S):
        while not await condition():  # noqa: ASYNC110 - nothing else reports it
            await asyncio.sleep(0.05)


# Approvals.


async def test_a_new_question_is_an_event_and_the_same_one_again_is_not(asking: Desk, events: Outbox) -> None:
    """It states all that a message without the text needs, and when an answer is too late."""
    asked = await asking.post()
    row = await asking.approval(asked["request_id"])
    requested = {
        "approve_by": "operator",
        "payload_sha256": asked["payload_sha256"],
        "cost_usd": POST_MICROUSD / 1_000_000,
        "expires_at": rfc3339(row.expires_at),
    }
    assert await events.new() == [("approval.requested", about(asking, asked["request_id"]) | requested)]
    assert (await asking.post())["request_id"] == asked["request_id"]
    assert await events.new() == []
    [stored] = await events.rows()
    assert (stored.tries, stored.extra_ct, stored.due_at, stored.outcome) == (0, None, stored.at, None)


async def _approve(at: Desk, asked: Mapping[str, Any]) -> str:
    await at.approve(asked)
    return OPERATOR.who


async def _deny(at: Desk, asked: Mapping[str, Any]) -> str:
    await at.approvals.deny(asked["request_id"], OPERATOR, note="a note")
    return OPERATOR.who


async def _cancel_as_operator(at: Desk, asked: Mapping[str, Any]) -> str:
    await at.approvals.cancel(asked["request_id"], OPERATOR)
    return OPERATOR.who


async def _cancel_as_key(at: Desk, asked: Mapping[str, Any]) -> str:
    (await at.cancel(asked["request_id"])).raise_for_status()
    return at.running.key_id


async def _expire(at: Desk, asked: Mapping[str, Any]) -> None:
    at.running.clock.advance(hours=2)
    await at.until(asked["request_id"], "expired")


DECISIONS: dict[str, tuple[Callable[[Desk, Mapping[str, Any]], Awaitable[str | None]], str]] = {
    "approved": (_approve, "approved"),
    "denied": (_deny, "denied"),
    "cancelled by the operator": (_cancel_as_operator, "cancelled"),
    "cancelled by its key": (_cancel_as_key, "cancelled"),
    "expired": (_expire, "expired"),
}


@pytest.mark.parametrize("name", DECISIONS)
async def test_each_decision_is_one_event(asking: Desk, events: Outbox, name: str) -> None:
    """It states who decided; nobody did if the time was over."""
    decide, decision = DECISIONS[name]
    asked = await asking.post()
    await events.new()
    who = await decide(asking, asked)
    decided = about(asking, asked["request_id"]) | {"decision": decision, "decided_by": who}
    assert await events.new() == [("approval.decided", decided)]
    assert isinstance(await _error(decide(asking, asked)), GatewayError) or name == "expired"
    assert await events.new() == []


async def _error(decision: Awaitable[object]) -> object:
    """Return the error of a decision on a request that has ended, or its answer."""
    try:
        return await decision
    except GatewayError as error:
        return error
    except Exception:  # noqa: BLE001 - the HTTP client reports a refusal by its own error
        return GatewayError("approval_not_waiting", state="")


async def test_an_approved_write_that_is_not_sent_in_time_expires(asking: Desk, events: Outbox) -> None:
    """X is out of reach for as long as an approval is good for: the person who approved learns that."""
    await asking.running.fault("POST", "/2/tweets", {"status": 429}, times=None)
    asked = await asking.post()
    await asking.approve(asked)
    asking.running.clock.advance(minutes=11)
    await asking.until(asked["request_id"], "expired")
    found = [(data["decision"], data["decided_by"]) for _, data in (await events.new())[1:]]
    assert found == [("approved", OPERATOR.who), ("expired", None)]


async def test_a_write_that_may_no_longer_be_sent_was_not_decided_on(asking: Desk, events: Outbox) -> None:
    """Another rule refuses it by now: that is no decision of a person, and the journal states why."""
    asked = await asking.post()
    await policies(asking).pause(asking.running.key_id, "a drill", None)
    await events.new()
    await asking.rules({"approve": "*", "words": {"deny": ["morning"]}})
    await policies(asking).resume(asking.running.key_id)
    await asking.approve(asked)
    await asking.until(asked["request_id"], "not_sent")
    assert await events.types() == ["resumed", "approval.decided"]


async def test_an_ordered_deletion_asks_nobody(at: Desk, events: Outbox) -> None:
    """The operator ordered it, so it is neither a question nor a decision: sent, cancelled or expired."""
    answer = await at.running.call("post_twitter", {"text": "to be deleted"})
    made = await at.row(answer.headers["x-request-id"])
    assert made is not None
    await at.until(await at.approvals.order_deletion(made, OPERATOR), "confirmed")
    await policies(at).pause(at.running.key_id, "a drill", None)
    await at.running.fault("DELETE", "/2/tweets/*", {"status": 429}, times=None)
    ordered = await at.approvals.order_deletion(made, OPERATOR)
    await at.approvals.cancel(ordered, OPERATOR)
    late = await at.approvals.order_deletion(made, OPERATOR)
    at.running.clock.advance(minutes=11)
    await at.until(late, "expired")
    assert await events.types() == ["paused"]


# Lost posts.


@pytest.mark.parametrize(("drop", "outcome"), [("after_apply", "found"), ("before_apply", "not_found")])
async def test_the_verdict_on_a_lost_post_is_an_event(at: Desk, events: Outbox, drop: str, outcome: str) -> None:
    """Once: with the post that X has, or with none."""
    await at.running.fault("POST", "/2/tweets", {"drop": drop})
    answer = await at.running.call("post_twitter", {"text": "Lost?"})
    assert answer.status_code == 502
    request_id = answer.headers["x-request-id"]
    assert await events.new() == []

    async def settled() -> bool:
        at.running.clock.advance(seconds=30)
        await at.running.gateway.reconciler.round()
        return await at.state(request_id) == outcome

    await until(settled)
    row = await at.row(request_id)
    assert row is not None
    verdict = {"outcome": outcome, "post_id": row.x_id}
    assert (row.x_id is None) == (outcome == "not_found")
    assert await events.new() == [("request.settled", about(at, request_id) | verdict)]
    await settled()
    assert await events.new() == []


# Links.


async def test_a_link_is_an_event_when_it_is_active_and_when_it_is_undone(at: Desk, events: Outbox) -> None:
    """With the key and the account of each."""
    key, at.running.raw_key = await at.running.gateway.keys.create("test", "another key", "growth")
    at.running.client.headers["authorization"] = f"Bearer {at.running.raw_key}"
    page = await at.running.link("grace")
    grace = {"user_id": "2244994946", "username": "grace"}
    named = {"key": {"key_id": key.key_id, "label": "another key"}, "account": grace}
    assert await events.new() == [("account.linked", named)]
    assert (await press_undo(at.running, page)).status_code == 200
    assert await events.new() == [("account.undone", named)]


async def test_a_link_that_nobody_confirms_is_no_event(
    confirming: RunningGateway, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Only the confirmation links the account; until then, its owner may undo what no call uses."""
    del tmp_path_factory
    async with desk(confirming, {}) as at:
        events = Outbox(at.database)
        await events.switch(on=True)
        await confirming.link("ada")
        assert await events.new() == []
        redirect = await confirming.consent("ada")
        await confirming.bare.get(redirect)
        state = redirect.split("state=")[1].split("&")[0]
        (await confirming.call("auth/confirm", {"state": state, "username": "ada"})).raise_for_status()
        assert await events.new() == [("account.linked", {"key": key_of(at), "account": ADA_NAMED})]


async def test_a_link_whose_tokens_x_refuses_is_an_event_once(at: Desk, events: Outbox) -> None:
    """Every later call is refused, too, and changes nothing."""
    (await at.running.x.post(f"/_sandbox/users/{ADA}/revoke_app")).raise_for_status()
    for _ in range(3):
        assert (await at.running.like()).json()["error"]["reason"] == "x_session_expired"
    lost = {"key": key_of(at), "account": ADA_NAMED, "reason": "refused"}
    assert await events.new() == [("account.needs_relink", lost)]


# Pauses.


@pytest.mark.parametrize(
    ("scope", "name"),
    [("key", "test key"), (ACCOUNT, "@ada"), ("gateway", "the gateway"), ("account:5", "the account 5")],
)
async def test_a_pause_and_its_end_are_events(at: Desk, events: Outbox, scope: str, name: str) -> None:
    """They name the scope as a person knows it. A second end ends nothing."""
    scope = at.running.key_id if scope == "key" else scope
    ends_at = at.running.clock.now() + timedelta(hours=1)
    for until_at in (ends_at, None):
        await policies(at).pause(scope, "a drill", until_at)
        paused = {"scope": scope, "name": name, "why": "a drill", "by": OPERATOR.who}
        ends = None if until_at is None else rfc3339(until_at)
        assert await events.new() == [("paused", paused | {"until": ends})]
    await policies(at).resume(scope)
    await policies(at).resume(scope)
    assert await events.new() == [("resumed", {"scope": scope, "name": name, "by": OPERATOR.who})]


async def test_a_trip_is_a_pause(at: Desk, events: Outbox) -> None:
    """X suspended the account, and Birdwire paused it."""
    await at.rules({"trip": {"x_user_suspended": 1}})
    await at.running.fault("*", "/2/users/*", {"error": "suspended-user"}, times=None)
    for _ in range(2):
        await at.running.like()
    [(kind, data)] = await events.new()
    assert (kind, data.pop("why")) == ("paused", "X has suspended or locked the account (rule trip)")
    assert data == {"scope": ACCOUNT, "name": "@ada", "until": None, "by": "birdwire"}


# What X allows.


async def test_what_x_allows_the_app_is_an_event_when_it_changes(at: Desk, events: Outbox) -> None:
    """Lost and found, each once; another reason, or the first allowance, is none."""

    def changed(*, allowed: bool, reason: str | None) -> Event:
        return "x.changed", {"operation": "like_twitter", "allowed": allowed, "reason": reason}

    assert (await at.running.like()).status_code == 200
    assert await events.new() == []
    await at.running.configure(billing="credits_depleted")
    for _ in range(2):
        assert (await at.running.like()).status_code != 200
    assert await events.new() == [changed(allowed=False, reason="x_credits_depleted")]
    await at.running.configure(billing="ok", tier="self_serve_2026_04")
    assert (await at.running.like()).status_code != 200
    assert await events.new() == []
    await at.running.configure(tier="enterprise")
    for _ in range(2):
        assert (await at.running.like()).status_code == 200
    assert await events.new() == [changed(allowed=True, reason=None)]


async def test_the_first_refusal_of_all_is_an_event(at: Desk, events: Outbox) -> None:
    """A capability that was never there is lost to an operator who expects it."""
    await at.running.configure(billing="credits_depleted")
    await at.running.like()
    lost = {"operation": "like_twitter", "allowed": False, "reason": "x_credits_depleted"}
    assert await events.new() == [("x.changed", lost)]


# When nothing is written.


async def _everything(at: Desk) -> None:
    """Make an event of every kind happen, except for those that need a race or a lost post."""
    await at.rules({"approve": "*"})
    asked = await at.post()
    await at.approvals.deny(asked["request_id"], OPERATOR)
    await policies(at).pause("gateway", "a drill", None)
    await policies(at).resume("gateway")
    await at.rules(None)
    await at.running.configure(billing="credits_depleted")
    await at.running.like()
    await at.running.configure(billing="ok")
    page = await at.running.link("ada")
    await at.running.x.post(f"/_sandbox/users/{ADA}/revoke_app")
    await at.running.like()
    await press_undo(at.running, page)


KINDS = ["approval.requested", "approval.decided", "paused", "resumed", "x.changed", "account.linked"]
KINDS += ["account.needs_relink", "account.undone"]


@pytest.mark.trust("#334")
@on_both_engines
@pytest.mark.parametrize("destination", ["on", "off", "none"])
async def test_nothing_is_written_without_a_destination_that_is_on(at: Desk, destination: str) -> None:
    """Whoever sets one later is not told of what happened before."""
    events = Outbox(at.database)
    if destination != "none":
        await events.switch(on=destination == "on")
    await _everything(at)
    assert await events.types() == (KINDS if destination == "on" else [])


@on_both_engines
async def test_calls_that_are_no_event_touch_no_outbox(
    at: Desk, events: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A like, a post, a lookup and a renewal of the tokens do not even ask whether there is a destination."""
    added: list[str] = []

    async def add(_connection: object, event: str, *_: object) -> None:
        added.append(event)

    monkeypatch.setattr(outbox, "add", add)
    for _ in range(2):
        assert (await at.running.like()).status_code == 200
        assert (await at.running.call("post_twitter", {"text": f"Good {_}"})).status_code == 201
        at.running.clock.advance(seconds=7_300)
        await at.running.advance_x(7_300)
    assert (await at.running.like()).status_code == 200
    assert (added, await events.new()) == ([], [])


# The transaction of each event.


async def _ask(at: Desk) -> Callable[[], Awaitable[object]]:
    await at.rules({"approve": "*"})
    return at.post


async def _question(at: Desk) -> dict[str, Any]:
    await at.rules({"approve": "*"})
    return await at.post()


async def _to_approve(at: Desk) -> Callable[[], Awaitable[object]]:
    asked = await _question(at)
    return lambda: _approve(at, asked)


async def _to_deny(at: Desk) -> Callable[[], Awaitable[object]]:
    asked = await _question(at)
    return lambda: _deny(at, asked)


async def _to_cancel(at: Desk) -> Callable[[], Awaitable[object]]:
    asked = await _question(at)
    return lambda: _cancel_as_operator(at, asked)


async def _to_pause(at: Desk) -> Callable[[], Awaitable[object]]:
    return lambda: policies(at).pause("gateway", "a drill", None)


async def _to_resume(at: Desk) -> Callable[[], Awaitable[object]]:
    await policies(at).pause("gateway", "a drill", None)
    return lambda: policies(at).resume("gateway")


async def _to_link(at: Desk) -> Callable[[], Awaitable[object]]:
    redirect = await at.running.consent("ada")
    return lambda: _page(at, redirect)


async def _page(at: Desk, url: str) -> None:
    (await at.running.bare.get(url)).raise_for_status()


async def _to_undo(at: Desk) -> Callable[[], Awaitable[object]]:
    token = undo_token(await at.running.link("ada"))
    return lambda: at.running.gateway.links.undo(token, "127.0.0.1")


async def _to_lose(at: Desk) -> Callable[[], Awaitable[object]]:
    await at.running.x.post(f"/_sandbox/users/{ADA}/revoke_app")

    async def like() -> None:
        # The lease of an earlier try is over.
        at.running.clock.advance(seconds=31)
        await at.running.like()

    return like


async def _to_be_refused(at: Desk) -> Callable[[], Awaitable[object]]:
    await at.running.configure(billing="credits_depleted")
    return at.running.like


ACTIONS: dict[str, Callable[[Desk], Awaitable[Callable[[], Awaitable[object]]]]] = {
    "approval.requested": _ask,
    "approval.decided: approved": _to_approve,
    "approval.decided: denied": _to_deny,
    "approval.decided: cancelled": _to_cancel,
    "paused": _to_pause,
    "resumed": _to_resume,
    "account.linked": _to_link,
    "account.needs_relink": _to_lose,
    "account.undone": _to_undo,
    "x.changed": _to_be_refused,
}


async def _truth(at: Desk) -> list[object]:
    """Return what is true in the database, as far as an event could change it."""
    async with at.database.read() as connection:
        held = [(row.scope, row.why) for row in await pauses.all_of(connection)]
        known = await capabilities.of_app(connection, at.running.settings.x_client_id)
        allowed = [(row.operation, row.reason) for row in known]
    link = (await at.running.gateway.links.of_key(at.running.key_id)).current
    rows = [row for row in await rows_of(at.database, at.running.key_id) if row.operation == "post_twitter"]
    asked = [(row.request_id, row.state) for row in rows if STATES[State(row.state)].asked]
    return [held, allowed, link and (link.session_id, link.state), asked]


@pytest.mark.trust("#334")
@on_both_engines
@pytest.mark.parametrize("name", ACTIONS)
async def test_an_event_and_what_it_is_about_are_written_together_or_not_at_all(
    at: Desk, events: Outbox, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The database fails after the event was inserted: neither remains. The next try, if there is one, writes both."""
    act = await ACTIONS[name](at)
    await events.new()
    before, add, added = await _truth(at), outbox.add, []

    async def insert_and_fail(connection: Any, event: Any, *values: Any) -> None:
        await add(connection, event, *values)
        added.append(event)
        raise StorageDownError("a test")

    with monkeypatch.context() as patched:
        patched.setattr(outbox, "add", insert_and_fail)
        with contextlib.suppress(Exception):
            await act()
    kind = name.partition(":")[0]
    assert added[:1] == [kind]
    assert await events.new() == []
    assert await _truth(at) == before
    # X's code for a link is good once.
    if kind != "account.linked":
        await act()
        assert (await events.types())[:1] == [kind]


# Secrets.

TEXT, OPTION, NOTE, LINK_HOST = "kingfisher at dawn", "canary option", "canary note", "canary-host.example"


@on_both_engines
async def test_no_text_and_no_secret_is_in_the_outbox(at: Desk, events: Outbox) -> None:
    """Whatever is asked, decided, lost, linked or refused: the rows hold ids, labels, names, prices and times."""
    running, tokens = at.running, await _tokens(at)
    await at.rules({"approve": "*", "links": "approve"})
    poll = {"options": [OPTION, "another"], "duration_minutes": 60}
    for body in ({"text": f"{TEXT} 1", "poll": poll}, {"text": f"{TEXT} https://{LINK_HOST}/secret-path"}):
        asked = await at.ask(body)
        await at.approvals.make_link(asked["request_id"], OPERATOR)
        await at.approvals.deny(asked["request_id"], OPERATOR, note=NOTE)
    expiring = await at.ask({"text": f"{TEXT} 3"})
    await _expire(at, expiring)
    await _everything(at)
    await running.link("ada")
    tokens += await _tokens(at)
    await running.fault("POST", "/2/tweets", {"drop": "after_apply"})
    lost = (await running.call("post_twitter", {"text": f"{TEXT} 4"})).headers["x-request-id"]

    async def found() -> bool:
        running.clock.advance(seconds=30)
        await running.gateway.reconciler.round()
        return await at.state(lost) == State.FOUND

    await until(found)
    async with at.database.read() as connection:
        rows = await connection.exec_driver_sql("SELECT * FROM outbox")
        written = "\n".join(repr(tuple(row)) for row in rows)
    assert set(await events.types()) == {*KINDS, "request.settled"}
    secrets = [TEXT, OPTION, NOTE, LINK_HOST, running.raw_key, running.raw_key[-12:], *tokens]
    assert [one for one in secrets if one in written or json.dumps(one)[1:-1] in written] == []


async def _tokens(at: Desk) -> list[str]:
    """Return the X tokens of the key's link."""
    links = at.running.gateway.links
    row = (await links.of_key(at.running.key_id)).current
    assert row is not None
    return [links.tokens.open(row, "access"), links.tokens.open(row, "refresh")]
