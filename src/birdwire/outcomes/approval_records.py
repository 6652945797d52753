"""Reads the writes that wait for a person: what each asks for, how it stands, and the answer that it gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from birdwire.api.errors import PROBLEMS, GatewayError, reason_named, render
from birdwire.api.messages import ACCEPTED, Answer
from birdwire.api.paths import API
from birdwire.outcomes import approval_seals as seals
from birdwire.outcomes.journal_rows import new_row
from birdwire.runtime.clock import rfc3339
from birdwire.store.tables import approvals as store
from birdwire.store.tables.journal import APPLIED, BEGUN, PENDING, State
from birdwire.x.catalog.prices import usd

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from birdwire.api.reason_type import Reason
    from birdwire.outcomes.approval_payload import Payload
    from birdwire.outcomes.entry import Entry
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database
    from birdwire.store.encryption.vault import Vault
    from birdwire.store.tables.approvals import ApprovalRow
    from birdwire.store.tables.journal import JournalRow

RETRY_AFTER_S = 5
"""How often a caller should ask for a write that waits."""

_PART: dict[State, str] = {
    State.AWAITING_APPROVAL: "waiting",
    State.APPROVED: "approved",
    State.DENIED: "denied",
    State.EXPIRED: "expired",
    State.CANCELLED: "cancelled",
}
"""What a person's part in a write has come to, by the write's state. Of any other state, it was approved."""

_REASONS: dict[State, Reason] = {
    State.DENIED: "approval_denied",
    State.EXPIRED: "approval_expired",
    State.CANCELLED: "cancelled",
    State.UNKNOWN: "outcome_unknown",
    State.NOT_FOUND: "not_applied",
}
"""The reason of a refusal by the write's state, where the row names none that is declared."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A write that a person is or was asked about: its approval, its row in the journal, and what it asks for.

    `payload` is None once the write has ended, or if it cannot be decrypted.
    """

    row: ApprovalRow
    entry: JournalRow
    payload: Payload | None = field(repr=False)


class ApprovalRecords:
    """The writes of one database that wait for a person, or have waited.

    `find_row` returns a row of the journal as this process knows it.
    """

    def __init__(
        self,
        database: Database,
        vault: Vault,
        find_row: Callable[[str], Awaitable[JournalRow | None]],
        clock: Clock,
    ) -> None:
        self._database = database
        self._vault = vault
        self._find_row = find_row
        self._clock = clock

    async def find(self, request_id: str) -> Waiting | None:
        """Return one write, or None if nobody was asked about it.

        Raises:
            StorageDownError: the database does not answer.
        """
        async with self._database.read() as connection:
            row = await store.get(connection, request_id)
        entry = None if row is None else await self._find_row(request_id)
        return None if row is None or entry is None else self._waiting(row, entry)

    async def listed(self, limit: int, key_id: str | None = None) -> list[Waiting]:
        """Return the writes that wait for a decision or for being sent; those that expire first come first.

        Raises:
            StorageDownError: the database does not answer.
        """
        async with self._database.read() as connection:
            rows = await store.waiting(connection, limit, key_id=key_id)
        return [self._waiting(row, entry) for row, entry in rows]

    def _waiting(self, row: ApprovalRow, entry: JournalRow) -> Waiting:
        payload = None if row.payload_ct is None else seals.open_payload(self._vault, row.request_id, row.payload_ct)
        return Waiting(row, entry, payload)

    def document(self, waiting: Waiting) -> dict[str, Any]:
        """Return the member `approval` of a request's report: what the person's part in the write has come to."""
        row = waiting.row
        return {
            "state": part_of(waiting.entry),
            "payload_sha256": row.payload_sha256,
            "approve_by": row.approve_by,
            "expires_at": rfc3339(row.expires_at),
            "decided_at": None if row.decided_at is None else rfc3339(row.decided_at),
            "decided_by": row.decided_by,
            "note": row.note,
            "edited_from": row.edited_from,
        }

    def asked_document(self, waiting: Waiting) -> dict[str, Any]:
        """Return the body of a 202: what waits, and what the caller can do."""
        row, payload = waiting.row, waiting.payload
        return {
            "approval": {
                "request_id": row.request_id,
                "state": waiting.entry.state,
                "operation": row.operation,
                "account": {"user_id": row.user_id, "username": row.username},
                "payload_sha256": row.payload_sha256,
                "approve_by": row.approve_by,
                "cost_usd": usd(row.cost_microusd),
                "findings": [] if payload is None else list(payload.findings),
                "expires_at": rfc3339(row.expires_at),
                "edited_from": row.edited_from,
                "review_url": None,
                "next": _next(waiting),
            }
        }

    async def answer(self, request_id: str) -> Answer:
        """Return how a write answers now: 202 until it has ended, then X's answer or the refusal.

        Raises:
            GatewayError: request_not_found: nobody was asked about it.
            StorageDownError: the database does not answer.
        """
        waiting = await self.find(request_id)
        if waiting is None:
            raise GatewayError("request_not_found")
        entry = waiting.entry
        if entry.state in APPLIED:
            return Answer.of({"data": entry.data}, entry.status or 200)
        if entry.state in PENDING:
            return self.asked(waiting)
        if waiting.row.refusal_ct is not None and entry.state not in BEGUN:
            body = seals.open_refusal(self._vault, request_id, waiting.row.refusal_ct)
            if body is not None:
                return Answer.of(body, _status(body))
        return render(_refusal(waiting), request_id)

    def asked(self, waiting: Waiting) -> Answer:
        """Return the 202 of a write that waits."""
        headers = (("location", f"{API}/requests/{waiting.row.request_id}"), ("retry-after", str(RETRY_AFTER_S)))
        return Answer.of(self.asked_document(waiting), ACCEPTED, headers)

    def waiting_row(self, entry: Entry, state: State) -> dict[str, Any]:
        """Return the columns of a new row of the journal that waits for a person, or that the operator ordered."""
        row = new_row(entry, state, self._clock.now())
        return row if entry.decision is None else row | {"decision": entry.decision}

    def seal_payload(self, request_id: str, payload: Payload) -> bytes:
        """Encrypt what a write asks for, as the column `payload_ct` keeps it."""
        return seals.seal_payload(self._vault, request_id, payload)

    def seal_refusal(self, request_id: str, error: GatewayError) -> bytes | None:
        """Encrypt the body of a final refusal for `refusal_ct`; None if the reason alone defines it."""
        return seals.seal_refusal(self._vault, request_id, error)

    def seal_file(self, request_id: str, number: int, data: bytes) -> bytes:
        """Encrypt an image that is shown with a write, as the column `blob_ct` keeps it."""
        return seals.seal_file(self._vault, request_id, number, data)

    def seal_upload(self, key_id: str, media_id: str, data: bytes) -> bytes:
        """Encrypt an image that a key uploaded, as the column `blob_ct` of `kept_images` keeps it."""
        return seals.seal_upload(self._vault, key_id, media_id, data)

    def open_upload(self, key_id: str, media_id: str, blob: bytes) -> bytes | None:
        """Decrypt an image that a key uploaded; None if it cannot be decrypted."""
        return seals.open_upload(self._vault, key_id, media_id, blob)

    async def file(self, request_id: str, number: int) -> bytes | None:
        """Return an image that is shown with a write, or None if there is none or it cannot be decrypted.

        Raises:
            StorageDownError: the database does not answer.
        """
        async with self._database.read() as connection:
            blob = await store.file_of(connection, request_id, number)
        return None if blob is None else seals.open_file(self._vault, request_id, number, blob)


def part_of(entry: JournalRow) -> str:
    """Return what the person's part in a write has come to: waiting, approved, denied, expired, cancelled, or stale."""
    # It was approved, but something had changed, so it was never started.
    if entry.state is State.NOT_SENT and entry.started_at is None:
        return "stale"
    return _PART.get(entry.state, "approved")


