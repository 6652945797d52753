"""The CPU budget of a like: what was booked on modules, by the parts of the way that a reader knows."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

PARTS: Mapping[str, str] = {
    "Bytes in, bytes out": "edge lane door head asgi",
    "Who asks, and whether they may": "keys recall permit limits redis crowd health rules",
    "The steps between": "gate call clock errors order flight",
    "The body, and X's call made of it": "body form pairs dialect operations post text",
    "The session and its token": "sessions refresh vault keyring revocations",
    "Asking X, and reading its answer": "line x upstream connection breaker capabilities ledger windows",
    "The journal row, on the disk": "journal idempotency prices presence reconcile store",
    "The log line, the metrics": "telemetry log metrics chores",
    "The event loop": "(loop and greenlets)",
}
"""Each part, and the modules that are it, with those below them."""

OTHER, THREADS = "Everything else", "Other threads: waiting for the disk"
MARKS = ("<!-- budget: written by make bench-profile -->", "<!-- end of budget -->")


def part_of(module: str) -> str:
    """The part that a module belongs to."""
    first = module.partition(".")[0]
    return next((part for part, names in PARTS.items() if first in names.split() or names == module), OTHER)


def parts(found: Mapping[str, Any]) -> dict[str, float]:
    """Microseconds of a like by part. The sampler's own cost is taken off: shares of what a like costs without it."""
    shares: Counter[str] = Counter()
    for place, seconds in found["booked"].items():
        shares[part_of(place.partition("|")[0])] += seconds
    used = {name: sum(times) for name, times in found["threads"].items()}
    cpu_us, whole = found["plain"].cpu_us, sum(used.values()) or 1.0
    main_us, booked = cpu_us * used["main"] / whole, sum(shares.values()) or 1.0
    told = {part: shares[part] / booked * main_us for part in (*PARTS, OTHER) if shares[part]}
    return told | {THREADS: cpu_us - main_us}


def table(found: Mapping[str, Any], described: Mapping[str, Any], made_at: str, commit: str) -> str:
    """The budget for people."""
    plain, threads = found["plain"], found["threads"].values()
    system = sum(times[1] for times in threads) / (sum(map(sum, threads)) or 1.0)
    lines = [
        "| Part of the way | CPU µs |",
        "|---|--:|",
        *(f"| {part} | {us:.1f} |" for part, us in parts(found).items()),
        f"| **A like** | **{plain.cpu_us:.1f}** |",
        "",
        f"{made_at[:10]}, commit {commit}, one core of a {described['cpu']}; {plain.connections} connections,",
        f"{plain.rate:,.0f} likes/s. {system:.0%} of it is the system's own: sockets, and the disk. A like is",
        f"{_calls(found):.0f} calls of functions, Python's own included.",
    ]
    return "\n".join(lines)


def _calls(found: Mapping[str, Any]) -> float:
    return float(sum(found["calls"].values()) / max(1, found["counted"].requests))
