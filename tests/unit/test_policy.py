"""The evaluation of policies: what each rule finds, which finding decides, and what a call is charged."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from birdwire.api.errors import GatewayError, describe
from birdwire.gateway.guardrails.policy import (
    Context,
    Decision,
    Policy,
    PolicyError,
    account_scope,
    approve_by,
    charges,
    evaluate,
    may_ask,
    needs,
    refusal,
    sentences,
    snapshot_keys,
    stale_finding,
)
from birdwire.gateway.guardrails.proposal import propose, propose_lookup
from birdwire.gateway.guardrails.rules import RULES
from birdwire.store.tables.usage import Charge
from birdwire.x.catalog.operations import OPERATIONS
from birdwire.x.catalog.prices import Prices
from harness.guardrails import EXPECTED, POLICIES, PROPOSALS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from birdwire.gateway.guardrails.proposal import Proposal

NOW = datetime(2026, 11, 28, 12, 30, 15, 500_000, tzinfo=UTC)
NOW_MS = 1_795_869_015_500
HOUR, DAY, MONTH = "2026-11-28T12", "2026-11-28", "2026-11"
OPERATION = {row.name: row for row in OPERATIONS}
PRICES = Prices.load()
DAY_MS = 86_400_000


def proposal(operation: str = "post_twitter", body: dict[str, Any] | None = None) -> Proposal:
    """Return the proposal of a call with a JSON body, at its listed price."""
    row = OPERATION[operation]
    checked = row.body.model_validate({"text": "Good morning"} if body is None else body)
    return propose(row, "1", checked, PRICES.of(row, checked))


PLAIN = proposal()
LIKE = proposal("like_twitter", {"tweet_id": "20"})
DELETE = proposal("delete_twitter", {"tweet_id": "20"})
UPLOAD = replace(proposal("upload_media", {}), price=0)
LOOKUP = propose_lookup("user/info", "1", 10_000)


def policy(rules: dict[str, Any], **members: Any) -> Policy:
    """Return a policy of a key."""
    given = {"scope": "key_1", "author": "operator", "version": 3, "enforcement": "enforce", "preset": None}
    return Policy.read(**{**given, **members}, rules=rules)


def judged(
    rules: dict[str, Any],
    asked: Proposal = PLAIN,
    usage: Mapping[tuple[str, str, str], int] | None = None,
    **known: Any,
) -> Decision:
    """Return what one policy of a key decides."""
    return evaluate([policy(rules)], asked, Context(known.pop("now", NOW), usage=usage, **known))


def brief(decision: Decision) -> str:
    """Return the findings as the tables of the harness write them."""
    words = {"deny": "deny", "require_approval": "ask"}
    return " ".join(f"{words[found.outcome]}:{found.rule}" for found in decision.findings)


def only(found: Iterable[Any]) -> Any:
    """Return the one item."""
    (one,) = found
    return one


@pytest.mark.parametrize("name", POLICIES)
def test_each_policy_finds_in_each_proposal_what_the_table_states(name: str) -> None:
    """Sixty proposals for each policy."""
    assert len(PROPOSALS) == 60
    assert set(EXPECTED) == set(POLICIES)
    read = policy(POLICIES[name])
    found = {one: brief(evaluate([read], proposal(*PROPOSALS[one]), Context(NOW, usage={}))) for one in PROPOSALS}
    assert {one: text for one, text in found.items() if text} == EXPECTED[name]


# Operations.


def test_approve_names_operations_or_every_write_but_uploads() -> None:
    """What publishes nothing cannot wait."""
    assert brief(judged({"approve": ["like_twitter"]}, LIKE)) == "ask:approve"
    assert brief(judged({"approve": ["like_twitter"]})) == ""
    assert brief(judged({"approve": "*"}, LIKE)) == "ask:approve"
    assert judged({"approve": "*"}, UPLOAD).outcome == "allow"
    assert judged({"approve": "*"}, LOOKUP).outcome == "allow"


def test_a_rule_that_asks_denies_what_cannot_wait() -> None:
    """An upload in quiet hours, and a lookup without a price."""
    night = {"quiet_hours": {"hours": "00:00-23:59", "then": "approve"}}
    assert brief(judged(night)) == "ask:quiet_hours"
    assert only(judged(night).findings).message == "no writes from 00:00 to 23:59 (UTC)"
    assert only(judged(night).findings).retry_after_s is None
    assert brief(judged(night, UPLOAD)) == "deny:quiet_hours"
    assert judged(night, LOOKUP).outcome == "allow"
    unpriced = {"budget": {"day_usd": 1, "unpriced": "approve"}}
    assert brief(judged(unpriced, replace(PLAIN, price=None))) == "ask:budget"
    assert brief(judged(unpriced, replace(LOOKUP, price=None))) == "deny:budget"


def test_only_own_posts_may_be_deleted() -> None:
    """A post of which nothing is known counts as another's."""
    assert brief(judged({"delete": "own"}, DELETE, own_post=True)) == ""
    assert brief(judged({"delete": "own"}, DELETE, own_post=False)) == "deny:delete"
    assert brief(judged({"delete": "own"}, DELETE)) == "deny:delete"
    assert brief(judged({"delete": "any"}, DELETE, own_post=False)) == ""
    assert brief(judged({"delete": "own"}, LIKE)) == ""