def expired(*, decided: bool) -> GatewayError:
    """Return the refusal of a write whose time is over, because nobody decided or because it could not be sent."""
    what = "it was approved, but could not be sent in time" if decided else "nobody decided in time"
    return GatewayError("approval_expired", detail=what)


def _next(waiting: Waiting) -> str:
    request_id = waiting.row.request_id
    ask = f"Poll GET {API}/requests/{request_id}, or repeat the call with the same Idempotency-Key"
    if waiting.entry.state is not State.AWAITING_APPROVAL:
        return f"The request was approved, and Birdwire is sending it. {ask}."
    return (
        "Nothing was published. A person must decide first: the operator can run "
        f"`birdwire approvals approve {request_id}`. Birdwire then sends the request itself. {ask}."
    )


def _status(body: dict[str, Any]) -> int:
    problem = PROBLEMS.get(str(body.get("error", {}).get("reason")))
    return 502 if problem is None else problem.status


def _refusal(waiting: Waiting) -> GatewayError:
    """Return the refusal that a write's state and reason mean."""
    entry, row = waiting.entry, waiting.row
    by_state = _REASONS.get(entry.state)
    declared = entry.reason is not None and entry.reason in PROBLEMS
    reason = reason_named(entry.reason) if declared and entry.reason is not None else by_state
    if reason is None:
        return GatewayError("approval_not_waiting", state=entry.state)
    if reason == "approval_denied":
        return GatewayError(reason, note=f": {row.note}" if row.note else "")
    if reason == "approval_expired":
        return expired(decided=row.decided_at is not None)
    if reason == "approval_stale":
        return GatewayError(reason, detail="its approval no longer applies")
    return GatewayError(reason, outcome="unknown" if entry.state in BEGUN else "refused")


__all__ = ["RETRY_AFTER_S", "ApprovalRecords", "Waiting", "expired", "part_of"]
