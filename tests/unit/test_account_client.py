"""A call to X whose own parts fail: the outcome that its caller gets."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from birdwire.accounts.retrying_client import AccountClients, RetryBudget
from birdwire.accounts.sessions import Sessions, XSession
from birdwire.api.errors import GatewayError
from birdwire.runtime.telemetry import Telemetry
from birdwire.store.database import Database, StorageDownError
from birdwire.x.catalog.operations import Liked, Posted
from birdwire.x.client.pool import Reply
from birdwire.x.client.requests import Reading, StaleError, XRequest
from birdwire.x.limits.circuit_breaker import CircuitBreaker
from birdwire.x.limits.rate_windows import RateWindows
from harness.gateway import MovableClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from birdwire.accounts.write_permit import WritePermit
    from birdwire.x.client.api import X

SESSION = XSession("xs_1", 1, "token", "1", "ada", frozenset())


class _Unauthorized:
    """Stands for X, which answers 401, and for the sessions, whose store is away."""

    def __init__(self) -> None:
        self.asked = 0

    async def send(self, *_: Any) -> Reply:
        """As X.send."""
        self.asked += 1
        return Reply(401, {}, b"{}")

    async def renew(self, *_: Any) -> XSession:
        """As Sessions.renew."""
        raise StorageDownError("OperationalError")


class _Permitted:
    """Stands for X, which fails as often as `failures` says, and for a permit that cannot be renewed after that."""

    def __init__(self, failures: int) -> None:
        self.asked, self.failures = 0, failures

    async def send(self, _token: str, _request: XRequest, _deadline_s: float, may_send: Callable[[], None]) -> Reply:
        """As X.send."""
        may_send()
        self.asked += 1
        return Reply(503, {}, b"{}")

    def check(self) -> None:
        """As Permit.check."""
        if self.asked == self.failures:
            raise StaleError

    async def renew(self, _session: XSession) -> XSession:
        """As Permit.renew."""
        raise StorageDownError("OperationalError")


class _Unsure:
    """Stands for X, which loses the first try and answers 401 to the second, and for a key and sessions that fail."""

    def __init__(self, renewal: Exception | None) -> None:
        self.asked, self.renewal = 0, renewal

    async def send(self, _token: str, _request: XRequest, _deadline_s: float, may_send: Callable[[], None]) -> Reply:
        """As X.send."""
        may_send()
        self.asked += 1
        if self.asked == 1:
            raise GatewayError("x_timeout", outcome="unknown")
        return Reply(401, {}, b"{}")

    def check(self) -> None:
        """As Permit.check."""
        if self.asked == 2:
            raise GatewayError("key_revoked")

    async def renew(self, *_: Any) -> XSession:
        """As Sessions.renew."""
        if self.renewal is not None:
            raise self.renewal
        return SESSION


def _clients(folder: Path, both: object) -> AccountClients:
    clock = MovableClock()
    return AccountClients(
        cast("Sessions", both),
        cast("X", both),
        RateWindows(Database(f"sqlite:///{folder / 'none.db'}"), clock, "client"),
        CircuitBreaker(clock, Telemetry(io.StringIO(), clock)),
        RetryBudget(),
        clock,
        15.0,
    )


@pytest.mark.parametrize(
    ("failures", "told"), [(0, ("storage_unavailable", "not_sent")), (1, ("x_5xx", "unknown"))], ids=["first", "retry"]
)
async def test_nothing_is_sent_if_the_store_cannot_confirm_the_permit(
    tmp_path: Path, failures: int, told: tuple[str, str]
) -> None:
    """A retry that is not sent leaves the answer to the try before it."""
    both = _Permitted(failures)
    client = _clients(tmp_path, both).open(SESSION, cast("WritePermit", both))
    like = XRequest("POST", "/2/users/1/likes", endpoint="POST /2/users/{id}/likes", repeatable=True)
    with pytest.raises(GatewayError) as error:
        await client.ask(like, Reading(Liked))
    assert ((error.value.reason, error.value.outcome), both.asked) == (told, failures)


async def test_a_401_that_cannot_be_renewed_for_want_of_the_store_was_not_done(tmp_path: Path) -> None:
    """The post need not be searched for: X refused it, and was not called again."""
    both = _Unauthorized()
    clients = _clients(tmp_path, both)
    with pytest.raises(GatewayError) as error:
        await clients.open(SESSION).ask(XRequest("POST", "/2/tweets", endpoint="POST /2/tweets"), Reading(Posted))
    assert (error.value.reason, error.value.outcome, both.asked) == ("storage_unavailable", "not_sent", 1)


@pytest.mark.parametrize(
    ("renewal", "reason"),
    [
        (None, "key_revoked"),
        (StorageDownError("OperationalError"), "storage_unavailable"),
        (GatewayError("x_renewal_failed"), "x_renewal_failed"),
        (TimeoutError(), "x_timeout"),
    ],
    ids=["permit", "store", "x", "deadline"],
)
async def test_a_lost_try_stays_unknown_when_the_try_after_its_renewal_is_not_sent(
    tmp_path: Path, renewal: Exception | None, reason: str
) -> None:
    """X's 401 was about the second try; the first one may have been applied."""
    both = _Unsure(renewal)
    client = _clients(tmp_path, both).open(SESSION, cast("WritePermit", both))
    like = XRequest("POST", "/2/users/1/likes", endpoint="POST /2/users/{id}/likes", repeatable=True)
    with pytest.raises(GatewayError) as error:
        await client.ask(like, Reading(Liked))
    assert (error.value.reason, error.value.outcome, both.asked) == (reason, "unknown", 2)


