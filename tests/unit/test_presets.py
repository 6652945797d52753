"""Presets: each is a valid policy, and does what its sentence states."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from birdwire.gateway.guardrails.policy import Context, Policy, evaluate
from birdwire.gateway.guardrails.presets import PRESETS
from birdwire.gateway.guardrails.proposal import propose
from birdwire.keys.rules import KeyRules
from birdwire.x.catalog.operations import OPERATIONS
from birdwire.x.catalog.prices import Prices
from harness.guardrails import EXPECTED, POLICIES, PROPOSALS

NOW = datetime(2026, 11, 28, 12, 30, tzinfo=UTC)
OPERATION = {row.name: row for row in OPERATIONS}


def outcome(preset: str, operation: str, body: dict[str, Any]) -> str:
    """Return what a preset decides on a call."""
    policy = Policy.read("key_1", "operator", 1, "enforce", preset, PRESETS[preset].rules)
    checked = OPERATION[operation].body.model_validate(body)
    asked = propose(OPERATION[operation], "1", checked, Prices.load().of(OPERATION[operation], checked))
    return evaluate([policy], asked, Context(NOW, usage={}, own_post=True)).outcome


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_valid_policy_with_valid_rules_of_a_key(name: str) -> None:
    """It is copied as it is, so it is complete."""
    preset = PRESETS[name]
    assert preset.name == name
    assert preset.sentence.endswith(".")
    policy = Policy.read("key_1", "operator", 1, "enforce", name, json.loads(json.dumps(preset.rules)))
    assert policy.rules == preset.rules
    assert list(policy.rules) == list(preset.rules)
    KeyRules(**preset.key_rules).check(NOW)


def test_the_presets() -> None:
    """From the least to the most that a key may do."""
    assert list(PRESETS) == ["read_only", "propose", "poster", "trusted"]
    rules = KeyRules(**PRESETS["read_only"].key_rules)
    assert [row.name for row in OPERATIONS if rules.allow(row.name)] == []
    assert all(rules.allow(name) for name in ("user/info", "user/last_tweets", "user/search", "link"))
    assert not rules.allow("unlink")


def test_the_poster_is_the_policy_of_the_table() -> None:
    """Which states what it finds in sixty proposals."""
    assert PRESETS["poster"].rules == POLICIES["poster"]
    assert PRESETS["propose"].rules == POLICIES["propose"]


def test_what_each_preset_decides() -> None:
    """Every write waits in one, and everything that X lists passes in another."""
    for name, (operation, body) in PROPOSALS.items():
        assert outcome("propose", operation, body) == "require_approval"
        assert outcome("trusted", operation, body) == "allow"
        expected = "allow" if name == "delete" or name not in EXPECTED["poster"] else "require_approval"
        assert outcome("poster", operation, body) == expected, name
