"""Gate.admit(): key and allowance, for every route of a key. Gate.serve(): the way of one operation, top to bottom.

Plain data in and out: knows no web framework. No operation can skip a step, and nothing here is disabled in tests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from birdwire.body import read
from birdwire.call import Answer
from birdwire.errors import GatewayError, render
from birdwire.keys import raw_key_of
from birdwire.store.db import StorageDownError
from birdwire.x import Reading, Unauthorized

if TYPE_CHECKING:
    from birdwire.body import Body
    from birdwire.call import Call, Headers
    from birdwire.clock import Clock
    from birdwire.journal import Journal
    from birdwire.keys import Key, Keys, Mode
    from birdwire.limits import Limits
    from birdwire.oauth import OAuth
    from birdwire.operations import Operation
    from birdwire.sessions import Sessions, XSession
    from birdwire.x import X

Work = Callable[["Call", "Key"], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Admission:
    """A caller with a live key; `headers` tell its allowance and go on every answer. `refusal`: it is used up."""

    key: Key
    headers: Headers
    refusal: GatewayError | None


class Gate:
    """The way every call of a key takes."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts that a call passes, in order
        self,
        keys: Keys,
        limits: Limits,
        oauth: OAuth,
        sessions: Sessions,
        x: X,
        journal: Journal,
        clock: Clock,
        mode: Mode,
        deadline_s: float,
    ) -> None:
        self._keys = keys
        self._limits = limits
        self._oauth = oauth
        self._sessions = sessions
        self._x = x
        self._journal = journal
        self._clock = clock
        self._mode: Mode = mode
        self._deadline_s = deadline_s

    async def serve(self, operation: Operation, call: Call) -> Answer:
        """One operation for one caller."""
        call.note["operation"] = operation.name
        return await self.answer(partial(self._operate, operation), call)

    async def answer(self, work: Work, call: Call) -> Answer:
        """Any work for a caller with a key: admitted first, refused in the one shape, its allowance on every answer."""
        headers: Headers = ()
        try:
            admission = await self.admit(call)
            headers = admission.headers
            if admission.refusal is not None:
                raise admission.refusal
            answer = await work(call, admission.key)
        except StorageDownError:
            answer = refuse(GatewayError("storage_unavailable", half="nothing was asked of X"), call)
        except GatewayError as error:
            answer = refuse(error, call)
        return answer.adding(headers)

    async def admit(self, call: Call) -> Admission:
        """Find the caller's key and take one call from its allowance.

        Raises:
            GatewayError: 401 or 403: there is no such caller here.
        """
        key = await self._keys.find(raw_key_of(call), self._mode)
        call.note["key_id"] = key.key_id
        allowance = self._limits.take(key.key_id, key.rpm)
        refusal = (
            None
            if allowance.granted
            else GatewayError("rpm_exceeded", retry_after_s=allowance.reset_in_s, limit=key.rpm)
        )
        return Admission(key, allowance.headers(), refusal)

    # One operation, step by step.

    async def _operate(self, operation: Operation, call: Call, key: Key) -> Answer:
        body = read(call, operation.body)
        started_at = self._clock.now()
        session = await self._session(key)
        lacking = [scope for scope in operation.scopes if scope not in session.scopes]
        if lacking:
            raise GatewayError("x_scope_missing", scope=" ".join(lacking))
        record = partial(
            self._journal.record,
            request_id=call.request_id,
            key_id=key.key_id,
            user_id=session.user_id,
            operation=operation.name,
            target=str(getattr(body, operation.target)),
            created_at=started_at,
        )
        try:
            data = await self._ask(operation, session, body)
        except GatewayError as error:
            await record(outcome=error.outcome, status=error.problem.status, reason=error.reason)
            raise
        await record(outcome="confirmed", status=operation.status, reason=None)
        if any(data.get(name) != value for name, value in operation.expect.items()):
            call.note["unexpected"] = True  # X's word is passed on, but it is not what was asked for
        return Answer.of({"data": data}, operation.status)

    async def _session(self, key: Key) -> XSession:
        links = await self._oauth.settle(await self._sessions.links(key.key_id))
        if links.current is None:
            raise GatewayError("x_not_linked")
        return await self._sessions.open(links.current)

    async def _ask(self, operation: Operation, session: XSession, body: Body) -> dict[str, Any]:
        """Ask X; on a 401, which was not applied, once more with a new token. After a second 401 the link stays."""
        ends_at = self._clock.monotonic() + self._deadline_s
        reading = Reading(operation.answer, enterprise=operation.enterprise, already=operation.already)
        request = operation.upstream(session.user_id, body)
        try:
            return await self._x.call(session.access_token, request, reading, self._deadline_s)
        except Unauthorized:
            session = await self._sessions.renew(session)
        left_s = max(1.0, ends_at - self._clock.monotonic())
        try:
            return await self._x.call(session.access_token, request, reading, left_s)
        except Unauthorized as error:
            self._sessions.hold_off(session)
            raise GatewayError("x_session_expired", account=f"@{session.username}", upstream=error.upstream) from None


def refuse(error: GatewayError, call: Call) -> Answer:
    """The refusal as an answer, noted for the log."""
    call.note["reason"] = error.reason
    if error.upstream is not None:
        call.note["upstream_status"] = error.upstream["status"]
    return render(error, call.request_id)
