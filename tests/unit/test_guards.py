"""What a guard reports of pauses, and what trips read of a refusal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest

from birdwire.api.errors import GatewayError, describe
from birdwire.gateway.guardrails.pauses import document, in_force
from birdwire.gateway.guardrails.policy import Guard
from birdwire.store.tables.pauses import PauseRow

NOW = datetime(2026, 11, 28, 5, tzinfo=UTC)
KEY, ACCOUNT, GATEWAY = "key_1", "account:17", "gateway"


def pause(scope: str, author: Literal["operator", "owner"] = "operator", minutes: int | None = None) -> PauseRow:
    """A pause that ends after some minutes, or not by itself."""
    until = None if minutes is None else NOW + timedelta(minutes=minutes)
    return PauseRow(scope, author, NOW - timedelta(hours=1), until, f"{scope} misbehaves.", "uid 0")


def guard(*pauses: PauseRow) -> Guard:
    """A guard without policies."""
    return Guard(KEY, "17", (), pauses, ())


def refused(one: Guard) -> GatewayError:
    """The refusal of a paused call."""
    with pytest.raises(GatewayError) as error:
        one.check_pause(NOW)
    return error.value


@pytest.mark.parametrize(("scope", "named"), [(KEY, "key_1"), (ACCOUNT, "the account 17"), (GATEWAY, "the gateway")])
def test_a_pause_is_reported_with_its_scope_its_beginning_and_its_reason(scope: str, named: str) -> None:
    """And with the command that lifts it."""
    error = refused(guard(pause(scope)))
    assert (error.reason, error.outcome, error.retry_after_s) == ("paused", "not_sent", None)
    message, fix = describe(error)
    assert message == f"The operator paused {named} at 2026-11-28T04:00:00Z: {scope} misbehaves."
    assert fix == f"Wait until the operator resumes it (`birdwire resume {scope}`)."


def test_the_pause_of_the_owner_is_not_the_operators() -> None:
    """The operator cannot lift it."""
    assert refused(guard(pause(ACCOUNT, "owner"))).reason == "paused_by_owner"


def test_the_operators_pause_is_reported_before_the_owners_and_the_wider_one_before_the_narrower() -> None:
    """In any order of the rows."""
    rows = [pause(ACCOUNT, "owner"), pause(KEY), pause(GATEWAY), pause(ACCOUNT)]
    for order in (rows, rows[::-1]):
        held = [(row.scope, row.author) for row in in_force(order, NOW)]
        assert held == [(GATEWAY, "operator"), (ACCOUNT, "operator"), (KEY, "operator"), (ACCOUNT, "owner")]
        assert refused(guard(*order)).values["scope"] == GATEWAY


def test_a_pause_whose_end_has_come_holds_nothing() -> None:
    """The end itself is no longer in it."""
    for minutes in (-1, 0):
        guard(pause(GATEWAY, minutes=minutes)).check_pause(NOW)
    assert refused(guard(pause(GATEWAY, minutes=-1), pause(KEY, minutes=1))).values["scope"] == KEY


def test_a_guard_without_pauses_holds_nothing() -> None:
    """It may have policies."""
    guard().check_pause(NOW)


def test_a_pause_is_described_with_times_as_answers_show_them() -> None:
    """Its end may be open."""
    assert document(pause(KEY)) == {
        "scope": KEY,
        "by": "uid 0",
        "since": "2026-11-28T04:00:00Z",
        "until": None,
        "why": "key_1 misbehaves.",
    }
    assert document(pause(KEY, minutes=5))["until"] == "2026-11-28T05:05:00Z"
