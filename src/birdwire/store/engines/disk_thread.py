"""The thread that waits for the disk, so that the event loop does not."""

from __future__ import annotations

import asyncio
import contextlib
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar, cast

from birdwire.store.schema import StorageDownError

if TYPE_CHECKING:
    from collections.abc import Callable

    _Ended = tuple[Any, BaseException | None]
    _Job = tuple[Callable[[], Any], asyncio.Future[_Ended]]

Result = TypeVar("Result")


class DiskThread:
    """Runs one function after another in a thread of its own, which starts with the first of them.

    An executor does the same with several times as much Python code for every commit.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._closed = False

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run a function in the thread, and return or raise what it does; it is not interrupted if the caller is.

        Raises:
            StorageDownError: the thread was closed.
        """
        if self._closed:
            raise StorageDownError("the database is closed")
        if self._thread is None:
            # A process that ends without closing the database must not wait for it.
            thread = Thread(target=_serve, args=(self._jobs,), name="birdwire-disk", daemon=True)
            thread.start()
            self._thread = thread
        done: asyncio.Future[_Ended] = asyncio.get_running_loop().create_future()
        self._jobs.put((work, done))
        result, error = await done
        if error is not None:
            raise error
        return cast("Result", result)

    def close(self) -> None:
        """End the thread after the functions that were passed to it."""
        self._closed = True
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()


def _serve(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        work, done = job
        result, error = None, None
        try:
            result = work()
        except BaseException as fault:  # noqa: BLE001 - the caller raises it, and the thread goes on
            error = fault
        # The event loop may be closed; then nobody waits.
        with contextlib.suppress(RuntimeError):
            done.get_loop().call_soon_threadsafe(_report, done, (result, error))
        # Keep nothing alive while waiting for the next function.
        del job, work, done, result, error


def _report(done: asyncio.Future[_Ended], ended: _Ended) -> None:
    # The caller may have been cancelled.
    if not done.done():
        done.set_result(ended)
