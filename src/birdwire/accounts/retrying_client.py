"""The X client of one call: its token, its attempts and its deadline. It never answers the caller.

It is the only place that repeats a request: one that was not sent, or one that may be sent twice without harm. It must
never repeat after a 4xx or 429, after the deadline, beyond the retry budget, or what a newer call has undone.

Each attempt ends in one of these ways:

| Attempt | Next |
|---|---|
| 2xx, or a 4xx that means the same | return the answer |
| 401, the first of the call | renew the token once, then start again with a full count of retries |
| 401 after a renewal | raise x_session_expired; the link stays |
| the permit is stale | read the key and the link again, then attempt again |
| not sent, and the failure may pass | retry |
| maybe applied, and the request is repeatable | retry |
| anything else | raise |
| the database does not answer | raise the failure of the last attempt, or storage_unavailable |

Once X may have applied an attempt, no later failure of the same request is reported as `not_sent`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from birdwire.api.errors import GatewayError
from birdwire.runtime.backoff import Backoff
from birdwire.store.database import StorageDownError
from birdwire.x.client.replies import Unauthorized, read
from birdwire.x.client.requests import StaleError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from birdwire.accounts.sessions import Sessions, XSession
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.metrics import Metrics
    from birdwire.x.client.api import X
    from birdwire.x.client.pool import Reply
    from birdwire.x.client.requests import Reading, XRequest
    from birdwire.x.limits.circuit_breaker import CircuitBreaker
    from birdwire.x.limits.rate_windows import RateWindows
    from birdwire.x.limits.write_order import Ticket

MAX_RETRIES = 2
BACKOFF = Backoff(initial_s=0.5)
MIN_RETRYING_CALLS = 3
MAX_RETRYING_SHARE = 0.2
"""At most this share of the running calls may be retrying, and always MIN_RETRYING_CALLS of them."""
MIN_ATTEMPT_S = 1.0
"""An attempt is not started with less time left."""
SLOW_CONNECT_S = 1.0
"""An address that takes longer to refuse drops connections silently: the next attempt would wait as long in vain."""

_TRANSIENT = frozenset({"x_unreachable", "x_timeout", "x_5xx"})
"""Failures of X that may pass: only these are worth a retry, and only these count for the circuit breaker."""


class Permit(Protocol):
    """Decides whether a call may still be sent, right before each request is: `write_permit.WritePermit`.

    `reads`: it also decides on GETs. Those of a write, such as how far X is with a file, change nothing, and the
    write's outcome depends on them.
    """

    reads: bool

    def check(self) -> None:
        """Return, or raise GatewayError, or raise StaleError if `renew` must come first. Must never wait."""

    async def renew(self, session: XSession) -> XSession:
        """Return the session to go on with, as the database has it now."""


class RetryBudget:
    """Bounds the calls of this process that are retrying, so that a failing X gets fewer requests than callers send."""

    def __init__(self) -> None:
        self.running = 0
        self.retrying = 0
        self.retries = 0

    def allows(self) -> bool:
        """Return whether one more call may start to retry."""
        return self.retrying < max(MIN_RETRYING_CALLS, int(self.running * MAX_RETRYING_SHARE))


@dataclass(frozen=True, slots=True)
class AccountClients:
    """Opens the client of each call. Its parts are shared by all of them."""

    sessions: Sessions
    x: X
    windows: RateWindows
    breaker: CircuitBreaker
    budget: RetryBudget
    clock: Clock
    deadline_s: float

    def open(self, session: XSession, permit: Permit | None = None) -> AccountClient:
        """Return a client for one call of a linked account. Each write is checked against the `permit`, if any."""
        return AccountClient(self, session, permit)

    def watch(self, metrics: Metrics) -> None:
        """Have the metrics read the retries, the calls that were refused without asking X, and the open breakers."""
        windows, breaker, budget = self.windows, self.breaker, self.budget
        metrics.watch("birdwire_x_retries_total", lambda: budget.retries)
        metrics.watch("birdwire_x_spared_total", lambda: {("window",): windows.refused, ("breaker",): breaker.refused})
        metrics.watch("birdwire_x_breakers_open", lambda: len(breaker.open))


class AccountClient:
    """One call's access to X: its session, whose token is renewed once if X answers 401."""

    __slots__ = ("_attempts", "_permit", "_renewed", "_session", "_shared")

    def __init__(self, shared: AccountClients, session: XSession, permit: Permit | None) -> None:
        self._shared = shared
        self._session = session
        self._permit = permit
        self._renewed = False
        self._attempts: _Attempts | None = None

    @property
    def user_id(self) -> str:
        """The linked account."""
        return self._session.user_id

    @property
    def maybe_billed(self) -> int:
        """How many attempts of the last request X may have carried out and billed besides the one that it ended with.

        X reported nothing about these attempts: each was lost on the way, or answered 5xx.
        """
        return 0 if self._attempts is None else self._attempts.maybe_billed

    async def ask(self, request: XRequest, reading: Reading, ticket: Ticket | None = None) -> dict[str, Any]:
        """Send a request to X, and return its answer. The deadline includes the wait for the ticket's turn.

        Raises:
            GatewayError: X's refusal, or the reason why X could not be asked. `superseded`: a newer call undoes this.
        """
        shared, account, clock = self._shared, self._session.user_id, self._shared.clock
        ends_at = clock.monotonic() + shared.deadline_s
        # Of an earlier request of the call, such as the upload of a file.
        self._attempts = None
        shared.windows.check(request.endpoint, account)
        if ticket is not None and not ticket.is_first:
            # An open breaker refuses the call before it waits for its turn.
            shared.breaker.check(request.endpoint, account)
            await ticket.wait_turn(shared.deadline_s)
        shared.breaker.admit(request.endpoint, account)
        stale = False
        attempts = self._attempts = _Attempts(shared.budget, ends_at)
        try:
            while True:
                if not stale:
                    attempts.started_at = clock.monotonic()
                try:
                    if stale and self._permit is not None:
                        stale = False
                        self._session = await self._readmit(self._permit, ends_at)
                    reply = await self._sending(request, attempts)
                    self._record(request, reply, attempts)
                    return read(reply, reading, clock.now)
                except StaleError:
                    stale, attempts.awaits_reply = True, False
                    continue
                except StorageDownError:
                    unsent = GatewayError("storage_unavailable", half="nothing was sent to X")
                    raise attempts.failure or attempts.failed(unsent) from None
                except GatewayError as error:
                    failure = self._failed(request, error, attempts)
                if isinstance(failure, Unauthorized):
                    await self._renew(failure, attempts)
                elif self._may_retry(request, failure, attempts):
                    await self._prepare_retry(ticket, failure, attempts)
                else:
                    raise failure
        finally:
            attempts.end()

    def _sending(self, request: XRequest, attempts: _Attempts) -> Coroutine[Any, Any, Reply]:
        """Return the coroutine that sends once. A request passes the permit's check right before its first byte.

        The coroutine raises GatewayError if there is no reply or the call may no longer go on, and StaleError if the
        permit must be renewed first.

        Raises:
            GatewayError: x_timeout: no time is left. Nothing was sent.
        """
        session, permit = self._session, self._permit
        left_s = attempts.ends_at - self._shared.clock.monotonic()
        if left_s <= 0:
            raise GatewayError("x_timeout", outcome="not_sent")
        may_send = None if permit is None or (request.method == "GET" and not permit.reads) else permit.check
        attempts.awaits_reply = True
        return self._shared.x.send(session.authorization, request, left_s, may_send)

    def _record(self, request: XRequest, reply: Reply, attempts: _Attempts) -> None:
        """Report X's reply to the rate windows and the circuit breaker."""
        shared, account = self._shared, self._session.user_id
        attempts.awaits_reply, attempts.failure = False, None
        shared.windows.record(request.endpoint, account, reply)
        if reply.status >= 500:
            shared.breaker.record_failure(request.endpoint, account)
        else:
            shared.breaker.record_answer(request.endpoint, account)

    def _failed(self, request: XRequest, error: GatewayError, attempts: _Attempts) -> GatewayError:
        """Report a missing reply to the circuit breaker; return the failure of the attempt."""
        if attempts.awaits_reply and error.reason in _TRANSIENT:
            self._shared.breaker.record_failure(request.endpoint, self.user_id)
        attempts.awaits_reply = False
        return attempts.failed(error)

    async def _readmit(self, permit: Permit, ends_at: float) -> XSession:
        """Return the session with which the call may still write.

        Raises:
            GatewayError: the call may no longer write. Nothing was sent.
            StorageDownError: the database cannot answer whether it may.
        """
        try:
            async with asyncio.timeout(self._left_s(ends_at)):
                return await permit.renew(self._session)
        except TimeoutError:
            raise GatewayError("x_timeout", outcome="not_sent") from None
        except GatewayError as error:
            # If X was asked, then about the link. The request itself was not sent.
            error.outcome = "not_sent"
            raise

    async def _renew(self, refusal: Unauthorized, attempts: _Attempts) -> None:
        """Renew the token after a 401, which proves that X did not apply the attempt.

        Raises:
            GatewayError: the token could not be renewed, or X refused the renewed one.
        """
        sessions, session = self._shared.sessions, self._session
        if self._renewed:
            sessions.hold_off(session)
            account = f"@{session.username}"
            raise GatewayError("x_session_expired", account=account, outcome="refused", upstream=refusal.upstream)
        attempts.start_again()
        try:
            async with asyncio.timeout(self._left_s(attempts.ends_at)):
                self._session = await sessions.renew(session, refusal.upstream)
        except TimeoutError:
            # The renewal continues without this call.
            failure = GatewayError("x_timeout")
        except StorageDownError:
            failure = GatewayError("storage_unavailable", half="X did not carry out the call")
        except GatewayError as error:
            failure = error
        else:
            self._renewed = True
            return
        raise attempts.failed(failure)

    def _may_retry(self, request: XRequest, failure: GatewayError, attempts: _Attempts) -> bool:
        """Return whether a retry is harmless and promising, and time, quota, budget and breaker allow it."""
        shared, now = self._shared, self._shared.clock.monotonic()
        harmless = failure.outcome == "not_sent" or request.repeatable or request.method == "GET"
        hopeless = failure.reason == "x_unreachable" and now - attempts.started_at >= SLOW_CONNECT_S
        return (
            failure.reason in _TRANSIENT
            and harmless
            and not hopeless
            and attempts.retries < MAX_RETRIES
            and attempts.ends_at - now > MIN_ATTEMPT_S + BACKOFF.pause_s(attempts.retries)
            and self._quota_allows(request, failure, attempts)
            and shared.breaker.is_closed(request.endpoint, self.user_id)
            and (attempts.retries > 0 or shared.budget.allows())
        )

    def _quota_allows(self, request: XRequest, failure: GatewayError, attempts: _Attempts) -> bool:
        """Return whether X's windows have a call left, after those that X may have counted since its last report."""
        remaining = self._shared.windows.remaining(request.endpoint, self.user_id)
        return remaining is None or remaining > (0 if failure.outcome == "not_sent" else attempts.retries + 1)

    async def _prepare_retry(self, ticket: Ticket | None, failure: GatewayError, attempts: _Attempts) -> None:
        """Pause before a retry.

        Raises:
            GatewayError: `superseded`, or the failure itself if the database cannot answer whether it is.
        """
        pause_s = BACKOFF.pause_s(attempts.retries)
        attempts.count_retry()
        await self._shared.clock.pause(pause_s)
        if ticket is not None:
            try:
                superseded = await ticket.superseded()
            except StorageDownError:
                raise failure from None
            if superseded:
                raise GatewayError("superseded", outcome=failure.outcome, upstream=failure.upstream)
        self._shared.budget.retries += 1

    def _left_s(self, ends_at: float) -> float:
        return max(0.0, ends_at - self._shared.clock.monotonic())


