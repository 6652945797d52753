"""The circuit breaker of each endpoint of X: while X keeps failing there, only one probe every few seconds passes.

It counts X's 5xx, timeouts and cut connections against its answers, over all accounts. It must never count a 4xx or a
429 as a failure, nor block other accounts for the failures of one. It knows one issuer: that of its process.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from birdwire.api.errors import GatewayError

if TYPE_CHECKING:
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.telemetry import Telemetry

FAILURE_THRESHOLD = 10
"""The failures without an answer in between that open a circuit. The circuit of all accounts also needs half as many
from accounts other than the first."""
FAILURE_WINDOW_S = 60.0
PROBE_INTERVAL_S = 3.0
MAX_CIRCUITS = 10_000

_ALL = ""
"""Stands for the account in the circuit of all accounts."""

_Subject = tuple[str, str]
"""An endpoint and an account."""


@dataclass(slots=True)
class _Circuit:
    """X's failures at one endpoint, for one account or for all. Open while `probe_at` is set: only probes pass."""

    failed_at: float
    account: str
    failures: int = 0
    others: int = 0
    """Failures of accounts other than the first."""
    probe_at: float | None = None


class CircuitBreaker:
    """Holds a circuit only where X failed recently, so that a call costs nothing while X works."""

    def __init__(self, clock: Clock, telemetry: Telemetry) -> None:
        self._clock = clock
        self._telemetry = telemetry
        self._circuits: dict[_Subject, _Circuit] = {}
        self.refused = 0

    @property
    def open(self) -> list[str]:
        """The endpoints whose circuit of all accounts is open."""
        return [endpoint for (endpoint, account), one in self._circuits.items() if account == _ALL and one.probe_at]

    def check(self, endpoint: str, account: str) -> None:
        """Refuse a call that could not pass now.

        Raises:
            GatewayError: x_breaker_open, with the seconds until the next probe.
        """
        if self._circuits and (refusal := self.refusal(endpoint, account)) is not None:
            self.refused += 1
            raise refusal

    def refusal(self, endpoint: str, account: str) -> GatewayError | None:
        """Return the refusal that a call would get now, without counting it as one."""
        wait_s = max((probe_at for _, probe_at in self._open(endpoint, account)), default=0) - self._clock.monotonic()
        return GatewayError("x_breaker_open", retry_after_s=ceil(wait_s)) if wait_s > 0 else None

    def admit(self, endpoint: str, account: str) -> None:
        """Let a call pass. While a circuit is open, one probe every PROBE_INTERVAL_S passes, and its result decides.

        Raises:
            GatewayError: as `check`.
        """
        if not self._circuits:
            return
        self.check(endpoint, account)
        for circuit, _ in self._open(endpoint, account):
            # A probe that hangs does not delay the next one.
            circuit.probe_at = self._clock.monotonic() + PROBE_INTERVAL_S

    def is_closed(self, endpoint: str, account: str) -> bool:
        """Return whether a call would pass without being a probe."""
        return not self._open(endpoint, account)

    def record_answer(self, endpoint: str, account: str) -> None:
        """Close the circuits: X answered, whether or not it refused the call."""
        if not self._circuits:
            return
        for subject in ((endpoint, account), (endpoint, _ALL)):
            circuit = self._circuits.pop(subject, None)
            if circuit is not None and circuit.probe_at is not None:
                self._log(subject, "closed")

    def record_failure(self, endpoint: str, account: str) -> None:
        """Count a failure: X did not answer, or answered 5xx."""
        now = self._clock.monotonic()
        for subject in ((endpoint, account), (endpoint, _ALL)):
            circuit = self._circuits.get(subject)
            if circuit is None or (circuit.probe_at is None and now - circuit.failed_at > FAILURE_WINDOW_S):
                circuit = self._add(subject, _Circuit(now, account))
            circuit.failed_at = now
            circuit.failures += 1
            circuit.others += circuit.account != account
            enough_others = subject[1] != _ALL or circuit.others >= FAILURE_THRESHOLD // 2
            if circuit.probe_at is None and circuit.failures >= FAILURE_THRESHOLD and enough_others:
                circuit.probe_at = now + PROBE_INTERVAL_S
                self._log(subject, "open")

    def _open(self, endpoint: str, account: str) -> list[tuple[_Circuit, float]]:
        if not self._circuits:
            return []
        both = (self._circuits.get((endpoint, account)), self._circuits.get((endpoint, _ALL)))
        return [(one, one.probe_at) for one in both if one is not None and one.probe_at is not None]

    def _add(self, subject: _Subject, circuit: _Circuit) -> _Circuit:
        self._circuits.pop(subject, None)
        if len(self._circuits) >= MAX_CIRCUITS:
            # The circuit whose failures started first.
            del self._circuits[next(iter(self._circuits))]
        self._circuits[subject] = circuit
        return circuit

    def _log(self, subject: _Subject, state: str) -> None:
        endpoint, account = subject
        accounts = "all" if account == _ALL else "one"
        self._telemetry.event("warning", "breaker", endpoint=endpoint, accounts=accounts, state=state)
