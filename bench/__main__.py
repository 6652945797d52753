"""`python -m bench`: every contender side by side, in rounds, and what came out in bench/results."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bench import contenders, goals, install, interpreters, machine, report, seed
from bench.contenders import CONTENDERS, Contender, Place
from bench.figures import Table
from bench.load import Load, Run

if TYPE_CHECKING:
    from bench.machine import Process

HERE = Path(__file__).parent
WORK = HERE / ".work"


def main() -> None:
    """Install, run, report."""
    options = _options()
    python = interpreters.enter("bench", options.python)
    install.everything()
    chosen = [one for one in CONTENDERS if not options.only or one.name in options.only]
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    absent = {one.name: f"not installed: {', '.join(lacking)}" for one in chosen if (lacking := one.lacks())}
    chosen = [one for one in chosen if one.name not in absent]
    versions = {one.name: _version(one) for one in chosen}
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    described = {**machine.described(), "fsync_us": machine.fsync_us(WORK)}
    runs, failed = _measure(chosen, options)
    result = {
        "made_at": made_at,
        "commit": machine.output(["git", "rev-parse", "--short", "HEAD"]),
        "machine": described,
        "python": python,
        "options": {"seconds": options.seconds, "rounds": options.rounds, "connections": options.connections},
        "contenders": [
            {"name": one.name, "title": one.title, "how": one.how, "version": versions[one.name], "own": one.own}
            for one in chosen
        ],
        "missing": absent | failed,
        "runs": [asdict(run) for run in runs],
    }
    report.write(result, options.out)
    if options.readme:
        report.put_between(HERE.parent / "README.md", report.MARKS, report.few(result))
    print(f"\n{report.short(result)}\nwritten: {options.out}/latest.json, latest.md, latest.svg")
    goals.print_unexplained(goals.of_likes(Table(result)))


def _measure(chosen: list[Contender], options: argparse.Namespace) -> tuple[list[Run], dict[str, str]]:
    """The runs, and why a contender has none, or not all."""
    runs: list[Run] = []
    failed: dict[str, str] = {}
    x, place = contenders.x(WORK, seed.raw_keys(max(options.connections)))
    running: dict[str, Process] = {}
    try:
        for one in chosen:
            _start(one, place, running, failed)
        loads = {one.name: Load(place.keys_file, options.seconds, deed=one.deed) for one in chosen}
        for number in range(1, options.rounds + 1):
            for connections in options.connections:
                for name in list(running):
                    try:
                        runs.append(run := loads[name].run(running[name], number, connections))
                    except (RuntimeError, subprocess.SubprocessError) as error:
                        failed[name] = str(error)
                        running.pop(name).stop()
                        continue
                    _say(run)
    finally:
        for process in running.values():
            process.stop()
        x.stop()
    return runs, failed


def _start(one: Contender, place: Place, running: dict[str, Process], failed: dict[str, str]) -> None:
    print(f"starting {one.name} ...", flush=True)
    try:
        running[one.name] = one.start(place, one.name)
    except Exception as error:  # noqa: BLE001 - a contender that does not start is said to be missing
        failed[one.name] = f"did not start: {type(error).__name__}: {error}"
        print(failed[one.name], file=sys.stderr)


def _say(run: Run) -> None:
    print(
        f"round {run.round}, {run.connections:>2} connections  {run.contender:<18}"
        f"{run.cpu_us:>9.1f} us CPU {run.rate:>9.0f} calls/s   p50 {run.p50_us / 1000:.2f} ms   "
        f"p99 {run.p99_us / 1000:.2f} ms   {run.peak_mib:.0f} MiB",
        flush=True,
    )


def _version(one: Contender) -> str:
    """A contender's own word of its version; ours is the commit."""
    return machine.output([str(part) for part in one.version]) if one.version else ""


def _options() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        known = {one.name for one in CONTENDERS}
        chosen = text.split(",")
        if unknown := set(chosen) - known:
            raise argparse.ArgumentTypeError(f"no such contender: {min(unknown)}; there are {', '.join(known)}")
        return chosen

    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__)
    parser.add_argument("--only", type=names, default=[], help="contenders, separated by commas; default: all")
    parser.add_argument("--seconds", type=int, default=3, help="how long each run is measured (default: 3)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is run (default: 3)")
    parser.add_argument(
        "--connections",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[1, 32, 64],
        help="numbers of connections (default: 1,32,64)",
    )
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    interpreters.add_option(parser)
    parser.add_argument("--readme", action="store_true", help="also renew the table of the README")
    return parser.parse_args()


if __name__ == "__main__":
    main()
