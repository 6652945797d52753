"""Processes on cores of their own, and what they cost: CPU and memory of a whole tree, from /proc. Linux only."""

from __future__ import annotations

import contextlib
import os
import platform
import pwd
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
START_S, STOP_S = 90.0, 10.0
ALL_CORES = sorted(os.sched_getaffinity(0))
LOAD_CORE, SERVER_CORE = ALL_CORES[0], ALL_CORES[-1]
"""Load, X and databases on one core; what is measured on the other."""


@dataclass(slots=True)
class Process:
    """A running program and its children."""

    name: str
    running: subprocess.Popen[bytes]
    log: IO[bytes]
    port: int = 0
    attendants: list[Process] = field(default_factory=list)

    def tree(self) -> list[int]:
        """The ids of the program and of all its descendants."""
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (stat := _stat(int(entry.name))):
                parents[int(entry.name)] = int(stat[1])
        found = [self.running.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def cpu_s(self) -> float:
        """User and system seconds of the whole tree so far, children that have ended included."""
        stats = (_stat(pid) for pid in self.tree())
        return sum(sum(map(int, stat[11:15])) for stat in stats if stat) * TICK_S

    def peak_mib(self) -> float:
        """The most memory that the tree's processes held, each at its own peak."""
        return sum(_status_kib(pid, "VmHWM") for pid in self.tree()) / 1024

    def rss_mib(self) -> float:
        """The memory that the tree holds now."""
        return sum(_status_kib(pid, "VmRSS") for pid in self.tree()) / 1024

    def listens(self) -> bool:
        """Whether somebody takes connections at its port."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.2):
            return True
        return False

    def stop(self) -> None:
        """End the tree: asked first, then made to."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.running.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.running.wait(STOP_S)
                break
        self.log.close()
        for attendant in self.attendants:
            attendant.stop()


def start(
    name: str,
    argv: Sequence[object],
    work: Path,
    *,
    core: int = SERVER_CORE,
    env: Mapping[str, str] | None = None,
    port: int = 0,
    user: str | None = None,
) -> Process:
    """Start a program pinned to a core, in a session of its own, its output in `work`/NAME.log."""
    log = (work / f"{name}.log").open("ab")
    with pinned(core):
        running = subprocess.Popen(
            [str(part) for part in argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**plain_environment(), **(env or {})},
            cwd=work,
            start_new_session=True,
            user=user,
        )
    return Process(name, running, log, port)


def answering(process: Process, ready: Callable[[], bool] | None = None, longest_s: float = START_S) -> None:
    """Wait until a process is ready: as it says itself, or else listens on its port.

    Raises:
        RuntimeError: it ended, or was not ready in time.
    """
    ends_at = time.monotonic() + longest_s
    while time.monotonic() < ends_at:
        if process.running.poll() is not None:
            raise RuntimeError(f"{process.name} ended at its start; see {process.log.name}")
        if (ready or process.listens)():
            return
        time.sleep(0.005)
    raise RuntimeError(f"{process.name} is not ready; see {process.log.name}")


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """What is started inside runs on this core alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def plain_environment() -> dict[str, str]:
    """The environment without what could change a contender."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def unprivileged() -> str | None:
    """The user for programs that refuse to run as root; None if we are not root."""
    return None if os.geteuid() else pwd.getpwnam("nobody").pw_name


def described() -> dict[str, str | int]:
    """The machine, for the reader of a result."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    memory = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "cpu": cpu.partition(":")[2].strip() or platform.machine(),
        "cores": len(ALL_CORES),
        "memory_gib": round(memory / (1 << 20)),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": f"{os.getloadavg()[0]:.1f}",
    }


def fsync_us(folder: Path) -> int:
    """How long the folder's disk takes to keep one page: the median of 200."""
    took = []
    with (folder / "fsync").open("wb") as file:
        for _ in range(200):
            file.write(bytes(4096))
            began = time.perf_counter()
            file.flush()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    return round(sorted(took)[100] * 1e6)


def output(argv: Sequence[str]) -> str:
    """The first line that a command prints, or nothing."""
    here = Path(__file__).parent
    done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=here, timeout=60)
    return next(iter((done.stdout or done.stderr).strip().splitlines()), "")


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name: state, ppid, …; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _status_kib(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