# Counting.


@pytest.mark.parametrize(
    ("operation", "measures"),
    [
        (PLAIN, ["writes:*", "writes:post_twitter", "writes:post_twitter"]),
        (LIKE, ["writes:*"]),
        (UPLOAD, ["writes:upload_media"]),
        (LOOKUP, []),
    ],
)
def test_a_cap_counts_its_operation_and_the_star_every_write_but_uploads(
    operation: Proposal, measures: list[str]
) -> None:
    """Each window is a counter of its own."""
    read = policy({"caps": {"post_twitter": "3/h 12/d", "upload_media": "5/d", "*": "50/d"}})
    obeyed, shadow = charges([read], operation, NOW, None)
    assert sorted(charge.measure for charge in obeyed) == measures
    assert shadow == ()
    assert {charge.kind for charge in obeyed} <= {"add"}


def test_a_cap_denies_the_call_that_exceeds_it_until_its_window_ends() -> None:
    """Clock hours and days of UTC. A call up to the limit passes."""
    rules = {"caps": {"post_twitter": "3/h 12/d"}}
    hour, day = ("key_1", "writes:post_twitter", HOUR), ("key_1", "writes:post_twitter", DAY)
    assert judged(rules, usage={hour: 2, day: 11}).outcome == "allow"
    found = only(judged(rules, usage={hour: 3, day: 3}).findings)
    assert (found.outcome, found.reason, found.retry_after_s) == ("deny", "cap_reached", 1_785)
    assert found.message == "post_twitter at most 3 times in one hour (UTC)"
    found = only(judged(rules, usage={day: 12}).findings)
    assert (found.reason, found.retry_after_s) == ("cap_reached", 41_385)
    assert found.message == "post_twitter at most 12 times in one day (UTC)"
    assert brief(judged(rules, usage={hour: 4, day: 13})) == "deny:caps deny:caps"
    assert judged(rules).outcome == "allow"
    assert (
        "writes at most 1 time in"
        in only(judged({"caps": {"*": "1/d"}}, usage={("key_1", "writes:*", DAY): 1}).findings).message
    )


def test_a_gap_denies_a_call_too_soon_after_the_last() -> None:
    """To the millisecond; the seconds to wait are rounded up."""
    rules = {"min_gap_s": {"post_twitter": 300, "*": 5}}
    last = ("key_1", "gap:post_twitter", "")
    assert judged(rules, usage={last: NOW_MS - 300_000}).outcome == "allow"
    found = only(judged(rules, usage={last: NOW_MS - 299_999}).findings)
    assert (found.outcome, found.reason, found.retry_after_s) == ("deny", "cap_reached", 1)
    found = only(judged(rules, usage={last: NOW_MS - 1_000}).findings)
    assert (found.message, found.retry_after_s) == ("post_twitter must be at least 300 seconds apart", 299)
    assert only(judged(rules, LIKE, usage={("key_1", "gap:*", ""): NOW_MS}).findings).retry_after_s == 5
    assert judged(rules, UPLOAD, usage={("key_1", "gap:*", ""): NOW_MS}).outcome == "allow"
    assert charges([policy(rules)], LIKE, NOW, None)[0] == (
        Charge("gap", "key_1", "gap:*", "", NOW_MS, 5_000, "min_gap_s"),
    )


