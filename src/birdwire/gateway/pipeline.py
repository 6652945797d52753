"""Gate.admit(): key and allowance, for every route of a key. Gate.serve(): the way of one operation, top to bottom.

Plain data in and out: knows no web framework. No operation can skip a step, and nothing here is disabled in tests.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from birdwire.accounts.write_permit import WritePermit
from birdwire.api import relay_dialect
from birdwire.api.body import Body, Empty, Parsed, check, check_kind, read, read_query, within
from birdwire.api.errors import GatewayError, excerpt, refuse
from birdwire.api.messages import Answer
from birdwire.keys.context import CallContext
from birdwire.keys.rate_limit import failures_from
from birdwire.keys.secrets import raw_key_of
from birdwire.outcomes import idempotency
from birdwire.outcomes.journal import Entry, fingerprint
from birdwire.outcomes.post_matching import signature_of
from birdwire.store.database import StorageDownError
from birdwire.x.catalog import media
from birdwire.x.client.requests import Reading
from birdwire.x.limits.write_order import canonical

if TYPE_CHECKING:
    from birdwire.accounts.client import AccountClient, AccountClients
    from birdwire.accounts.sessions import Sessions, XSession
    from birdwire.api.forms import Part, Take
    from birdwire.api.messages import Call, Headers
    from birdwire.gateway.concurrency import ConcurrencyLimiter
    from birdwire.gateway.refusal_details import RefusalDetails
    from birdwire.gateway.upload_limits import Upload, UploadLimits
    from birdwire.keys.cache import KeyCache
    from birdwire.keys.rate_limit import RateLimit
    from birdwire.keys.registry import Key, Keys
    from birdwire.keys.secrets import Mode
    from birdwire.outcomes.idempotency import Idempotency
    from birdwire.outcomes.journal import Journal
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.failpoints import Failpoints
    from birdwire.runtime.telemetry import Telemetry
    from birdwire.x.catalog.lookups import Lookup, LookupRunner
    from birdwire.x.catalog.operations import Operation
    from birdwire.x.catalog.prices import Prices
    from birdwire.x.limits.capabilities import Capabilities
    from birdwire.x.limits.rate_windows import RateWindows
    from birdwire.x.limits.write_order import WriteOrder

Work = Callable[[CallContext], Awaitable[Answer]]

AUTH_FAILURES_A_MINUTE = 60
RELINK_WITHIN = timedelta(seconds=1)
"""How much younger than a call's admission its link may be: replicas' clocks differ, and callers like right after."""


@dataclass(frozen=True, slots=True)
class Takes:
    """What the route `name` takes: a body of a model up to `limit` bytes, or a query; `file_limit` above 0: files too.

    `file_scopes` are those that the link needs before a file is taken. `file_names` are the parts one of which must be
    the file.
    What is not `repeatable` is done once for each call, with an Idempotency-Key made here if it brings none.
    `reserved`: it has a lane of its own, and is served however many calls there are. `action` is what the key must be
    allowed to do; without one, every key may.
    """

    name: str
    model: type[Body] = Empty
    query: bool = False
    limit: int = 16_384
    file_limit: int = 0
    file_scopes: tuple[str, ...] = ()
    file_names: tuple[str, ...] = ()
    repeatable: bool = True
    reserved: bool = False
    action: str = ""


@dataclass(slots=True)
class _Visit:
    """What is known of a caller so far; the headers go on whatever is answered in the end.

    `place` is the key that the call counts for among the running ones, empty until it runs.
    """

    key: Key | None = None
    headers: Headers = ()
    place: str = ""
    upload: Upload | None = None
    body: Parsed = field(default_factory=lambda: Parsed("none"))


class Pipeline:
    """The way every call of a key takes."""

    def __init__(
        self,
        keys: Keys,
        limits: RateLimit,
        sessions: Sessions,
        recall: KeyCache,
        clients: AccountClients,
        windows: RateWindows,
        order: WriteOrder,
        reads: LookupRunner,
        capabilities: Capabilities,
        journal: Journal,
        once: Idempotency,
        prices: Prices,
        refusals: RefusalDetails,
        crowd: ConcurrencyLimiter,
        reserved: ConcurrencyLimiter,
        uploads: UploadLimits,
        clock: Clock,
        mode: Mode,
        request_s: float,
        upload_s: float,
        telemetry: Telemetry,
        failpoints: Failpoints,
        *,
        relay: bool,
    ) -> None:
        self._keys = keys
        self._limits = limits
        self._sessions = sessions
        self._recall = recall
        self._clients = clients
        self._windows = windows
        self._order = order
        self._reads = reads
        self._capabilities = capabilities
        self._journal = journal
        self._idempotency = once
        self._prices = prices
        self._refusals = refusals
        self._crowd = crowd
        self._reserved = reserved
        self._uploads = uploads
        self._clock = clock
        self._mode: Mode = mode
        self._request_s = request_s
        self._upload_s = upload_s
        self._telemetry = telemetry
        self._failpoints = failpoints
        self._relay = relay

    async def serve(self, operation: Operation, takes: Takes, call: Call) -> Answer:
        """One operation for one caller."""
        return await self.answer(takes, partial(self._operate, operation), call)

    async def look(self, look_up: Lookup, call: Call) -> Answer:
        """One look-up for one caller."""
        takes = Takes(look_up.name, look_up.query, query=True, action=look_up.name)
        return await self.answer(takes, partial(self._look, look_up), call)

    async def answer(self, takes: Takes, work: Work, call: Call) -> Answer:
        """Any work for a caller with a key: admitted first, refused in the one shape, its allowance on every answer."""
        visit = _Visit()
        call.note["operation"] = takes.name
        crowd = self._reserved if takes.reserved else self._crowd
        try:
            crowd.look()
            key, parsed, relayed = await self._enter(takes, call, visit)
            if not visit.place:
                await crowd.enter(key.key_id)
                visit.place = key.key_id
            key = await self._again(key, call, takes.action)
            answer = await self._once(takes, work, call, key, parsed, visit)
            if relayed and answer.status < 400:
                answer = relay_dialect.say(answer)
        except StorageDownError:
            answer = self._refuse(GatewayError("storage_unavailable", half="nothing was sent to X"), takes, call)
        except GatewayError as error:
            answer = self._refuse(error, takes, call)
        finally:
            visit.body.close()
            if visit.upload is not None:
                visit.upload.close()
            if visit.place:
                crowd.leave(visit.place)
        return answer.adding(visit.headers)

    def _refuse(self, error: GatewayError, takes: Takes, call: Call) -> Answer:
        if takes.action:  # else a caller who polls would push out what it asks for
            self._journal.rejections.add(call, error)
        return refuse(error, call)

    # The way in: whose call it is, whether it may be made, what it says.

    async def _enter(self, takes: Takes, call: Call, visit: _Visit) -> tuple[Key, Parsed, bool]:
        """The key, the body, and whether it speaks the dialect. A header's key is admitted before the body is read."""
        raw_key = raw_key_of(call)
        if raw_key is not None:
            visit.key = await self.admit(raw_key, call, visit)
        if takes.query:
            return _known(visit), read_query(call.query), False
        if call.method == "GET":
            return _without_query(_known(visit), call), Parsed("none"), False
        parsed = visit.body = await self._read(takes, call, visit)
        relay = relay_dialect.hear(parsed, takes.model) if self._relay else None
        if relay is not None:
            if raw_key is not None and not hmac.compare_digest(
                relay.raw_key.encode("utf-8", "replace"), raw_key.encode()
            ):
                raise GatewayError("key_mismatch")
            parsed = relay.parsed
            visit.key = visit.key or await self.admit(relay.raw_key, call, visit)
        key = _without_query(_known(visit), call)
        if relay is None and parsed.kind != "json":
            check_kind(parsed.kind, takes.model, takes.file_names)
        return key, parsed, relay is not None

    async def _read(self, takes: Takes, call: Call, visit: _Visit) -> Parsed:
        """Return the body. Without a key it must arrive in an ordinary body's time until a part has named one."""
        if visit.key is None and takes.file_limit:
            ends_at = asyncio.get_running_loop().time() + self._request_s
            call.stream = partial(within, call.stream(), lambda: ends_at if visit.key is None else None)
        fields: dict[str, Any] = {}
        before_file = partial(self._before_file, takes, call, visit)
        try:
            return await read(call, takes.limit, before_file, takes.file_names, fields)
        except GatewayError as error:
            if visit.key is None and error.problem.status in (400, 415):
                await self._admit_field(fields, call, visit)
            raise

    async def admit(self, raw_key: str, call: Call, visit: _Visit) -> Key:
        """Find the caller's key and take one call from its allowance, which goes on every answer from here on.

        Raises:
            GatewayError: 401 or 403: no such caller here; 429: the allowance, or the patience with bad keys, is up.
        """
        try:
            key = await self._keys.find(raw_key, self._mode, call.peer)
        except GatewayError as error:
            if error.reason == "auth_failures":  # this process has counted enough of them: no need to ask Redis, too
                raise
            failures = await self._limits.take(failures_from(call.peer), AUTH_FAILURES_A_MINUTE)
            if error.problem.status == 401 and not failures.granted:
                raise GatewayError("auth_failures", retry_after_s=failures.reset_in_s) from None
            raise
        call.note["key_id"], call.admitted_at = key.key_id, self._clock.now()
        allowance = await self._limits.take(key.key_id, key.rpm)
        visit.headers = allowance.headers()
        if not allowance.granted:
            raise GatewayError("rpm_exceeded", retry_after_s=allowance.reset_in_s, limit=allowance.limit)
        if not key.rules.allow_address(call.peer):
            raise GatewayError("ip_not_allowed")
        return key

    async def _admit_field(self, fields: dict[str, Any], call: Call, visit: _Visit) -> Key:
        """Admit the key that a form's fields carry; without one, key_missing."""
        raw_key = relay_dialect.key_in(fields) if self._relay else None
        if raw_key is None:
            raise GatewayError("key_missing")
        visit.key = await self.admit(raw_key, call, visit)
        return visit.key

    async def _again(self, key: Key, call: Call, action: str) -> Key:
        """Return the key as it is now: it may have changed while the body came in, or while the call was queued.

        Raises:
            GatewayError: it may no longer be used, or not from there, or not for this. The call's allowance is not
                charged again.
        """
        key = await self._keys.again(key)
        if not key.rules.allow_address(call.peer):
            raise GatewayError("ip_not_allowed")
        _allow(key, action)
        return key

    async def _once(  # the frame's own parts, and nothing else
        self, takes: Takes, work: Work, call: Call, key: Key, parsed: Parsed, visit: _Visit
    ) -> Answer:
        """Do the work, or tell again how it ended: a call with an Idempotency-Key is done once."""
        name = idempotency.name_of(call) if call.method == "POST" else None
        if name is None and (call.method != "POST" or takes.repeatable):
            return await work(CallContext(call, key, parsed))
        if name is None:
            name = idempotency.new_name()
            visit.headers += (("idempotency-key", name),)
        asked = idempotency.fingerprint(call, parsed)
        named = idempotency.Named(key.key_id, name, asked, call.request_id, takes.repeatable)
        async with self._idempotency.attempt(named) as attempt:
            if attempt.replay is not None:
                return attempt.replay
            attempt.answer = await work(CallContext(call, key, parsed))
            return attempt.answer

    async def _before_file(self, takes: Takes, call: Call, visit: _Visit, fields: dict[str, Any]) -> tuple[int, Take]:
        """Check all that needs no file before the first byte of one is taken, then wait for a place among the calls.

        The key is the header's, or one in an earlier part. Returns the limit of the whole body, and what reserves room
        for it.
        """
        key = visit.key or await self._admit_field(fields, call, visit)
        if not takes.file_limit:  # no call of this route takes a file: what it sends stays small
            return takes.limit, lambda _: None
        _allow(key, takes.action)
        await self._sessions.session_for(key, takes.file_scopes)
        visit.upload = self._uploads.start(key.key_id, _announced(call))
        await self._crowd.enter(key.key_id)
        visit.place = key.key_id
        return max(takes.limit, takes.file_limit), visit.upload.take

    # One operation, step by step.

    async def _operate(self, operation: Operation, context: CallContext) -> Answer:
        call, key, parsed = context.call, context.key, context.parsed
        body = check(media.fields_of(operation, parsed), operation.body, {"text_limit": key.rules.text_limit})
        files = media.files_of(operation, parsed)
        session = await self._sessions.session_for(key, operation.scopes)
        self._check_link(session, call)
        self._windows.check(operation.endpoint, session.user_id)  # before it costs one of the key's writes
        await self._keys.spend_write(key)
        permit = WritePermit(
            self._keys, self._sessions, self._recall, self._clock, key, partial(self._readmit, operation, call)
        )
        line = self._clients.open(session, permit)
        entry = Entry(
            call.request_id,
            key.key_id,
            session.user_id,
            operation.name,
            canonical(str(getattr(body, operation.target, ""))),
            fingerprint(operation.name, parsed.fields),
            self._prices.of(operation, body),
            signature_of(body),
        )
        record = self._journal.open(entry)
        try:
            if files and not operation.takes_file:
                ids = await self._attach(files, line)
                key = await self._again(key, call, operation.name)  # an upload takes long, and rules may have changed
                limits = {"text_limit": key.rules.text_limit}
                body = check(media.with_ids(parsed.fields, ids), operation.body, limits)
            if not operation.repeatable:
                await record.begin()
                await self._failpoints.reach("post_after_started")
                await self._idempotency.hold(key.key_id, call.request_id)
            if operation.takes_file:
                data = await self._upload(files[0], line)
            else:
                asking = self._ask(operation, line, body, entry)
                data = await (asking if operation.repeatable else self._failpoints.during("post_after_send", asking))
        except GatewayError as error:
            raise await record.failed(error) from None
        except StorageDownError:
            if record.started:
                raise await record.failed(GatewayError("outcome_unknown", outcome="unknown")) from None
            half = "nothing was published"  # files may be at X by now, where nobody sees them
            raise await record.failed(GatewayError("storage_unavailable", half=half)) from None
        except Exception as error:
            if not record.started:
                raise
            self._telemetry.crash(
                call.request_id, error
            )  # a bug of ours, but X may have it: "try again" would be wrong
            raise await record.failed(GatewayError("outcome_unknown", outcome="unknown")) from None
        await record.confirmed(operation.status, data)
        if any(data.get(name) != value for name, value in operation.expect.items()):
            call.note["unexpected"] = True  # X's word is passed on, but it is not what was asked for
        return Answer.of({"data": data}, operation.status)

    def _check_link(self, session: XSession, call: Call) -> None:
        """Check that a call whose body or turn took long does not act through a link that was made since.

        Raises:
            GatewayError: x_not_linked: what the caller meant for the earlier account must not go to another one.
        """
        linked_at, admitted_at = session.linked_at, call.admitted_at
        younger = linked_at is not None and admitted_at is not None and linked_at > admitted_at
        if younger and admitted_at is not None and self._clock.now() - admitted_at > RELINK_WITHIN:
            raise GatewayError("x_not_linked")

    async def _readmit(self, operation: Operation, call: Call, key: Key) -> tuple[Key, XSession]:
        """Return a running call's key and session as they are now, or refuse it as a new call would be."""
        key = await self._again(key, call, operation.name)
        return key, await self._sessions.session_for(key, operation.scopes)

    async def _upload(self, file: Part, line: AccountClient) -> dict[str, Any]:
        try:
            async with asyncio.timeout(self._upload_s):
                return await media.upload(file, line.ask, self._clock)
        except TimeoutError:
            raise GatewayError("x_timeout", outcome="unknown") from None

    async def _attach(self, files: list[Part], line: AccountClient) -> list[str]:
        """The media ids of a post's files. Whatever fails here, the post itself was not sent."""
        try:
            return [(await self._upload(file, line))["media_id"] for file in files]
        except GatewayError as error:
            error.outcome = "not_sent"
            raise

    async def _ask(self, operation: Operation, line: AccountClient, body: Body, entry: Entry) -> dict[str, Any]:
        """The operation's call to X, in its turn, and what the answer says of X's terms for this app."""
        enterprise = operation.needs_enterprise(body)
        name = f"{operation.name} (quote)" if enterprise and operation.enterprise == "quote" else operation.name
        reading = Reading(
            operation.answer,
            enterprise=enterprise,
            recently_allowed=enterprise and await self._capabilities.recently_allowed(name),
            about=operation.about,
            already=operation.already,
        )
        asked_later = partial(self._journal.asked_later, entry, operation.opposite)
        turn = self._order.join(line.user_id, operation, entry.target, asked_later)
        try:
            data = await line.ask(operation.upstream(line.user_id, body), reading, turn)
        except GatewayError as error:
            await self._capabilities.record(name, error.reason, entry.key_id)
            raise await self._refusals.explain(error, body, line.user_id) from None
        finally:
            self._order.leave(turn)
        await self._capabilities.record(name, None, entry.key_id)
        return data

    async def _look(self, look_up: Lookup, context: CallContext) -> Answer:
        key, parsed = context.key, context.parsed
        query = check(parsed.fields, look_up.query)
        session = await self._sessions.session_for(key, look_up.scopes)
        line = self._clients.open(session)
        return Answer.of(await look_up.look(self._reads, session.user_id, query, line.ask))


def _allow(key: Key, action: str) -> None:
    """Check that the key may do this; without an action, every key may."""
    if action and not key.rules.allow(action):
        raise GatewayError("key_not_allowed", what=action)


def _known(visit: _Visit) -> Key:
    if visit.key is None:
        raise GatewayError("key_missing")
    return visit.key


def _without_query(key: Key, call: Call) -> Key:
    if call.query:
        raise GatewayError("unexpected_query", field=excerpt(call.query.partition("&")[0].partition("=")[0]))
    return key


def _announced(call: Call) -> int:
    """Return the Content-Length, or 0 for a body in chunks."""
    length = call.header("content-length") or "0"
    return int(length) if length.isascii() and length.isdigit() else 0
