"""The thread that waits for the disk, so that the event loop does not."""

from __future__ import annotations

import asyncio
import contextlib
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from birdwire.store.schema import StorageDownError

if TYPE_CHECKING:
    from collections.abc import Callable

    _Job = tuple[Callable[[], Any], asyncio.Future[Any]]

Result = TypeVar("Result")


class DiskThread:
    """Runs one function after another in a thread of its own, which starts with the first of them.

    An executor does the same in five times the Python code, which each commit would wait for.
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
            self._thread = Thread(target=_serve, args=(self._jobs,), name="birdwire-disk", daemon=True)
            self._thread.start()
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._jobs.put((work, done))
        return await done

    def close(self) -> None:
        """End the thread after the functions that were passed to it."""
        self._closed = True
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()


def _serve(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        work, done = job
        report: Callable[[Any], None] = done.set_result
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - the caller gets it, and the thread goes on
            report, result = done.set_exception, error
        # The event loop may be closed, and then nobody waits.
        with contextlib.suppress(RuntimeError):
            done.get_loop().call_soon_threadsafe(_report, done, report, result)
        del job, work, done, report, result


def _report(done: asyncio.Future[Any], report: Callable[[Any], None], result: object) -> None:
    """Pass a result to the caller, unless it was cancelled."""
    if not done.done():
        report(result)
