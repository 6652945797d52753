"""Decisions on calls that wait: who may decide, on what, how often, and what each decision leaves behind."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any, Literal

import pytest
import pytest_asyncio

from birdwire.api.errors import GatewayError
from birdwire.gateway.guardrails.approvals import APPROVED_FOR, hash_token
from birdwire.gateway.guardrails.opened_link import MAX_NOTE_CHARS
from birdwire.runtime.clock import rfc3339
from birdwire.sandbox.api import media as sandbox_media
from birdwire.store.tables import acts, usage
from birdwire.store.tables import approvals as store
from birdwire.store.tables.usage import Charge
from birdwire.x.catalog.operations import OPERATIONS
from harness.approvals import TTL_S, desk, other_key
from harness.gateway import API, PNG, POST, RunningGateway
from harness.guarded_gateway import ACCOUNT, ADA, GATEWAY, OPERATOR, pause, places_of, price_of, resume

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from birdwire.store.tables.approvals import ApprovalRow
    from harness.approvals import Desk

HELLO = {"text": "Good morning"}
DELETION = next(operation for operation in OPERATIONS if operation.name == "delete_twitter")
NO_SHA256 = hashlib.sha256(b"").hexdigest()
PAGE = acts.Actor("tester", "page")
UNSENT = {"posts_per_15m": 1}
"""X's configuration under which an account posts once, and every later post waits for X's window."""

Decide = Any
"""Makes one decision on what an answer states: it takes the desk and the answer's member `approval`."""

DECISIONS: dict[str, Decide] = {
    "approve": lambda at, asked: at.approve(asked),
    "deny": lambda at, asked: at.approvals.deny(asked["request_id"], OPERATOR),
    "edit": lambda at, asked: at.approvals.edit(asked["request_id"], "Edited", asked["payload_sha256"], OPERATOR),
    "link": lambda at, asked: at.approvals.make_link(asked["request_id"], OPERATOR),
    "cancel": lambda at, asked: at.approvals.cancel(asked["request_id"], OPERATOR),
}


@pytest_asyncio.fixture
async def at(linked: RunningGateway) -> AsyncIterator[Desk]:
    """A linked gateway, on which every write of the key waits, and the operator's process."""
    async with desk(linked) as made:
        yield made


# Approving.


@pytest.mark.engines("sqlite", "postgres")
async def test_an_approved_post_is_sent_once(at: Desk) -> None:
    """What was shown is what X gets; the act names who approved which payload."""
    asked = await at.post("Exactly this")
    before = at.running.clock.now()
    row = await at.approve(asked)
    assert (row.decided_by, row.payload_sha256) == (OPERATOR.who, asked["payload_sha256"])
    assert row.decided_at is not None
    assert row.decided_at >= before
    assert (row.expires_at, row.due_at) == (row.decided_at + APPROVED_FOR, row.decided_at)
    report = await at.until(asked["request_id"], "confirmed")
    posts = [post for post in (await at.running.state())["posts"] if post["text"] == "Exactly this"]
    assert [post["id"] for post in posts] == [report["data"]["id"]]
    (act,) = await at.acts()
    assert (act.act, act.who, act.via, act.subject) == ("approval.approved", OPERATOR.who, "cli", at.running.key_id)
    assert act.after == {"request_id": asked["request_id"], "payload_sha256": asked["payload_sha256"]}


