"""The evaluation of policies: what each rule finds, which finding decides, and what a call is charged."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from birdwire.gateway.guardrails.policy import Context, Policy, evaluate
from birdwire.gateway.guardrails.proposal import propose
from birdwire.x.catalog.operations import OPERATIONS
from birdwire.x.catalog.prices import Prices
from harness.guardrails import EXPECTED, POLICIES, PROPOSALS

if TYPE_CHECKING:
    from birdwire.gateway.guardrails.policy import Decision
    from birdwire.gateway.guardrails.proposal import Proposal

NOW = datetime(2026, 11, 28, 12, 30, tzinfo=UTC)
OPERATION = {row.name: row for row in OPERATIONS}
PRICES = Prices.load()


def proposal(operation: str, body: dict[str, Any]) -> Proposal:
    """Return the proposal of a call with a JSON body, at its listed price."""
    row = OPERATION[operation]
    checked = row.body.model_validate(body)
    return propose(row, "1", checked, PRICES.of(row, checked))


def policy(rules: dict[str, Any], **members: Any) -> Policy:
    """Return a policy of a key."""
    given = {"scope": "key_1", "author": "operator", "version": 3, "enforcement": "enforce", "preset": None}
    return Policy.read(**{**given, **members}, rules=rules)


def brief(decision: Decision) -> str:
    """Return the findings as the tables of the harness write them."""
    words = {"deny": "deny", "require_approval": "ask"}
    return " ".join(f"{words[found.outcome]}:{found.rule}" for found in decision.findings)


@pytest.mark.parametrize("name", POLICIES)
def test_each_policy_finds_in_each_proposal_what_the_table_states(name: str) -> None:
    """Sixty proposals for each policy."""
    assert len(PROPOSALS) == 60
    read = policy(POLICIES[name])
    found = {one: brief(evaluate([read], proposal(*PROPOSALS[one]), Context(NOW, usage={}))) for one in PROPOSALS}
    assert {one: text for one, text in found.items() if text} == EXPECTED[name]
    assert set(EXPECTED) == set(POLICIES)