class _Renewing:
    """Stands for X, which answers 401 to the first token, and for the sessions, which have a second one."""

    def __init__(self) -> None:
        self.authorized: list[str] = []

    async def send(self, authorization: str, *_: Any) -> Reply:
        """As X.send."""
        self.authorized.append(authorization)
        return Reply(401, {}, b"{}") if len(self.authorized) == 1 else Reply(200, {}, b'{"data":{"liked":true}}')

    async def renew(self, session: XSession, _upstream: object) -> XSession:
        """As Sessions.renew."""
        return replace(session, gen=2, access_token="newer")


async def test_the_header_of_a_token_goes_with_it(tmp_path: Path) -> None:
    """What is kept of one session is never sent for the next one, and does not show."""
    both = _Renewing()
    like = XRequest("POST", "/2/users/1/likes", endpoint="POST /2/users/{id}/likes", repeatable=True)
    assert await _clients(tmp_path, both).open(SESSION).ask(like, Reading(Liked)) == {"liked": True}
    assert both.authorized == ["authorization: Bearer token\r\n", "authorization: Bearer newer\r\n"]
    assert "Bearer" not in repr(SESSION)


class _Losing:
    """Stands for X, which answers in this order: a status, or an error that states whether it got the request."""

    def __init__(self, *answers: int | GatewayError) -> None:
        self.answers = list(answers)

    async def send(self, *_: Any) -> Reply:
        """As X.send."""
        answer = self.answers.pop(0)
        if isinstance(answer, GatewayError):
            raise answer
        return Reply(answer, {}, b'{"data":{"liked":true}}' if answer == 200 else b"{}")

    async def renew(self, session: XSession, _upstream: object) -> XSession:
        """As Sessions.renew."""
        return replace(session, gen=2)


def lost() -> GatewayError:
    """The failure of an attempt that X may have got."""
    return GatewayError("x_timeout", outcome="unknown")


def unsent() -> GatewayError:
    """The failure of an attempt that X did not get."""
    return GatewayError("x_unreachable")


@pytest.mark.parametrize(
    ("answers", "billed"),
    [
        ([200], 0),
        ([403], 0),
        ([lost(), 200], 1),
        ([503, lost(), 200], 2),
        ([unsent(), 200], 0),
        ([lost(), 403], 1),
        # The call's own outcome is unknown, and one attempt is counted with it.
        ([lost(), lost(), lost()], 2),
        ([lost(), unsent(), unsent()], 0),
        ([lost(), 401, 200], 1),
    ],
)
async def test_attempts_that_x_may_have_billed_are_counted(
    tmp_path: Path, answers: list[int | GatewayError], billed: int
) -> None:
    """Those without a report of X, besides the one with which the call ended."""
    client = _clients(tmp_path, _Losing(*answers)).open(SESSION)
    like = XRequest("POST", "/2/users/1/likes", endpoint="POST /2/users/{id}/likes", repeatable=True)
    with contextlib.suppress(GatewayError):
        await client.ask(like, Reading(Liked))
    assert client.maybe_billed == billed


async def test_attempts_at_an_earlier_request_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a file was sent twice, and the post that it belongs to never was."""
    client = _clients(tmp_path, _Losing(lost(), 200)).open(SESSION)
    part = XRequest("POST", "/2/media/upload/1/append", endpoint="POST /2/media/upload/{id}/append", repeatable=True)
    await client.ask(part, Reading(Liked))
    assert client.maybe_billed == 1

    def exhausted(*_: object) -> None:
        raise GatewayError("x_window_15m", retry_after_s=9, reset="later")

    monkeypatch.setattr(RateWindows, "check", exhausted)
    with pytest.raises(GatewayError, match="x_window_15m"):
        await client.ask(XRequest("POST", "/2/tweets", endpoint="POST /2/tweets"), Reading(Posted))
    assert client.maybe_billed == 0