async def test_an_approval_is_for_ten_minutes_and_never_longer_than_its_files(
    at: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An approval is for now. A post with files is not sent once X may delete them."""
    monkeypatch.setattr(sandbox_media, "LIFETIME_S", 660)
    fields = {"aisa_api_key": at.running.raw_key, "content": "With a file"}
    files = {"media_files": ("a.png", PNG, "image/png")}
    answer = await at.running.bare.post(API + "post_twitter", data=fields, files=files)
    row = await at.approve(answer.json()["approval"])
    assert row.media_until is not None
    assert row.decided_at is not None
    assert row.expires_at == row.media_until < row.decided_at + APPROVED_FOR


# Deciding twice, on something else, too late.


TWICE = [(first, second) for first in ("approve", "deny", "cancel") for second in DECISIONS]
TWICE.remove(("approve", "cancel"))
"""Pairs of decisions. What was approved can be cancelled until it is sent, so that pair has a test of its own."""


@pytest.mark.parametrize(("first", "second"), TWICE)
async def test_a_call_is_decided_once(at: Desk, first: str, second: str) -> None:
    """The second decision finds nothing that waits, and changes nothing."""
    asked = await at.post()
    await DECISIONS[first](at, asked)
    decided = await at.acts()
    error = await at.refused(DECISIONS[second](at, asked))
    assert error.reason == "approval_not_waiting"
    assert await at.acts() == decided


@pytest.mark.engines("sqlite", "postgres")
async def test_of_many_decisions_at_once_one_counts(at: Desk) -> None:
    """Twelve approvals and twelve denials of one call, in two processes."""
    asked = await at.post()
    async with desk(at.running) as other:
        places = [at, other] * 6
        decisions = [DECISIONS[name](place, asked) for place in places for name in ("approve", "deny")]
        results = await asyncio.gather(*decisions, return_exceptions=True)
    errors = [one for one in results if isinstance(one, BaseException)]
    assert len(errors) == len(results) - 1, results
    assert {one.reason for one in errors if isinstance(one, GatewayError)} == {"approval_not_waiting"}
    assert all(isinstance(one, GatewayError) for one in errors)
    assert len(await at.acts()) == 1


@pytest.mark.parametrize("name", ["approve", "deny", "edit"])
async def test_a_decision_is_about_the_payload_that_was_shown(at: Desk, name: str) -> None:
    """Another hash is refused, and the call goes on waiting."""
    asked = await at.post()
    request_id = asked["request_id"]
    decide: dict[str, Callable[[], Awaitable[ApprovalRow]]] = {
        "approve": lambda: at.approvals.approve(request_id, NO_SHA256, OPERATOR),
        "deny": lambda: at.approvals.deny(request_id, OPERATOR, payload_sha256=NO_SHA256),
        "edit": lambda: at.approvals.edit(request_id, "Edited", NO_SHA256, OPERATOR),
    }
    error = await at.refused(decide[name]())
    assert error.reason == "approval_stale"
    assert asked["payload_sha256"] in str(error.values["detail"])
    assert (await at.state(request_id), await at.acts()) == ("awaiting_approval", [])


@pytest.mark.parametrize("noticed", [False, True], ids=["at once", "once it is noticed"])
@pytest.mark.parametrize("name", DECISIONS)
async def test_nothing_is_decided_after_its_time(at: Desk, name: str, *, noticed: bool) -> None:
    """Whether or not a gateway has noticed yet."""
    asked = await at.post()
    at.running.clock.advance(seconds=TTL_S)
    if noticed:
        await at.until(asked["request_id"], "expired")
    error = await at.refused(DECISIONS[name](at, asked))
    assert error.reason == "approval_expired"
    assert asked["expires_at"] in str(error.values["detail"])
    assert await at.acts() == []


@pytest.mark.parametrize("name", DECISIONS)
async def test_nothing_is_decided_that_a_restored_backup_brought_back(at: Desk, name: str) -> None:
    """It may have been sent after the backup."""
    asked = await at.post()
    async with at.database.write() as connection:
        await store.end_all(connection, at.running.clock.now(), "restored_backup")
    assert (await at.refused(DECISIONS[name](at, asked))).reason == "restored_backup"


@pytest.mark.parametrize("name", DECISIONS)
async def test_a_request_that_nobody_was_asked_about_is_not_found(at: Desk, name: str) -> None:
    """An unknown one, and a write that never waited."""
    await at.rules(None)
    liked = (await at.running.like()).headers["x-request-id"]
    for request_id in (liked, "req_01JBQ2V3N4K5M6P7Q8R9S0T1V2", "x"):
        asked = {"request_id": request_id, "payload_sha256": NO_SHA256}
        assert (await at.refused(DECISIONS[name](at, asked))).reason == "request_not_found"


# Pauses.


PAUSES: list[tuple[str, Literal["operator", "owner"], str]] = [
    ("", "operator", "paused"),
    (ACCOUNT, "operator", "paused"),
    (GATEWAY, "operator", "paused"),
    (ACCOUNT, "owner", "paused_by_owner"),
]


@pytest.mark.parametrize(("scope", "author", "reason"), PAUSES, ids=lambda value: str(value) or "key")
async def test_nothing_is_approved_while_a_pause_holds(
    at: Desk, scope: str, author: Literal["operator", "owner"], reason: str
) -> None:
    """The call goes on waiting, can be denied or cancelled, and can be approved once the pause is over."""
    asked, other, third = [await at.post(text) for text in ("One", "Two", "Three")]
    await pause(at.database, scope or at.running.key_id, author=author, why="we look into it")
    error = await at.refused(at.approve(asked))
    assert error.reason == reason
    assert await at.state(asked["request_id"]) == "awaiting_approval"
    await at.approvals.deny(other["request_id"], OPERATOR)
    assert (await at.cancel(third["request_id"])).is_success
    await resume(at.database, scope or at.running.key_id, author=author)
    assert (await at.approve(asked)).decided_by == OPERATOR.who


# Denying and cancelling.


async def test_the_caller_gets_the_note_of_a_denial(at: Desk) -> None:
    """By the name of its call, and in the report; nothing of the payload is kept."""
    headers = {"idempotency-key": "morning"}
    asked = await at.ask(HELLO, headers=headers)
    row = await at.approvals.deny(
        asked["request_id"], OPERATOR, payload_sha256=asked["payload_sha256"], note="  Not today.\ud800 "
    )
    assert (row.note, row.payload_ct, row.decided_by) == ("Not today.?", None, OPERATOR.who)
    assert row.due_at == row.ended_at == row.decided_at
    answer = await at.running.call("post_twitter", HELLO, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["reason"]) == (403, "approval_denied")
    assert error["message"].endswith("Not today.?.")
    report = await at.report(asked["request_id"])
    assert (report["state"], report["status"], report["reason"]) == ("denied", 403, "approval_denied")
    assert (report["approval"]["note"], report["approval"]["decided_by"]) == ("Not today.?", OPERATOR.who)
    (act,) = await at.acts()
    assert act.after == {
        "request_id": asked["request_id"],
        "payload_sha256": asked["payload_sha256"],
        "note": "Not today.?",
    }


async def test_a_note_is_bounded(at: Desk) -> None:
    """And an empty one is none."""
    for note, stored in (("x" * 2_000, "x" * MAX_NOTE_CHARS), ("  \n ", None), (None, None)):
        asked = await at.post(f"A note of {len(note or '')}")
        assert (await at.approvals.deny(asked["request_id"], OPERATOR, note=note)).note == stored


async def test_what_was_approved_can_be_cancelled_until_it_is_sent(linked: RunningGateway) -> None:
    """By the operator, and by the key that asked: X's window holds both posts back."""
    async with desk(linked) as at:
        first, second = await at.post("One"), await at.post("Two")
        await linked.configure(**UNSENT)
        async with other_key(linked):
            assert (await linked.call("post_twitter", {"text": "The only one"})).status_code == 201
        for asked in (first, second):
            await at.approve(asked)
            assert await at.state(asked["request_id"]) == "approved"
        row = await at.approvals.cancel(first["request_id"], OPERATOR)
        assert (row.ended_at, row.payload_ct) == (row.due_at, None)
        answer = await at.cancel(second["request_id"])
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
        linked.clock.advance(seconds=900)
        await linked.advance_x(900)
        third = await at.post("Three")
        await at.approve(third)
        await at.until(third["request_id"], "confirmed")
        texts = {post["text"] for post in (await linked.state())["posts"]}
        assert not texts & {"One", "Two"}


# Editing.


async def test_an_edited_post_waits_under_a_new_hash(at: Desk) -> None:
    """Judged and priced again. Approving names the new hash; the first one approves nothing any more."""
    await at.rules({"approve": "*", "links": "approve"})
    members = {"reply_settings": "following"}
    edited = members | {"text": "See example.org"}
    asked = await at.ask(HELLO | members)
    request_id, sha256 = asked["request_id"], asked["payload_sha256"]
    row = await at.approvals.edit(request_id, edited["text"], sha256, acts.Actor("someone", "page"))
    assert (row.edited_from, rfc3339(row.expires_at)) == (sha256, asked["expires_at"])
    would = (await at.running.call("dry_run/post_twitter", edited)).json()["would"]
    assert row.payload_sha256 == would["payload_sha256"] != sha256
    # The same call as the edited one is answered by it.
    shown = await at.ask(edited)
    assert shown["request_id"] == request_id
    assert (shown["findings"], shown["cost_usd"]) == (would["findings"], would["cost_usd"])
    assert [one["rule"] for one in shown["findings"]] == ["approve", "links"]
    assert shown["cost_usd"] > asked["cost_usd"]
    assert (shown["edited_from"], shown["state"]) == (asked["payload_sha256"], "awaiting_approval")
    (act,) = await at.acts()
    assert (act.act, act.who, act.via) == ("approval.edited", "someone", "page")
    assert (act.before, act.after) == (
        {"payload_sha256": asked["payload_sha256"]},
        {"request_id": asked["request_id"], "payload_sha256": row.payload_sha256},
    )
    assert (await at.refused(at.approve(asked))).reason == "approval_stale"
    await at.approve(shown)
    report = await at.until(asked["request_id"], "confirmed")
    post = await at.running.post_of(report["data"]["id"])
    assert post["text"] == "See example.org"
    assert report["approval"]["edited_from"] == asked["payload_sha256"]


async def test_a_post_is_edited_twice(at: Desk) -> None:
    """`edited_from` is the hash of what the key asked for, and only the last hash can be approved."""
    asked = await at.post()
    hashes = [asked["payload_sha256"]]
    for text in ("Once", "Twice"):
        row = await at.approvals.edit(asked["request_id"], text, hashes[-1], OPERATOR)
        assert row.edited_from == hashes[0]
        hashes.append(row.payload_sha256)
    assert len(set(hashes)) == 3
    for sha256 in hashes[:2]:
        assert (
            await at.refused(at.approvals.approve(asked["request_id"], sha256, OPERATOR))
        ).reason == "approval_stale"
        assert (
            await at.refused(at.approvals.edit(asked["request_id"], "Thrice", sha256, OPERATOR))
        ).reason == "approval_stale"
    row = await at.approvals.approve(asked["request_id"], hashes[2], OPERATOR)
    assert row.edited_from == hashes[0]


async def test_what_was_edited_answers_for_what_was_asked(at: Desk) -> None:
    """The same call again opens no second request, and after a denial it is refused, however often it was edited."""
    asked = await at.post()
    sha256 = asked["payload_sha256"]
    for text in ("Once", "Twice"):
        sha256 = (await at.approvals.edit(asked["request_id"], text, sha256, OPERATOR)).payload_sha256
    again = await at.post()
    assert (again["request_id"], again["payload_sha256"]) == (asked["request_id"], sha256)
    assert again["edited_from"] == asked["payload_sha256"]
    await at.approvals.deny(asked["request_id"], OPERATOR, note="Neither.")
    answer = await at.running.call("post_twitter", HELLO)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (403, "approval_denied")


@pytest.mark.engines("sqlite", "postgres")
async def test_of_several_edits_at_once_one_counts(at: Desk) -> None:
    """The others name a hash that is not the payload's any more."""
    asked = await at.post()
    edits = [
        at.approvals.edit(asked["request_id"], f"Edit {number}", asked["payload_sha256"], OPERATOR)
        for number in range(6)
    ]
    results = await asyncio.gather(*edits, return_exceptions=True)
    assert sorted(getattr(one, "reason", "edited") for one in results) == ["approval_stale"] * 5 + ["edited"]
    assert len(await at.acts()) == 1


REFUSED_TEXTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "too long": ("x" * 281, {"approve": "*"}, "text_too_long"),
    "empty": ("", {"approve": "*"}, "text_empty"),
    "half a character": ("\ud800", {"approve": "*"}, "text_malformed"),
    "a word": ("A giveaway", {"approve": "*", "words": {"deny": ["giveaway"]}}, "policy_denied"),
    "a link": ("see example.org", {"approve": "*", "links": "deny"}, "policy_denied"),
    "a mention": ("@grace", {"approve": "*", "mentions": {"max": 0, "else": "deny"}}, "policy_denied"),
    "a price": ("see example.org", {"approve": "*", "budget": {"day_usd": 0.02}}, "budget_exhausted"),
}


