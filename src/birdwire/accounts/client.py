"""The line to X of one call: what is asked, with what token, how often and for how long. Never a word to the caller.

It alone repeats a call: what was not sent, and what may be sent twice without harm. It must never repeat after a 4xx or
429, past the deadline, beyond the budget of retries, or what a newer call has undone.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from birdwire.accounts.write_permit import StaleError
from birdwire.api.errors import GatewayError
from birdwire.store.database import StorageDownError
from birdwire.x.client.api import Unauthorized, read

if TYPE_CHECKING:
    from collections.abc import Callable

    from birdwire.accounts.sessions import Sessions, XSession
    from birdwire.accounts.write_permit import WritePermit
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.metrics import Metrics
    from birdwire.x.client.api import X
    from birdwire.x.client.pool import Reply
    from birdwire.x.client.requests import Reading, XRequest
    from birdwire.x.limits.circuit_breaker import CircuitBreaker
    from birdwire.x.limits.rate_windows import RateWindows
    from birdwire.x.limits.write_order import Ticket, WriteOrder

MOST_RETRIES = 2
FEWEST_RETRYING = 3
RETRYING_SHARE = 0.2
"""Of the calls that run, so many may be at a retry, and FEWEST_RETRYING always."""
FIRST_PAUSE_S = 0.25
LEAST_LEFT_S = 1.0
"""A try for which less time is left is not begun."""
SLOW_CONNECT_S = 1.0
"""An address that takes longer to refuse is swallowing connections: the next try would wait as long for nothing."""

_PASSING = frozenset({"x_unreachable", "x_timeout", "x_5xx"})
"""X's failures that may pass; only these are worth another try, and only these count for the breaker."""


class AccountClients:
    """Every line of this process: they share the budget of retries. The counts are for the metrics."""

    def __init__(
        self,
        sessions: Sessions,
        x: X,
        ledger: RateWindows,
        breaker: CircuitBreaker,
        order: WriteOrder,
        clock: Clock,
        deadline_s: float,
        metrics: Metrics,
    ) -> None:
        self.sessions = sessions
        self.x = x
        self.ledger = ledger
        self.breaker = breaker
        self.order = order
        self.clock = clock
        self.deadline_s = deadline_s
        self.running = 0
        self.retrying = 0
        self.retries = 0
        metrics.watch("birdwire_x_retries_total", lambda: self.retries)
        metrics.watch("birdwire_x_spared_total", lambda: {("window",): ledger.refused, ("breaker",): breaker.refused})
        metrics.watch("birdwire_x_breakers_open", lambda: len(breaker.open))

    def open(self, session: XSession, permit: WritePermit | None = None) -> AccountClient:
        """A line for one call of a linked account. Each write is checked against the `permit`, if there is one."""
        return AccountClient(self, session, permit)

    def may_retry(self) -> bool:
        """Whether the budget has room for one more call at its retries."""
        return self.retrying < max(FEWEST_RETRYING, int(self.running * RETRYING_SHARE))


