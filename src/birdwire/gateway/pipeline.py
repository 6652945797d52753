"""Pipeline: the frame of every call with a key, in two halves: `admit`, then `do_once`.

Plain data in and out: it knows no web framework. No operation can skip a step, and tests disable none.
"""

from __future__ import annotations

import asyncio
import hmac
from functools import partial
from typing import TYPE_CHECKING, Any

from birdwire.api import relay_dialect
from birdwire.api.body import NO_BODY, check_kind, read, read_query, whole_json, within
from birdwire.api.errors import GatewayError, excerpt, refuse
from birdwire.gateway.admission import check_action
from birdwire.gateway.approval_waits import wait_in
from birdwire.keys.context import CallContext, Pending, Work
from birdwire.keys.secrets import raw_key_of
from birdwire.outcomes import idempotency
from birdwire.outcomes.attempts import ATTEMPTED
from birdwire.store.database import StorageDownError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from birdwire.accounts.sessions import Sessions
    from birdwire.api.body import Parsed
    from birdwire.api.forms import Take
    from birdwire.api.messages import Answer, Call
    from birdwire.gateway.admission import Admission
    from birdwire.gateway.approval_waits import ApprovalWaits
    from birdwire.gateway.capacity import Capacity
    from birdwire.gateway.concurrency import ConcurrencyLimiter
    from birdwire.keys.context import RouteRules
    from birdwire.outcomes.attempts import Attempts
    from birdwire.outcomes.idempotency import Idempotency
    from birdwire.outcomes.own_refusals import Rejections