@pytest.mark.parametrize("name", REFUSED_TEXTS)
async def test_an_edit_that_would_be_refused_changes_nothing(at: Desk, name: str) -> None:
    """By the body's own rules, and by a policy, whose findings the refusal has."""
    text, rules, reason = REFUSED_TEXTS[name]
    await at.rules(rules)
    asked = await at.post()
    before = await at.approval(asked["request_id"])
    error = await at.refused(at.approvals.edit(asked["request_id"], text, asked["payload_sha256"], OPERATOR))
    assert error.reason == reason
    assert [one["outcome"] for one in error.findings] == (
        [] if reason.startswith("text_") else ["deny", "require_approval"]
    )
    assert (await at.approval(asked["request_id"]), await at.acts()) == (before, [])


async def test_an_edit_is_judged_by_what_was_counted(at: Desk) -> None:
    """A cap that was used up meanwhile, and the key's own limit of a text."""
    asked = await at.post()
    await at.rules({"approve": "*", "caps": {"post_twitter": "1/d"}})
    day = f"{at.running.clock.now():%Y-%m-%d}"
    charge = Charge("add", at.running.key_id, "writes:post_twitter", day, 1, None)
    assert await at.database.append_all(usage.charging([charge], "req_OTHER")) is None
    edit = at.approvals.edit
    error = await at.refused(edit(asked["request_id"], "Edited", asked["payload_sha256"], OPERATOR))
    assert error.reason == "cap_reached"
    await at.rules({"approve": "*"})
    await at.running.gateway.keys.change(at.running.key_id, text_limit=5)
    error = await at.refused(edit(asked["request_id"], "Edited", asked["payload_sha256"], OPERATOR))
    assert error.reason == "text_too_long"
    await at.running.gateway.keys.change(at.running.key_id, text_limit=25_000)
    assert (await edit(asked["request_id"], "x" * 300, asked["payload_sha256"], OPERATOR)).edited_from


