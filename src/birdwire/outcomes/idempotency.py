"""Idempotency-Key: a call is done once and its answer replayed (IETF draft-ietf-httpapi-idempotency-key-header).

A row is stored before anything is done, so that neither a second caller nor a crash can make the call happen twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from birdwire.api.errors import GatewayError, render
from birdwire.api.messages import ACCEPTED, Answer, new_request_id
from birdwire.keys.secrets import KEY_PATTERN
from birdwire.store.database import StorageDownError
from birdwire.store.encryption.vault import Place, VaultError
from birdwire.store.tables import approvals
from birdwire.store.tables import idempotency as store
from birdwire.store.tables.idempotency import NameState
from birdwire.store.tables.journal import APPLIED, BEGUN, RESENDABLE, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from types import TracebackType

    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.api.forms import Part
    from birdwire.api.messages import Call
    from birdwire.outcomes.approval_records import ApprovalRecords
    from birdwire.outcomes.journal import Journal
    from birdwire.outcomes.process_leases import ProcessLeases
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database
    from birdwire.store.encryption.vault import Vault

KEPT_FOR = timedelta(hours=24)
MAX_LATE = 10_000
_PURGE_BATCH = 500
REPLAYED = (("idempotent-replayed", "true"),)

NAME_FORM = re.compile(r"[\x20-\x7e]{1,255}")
"""The form of an Idempotency-Key: printable ASCII."""


def name_of(call: Call) -> str | None:
    """Return the call's Idempotency-Key; `"k"` and `k` are the same.

    Raises:
        GatewayError: idempotency_key_malformed.
    """
    given = call.header_values("idempotency-key")
    if not given:
        return None
    name = given[0].strip(" \t")
    if len(name) > 1 and name[0] == name[-1] == '"':
        name = name[1:-1]
    if len(given) > 1 or not NAME_FORM.fullmatch(name):
        raise GatewayError("idempotency_key_malformed")
    # An API key works as a name, but must not be stored.
    if KEY_PATTERN.search(name):
        return f"sha256 {hashlib.sha256(name.encode()).hexdigest()}"
    return name


def new_name() -> str:
    """Return a name for a call that has none, so that its outcome can be asked for."""
    return f"idem_{new_request_id().removeprefix('req_')}"


def fingerprint(operation: str, fields: Mapping[str, Any], files: Iterable[Part]) -> bytes:
    """Return a hash of what a call asks for, independent of white space, the order of members, and the call's path.

    Only the last part of the operation's name counts (`confirm` of `auth/confirm`): earlier versions, whose rows may
    still be stored, took the last part of the path.
    """
    digest = hashlib.sha256(operation.rpartition("/")[2].encode())
    digest.update(_encode_sorted(fields).encode())
    for part in files:
        digest.update(f"\n{part.name}\n{part.size}\n".encode() + part.digest)
    return digest.digest()


# It is created once: `json.dumps` would create an encoder for each call.
_encode_sorted = json.JSONEncoder(sort_keys=True).encode


class Named(NamedTuple):
    """A call with an Idempotency-Key: its API key, the name, a hash of what it asks for, and its request id."""

    key_id: str
    name: str
    asked: bytes
    request_id: str
    repeatable: bool


class Replay(NamedTuple):
    """The answer of an earlier call under the same name, and that call's request id."""

    answer: Answer
    request_id: str


class Attempt:
    """One call under its Idempotency-Key, as an async context manager.

    Inside the block, `replay` is the answer of an earlier call under the same name. If it is None, the caller does the
    work and sets `answer`. The end of the block stores a final answer (or a final refusal), releases the name if the
    call may be repeated or was not sent, and marks the outcome as unknown otherwise. It changes nothing if the answer
    is that a person must decide: the transaction that made the call wait has set its name to `awaiting`.
    """

    def __init__(self, idempotency: Idempotency, leases: ProcessLeases, call: Named) -> None:
        self._idempotency = idempotency
        self._running = leases.running(call.request_id)
        self._call = call
        self.replay: Replay | None = None
        self.answer: Answer | None = None

    async def __aenter__(self) -> Self:
        self._running.__enter__()
        try:
            self.replay = await self._idempotency.begin(self._call)
        except BaseException:
            self._running.__exit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.replay is None:
                await self._end(error)
        finally:
            self._running.__exit__(None, None, None)

    async def _end(self, error: BaseException | None) -> None:
        refusal = error if isinstance(error, GatewayError) else None
        final = self.answer if error is None else None
        if refusal is not None and is_final(refusal):
            final = render(refusal, self._call.request_id)
        if final is not None and final.status == ACCEPTED:
            return
        if final is not None:
            await self._idempotency.store(self._call, final)
        elif self._call.repeatable or (refusal is not None and refusal.outcome != "unknown"):
            await self._idempotency.release(self._call)
        else:
            await self._idempotency.mark_unknown(self._call)


