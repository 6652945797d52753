"""The journal of writes: what was asked of X and what became of it, durable before the caller is answered.

A write that must never be sent twice is recorded before it is sent. While the store refuses writes, writes that are
safe to repeat go on, and up to MAX_WAITING of their rows wait in memory; beyond that, they are refused before they are
sent. A row that the store will never take is logged, counted and dropped. The text of a post is stored encrypted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ulid import ULID

from birdwire.api.errors import GatewayError
from birdwire.api.messages import encode
from birdwire.outcomes import settlement
from birdwire.outcomes.approval_seals import seal_refusal
from birdwire.outcomes.claims import Claims, closing
from birdwire.outcomes.journal_rows import as_stored, deleted, new_row, unrecorded, why_lost
from birdwire.outcomes.own_refusals import Rejections
from birdwire.outcomes.process_leases import LEASE
from birdwire.store.database import Part, RowRefusedError, StorageDownError
from birdwire.store.encryption.vault import Place, VaultError
from birdwire.store.schema import json_text
from birdwire.store.tables import approvals, kept_images, usage
from birdwire.store.tables import journal as store
from birdwire.store.tables.journal import APPLIED, NOT_APPLIED, JournalRow, State, Why

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from datetime import datetime

    from birdwire.outcomes.entry import Entry
    from birdwire.outcomes.process_leases import ProcessLeases
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.telemetry import Telemetry
    from birdwire.store.database import Database
    from birdwire.store.encryption.vault import Vault

DELETE = store.DELETION
ATTEMPTS_KEPT = timedelta(days=7)
FIRST_CHECK_AFTER = timedelta(seconds=2)
RETRY_AFTER = timedelta(seconds=5)
MAX_WAITING = 10_000
_PURGE_BATCH = 500
_FLUSH_BATCH = 100


class ChargeRefused(Exception):  # noqa: N818 - it is the answer of a counter, not a failure
    """Raised when a write was not started because one of its charges does not pass; nothing was written.

    `index` is the charge's place in the entry's `charges`.
    """

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


def fingerprint(operation: str, fields: Mapping[str, Any]) -> bytes:
    """Return a hash of what a write asks for, independent of the order of its members; files are not included."""
    return hashlib.sha256(operation.encode() + b"\n" + encode(_sorted(fields))).digest()


def _sorted(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _sorted(value) if isinstance(value, dict) else value for name, value in sorted(fields.items())}


class _Waiting(NamedTuple):
    """A row that the store did not take: one to be added, or the outcome of one that was started.

    `parts` record the outcome with what changes in its charges; `closing` end its approval in the same unit.
    """

    kind: Literal["add", "settle"]
    row: dict[str, Any]
    parts: Sequence[Part] = ()
    closing: Sequence[Part] = ()


class Journal:
    """The journal of one database."""

    def __init__(
        self, database: Database, vault: Vault, leases: ProcessLeases, clock: Clock, telemetry: Telemetry
    ) -> None:
        self._database = database
        self._vault = vault
        self._leases = leases
        self._clock = clock
        self._telemetry = telemetry
        self.claims = Claims(database, leases, clock)
        self.rejections = Rejections(clock)
        self._waiting: dict[str, _Waiting] = {}
        self._flushing = asyncio.Lock()
        self.ended: Counter[State] = Counter()
        """Writes by the state in which their calls ended, since the start."""
        self.refused = 0
        """Rows that the database refused and that were deleted, since the start."""

    @property
    def waiting(self) -> int:
        """Return how many rows are waiting in memory for the store to take them."""
        return len(self._waiting)

    def open(self, entry: Entry) -> Record:
        """Return the record of one write.

        Raises:
            GatewayError: storage_unavailable: too many rows are waiting, and nothing may be sent.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise unrecorded(State.NOT_SENT)
        return Record(self, entry)

    @property
    def leases(self) -> ProcessLeases:
        """What distinguishes a running write from one that a crash interrupted."""
        return self._leases

    async def begin(self, entry: Entry) -> None:
        """Record that a write is about to be sent."""
        now = self._clock.now()
        row = new_row(entry, State.STARTED, now)
        row["owner"] = self._leases.me
        row["due_at"] = now + LEASE
        if entry.signature is not None:
            row["words_ct"] = self.seal(entry.request_id, entry.signature)
        if entry.decision is not None:
            row["decision"] = entry.decision
        if entry.features is not None:
            features = json_text(entry.features)
            row["features_ct"] = self._vault.seal(features, _place(entry.request_id, "features_ct"))
        refused = None
        try:
            if entry.approved is not None:
                refused = await self.claims.start(entry, entry.approved, row)
            elif entry.charges or entry.shadow_charges:
                parts = settlement.starting(row, entry.charges, entry.shadow_charges, entry.news)
                refused = await self._database.append_all(parts)
            else:
                await self._database.append(store.ADD, row)
        except StorageDownError as error:
            if isinstance(error, RowRefusedError):
                self._drop(entry.request_id, State.STARTED)
            raise unrecorded(State.NOT_SENT) from None
        if refused is not None:
            raise ChargeRefused(usage.refused_by(entry.charges, refused) or 0)

    async def put_back(self, entry: Entry, due_at: datetime | None) -> None:
        """Make a started write wait again, as approved, and stop counting it as running."""
        await self.claims.put_back(entry, due_at or self._clock.now() + RETRY_AFTER)

    async def end(
        self,
        entry: Entry,
        outcome: State,
        values: dict[str, Any],
        *,
        started: bool,
        billed_extra: int = 0,
        refusal: GatewayError | None = None,
    ) -> None:
        """Record what became of a write; a row that was not started is added.

        `billed_extra` is how many of its attempts had an unknown outcome, so that X may have billed them. The body of a
        `refusal` is kept for the callers of a write that waited for a person.
        """
        self.ended[outcome] += 1
        now = self._clock.now()
        if started:
            row = store.settled(entry.request_id, self._settled(entry, outcome, values, now))
            if entry.approved is not None:
                row["of_owner"] = self._leases.me
            charges = (*entry.charges, *entry.shadow_charges)
            parts = settlement.ending(row, outcome, charges, entry.cost, billed_extra)
            kept = None
            if refusal is not None and entry.approved is not None and outcome in NOT_APPLIED:
                kept = seal_refusal(self._vault, entry.request_id, refusal)
            await self._settle(entry, outcome, _Waiting("settle", row, parts, closing(entry, now, kept)))
        else:
            row = new_row(entry, outcome, now)
            row["settled_at"] = now
            row |= values
            if entry.operation == DELETE:
                row |= deleted(entry, values)
            # A policy that is only recorded does not have a write started that is safe to repeat.
            if entry.decision is not None:
                row["decision"] = entry.decision
            await self._add(row)
        # X calls a post a duplicate: that is evidence that it made a lost one.
        if values.get("reason") == "duplicate_post":
            await self.expedite(entry.user_id)

    def _settled(self, entry: Entry, outcome: State, values: dict[str, Any], now: datetime) -> dict[str, Any]:
        """Return the columns that record what became of a write that was started."""
        values = values | {"state": outcome, "settled_at": now}
        text = None
        if values.get("data"):
            values["data"] = data = dict(values["data"])
            values["x_id"] = data.get("id") or data.get("media_id")
            if entry.operation == DELETE:
                values |= deleted(entry, values)
            text = data.pop("text", None)
        elif outcome is State.UNKNOWN:
            text = entry.signature
            why = why_lost(entry.operation, searchable=text is not None)
            due_at = now + FIRST_CHECK_AFTER if why is Why.LOOKING else None
            values |= {"settled_at": None, "lost_at": now, "why": why, "due_at": due_at}
        if text is not None:
            values["words_ct"] = self.seal(entry.request_id, text)
        return values

    async def _add(self, row: dict[str, Any]) -> None:
        # While rows are waiting, the store is down: trying it again for each call would block all of them.
        if not self._waiting:
            try:
                await self._database.append(store.ADD, row)
            except RowRefusedError:
                self._drop(row["request_id"], row["state"])
                return
            except StorageDownError:
                pass
            else:
                return
        self._waiting[row["request_id"]] = _Waiting("add", row)

    async def _settle(self, entry: Entry, outcome: State, end: _Waiting) -> None:
        try:
            await self._write_end(end)
        except StorageDownError as error:
            # A row whose outcome is refused stays `started`, and the reconciler handles it as a lost one.
            if isinstance(error, RowRefusedError):
                self._drop(entry.request_id, outcome)
            else:
                self._waiting[entry.request_id] = end
            raise unrecorded(outcome) from None

    async def _write_end(self, end: _Waiting) -> None:
        """Store the outcome of a write that was started, with what changes in its charges, as one unit."""
        if end.parts and await self._database.append_all([*end.parts, *end.closing]) is None:
            return
        # Without charges; or the reconciler has settled the row, and its charges with it.
        if end.closing:
            # If another process has taken the write over, it records the outcome.
            await self._database.append_all([Part(approvals.SETTLE_OWN, end.row, required=True), *end.closing])
        else:
            await self._database.append(store.SETTLE, end.row)

    def _drop(self, request_id: str, state: State) -> None:
        """Log and count a row that the database refuses: it would refuse it every time."""
        self.refused += 1
        self._telemetry.event("error", "journal_row_refused", request_id=request_id, state=state)

    async def expedite(self, user_id: str) -> None:
        """Let the reconciler check an account's lost posts now: a caller asks, or X called a post a duplicate."""
        # If the store is down, they are only checked a little later.
        with contextlib.suppress(StorageDownError):
            async with self._database.write() as connection:
                await store.expedite(connection, user_id, self._clock.now())

    async def flush(self) -> None:
        """Write the waiting rows; due every second.

        Raises:
            StorageDownError: the store still refuses writes.
        """
        async with self._flushing:
            while self._waiting:
                batch = list(self._waiting.items())[:_FLUSH_BATCH]
                results = await asyncio.gather(*(self._write(*item) for item in batch), return_exceptions=True)
                for fault in results:
                    if fault is not None:
                        raise fault

    async def _write(self, request_id: str, waiting: _Waiting) -> None:
        """Write one waiting row. The rows of a batch share a transaction, and one that is refused fails alone.

        Raises:
            StorageDownError: the store still refuses writes.
        """
        try:
            if waiting.kind == "add":
                await self._database.append(store.ADD, waiting.row)
            else:
                await self._write_end(waiting)
        except RowRefusedError:
            # An added row may be stored already: the answer of the commit that wrote it may have been lost.
            if waiting.kind == "settle" or not await self._stored(request_id):
                self._drop(request_id, waiting.row["state" if waiting.kind == "add" else "new_state"])
        if self._waiting.get(request_id) is waiting:
            del self._waiting[request_id]

    async def _stored(self, request_id: str) -> bool:
        async with self._database.read() as connection:
            return await store.get(connection, request_id) is not None

    async def close(self) -> None:
        """Try once more to write the waiting rows; what the store does not take is lost, as the log has reported."""
        with contextlib.suppress(StorageDownError):
            await self.flush()

    async def purge(self, keep: timedelta) -> None:
        """Delete older rows, attempts, usage and images in small transactions, so that no other write waits long."""
        now = self._clock.now()
        before = now - keep
        await self._purge(store.purge, f"req_{ULID.from_datetime(before)}", before)
        await self._purge(store.purge_attempts, now - min(keep, ATTEMPTS_KEPT))
        await self._purge(usage.purge, now)
        async with self._database.read() as connection:
            ended = await kept_images.any_ended(connection, now)
        # Most gateways keep none, and need no transaction for them.
        if ended:
            await self._purge(kept_images.purge, now)

    async def _purge(self, purge: Callable[..., Awaitable[int]], *before: object) -> None:
        deleted = _PURGE_BATCH
        while deleted == _PURGE_BATCH:
            async with self._database.write() as connection:
                deleted = await purge(connection, *before, _PURGE_BATCH)
            await asyncio.sleep(0)

    async def find(self, request_id: str) -> JournalRow | None:
        """Return a row as this process knows it, with the data as it was answered.

        Raises:
            StorageDownError: the database does not answer.
        """
        async with self._database.read() as connection:
            row = await store.get(connection, request_id)
        waiting = self._waiting.get(request_id)
        if waiting is not None and waiting.kind == "add":
            row = as_stored(waiting.row)
        elif waiting is not None and row is not None:
            row = replace(row, **store.outcome_in(waiting.row))
        if row is not None and row.data is not None and row.words_ct is not None and row.state in APPLIED:
            row = replace(row, data={**row.data, "text": self.unseal(row)})
        return row

    def unseal(self, row: JournalRow) -> str | None:
        """Decrypt a row's text: the signature by which a post is searched for or, once X has the post, its text."""
        if row.words_ct is None:
            return None
        try:
            return self._vault.open(row.words_ct, _place(row.request_id))
        except VaultError:
            # It was changed at rest.
            return None

    def features(self, row: JournalRow) -> dict[str, Any] | None:
        """Decrypt what the policies judged of a post, or None if it was not kept or cannot be opened."""
        if row.features_ct is None:
            return None
        try:
            opened = self._vault.open(row.features_ct, _place(row.request_id, "features_ct"))
        except VaultError:
            # It was changed at rest.
            return None
        found: dict[str, Any] = json.loads(opened)
        return found

    def seal(self, request_id: str, text: str) -> bytes:
        """Encrypt the text of a row; a lone surrogate, which only X could send, becomes `?`, as in an answer."""
        return self._vault.seal(text.encode("utf-8", "replace").decode(), _place(request_id))

    async def asked_later(self, entry: Entry, operation: str) -> bool:
        """Return whether a later call asked for `operation` on the same target, and X may have done it.

        Raises:
            StorageDownError: it cannot be known.
        """
        async with self._database.read() as connection:
            return await store.newer(connection, entry.request_id, entry.user_id, operation, entry.target)

    async def knows_of_post(self, user_id: str, post_id: str) -> tuple[bool, bool]:
        """Return whether an account created a post through this gateway, and whether it deleted it.

        Raises:
            StorageDownError: the database does not answer.
        """
        async with self._database.read() as connection:
            operations = await store.of_post(connection, user_id, post_id)
        return "post_twitter" in operations, DELETE in operations


