"""The thread that waits for the disk: every caller gets its answer, and the thread ends with its owner."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import NoReturn

import pytest

from birdwire.store.engines.disk_thread import DiskThread
from birdwire.store.schema import StorageDownError


def named() -> list[threading.Thread]:
    """The threads of this kind that run."""
    return [thread for thread in threading.enumerate() if thread.name == "birdwire-disk"]


async def test_functions_run_in_their_order_in_one_thread_that_starts_with_the_first() -> None:
    """A process that never writes has no such thread."""
    disk, ran = DiskThread(), list[int]()
    before = len(named())
    await asyncio.gather(*(disk.run(lambda number=number: ran.append(number)) for number in range(50)))  # type: ignore[misc]
    assert ran == list(range(50))
    assert await disk.run(threading.current_thread) in named()
    assert len(named()) == before + 1
    disk.close()
    assert len(named()) == before


class Unusual(BaseException):
    """What an `except Exception` does not see."""


@pytest.mark.parametrize("kind", [ValueError, StopIteration, Unusual])
async def test_a_function_that_fails_fails_its_caller_and_no_other(kind: type[BaseException]) -> None:
    """Whatever it raises, the thread goes on, and nobody waits forever."""

    def fail() -> NoReturn:
        raise kind

    disk = DiskThread()
    results = await asyncio.wait_for(asyncio.gather(disk.run(fail), disk.run(lambda: 1), return_exceptions=True), 10)
    assert isinstance(results[0], BaseException)
    assert results[1] == 1
    disk.close()


async def test_a_cancelled_caller_leaves_the_function_running_and_the_others_waiting() -> None:
    """A commit cannot be called back: what its caller does next runs after it."""
    disk, held, ran = DiskThread(), threading.Event(), list[str]()

    def wait() -> None:
        held.wait(10)
        ran.append("first")

    first = asyncio.create_task(disk.run(wait))
    second = asyncio.create_task(disk.run(lambda: ran.append("second")))
    await asyncio.sleep(0.01)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    held.set()
    await asyncio.wait_for(second, 10)
    assert ran == ["first", "second"]
    disk.close()


def test_an_event_loop_that_is_closed_meanwhile_does_not_end_the_thread() -> None:
    """Nobody waits for that answer; the next loop gets its own."""
    disk, held = DiskThread(), threading.Event()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(disk.run(lambda: held.wait(10)), 0.01)

    asyncio.run(give_up())
    held.set()
    assert asyncio.run(asyncio.wait_for(disk.run(lambda: 1), 10)) == 1
    disk.close()


async def test_a_thread_that_cannot_be_started_is_started_at_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may have no room for one more; a caller must not wait for a thread that is not there."""

    def fail(_: threading.Thread) -> NoReturn:
        raise RuntimeError

    disk = DiskThread()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            await disk.run(lambda: 1)
    assert await asyncio.wait_for(disk.run(lambda: 1), 10) == 1
    disk.close()


async def test_a_closed_thread_finishes_its_queue_and_refuses_more() -> None:
    """A late call must not wait forever."""
    disk = DiskThread()
    queued = asyncio.gather(*(disk.run(lambda number=number: number) for number in range(9)))  # type: ignore[misc]
    await asyncio.sleep(0)
    disk.close()
    assert await queued == list(range(9))
    with pytest.raises(StorageDownError):
        await disk.run(lambda: 1)


def test_a_process_that_forgets_to_close_it_ends_all_the_same() -> None:
    """Such as a command that an error ends."""
    code = (
        "import asyncio\n"
        "from birdwire.store.engines.disk_thread import DiskThread\n"
        "print(asyncio.run(DiskThread().run(lambda: 'ran')))\n"
    )
    done = subprocess.run(  # noqa: S603 - constant
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")