async def test_an_edit_to_what_asks_for_nothing_goes_on_waiting(at: Desk) -> None:
    """The policy was unset, or the text is harmless now: a person still decides."""
    await at.rules({"links": "approve"})
    asked = await at.post("see example.org")
    row = await at.approvals.edit(asked["request_id"], "See nothing", asked["payload_sha256"], OPERATOR)
    waiting = await at.records.find(asked["request_id"])
    assert waiting is not None
    assert waiting.payload is not None
    assert list(waiting.payload.findings) == []
    await at.rules(None)
    again = await at.approvals.edit(asked["request_id"], "See less", row.payload_sha256, OPERATOR)
    assert again.cost_microusd == 15_000
    assert await at.state(asked["request_id"]) == "awaiting_approval"


async def test_only_a_post_has_a_text_to_edit(at: Desk) -> None:
    """A post without one may get one; its files stay."""
    liked = await at.ask({"tweet_id": POST}, "like_twitter")
    error = await at.refused(at.approvals.edit(liked["request_id"], "Hello", liked["payload_sha256"], OPERATOR))
    assert error.reason == "unknown_field"
    fields = {"aisa_api_key": at.running.raw_key}
    files = {"media_files": ("a.png", PNG, "image/png")}
    answer = await at.running.bare.post(API + "post_twitter", data=fields, files=files)
    asked = answer.json()["approval"]
    row = await at.approvals.edit(asked["request_id"], "A caption", asked["payload_sha256"], OPERATOR)
    await at.approvals.approve(asked["request_id"], row.payload_sha256, OPERATOR)
    report = await at.until(asked["request_id"], "confirmed")
    post = await at.running.post_of(report["data"]["id"])
    assert (post["text"], len(post["media_ids"])) == ("A caption", 1)


