"""`python -m bench.instructions`: what a like costs in machine instructions and in bytecodes.

Both hardly depend on the machine or its load, so two versions of the code can be compared from two runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import budget, bytecodes, callgrind, contenders, goals, install, interpreters, machine, report, seed
from bench.load import DEEDS, Caller
from bench.machine import answering, free_port, start

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.machine import Process

HERE = Path(__file__).parent
WORK = HERE / ".work"
CONNECTIONS = 32
INSTRUCTIONS, BYTECODES = "instructions", "bytecodes"
MAX_TRACED, TRACED_S = 100, 300.0


def main() -> None:
    """Measure, print, and write bench/results."""
    options = _options()
    wanted = [options.only] if options.only else [BYTECODES, INSTRUCTIONS]
    try:
        install.require("nginx", *(["valgrind"] if INSTRUCTIONS in wanted else []))
    except RuntimeError as error:
        raise SystemExit(str(error)) from None
    python = interpreters.enter("bench.instructions", options.python)
    result: dict[str, Any] = {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": machine.output(["git", "rev-parse", "--short", "HEAD"]),
        "machine": machine.described(),
        "python": python,
    }
    under = {"guarded": options.guarded, "waiting": options.waiting}
    if BYTECODES in wanted:
        result[BYTECODES] = count_bytecodes(options.deed, min(options.likes, MAX_TRACED), **under)
    if INSTRUCTIONS in wanted:
        result[INSTRUCTIONS] = count_instructions(options.deed, options.likes, options.runs, **under)
    print(f"\n{page(result, options.deed)}")
    as_usual = options.deed == "like" and not any(under.values())
    if not options.only and as_usual:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "instructions.json").write_text(json.dumps(result, indent=1) + "\n")
        (options.out / "instructions.md").write_text(page(result))
    if options.docs:
        report.put_between(HERE.parent / "docs" / "design.md", budget.MARKS, budget.table(result))
    if as_usual:
        goals.print_unexplained(goals.of_instructions(result))


def count_bytecodes(deed: str, likes: int, *, guarded: bool = False, waiting: int = 0) -> dict[str, Any]:
    """Return the bytecodes of the commonest like or other deed of one connection."""
    x, place, environment, port = _prepared(1, guarded=guarded, waiting=waiting)
    out = WORK / "bytecodes.json"
    more = ["--out", out, "--port", port, "--key", place.keys[0], "--deed", deed, "--likes", likes]
    process = start("birdwire", [sys.executable, "-m", "bench.served", *more], WORK, env=environment, port=port)
    try:
        answering(process, out.exists, TRACED_S)
    finally:
        _stop(process, x)
    counts, times = bytecodes.commonest(json.loads(out.read_text()))
    frames = counts.pop(bytecodes.FRAMES)
    print(f"{sum(counts.values()):,} bytecodes for a {deed}", flush=True)
    return {"counts": counts, "frames": frames, "likes": likes, "alike": times}


def count_instructions(deed: str, likes: int, runs: int, *, guarded: bool = False, waiting: int = 0) -> dict[str, Any]:
    """Return the instructions of a like or other deed of CONNECTIONS connections, and each run's figures."""
    x, place, environment, port = _prepared(CONNECTIONS, guarded=guarded, waiting=waiting)
    command = callgrind.argv(WORK, [sys.executable, "-m", "bench.served"])
    process = start("birdwire", command, WORK, env=environment, port=port)
    try:
        answering(process, longest_s=callgrind.START_S)
        meter = callgrind.Meter(process, WORK)
        callers = partial(_callers, port, place.keys, deed)
        spans, libraries = callgrind.measure(meter, callers, likes, runs)
    finally:
        _stop(process, x)
    return {
        **asdict(callgrind.Cost.of(spans)),
        "runs": [asdict(span) for span in spans],
        "libraries": dict(libraries.most_common()),
    }


def _prepared(
    connections: int, *, guarded: bool, waiting: int
) -> tuple[Process, contenders.Place, dict[str, str], int]:
    """Start nginx in place of X, and link the keys of a new gateway.

    If `guarded`, it has a policy. `waiting` notifications wait for a destination that refuses them.
    """
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    x, place = contenders.x(WORK, seed.raw_keys(connections))
    port = free_port()
    environment = seed.settings(WORK, port, place.x_url, seed.vault_key())
    asyncio.run(seed.link(environment, place.keys))
    if guarded:
        asyncio.run(seed.guard(environment, seed.RULES))
    if waiting:
        asyncio.run(seed.notify(environment, f"http://127.0.0.1:{free_port()}/", waiting))
    # Sets of strings iterate in the same order in each run.
    return x, place, environment | {"PYTHONHASHSEED": "0", "PYTHONPATH": str(HERE.parent)}, port


