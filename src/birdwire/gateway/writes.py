"""Writes: one operation as one list of named steps, from its fields to an outcome in the journal.

It takes no HTTP body: the caller of `perform` passes the operation's fields and files. A step refuses by raising a
GatewayError; once the record is open, every end is recorded before it is answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from birdwire.api.body import check
from birdwire.api.errors import GatewayError
from birdwire.api.messages import Answer
from birdwire.gateway.admission import check_action
from birdwire.gateway.sender import Write
from birdwire.outcomes.journal import Entry, fingerprint
from birdwire.outcomes.post_matching import signature_of
from birdwire.store.database import StorageDownError
from birdwire.x.catalog import media
from birdwire.x.limits.write_order import canonical

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from birdwire.accounts.retrying_client import AccountClients
    from birdwire.api.forms import Part
    from birdwire.api.models import Body
    from birdwire.gateway.admission import Admission
    from birdwire.gateway.sender import OperationSender
    from birdwire.gateway.uploader import MediaUploader
    from birdwire.keys.context import CallContext
    from birdwire.outcomes.idempotency import Idempotency
    from birdwire.outcomes.journal import Journal
    from birdwire.runtime.failpoints import Failpoints
    from birdwire.runtime.telemetry import Telemetry
    from birdwire.x.catalog.operations import Operation
    from birdwire.x.catalog.prices import Prices


class Step(NamedTuple):
    """One step of a write: what it does, under a name. A step that has to wait returns what to wait for."""

    name: str
    do: Callable[[Write], Awaitable[None] | None]


class Writes:
    """Runs operations of linked accounts. Each operation goes through `steps`, in their order."""

    def __init__(
        self,
        admission: Admission,
        clients: AccountClients,
        journal: Journal,
        idempotency: Idempotency,
        prices: Prices,
        uploader: MediaUploader,
        sender: OperationSender,
        failpoints: Failpoints,
        telemetry: Telemetry,
    ) -> None:
        self._admission = admission
        self._clients = clients
        self._journal = journal
        self._idempotency = idempotency
        self._prices = prices
        self._uploader = uploader
        self._sender = sender
        self._failpoints = failpoints
        self._telemetry = telemetry
        self.steps = (
            Step("action", self._check_action),
            Step("body", self._check_body),
            Step("files", self._check_files),
            Step("session", self._open_session),
            Step("windows", self._check_windows),
            Step("daily_writes", self._spend_write),
            Step("record", self._open_record),
            Step("attach", self._attach_files),
            Step("start", self._start),
            Step("send", self._send),
        )
        self._run = tuple(step.do for step in self.steps)

    def perform_call(self, operation: Operation, context: CallContext) -> Awaitable[Answer]:
        """Perform an operation with the fields and files of a call's HTTP body."""
        return self.perform(context, operation, context.parsed.fields, context.parsed.files)

    async def perform(
        self, context: CallContext, operation: Operation, fields: Mapping[str, Any], files: Sequence[Part] = ()
    ) -> Answer:
        """Carry out one operation, and return X's answer once the journal has recorded it.

        Raises:
            GatewayError: why it was not carried out, or that its outcome is unknown.
            StorageDownError: the database does not answer. Nothing was sent.
        """
        write = Write(context, operation, fields, files)
        try:
            for do in self._run:
                waiting = do(write)
                if waiting is not None:
                    await waiting
        except Exception as error:
            refusal = self._refusal_of(write, error)
            if refusal is None:
                raise
            raise await write.record.failed(refusal) from None
        await write.record.confirmed(operation.status, write.data)
        # X's answer is passed on even if it is not what was asked for; the log line records that.
        if not operation.expect.items() <= write.data.items():
            context.call.note["unexpected"] = True
        return Answer.of({"data": write.data}, operation.status)

    def _refusal_of(self, write: Write, error: Exception) -> GatewayError | None:
        """Return the refusal to record for a failed step; None if the write has no record."""
        if not write.opened:
            return None
        if isinstance(error, GatewayError):
            return error
        if isinstance(error, StorageDownError) and not write.record.started:
            # X may have uploaded files by now, but no post shows them.
            return GatewayError("storage_unavailable", half="nothing was published")
        if not write.record.started:
            return None
        # X may have carried the write out, so "try again" would be wrong, even after a bug of the gateway.
        if not isinstance(error, StorageDownError):
            self._telemetry.crash(write.context.call.request_id, error)
        return GatewayError("outcome_unknown", outcome="unknown")

    def _check_action(self, write: Write) -> None:
        """Check that the key is allowed the operation: the call may have been admitted for another action."""
        check_action(write.context.key, write.operation.name)

    def _check_body(self, write: Write) -> None:
        write.body = _checked(write, media.fields_of(write.operation, write.fields, write.files))

    def _check_files(self, write: Write) -> None:
        if write.files or write.operation.takes_file:
            media.check_files(write.operation, write.files)

    async def _open_session(self, write: Write) -> None:
        write.session = await self._admission.session_for_write(write.context, write.operation.scopes)

    def _check_windows(self, write: Write) -> None:
        """Refuse a write that X's rate windows do not allow, before it counts against the key's daily cap."""
        self._clients.windows.check(write.operation.endpoint, write.session.user_id)

    def _spend_write(self, write: Write) -> Awaitable[None] | None:
        """Count the write, if the key has a daily cap."""
        key = write.context.key
        return None if key.rules.daily_writes is None else self._admission.spend_write(key)

    def _open_record(self, write: Write) -> None:
        """Open the journal's record, and the client whose requests the call's permit allows."""
        context, operation, body = write.context, write.operation, write.body
        permit = self._admission.permit(context, operation.name, operation.scopes)
        write.client = self._clients.open(write.session, permit)
        write.entry = Entry(
            context.call.request_id,
            context.key.key_id,
            write.session.user_id,
            operation.name,
            canonical(str(getattr(body, operation.target, ""))),
            fingerprint(operation.name, write.fields),
            self._prices.of(operation, body),
            signature_of(body),
        )
        write.record = self._journal.open(write.entry)
        write.opened = True

    def _attach_files(self, write: Write) -> Awaitable[None] | None:
        """Upload the files of a post, which then carries their media ids."""
        return self._attach(write) if write.files and not write.operation.takes_file else None

    async def _attach(self, write: Write) -> None:
        media_ids = await self._uploader.attach(write.files, write.client)
        # An upload takes long, and the key's rules may have changed meanwhile.
        await self._admission.recheck(write.context, write.operation.name)
        write.body = _checked(write, media.with_ids(write.fields, media_ids))

    def _start(self, write: Write) -> Awaitable[None] | None:
        """Record that a write that must not be repeated is about to be sent."""
        return None if write.operation.repeatable else self._begin(write)

    async def _begin(self, write: Write) -> None:
        await write.record.begin()
        await self._failpoints.reach("post_after_started")
        await self._idempotency.hold(write.entry.key_id, write.entry.request_id)

    def _send(self, write: Write) -> Awaitable[None]:
        """Send the operation, or its file: an upload is a request of several parts."""
        return self._upload(write) if write.operation.takes_file else self._sender.send(write)

    async def _upload(self, write: Write) -> None:
        write.data = await self._uploader.upload(write.files[0], write.client)


def _checked(write: Write, fields: Mapping[str, Any]) -> Body:
    """Return fields as the operation's body, by the key's limits."""
    return check(fields, write.operation.body, {"text_limit": write.context.key.rules.text_limit})