async def test_a_damaged_payload_cannot_be_edited(at: Desk) -> None:
    """It was changed at rest, so nobody knows what it was."""
    asked = await at.post()
    async with at.database.write() as connection:
        await store.change(connection, asked["request_id"], {"payload_ct": b"\x01" + bytes(60)})
    error = await at.refused(at.approvals.edit(asked["request_id"], "Edited", asked["payload_sha256"], OPERATOR))
    assert error.reason == "approval_stale"


# Signed links.


async def test_a_link_decides_once(at: Desk) -> None:
    """As whoever made it. Its token has 160 bits, and only its hash is stored."""
    asked = await at.post()
    token, expires_at = await at.approvals.make_link(asked["request_id"], OPERATOR)
    other, _ = await at.approvals.make_link(asked["request_id"], OPERATOR)
    assert (len(token), token == other, rfc3339(expires_at)) == (27, False, asked["expires_at"])
    assert await places_of(at.database, [token, other]) == []
    async with at.database.read() as connection:
        found = await store.links(connection, [hash_token(token)])
    link = found[hash_token(token)]
    assert (link.request_id, link.made_by, link.used_at) == (asked["request_id"], OPERATOR.who, None)
    request_id, sha256 = asked["request_id"], asked["payload_sha256"]
    row = await at.approvals.approve(request_id, sha256, PAGE, token_hash=hash_token(token))
    async with at.database.read() as connection:
        used = await store.links(connection, [hash_token(token), hash_token(other)])
    assert used[hash_token(token)].used_at == row.decided_at
    assert used[hash_token(other)].used_at is None
    for one in (token, other):
        again = at.approvals.approve(request_id, sha256, PAGE, token_hash=hash_token(one))
        assert (await at.refused(again)).reason == "approval_not_waiting"
    assert [(act.act, act.via) for act in await at.acts()] == [
        ("approval.link_made", "cli"),
        ("approval.link_made", "cli"),
        ("approval.approved", "page"),
    ]


