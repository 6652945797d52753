"""Runs the conformance suite of the Model Context Protocol against POST /mcp, and compares its checks with a list.

`make mcp-conformance` prints them as a table. The list, tests/data/mcp_conformance.toml, names each check that must not
pass, with the reason, and how many checks pass. Any other result is a surprise: a failure that is not listed, a listed
one that passes, or a check that did not run.

The suite needs a newer Node than Debian has, so it runs on the one in the package of Playwright.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from playwright._impl._driver import compute_driver_executable

from harness.gateway import RunningGateway
from harness.mcp_proxy import adding_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

NODE = Path(compute_driver_executable()[0])
PACKAGES = Path(__file__).parents[1] / "node" / "node_modules"
SUITE = PACKAGES / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
LIST = Path(__file__).parents[1] / "data" / "mcp_conformance.toml"
RUNS = ("usual", "2025-06-18", "2025-11-25", "2026-07-28")
"""Every scenario at the revision that the suite chooses for it; then every scenario of a revision, at that revision."""

LIMIT_S = 50.0
_WORST_FIRST = ("FAILURE", "WARNING", "SKIPPED", "SUCCESS", "INFO")
UNMET = frozenset({"FAILURE", "WARNING"})
_FOLDER = re.compile(r"server-(?P<scenario>.+)-\d{4}-\d\d-\d\dT[\d-]+Z")


class Check(NamedTuple):
    """One check of a scenario, by its name `scenario:check`, with the worst of its statuses in a run."""

    run: str
    scenario: str
    name: str
    status: str
    message: str


@dataclass(frozen=True)
class Expected:
    """The list: a reason for each check that must not pass, and how many checks pass in each run."""

    reasons: Mapping[str, str]
    passed: Mapping[str, int]

    @classmethod
    def read(cls, path: Path = LIST) -> Expected:
        """Read the list from its file."""
        listed = tomllib.loads(path.read_text())
        reasons: dict[str, str] = {}
        for group in listed["unmet"]:
            for name in group["checks"]:
                if name in reasons:
                    raise ValueError(f"{path.name} lists {name} twice")
                reasons[name] = group["reason"]
        return cls(reasons, listed["passed"])


def run_suite(url: str, run: str, results: Path) -> list[Check]:
    """Run the scenarios of one run against a URL and return their checks."""
    revision = () if run == "usual" else ("--spec-version", run)
    ended = subprocess.run(  # noqa: S603 - the lock's own program
        [str(NODE), str(SUITE), "server", "--url", url, "--suite", "all", "--output-dir", str(results), *revision],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
        env=os.environ | {"NO_COLOR": "1"},
    )
    checks = [check for folder in sorted(results.iterdir()) for check in _checks(run, folder)]
    # Its status is 1 also for the failures that are listed.
    if ended.returncode not in {0, 1} or not checks:
        raise ChildProcessError(ended.stdout[-2_000:] + ended.stderr[-2_000:])
    return checks


def _checks(run: str, folder: Path) -> Iterable[Check]:
    """Return the checks in a scenario's folder, each name once."""
    named = _FOLDER.fullmatch(folder.name)
    if named is None:
        raise ValueError(f"{folder.name} is not a scenario's folder")
    scenario = named["scenario"]
    found: dict[str, Check] = {}
    for row in json.loads((folder / "checks.json").read_text()):
        name = f"{scenario}:{row['id']}"
        check = Check(run, scenario, name, row["status"], row.get("errorMessage") or "")
        before = found.get(name, check)
        found[name] = min(before, check, key=lambda one: _WORST_FIRST.index(one.status))
    return found.values()


def surprises(checks: Sequence[Check], expected: Expected) -> list[str]:
    """Return a sentence for every check that ended otherwise than the list states."""
    found = []
    for check in checks:
        if check.status in UNMET and check.name not in expected.reasons:
            found.append(f"{check.run}: {check.name} is not listed: {check.status}: {check.message}")
        if check.status == "SUCCESS" and check.name in expected.reasons:
            found.append(f"{check.run}: {check.name} passes and must leave the list")
    met = {check.name for check in checks if check.status in UNMET}
    found += [f"{name} is listed, and no run has it" for name in expected.reasons if name not in met]
    passed = Counter(check.run for check in checks if check.status == "SUCCESS")
    for run in sorted({*passed, *expected.passed}):
        if passed[run] != expected.passed.get(run):
            found.append(f"{run}: {passed[run]} checks passed, and the list states {expected.passed.get(run)}")
    return found


def table(checks: Sequence[Check], expected: Expected) -> str:
    """Return the scenarios of all runs as a Markdown table."""
    lines = [
        "| scenario | runs | passed | failed | warned | skipped | listed because |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for scenario in dict.fromkeys(check.scenario for check in checks):
        own = [check for check in checks if check.scenario == scenario]
        count = Counter(check.status for check in own)
        reasons = dict.fromkeys(expected.reasons[one.name] for one in own if one.name in expected.reasons)
        figures = [len({check.run for check in own}), *(count[status] for status in ("SUCCESS", *_WORST_FIRST[:3]))]
        lines.append(f"| {scenario} | {' | '.join(map(str, figures))} | {' '.join(reasons)} |")
    return "\n".join(lines)


async def run_all(url: str, directory: Path) -> list[Check]:
    """Run every run against a URL, one after the other, and return their checks."""
    checks = []
    for run in RUNS:
        results = directory / run
        results.mkdir()
        checks += await asyncio.to_thread(run_suite, url, run, results)
    return checks


async def _main() -> int:
    """Run the suite against a new gateway, and print the table and the surprises."""
    if not SUITE.exists():
        sys.exit("The npm packages of the tests are missing. Run make setup-dev")
    expected = Expected.read()
    with tempfile.TemporaryDirectory() as directory:
        async with RunningGateway.built(Path(directory), rpm=1_000_000) as running:
            await running.link("ada")
            async with adding_key(running.settings.base_url, running.raw_key) as proxy:
                checks = await run_all(f"{proxy}/mcp", Path(tempfile.mkdtemp(dir=directory)))
    found = surprises(checks, expected)
    sys.stdout.write("\n".join([table(checks, expected), "", *(found or ["No surprises."])]) + "\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
