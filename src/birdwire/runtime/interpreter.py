"""Names the build of Python that runs this process, and measures its speed.

The same code takes a tenth fewer instructions on a Python that was built with profile-guided optimization (PGO). Not
every such build records it: only a measurement shows it. This module imports nothing of Birdwire, so that any Python
can run it as a program, which prints an Interpreter as JSON.
"""

from __future__ import annotations

import json
import platform
import sys
import sysconfig
import time
from dataclasses import asdict, dataclass
from pathlib import Path

CALIBRATION_S = 0.3
SLICE_STEPS = 5_000

_OPTIMIZATIONS = {"--enable-optimizations": "PGO", "--with-lto": "LTO"}
_PREFIXES = {Path("/usr"): "the distribution", Path("/usr/local"): "/usr/local"}


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A build of Python, and its speed.

    `optimizations` are those that the build records. `million_steps_s` compares builds on one machine: a step of the
    calibration loop calls a method, fills a dictionary and a list, and formats, splits and encodes a string.
    """

    implementation: str
    version: str
    origin: str
    compiler: str
    optimizations: tuple[str, ...]
    million_steps_s: float

    def __str__(self) -> str:
        build = ", ".join((f"{self.implementation} from {self.origin}", self.compiler, *self.optimizations))
        return f"Python {self.version} ({build}): {self.million_steps_s:.2f} million steps/s in the calibration loop"


def interpreter(longest_s: float = CALIBRATION_S) -> Interpreter:
    """Return the Python that runs this process, after a calibration that takes this long."""
    configured = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    return Interpreter(
        implementation=platform.python_implementation(),
        version=platform.python_version(),
        origin=origin(Path(sys.base_prefix).resolve()),
        compiler=platform.python_compiler(),
        optimizations=tuple(name for flag, name in _OPTIMIZATIONS.items() if flag in configured),
        million_steps_s=round(_steps_per_s(longest_s) / 1e6, 3),
    )


def origin(prefix: Path) -> str:
    """Return who installed the Python with this prefix, without naming a user's folders."""
    if prefix in _PREFIXES:
        return _PREFIXES[prefix]
    parts = [part.lstrip(".") for part in prefix.parts]
    if any("conda" in part for part in parts):
        return "conda"
    return next((name for name in ("pyenv", "uv") if name in parts), "elsewhere")


def _steps_per_s(longest_s: float) -> float:
    """Return the best rate of many short slices, in CPU time, so that other processes hardly matter."""
    ends_at, best_s = time.monotonic() + longest_s, float("inf")
    while True:
        before_s = time.thread_time()
        run_slice()
        best_s = min(best_s, time.thread_time() - before_s)
        if time.monotonic() > ends_at:
            return SLICE_STEPS / best_s


class _Counts:
    __slots__ = ("names", "total")

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.total = 0

    def add(self, name: str, number: int) -> None:
        self.total += number
        self.names[name] = number


def run_slice() -> None:
    """Run the calibration loop. A change of it makes its figures incomparable with earlier ones."""
    counts, words = _Counts(), ("like", "post", "follow", "repost")
    found: list[bytes] = []
    for number in range(SLICE_STEPS):
        row = {"word": words[number & 3], "text": f"{words[number & 3]}:{number}"}
        counts.add(row["text"], number)
        found.append(row["text"].partition(":")[0].encode())
        if len(found) > 50:
            found.clear()
            counts.names.clear()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(interpreter(*map(float, sys.argv[1:])))))
