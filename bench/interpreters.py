"""Which Python the benchmark measures: the distribution's if it is 3.11 or later, else that of the virtual environment.

Builds of Python differ in speed, and an operator is advised to use the faster one. All Python contenders run
on the same interpreter. As a program, `python -m bench.interpreters` prints a hint if the distribution's Python is
faster than the one that runs it; it needs the standard library only, and never fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from birdwire.runtime import interpreter
from birdwire.runtime.interpreter import Interpreter

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

DISTRIBUTION = "/usr/bin/python3"
STARTED_ON = "BENCH_STARTED_ON"
"""The environment variable that holds the interpreter on which a program started, if it continued on another."""

FASTER = 1.08
HINT_S = 0.07
PROBE_S = 30
_PROBE = "import ensurepip, os, sys, venv; print(os.path.realpath(sys.executable), *sys.version_info[:2])"


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add --python to a program's options."""
    parser.add_argument(
        "--python",
        metavar="PATH",
        help=f"interpreter to measure (default: {DISTRIBUTION} if it is 3.11 or later, else that of .venv)",
    )


def probe(python: str) -> tuple[str, str]:
    """Return the real path of an interpreter, or else why it cannot be used."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", _PROBE], capture_output=True, text=True, check=False, timeout=PROBE_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return "", f"{python} does not run"
    if done.returncode:
        return "", f"{python} cannot create virtual environments"
    path, *version = done.stdout.rsplit(maxsplit=2)
    if tuple(map(int, version)) < (3, 11):
        return "", f"{python} is Python {'.'.join(version)}"
    return path, ""


def calibrated(python: str, longest_s: float = interpreter.CALIBRATION_S) -> Interpreter:
    """Run an interpreter, and return its name and speed.

    Raises:
        OSError: it does not run.
        subprocess.SubprocessError: it failed.
        ValueError: it printed something else.
    """
    argv = [python, "-I", interpreter.__file__, str(longest_s)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=PROBE_S)
    return Interpreter(**json.loads(done.stdout))


def choose(wanted: str | None) -> tuple[str, str]:
    """Return the real path of the interpreter to measure, and why it is that one.

    Raises:
        SystemExit: --python names one that cannot be used.
    """
    path, fault = probe(wanted or DISTRIBUTION)
    if path:
        return path, "named by --python" if wanted else f"{DISTRIBUTION}, as an operator is advised to use"
    if wanted:
        raise SystemExit(f"--python: {fault}. Name a Python 3.11 or later that has its venv module.")
    return os.path.realpath(sys.executable), f"that of .venv, because {fault}"


def enter(module: str, wanted: str | None) -> dict[str, Any]:
    """Continue this program on the interpreter to measure; return that interpreter, and the one it started on.

    A program that has to change its interpreter starts again from its beginning, in an environment under bench/.
    """
    from bench import install  # noqa: PLC0415 - the hint needs the standard library only, before anything is installed

    path, why = choose(wanted)
    if path != os.path.realpath(sys.executable):
        python = install.gateway(path)
        if python is not None:
            environment = {**os.environ, STARTED_ON: sys.executable}
            os.execve(python, [str(python), "-m", module, *sys.argv[1:]], environment)  # noqa: S606 - no shell
        why = f"that of .venv, because Birdwire could not be installed on {path}"
    found: dict[str, Any] = {"measured": asdict(interpreter.interpreter()), "why": why}
    if STARTED_ON in os.environ:
        found["started_on"] = asdict(calibrated(os.environ[STARTED_ON]))
    return found


def measured(found: Mapping[str, Any]) -> Interpreter:
    """Return the measured one of what `enter` returned."""
    return Interpreter(**found["measured"])


def told(found: Mapping[str, Any]) -> list[str]:
    """Return the sentences of a report on what `enter` returned."""
    started_on = found.get("started_on")
    lines = [f"All Python programs run on {measured(found)}", f"({found['why']})."]
    if started_on:
        lines += [f"`make setup` uses another one here: {Interpreter(**started_on)}."]
    return lines


def hint() -> str:
    """Return how to use the distribution's Python, if it is faster than this one by more than FASTER; else nothing."""
    path, _ = probe(DISTRIBUTION)
    if not path or path == os.path.realpath(sys.executable):
        return ""
    # Turns even out what else the machine does meanwhile.
    turns = [(calibrated(sys.executable, HINT_S), calibrated(path, HINT_S)) for _ in range(2)]
    own, other = (max(one.million_steps_s for one in found) for found in zip(*turns, strict=True))
    if other <= own * FASTER:
        return ""
    return (
        f"Hint: this Python runs {own:.2f} million steps/s, {DISTRIBUTION} runs {other:.2f}. To use that one: "
        f"make clean && make PYTHON={DISTRIBUTION} setup"
    )


if __name__ == "__main__":
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError, TypeError):
        if line := hint():
            print(line)
