"""Properties of policies: another rule or policy never allows more, and their order never matters."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from birdwire.gateway.guardrails.policy import Context, Policy, charges, evaluate, refusal, snapshot_keys
from birdwire.gateway.guardrails.proposal import KINDS, Proposal
from birdwire.gateway.guardrails.rule_values import PUBLISHING, WRITES
from harness.fault_scale import scaled

if TYPE_CHECKING:
    from birdwire.gateway.guardrails.policy import Decision

pytestmark = pytest.mark.timeout(900)

POLICIES = scaled("POLICIES", short=600, long=10_000)
STRICTNESS = {"allow": 0, "require_approval": 1, "deny": 2}
NOW = datetime(2026, 11, 28, 12, 30, tzinfo=UTC)

asking = st.sampled_from(["approve", "deny"])
names = st.sampled_from([*WRITES, "*"])
clock = st.tuples(st.integers(0, 23), st.integers(0, 59)).map(lambda time: f"{time[0]:02}:{time[1]:02}")
caps = st.tuples(st.integers(1, 5), st.integers(1, 9)).map(lambda often: f"{often[0]}/h {often[1]}/d")
words = st.lists(st.sampled_from(["giveaway", "free money", "price", "抽奖"]), min_size=1, max_size=3)
hosts = st.lists(st.sampled_from(["example.org", "example.com", "x.com"]), min_size=1, max_size=2)

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "approve": st.just("*") | st.lists(st.sampled_from(PUBLISHING), min_size=1, max_size=3),
    "approve_by": st.just("operator"),
    "caps": st.dictionaries(names, caps, min_size=1, max_size=3),
    "min_gap_s": st.dictionaries(names, st.integers(1, 600), min_size=1, max_size=3),
    "quiet_hours": st.fixed_dictionaries(
        {
            "hours": st.tuples(clock, clock).filter(lambda pair: pair[0] != pair[1]).map("-".join),
            "zone": st.sampled_from(["UTC", "Europe/Berlin"]),
            "then": asking,
        }
    ),
    "kinds": st.dictionaries(st.sampled_from(KINDS), asking, min_size=1, max_size=4),
    "delete": st.sampled_from(["own", "any"]),
    "links": asking | st.fixed_dictionaries({"only": hosts, "else": asking}),
    "mentions": st.fixed_dictionaries({"max": st.integers(0, 3), "else": asking}),
    "words": st.fixed_dictionaries({"deny": words}, optional={"approve": words}),
    "duplicate_text": st.fixed_dictionaries(
        {"days": st.integers(1, 30), "across": st.sampled_from(["account", "gateway"])}
    ),
    "budget": st.fixed_dictionaries(
        {"day_usd": st.sampled_from([0.1, 1, 5]), "unpriced": st.sampled_from(["deny", "approve", 0.05])},
        optional={"month_usd": st.sampled_from([1, 20])},
    ),
    "trip": st.just({"x_refused": "3/10m"}),
}
rules = st.lists(st.sampled_from(list(VALUES)), max_size=5, unique=True).flatmap(
    lambda chosen: st.fixed_dictionaries({name: VALUES[name] for name in chosen})
)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Draw a policy of any scope, author and enforcement."""
    scope = draw(st.sampled_from(["key_1", "account:1", "gateway"]))
    enforcement = draw(st.sampled_from(["enforce", "shadow"])) if scope == "key_1" else "enforce"
    author = draw(st.sampled_from(["operator", "owner"])) if scope == "account:1" else "operator"
    return Policy.read(scope, author, draw(st.integers(1, 9)), enforcement, None, draw(rules))


proposals = st.builds(
    Proposal,
    operation=st.sampled_from([*WRITES, *["post_twitter"] * 9]),
    user_id=st.just("1"),
    kinds=st.frozensets(st.sampled_from(KINDS), max_size=3),
    texts=st.lists(st.sampled_from(["Hello", "A giveaway", "FREE money", "the price", "今天有抽奖"]), max_size=2).map(
        tuple
    ),
    links=st.lists(st.sampled_from(["example.org", "a.example.com", "evil.com", ""]), max_size=2).map(tuple),
    mentions=st.lists(st.sampled_from(["ada", "bob", "eve"]), max_size=3, unique=True).map(tuple),
    price=st.sampled_from([None, 0, 15_000, 200_000]),
)


@st.composite
def contexts(draw: st.DrawFn, rows: list[Policy], proposal: Proposal) -> Context:
    """Draw a context, sometimes with a snapshot of the counters."""
    now = NOW + timedelta(minutes=draw(st.integers(0, 3_000)))
    own = draw(st.sampled_from([None, True, False]))
    if draw(st.booleans()):
        return Context(now, own_post=own)
    ms = int(now.timestamp() * 1_000)
    amounts = st.sampled_from([0, 1, 4, 9, 90_000, 990_000])
    usage = {key: draw(amounts) for key in snapshot_keys(rows, proposal, now)}
    for key in usage:
        if key[1].startswith("gap:"):
            usage[key] = ms - draw(st.integers(0, 700)) * 1_000
    texts = draw(st.dictionaries(st.sampled_from(["account:1", "gateway"]), st.integers(ms - 10**9, ms), max_size=2))
    return Context(now, usage, texts, own)


