"""Approval waits: holds the answers of callers that sent `Prefer: wait=N` until a person has decided, or for N seconds.

A held call has left the limits of concurrent calls, and keeps no connection to the database: one read every POLL_S asks
for all of them together, and none is made while nobody waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from birdwire.api.messages import ACCEPTED
from birdwire.keys.context import Pending
from birdwire.outcomes.idempotency import REPLAYED
from birdwire.store.database import StorageDownError
from birdwire.store.tables import approvals as store
from birdwire.store.tables.journal import APPLIED, BEGUN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from birdwire.api.messages import Answer
    from birdwire.gateway.guardrails.spending import Judged
    from birdwire.runtime.telemetry import Telemetry
    from birdwire.store.database import Database
    from birdwire.store.tables.journal import JournalRow

MAX_WAIT_S: Final = 30
MAX_WAITING: Final = 200
"""Callers of one process that may be held. Others are answered immediately."""

POLL_S: Final = 0.5


def wait_in(prefer: Sequence[str]) -> int | None:
    """Return for how many seconds a caller prefers to wait, from its Prefer headers (RFC 7240 §4.3).

    A preference that is malformed or longer than MAX_WAIT_S is ignored, as RFC 7240 §2 asks; the first one counts.
    """
    for preference in ",".join(prefer).split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip(" \t").lower() == "wait":
            seconds = value.strip(" \t")
            if len(seconds) > 1 and seconds[0] == seconds[-1] == '"':
                seconds = seconds[1:-1]
            good = seconds.isascii() and seconds.isdigit() and len(seconds) <= 2
            return int(seconds) if good and int(seconds) <= MAX_WAIT_S else None
    return None


def costing(pending: Pending, judged: Judged, find_row: Callable[[str], Awaitable[JournalRow | None]]) -> Pending:
    """Return what a call waits for, so that its final answer states what the call cost, as any guarded call's does."""

    async def answer() -> Answer:
        found, row = await pending.answer(), await find_row(pending.request_id)
        billed = row is not None and (row.state in APPLIED | BEGUN or row.spent)
        cost = row.cost_microusd if row is not None and billed else 0
        return found if cost is None else found.adding(judged.header(usd=cost))

    return Pending(pending.request_id, answer)


class ApprovalWaits:
    """The callers of this process that wait for the end of a request.

    `answer` returns how a request answers now: `ApprovalRecords.answer`.
    """

    def __init__(self, database: Database, answer: Callable[[str], Awaitable[Answer]], telemetry: Telemetry) -> None:
        self._database = database
        self._answer = answer
        self._telemetry = telemetry
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._poller: asyncio.Task[None] | None = None
        self._draining = False
        self.held = 0
        """Callers that are held now."""
        telemetry.metrics.watch("birdwire_approval_waits", lambda: self.held)

    def repeated(self, replay: Answer) -> Pending | None:
        """Return what a call waits for whose Idempotency-Key belongs to a request that waits, as `replay` states."""
        if replay.status != ACCEPTED or not isinstance(replay.value, dict):
            return None
        request_id = str(replay.value["approval"]["request_id"])
        return Pending(request_id, partial(self._replay, request_id))

    async def _replay(self, request_id: str) -> Answer:
        return (await self._answer(request_id)).adding(REPLAYED)

    async def hold(self, request_id: str, seconds: int) -> bool:
        """Hold a caller until a request has ended, or for some seconds; return whether the preference was applied.

        If it was not, too many callers are held, or the process is shutting down.
        """
        if self._draining or self.held >= MAX_WAITING:
            return False
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.held += 1
        self._waiting.setdefault(request_id, set()).add(ended)
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll(), name="approval waits")
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await ended
        finally:
            self.held -= 1
            waiters = self._waiting.get(request_id)
            if waiters is not None:
                waiters.discard(ended)
                if not waiters:
                    del self._waiting[request_id]
        return True

    def notify(self, request_id: str) -> None:
        """Release the callers that wait for a request, which this process has ended."""
        for ended in self._waiting.get(request_id, ()):
            if not ended.done():
                ended.set_result(None)

    def drain(self) -> None:
        """Answer every held caller now, and hold no other one: the process is shutting down."""
        self._draining = True
        for request_id in list(self._waiting):
            self.notify(request_id)

    async def close(self) -> None:
        """Stop polling."""
        self.drain()
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.wait([self._poller])

    async def _poll(self) -> None:
        """Ask for all requests together, every POLL_S, until nobody waits."""
        failing = False
        try:
            while self._waiting:
                await asyncio.sleep(POLL_S)
                try:
                    await self._release()
                    failing = False
                except StorageDownError:
                    # The callers wait on: their time is bounded.
                    pass
                except Exception as error:  # noqa: BLE001 - one failure must not end the wait of all callers
                    if not failing:
                        self._telemetry.crash("approval waits", error)
                    failing = True
        finally:
            self._poller = None

    async def _release(self) -> None:
        request_ids: list[Any] = list(self._waiting)
        if request_ids:
            async with self._database.read() as connection:
                ended = await store.settled(connection, request_ids)
            for request_id in ended:
                self.notify(request_id)