def is_final(error: GatewayError) -> bool:
    """Return whether X itself refused for good: its 401s and 429s, and refusals that may be retried, are not final."""
    temporary = error.problem.retryable or error.reason in ("x_session_expired", "x_usage_capped")
    return error.outcome == "refused" and not temporary


class Idempotency:
    """The calls of one database that have an Idempotency-Key, for 24 hours; each API key has its own names.

    The journal records what became of a call that must not be repeated; this table only records which call holds a
    name. For a name that is `awaiting`, its request answers, until 24 hours after its end, and it is never done again.
    """

    def __init__(
        self,
        database: Database,
        vault: Vault,
        journal: Journal,
        leases: ProcessLeases,
        records: ApprovalRecords,
        clock: Clock,
    ) -> None:
        self._database = database
        self._vault = vault
        self._journal = journal
        self._leases = leases
        self._records = records
        self._clock = clock
        self._late: dict[Named, dict[str, Any] | None] = {}

    def attempt(self, call: Named) -> Attempt:
        """Return the context manager in which a call is done once."""
        return Attempt(self, self._leases, call)

    async def begin(self, call: Named) -> Replay | None:
        """Store that a call starts and return None; or return the answer of an earlier call under the same name.

        Raises:
            GatewayError: idempotency_in_flight, idempotency_key_reused, outcome_unknown, not_applied. Its value
                `earlier` is the request id of the earlier call, if its caller may ask for that.
        """
        now = self._clock.now()
        started = {**call._asdict(), "owner": self._leases.me, "state": NameState.STARTED, "created_at": now}
        if await self._database.append(store.ADD, started):
            return None
        async with self._database.write() as connection:
            # The earlier call may have released the name in between.
            if await store.add(connection, started):
                return None
            row = await store.find(connection, call.key_id, call.name)
            # On PostgreSQL, it may still release it here.
            if row is None:
                raise _in_flight()
            if await self._is_past(connection, row, now - KEPT_FOR):
                await self._take(connection, row, started)
                return None
            if row.asked != call.asked:
                raise GatewayError("idempotency_key_reused")
            in_progress = row.state == NameState.STARTED
            runs = in_progress and await self._leases.runs(connection, row.owner, row.request_id)
            # A crash interrupted the call, and repeating it does no harm.
            if row.repeatable and in_progress and not runs:
                await self._take(connection, row, started)
                return None
        try:
            answer = await self._replay(call, row, started, runs=runs)
        except GatewayError as error:
            error.values["earlier"] = row.request_id
            raise
        return None if answer is None else Replay(answer, row.request_id)

    async def _replay(self, call: Named, row: store.NameRow, started: dict[str, Any], *, runs: bool) -> Answer | None:
        """Return the answer of the call that holds a name, or None if the name may be used again."""
        if row.state == NameState.AWAITING:
            return (await self._records.answer(row.request_id)).adding(REPLAYED)
        if row.state == NameState.KEPT and row.body is not None and row.status is not None:
            # If the row was changed at rest or its vault key is missing, the journal answers.
            with contextlib.suppress(VaultError):
                body = json.loads(self._vault.open(row.body, _place(call.key_id, call.name)))
                return Answer.of(body, row.status, REPLAYED)
        return await self._from_journal(row, started, runs=runs)

    @staticmethod
    async def _is_past(connection: AsyncConnection, row: store.NameRow, before: datetime) -> bool:
        """Return whether a name may be used for another call: a day has passed since its call, or since its end."""
        if row.created_at >= before:
            return False
        return row.state != NameState.AWAITING or not await approvals.answers(connection, row.request_id, before)

    async def _take(self, connection: AsyncConnection, row: store.NameRow, started: dict[str, Any]) -> None:
        """Take a name over from the call that holds it.

        Raises:
            GatewayError: idempotency_in_flight: another caller was faster.
        """
        values = started | {"status": None, "body": None}
        if not await store.change(connection, row.key_id, row.name, values, held_by=row.request_id, while_in=row.state):
            raise _in_flight()

    async def _from_journal(self, row: store.NameRow, started: dict[str, Any], *, runs: bool) -> Answer | None:
        """Answer from the journal: no stored answer can be read, and the call must not simply be repeated.

        A call with a stored answer has finished. If the journal does not know it, its outcome is unknown, even if
        it is safe to repeat: a repetition could undo an opposite call that came later.
        """
        known = await self._journal.find(row.request_id)
        state = None if known is None else known.state
        if known is not None and known.status is not None and state in APPLIED:
            return Answer.of({"data": known.data}, known.status, REPLAYED)
        if state == State.NOT_FOUND:
            raise GatewayError("not_applied", headers=REPLAYED)
        if runs and state in (None, State.STARTED):
            raise _in_flight()
        if known is not None and state in BEGUN:
            await self._journal.expedite(known.user_id)
            raise _unknown()
        if known is None and row.state == NameState.KEPT:
            raise _unknown()
        await self._take_over(row, started)
        return None

    async def _take_over(self, row: store.NameRow, started: dict[str, Any]) -> None:
        """Take over the name of a call that was refused, not sent, or interrupted before it was sent.

        The process that started it may only be slow. That process writes into the journal and then checks whether it
        still holds the name (`hold`); here the name is taken first and the journal read afterwards. So at least one of
        the two sees the other, and does not send.
        """
        async with self._database.write() as connection:
            await self._take(connection, row, started)
        known = await self._journal.find(row.request_id)
        if known is not None and known.state not in RESENDABLE:
            values = {"request_id": row.request_id, "state": NameState.UNKNOWN}
            held_by = str(started["request_id"])
            async with self._database.write() as connection:
                await store.change(
                    connection, row.key_id, row.name, values, held_by=held_by, while_in=NameState.STARTED
                )
            raise _unknown()

    async def hold(self, key_id: str, request_id: str) -> None:
        """Check, after the journal was written, that the call still holds its name.

        Raises:
            GatewayError: idempotency_in_flight: this process was so slow that another one took the call over.
            GatewayError: storage_unavailable: it cannot be checked, so nothing may be sent.
        """
        if self._leases.certain:
            return
        try:
            async with self._database.read() as connection:
                holds = await store.holds(connection, key_id, request_id)
        except StorageDownError:
            raise GatewayError("storage_unavailable", half="nothing was sent to X") from None
        if not holds:
            raise _in_flight()

    async def store(self, call: Named, answer: Answer) -> None:
        """Store a final answer. It is encrypted, since it may contain a link's state or the text of a post."""
        body = self._vault.seal(answer.body.decode(), _place(call.key_id, call.name))
        await self._settle(call, {"new_state": NameState.KEPT, "new_status": answer.status, "new_body": body})

    async def mark_unknown(self, call: Named) -> None:
        """Record that the outcome is unknown: the call must never be done again under this name."""
        await self._settle(call, {"new_state": NameState.UNKNOWN, "new_status": None, "new_body": None})

    async def release(self, call: Named) -> None:
        """Release the name: nothing was done, or repeating the call does no harm."""
        await self._settle(call, None)

    async def _settle(self, call: Named, values: dict[str, Any] | None) -> None:
        # While rows of the journal are waiting, the store is down, and the caller need not wait for it twice.
        if not self._journal.waiting:
            try:
                await self._write(call, values)
            except StorageDownError:
                pass
            else:
                return
        # Until `tidy` corrects it, the row states that the call runs, which is safe.
        if len(self._late) < MAX_LATE:
            self._late[call] = values

    async def _write(self, call: Named, values: dict[str, Any] | None) -> None:
        held = store.held(call.key_id, call.name, call.request_id)
        if values is None:
            await self._database.append(store.RELEASE, held)
        else:
            await self._database.append(store.SETTLE, held | values)

    async def tidy(self) -> None:
        """Write what the store did not take earlier, and delete rows older than a day, in small transactions.

        Raises:
            StorageDownError: the store still refuses writes.
        """
        for call in list(self._late):
            # Move it to the end, so that a write that is refused delays no other.
            values = self._late[call] = self._late.pop(call)
            await self._write(call, values)
            del self._late[call]
        deleted = _PURGE_BATCH
        while deleted == _PURGE_BATCH:
            async with self._database.write() as connection:
                deleted = await store.purge(connection, self._clock.now() - KEPT_FOR, _PURGE_BATCH)


def _in_flight() -> GatewayError:
    return GatewayError("idempotency_in_flight", retry_after_s=1)


def _unknown() -> GatewayError:
    return GatewayError("outcome_unknown", outcome="unknown", headers=REPLAYED)


def _place(key_id: str, name: str) -> Place:
    return Place("idempotency", f"{key_id}/{name}", "body")
