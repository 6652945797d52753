"""Counts the bytecodes that a like executes, by the module of Birdwire on whose behalf, and by library.

The figure is exact: it does not depend on the machine or its load, only on the code and the version of Python.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from bench import budget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType

    from bench.load import Caller

WARM_UP = 20
FRAMES = "frames"
QUIET_S, POLL_S = 0.05, 0.01


class Counts:
    """Bytecodes and frames since the last `take`, by `module|library`.

    The main thread is counted from the first `take` on. Other threads are counted from their start, because a thread
    that waits for work stays in one frame, which could not be traced later.
    """

    def __init__(self) -> None:
        self._threads: dict[int, Counter[str]] = {}
        self._main = threading.main_thread().ident
        self._counting = False

    def install(self) -> None:
        """Trace this thread and those that start from now on."""
        threading.settrace(self._enter)
        sys.settrace(self._enter)

    def take(self) -> Counter[str]:
        """Return the counts since the last call."""
        self._counting = True
        taken, self._threads = self._threads, {}
        return sum(taken.values(), Counter())

    def total(self) -> int:
        """Return the number of bytecodes and frames since the last `take`."""
        return sum(sum(list(counter.values())) for counter in list(self._threads.values()))

    def _enter(self, frame: FrameType, _event: str, _arg: object) -> Callable[..., Any] | None:
        thread = threading.get_ident()
        if thread == self._main and not self._counting:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        owner = budget.owner(frame)
        place = f"{owner.module}|{owner.library}"
        self._of(thread)[FRAMES] += 1

        def step(_frame: FrameType, event: str, _arg: object) -> Callable[..., Any]:
            if event == "opcode":
                self._of(thread)[place] += 1
            return step

        return step

    def _of(self, thread: int) -> Counter[str]:
        """Each thread has a counter of its own: adding to a shared one is not atomic."""
        counter = self._threads.get(thread)
        if counter is None:
            counter = self._threads[thread] = Counter()
        return counter


def drive(caller: Caller, counts: Counts, likes: int) -> list[dict[str, int]]:
    """Send likes one after another; return the counts of each, with the work that follows its answer."""
    found = []
    for number in range(WARM_UP + likes):
        counts.take()
        caller.send()
        caller.receive()
        _settle(counts)
        if number >= WARM_UP:
            found.append(dict(counts.take()))
    caller.close()
    return found


def _settle(counts: Counts) -> None:
    """Wait until no bytecode was executed for QUIET_S."""
    total, since_s = counts.total(), time.monotonic()
    while time.monotonic() - since_s < QUIET_S:
        time.sleep(POLL_S)
        if total != (total := counts.total()):
            since_s = time.monotonic()


def commonest(likes: Iterable[dict[str, int]]) -> tuple[dict[str, int], int]:
    """Return the commonest counts and how many likes have exactly these.

    A like that coincides with a periodic task has others.
    """
    counts, times = Counter(tuple(sorted(one.items())) for one in likes).most_common(1)[0]
    return dict(counts), times