def test_a_budget_denies_the_call_that_it_does_not_cover() -> None:
    """A post costs $0.015. Each window is compared by itself."""
    rules = {"budget": {"day_usd": 2, "month_usd": 30}}
    day, month = ("key_1", "usd", DAY), ("key_1", "usd", MONTH)
    assert judged(rules, usage={day: 1_985_000, month: 29_985_000}).outcome == "allow"
    found = only(judged(rules, usage={day: 1_985_001}).findings)
    assert (found.outcome, found.reason, found.retry_after_s) == ("deny", "budget_exhausted", 41_385)
    assert found.message == "this call costs $0.015, and $1.985001 of $2.00 for this day (UTC) are used"
    found = only(judged(rules, usage={month: 29_985_001}).findings)
    assert (found.reason, found.retry_after_s) == ("budget_exhausted", 2 * 86_400 + 41_385)
    assert brief(judged(rules, LOOKUP, usage={day: 2_000_000})) == "deny:budget"
    assert judged(rules, UPLOAD, usage={day: 2_000_000}).outcome == "allow"
    assert charges([policy(rules)], PLAIN, NOW, None)[0] == (
        Charge("add", "key_1", "usd", MONTH, 15_000, 30_000_000, "budget"),
        Charge("add", "key_1", "usd", DAY, 15_000, 2_000_000, "budget"),
    )
    assert charges([policy(rules)], UPLOAD, NOW, None)[0] == ()


def test_an_unpriced_call_is_denied_asks_or_reserves_a_sum() -> None:
    """It never passes unchecked."""
    unpriced = replace(PLAIN, price=None)
    for rules in ({"day_usd": 2}, {"day_usd": 2, "unpriced": "deny"}):
        found = only(judged({"budget": rules}, unpriced).findings)
        assert (found.outcome, found.reason) == ("deny", "price_unknown")
    found = only(judged({"budget": {"month_usd": 2, "unpriced": "approve"}}, unpriced).findings)
    assert (found.outcome, found.reason) == ("require_approval", "price_unknown")
    assert charges([policy({"budget": {"month_usd": 2, "unpriced": "approve"}})], unpriced, NOW, None)[0] == ()
    reserved = {"budget": {"day_usd": 2, "unpriced": 0.3}}
    assert judged(reserved, unpriced, usage={("key_1", "usd", DAY): 1_700_000}).outcome == "allow"
    assert brief(judged(reserved, unpriced, usage={("key_1", "usd", DAY): 1_700_001})) == "deny:budget"
    assert only(charges([policy(reserved)], unpriced, NOW, None)[0]).amount == 300_000
    assert judged(reserved).outcome == "allow"


def test_a_text_may_not_be_posted_again_for_days() -> None:
    """By the same account, or by any account of the gateway."""
    rules = {"duplicate_text": {"days": 30}}
    for age_ms, outcome in ((30 * DAY_MS, "allow"), (30 * DAY_MS - 1, "deny"), (0, "deny")):
        assert judged(rules, usage={}, texts={"account:1": NOW_MS - age_ms}).outcome == outcome
    found = only(judged(rules, usage={}, texts={"account:1": NOW_MS}).findings)
    assert (found.rule, found.reason) == ("duplicate_text", "duplicate_text")
    assert found.message == "the same text was posted less than 30 days ago"
    assert judged(rules, usage={}, texts={"gateway": NOW_MS, "account:2": NOW_MS}).outcome == "allow"
    assert judged(rules, LIKE, usage={}, texts={"account:1": NOW_MS}).outcome == "allow"
    assert judged(rules, texts={"account:1": NOW_MS}).outcome == "allow"
    across = {"duplicate_text": {"days": 1, "across": "gateway"}}
    assert judged(across, usage={}, texts={"gateway": NOW_MS}).outcome == "deny"
    assert charges([policy(across)], PLAIN, NOW, "ab12")[0] == (
        Charge("text", "gateway", "text", "ab12", NOW_MS, DAY_MS, "duplicate_text"),
    )
    assert charges([policy(across)], PLAIN, NOW, None)[0] == ()
    assert charges([policy(across)], LIKE, NOW, "ab12")[0] == ()
    assert charges([policy(rules)], replace(PLAIN, user_id=None), NOW, "ab12")[0] == ()


