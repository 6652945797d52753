"""Counts the machine instructions of a like with valgrind's callgrind, and takes off those of background work."""

from __future__ import annotations

import re
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from bench import machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from bench.load import Caller
    from bench.machine import Process

IDLE_S = 5.0
SETTLE_S = 1.0
UNCOUNTED_ROUNDS, WARM_UP_ROUNDS = 100, 3
CONTROL_S, START_S = 60, 600.0
OUT = "callgrind.out"

_SUMMARY = re.compile(r"^summary: (\d+)$", re.MULTILINE)
_OBJECT = re.compile(r"ob=\((\d+)\)(?: (.*))?")


@dataclass(frozen=True, slots=True)
class Span:
    """One stretch of likes and the idle stretch after it, each in instructions and seconds."""

    likes: int
    loaded: int
    loaded_s: float
    idle: int
    idle_s: float


@dataclass(frozen=True, slots=True)
class Cost:
    """Instructions of a like, net of background work: the median of several spans, and their spread around it."""

    middle: float
    spread: float
    idle_rate: float

    @classmethod
    def of(cls, spans: Sequence[Span]) -> Cost:
        """Take off the process's idle rate, which is that of all idle stretches together."""
        rate = sum(span.idle for span in spans) / sum(span.idle_s for span in spans)
        net = [(span.loaded - rate * span.loaded_s) / span.likes for span in spans]
        middle = median(net)
        return cls(middle, (max(net) - min(net)) / middle, rate)


def argv(work: Path, command: Iterable[object]) -> list[object]:
    """Return a command that runs under callgrind and counts nothing yet."""
    options = ["--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={work / OUT}"]
    return ["valgrind", *options, *command]


class Meter:
    """Counts what a process under callgrind executes between two moments."""

    def __init__(self, process: Process, work: Path) -> None:
        self._process = process
        self._work = work
        self._dumps = 0

    def begin(self) -> None:
        """Start counting, from the next instruction on."""
        self._control("-i", "on")

    def zero(self) -> None:
        """Forget what was counted so far."""
        self._control("-z")

    def dump(self) -> str:
        """Return callgrind's profile of what was executed since `zero`."""
        self._control("-d")
        self._dumps += 1
        path = self._work / f"{OUT}.{self._dumps}"
        machine.answering(self._process, lambda: path.exists() and "\ntotals: " in path.read_text())
        return path.read_text()

    def _control(self, *words: str) -> None:
        command = ["callgrind_control", *words, str(self._process.running.pid)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=CONTROL_S)
        if done.returncode or "OK" not in done.stdout:
            raise RuntimeError(f"{' '.join(command)} failed: {(done.stdout + done.stderr).strip()}")


def measure(
    meter: Meter, connect: Callable[[], list[Caller]], likes: int, runs: int
) -> tuple[list[Span], Counter[str]]:
    """Return a span for each run, and the instructions of all runs by library."""
    callers = connect()
    rounds = max(1, round(likes / len(callers)))
    # SQLite's write-ahead log costs more as it fills, until its first checkpoint.
    _likes(callers, UNCOUNTED_ROUNDS)
    meter.begin()
    spans: list[Span] = []
    libraries: Counter[str] = Counter()
    for _ in range(runs):
        _likes(callers, WARM_UP_ROUNDS)
        time.sleep(SETTLE_S)
        meter.zero()
        began_s = time.monotonic()
        _likes(callers, rounds)
        time.sleep(SETTLE_S)
        loaded_s = time.monotonic() - began_s
        loaded = meter.dump()
        # The gateway closes idle connections, which is no background work.
        for caller in callers:
            caller.close()
        time.sleep(SETTLE_S)
        meter.zero()
        began_s = time.monotonic()
        time.sleep(IDLE_S)
        idle_s = time.monotonic() - began_s
        idle = meter.dump()
        callers = connect()
        spans.append(Span(rounds * len(callers), instructions(loaded), loaded_s, instructions(idle), idle_s))
        libraries += by_library(loaded)
        print(f"{spans[-1].loaded / spans[-1].likes:,.0f} instructions for a like, background included", flush=True)
    for caller in callers:
        caller.close()
    return spans, libraries


def _likes(callers: Sequence[Caller], rounds: int) -> None:
    """Every caller sends one like, then every caller awaits its answer: batches are the same in each round."""
    for _ in range(rounds):
        for caller in callers:
            caller.send()
        for caller in callers:
            caller.receive()


def instructions(profile: str) -> int:
    """Return the total of a callgrind profile.

    Raises:
        ValueError: it is not a whole profile.
    """
    found = _SUMMARY.search(profile)
    if found is None:
        raise ValueError("callgrind's profile has no summary")
    return int(found[1])


def by_library(profile: str) -> Counter[str]:
    """Return a profile's own costs by the file name of the program or library, such as libc.so.6."""
    names: dict[str, str] = {}
    costs: Counter[str] = Counter()
    current, inclusive = "", False
    for line in profile.splitlines():
        if found := _OBJECT.match(line):
            if found[2]:
                names[found[1]] = Path(found[2]).name
            current = names[found[1]]
        elif line.startswith("cob=(") and " " in line:
            number, _, path = line.removeprefix("cob=(").partition(") ")
            names[number] = Path(path).name
        elif line.startswith("calls="):
            inclusive = True
        elif line[:1] in set("0123456789+-*"):
            if not inclusive:
                costs[current] += int(line.split()[1])
            inclusive = False
    return costs
