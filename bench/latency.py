"""`python -m bench.latency`: where the time of a like goes when one caller sends one like after another.

The gateway marks the time at a few places, in its own process. Each stage is the median of the time between two marks;
what is left of the caller's median is the network stack, the event loop's wait, and the caller itself. The same is
measured through nginx, which forwards to the same place, so that the difference is what Birdwire adds.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import shutil
import sys
import time
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from bench import contenders, install, interpreters, machine, seed
from bench.load import Caller
from bench.machine import LOAD_CORE, answering, free_port, pinned, start

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
WORK = HERE / ".work"
WARM_UP = 300
STAGES = (
    ("read", "asks", "from the like's last byte to the request to X"),
    ("asks", "answered", "X"),
    ("answered", "handed", "from X's answer to the commit"),
    ("handed", "syncs", "waking the disk's thread"),
    ("syncs", "synced", "the commit, with its wait for the disk"),
    ("synced", "resumes", "waking the event loop"),
    ("resumes", "answers", "from the commit to the answer"),
)
"""Two marks, and what happens between them."""
REST = "the rest: both ends of the caller's connection"


class Marks:
    """The time of each place, by name, of the like that runs; `likes` holds the stages of all that ended."""

    def __init__(self) -> None:
        self.likes: list[list[float]] = []
        self._at: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """Record that a like is at a place now."""
        self._at[name] = time.perf_counter()

    def end(self) -> None:
        """Record that a like is answered. One that waited for the disk twice, or never, does not count."""
        at, self._at = self._at, {}
        at["answers"] = time.perf_counter()
        if all(first in at and last in at for first, last, _ in STAGES):
            self.likes.append([at[last] - at[first] for first, last, _ in STAGES])


def serve(out: Path, likes: int) -> None:
    """Be `birdwire serve`, and write the stages of so many likes after the warm-up to `out`."""
    from birdwire.cli import main  # noqa: PLC0415 - in the measured process alone
    from birdwire.edge.protocol import EdgeProtocol  # noqa: PLC0415 - the same
    from birdwire.store.engines.disk_thread import DiskThread  # noqa: PLC0415 - the same
    from birdwire.x.client.connection import Connection  # noqa: PLC0415 - the same

    marks = Marks()
    run = DiskThread.run

    async def marked(self: DiskThread, work: Callable[[], Any]) -> Any:
        def work_marked() -> Any:
            marks.mark("syncs")
            try:
                return work()
            finally:
                marks.mark("synced")

        marks.mark("handed")
        try:
            return await run(self, work_marked)
        finally:
            marks.mark("resumes")

    def answered(*_: object) -> None:
        marks.end()
        if len(marks.likes) == WARM_UP + likes:
            out.with_suffix(".part").write_text(json.dumps(marks.likes[WARM_UP:]))
            out.with_suffix(".part").rename(out)

    DiskThread.run = marked  # type: ignore[method-assign]
    _before(EdgeProtocol, "data_received", lambda *_: marks.mark("read"))
    _before(Connection, "exchange", lambda *_: marks.mark("asks"))
    _before(Connection, "data_received", lambda *_: marks.mark("answered"))
    _before(EdgeProtocol, "on_response_complete", answered)
    sys.argv = ["birdwire", "serve"]
    main()


def _before(owner: type, name: str, note: Callable[..., None]) -> None:
    """Have `note` called before each call of a method."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def noted(*given: Any, **named: Any) -> Any:
        note()
        return method(*given, **named)

    setattr(owner, name, noted)


def measure(likes: int) -> dict[str, Any]:
    """Return the caller's latencies through the gateway and through nginx, and the gateway's stages, in seconds."""
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    fsync_us = machine.fsync_us(WORK)
    x, place = contenders.x(WORK, seed.raw_keys(1))
    attendants = [x]
    try:
        nginx = next(one for one in contenders.CONTENDERS if one.name == "nginx").start(place, "nginx")
        attendants.append(nginx)
        port, out = free_port(), WORK / "stages.json"
        environment = seed.settings(WORK, port, place.x_url, seed.vault_key()) | {"PYTHONPATH": str(HERE.parent)}
        asyncio.run(seed.link(environment, place.keys))
        argv = [sys.executable, "-m", "bench.latency", "--serve", out, "--likes", likes]
        process = start("birdwire", argv, WORK, env=environment, port=port)
        attendants.insert(0, process)
        answering(process)
        with pinned(LOAD_CORE):
            forwarded = _timed(nginx.port, place.keys[0], likes)
            through = _timed(port, place.keys[0], likes)
        answering(process, out.exists)
        return {"through": through, "forwarded": forwarded, "stages": json.loads(out.read_text()), "fsync_us": fsync_us}
    finally:
        for one in attendants:
            one.stop()


def _timed(port: int, key: str, likes: int) -> list[float]:
    """Return how long each like took, after the warm-up. Some more are sent, because not every one counts."""
    caller = Caller(port, key)
    took = []
    try:
        for _ in range(WARM_UP + likes + likes // 10):
            began = time.perf_counter()
            caller.send()
            caller.receive()
            took.append(time.perf_counter() - began)
    finally:
        caller.close()
    return took[WARM_UP:]


def told(found: dict[str, Any]) -> str:
    """Return the stages as a table."""
    through, forwarded = median(found["through"]), median(found["forwarded"])
    p99 = quantiles(found["through"], n=100)[98]
    stages = [median(took) for took in zip(*found["stages"], strict=True)]
    lines = [
        f"At one connection, a like takes {_us(through)} us (p50) and {_us(p99)} us (p99);",
        f"through nginx alone {_us(forwarded)} us: Birdwire adds {_us(through - forwarded)}.",
        f"The disk keeps a page in {found['fsync_us']} us.",
        "",
        f"{'stage':<58}{'us':>8}",
    ]
    lines += [f"{words:<58}{_us(took):>8}" for (*_, words), took in zip(STAGES, stages, strict=True)]
    lines.append(f"{REST:<58}{_us(through - sum(stages)):>8}")
    return "\n".join(lines)


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.0f}"


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(prog="make bench-latency ARGS=…", description=__doc__)
    parser.add_argument("--likes", type=int, default=2000, help="number of likes (default: 2000)")
    interpreters.add_option(parser)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.likes)
        return
    python = interpreters.enter("bench.latency", options.python)
    install.programs()
    install.require("nginx")
    print(*interpreters.told(python), "", sep="\n")
    print(told(measure(options.likes)))


if __name__ == "__main__":
    main()