def test_the_mark_of_a_policy_in_shadow_mode_is_kept_where_no_other_policy_finds_it() -> None:
    """Otherwise the key's own mark would deny the very call by a rule that is obeyed."""
    rules = {"duplicate_text": {"days": 30}}
    shadow = policy(rules, enforcement="shadow")
    obeyed = policy(rules, scope="account:1")
    charged = charges([shadow, obeyed], PLAIN, NOW, "ab12")
    assert [[charge.scope for charge in side] for side in charged] == [["account:1"], ["shadow:account:1"]]
    decision = evaluate([shadow, obeyed], PLAIN, Context(NOW, {}, {"shadow:account:1": NOW_MS}))
    assert (decision.outcome, len(decision.shadow)) == ("allow", 1)


# Several policies.


def test_the_strictest_finding_decides_and_all_are_reported() -> None:
    """Denials first, each in the order of RULES."""
    rules = {
        "words": {"deny": ["giveaway"]},
        "links": "approve",
        "mentions": {"max": 0, "else": "deny"},
        "approve": "*",
        "kinds": {"reply": "approve"},
    }
    asked = proposal(
        "post_twitter",
        {"text": "A giveaway for @ada https://evil.com", "reply": {"in_reply_to_tweet_id": "20"}},
    )
    decision = judged(rules, asked)
    assert decision.outcome == "deny"
    assert brief(decision) == "deny:mentions deny:words ask:approve ask:kinds ask:links"
    assert [rule.name for rule in RULES] == [
        *("approve", "approve_by", "caps", "min_gap_s", "quiet_hours", "kinds", "delete", "links", "mentions"),
        *("words", "duplicate_text", "budget", "trip"),
    ]


def test_a_finding_names_its_policy_and_quotes_no_text() -> None:
    """The word is the operator's own, the host is an excerpt."""
    found = only(judged({"words": {"deny": ["Give-Away"]}}, proposal(body={"text": "secret GIVE AWAY"})).findings)
    assert found.document() == {
        "rule": "words",
        "outcome": "deny",
        "reason": "policy_denied",
        "message": "a text with the word 'Give-Away' is not allowed",
        "scope": "key_1",
        "version": 3,
    }
    assert "secret" not in repr(found)
    assert "secret" not in repr(proposal(body={"text": "secret GIVE AWAY"}))


def test_a_finding_of_the_owner_is_the_owners() -> None:
    """What a caller can wait out keeps its reason."""
    owner = {"scope": "account:1", "author": "owner"}
    rules = {"links": "deny", "caps": {"*": "1/d"}, "approve": "*"}
    usage = {("account:1", "writes:*", DAY): 1}
    asked = proposal(body={"text": "evil.com"})
    found = evaluate([policy(rules, **owner)], asked, Context(NOW, usage)).findings
    assert [(one.rule, one.reason, one.author) for one in found] == [
        ("caps", "cap_reached", "owner"),
        ("links", "owner_denied", "owner"),
        ("approve", "owner_denied", "owner"),
    ]
    found = evaluate([policy(rules, scope="account:1")], asked, Context(NOW, usage)).findings
    assert [one.reason for one in found] == ["cap_reached", "policy_denied", "policy_denied"]


def test_a_policy_in_shadow_mode_is_recorded_and_not_obeyed() -> None:
    """The others are obeyed as if it were not there."""
    shadow = policy({"links": "deny", "caps": {"*": "1/d"}}, enforcement="shadow")
    asked = proposal(body={"text": "evil.com"})
    decision = evaluate([shadow], asked, Context(NOW, {("key_1", "writes:*", DAY): 1}))
    assert (decision.outcome, decision.findings) == ("allow", ())
    assert [found.rule for found in decision.shadow] == ["caps", "links"]
    floor = policy({"links": "approve"}, scope="gateway")
    both = evaluate([shadow, floor], asked, Context(NOW, {}))
    assert (both.outcome, brief(both), len(both.shadow)) == ("require_approval", "ask:links", 1)
    obeyed, recorded = charges([shadow, floor], asked, NOW, None)
    assert (len(obeyed), len(recorded)) == (0, 1)
    assert snapshot_keys([shadow, floor], asked, NOW) == (("key_1", "writes:*", DAY),)


