"""Print the records of the fault tests as Markdown: `python tests/harness/report.py FILE`."""

from __future__ import annotations

import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path


def report(lines: list[str]) -> str:
    """Return a table with one row per kind of run, which adds up integers and shows the maximum of other numbers."""
    kinds: dict[str, list[dict[str, object]]] = {}
    for line in lines:
        figures = json.loads(line)
        kinds.setdefault(figures.pop("what"), []).append(figures)
    rows = [f"| {what} | {'; '.join(map(_formatted, _summed(runs).items()))} |" for what, runs in sorted(kinds.items())]
    head = (
        "# Fault tests, the long form\n\n"
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"{platform.system()} {platform.release()}. `make faults` regenerates this.\n\n"
        "| What | Figures |\n|---|---|\n"
    )
    return head + "\n".join(rows) + "\n"


def _summed(runs: list[dict[str, object]]) -> dict[str, object]:
    total: dict[str, object] = {}
    for run in runs:
        for name, value in run.items():
            before = total.get(name)
            if isinstance(value, int) and isinstance(before, int):
                total[name] = before + value
            elif isinstance(value, float) and isinstance(before, float):
                total[name] = max(before, value)
            else:
                total[name] = value
    return total


def _formatted(figure: tuple[str, object]) -> str:
    name, value = figure
    return f"{name.replace('_', ' ')} {value:,}" if isinstance(value, int) else f"{name.replace('_', ' ')} {value}"


if __name__ == "__main__":
    sys.stdout.write(report(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()))
