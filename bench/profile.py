"""`python -m bench.profile`: the microseconds of a like: user and system, by thread, module and function.

A timer on the process's CPU interrupts the main thread every millisecond of work; what the thread has used since the
last time is booked on the innermost function of Birdwire that is running, with what it calls. System calls and C code
are booked on their caller; reading a socket, on the first function of Birdwire to run after it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import contenders, engines, install, interpreters, seed
from bench.budget import owner
from bench.load import DEEDS, Load
from bench.machine import LOAD_CORE, TICK_S, answering, free_port, start

if TYPE_CHECKING:
    from types import FrameType

    from bench.machine import Process

HERE = Path(__file__).parent
WORK = HERE / ".work"
EVERY_S = 0.001


class Sampler:
    """Books the main thread's CPU on functions, from `begin` to `end`."""

    def __init__(self) -> None:
        self.booked: Counter[str] = Counter()
        self._last_s = 0.0

    def begin(self) -> None:
        """Forget what was, and book from here on."""
        self.booked.clear()
        self._last_s = time.thread_time()
        signal.signal(signal.SIGPROF, self._sample)
        signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)

    def end(self) -> None:
        """Book no more."""
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _sample(self, _number: int, frame: FrameType | None) -> None:
        now_s = time.thread_time()
        self.booked["|".join(owner(frame))] += now_s - self._last_s  # type: ignore[assignment]
        self._last_s = time.thread_time()


def serve(out: Path) -> None:
    """Be `birdwire serve`. The first SIGUSR1 starts the sampler; the second writes its figures to `out`."""
    from birdwire.cli import main  # noqa: PLC0415 - in the measured process alone

    sampler = Sampler()

    def write() -> None:
        sampler.end()
        out.with_suffix(".part").write_text(json.dumps({"booked": sampler.booked}))
        out.with_suffix(".part").rename(out)

    steps = iter((sampler.begin, write))
    signal.signal(signal.SIGUSR1, lambda *_: next(steps)())
    sys.argv = ["birdwire", "serve"]
    main()


def threads(process: Process) -> dict[str, tuple[float, float]]:
    """User and system seconds of each thread so far, by name."""
    found = {}
    for task in Path(f"/proc/{process.running.pid}/task").iterdir():
        name, _, rest = (task / "stat").read_text().rpartition(")")
        fields = rest.split()
        label = "main" if task.name == str(process.running.pid) else f"{name.partition('(')[2]} {task.name}"
        found[label] = (int(fields[11]) * TICK_S, int(fields[12]) * TICK_S)
    return found


def _less(used: tuple[float, float], before: tuple[float, float]) -> tuple[float, float]:
    return used[0] - before[0], used[1] - before[1]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One run under the sampler, and one without it, which says what the sampler costs."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    x, place = contenders.x(WORK, seed.raw_keys(options.connections))
    attendants: list[Process] = []
    try:
        more: dict[str, str] = {}
        if options.postgres:
            postgres, more["database_url"] = engines.postgres(WORK, core=LOAD_CORE)
            attendants.append(postgres)
            redis, more["redis_url"] = engines.redis(WORK, core=LOAD_CORE)
            attendants.append(redis)
        port, out = free_port(), WORK / "booked.json"
        x_url = place.x_tls_url if options.tls else place.x_url
        environment = seed.settings(WORK, port, x_url, seed.vault_key(), **more)
        asyncio.run(seed.link(environment, place.keys))
        if options.guarded:
            asyncio.run(seed.guard(environment, seed.RULES))
        environment |= {"SSL_CERT_FILE": str(WORK / "ca.pem"), "PYTHONPATH": str(HERE.parent)}
        argv = [sys.executable, "-m", "bench.profile", "--serve", out]
        process = start("birdwire", argv, WORK, env=environment, port=port)
        attendants.insert(0, process)
        answering(process)
        load = Load(place.keys_file, options.seconds, deed=options.deed)
        plain = load.run(process, 1, options.connections)
        load = Load(place.keys_file, options.seconds, warm_up=0, deed=options.deed)
        before = threads(process)
        process.running.send_signal(signal.SIGUSR1)
        sampled = load.run(process, 2, options.connections)
        process.running.send_signal(signal.SIGUSR1)
        after = threads(process)
        answering(process, out.exists)
        return {
            "plain": plain,
            "sampled": sampled,
            "threads": {name: _less(used, before.get(name, (0.0, 0.0))) for name, used in after.items()},
            **json.loads(out.read_text()),
        }
    finally:
        for one in attendants:
            one.stop()
        x.stop()


def told(found: dict[str, Any], most: int, deed: str) -> str:
    """The budget as tables, in microseconds of CPU for a call."""
    plain, sampled = found["plain"], found["sampled"]
    likes = max(1, sampled.requests)
    lines = [
        (
            f"{plain.cpu_us:.1f} us CPU for a {deed}, {plain.rate:.0f}/s, p50 {plain.p50_us / 1000:.2f} ms, "
            f"p99 {plain.p99_us / 1000:.2f} ms, {plain.peak_mib:.0f} MiB ({sampled.cpu_us:.1f} us under the sampler)"
        ),
        "",
        f"{'thread':<28}{'user':>8}{'system':>8}",
    ]
    for name, (user_s, system_s) in sorted(found["threads"].items(), key=lambda item: -sum(item[1])):
        if user_s + system_s > 0:
            lines.append(f"{name:<28}{user_s / likes * 1e6:>8.1f}{system_s / likes * 1e6:>8.1f}")
    modules: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for place, seconds in found["booked"].items():
        module, function, library = place.split("|")
        modules[module] += seconds
        functions[f"{module}.{function}" + (f" > {library}" if library else "")] += seconds
    for title, booked in (("module, with what it calls", modules), ("function > library", functions)):
        lines += ["", f"{title:<76}{'us':>8}"]
        lines += [f"{name:<76}{seconds / likes * 1e6:>8.1f}" for name, seconds in booked.most_common(most)]
    return "\n".join(lines)


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("--seconds", type=int, default=5, help="how long to measure (default: 5)")
    parser.add_argument("--connections", type=int, default=32, help="connections (default: 32)")
    parser.add_argument("--most", type=int, default=40, help="rows of a table (default: 40)")
    parser.add_argument("--postgres", action="store_true", help="on PostgreSQL and Redis")
    parser.add_argument("--deed", choices=DEEDS, default="like", help="what callers do (default: like)")
    parser.add_argument("--guarded", action="store_true", help="under a policy of the gateway")
    parser.add_argument("--tls", action="store_true", help="TLS to X")
    interpreters.add_option(parser)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    python = interpreters.enter("bench.profile", options.python)
    install.programs()
    print(*interpreters.told(python), "", sep="\n")
    print(told(measure(options), options.most, options.deed))


if __name__ == "__main__":
    main()
