"""Turns a run into latest.json, a table for people with its targets, and a plot."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

OURS = "birdwire"
RANKED_AT = 32
SHOWN = {"birdwire", "birdwire-tls", "birdwire-postgres", "nginx", "node-undici", "fastapi", "fastapi-full", "litellm"}
"""What the README shows; everything stands in latest.md."""

MARKS = ("<!-- cost: written by make bench -->", "<!-- end of cost -->")
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#57606a}.own{fill:#1d7fd6}.peer{fill:#a3adb8}"
    "@media(prefers-color-scheme:dark){text{fill:#c9d1d9}.peer{fill:#6e7681}}"
)


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

    def __str__(self) -> str:
        return f"{_short(self.middle)} ({_short(self.least)} to {_short(self.most)})"


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


@dataclass(frozen=True, slots=True)
class Target:
    """What was aimed at: words, how it is measured at a number of connections, and the bound."""

    words: str
    at: tuple[int, ...]
    measured: Callable[[Table, int], Spread | None]
    bound: float
    least: bool = False

    def rows(self, table: Table) -> list[str]:
        """A row for each number of connections that was run."""
        return [
            self._row(connections, found) for connections in self.at if (found := self.measured(table, connections))
        ]

    def _row(self, connections: int, found: Spread) -> str:
        met = found.middle >= self.bound if self.least else found.middle <= self.bound
        sign = "≥" if self.least else "≤"
        verdict = "met" if met else "**missed**"
        return f"| {self.words} | {connections} | {sign} {_short(self.bound)} | {found} | {verdict} |"


MANY = (32, 64)
TARGETS = (
    Target("CPU, by nginx forwarding", MANY, lambda t, n: t.ratio(OURS, "nginx", n), 6),
    Target("CPU, by a bare Node + undici relay", MANY, lambda t, n: t.ratio(OURS, "node-undici", n), 1.1),
    Target("CPU of the same on FastAPI, by ours", MANY, lambda t, n: t.ratio("fastapi-full", OURS, n), 40, least=True),
    Target("CPU of LiteLLM's pass-through, by ours", MANY, lambda t, n: t.ratio("litellm", OURS, n), 80, least=True),
    Target("likes/s on one core", MANY, lambda t, n: t.figure(OURS, n, "rate"), 10_000, least=True),
    Target("p99, ms", MANY, lambda t, n: _ms(t.figure(OURS, n, "p99_us")), 10),
    Target("peak memory, MiB", MANY, lambda t, n: t.figure(OURS, n, "peak_mib"), 80),
    Target("p50 added to a direct call, ms", (1,), lambda t, n: _ms(t.difference(OURS, "direct", n, "p50_us")), 0.5),
    Target("p99 added to a direct call, ms", (1,), lambda t, n: _ms(t.difference(OURS, "direct", n, "p99_us")), 3),
    Target(
        "gateway's CPU on PostgreSQL + Redis, by SQLite's",
        MANY,
        lambda t, n: t.ratio("birdwire-postgres", OURS, n),
        1.6,
    ),
)


def write(result: dict[str, Any], folder: Path) -> None:
    """latest.json, latest.md and latest.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latest.json").write_text(written(result))
    (folder / "latest.md").write_text(page(result))
    (folder / "latest.svg").write_text(plot(result))


def written(result: dict[str, Any]) -> str:
    """The result as JSON, a run a line, so that a change of it can be read."""
    head = json.dumps({name: value for name, value in result.items() if name != "runs"}, indent=1)
    runs = ",\n  ".join(json.dumps(run) for run in result["runs"])
    return f'{head[:-2]},\n "runs": [\n  {runs}\n ]\n}}\n'


def put_between(path: Path, marks: tuple[str, str], text: str) -> None:
    """Replace what stands between two marks of a page.

    Raises:
        ValueError: the page has no such marks.
    """
    before, first, rest = path.read_text().partition(marks[0])
    _, second, after = rest.partition(marks[1])
    if not first or not second:
        raise ValueError(f"{path} has no marks")
    path.write_text(f"{before}{first}\n\n{text}\n\n{second}{after}")


def few(result: dict[str, Any]) -> str:
    """The ranking of those that the README shows, with date and machine."""
    shown = {**result, "contenders": [one for one in result["contenders"] if one["name"] in SHOWN]}
    machine, connections = result["machine"], Table(result).ranked_at
    lines = [
        short(shown),
        "",
        f"{result['made_at'][:10]}, on one of {machine['cores']} cores, {machine['cpu']}. nginx on the",
        f"same machine takes the place of X. {connections} connections.",
    ]
    return "\n".join(lines)


def short(result: dict[str, Any]) -> str:
    """The ranking alone."""
    table = Table(result)
    lines = [
        f"| A like through … ({table.ranked_at} connections) | CPU µs | relative to Birdwire | likes/s on one core |",
        "|---|--:|--:|--:|",
    ]
    for one in ranked(result, table):
        cpu, rate = (
            table.figure(one["name"], table.ranked_at, "cpu_us"),
            table.figure(one["name"], table.ranked_at, "rate"),
        )
        ratio = table.ratio(one["name"], OURS, table.ranked_at)
        if cpu and rate:
            lines.append(f"| {one['title']} | {_short(cpu.middle)} | {ratio or '-'} | {_short(rate.middle)} |")
    return "\n".join(lines)


