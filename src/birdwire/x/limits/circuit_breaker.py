"""A breaker for each of X's endpoints: where X keeps failing, it is left alone but for a probe every few seconds.

It counts over all accounts what X does: its 5xx, silence and cut connections, against its answers. It must never count
a 4xx or a 429 as a failure, nor hold one account's trouble against the others. It knows one issuer: its process's.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from birdwire.api.errors import GatewayError

if TYPE_CHECKING:
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.telemetry import Telemetry

FEWEST = 10
"""So many failures without an answer between them open a breaker; for all accounts, half of them of a second one."""
FORGOTTEN_S = 60.0
PROBE_EVERY_S = 3.0
MOST = 10_000

_ALL = ""


@dataclass(slots=True)
class _Circuit:
    """What X did at one endpoint, for one account or for all. Open while `probe_at` is set: only probes pass."""

    failed_at: float
    account: str
    failures: int = 0
    others: int = 0
    """Failures of other accounts than the first."""
    probe_at: float | None = None


class CircuitBreaker:
    """Holds a circuit only where X failed lately, so that a call costs nothing while X is well."""

    def __init__(self, clock: Clock, telemetry: Telemetry) -> None:
        self._clock = clock
        self._telemetry = telemetry
        self._circuits: dict[tuple[str, str], _Circuit] = {}
        self.refused = 0

    @property
    def open(self) -> list[str]:
        """The endpoints at which X is left alone, for all accounts."""
        return [endpoint for (endpoint, account), one in self._circuits.items() if account == _ALL and one.probe_at]

    def check(self, endpoint: str, account: str) -> None:
        """Refuse a call that could not pass now.

        Raises:
            GatewayError: x_breaker_open, with the seconds until the next probe.
        """
        if not self._circuits:
            return
        wait_s = max((probe_at for _, probe_at in self._open(endpoint, account)), default=0) - self._clock.monotonic()
        if wait_s > 0:
            self.refused += 1
            raise GatewayError("x_breaker_open", retry_after_s=ceil(wait_s))

    def admit(self, endpoint: str, account: str) -> None:
        """Let a call pass; while open only one every PROBE_EVERY_S, whose end decides.

        Raises:
            GatewayError: as `check`.
        """
        self.check(endpoint, account)
        for circuit, _ in self._open(endpoint, account):
            circuit.probe_at = self._clock.monotonic() + PROBE_EVERY_S  # one that hangs keeps nobody from the next

    def closed(self, endpoint: str, account: str) -> bool:
        """Whether a call would pass without being a probe."""
        return not self._open(endpoint, account)

    def answered(self, endpoint: str, account: str) -> None:
        """X answered, be it with a refusal: it is there."""
        if not self._circuits:
            return
        for place in ((endpoint, account), (endpoint, _ALL)):
            circuit = self._circuits.pop(place, None)
            if circuit is not None and circuit.probe_at is not None:
                self._tell(place, "closed")

    def failed(self, endpoint: str, account: str) -> None:
        """X did not answer, or with a 5xx."""
        now = self._clock.monotonic()
        for place in ((endpoint, account), (endpoint, _ALL)):
            circuit = self._circuits.get(place)
            if circuit is None or (circuit.probe_at is None and now - circuit.failed_at > FORGOTTEN_S):
                circuit = self._begin(place, _Circuit(now, account))
            circuit.failed_at = now
            circuit.failures += 1
            circuit.others += circuit.account != account
            enough = circuit.failures >= FEWEST and (place[1] != _ALL or circuit.others >= FEWEST // 2)
            if circuit.probe_at is None and enough:
                circuit.probe_at = now + PROBE_EVERY_S
                self._tell(place, "open")

    def _open(self, endpoint: str, account: str) -> list[tuple[_Circuit, float]]:
        if not self._circuits:
            return []
        both = (self._circuits.get((endpoint, account)), self._circuits.get((endpoint, _ALL)))
        return [(one, one.probe_at) for one in both if one is not None and one.probe_at is not None]

    def _begin(self, place: tuple[str, str], circuit: _Circuit) -> _Circuit:
        self._circuits.pop(place, None)
        if len(self._circuits) >= MOST:
            del self._circuits[next(iter(self._circuits))]  # the oldest
        self._circuits[place] = circuit
        return circuit

    def _tell(self, place: tuple[str, str], state: str) -> None:
        endpoint, account = place
        accounts = "all" if account == _ALL else "one"
        self._telemetry.event("warning", "breaker", endpoint=endpoint, accounts=accounts, state=state)
