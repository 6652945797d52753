"""Writes: one operation as one list of named steps, from its fields to an outcome in the journal.

It takes no HTTP body: the caller of `perform` passes the operation's fields and files. A step refuses by raising a
GatewayError; once the record is open, every end is recorded before it is answered.

A write that needs a person's approval stops at the step `ask`, which leaves it waiting.

Three runners go through the list. `perform` executes each step, and `preview` only its check, which returns the same
verdict without any effect: it sends nothing, renews nothing, and counts nothing. `perform_approved` sends a write that
waited for a person: it executes the steps again, but for those that are done `once`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from birdwire.api.body import check
from birdwire.api.errors import GatewayError
from birdwire.api.messages import Answer
from birdwire.gateway.admission import check_action
from birdwire.gateway.approval_waits import costing
from birdwire.gateway.guardrails.approvals import Question
from birdwire.gateway.guardrails.guards import MISSING, Unknown
from birdwire.gateway.guardrails.proposal import features_of, propose
from birdwire.gateway.guardrails.spending import Judged, check_shown
from birdwire.gateway.second_look import check_payload, check_price, passes
from birdwire.gateway.sender import ApprovedWrite, Write, known_payload, payload_of
from birdwire.gateway.step import AwaitingApproval, Step
from birdwire.outcomes.claims import ClaimLostError
from birdwire.outcomes.entry import Approved, Entry
from birdwire.outcomes.journal import fingerprint
from birdwire.outcomes.post_matching import signature_of
from birdwire.store.database import StorageDownError
from birdwire.x.catalog import media
from birdwire.x.catalog.operations import UPLOAD_SCOPES
from birdwire.x.catalog.post import PostTwitter
from birdwire.x.limits.write_order import canonical

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence

    from birdwire.accounts.retrying_client import AccountClients
    from birdwire.api.forms import Part
    from birdwire.api.models import Body
    from birdwire.gateway.admission import Admission
    from birdwire.gateway.guardrails.approvals import Approvals
    from birdwire.gateway.guardrails.policy import Guard
    from birdwire.gateway.guardrails.proposal import Proposal
    from birdwire.gateway.sender import OperationSender
    from birdwire.gateway.uploader import MediaUploader
    from birdwire.keys.context import CallContext
    from birdwire.outcomes.idempotency import Idempotency
    from birdwire.outcomes.journal import Journal
    from birdwire.runtime.failpoints import Failpoints
    from birdwire.runtime.telemetry import Telemetry
    from birdwire.x.catalog.operations import Operation


class Writes:
    """Runs operations of linked accounts. Each operation goes through `steps`, in their order."""

    def __init__(
        self,
        admission: Admission,
        clients: AccountClients,
        journal: Journal,
        idempotency: Idempotency,
        approvals: Approvals,
        uploader: MediaUploader,
        sender: OperationSender,
        failpoints: Failpoints,
        telemetry: Telemetry,
    ) -> None:
        self._admission = admission
        self._clients = clients
        self._journal = journal
        self._idempotency = idempotency
        self._approvals = approvals
        self._spending = approvals.spending
        self._guards = admission.guards
        self._uploader = uploader
        self._sender = sender
        self._failpoints = failpoints
        self._telemetry = telemetry
        self.steps: tuple[Step[Write, ApprovedWrite], ...] = (
            Step("action", self._check_action, self._check_action, rules=True, again=self._check_key),
            Step("body", self._check_body, self._check_body, again=self._check_approved),
            Step("files", self._check_files, self._check_files, for_files=True, once=True),
            Step("session", self._open_session, self._look_session, again=self._open_same_session),
            Step("pause", self._check_pause, self._look_pause, rules=True),
            Step("policy", self._check_policy, self._look_policy, ("body",), rules=True, again=self._judge_approved),
            Step("windows", self._check_windows, self._look_windows, ("session",)),
            Step("daily_writes", self._spend_write, self._look_daily_writes, once=True),
            Step("room", self._look_ask, for_files=True, once=True),
            Step("record", self._open_record, again=self._open_approved),
            Step("attach", self._attach_files, for_files=True, once=True),
            Step("ask", self._ask, self._look_ask, ("body", "session"), once=True),
            Step("start", self._start, again=self._start_approved),
            Step("send", self._send, self._look_breaker, ("session",)),
        )
        self._run = tuple(step.do for step in self.steps)
        self._run_without_files = tuple(step.do for step in self.steps if not step.for_files)
        self._run_approved = tuple(step.again or step.do for step in self.steps if not step.once)
        self._run_ordered = tuple(step.again or step.do for step in self.steps if not (step.once or step.rules))

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
            for do in self._run if files else self._run_without_files:
                waiting = do(write)
                if waiting is not None:
                    await waiting
        except AwaitingApproval as waits:
            return waits.answer
        except Exception as error:
            refusal = await self._failed(write, error)
            if refusal is None:
                raise
            raise refusal from None
        else:
            if write.judged is None:
                await write.record.confirmed(operation.status, write.data)
            else:
                await self._confirmed(write, write.judged)
        finally:
            if write.judged is not None and write.judged.registered:
                self._journal.leases.discard(context.call.request_id)
        # X's answer is passed on even if it is not what was asked for; the log line records that.
        if not operation.expect.items() <= write.data.items():
            context.call.note["unexpected"] = True
        return Answer.of({"data": write.data}, operation.status)

    async def perform_approved(self, write: ApprovedWrite) -> Answer:
        """Send a write that was approved, once, after every rule was checked again. It may be tried again later.

        Raises:
            ClaimLostError: another process sends it, or it no longer waits. Nothing was recorded.
            GatewayError: why it was not carried out. If `write.context.recorded` is set, it has ended; otherwise it is
                as it was before, and nothing is charged.
            StorageDownError: the database does not answer. Nothing was sent.
        """
        try:
            for do in self._run_ordered if write.waiting.row.ordered else self._run_approved:
                step = do(write)
                if step is not None:
                    await step
            await self._failpoints.reach("approved_after_reply")
        except Exception as error:  # noqa: BLE001 - it is raised again, or what it means for the write
            raise await self._approved_failed(write, error) from None
        await write.record.confirmed(write.operation.status, write.data, write.client.maybe_billed)
        await self._failpoints.reach("approved_after_end")
        return Answer.of({"data": write.data}, write.operation.status)

    async def _approved_failed(self, write: ApprovedWrite, error: Exception) -> Exception:
        """Record the end of an approved write that was started, or let it wait again; return the error to raise."""
        if not (write.opened and write.record.started):
            if write.judged is not None:
                await self._spending.give_back(write.judged, write.context.call.request_id)
            return error
        # After a lost claim, the row and all its charges belong to another process.
        if isinstance(error, ClaimLostError) or (refusal := self._refusal_of(write, error)) is None:
            return error
        if write.resumed and refusal.outcome == "not_sent" and not passes(refusal):
            refusal.outcome = "unknown"
        if passes(refusal) and not write.client.maybe_billed:
            # X may have carried out the first request of a resumed write, which stays started.
            if not write.resumed:
                await write.record.put_back()
                write.put_back = True
            return refusal
        return await self._record_failure(write, refusal, write.client.maybe_billed + (refusal.outcome == "unknown"))

    async def preview(self, write: Write) -> list[GatewayError]:
        """Run the check of each step whose needs are known, and return at most one refusal of each.

        Raises:
            StorageDownError: the database does not answer.
        """
        refusals = []
        for step in self.steps:
            known = all(hasattr(write, name) for name in step.needs)
            if step.look is None or not known or (step.for_files and not write.files):
                continue
            try:
                waiting = step.look(write)
                if waiting is not None:
                    await waiting
            except GatewayError as error:
                refusals.append(error)
        return refusals

    async def _confirmed(self, write: Write, judged: Judged) -> None:
        """Record that X carried a guarded write out, and how often X may have billed it besides."""
        again = write.client.maybe_billed
        await write.record.confirmed(write.operation.status, write.data, billed_extra=again)
        if write.operation.takes_file:
            await self._approvals.images.keep(write.entry.key_id, judged.guard.policies, write.files[0], write.data)
        write.context.headers += judged.header(times=1 + again)

    async def _failed(self, write: Write, error: Exception) -> GatewayError | None:
        """Record that a write failed, and return its refusal; None if it has no record."""
        refusal = self._refusal_of(write, error)
        times = 0 if write.judged is None else await self._not_confirmed(write, write.judged, refusal)
        return None if refusal is None else await self._record_failure(write, refusal, times)

    async def _record_failure(self, write: Write, refusal: GatewayError, times: int) -> GatewayError:
        """Record a refusal, and return the one to raise. X may have billed the write `times` times."""
        recorded = await write.record.failed(refusal, times)
        write.context.recorded = True
        if write.judged is not None and (trip := self._guards.after_refusal(write.judged.guard, refusal)):
            await trip
        # A write that is safe to repeat keeps its reason, whose fix is to send it again.
        return refusal if write.operation.repeatable else recorded

    async def _not_confirmed(self, write: Write, judged: Judged, refusal: GatewayError | None) -> int:
        """Give back what no row gives back, and return how often X may have billed the write."""
        times = 0
        # From then on the outcome settles all charges, whatever failed after that.
        if write.opened and write.record.started:
            times = write.client.maybe_billed + (refusal is not None and refusal.outcome == "unknown")
        else:
            await self._spending.give_back(judged, write.context.call.request_id)
        write.context.headers += judged.header(times=times)
        return times

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

    async def _check_key(self, write: ApprovedWrite) -> None:
        await self._admission.recheck(write.context, write.operation.name)

    def _check_approved(self, write: ApprovedWrite) -> None:
        """Check that the stored payload is what was approved. Its files are at X, so they are attached by their ids."""
        payload = check_payload(write.waiting, self._admission.now())
        write.fields = payload.fields
        write.body = _checked(write, media.with_ids(write.fields, payload.media_ids))

    def _check_body(self, write: Write) -> None:
        write.body = _checked(write, media.fields_of(write.operation, write.fields, write.files))

    def _check_files(self, write: Write) -> None:
        media.check_files(write.operation, write.files)

    async def _open_session(self, write: Write) -> None:
        write.session = await self._admission.session_for_write(write.context, write.operation.scopes)

    async def _open_same_session(self, write: ApprovedWrite) -> None:
        row, scopes = write.waiting.row, write.operation.scopes
        write.session = await self._admission.session_for_approved(write.context, row, scopes)

    async def _look_session(self, write: Write) -> None:
        """Read the link. It is neither renewed nor named: what only X knows stays unknown."""
        attaches = write.files and not write.operation.takes_file
        scopes = (*write.operation.scopes, *(UPLOAD_SCOPES if attaches else ()))
        write.session = await self._admission.peek(write.context.key, scopes)

    def _check_pause(self, write: Write) -> Awaitable[None] | None:
        """Find what holds for the key. An unguarded call asks nothing else."""
        guard = self._guards.cached(write.context.key.key_id)
        return None if guard is None else self._check_guard(write, guard)

    async def _check_guard(self, write: Write, guard: Guard | Literal[Unknown.MISSING]) -> None:
        if guard is not MISSING:
            write.judged = Judged(guard)
            self._spending.check_pause(guard)
        elif (found := await self._guards.of(write.context.key.key_id)) is not None:
            await self._check_guard(write, found)

    def _look_pause(self, write: Write) -> Awaitable[None]:
        return self._check_guard(write, MISSING)

    def _check_policy(self, write: Write) -> Awaitable[None] | None:
        """Judge the write by the policies that hold for its key."""
        judged = write.judged
        return None if judged is None else self._judge(write, judged)

    async def _judge(self, write: Write, judged: Judged) -> None:
        judged.label, judged.username = write.context.key.label, write.session.username
        judged.proposal = self._proposal(write, write.session.user_id)
        await self._spending.judge(judged, write.operation)
        await self._spending.check(judged)

    async def _judge_approved(self, write: ApprovedWrite) -> None:
        """Judge an approved write by what holds now. What was shown to a person does not have to be asked again."""
        judged = write.judged
        if judged is None:
            return
        payload = write.waiting.payload
        judged.shown = () if payload is None else payload.findings
        if write.resumed:
            # It is counted already.
            self._judge_again(write, judged.guard)
        else:
            await self._judge(write, judged)
            check_shown(judged.decision, judged.shown)

    async def _look_policy(self, write: Write) -> None:
        judged = write.judged
        if judged is not None:
            judged.proposal = self._proposal(write, judged.guard.user_id)
            await self._spending.judge(judged, write.operation, looks=True)
            await self._spending.check_by_snapshot(judged)

    def _proposal(self, write: Write, user_id: str | None) -> Proposal:
        price = self._spending.prices.reserved(write.operation, write.body)
        return propose(write.operation, user_id, write.body, price)

    def _judge_again(self, write: Write, guard: Guard) -> None:
        """Judge a write that has passed by what holds now: its key may have got other rules since."""
        self._spending.judge_again(guard, self._proposal(write, write.session.user_id), write.judged)

    def _check_windows(self, write: Write) -> None:
        """Refuse a write that X's rate windows do not allow, before it counts against the key's daily cap."""
        self._clients.windows.check(write.operation.endpoint, write.session.user_id)

    def _look_windows(self, write: Write) -> None:
        refusal = self._clients.windows.refusal(write.operation.endpoint, write.session.user_id)
        if refusal is not None:
            raise refusal

    def _spend_write(self, write: Write) -> Awaitable[None] | None:
        """Count the write, if the key has a daily cap."""
        key = write.context.key
        return None if key.rules.daily_writes is None else self._admission.spend_write(key)

    def _look_daily_writes(self, write: Write) -> Awaitable[None] | None:
        key = write.context.key
        return None if key.rules.daily_writes is None else self._admission.check_daily_writes(key)

    def _open_record(self, write: Write) -> None:
        """Open the journal's record, and the client whose requests the call's permit allows."""
        context, operation, body = write.context, write.operation, write.body
        judge = partial(self._judge_again, write)
        guard = None if write.judged is None else write.judged.guard
        permit = self._admission.permit(context, operation.name, operation.scopes, guard, judge)
        write.client = self._clients.open(write.session, permit)
        write.entry = Entry(
            context.call.request_id,
            context.key.key_id,
            write.session.user_id,
            operation.name,
            canonical(str(getattr(body, operation.target, ""))),
            fingerprint(operation.name, write.fields),
            self._spending.prices.of(operation, body),
            signature_of(body),
        )
        write.record = self._journal.open(write.entry)
        write.opened = True

    def _open_approved(self, write: ApprovedWrite) -> None:
        """Open the record of an approved write, whose row exists."""
        self._open_record(write)
        row = write.waiting.row
        write.entry.approved = Approved(row.payload_sha256, row.expires_at)
        if row.ordered:
            write.client = self._clients.open(write.session, self._admission.order_permit())

    def _attach_files(self, write: Write) -> Awaitable[None] | None:
        """Upload the files of a post, which then carries their media ids."""
        return None if write.operation.takes_file else self._attach(write)

    async def _attach(self, write: Write) -> None:
        write.attached = await self._uploader.attach(write.files, write.client)
        # An upload takes long, and the key's rules may have changed meanwhile.
        await self._admission.recheck(write.context, write.operation.name)
        media_ids = [one.media_id for one in write.attached]
        write.body = _checked(write, media.with_ids(write.fields, media_ids))

    def _ask(self, write: Write) -> Awaitable[None] | None:
        """Leave a write waiting that a person must decide on. An unguarded call asks nothing."""
        judged = write.judged
        return None if judged is None or not judged.asks else self._ask_person(write, judged)

    async def _ask_person(self, write: Write, judged: Judged) -> None:
        write.entry.decision = judged.document()
        payload = payload_of(write, write.session.user_id)
        question = Question(write.context, payload, judged, write.entry, write.session, write.files, write.attached)
        await self._failpoints.reach("asked_before_store")
        try:
            answer = await self._approvals.ask(question)
        except GatewayError:
            # What is refused here has no row of its own: it is recorded as an attempt.
            write.opened = False
            raise
        await self._failpoints.reach("asked_after_store")
        if write.context.pending is not None:
            write.context.pending = costing(write.context.pending, judged, self._journal.find)
        raise AwaitingApproval(answer.adding(judged.header(times=0)))

    async def _look_ask(self, write: Write) -> None:
        """Refuse, before files are uploaded, what no person would be asked about: denied before, or one too many."""
        payload = known_payload(write, write.session.user_id)
        if payload is not None and write.judged is not None and write.judged.asks:
            await self._approvals.look(write.context.key.key_id, payload)

    def _start(self, write: Write) -> Awaitable[None] | None:
        """Record that a write is about to be sent: one that must not be repeated, or that a policy counts."""
        if write.judged is not None:
            return self._start_judged(write, write.judged)
        return None if write.operation.repeatable else self._begin(write)

    async def _start_judged(self, write: Write, judged: Judged) -> None:
        """Let a guarded write pass: what it is charged is written together with its row."""
        await self._spending.charge(judged, write.entry)
        # A policy in shadow mode alone changes nothing, so a repeatable write begins as without it.
        if not judged.obeys and write.operation.repeatable:
            return
        judged.registered = self._journal.leases.register(write.entry.request_id)
        try:
            await self._spending.begin(judged, partial(self._begin, write))
        except GatewayError as error:
            # What a policy refuses here has no row of its own: it is recorded as an attempt.
            write.opened = write.record.started or error.reason == "storage_unavailable"
            raise

    async def _start_approved(self, write: ApprovedWrite) -> None:
        """Start an approved write by a unit that only one process can commit."""
        operation, judged, entry = write.operation, write.judged, write.entry
        if operation.opposite and await self._journal.asked_later(entry, operation.opposite):
            raise GatewayError("superseded")
        if write.resumed:
            await write.record.take_over(write.waiting.entry)
            return
        price = self._spending.prices.reserved(operation, write.body)
        if judged is not None:
            await self._spending.charge(judged, entry)
            price = judged.price
        elif write.waiting.row.ordered and (guard := await self._guards.acting_as(entry.key_id, entry.user_id)):
            entry.charges = self._spending.ordered(guard, self._proposal(write, entry.user_id))
        check_price(write.waiting, price)
        await self._failpoints.reach("approved_before_claim")
        begin = partial(self._begin, write)
        await (begin() if judged is None else self._spending.begin(judged, begin))
        await self._failpoints.reach("approved_after_claim")
        await write.record.check()

    async def _begin(self, write: Write) -> None:
        if isinstance(write.body, PostTwitter):
            # Also of an unguarded post: what a policy would have done to earlier posts can be asked before it is set.
            write.entry.features = features_of(self._proposal(write, write.session.user_id))
        await write.record.begin()
        # An approved write holds no Idempotency-Key: its request answers for the key.
        if write.is_approved:
            return
        await self._failpoints.reach("post_after_started")
        if not write.operation.repeatable:
            await self._idempotency.hold(write.entry.key_id, write.entry.request_id)

    def _send(self, write: Write) -> Awaitable[None]:
        """Send the operation, or its file: an upload is a request of several parts."""
        return self._upload(write) if write.operation.takes_file else self._sender.send(write)

    def _look_breaker(self, write: Write) -> None:
        """Refuse a write that the circuit breaker would refuse now. This does not count as a probe."""
        refusal = self._clients.breaker.refusal(write.operation.endpoint, write.session.user_id)
        if refusal is not None:
            raise refusal

    async def _upload(self, write: Write) -> None:
        write.data = await self._uploader.upload(write.files[0], write.client)


def _checked(write: Write, fields: Mapping[str, Any]) -> Body:
    """Return fields as the operation's body, by the key's limits."""
    return check(fields, write.operation.body, {"text_limit": write.context.key.rules.text_limit})