def page(result: dict[str, Any]) -> str:
    """The table for people, its targets, and how each was run."""
    table, options, machine = Table(result), result["options"], result["machine"]
    every = ranked(result, table)
    lines = [
        "# What a like costs",
        "",
        f"{result['made_at']}, commit {result['commit']}. {machine['cpu']}, {machine['cores']} cores,",
        f"{machine['memory_gib']} GiB; {machine['system']}, Python {machine['python']}. The disk keeps a page in",
        f"{machine['fsync_us']} µs. Load average at the start: {machine['load_average']}.",
        "",
        "CPU is user + system time of the whole process tree, divided by the likes it answered: the figure that ranks.",
        f"Medians of {options['rounds']} rounds of {options['seconds']} s, contenders taking turns; ratios are taken",
        "within a round, with the least and the most in brackets. What is measured runs on one core; the load (wrk, a",
        "key for each connection), nginx in X's place and the databases share the other, which is what bounds the",
        "likes/s of the fastest.",
        "",
        "![CPU for a like](latest.svg)",
        "",
        short(result),
        "",
        "## Latency, CPU and memory by connections",
        "",
        "| | connections | CPU µs | likes/s | p50 ms | p99 ms | peak MiB | databases' CPU µs |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
        *(row for one in every for row in _rows(table, one)),
        "",
        "## Targets",
        "",
        "| | connections | aim | measured | |",
        "|---|--:|--:|--:|---|",
        *(row for target in TARGETS for row in target.rows(table)),
        "",
        "## How each was run",
        "",
        *(f"- {one['title']}: {one['how']}.{_version(one)}" for one in result["contenders"]),
        *(f"- not run: {name}: {why}." for name, why in result["missing"].items()),
        "",
        "To repeat it: `make bench`. The configurations stand in [bench/peers](../peers).",
        "",
    ]
    return "\n".join(lines)


def ranked(result: dict[str, Any], table: Table) -> list[dict[str, Any]]:
    """The contenders, cheapest first."""

    def cost(one: dict[str, Any]) -> float:
        found = table.figure(one["name"], table.ranked_at, "cpu_us")
        return found.middle if found else math.inf

    return sorted(result["contenders"], key=cost)


def plot(result: dict[str, Any]) -> str:
    """Bars on a logarithmic scale, as SVG that is legible on light and on dark."""
    table = Table(result)
    bars = [
        (one["title"].replace("**", ""), one["own"], found.middle)
        for one in ranked(result, table)
        if (found := table.figure(one["name"], table.ranked_at, "cpu_us"))
    ]
    left, width, step = 330, 420, 26
    height = step * len(bars) + 40
    most = math.log10(max((value for *_, value in bars), default=1) * 1.1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 90} {height}">',
        f"<style>{STYLE}</style>",
        f'<text x="{left}" y="18">CPU µs for a like, {table.ranked_at} connections, logarithmic</text>',
    ]
    for number, (title, own, value) in enumerate(bars):
        y, shade = 30 + number * step, "own" if own else "peer"
        length = max(2.0, math.log10(max(value, 1)) / most * width)
        parts += [
            f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(title)}</text>',
            f'<rect class="{shade}" x="{left}" y="{y}" width="{length:.0f}" height="{step - 6}" rx="2"/>',
            f'<text x="{left + length + 6:.0f}" y="{y + 15}">{_short(value)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _rows(table: Table, one: dict[str, Any]) -> list[str]:
    rows = []
    for connections in table.connections:
        figures = [
            table.figure(one["name"], connections, name)
            for name in ("cpu_us", "rate", "p50_us", "p99_us", "peak_mib", "beside_us")
        ]
        cpu, rate, p50, p99, peak, beside = figures
        if cpu and rate and p50 and p99 and peak and beside:
            rows.append(
                f"| {one['title']} | {connections} | {cpu} | {_short(rate.middle)} | {p50.middle / 1000:.2f} "
                f"| {p99.middle / 1000:.2f} | {peak.most:.0f} | {_short(beside.middle) if beside.most else '-'} |"
            )
    return rows


def _version(one: dict[str, Any]) -> str:
    return f" ({one['version'].partition(' - ')[0]})" if one["version"] else ""


def _ms(found: Spread | None) -> Spread | None:
    return found and Spread(found.middle / 1000, found.least / 1000, found.most / 1000)


def _short(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def growth(result: dict[str, Any]) -> str:
    """The parts of a growth run, a table each: a row for each size, a column for each figure."""
    machine = result["machine"]
    lines = [
        "# What a like costs as it grows",
        "",
        f"{result['made_at']}, commit {result['commit']}. {machine['cpu']}, {machine['cores']} cores,",
        f"{machine['memory_gib']} GiB; {machine['system']}, Python {machine['python']}. The disk keeps a page in",
        f"{machine['fsync_us']} µs. 32 connections; medians of several rounds, sizes taking turns, with the least and",
        "the most in brackets. To repeat it: `make bench-growth`.",
    ]
    for part in result["parts"]:
        names = list(dict.fromkeys(name for row in part["rows"] for name in row if name != "runs"))
        lines += ["", f"## {part['title']}", "", *part["words"], ""]
        if names:
            lines += [f"| {' | '.join(names)} |", "|" + "--:|" * len(names)]
        lines += [f"| {' | '.join(_cell(row.get(name)) for name in names)} |" for row in part["rows"]]
    return "\n".join([*lines, ""])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int | float) else str(value)
