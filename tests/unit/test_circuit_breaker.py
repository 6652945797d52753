"""The breaker: what opens it, for whom, and what closes it again."""

from __future__ import annotations

import io

import pytest

from birdwire.api.errors import GatewayError
from birdwire.runtime.clock import Clock
from birdwire.runtime.telemetry import Telemetry
from birdwire.x.limits.circuit_breaker import (
    FAILURE_THRESHOLD,
    FAILURE_WINDOW_S,
    MAX_CIRCUITS,
    PROBE_INTERVAL_S,
    CircuitBreaker,
)

LIKE, POST = "POST /2/users/{user_id}/likes", "POST /2/tweets"


class Still(Clock):
    """A time that a test sets."""

    now_s = 1000.0

    def monotonic(self) -> float:
        """As set."""
        return self.now_s


@pytest.fixture
def clock() -> Still:
    """A time that stands."""
    return Still()


@pytest.fixture
def breaker(clock: Still) -> CircuitBreaker:
    """One that has seen nothing."""
    return CircuitBreaker(clock, Telemetry(io.StringIO(), clock))


def fail(breaker: CircuitBreaker, times: int, *accounts: str, endpoint: str = LIKE) -> None:
    """Record this many failures, of these accounts in turn."""
    for n in range(times):
        breaker.record_failure(endpoint, accounts[n % len(accounts)])


def refused(breaker: CircuitBreaker, account: str, endpoint: str = LIKE) -> int | None:
    """The Retry-After of a call; None if it may pass."""
    try:
        breaker.admit(endpoint, account)
    except GatewayError as error:
        return error.retry_after_s if (error.reason, error.outcome) == ("x_breaker_open", "not_sent") else -1
    return None


def test_failures_of_several_accounts_open_it_for_all(breaker: CircuitBreaker) -> None:
    """Also for one that never called; and for that endpoint alone."""
    fail(breaker, FAILURE_THRESHOLD - 1, "1", "2")
    assert refused(breaker, "3") is None
    fail(breaker, 1, "2")
    assert refused(breaker, "3") == PROBE_INTERVAL_S
    assert breaker.open == [LIKE]
    assert refused(breaker, "3", POST) is None


@pytest.mark.trust("F31")
def test_one_accounts_failures_open_it_for_that_account_alone(breaker: CircuitBreaker) -> None:
    """However many they are, and though another's call fails once in a while."""
    fail(breaker, 10 * FAILURE_THRESHOLD, "1")
    fail(breaker, FAILURE_THRESHOLD // 2 - 1, "2")
    assert refused(breaker, "1") == PROBE_INTERVAL_S
    assert refused(breaker, "2") is None
    assert breaker.open == []


def test_an_answer_in_between_resets_the_count(breaker: CircuitBreaker) -> None:
    """A few failures among many answers are X's everyday."""
    for _ in range(10):
        fail(breaker, FAILURE_THRESHOLD - 1, "1", "2")
        breaker.record_answer(LIKE, "1")
        breaker.record_answer(LIKE, "2")
    assert (refused(breaker, "1"), refused(breaker, "2")) == (None, None)


def test_failures_of_long_ago_do_not_count(breaker: CircuitBreaker, clock: Still) -> None:
    """No call was made in between, so nothing is known."""
    fail(breaker, FAILURE_THRESHOLD - 1, "1")
    clock.now_s += FAILURE_WINDOW_S + 1
    fail(breaker, 1, "1")
    assert refused(breaker, "1") is None


@pytest.mark.trust("F32")
def test_one_probe_passes_every_few_seconds_and_its_answer_closes_it(breaker: CircuitBreaker, clock: Still) -> None:
    """A probe that hangs delays only the calls of the next seconds."""
    fail(breaker, FAILURE_THRESHOLD, "1", "2")
    for _ in range(3):
        clock.now_s += PROBE_INTERVAL_S - 0.5
        assert refused(breaker, "1") == 1
        clock.now_s += 0.5
        assert refused(breaker, "1") is None
        assert refused(breaker, "1") == PROBE_INTERVAL_S
        assert not breaker.is_closed(LIKE, "1")
    breaker.record_answer(LIKE, "1")
    assert refused(breaker, "2") is None
    assert breaker.is_closed(LIKE, "1")


def test_a_probe_that_fails_keeps_it_open(breaker: CircuitBreaker, clock: Still) -> None:
    """No full count is needed again."""
    fail(breaker, FAILURE_THRESHOLD, "1", "2")
    clock.now_s += PROBE_INTERVAL_S
    assert refused(breaker, "1") is None
    fail(breaker, 1, "1")
    assert refused(breaker, "2") == PROBE_INTERVAL_S


def test_its_memory_is_bounded(breaker: CircuitBreaker) -> None:
    """Whatever accounts fail."""
    for account in range(MAX_CIRCUITS + 100):
        breaker.record_failure(LIKE, str(account))
    assert len(vars(breaker)["_circuits"]) <= MAX_CIRCUITS


def test_opening_and_closing_are_logged(clock: Still) -> None:
    """Once each, without an account."""
    log = io.StringIO()
    breaker = CircuitBreaker(clock, Telemetry(log, clock))
    fail(breaker, 3 * FAILURE_THRESHOLD, "1234567")
    breaker.record_answer(LIKE, "1234567")
    lines = log.getvalue().splitlines()
    assert len(lines) == 2
    assert '"state":"open"' in lines[0]
    assert '"state":"closed"' in lines[1]
    assert "1234567" not in log.getvalue()