case = st.lists(policies(), min_size=1, max_size=4)
long = settings(
    max_examples=POLICIES // 3, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def key(decision: Decision) -> tuple[object, ...]:
    """Return all that a decision consists of."""
    return decision.outcome, decision.findings, decision.shadow


@long
@given(st.data(), case, proposals)
def test_the_order_of_policies_and_of_rules_never_matters(
    data: st.DataObject, rows: list[Policy], proposal: Proposal
) -> None:
    """The decision, its findings in their order, and the charges are equal."""
    context = data.draw(contexts(rows, proposal))
    decision = evaluate(rows, proposal, context)
    shuffled = data.draw(st.permutations(rows))
    turned = [
        Policy.read(row.scope, row.author, row.version, row.enforcement, None, dict(reversed(list(row.rules.items()))))
        for row in shuffled
    ]
    assert key(evaluate(turned, proposal, context)) == key(decision)
    for one, other in zip(charges(rows, proposal, NOW, "m"), charges(turned, proposal, NOW, "m"), strict=True):
        assert [(row.scope, row.measure, row.window, row.amount, row.limit) for row in one] == [
            (row.scope, row.measure, row.window, row.amount, row.limit) for row in other
        ]


@long
@given(st.data(), case, proposals)
def test_another_rule_or_policy_never_allows_more(data: st.DataObject, rows: list[Policy], proposal: Proposal) -> None:
    """It only adds findings, and charges whose limits are no higher."""
    more = data.draw(policies())
    name = data.draw(st.sampled_from(list(VALUES)))
    place = data.draw(st.integers(0, len(rows) - 1))
    changed = rows[place]
    added = Policy.read(
        changed.scope, changed.author, changed.version, changed.enforcement, None,
        {name: data.draw(VALUES[name]), **changed.rules},
    )  # fmt: skip
    context = data.draw(contexts([*rows, more, added], proposal))
    decision = evaluate(rows, proposal, context)
    for after in ([*rows, more], [*rows[:place], added, *rows[place + 1 :]]):
        other = evaluate(after, proposal, context)
        assert STRICTNESS[other.outcome] >= STRICTNESS[decision.outcome]
        assert set(decision.findings) <= set(other.findings)
        for less, greater in zip(charges(rows, proposal, NOW, "m"), charges(after, proposal, NOW, "m"), strict=True):
            limits = {(row.scope, row.measure, row.window): row for row in greater}
            for row in less:
                same = limits[row.scope, row.measure, row.window]
                assert same.amount >= row.amount
                assert same.limit is not None
                assert row.limit is not None
                assert same.limit <= row.limit if row.kind == "add" else same.limit >= row.limit


@long
@given(st.data(), case, proposals)
def test_the_outcome_follows_from_the_findings(data: st.DataObject, rows: list[Policy], proposal: Proposal) -> None:
    """Denials first; no finding of a policy in shadow mode is obeyed; what cannot wait is never asked."""
    context = data.draw(contexts(rows, proposal))
    decision = evaluate(rows, proposal, context)
    outcomes = [STRICTNESS[found.outcome] for found in decision.findings]
    assert STRICTNESS[decision.outcome] == max(outcomes, default=0)
    assert outcomes == sorted(outcomes, reverse=True)
    shadow = [row for row in rows if row.enforcement == "shadow"]
    assert decision.findings == evaluate([row for row in rows if row not in shadow], proposal, context).findings
    assert decision.shadow == evaluate(shadow, proposal, context).shadow
    if proposal.operation not in PUBLISHING:
        assert decision.outcome != "require_approval"
    if decision.outcome != "allow":
        error = refusal(decision)
        assert len(error.findings) == len(decision.findings)
        assert error.problem.retryable == (
            decision.outcome == "deny"
            and all(found.retry_after_s for found in decision.findings if found.outcome == "deny")
        )


@long
@given(st.data(), case, proposals)
def test_a_snapshot_denies_what_its_charges_would_not_pass(
    data: st.DataObject, rows: list[Policy], proposal: Proposal
) -> None:
    """What `start` judges exactly and what the findings state are the same rule."""
    context = data.draw(contexts(rows, proposal))
    if context.usage is None:
        return
    obeyed = [row for row in rows if row.enforcement == "enforce"]
    refused = False
    for charge in charges(obeyed, proposal, context.now, "m")[0]:
        stored = context.usage.get((charge.scope, charge.measure, charge.window), 0)
        assert charge.limit is not None
        if charge.kind == "add":
            refused |= stored + charge.amount > charge.limit
        elif charge.kind == "gap":
            refused |= stored > charge.amount - charge.limit
        else:
            refused |= context.texts.get(charge.scope, 0) > charge.amount - charge.limit
    counted = {"caps", "min_gap_s", "duplicate_text"}
    denied = [
        found
        for found in evaluate(rows, proposal, context).findings
        if found.rule in counted or found.reason == "budget_exhausted"
    ]
    assert bool(denied) == refused
