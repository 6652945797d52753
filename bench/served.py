"""`python -m bench.served`: `birdwire serve` as bench.instructions measures it, in a process of its own.

Counting makes the process up to a hundred times slower, but not the clock: periodic tasks would run a hundred times as
often for each like. They therefore sleep SLOWER times longer, which is longer than a run takes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from bench.bytecodes import Counts, drive
from bench.load import Caller

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

SLOWER = 1_000
START_S, POLL_S = 60.0, 0.05


def main() -> None:
    """Serve until killed; with --out, also send likes from a thread and write the bytecodes of each."""
    parser = argparse.ArgumentParser(prog="python -m bench.served", description=__doc__)
    parser.add_argument("--out", type=Path, help="count bytecodes, and write those of each like to this file")
    parser.add_argument("--port", type=int, default=0, help="with --out: the port of the gateway")
    parser.add_argument("--key", default="", help="with --out: the API key")
    parser.add_argument("--deed", default="like", help="with --out: what is counted")
    parser.add_argument("--likes", type=int, default=0, help="with --out: number of likes")
    options = parser.parse_args()
    asyncio.sleep = _slowed(asyncio.sleep)  # type: ignore[assignment]
    if options.out:
        _count(options.out, lambda: _connected(options.port, options.key, options.deed), options.likes)
    from birdwire.cli import main as birdwire  # noqa: PLC0415 - only after sleep is replaced

    sys.argv = ["birdwire", "serve"]
    birdwire()


def _slowed(sleep: Callable[[float], Coroutine[None, None, None]]) -> Callable[[float], Coroutine[None, None, None]]:
    def slower(delay: float) -> Coroutine[None, None, None]:
        return sleep(delay * SLOWER)

    return slower


def _count(out: Path, connect: Callable[[], Caller], likes: int) -> None:
    counts = Counts()

    def write() -> None:
        try:
            found = drive(connect(), counts, likes)
            out.with_suffix(".part").write_text(json.dumps(found))
            out.with_suffix(".part").rename(out)
        except BaseException:  # noqa: BLE001 - the process has nothing else to do
            traceback.print_exc()
            os._exit(1)

    threading.Thread(target=write, daemon=True).start()
    counts.install()


def _connected(port: int, key: str, deed: str) -> Caller:
    """Connect once the gateway listens, for which it has START_S."""
    ends_at = time.monotonic() + START_S
    while True:
        try:
            return Caller(port, key, deed)
        except ConnectionRefusedError:
            if time.monotonic() > ends_at:
                raise
            time.sleep(POLL_S)


if __name__ == "__main__":
    main()
