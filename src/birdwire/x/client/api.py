"""X's API: sends one request with an access token, and counts it.

It never repeats a request and never renews a token. What a reply means is in `replies`.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from pydantic import Field

from birdwire.api.errors import SEND_REASONS, GatewayError
from birdwire.api.messages import JSON_TYPE, encode
from birdwire.x.client.pool import Fields, Request, SendFailed, fields
from birdwire.x.client.replies import read
from birdwire.x.client.requests import ID_PATTERN, Reading, XData, XRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from birdwire.runtime.clock import Clock
    from birdwire.runtime.metrics import Metrics
    from birdwire.x.client.pool import ConnectionPool, Reply

ME = XRequest("GET", "/2/users/me")

_JSON = fields(("content-type", JSON_TYPE))

_IDS = re.compile(r"(?<=username)/[^/]+|(?<=[a-z])/(?:[0-9]+|\{[^}]*\})(?![^/])")
_COUNTED_ALONE = frozenset({401, 429})
"""Statuses that the metrics count apart from their class."""


def bearer(access_token: str) -> Fields:
    """Return the header that carries an access token."""
    return fields(("authorization", f"Bearer {access_token}"))


class Account(XData):
    """An X account, as users/me names it."""

    id: str = Field(pattern=ID_PATTERN)
    username: str = Field(pattern=r"^[A-Za-z0-9_]{1,50}$")


class X:
    """X's API over one connection pool."""

    def __init__(self, pool: ConnectionPool, clock: Clock, metrics: Metrics) -> None:
        self._pool = pool
        self._clock = clock
        self._metrics = metrics
        # The Date of X's last reply, and when it came, in UNIX seconds.
        self._last_date: tuple[bytes, float] | None = None

    def skew(self) -> timedelta | None:
        """Return how far X's clock is ahead of this one, by the Date of its last reply; None if that is unknown."""
        if self._last_date is None:
            return None
        date, received_at = self._last_date
        try:
            return parsedate_to_datetime(date.decode("latin-1")) - datetime.fromtimestamp(received_at, UTC)
        except (ValueError, TypeError, OverflowError):
            return None

    def now(self) -> datetime:
        """Return the time by X's clock, as far as it is known."""
        return self._clock.now() + (self.skew() or timedelta())

    async def send(
        self, authorization: Fields, request: XRequest, deadline_s: float, may_send: Callable[[], None] | None = None
    ) -> Reply:
        """Send once, and return X's whole reply. `may_send` is as in `ConnectionPool.send`.

        Raises:
            GatewayError: there is no reply; `outcome` states whether X may have received the request.
        """
        headers, body = authorization, request.content
        if request.json is not None:
            headers, body = Fields(authorization + _JSON), encode(request.json)
        elif request.content_type:
            headers = Fields(authorization + fields(("content-type", request.content_type)))
        started_at = self._clock.monotonic()
        try:
            reply = await self._pool.send(
                Request(request.method, request.path, headers, body), deadline_s=deadline_s, may_send=may_send
            )
        except SendFailed as error:
            self._count(request, error.cause, self._clock.monotonic() - started_at)
            raise GatewayError(SEND_REASONS[error.cause], outcome="unknown" if error.sent else "not_sent") from None
        outcome = str(reply.status) if reply.status in _COUNTED_ALONE else f"{reply.status // 100}xx"
        self._count(request, outcome, self._clock.monotonic() - started_at)
        self._last_date = reply.headers.get("date", b""), self._clock.unix_s()
        return reply

    def _count(self, request: XRequest, outcome: str, took_s: float) -> None:
        endpoint = _label(request.endpoint or f"{request.method} {request.path}")
        self._metrics.add("birdwire_x_calls_total", endpoint, outcome)
        self._metrics.add("birdwire_x_outcomes_total", outcome)
        self._metrics.time("birdwire_x_call_seconds", took_s, endpoint)

    async def me(self, access_token: str, deadline_s: float) -> Account:
        """Return the account of a token. X bills this and allows 75 in 15 minutes, so call it once for each link.

        Raises:
            Unauthorized, GatewayError: as `read`, or there is no reply.
        """
        reply = await self.send(bearer(access_token), ME, deadline_s)
        return Account.model_validate(read(reply, Reading(Account, about="user"), self._clock.now))


@lru_cache(256)
def _label(endpoint: str) -> str:
    """Return an endpoint's name in the metrics."""
    return _IDS.sub("/:id", endpoint.partition("?")[0])
