"""The goals that the benchmark's pages report on, and why the latest run missed some of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.figures import OURS, Spread, Table, concise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

MANY = (32, 64)
FEW_ACCOUNTS, MANY_ACCOUNTS = 32, 1_000_000


@dataclass(frozen=True, slots=True)
class Goal:
    """A maximum, or with `least` a minimum, at these numbers of connections."""

    words: str
    bound: float
    at: tuple[int, ...] = MANY
    least: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal, and what was measured at a number of connections."""

    goal: Goal
    connections: int
    found: Spread

    @property
    def met(self) -> bool:
        """Whether the median meets the goal."""
        return self.found.middle >= self.goal.bound if self.goal.least else self.found.middle <= self.goal.bound

    @property
    def row(self) -> str:
        """The row of the table."""
        sign, verdict = "≥" if self.goal.least else "≤", "met" if self.met else "**missed**"
        bound = f"{sign} {concise(self.goal.bound)}"
        return f"| {self.goal.words} | {self.connections} | {bound} | {self.found} | {verdict} |"


def _times(name: str, other: str, figure: str = "cpu_us") -> Callable[[Table, int], Spread | None]:
    return lambda table, connections: table.ratio(name, other, connections, figure)


def _added_ms(figure: str) -> Callable[[Table, int], Spread | None]:
    def measured(table: Table, connections: int) -> Spread | None:
        found = table.difference(OURS, "nginx", connections, figure)
        return found and found.ms()

    return measured


def _added_us(name: str) -> Callable[[Table, int], Spread | None]:
    return lambda table, connections: table.difference(name, OURS, connections, "cpu_us")


LIKES: Mapping[Goal, Callable[[Table, int], Spread | None]] = {
    Goal("CPU, by nginx forwarding", 7.5): _times(OURS, "nginx"),
    Goal("CPU, by a bare Node + undici relay", 2.4): _times(OURS, "node-undici"),
    Goal("CPU of the same on FastAPI, by ours", 23, least=True): _times("fastapi-full", OURS),
    Goal("CPU of LiteLLM's pass-through, by ours", 40, least=True): _times("litellm", OURS),
    Goal("likes/s on one core, nginx's by ours", 8): _times("nginx", OURS, "rate"),
    Goal("p50 added to nginx forwarding, ms", 0.5, at=(1,)): _added_ms("p50_us"),
    Goal("p99 added to nginx forwarding, ms", 10, at=(32,)): _added_ms("p99_us"),
    Goal("peak memory, MiB", 80): lambda table, connections: table.figure(OURS, connections, "peak_mib"),
    Goal("gateway's CPU on PostgreSQL + Redis, by SQLite's", 1.3): _times("birdwire-postgres", OURS),
    Goal("CPU with TLS to X, by CPU without", 1.15): _times("birdwire-tls", OURS),
    Goal("CPU of a post, by a like", 1.6): _times("birdwire-post", OURS),
    Goal("CPU added by a policy with four counters, us", 150, at=(32,)): _added_us("birdwire-guarded"),
}
"""What `make bench` measures."""

ACCOUNTS = Goal("CPU of a like with 1,000,000 linked accounts, by with 32", 1.2)
"""What `make bench-growth` measures."""

INSTRUCTIONS = Goal("thousand instructions of a like", 520)
"""What `make bench-instructions` measures."""

