"""Turns a run into latest.json, a table for people with its goals, and a plot."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from bench import goals, interpreters
from bench.figures import OURS, Table, concise

if TYPE_CHECKING:
    from pathlib import Path

SHOWN = {
    "birdwire",
    "birdwire-tls",
    "birdwire-postgres",
    "birdwire-post",
    "birdwire-guarded",
    "nginx",
    "node-undici",
    "fastapi",
    "fastapi-full",
    "litellm",
}
"""What the README shows; everything stands in latest.md."""

MARKS = ("<!-- cost: written by make bench -->", "<!-- end of cost -->")
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#57606a}.own{fill:#1d7fd6}.peer{fill:#a3adb8}"
    "@media(prefers-color-scheme:dark){text{fill:#c9d1d9}.peer{fill:#6e7681}}"
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
        f"same machine takes the place of X. {connections} connections. All Python programs run on",
        f"{interpreters.measured(result['python'])}.",
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
            lines.append(f"| {one['title']} | {concise(cpu.middle)} | {ratio or '-'} | {concise(rate.middle)} |")
    return "\n".join(lines)


def page(result: dict[str, Any]) -> str:
    """The table for people, the goals, and how each was run."""
    table, options, machine = Table(result), result["options"], result["machine"]
    every = ranked(result, table)
    lines = [
        "# What a like costs",
        "",
        f"{result['made_at']}, commit {result['commit']}. {machine['cpu']}, {machine['cores']} cores,",
        f"{machine['memory_gib']} GiB; {machine['system']}. The disk keeps a page in",
        f"{machine['fsync_us']} µs. Load average at the start: {machine['load_average']}.",
        *interpreters.told(result["python"]),
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
        *goals.section(goals.of_likes(table)),
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
            f'<text x="{left + length + 6:.0f}" y="{y + 15}">{concise(value)}</text>',
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
                f"| {one['title']} | {connections} | {cpu} | {concise(rate.middle)} | {p50.middle / 1000:.2f} "
                f"| {p99.middle / 1000:.2f} | {peak.most:.0f} | {concise(beside.middle) if beside.most else '-'} |"
            )
    return rows


def _version(one: dict[str, Any]) -> str:
    return f" ({one['version'].partition(' - ')[0]})" if one["version"] else ""


def growth(result: dict[str, Any]) -> str:
    """The parts of a growth run, a table each: a row for each size, a column for each figure."""
    machine = result["machine"]
    lines = [
        "# What a like costs as it grows",
        "",
        f"{result['made_at']}, commit {result['commit']}. {machine['cpu']}, {machine['cores']} cores,",
        f"{machine['memory_gib']} GiB; {machine['system']}. The disk keeps a page in",
        f"{machine['fsync_us']} µs. 32 connections; medians of several rounds, sizes taking turns, with the least and",
        "the most in brackets. To repeat it: `make bench-growth`.",
        *interpreters.told(result["python"]),
        *goals.section(goals.of_growth(result)),
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