def test_two_policies_of_one_scope_charge_a_counter_once() -> None:
    """With the lowest limit of a count, the longest gap, and the larger amount."""
    operator = {"caps": {"*": "10/d"}, "min_gap_s": {"*": 5}, "budget": {"day_usd": 2, "unpriced": 0.1}}
    owner = {"caps": {"*": "7/d 3/h"}, "min_gap_s": {"*": 9}, "budget": {"day_usd": 9, "unpriced": 0.3}}
    both = [policy(operator, scope="account:1"), policy(owner, scope="account:1", author="owner")]
    for pair in (both, both[::-1]):
        merged = charges(pair, replace(PLAIN, price=None), NOW, None)[0]
        assert merged == (
            Charge("gap", "account:1", "gap:*", "", NOW_MS, 9_000, "min_gap_s"),
            Charge("add", "account:1", "usd", DAY, 300_000, 2_000_000, "budget"),
            Charge("add", "account:1", "writes:*", DAY, 1, 7, "caps"),
            Charge("add", "account:1", "writes:*", HOUR, 1, 3, "caps"),
        )
    texts = [policy({"duplicate_text": {"days": days}}, scope=scope) for days, scope in ((3, "key_1"), (5, "gateway"))]
    assert only(charges(texts, PLAIN, NOW, "ab")[0]).limit == 5 * DAY_MS
    assert only(charges(texts[::-1], PLAIN, NOW, "ab")[0]).limit == 5 * DAY_MS


def test_scopes_count_by_themselves() -> None:
    """The gateway's counter is not the key's."""
    pair = [policy({"caps": {"*": "5/d"}}), policy({"caps": {"*": "9/d"}}, scope="gateway")]
    usage = {("key_1", "writes:*", DAY): 1, ("gateway", "writes:*", DAY): 9}
    decision = evaluate(pair, LIKE, Context(NOW, usage))
    assert [found.scope for found in decision.findings] == ["gateway"]
    assert snapshot_keys(pair, LIKE, NOW) == tuple(sorted(usage))


def test_what_else_the_policies_ask_about_a_call() -> None:
    """Only what one of them needs is read."""
    own, text = policy({"delete": "own"}), policy({"duplicate_text": {"days": 1}}, scope="gateway")
    assert needs([own, text], OPERATION["delete_twitter"]) == {"own_post"}
    assert needs([own, text], OPERATION["post_twitter"]) == {"text_mark"}
    assert needs([own, text], OPERATION["like_twitter"]) == frozenset()
    assert needs([policy({"delete": "any"})], OPERATION["delete_twitter"]) == frozenset()
    assert needs([own], OPERATION["post_twitter"]) == needs([text], OPERATION["delete_twitter"]) == frozenset()
    assert needs([], OPERATION["delete_twitter"]) == frozenset()


def test_who_approves() -> None:
    """The account's word takes precedence over the key's, and the key's over the gateway's."""
    assert approve_by([]) == "operator"
    assert approve_by([policy({"approve_by": "operator"}), policy({"approve": "*"})]) == "operator"
    rows = [policy({}, scope=scope) for scope in ("gateway", "key_1", "account:1")]
    for row, approver in zip(rows, ("either", "owner", "operator"), strict=True):
        # Until there is a page for owners, no policy with another approver can be read.
        object.__setattr__(row, "rules", {"approve_by": approver})
    assert approve_by(rows) == "operator"
    assert approve_by(rows[:2]) == "owner"
    assert approve_by(rows[1::-1]) == "owner"
    assert approve_by(rows[:1]) == "either"


# The refusal.


ASKING: tuple[dict[str, Any], ...] = (
    {"approve": "*"},
    {"approve": ["post_twitter"]},
    {"quiet_hours": {"hours": "22:00-07:00", "zone": "UTC", "then": "approve"}},
    {"kinds": {"reply": "deny", "media": "approve"}},
    {"links": "approve"},
    {"links": {"only": ["example.org"], "else": "approve"}},
    {"mentions": {"max": 1, "else": "approve"}},
    {"words": {"approve": ["price"]}},
    {"budget": {"day_usd": 1, "unpriced": "approve"}},
)
NOT_ASKING: tuple[dict[str, Any], ...] = (
    {"approve": ["like_twitter"], "approve_by": "operator"},
    {"quiet_hours": {"hours": "22:00-07:00", "zone": "UTC", "then": "deny"}},
    {"kinds": {"reply": "deny"}},
    {"links": "deny"},
    {"links": {"only": ["example.org"], "else": "deny"}},
    {"mentions": {"max": 1}},
    {"words": {"deny": ["approve"]}},
    {"budget": {"day_usd": 1, "unpriced": "deny"}},
    {"caps": {"*": "1/h"}, "min_gap_s": {"post_twitter": 1}, "delete": "own", "duplicate_text": {"days": 1}},
    {"trip": {"x_refused": "3/10m"}},
)