async def test_a_link_decides_on_its_own_request_alone(at: Desk) -> None:
    """The link of another request, an unknown one, and one that was used are refused, and nothing changes."""
    asked, other = await at.post("One"), await at.post("Two")
    token, _ = await at.approvals.make_link(other["request_id"], OPERATOR)
    for one in (token, "unknown"):
        for decision in (
            at.approvals.approve(asked["request_id"], asked["payload_sha256"], PAGE, token_hash=hash_token(one)),
            at.approvals.deny(asked["request_id"], PAGE, token_hash=hash_token(one)),
        ):
            assert (await at.refused(decision)).reason == "request_not_found"
    async with at.database.write() as connection:
        assert await store.use_link(connection, hash_token(token), at.running.clock.now())
    used = at.approvals.deny(other["request_id"], PAGE, token_hash=hash_token(token))
    assert (await at.refused(used)).reason == "approval_not_waiting"
    assert {await at.state(one["request_id"]) for one in (asked, other)} == {"awaiting_approval"}


# Deletions that the operator orders.


async def test_an_ordered_deletion_asks_nobody(at: Desk) -> None:
    """It is born approved and sent, although the key is paused and its rules do not allow it; an act records it."""
    await at.rules(None)
    published = await at.running.call("post_twitter", HELLO)
    made = await at.row(published.headers["x-request-id"])
    assert made is not None
    await at.rules({"approve": "*", "delete": "own"})
    await at.running.gateway.keys.change(at.running.key_id, actions=("like_twitter",))
    await pause(at.database, GATEWAY)
    request_id = await at.approvals.order_deletion(made, OPERATOR)
    row = await at.approval(request_id)
    assert (row.ordered, row.session_id, row.username, row.operation) == (True, None, "ada", "delete_twitter")
    assert (row.decided_by, row.approve_by, row.cost_microusd) == (OPERATOR.who, "operator", price_of("delete_twitter"))
    assert row.decided_at is not None
    assert row.expires_at == row.decided_at + APPROVED_FOR
    act = (await at.acts())[-1]
    assert (act.act, act.who, act.subject) == ("deletion.ordered", OPERATOR.who, at.running.key_id)
    assert act.after == {"request_id": request_id, "payload_sha256": row.payload_sha256, "post_id": made.x_id}
    await at.until(request_id, "confirmed")
    assert made.x_id not in {post["id"] for post in (await at.running.state())["posts"] if not post.get("deleted")}


