"""The budget of a like: its bytecodes by the parts of Birdwire, and the table of docs/design.md."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import interpreters

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType

PARTS: Mapping[str, str] = {
    "edge": "HTTP server: bytes in, bytes out",
    "api": "Requests, answers and errors as data",
    "gateway": "The steps of a call",
    "keys": "API key, its rules and rate limits",
    "accounts": "X account and its tokens",
    "x.client": "HTTP client: asking X, reading its answer",
    "x.limits": "X's rate limits, circuit breaker, order of writes",
    "x.catalog": "X's operations and prices",
    "outcomes": "Journal, idempotency",
    "store": "Database",
    "runtime": "Log line, metrics, clock",
    "(loop)": "Event loop",
}
"""Each package and the part that it is. A longer prefix takes precedence; the order is that of the table."""

OTHER = "(other)"
LOOP = "(loop)"
OURS = "birdwire."
RUNNER = "asyncio.runners"
MARKS = ("<!-- budget: written by make bench-instructions -->", "<!-- end of budget -->")


class Owner(NamedTuple):
    """The innermost function of Birdwire, and the library that it has called into, if any."""

    module: str
    function: str
    library: str


def owner(frame: FrameType | None) -> Owner:
    """Return the owner of a running frame. LOOP owns what no function of Birdwire called."""
    library = ""
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name.startswith(OURS):
            return Owner(name.removeprefix(OURS), frame.f_code.co_qualname, library)
        if name == RUNNER:
            break
        library = library or _library(name)
        frame = frame.f_back
    return Owner(LOOP, "", library)


def _library(module: str) -> str:
    """Return a module's library. A named tuple's methods have a module of their own, named after the tuple."""
    return "collections" if module.startswith("namedtuple_") else module.partition(".")[0]


def package_of(module: str) -> str:
    """Return the package of PARTS that a module belongs to, or OTHER."""
    fitting = [package for package in PARTS if f"{module}.".startswith(f"{package}.")]
    return max(fitting, key=len, default=OTHER)


def packages(counts: Mapping[str, int]) -> dict[str, int]:
    """Return the bytecodes of a like by package, in the order of PARTS; libraries count for their caller."""
    found: Counter[str] = Counter()
    for place, count in counts.items():
        found[package_of(place.partition("|")[0])] += count
    return {package: found[package] for package in (*PARTS, OTHER) if found[package]}


def table(result: Mapping[str, Any]) -> str:
    """Return the budget for people."""
    found, cost = result["bytecodes"], result["instructions"]
    total = sum(found["counts"].values())
    lines = ["| Part | Package | Bytecodes | Share |", "|---|---|--:|--:|"]
    for package, count in packages(found["counts"]).items():
        shown = "" if package in {LOOP, OTHER} else f"`{package}`"
        lines.append(f"| {PARTS.get(package, 'Everything else')} | {shown} | {count:,} | {count / total:.0%} |")
    lines += [
        f"| **A like** | | **{total:,}** | |",
        "",
        f"A like is {total:,} bytecodes in {found['frames']:,} frames, and {cost['middle'] / 1000:,.0f} thousand",
        f"machine instructions (spread {cost['spread']:.1%}) net of background work. {result['made_at'][:10]},",
        f"commit {result['commit']}, {interpreters.measured(result['python'])}.",
    ]
    return "\n".join(lines)
