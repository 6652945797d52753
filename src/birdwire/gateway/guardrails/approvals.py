"""Approvals: a write that needs a person waits, and the operator, or the holder of a signed link, decides on it.

Each question and each decision is one transaction, which locks the key, then the journal's row, then the approval. A
decision names the hash of the payload that was shown, so that nobody approves what was not shown, and is recorded as an
act. An API key can ask and cancel; it decides nothing.

Sending is another step, by whichever gateway process comes first: see `gateway.approved_writes`.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from birdwire.api.body import check
from birdwire.api.errors import GatewayError
from birdwire.api.messages import new_request_id
from birdwire.gateway.guardrails import asking, policy
from birdwire.gateway.guardrails import held_writes as rows
from birdwire.gateway.guardrails.guards import Guard, read_guard
from birdwire.gateway.guardrails.kept_images import KeptImages, described
from birdwire.gateway.guardrails.opened_link import MAX_NOTE_CHARS
from birdwire.gateway.guardrails.proposal import propose
from birdwire.gateway.guardrails.spending import Judged
from birdwire.keys.context import Pending
from birdwire.outcomes.approval_payload import Payload
from birdwire.outcomes.approval_records import Waiting
from birdwire.outcomes.entry import Entry
from birdwire.outcomes.journal import fingerprint
from birdwire.outcomes.journal_rows import as_stored
from birdwire.store.tables import acts, api_keys, journal, x_sessions
from birdwire.store.tables import approvals as store
from birdwire.store.tables import idempotency as names
from birdwire.store.tables.journal import WAITING, State
from birdwire.x.catalog import media
from birdwire.x.catalog.operations import OPERATIONS_BY_NAME
from birdwire.x.limits.write_order import canonical

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.accounts.sessions import XSession
    from birdwire.api.forms import Part
    from birdwire.api.messages import Answer
    from birdwire.gateway.guardrails.spending import Spending
    from birdwire.keys.context import CallContext
    from birdwire.outcomes.approval_records import ApprovalRecords
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.telemetry import Telemetry
    from birdwire.store.database import Database
    from birdwire.store.tables.acts import Actor
    from birdwire.store.tables.approvals import ApprovalRow
    from birdwire.store.tables.journal import JournalRow
    from birdwire.x.catalog.media import Attached

APPROVED_FOR: Final = timedelta(minutes=10)
"""How long an approved write may wait until it can be sent: an approval is for now."""

TOKEN_BYTES: Final = 20

_AWAITING: Final = frozenset({State.AWAITING_APPROVAL})


class Question(NamedTuple):
    """A write that needs a person: its call, what it asks for, and what was found and prepared so far.

    `attached` are its files, as X has them.
    """

    context: CallContext
    payload: Payload
    judged: Judged
    entry: Entry
    session: XSession
    files: Sequence[Part] = ()
    attached: Sequence[Attached] = ()

    def complete_payload(self) -> Payload:
        """Return the payload with the ids of its files and the findings that ask."""
        media_ids = [one.media_id for one in self.attached]
        return replace(self.payload, media_ids=media_ids, findings=asking.asked_about(self.judged.decision))


class Approvals:
    """The writes of one database that wait for a person. `ttl_s` is how long each waits for a decision."""

    def __init__(
        self,
        database: Database,
        records: ApprovalRecords,
        spending: Spending,
        telemetry: Telemetry,
        clock: Clock,
        ttl_s: int,
    ) -> None:
        self._database = database
        self._records = records
        self.spending = spending
        self.images = KeptImages(database, records, clock)
        self._telemetry = telemetry
        self._clock = clock
        self._ttl = timedelta(seconds=ttl_s)

    async def ask(self, question: Question) -> Answer:
        """Leave a write waiting for a person, and return the answer of its call.

        If an identical write of the key waits already, its request answers for this call and its Idempotency-Key.

        Raises:
            GatewayError: approvals_full, approval_denied, approval_expired (its files), key_revoked,
                idempotency_in_flight.
            StorageDownError: the database does not answer.
        """
        now, entry, payload = self._clock.now(), question.entry, question.complete_payload()
        async with self._database.read() as connection:
            given = asking.given_media_ids(payload.fields)
            uploads = await journal.uploads(connection, given)
            kept = await self.images.of_post(connection, entry.key_id, given)
        payload = replace(payload, uploads=[described(one) for one in kept])
        ends_at, asked = asking.media_until(question.attached, uploads, now), None
        seal = partial(self._records.seal_file, entry.request_id)
        images = await asking.shown_images(question.files, payload.files, seal)
        images += await self.images.shown(entry.request_id, len(payload.files), kept)
        async with self._database.write() as connection:
            if not await api_keys.hold(connection, entry.key_id):
                raise GatewayError("key_revoked")
            answering = await rows.identical(connection, entry.key_id, payload.sha256, now)
            if answering is None:
                await rows.check_room(connection, entry.key_id)
                row = self._asked_row(question, payload, now, ends_at)
                asked = await self._add(connection, question, payload, row, images)
                await rows.notify_requested(connection, now, asked.row)
            found = await names.await_person(connection, entry.key_id, entry.request_id, answering or entry.request_id)
            # Another process found this one too slow and took the call over.
            if not (found or question.context.route.repeatable):
                raise GatewayError("idempotency_in_flight", retry_after_s=1)
        if answering is None:
            about = {"request_id": entry.request_id, "key_id": entry.key_id, "operation": entry.operation}
            self._telemetry.event("info", "approval_requested", **about)
        request_id = answering or entry.request_id
        question.context.pending = Pending(request_id, partial(self._records.answer, request_id))
        # A new one is answered without reading it again: the store may be down by now, and it waits all the same.
        return await self._records.answer(request_id) if asked is None else self._records.asked(asked)

    async def look(self, key_id: str, payload: Payload) -> None:
        """Check that a person would be asked about a payload, without asking.

        Raises:
            GatewayError: approvals_full, approval_denied.
            StorageDownError: the database does not answer.
        """
        async with self._database.read() as connection:
            if await rows.identical(connection, key_id, payload.sha256, self._clock.now()) is None:
                await rows.check_room(connection, key_id)

    async def approve(
        self, request_id: str, payload_sha256: str, by: Actor, *, token_hash: bytes | None = None
    ) -> ApprovalRow:
        """Approve the payload that was shown. A gateway process then sends it; `token_hash` is the link that decides.

        Raises:
            GatewayError: request_not_found, approval_not_waiting, approval_expired, restored_backup, approval_stale (it
                is another payload by now), paused, paused_by_owner.
            StorageDownError: the database does not answer.
        """
        async with self._database.write() as connection:
            now = self._clock.now()
            row, entry = await rows.hold(connection, request_id)
            rows.check_waiting(row, entry, now, _AWAITING)
            rows.check_shown(row, payload_sha256)
            guard = await read_guard(connection, row.key_id, row.user_id)
            if guard is not None:
                guard.check_pause(now)
            await rows.use_link(connection, row, entry, token_hash, now)
            await journal.change(connection, request_id, {"state": State.APPROVED}, while_in=entry.state)
            latest = now + APPROVED_FOR
            values = {"expires_at": latest if row.media_until is None else min(latest, row.media_until)}
            decided = {"decided_at": now, "decided_by": by.who, "due_at": now}
            await store.change(connection, request_id, values | decided)
            await rows.record(connection, now, by, "approval.approved", row)
            return await rows.changed(connection, request_id)

    async def deny(
        self,
        request_id: str,
        by: Actor,
        *,
        payload_sha256: str | None = None,
        note: str | None = None,
        token_hash: bytes | None = None,
    ) -> ApprovalRow:
        """Deny a write; the caller gets the note. With `payload_sha256`, it is denied only if that was shown.

        Raises:
            GatewayError: request_not_found, approval_not_waiting, approval_expired, restored_backup, approval_stale (it
                is another payload by now).
            StorageDownError: the database does not answer.
        """
        async with self._database.write() as connection:
            now = self._clock.now()
            row, entry = await rows.hold(connection, request_id)
            rows.check_waiting(row, entry, now, _AWAITING)
            if payload_sha256 is not None:
                rows.check_shown(row, payload_sha256)
            await rows.use_link(connection, row, entry, token_hash, now)
            note = _bounded(note)
            refusal = GatewayError("approval_denied", note="")
            await rows.end(connection, request_id, entry.state, now, State.DENIED, refusal, report_at=now)
            await store.change(connection, request_id, {"decided_at": now, "decided_by": by.who, "note": note})
            await rows.record(connection, now, by, "approval.denied", row, note=note)
            return await rows.changed(connection, request_id)

    async def cancel(self, request_id: str, by: Actor, *, key_id: str | None = None) -> ApprovalRow:
        """Cancel a write that has not been started, also if it was approved.

        With `key_id`, only one of that key, which cannot cancel what the operator ordered.

        Raises:
            GatewayError: request_not_found, approval_not_waiting, approval_expired, restored_backup.
            StorageDownError: the database does not answer.
        """
        async with self._database.write() as connection:
            now = self._clock.now()
            row, entry = await rows.hold(connection, request_id, key_id)
            rows.check_waiting(row, entry, now, WAITING)
            if row.ordered and key_id is not None:
                raise GatewayError("approval_not_waiting", state=entry.state)
            refusal = GatewayError("cancelled")
            await rows.end(connection, request_id, entry.state, now, State.CANCELLED, refusal, report_at=now)
            await rows.record(connection, now, by, "approval.cancelled", row)
            return await rows.changed(connection, request_id)

    async def edit(self, request_id: str, text: str, payload_sha256: str, by: Actor) -> ApprovalRow:
        """Change the text of a post that waits. It is judged and priced again, and goes on waiting under a new hash.

        Raises:
            GatewayError: request_not_found, approval_not_waiting, approval_expired, restored_backup, approval_stale (it
                is another payload by now); why the operation does not take the text; or a policy's refusal.
            StorageDownError: the database does not answer.
        """
        waiting = await self._records.find(request_id)
        if waiting is None:
            raise GatewayError("request_not_found")
        rows.check_waiting(waiting.row, waiting.entry, self._clock.now(), _AWAITING)
        rows.check_shown(waiting.row, payload_sha256)
        if waiting.payload is None:
            raise GatewayError("approval_stale", detail="its payload cannot be read")
        judged, payload = await self._edited(waiting.row, waiting.payload, text)
        async with self._database.write() as connection:
            now = self._clock.now()
            row, entry = await rows.hold(connection, request_id)
            rows.check_waiting(row, entry, now, _AWAITING)
            rows.check_shown(row, payload_sha256)
            cost: dict[str, Any] = {"cost_microusd": judged.price}
            asked = {"asked": fingerprint(payload.operation, payload.fields), "decision": judged.document()}
            await journal.change(connection, request_id, cost | asked, while_in=entry.state)
            sealed = self._records.seal_payload(request_id, payload)
            edited = {
                "payload_ct": sealed,
                "payload_sha256": payload.sha256,
                "edited_from": row.edited_from or row.payload_sha256,
            }
            await store.change(connection, request_id, cost | edited)
            before = {"payload_sha256": row.payload_sha256}
            changed = await rows.changed(connection, request_id)
            await rows.record(connection, now, by, "approval.edited", changed, before=before)
            return changed

    async def make_link(self, request_id: str, by: Actor) -> tuple[str, datetime]:
        """Return the token of a new signed link that can decide on a write once, and when it ends.

        Raises:
            GatewayError: request_not_found, approval_not_waiting, approval_expired, restored_backup.
            StorageDownError: the database does not answer.
        """
        token = secrets.token_urlsafe(TOKEN_BYTES)
        async with self._database.write() as connection:
            now = self._clock.now()
            row, entry = await rows.hold(connection, request_id)
            rows.check_waiting(row, entry, now, _AWAITING)
            await store.add_link(connection, hash_token(token), request_id, by.who, now)
            await rows.record(connection, now, by, "approval.link_made", row)
        return token, row.expires_at

    async def order_deletion(self, made: JournalRow, by: Actor) -> str:
        """Order the deletion of a post that a key made; return its request. It is approved, and asks nobody.

        An order for the same post that waits or is being sent is returned again. One whose outcome is unknown is not:
        nobody finds out what became of a deletion, and repeating it does no harm.

        Raises:
            GatewayError: request_not_found: the row created no post.
            StorageDownError: the database does not answer.
        """
        if made.x_id is None:
            raise GatewayError("request_not_found")
        now, operation = self._clock.now(), OPERATIONS_BY_NAME[journal.DELETION]
        payload = Payload(operation.name, made.user_id, {operation.target: made.x_id})
        cost = self.spending.prices.reserved(operation, check(payload.fields, operation.body))
        asked = fingerprint(operation.name, payload.fields)
        entry = Entry(new_request_id(), made.key_id, made.user_id, operation.name, canonical(made.x_id), asked, cost)
        async with self._database.write() as connection:
            await api_keys.hold(connection, made.key_id)
            for earlier, state in await store.same_payload(connection, made.key_id, payload.sha256):
                if earlier.ordered and state in WAITING | {State.STARTED}:
                    return earlier.request_id
            row: dict[str, Any] = {"username": await _username(connection, made), "session_id": None, "ordered": True}
            row |= self._row(entry, payload, "operator", cost, now + APPROVED_FOR)
            row |= {"decided_at": now, "decided_by": by.who, "due_at": now}
            await journal.add(connection, self._records.waiting_row(entry, State.APPROVED))
            await store.add(connection, row)
            after = {"request_id": entry.request_id, "payload_sha256": payload.sha256, "post_id": made.x_id}
            await acts.append(connection, now, by, "deletion.ordered", made.key_id, after=after)
        return entry.request_id

    async def _edited(self, row: ApprovalRow, payload: Payload, text: str) -> tuple[Judged, Payload]:
        """Return a post with another text, and what its policies make of it.

        Raises:
            GatewayError: the body is not valid any more, or a policy's refusal.
        """
        operation, fields = OPERATIONS_BY_NAME[payload.operation], {**payload.fields, "text": text}
        async with self._database.read() as connection:
            key = await api_keys.get(connection, row.key_id)
            guard = await read_guard(connection, row.key_id, row.user_id)
        limits = {"text_limit": None if key is None else key.text_limit}
        body = check(media.with_ids(fields, payload.media_ids), operation.body, limits)
        proposal = propose(operation, row.user_id, body, self.spending.prices.reserved(operation, body))
        judged = Judged(guard or Guard(row.key_id, row.user_id, (), (), ()), proposal)
        await self.spending.judge(judged, operation, looks=True)
        await self.spending.check_by_snapshot(judged)
        return judged, replace(payload, fields=fields, findings=asking.asked_about(judged.decision))

    def _asked_row(
        self, question: Question, payload: Payload, now: datetime, ends_at: datetime | None
    ) -> dict[str, Any]:
        """Return the columns of an approval that is asked for."""
        session, judged = question.session, question.judged
        expires_at = now + self._ttl if ends_at is None else min(now + self._ttl, ends_at)
        row = {"username": session.username, "session_id": session.session_id, "ordered": False}
        row |= {"media_until": ends_at, "due_at": expires_at}
        approver = policy.approve_by(judged.guard.policies)
        return row | self._row(question.entry, payload, approver, judged.price, expires_at)

    def _row(
        self, entry: Entry, payload: Payload, approve_by: str, cost: int | None, expires_at: datetime
    ) -> dict[str, Any]:
        """Return the columns that every approval has."""
        return {
            "request_id": entry.request_id,
            "key_id": entry.key_id,
            "user_id": entry.user_id,
            "operation": entry.operation,
            "payload_sha256": payload.sha256,
            "payload_ct": self._records.seal_payload(entry.request_id, payload),
            "approve_by": approve_by,
            "cost_microusd": cost,
            "expires_at": expires_at,
        }

    async def _add(
        self,
        connection: AsyncConnection,
        question: Question,
        payload: Payload,
        row: Mapping[str, Any],
        images: Collection[tuple[int, bytes]],
    ) -> Waiting:
        """Insert a write that waits, and its images as far as there is room for them."""
        request_id, key_id = question.entry.request_id, question.entry.key_id
        room = await self.images.room(connection, key_id) if images else 0
        files = []
        for number, blob in images:
            if len(blob) <= room:
                files.append({"request_id": request_id, "number": number, "blob_ct": blob})
                room -= len(blob)
        entry = self._records.waiting_row(question.entry, State.AWAITING_APPROVAL)
        await journal.add(connection, entry)
        await store.add(connection, row, files)
        return Waiting(store.new(row), as_stored(entry), payload)


def hash_token(token: str) -> bytes:
    """Return the SHA-256 of a signed link's token. A slow hash would add nothing: 160 random bits cannot be guessed."""
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


async def _username(connection: AsyncConnection, made: JournalRow) -> str:
    """Return the name of the account of a write, as a link of its key states it; its id if none does."""
    known = await x_sessions.accounts_of(connection, made.key_id)
    return next((one.username for one in known if one.user_id == made.user_id and one.username), made.user_id)


def _bounded(note: str | None) -> str | None:
    """Return a note as it is stored: without a lone surrogate, which a terminal may pass on, and not too long."""
    text = (note or "").encode("utf-8", "replace").decode().strip()
    return text[:MAX_NOTE_CHARS] or None