class AccountClient:
    """One call's way to X: its session, renewed once if X answers 401."""

    def __init__(self, lines: AccountClients, session: XSession, permit: WritePermit | None) -> None:
        self._lines = lines
        self._clock = lines.clock
        self._session = session
        self._permit = permit
        self._renewed = False
        self._unsure = False  # whether X may have applied an earlier try of what is asked now

    @property
    def user_id(self) -> str:
        """The linked account."""
        return self._session.user_id

    async def ask(self, request: XRequest, reading: Reading, turn: Ticket | None = None) -> dict[str, Any]:
        """Ask X within the deadline, waiting for one's turn included; what that means for a repetition is above.

        Raises:
            GatewayError: X's refusal, or why it could not be asked. `superseded`: a newer call undoes this one.
        """
        lines, ends_at = self._lines, self._clock.monotonic() + self._lines.deadline_s
        self._unsure = False
        lines.ledger.check(request.endpoint, self.user_id)
        if turn is not None:
            lines.breaker.check(request.endpoint, self.user_id)  # a refusal need not wait for its turn
            await turn.come(lines.deadline_s)
        lines.breaker.admit(request.endpoint, self.user_id)
        lines.running += 1
        try:
            return await self._ask_renewing(request, reading, turn, ends_at)
        finally:
            lines.running -= 1

    async def _ask_renewing(
        self, request: XRequest, reading: Reading, turn: Ticket | None, ends_at: float
    ) -> dict[str, Any]:
        """Ask; on a 401, which was not applied, once more with a new token. After a second 401 the link stays."""
        try:
            return await self._persist(request, reading, turn, ends_at)
        except Unauthorized as error:
            if self._renewed:
                raise self._give_up(error) from None
            upstream = error.upstream
        try:
            async with asyncio.timeout(max(0.0, ends_at - self._clock.monotonic())):
                self._session, self._renewed = await self._lines.sessions.renew(self._session, upstream), True
        except TimeoutError:
            raise self._not_sent(GatewayError("x_timeout")) from None  # the renewal itself goes on
        except StorageDownError:  # X's 401 was its last word
            raise self._not_sent(GatewayError("storage_unavailable", half="X did not carry out the call")) from None
        except GatewayError as error:
            raise self._not_sent(error) from None
        try:
            return await self._persist(request, reading, turn, ends_at)
        except Unauthorized as error:
            raise self._give_up(error) from None

    async def _persist(
        self, request: XRequest, reading: Reading, turn: Ticket | None, ends_at: float
    ) -> dict[str, Any]:
        """Ask until there is an answer, or no reason to ask again."""
        lines, tries = self._lines, 0
        failure: GatewayError | None = None
        try:
            while True:
                began_at = self._clock.monotonic()
                try:
                    return read(await self._send_permitted(request, ends_at), reading, self._clock.now())
                except StorageDownError:
                    raise failure or self._not_sent(
                        GatewayError("storage_unavailable", half="nothing was sent to X")
                    ) from None
                except GatewayError as error:
                    self._not_sent(error)
                    if not self._may_repeat(request, error, tries, began_at, ends_at):
                        raise
                    failure, self._unsure = error, error.outcome == "unknown"
                lines.retrying += not tries
                tries += 1
                await self._clock.pause(FIRST_PAUSE_S * 2**tries)
                if turn is not None and await self._overtaken(turn, failure):
                    raise GatewayError("superseded", outcome=failure.outcome, upstream=failure.upstream)
                lines.retries += 1
        finally:
            lines.retrying -= tries > 0

    def _may_repeat(self, request: XRequest, error: GatewayError, tries: int, began_at: float, ends_at: float) -> bool:
        """Whether another try does no harm, has a chance, and is left in time, quota, budget and breaker."""
        now, lines = self._clock.monotonic(), self._lines
        harmless = error.outcome == "not_sent" or request.repeatable or request.method == "GET"
        hopeless = error.reason == "x_unreachable" and now - began_at >= SLOW_CONNECT_S
        return (
            error.reason in _PASSING
            and harmless
            and not hopeless
            and tries < MOST_RETRIES
            and ends_at - now > LEAST_LEFT_S + FIRST_PAUSE_S * 2 ** (tries + 1)
            and self._quota_allows(request, error, tries)
            and lines.breaker.closed(request.endpoint, self.user_id)
            and (tries > 0 or lines.may_retry())
        )

    def _quota_allows(self, request: XRequest, error: GatewayError, tries: int) -> bool:
        """Whether X's windows, as last told, have a call left beside those that may have been counted since."""
        spare = self._lines.ledger.spare(request.endpoint, self.user_id)
        return spare is None or spare > (0 if error.outcome == "not_sent" else tries + 1)

    async def _overtaken(self, turn: Ticket, failure: GatewayError) -> bool:
        try:
            return await turn.overtaken()
        except StorageDownError:
            raise failure from None  # nobody can tell, so it is not tried again

    async def _send_permitted(self, request: XRequest, ends_at: float) -> Reply:
        """Send once; a write only while the call's key and link allow it, as they are at that moment.

        Raises:
            GatewayError: there is no reply, or the call may no longer write.
            StorageDownError: nothing was sent, since nobody can tell whether it may.
        """
        permit = self._permit
        if permit is None or request.method == "GET":
            return await self._send(request, ends_at)
        while True:
            try:
                return await self._send(request, ends_at, partial(permit.check, self._session))
            except StaleError:
                self._session = await self._readmitted(permit, ends_at)

    async def _readmitted(self, permit: WritePermit, ends_at: float) -> XSession:
        try:
            async with asyncio.timeout(max(0.0, ends_at - self._clock.monotonic())):
                return await permit.renew(self._session)
        except TimeoutError:
            raise GatewayError("x_timeout", outcome="not_sent") from None
        except GatewayError as error:
            error.outcome = "not_sent"  # whatever X answered, it was asked about the link
            raise

    async def _send(self, request: XRequest, ends_at: float, may_send: Callable[[], None] | None = None) -> Reply:
        """Send once, and tell ledger and breaker what X did."""
        lines, left_s = self._lines, ends_at - self._clock.monotonic()
        if left_s <= 0:
            raise GatewayError("x_timeout", outcome="not_sent")
        try:
            reply = await lines.x.send(self._session.access_token, request, left_s, may_send)
        except GatewayError as error:
            if error.reason in _PASSING:
                lines.breaker.failed(request.endpoint, self.user_id)
            raise
        lines.ledger.learn(request.endpoint, self.user_id, reply)
        if reply.status >= 500:
            lines.breaker.failed(request.endpoint, self.user_id)
        else:
            lines.breaker.answered(request.endpoint, self.user_id)
        return reply

    def _not_sent(self, error: GatewayError) -> GatewayError:
        """What was not sent is unknown all the same if an earlier try may have been applied."""
        if self._unsure and error.outcome == "not_sent":
            error.outcome = "unknown"
        return error

    def _give_up(self, error: Unauthorized) -> GatewayError:
        self._lines.sessions.hold_off(self._session)
        account = f"@{self._session.username}"
        return GatewayError("x_session_expired", account=account, outcome="refused", upstream=error.upstream)