async def test_a_deletion_that_is_under_way_is_not_ordered_twice(linked: RunningGateway) -> None:
    """X does not answer yet; the second order is the first one."""
    async with desk(linked, {"mentions": {"max": 9, "else": "deny"}}) as at:
        published = await linked.call("post_twitter", HELLO)
        made = await at.row(published.headers["x-request-id"])
        assert made is not None
        requests = await asyncio.gather(*(at.approvals.order_deletion(made, OPERATOR) for _ in range(4)))
        assert len(set(requests)) == 1
        assert [act.act for act in await at.acts()] == ["deletion.ordered"]
        liked = await at.row((await linked.like()).headers["x-request-id"])
        assert liked is not None
        assert (await at.refused(at.approvals.order_deletion(liked, OPERATOR))).reason == "request_not_found"


async def test_a_key_cannot_cancel_what_the_operator_ordered(at: Desk) -> None:
    """An identical call of the key is answered by the order, whose id the key knows then."""
    await at.rules(None)
    published = await at.running.call("post_twitter", HELLO)
    made = await at.row(published.headers["x-request-id"])
    assert made is not None
    await at.rules({"approve": "*"})
    # While X fails at deletions, nothing is sent.
    for _ in range(20):
        at.running.gateway.clients.breaker.record_failure(DELETION.endpoint, ADA)
    ordered = await at.approvals.order_deletion(made, OPERATOR)
    asked = await at.ask({"tweet_id": made.x_id}, "delete_twitter")
    assert asked["request_id"] == ordered
    refused = await at.cancel(ordered)
    assert (refused.status_code, refused.json()["error"]["reason"]) == (409, "approval_not_waiting")
    assert await at.state(ordered) == "approved"


async def test_a_deletion_whose_outcome_is_unknown_is_ordered_again(at: Desk) -> None:
    """Nobody searches for what became of a deletion, and repeating it does no harm."""
    await at.rules(None)
    published = await at.running.call("post_twitter", HELLO)
    made = await at.row(published.headers["x-request-id"])
    assert made is not None
    await at.running.fault("DELETE", f"/2/tweets/{made.x_id}", {"drop": "after_apply"}, times=None)
    first = await at.approvals.order_deletion(made, OPERATOR)
    await at.until(first, "unknown")
    assert await at.approvals.order_deletion(made, OPERATOR) != first