@pytest.mark.parametrize("rules", ASKING, ids=str)
def test_policies_that_may_ask_about_a_post(rules: dict[str, Any]) -> None:
    """Whichever rule asks; not if the policy is in shadow mode."""
    assert may_ask([policy({"mentions": {"max": 1}}), policy(rules)], "post_twitter")
    assert not may_ask([replace(policy(rules), enforcement="shadow")], "post_twitter")


@pytest.mark.parametrize("rules", NOT_ASKING, ids=str)
def test_policies_that_never_ask_about_a_post(rules: dict[str, Any]) -> None:
    """A denial asks nobody, and what asks about likes asks about no post."""
    assert not may_ask([policy(rules)], "post_twitter")


def test_what_asks_was_known_to_ask() -> None:
    """Of every rule of these policies that finds something to ask about, and of none about an upload."""
    assert {name for rules in ASKING for name in rules} == {
        rule.name for rule in RULES if rule.find is not None and rule.name != "delete"
    }
    for one in map(policy, [*ASKING, *POLICIES.values()]):
        for operation, body in PROPOSALS.values():
            decision = evaluate([one], proposal(operation, body), Context(NOW, usage={}))
            asks = any(found.outcome == "require_approval" for found in decision.findings)
            assert may_ask([one], operation) or not asks
    assert not may_ask([policy({"approve": "*"})], "upload_media")


def test_the_refusal_is_the_first_denial_that_waiting_does_not_cure() -> None:
    """It carries all findings, and no Retry-After."""
    rules = {"caps": {"*": "1/d"}, "links": "deny", "words": {"deny": ["now"]}, "approve": "*"}
    asked = proposal(body={"text": "evil.com now"})
    error = refusal(judged(rules, asked, usage={("key_1", "writes:*", DAY): 1}))
    assert (error.reason, error.retry_after_s) == ("policy_denied", None)
    assert [found["rule"] for found in error.findings] == ["caps", "links", "words", "approve"]
    message, fix = describe(error)
    assert message == "A policy does not allow this call: a link to evil.com is not allowed."
    assert fix == "Change the call, or ask the operator to change the policy (`birdwire policy show key_1`)."
    assert error.outcome == "not_sent"


def test_the_refusal_of_what_can_wait_waits_for_the_latest() -> None:
    """A day's cap for longer than an hour's."""
    rules = {"caps": {"post_twitter": "3/h 12/d"}, "min_gap_s": {"*": 5}}
    usage = {
        ("key_1", "writes:post_twitter", HOUR): 3,
        ("key_1", "writes:post_twitter", DAY): 12,
        ("key_1", "gap:*", ""): NOW_MS,
    }
    error = refusal(judged(rules, usage=usage))
    assert (error.reason, error.retry_after_s) == ("cap_reached", 41_385)
    del usage["key_1", "writes:post_twitter", DAY]
    assert refusal(judged(rules, usage=usage)).retry_after_s == 1_785


def test_the_refusal_without_a_denial_is_that_a_person_would_have_to_be_asked() -> None:
    """With the first finding as its detail, or the one that was not shown to the person who approved."""
    error = refusal(judged({"approve": "*", "quiet_hours": {"hours": "12:00-13:00", "then": "approve"}}))
    assert (error.reason, error.retry_after_s) == ("approval_stale", None)
    assert len(error.findings) == 2
    assert "post_twitter needs a person's approval" in describe(error)[0]
    decision = judged({"approve": "*", "quiet_hours": {"hours": "12:00-13:00", "then": "approve"}})
    assert "no writes from 12:00 to 13:00" in describe(refusal(decision, decision.findings[1]))[0]


