"""ApprovedWrites: sends what was approved, lets what nobody decided on expire, and reports how each request ended.

Every gateway process of a database does the same rounds. What one of them does starts with a compare-and-set that only
one can win, so a request is sent, ended and reported once. Sends run as tasks of their own: a slow one delays no other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from birdwire.api.body import NO_BODY
from birdwire.api.errors import GatewayError
from birdwire.api.messages import Call
from birdwire.api.paths import API
from birdwire.gateway.guardrails import held_writes
from birdwire.gateway.second_look import passes, stale
from birdwire.gateway.sender import ApprovedWrite
from birdwire.keys.context import CallContext, RouteRules
from birdwire.outcomes.approval_records import expired
from birdwire.outcomes.claims import ClaimLostError
from birdwire.outcomes.process_leases import LEASE
from birdwire.runtime.backoff import Backoff
from birdwire.runtime.bounded_dict import BoundedDict
from birdwire.runtime.tasks import finish
from birdwire.store.database import StorageDownError
from birdwire.store.tables import approvals as store
from birdwire.store.tables import journal
from birdwire.store.tables.journal import PENDING, WAITING, State, Why
from birdwire.x.catalog.operations import OPERATIONS_BY_NAME

if TYPE_CHECKING:
    from datetime import datetime

    from birdwire.api.messages import Answer
    from birdwire.gateway.admission import Admission
    from birdwire.gateway.approval_waits import ApprovalWaits
    from birdwire.outcomes.approval_records import ApprovalRecords, Waiting
    from birdwire.outcomes.process_leases import ProcessLeases
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.telemetry import Telemetry
    from birdwire.store.database import Database
    from birdwire.store.tables.approvals import ApprovalRow

ROUND_EVERY_S: Final = 0.5
MAX_DUE: Final = 100
"""Requests that one round considers."""

MAX_SENDING: Final = 8
"""Approved writes that one process sends at a time."""

CLOSE_S: Final = 20.0
"""How long a shutdown waits for the writes that are being sent."""

COUNT_EVERY: Final = timedelta(seconds=5)
BACKOFF: Final = Backoff(initial_s=1.0, max_s=30.0)
MAX_TRIES_KEPT: Final = 10_000
MAX_OTHER_KEYS: Final = 10_000
RETRY_AFTER_CRASH: Final = timedelta(seconds=30)

Send = Callable[[ApprovedWrite], Awaitable["Answer"]]
"""Sends an approved write: `Writes.perform_approved`."""

OUTCOMES: Final = {State.CONFIRMED: "sent", State.FOUND: "sent", State.NOT_FOUND: "not_sent"}
"""The label of an end in the metrics, if it is not the state."""


class ApprovedWrites:
    """The requests of one database on which a gateway must act."""

    def __init__(
        self,
        database: Database,
        records: ApprovalRecords,
        admission: Admission,
        send: Send,
        waits: ApprovalWaits,
        leases: ProcessLeases,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._database = database
        self._records = records
        self._admission = admission
        self._send = send
        self._waits = waits
        self._leases = leases
        self._clock = clock
        self._telemetry = telemetry
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._tries: BoundedDict[str, int] = BoundedDict(MAX_TRIES_KEPT)
        # Keys of the other mode, which another gateway serves: the mode of a key never changes.
        self._others: BoundedDict[str, bool] = BoundedDict(MAX_OTHER_KEYS)
        self._draining = False
        self._waiting, self._count_at = 0, clock.now()
        telemetry.metrics.watch("birdwire_approvals_waiting", lambda: self._waiting)

    async def round(self) -> None:
        """Act on the requests that are due; due every ROUND_EVERY_S.

        Raises:
            StorageDownError: the database does not answer.
        """
        now = self._clock.now()
        async with self._database.read() as connection:
            rows = await store.due(connection, now, MAX_DUE)
            if now >= self._count_at:
                self._waiting, self._count_at = await store.count_waiting(connection), now + COUNT_EVERY
        for row, state in rows:
            try:
                await self._act(row, state, now)
            except StorageDownError:
                raise
            except Exception as error:  # noqa: BLE001 - one request must not stop the others
                self._telemetry.crash(row.request_id, error)

    def drain(self) -> None:
        """Start no further sends: the process is shutting down, and the others go on."""
        self._draining = True

    async def close(self) -> None:
        """Wait for the writes that are being sent. One that takes too long is left to the other processes."""
        self.drain()
        await finish(self._sending.values(), CLOSE_S)

    async def _act(self, row: ApprovalRow, state: State, now: datetime) -> None:
        request_id = row.request_id
        if request_id in self._sending:
            return
        if state not in PENDING:
            await self._report(row, state)
        elif state in WAITING and row.expires_at <= now:
            await self._end(row, state, expired(decided=state is State.APPROVED))
        elif state is State.AWAITING_APPROVAL:
            await self._postpone(row, row.expires_at)
        elif not self._draining and len(self._sending) < MAX_SENDING and row.key_id not in self._others:
            task = asyncio.create_task(self._try(row, state), name=f"approved {request_id}")
            self._sending[request_id] = task
            task.add_done_callback(lambda _: self._sending.pop(request_id))

    # One approved request: send it, or go on with one that a dead process had started.

    async def _try(self, row: ApprovalRow, state: State) -> None:
        """Send a request in a task of its own, which never fails."""
        try:
            waiting = await self._records.find(row.request_id)
            if waiting is None or waiting.entry.state is not state:
                return
            if state is State.APPROVED or not await self._runs(waiting):
                with self._leases.running(row.request_id):
                    await self._carry_out(row, waiting)
        except StorageDownError:
            # It is still due.
            pass
        except Exception as error:  # noqa: BLE001 - nobody awaits the task
            self._telemetry.crash(row.request_id, error)
            due_at = self._clock.now() + RETRY_AFTER_CRASH
            with contextlib.suppress(StorageDownError):
                await self._postpone(row, min(due_at, row.expires_at) if state is State.APPROVED else due_at)

    async def _runs(self, waiting: Waiting) -> bool:
        """Return whether a started request is not to be sent again: it runs, or the reconciler searches for it."""
        row, entry = waiting.row, waiting.entry
        async with self._database.read() as connection:
            runs = await self._leases.runs(connection, entry.owner, row.request_id)
        if runs or not OPERATIONS_BY_NAME[row.operation].repeatable:
            await self._postpone(row, self._clock.now() + LEASE)
            return True
        return False

    async def _carry_out(self, row: ApprovalRow, waiting: Waiting) -> None:
        """Send a request, and record what that led to."""
        write = _write(waiting)
        try:
            await self._admission.readmit(write.context, row.key_id)
            # Its requests stay due for that gateway, and must not take up this one's sends in every round.
            if not self._admission.serves(write.context.key):
                self._others[row.key_id] = True
                return
            await self._send(write)
        except ClaimLostError:
            return
        except GatewayError as error:
            await self._failed(write, waiting, error)
        except StorageDownError:
            raise
        except Exception as error:  # noqa: BLE001 - a bug must not end what a person approved
            self._telemetry.crash(row.request_id, error)
            await self._later(write, row, GatewayError("internal"))
        else:
            self._sent(waiting, State.CONFIRMED)

    async def _failed(self, write: ApprovedWrite, waiting: Waiting, error: GatewayError) -> None:
        """Act on the refusal of a request: it has ended, it is tried again, or it ends now."""
        row = waiting.row
        started = write.opened and write.record.started
        if write.context.recorded:
            self._sent(waiting, State(error.outcome))
        elif passes(error):
            await self._later(write, row, error)
        elif started:
            # The journal writes the outcome as soon as the store takes it.
            self._sent(waiting, State.UNKNOWN)
        elif write.resumed:
            await self._lose(waiting)
        else:
            await self._end(row, State.APPROVED, stale(error), cause=error.reason)

    async def _later(self, write: ApprovedWrite, row: ApprovalRow, error: GatewayError) -> None:
        """Try a request again after a while, but not after its time."""
        tries = self._tries.get(row.request_id, 0)
        self._tries[row.request_id] = tries + 1
        wait_s = max(error.retry_after_s or 0, BACKOFF.pause_s(tries))
        due_at = min(self._clock.now() + timedelta(seconds=wait_s), row.expires_at)
        if write.put_back or (write.resumed and write.opened and write.record.started):
            # The request is this process's own by now, which has changed when it is due.
            async with self._database.write() as connection:
                await store.retry_at(connection, row.request_id, due_at)
        elif not await self._postpone(row, due_at):
            return
        self._decided(row, await self._records.find(row.request_id))

    async def _lose(self, waiting: Waiting) -> None:
        """End a request that a dead process had started, and that may not be sent again: nobody knows its outcome."""
        row, now = waiting.row, self._clock.now()
        values = {"state": State.UNKNOWN, "status": 502, "reason": "outcome_unknown", "due_at": None}
        values |= {"lost_at": waiting.entry.start, "why": Why.NOT_IN_TIMELINE}
        async with self._database.write() as connection:
            ended = await journal.change(connection, row.request_id, values, while_in=State.STARTED)
            if ended:
                await store.close(connection, row.request_id, now)
        if ended:
            self._sent(waiting, State.UNKNOWN)

    # The ends of requests, and what is reported of them.

    async def _end(self, row: ApprovalRow, before: State, refusal: GatewayError, cause: str = "") -> None:
        """End a request that was never started, unless another process was faster."""
        request_id, now = row.request_id, self._clock.now()
        state = State.EXPIRED if refusal.reason == "approval_expired" else State.NOT_SENT
        sealed = self._records.seal_refusal(request_id, refusal)
        async with self._database.write() as connection:
            ended = await held_writes.end(connection, request_id, before, now, state, refusal, refusal_ct=sealed)
            if ended and state is State.EXPIRED:
                await held_writes.notify_decided(connection, now, row, "expired", None)
        if not ended:
            return
        self._waits.notify(request_id)
        self._decided(row, await self._records.find(request_id))
        about = _about(row)
        if state is State.EXPIRED:
            self._telemetry.event("info", "approval_expired", **about, approved=row.decided_at is not None)
        else:
            self._telemetry.event("info", "approval_stale", **about, reason=cause or refusal.reason)
        self._ended("expired" if state is State.EXPIRED else "stale", request_id)

    async def _report(self, row: ApprovalRow, state: State) -> None:
        """Report a request that something other than a send has ended: a person, its caller, or the reconciler."""
        if not await self._postpone(row, None):
            return
        self._waits.notify(row.request_id)
        if state is State.DENIED:
            self._decided(row, await self._records.find(row.request_id), verdict="denied")
        self._ended(OUTCOMES.get(state, state.value), row.request_id)

    def _sent(self, waiting: Waiting, state: State) -> None:
        """Report a request that this process has sent, or has tried to."""
        row = waiting.row
        self._waits.notify(row.request_id)
        self._decided(row, waiting)
        self._telemetry.event("info", "approval_sent", **_about(row), outcome=state.value)
        self._ended(OUTCOMES.get(state, state.value), row.request_id)

    def _ended(self, outcome: str, request_id: str) -> None:
        self._tries.pop(request_id, None)
        self._telemetry.metrics.add("birdwire_approvals_total", outcome)

    def _decided(self, row: ApprovalRow, waiting: Waiting | None, verdict: str = "approved") -> None:
        """Report a decision, by the process that is the first to act on it: until then it is due since the decision."""
        if row.ordered or row.decided_at is None or row.due_at != row.decided_at or waiting is None:
            return
        seconds = (row.decided_at - waiting.entry.created_at).total_seconds()
        self._telemetry.metrics.observe("birdwire_approval_seconds", seconds, verdict)
        self._telemetry.event("info", "approval_decided", **_about(row), verdict=verdict, seconds=round(seconds, 1))

    async def _postpone(self, row: ApprovalRow, due_at: datetime | None) -> bool:
        """Set when a request is due next, unless another process has acted on it; return whether it was set."""
        async with self._database.write() as connection:
            return await store.postpone(connection, row, due_at)


def _write(waiting: Waiting) -> ApprovedWrite:
    """Return an approved request as a write of the call that asked for it."""
    row, entry, operation = waiting.row, waiting.entry, OPERATIONS_BY_NAME[waiting.row.operation]
    call = Call("POST", f"{API}/{operation.name}", request_id=row.request_id)
    call.note["operation"] = operation.name
    call.admitted_at = entry.created_at.timestamp()
    rules = RouteRules(operation.name, operation.body, repeatable=operation.repeatable, action=operation.name)
    context = CallContext(call, rules, NO_BODY, approved=True)
    resumed = entry.state is State.STARTED
    return ApprovedWrite(context, operation, {}, (), waiting=waiting, resumed=resumed)


def _about(row: ApprovalRow) -> dict[str, str]:
    return {"request_id": row.request_id, "key_id": row.key_id, "operation": row.operation}
