"""Figures of a result: spreads over rounds, and ratios within a round."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

OURS = "birdwire"
RANKED_AT = 32


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure of several rounds: its median, least and most."""

    middle: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None of none."""
        known = sorted(values)
        return cls(median(known), known[0], known[-1]) if known else None

    def ms(self) -> Spread:
        """Microseconds as milliseconds."""
        return Spread(self.middle / 1000, self.least / 1000, self.most / 1000)

    def __str__(self) -> str:
        return f"{concise(self.middle)} ({concise(self.least)} to {concise(self.most)})"


class Table:
    """The runs of a result, by contender and connections."""

    def __init__(self, result: dict[str, Any]) -> None:
        self._runs = {(run["contender"], run["connections"], run["round"]): run for run in result["runs"]}
        self.connections: list[int] = result["options"]["connections"]
        self.rounds = range(1, result["options"]["rounds"] + 1)
        self.ranked_at = RANKED_AT if RANKED_AT in self.connections else self.connections[-1]

    def figure(self, name: str, connections: int, figure: str) -> Spread | None:
        """A figure of a contender over the rounds."""
        return Spread.of(run[figure] for run in self._of(name, connections))

    def ratio(self, name: str, other: str, connections: int, figure: str = "cpu_us") -> Spread | None:
        """One contender's figure by another's, within each round."""
        return self._pairs(name, other, connections, figure, lambda ours, theirs: ours / theirs)

    def difference(self, name: str, other: str, connections: int, figure: str) -> Spread | None:
        """One contender's figure less another's, within each round."""
        return self._pairs(name, other, connections, figure, lambda ours, theirs: ours - theirs)

    def peak_mib(self, name: str) -> float:
        """The most memory of any run."""
        return max((run["peak_mib"] for key, run in self._runs.items() if key[0] == name), default=0)

    def _of(self, name: str, connections: int) -> list[dict[str, Any]]:
        keys = ((name, connections, number) for number in self.rounds)
        return [self._runs[key] for key in keys if key in self._runs]

    def _pairs(
        self, name: str, other: str, connections: int, figure: str, work: Callable[[float, float], float]
    ) -> Spread | None:
        ours = {run["round"]: run[figure] for run in self._of(name, connections)}
        theirs = {run["round"]: run[figure] for run in self._of(other, connections)}
        return Spread.of(work(ours[number], theirs[number]) for number in ours.keys() & theirs.keys() if theirs[number])


def concise(value: float) -> str:
    """Three significant digits, more or less."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