def test_a_finding_that_asks_is_stale_unless_it_was_shown() -> None:
    """The rule, the scope and the message decide; a newer version of the same policy asks for nothing new."""
    rules = {"approve": "*", "links": "approve"}
    asked = proposal(body={"text": "example.org"})
    found = judged(rules, asked)
    shown = [one.document() for one in found.findings]
    assert [one["rule"] for one in shown] == ["approve", "links"]
    assert stale_finding(found, shown) is None
    assert stale_finding(evaluate([policy(rules, version=2)], asked, Context(NOW)), shown) is None
    assert stale_finding(Decision("allow"), ()) is None
    other = proposal(body={"text": "example.com"})
    for judged_now, missing in (
        (evaluate([policy(rules, scope="gateway")], asked, Context(NOW)), "approve"),
        (judged(rules, other), "links"),
        (found, "approve"),
    ):
        known = () if judged_now is found else shown
        stale = stale_finding(judged_now, known)
        assert stale is not None
        assert stale.rule == missing
    # What denies is a policy's own refusal, and not stale.
    assert stale_finding(judged({"links": "deny"}, asked), ()) is None


RAISED: dict[str, tuple[dict[str, Any], Proposal, dict[str, Any], dict[str, Any]]] = {
    "policy_denied": ({"links": "deny"}, proposal(body={"text": "evil.com"}), {}, {}),
    "owner_denied": (
        {"links": "deny"},
        proposal(body={"text": "evil.com"}),
        {},
        {"scope": "account:1", "author": "owner"},
    ),
    "quiet_hours": ({"quiet_hours": {"hours": "12:00-13:00"}}, PLAIN, {}, {}),
    "cap_reached": ({"caps": {"*": "1/d"}}, PLAIN, {"usage": {("key_1", "writes:*", DAY): 1}}, {}),
    "budget_exhausted": ({"budget": {"day_usd": 1}}, PLAIN, {"usage": {("key_1", "usd", DAY): 1_000_000}}, {}),
    "price_unknown": ({"budget": {"day_usd": 1}}, replace(PLAIN, price=None), {}, {}),
    "duplicate_text": ({"duplicate_text": {"days": 1}}, PLAIN, {"usage": {}, "texts": {"account:1": NOW_MS}}, {}),
    "approval_stale": ({"approve": "*"}, PLAIN, {}, {}),
}


@pytest.mark.parametrize("reason", RAISED)
def test_each_reason_of_a_policy_is_raised(reason: str) -> None:
    """Each with its texts filled, and a Retry-After if it can be waited out."""
    rules, asked, known, members = RAISED[reason]
    error = refusal(evaluate([policy(rules, **members)], asked, Context(NOW, **known)))
    assert isinstance(error, GatewayError)
    assert error.reason == reason
    assert "unknown" not in " ".join(describe(error)).replace("price_unknown", "")
    assert (error.retry_after_s is not None) == error.problem.retryable


# Reading and describing.


def test_a_policy_is_read_complete_and_in_the_order_of_rules() -> None:
    """So that two policies with the same meaning are equal."""
    read = policy(
        {"quiet_hours": {"hours": "22:00-07:00"}, "links": {"only": ["EXAMPLE.org."]}, "approve": ["like_twitter"]}
    )
    assert dict(read.rules) == {
        "approve": ["like_twitter"],
        "quiet_hours": {"hours": "22:00-07:00", "zone": "UTC", "then": "deny"},
        "links": {"only": ["example.org"], "else": "deny"},
    }
    assert list(read.rules) == ["approve", "quiet_hours", "links"]
    assert read == policy(dict(reversed(list(read.rules.items()))))
    assert policy(dict(read.rules)).rules == read.rules
    assert (read.version, read.preset, read.is_shadow) == (3, None, False)


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"author": "nobody"}, "The author is 'nobody'. Known are operator and owner."),
        ({"enforcement": "off"}, "The enforcement is 'off'. Write enforce or shadow."),
        ({"enforcement": "shadow", "scope": "gateway"}, "The policy of gateway cannot be in shadow mode."),
        ({"enforcement": "shadow", "scope": "account:1"}, "The policy of account:1 cannot be in shadow mode."),
    ],
)
def test_a_policy_with_a_wrong_member_cannot_be_read(members: dict[str, Any], text: str) -> None:
    """Only a key's own policy may be in shadow mode."""
    with pytest.raises(PolicyError) as caught:
        policy({}, **members)
    assert str(caught.value).startswith(text)


