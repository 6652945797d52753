"""A line to X whose own parts fail: what its caller is told of the call."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, cast

import pytest

from birdwire.breaker import Breaker
from birdwire.errors import GatewayError
from birdwire.ledger import Ledger
from birdwire.line import Lines
from birdwire.operations import Posted, XRequest
from birdwire.order import Order
from birdwire.sessions import Sessions, XSession
from birdwire.store.db import Database, StorageDownError
from birdwire.telemetry import Telemetry
from birdwire.upstream import Reply
from birdwire.x import Reading, X
from house import MovableClock

if TYPE_CHECKING:
    from pathlib import Path

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


async def test_a_401_that_cannot_be_renewed_for_want_of_the_store_was_not_done(tmp_path: Path) -> None:
    """Nobody need look for the post: X said no, and was not asked again."""
    both, clock = _Unauthorized(), MovableClock()
    telemetry = Telemetry(io.StringIO(), clock)
    lines = Lines(
        cast("Sessions", both),
        cast("X", both),
        Ledger(Database(f"sqlite:///{tmp_path / 'none.db'}"), clock, "client"),
        Breaker(clock, telemetry),
        Order(),
        clock,
        15.0,
        telemetry.metrics,
    )
    with pytest.raises(GatewayError) as error:
        await lines.open(SESSION).ask(XRequest("POST", "/2/tweets", endpoint="POST /2/tweets"), Reading(Posted))
    assert (error.value.reason, error.value.outcome, both.asked) == ("storage_unavailable", "not_sent", 1)