_STEPS = "Most of the CPU is the interpreter's. docs/design.md lists the cheapest next steps and the price of each."
WHY: Mapping[str, str] = {
    "CPU, by nginx forwarding": "nginx forwards bytes, in C. Birdwire also checks the key and its limits, keeps the "
    "order of writes, decrypts the token, and writes a journal row and a log line, in Python.",
    "CPU added by a policy with four counters, us": "A guarded like is judged, then started and settled in two group "
    "commits with five statements more, all in Python; an unguarded one adds one row.",
    "CPU, by a bare Node + undici relay": "The relay checks no key, writes nothing to disk, and does not know whether "
    "a write reached X.",
    "CPU of the same on FastAPI, by ours": _STEPS,
    "CPU of LiteLLM's pass-through, by ours": _STEPS,
    "likes/s on one core, nginx's by ours": "One worker uses one core, so this follows from the CPU of a like.",
    "p50 added to nginx forwarding, ms": "Two thirds of it is Python code, which runs half as fast when the processor "
    "sleeps between its stages; docs/design.md lists the stages.",
    "p99 added to nginx forwarding, ms": "Concurrent likes wait for the one core, so this follows from the CPU of a "
    "like.",
    "CPU of a post, by a like": "A post stores four rows where a like stores one: its Idempotency-Key and its journal "
    "row before it is sent, its outcome and its answer after that. Three of them hold encrypted text.",
    "CPU with TLS to X, by CPU without": "Encrypting a request and decrypting its reply costs about 50 µs, as it did "
    "before a like became cheaper by a third.",
    "peak memory, MiB": "The imported libraries take 78 MiB before the first call, SQLAlchemy 19 of them, pydantic 11, "
    "and the web server and its framework 9.",
    "thousand instructions of a like": _STEPS,
}
"""Why the latest run missed a goal, written by hand. A goal that was met needs no entry."""


def of_likes(table: Table) -> list[Verdict]:
    """Return the verdicts of a run of `make bench`, on what was run."""
    return [
        Verdict(goal, connections, found)
        for goal, measured in LIKES.items()
        for connections in goal.at
        if (found := measured(table, connections))
    ]


def of_growth(result: Mapping[str, Any]) -> list[Verdict]:
    """Return the verdict of a run of `make bench-growth`, if it ran with few and with many accounts."""
    rows = [row for part in result["parts"] if part["name"] == "accounts" for row in part["rows"]]
    runs = {row["accounts"]: row["runs"] for row in rows if "runs" in row}
    pairs = zip(runs.get(MANY_ACCOUNTS, ()), runs.get(FEW_ACCOUNTS, ()), strict=False)
    found = Spread.of(many["cpu_us"] / few["cpu_us"] for many, few in pairs)
    return [Verdict(ACCOUNTS, 32, found)] if found else []


def of_instructions(result: Mapping[str, Any]) -> list[Verdict]:
    """Return the verdict of a run of `make bench-instructions`, unless it counted bytecodes only."""
    if "instructions" not in result:
        return []
    cost = result["instructions"]
    runs = [(run["loaded"] - cost["idle_rate"] * run["loaded_s"]) / run["likes"] / 1000 for run in cost["runs"]]
    found = Spread.of(runs)
    return [Verdict(INSTRUCTIONS, 32, found)] if found else []


def section(verdicts: Iterable[Verdict]) -> list[str]:
    """Return the lines of a page: the table, and for each missed goal the reason."""
    verdicts = list(verdicts)
    if not verdicts:
        return []
    missed = dict.fromkeys(one.goal.words for one in verdicts if not one.met)
    return [
        "",
        "## Goals",
        "",
        "| | connections | goal | measured | |",
        "|---|--:|--:|--:|---|",
        *(one.row for one in verdicts),
        *([""] if missed else []),
        *(f"- Missed: {words}. {WHY.get(words) or 'The reason is not known yet.'}" for words in missed),
    ]


def unexplained(verdicts: Iterable[Verdict]) -> list[str]:
    """Return the missed goals without a reason in WHY."""
    return list(dict.fromkeys(one.goal.words for one in verdicts if not one.met and not WHY.get(one.goal.words)))


def print_unexplained(verdicts: Iterable[Verdict]) -> None:
    """Ask for the reasons that are missing; a test refuses to let committed pages lack them."""
    for words in unexplained(verdicts):
        print(f"goal missed: {words}; state the reason in WHY of bench/goals.py")