def test_trips_are_those_of_policies_that_are_obeyed() -> None:
    """A count without a time is for a day."""
    rules = {"trip": {"x_user_suspended": 1, "x_refused": "3/10m"}}
    assert policy(rules).trips == (("x_refused", 3, 600), ("x_user_suspended", 1, 86_400))
    assert policy(rules, enforcement="shadow").trips == ()
    assert policy({"links": "deny"}).trips == ()
    assert judged(rules).outcome == "allow"


def test_each_rule_is_described_in_a_sentence() -> None:
    """The account's and the gateway's rules state for whom they hold."""
    rules = {
        "approve": ["like_twitter", "follow_twitter"],
        "approve_by": "operator",
        "caps": {"post_twitter": "3/h 12/d", "*": "50/d"},
        "min_gap_s": {"*": 5},
        "quiet_hours": {"hours": "22:00-07:00", "zone": "Europe/Berlin", "then": "approve"},
        "kinds": {"reply": "approve", "poll": "approve", "quote": "deny"},
        "delete": "own",
        "links": {"only": ["example.org", "b\u00fccher.example"], "else": "approve"},
        "mentions": {"max": 1},
        "words": {"deny": ["a", "b"], "approve": ["c"]},
        "duplicate_text": {"days": 30},
        "budget": {"day_usd": 2.5, "month_usd": 30, "unpriced": 0.2},
        "trip": {"x_refused": "3/90m", "x_user_suspended": 1},
    }
    assert sentences([policy(rules)]) == [
        "Approval is needed for: like_twitter, follow_twitter.",
        "The operator approves what needs approval.",
        "post_twitter: at most 3 an hour and 12 a day. Writes: at most 50 a day.",
        "Writes: at least 5 seconds apart.",
        "Writes need approval from 22:00 to 07:00 (Europe/Berlin).",
        "Posts of the kind quote are refused. Posts of the kind reply or poll need approval.",
        "Only posts that the key itself made may be deleted.",
        "Links to hosts other than example.org, xn--bcher-kva.example are refused.".replace(
            "are refused", "need approval"
        ),
        "Posts that mention or tag more than 1 user are refused.",
        "Texts with one of 2 listed words are refused. Texts with one of 1 listed word need approval.",
        "A text may not be posted again by the account within 30 days.",
        "Calls may cost at most $2.50 a day and $30.00 a month; calls without a listed price count $0.20.",
        "Refusals by X lead to a pause: 3 within 90 minutes (x_refused); 1 within 1 day (x_user_suspended).",
    ]
    others = {"approve": "*", "delete": "any", "links": "deny", "quiet_hours": {"hours": "01:00-02:00"}}
    more = {"duplicate_text": {"days": 1, "across": "gateway"}, "budget": {"day_usd": 1}, "mentions": {"max": 2}}
    assert sentences([policy(others, scope="account:1"), policy(more, scope="gateway")]) == [
        "The account: Approval is needed for every write.",
        "The account: Writes are refused from 01:00 to 02:00 (UTC).",
        "The account: Any post may be deleted.",
        "The account: Links are refused.",
        "All keys of this gateway: Posts that mention or tag more than 2 users are refused.",
        "All keys of this gateway: A text may not be posted again by any account of this gateway within 1 day.",
        "All keys of this gateway: Calls may cost at most $1.00 a day; calls without a listed price are refused.",
    ]


def test_the_scope_of_an_account() -> None:
    """As its policies, pauses and counters have it."""
    assert account_scope("1") == "account:1"


def test_retry_after_is_at_least_a_second_and_ends_the_window() -> None:
    """Also in the last moment of a year."""
    end = datetime(2027, 1, 1, tzinfo=UTC)
    rules = {"caps": {"*": "1/h"}, "budget": {"month_usd": 1}}
    usage = {("key_1", "writes:*", "2026-12-31T23"): 1, ("key_1", "usd", "2026-12"): 1_000_000}
    for before, left in ((timedelta(microseconds=1), 1), (timedelta(seconds=1), 1), (timedelta(seconds=1.5), 2)):
        found = judged(rules, now=end - before, usage=usage).findings
        assert [one.retry_after_s for one in found] == [left, left]
    assert judged(rules, now=end, usage=usage).outcome == "allow"