class _Attempts:
    """The attempts at one request. Until their `end`, the call counts as running in the budget.

    `awaits_reply`: the current attempt is at X, so its failure is X's.
    """

    __slots__ = ("_budget", "_maybe_applied", "awaits_reply", "ends_at", "failure", "retries", "started_at")

    def __init__(self, budget: RetryBudget, ends_at: float) -> None:
        budget.running += 1
        self._budget = budget
        # How many attempts X may have applied.
        self._maybe_applied = 0
        self.awaits_reply = False
        self.ends_at = ends_at
        self.started_at = 0.0
        self.retries = 0
        self.failure: GatewayError | None = None

    def end(self) -> None:
        """Stop counting the call."""
        self._budget.retrying -= self.retries > 0
        self._budget.running -= 1

    def start_again(self) -> None:
        """Forget the failures so far, but not that X may have applied the request."""
        self._budget.retrying -= self.retries > 0
        self.retries, self.failure = 0, None

    def count_retry(self) -> None:
        """Count one more retry; at the first one, the call starts to count as retrying in the budget."""
        self._budget.retrying += not self.retries
        self.retries += 1

    def failed(self, error: GatewayError) -> GatewayError:
        """Record and return a failure: `not_sent` becomes `unknown` if X may have applied an earlier attempt."""
        if self._maybe_applied and error.outcome == "not_sent":
            error.outcome = "unknown"
        elif error.outcome == "unknown":
            self._maybe_applied += 1
        self.failure = error
        return error

    @property
    def maybe_billed(self) -> int:
        """How many attempts X may have applied besides the one with whose outcome the request ended."""
        ended_unknown = self.failure is not None and self.failure.outcome == "unknown"
        return self._maybe_applied - ended_unknown