class Pipeline:
    """The frame of every call with a key. `keyless_body_s` bounds the time of a body until it names its key."""

    def __init__(
        self,
        admission: Admission,
        sessions: Sessions,
        capacity: Capacity,
        idempotency: Idempotency,
        rejections: Rejections,
        attempts: Attempts,
        waits: ApprovalWaits,
        *,
        keyless_body_s: float,
    ) -> None:
        self._admission = admission
        self._sessions = sessions
        self._capacity = capacity
        self._idempotency = idempotency
        self._rejections = rejections
        self._attempts = attempts
        self._waits = waits
        self._keyless_body_s = keyless_body_s

    async def run(self, route: RouteRules, work: Work, call: Call) -> Answer:
        """Answer one call over HTTP: admit it, do its work once, render a refusal, report the allowance."""
        context = CallContext(call, route, NO_BODY)
        call.note["operation"] = route.name
        slots = self._capacity.reserved if route.reserved else self._capacity.calls
        try:
            slots.check()
            await self.admit(context, slots)
            name = idempotency.name_of(call) if call.method == "POST" and not route.unnamed else None
            fields = context.parsed.fields
            if route.about_request:
                # Under one Idempotency-Key, calls about two requests are not the same call.
                fields = {**fields, "request_id": call.path.rsplit("/", 2)[-2]}
            answer = await self.do_once(context, name, route.name, fields, work)
        except (GatewayError, StorageDownError) as error:
            answer = self._refuse(context, error)
        finally:
            context.close()
            if context.holds_slot:
                slots.release(context.key.key_id)
        if context.pending is not None:
            answer = await self._hold(context, context.pending, answer)
        if context.relayed and answer.status < 400:
            answer = relay_dialect.encode(answer)
        return answer.adding(context.headers)

    async def run_within(self, context: CallContext, work: Work) -> Answer:
        """Answer a call that is part of an admitted one, such as an MCP tool call: as `run`, but with its key and slot.

        `context` has the key of the call that it is part of, and a body that has been read. The call is not about a
        request in its path.
        """
        call, route = context.call, context.route
        call.note["operation"] = route.name
        try:
            await self._admission.recheck(context, route.action)
            if route.pausable:
                await self._admission.check_pause(context.key)
            name = idempotency.name_of(call) if call.method == "POST" and not route.unnamed else None
            answer = await self.do_once(context, name, route.name, context.parsed.fields, work)
        except (GatewayError, StorageDownError) as error:
            answer = self._refuse(context, error)
        return answer.adding(context.headers)

    async def _hold(self, context: CallContext, pending: Pending, answer: Answer) -> Answer:
        """Hold the answer of a call that prefers to wait for a person. It no longer counts as a running call."""
        call = context.call
        preferred = wait_in(call.header_values("prefer")) if pending.wait_s is None else None
        seconds = preferred if pending.wait_s is None else pending.wait_s
        if seconds is None or (seconds and not await self._waits.hold(pending.request_id, seconds)):
            return answer
        if preferred is not None:
            context.headers += (("preference-applied", f"wait={seconds}"),)
        if not seconds:
            return answer
        try:
            answer = await pending.answer()
        except StorageDownError:
            # The answer from before the wait is still true.
            return answer
        except GatewayError as error:
            return refuse(error, call)
        if answer.status >= 400:
            call.note["reason"] = answer.value["error"].get("reason")
        return answer

    async def admit(self, context: CallContext, slots: ConcurrencyLimiter) -> None:
        """Admit the caller, read what it sent, and acquire a slot. A header's key is admitted before the body is read.

        Raises:
            GatewayError: why the call is refused. Nothing has been done.
            StorageDownError: the database does not answer.
        """
        call, route = context.call, context.route
        raw_key = raw_key_of(call)
        if raw_key is not None:
            await self._admission.admit(context, raw_key)
        if call.method == "POST":
            await self._receive(context, raw_key)
        if not context.admitted:
            raise GatewayError("key_missing")
        if route.query:
            context.parsed = read_query(call.query)
        elif call.query:
            raise GatewayError("unexpected_query", field=excerpt(call.query.partition("&")[0].partition("=")[0]))
        elif context.parsed.kind != "json" and call.method == "POST" and not context.relayed:
            check_kind(context.parsed.kind, route.model, route.file_names)
        if not context.holds_slot:
            await slots.acquire(context.key.key_id)
            context.holds_slot = True
        # The key may have changed while the body arrived, or while the call waited for its slot.
        await self._admission.recheck(context, route.action)
        if route.pausable:
            await self._admission.check_pause(context.key)

    async def do_once(
        self, context: CallContext, name: str | None, operation: str, fields: Mapping[str, Any], work: Work
    ) -> Answer:
        """Do the work and return its answer; or return an earlier answer to the Idempotency-Key `name`, or a refusal.

        A call without a name gets one if it must not run twice, so that its caller can ask for the outcome.
        """
        repeatable = context.route.repeatable
        try:
            if name is None:
                if repeatable:
                    return await work(context)
                name = idempotency.new_name()
                context.headers += (("idempotency-key", name),)
            content_hash = idempotency.fingerprint(operation, fields, context.parsed.files)
            named = idempotency.Named(context.key.key_id, name, content_hash, context.call.request_id, repeatable)
            async with self._idempotency.attempt(named) as attempt:
                if attempt.replay is not None:
                    answer, context.earlier = attempt.replay
                    context.pending = self._waits.repeated(answer)
                    return answer
                attempt.answer = await work(context)
                return attempt.answer
        except (GatewayError, StorageDownError) as error:
            return self._refuse(context, error)

    def _refuse(self, context: CallContext, error: GatewayError | StorageDownError) -> Answer:
        """Return the answer of a refusal, which the caller can ask for later."""
        if isinstance(error, StorageDownError):
            error = GatewayError("storage_unavailable", half="nothing was sent to X")
        context.uncertain, context.earlier = error.outcome == "unknown", error.values.get("earlier")
        # A caller that polls its own state must not evict the refusals that it asks for.
        if context.route.action:
            self._rejections.add(context.call, error)
            if error.reason in ATTEMPTED and not context.recorded:
                self._record_attempt(context, error)
        return refuse(error, context.call)

    def _record_attempt(self, context: CallContext, error: GatewayError) -> None:
        """Record what a rule, cap or pause refused, with the linked account as far as it is known."""
        key_id = context.call.note.get("key_id")
        if key_id is not None:
            session = self._sessions.ready(key_id)
            self._attempts.add(context.call, error, "" if session is None else session.user_id)

    async def _receive(self, context: CallContext, raw_key: str | None) -> None:
        """Read the body, and admit the key that it carries in the relay dialect."""
        # The refusal of a body depends on whether its caller is admitted: `_read` knows how.
        parsed = whole_json(context.call, context.route.max_bytes) if context.admitted else None
        parsed = context.parsed = parsed or await self._read(context)
        relay = relay_dialect.decode(parsed, context.route.model) if context.route.relay else None
        if relay is None:
            return
        if raw_key is not None and not hmac.compare_digest(relay.raw_key.encode("utf-8", "replace"), raw_key.encode()):
            raise GatewayError("key_mismatch")
        context.parsed, context.relayed = relay.parsed, True
        if not context.admitted:
            await self._admission.admit(context, relay.raw_key)

    async def _read(self, context: CallContext) -> Parsed:
        """Return the body. Until a part names the key, it must arrive within the time of an ordinary body."""
        call, route = context.call, context.route
        if not context.admitted and route.max_file_bytes:
            ends_at = asyncio.get_running_loop().time() + self._keyless_body_s
            call.stream = partial(within, call.stream(), lambda: None if context.admitted else ends_at)
        fields: dict[str, Any] = {}
        before_file = partial(self._before_file, context)
        try:
            return await read(call, route.max_bytes, before_file, route.file_names, fields)
        except GatewayError as error:
            if not context.admitted and error.problem.status in (400, 415):
                await self._admit_field(context, fields)
            raise

    async def _before_file(self, context: CallContext, fields: dict[str, Any]) -> tuple[int, Take]:
        """Make every check that needs no file before the first byte of one is read, then acquire the call's slot.

        The key is the header's, or one in an earlier part. Returns the limit of the whole body, and the function that
        reserves space for it.
        """
        route = context.route
        if not context.admitted:
            await self._admit_field(context, fields)
        # This route takes no files, so the ordinary limit holds.
        if not route.max_file_bytes:
            return route.max_bytes, lambda _: None
        key = context.key
        check_action(key, route.action)
        # A route that sends no file to X, such as a dry run, needs no session for one.
        if route.file_scopes:
            await self._admission.check_pause(key)
            await self._sessions.session_for(key, route.file_scopes)
        upload = context.upload = self._capacity.uploads.start(key.key_id, _announced(context.call))
        await self._capacity.calls.acquire(key.key_id)
        context.holds_slot = True
        return max(route.max_bytes, route.max_file_bytes), upload.take

    async def _admit_field(self, context: CallContext, fields: dict[str, Any]) -> None:
        """Admit the key that a form's fields carry.

        Raises:
            GatewayError: key_missing, or why the key may not be used.
        """
        raw_key = relay_dialect.key_in(fields) if context.route.relay else None
        if raw_key is None:
            raise GatewayError("key_missing")
        await self._admission.admit(context, raw_key)


def _announced(call: Call) -> int:
    """Return the Content-Length, or 0 for a chunked body."""
    length = call.header("content-length") or "0"
    return int(length) if length.isascii() and length.isdigit() else 0