def _callers(port: int, keys: Sequence[str], deed: str) -> list[Caller]:
    return [Caller(port, key, deed) for key in keys]


def _stop(process: Process, x: Process) -> None:
    """Kill the gateway: the periodic task that would notice SIGTERM sleeps."""
    process.running.kill()
    process.stop()
    x.stop()


def page(result: dict[str, Any], deed: str = "like") -> str:
    """Return what was measured, for people."""
    described = result["machine"]
    lines = [
        f"# Instructions and bytecodes of a {deed}",
        "",
        f"{result['made_at']}, commit {result['commit']}. {described['cpu']}, {described['system']}.",
        *interpreters.told(result["python"]),
        "To repeat it: `make bench-instructions`.",
        *(goals.section(goals.of_instructions(result)) if deed == "like" else ()),
    ]
    if INSTRUCTIONS in result:
        lines += _instructions(result[INSTRUCTIONS])
    if BYTECODES in result:
        lines += _bytecodes(result[BYTECODES])
    return "\n".join([*lines, ""])


def _instructions(found: dict[str, Any]) -> list[str]:
    libraries = Counter(found["libraries"])
    return [
        "",
        f"## {found['middle'] / 1000:,.0f} thousand instructions",
        "",
        f"The median of {len(found['runs'])} runs; their spread, max less min, is {found['spread']:.1%} of it.",
        "`birdwire serve` runs under callgrind, which does not see the kernel's instructions.",
        f"{CONNECTIONS} connections each send a like and await the answer, all in step.",
        f"Background work is taken off: {found['idle_rate'] / 1000:,.0f} thousand instructions per second, counted",
        "between the runs.",
        "",
        "| Run | Likes | Instructions per like | Background taken off |",
        "|--:|--:|--:|--:|",
        *(
            f"| {number} | {run['likes']:,} | {run['loaded'] / run['likes'] - _background(found, run):,.0f} "
            f"| {_background(found, run):,.0f} |"
            for number, run in enumerate(found["runs"], 1)
        ),
        "",
        "| Library | Share of the instructions |",
        "|---|--:|",
        *(f"| {name} | {count / libraries.total():.1%} |" for name, count in libraries.most_common(12)),
    ]


def _background(found: dict[str, Any], run: dict[str, Any]) -> float:
    return float(found["idle_rate"] * run["loaded_s"] / run["likes"])


def _bytecodes(found: dict[str, Any]) -> list[str]:
    counts: dict[str, int] = found["counts"]
    modules: Counter[str] = Counter()
    own: Counter[str] = Counter()
    libraries: Counter[str] = Counter()
    for place, count in counts.items():
        module, library = place.split("|")
        modules[module] += count
        (libraries if library else own)[library or module] += count
    return [
        "",
        f"## {modules.total():,} bytecodes",
        "",
        f"They run in {found['frames']:,} frames; one connection. {found['alike']} of {found['likes']} likes have",
        "exactly these counts; the others coincide with periodic work.",
        "",
        "| Package | Bytecodes | Share |",
        "|---|--:|--:|",
        *(f"| {name} | {count:,} | {count / modules.total():.1%} |" for name, count in budget.packages(counts).items()),
        "",
        "| Module | Bytecodes | Its own | In libraries |",
        "|---|--:|--:|--:|",
        *(f"| {name} | {count:,} | {own[name]:,} | {count - own[name]:,} |" for name, count in modules.most_common()),
        "",
        "| Library | Bytecodes |",
        "|---|--:|",
        *(f"| {name} | {count:,} |" for name, count in libraries.most_common()),
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-instructions ARGS=…", description=__doc__)
    parser.add_argument("--only", choices=[INSTRUCTIONS, BYTECODES], help="measure one of the two, and print it only")
    parser.add_argument("--deed", choices=DEEDS, default="like", help="what is counted; only likes are written")
    parser.add_argument("--guarded", action="store_true", help="under a policy of the gateway; nothing is written")
    parser.add_argument(
        "--waiting", type=int, default=0, help="number of notifications for a dead destination; nothing is written"
    )
    parser.add_argument("--runs", type=int, default=5, help="number of runs under callgrind (default: 5)")
    parser.add_argument(
        "--likes", type=int, default=320, help="number of likes in a run; bytecodes need 100 at most (default: 320)"
    )
    interpreters.add_option(parser)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--docs", action="store_true", help="also replace the budget in docs/design.md")
    options = parser.parse_args()
    if options.docs and (options.only or options.guarded or options.waiting or options.deed != "like"):
        parser.error("--docs needs both measurements of a like; leave out --only, --deed, --guarded and --waiting")
    return options


if __name__ == "__main__":
    main()