class Record:
    """The record of one write in progress: opened, started if it must never be sent twice, and ended.

    The record of an approved write may also return it to those that wait, or continue the work of a dead process.
    """

    def __init__(self, journal: Journal, entry: Entry) -> None:
        self._journal = journal
        self._entry = entry
        self._started = False
        # Starts by dead processes: X may have billed each of them.
        self._earlier = 0

    async def begin(self) -> None:
        """Record durably that the write is about to be sent, and make its charges.

        Raises:
            ChargeRefused: one of its charges does not pass. Nothing was written, and nothing may be sent.
            ClaimLostError: another process sends it, or it no longer waits. Nothing was written.
            GatewayError: storage_unavailable: nothing may be sent.
        """
        await self._journal.begin(self._entry)
        self._started = True

    async def take_over(self, row: JournalRow) -> None:
        """Go on with an approved write that is safe to repeat and that a dead process had started, in place of `begin`.

        Its charges are those of the row.

        Raises:
            ClaimLostError: another process was faster, or its outcome is recorded.
            GatewayError: storage_unavailable: nothing may be sent.
        """
        await self._journal.claims.take_over(self._entry, row.owner, row.spent)
        self._started, self._earlier = True, row.looks + 1

    async def check(self) -> None:
        """Check, before an approved write is sent, that no other process has taken it over.

        Raises:
            ClaimLostError: one has, or the reconciler searches for the post: nothing may be sent.
            GatewayError: approval_expired; storage_unavailable: it cannot be checked, so nothing may be sent.
        """
        await self._journal.claims.check(self._entry)

    async def put_back(self, due_at: datetime | None = None) -> None:
        """Make an approved write wait again: it was not sent, for a passing reason. Its charges go back.

        A gateway tries again at `due_at`, or after a few seconds.

        Raises:
            ClaimLostError: another process has taken it over.
            GatewayError: storage_unavailable.
        """
        await self._journal.put_back(self._entry, due_at)
        self._started = False

    @property
    def started(self) -> bool:
        """Return whether `begin` has recorded the write: from then on it may have been sent."""
        return self._started

    async def confirmed(self, status: int, data: dict[str, Any], billed_extra: int = 0) -> None:
        """Record that X confirmed it; durable on return, unless the write is safe to repeat and the store is down.

        `billed_extra` is how many earlier attempts had an unknown outcome, so that X may have billed them, too.

        Raises:
            GatewayError: storage_unavailable: `begin` recorded it, and its outcome could not be recorded.
        """
        billed = billed_extra + self._earlier
        values = {"status": status, "data": data or None}
        await self._journal.end(self._entry, State.CONFIRMED, values, started=self._started, billed_extra=billed)

    async def failed(self, error: GatewayError, billed_extra: int = 0) -> GatewayError:
        """Record that it was refused, not sent, or is unknown; return the error for the caller.

        `billed_extra` is how many attempts, the last one included, had an unknown outcome.

        Raises:
            GatewayError: storage_unavailable: `begin` recorded it, and its outcome could not be recorded.
        """
        if self._started and error.outcome == "unknown":
            error = GatewayError("outcome_unknown", outcome="unknown", upstream=error.upstream)
        values = {"status": error.problem.status, "reason": error.reason}
        await self._journal.end(
            self._entry,
            State(error.outcome),
            values,
            started=self._started,
            billed_extra=billed_extra + self._earlier,
            refusal=error,
        )
        return error


def _place(request_id: str, column: str = "words_ct") -> Place:
    return Place("journal", request_id, column)
