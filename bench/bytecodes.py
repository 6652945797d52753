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
    """Bytecodes and frames since the last `take`, by `module|library`, of every thread that is not ignored.

    The main thread is counted from the first `take` on. On Python 3.11 other threads are counted from their start,
    because a thread that waits for work stays in one frame, which could not be traced later.
    """

    def __init__(self) -> None:
        self._threads: dict[int, Counter[str]] = {}
        self._ignored: set[int] = set()
        self._main = threading.main_thread().ident
        self._counting = False

    def install(self) -> None:
        """Prepare this thread and those that start from now on."""
        # From 3.12 on, f_trace_opcodes has no effect on the frame whose call is being traced.
        if sys.version_info >= (3, 12):
            monitoring = sys.monitoring
            monitoring.use_tool_id(monitoring.PROFILER_ID, "birdwire")
            monitoring.register_callback(monitoring.PROFILER_ID, monitoring.events.INSTRUCTION, self._instruction)
            monitoring.register_callback(monitoring.PROFILER_ID, monitoring.events.PY_START, self._frame)
            monitoring.register_callback(monitoring.PROFILER_ID, monitoring.events.PY_RESUME, self._frame)
        else:
            threading.settrace(self._enter)
            sys.settrace(self._enter)

    def remove(self) -> None:
        """Undo `install`."""
        if sys.version_info >= (3, 12):
            sys.monitoring.set_events(sys.monitoring.PROFILER_ID, 0)
            sys.monitoring.free_tool_id(sys.monitoring.PROFILER_ID)
        else:
            threading.settrace(None)
            sys.settrace(None)

    def ignore(self) -> None:
        """Leave out the calling thread."""
        self._ignored.add(threading.get_ident())

    def take(self) -> Counter[str]:
        """Return the counts since the last call."""
        if not self._counting and sys.version_info >= (3, 12):
            events = sys.monitoring.events
            sys.monitoring.set_events(
                sys.monitoring.PROFILER_ID, events.INSTRUCTION | events.PY_START | events.PY_RESUME
            )
        self._counting = True
        taken, self._threads = self._threads, {}
        return sum(taken.values(), Counter())

    def total(self) -> int:
        """Return the number of bytecodes and frames since the last `take`."""
        return sum(sum(list(counter.values())) for counter in list(self._threads.values()))

    if sys.version_info >= (3, 12):

        def _frame(self, _code: object, _offset: int) -> None:
            self._add(threading.get_ident(), FRAMES)

        def _instruction(self, _code: object, _offset: int) -> None:
            self._add(threading.get_ident(), _place(sys._getframe(1)))  # noqa: SLF001 - the frame that is counted

    def _enter(self, frame: FrameType, _event: str, _arg: object) -> Callable[..., Any] | None:
        thread = threading.get_ident()
        if thread == self._main and not self._counting:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        place = _place(frame)
        self._add(thread, FRAMES)

        def step(_frame: FrameType, event: str, _arg: object) -> Callable[..., Any]:
            if event == "opcode":
                self._add(thread, place)
            return step

        return step

    def _add(self, thread: int, place: str) -> None:
        """Add one to the thread's own counter: adding to a shared one is not atomic."""
        if thread in self._ignored:
            return
        counter = self._threads.get(thread)
        if counter is None:
            counter = self._threads[thread] = Counter()
        counter[place] += 1


def _place(frame: FrameType) -> str:
    owner = budget.owner(frame)
    return f"{owner.module}|{owner.library}"


def drive(caller: Caller, counts: Counts, likes: int) -> list[dict[str, int]]:
    """Send likes one after another; return the counts of each, with the work that follows its answer."""
    counts.ignore()
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
