"""Deliveries of standard webhooks, as an independent implementation of the specification verifies them."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from standardwebhooks.webhooks import WebhookVerificationError

from birdwire.gateway.guardrails.registry import Policies
from birdwire.gateway.notifications.signatures import new_secret, signed
from harness.guarded_gateway import ADA, OPERATOR
from harness.notifying import Notifier, types_of, verified
from harness.sending_desk import SendingDesk
from harness.webhook_receiver import Delivery, WebhookReceiver, receiving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from harness.gateway import RunningGateway

OVERLAP = timedelta(minutes=1)
"""How long both secrets sign, in these tests: receivers accept a time that is off by five minutes."""

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Notified:
    """A linked gateway whose key asks about every post, and the receiver of its notifications."""

    def __init__(self, running: RunningGateway, desk: SendingDesk, receiver: WebhookReceiver) -> None:
        self.running, self.desk, self.receiver = running, desk, receiver
        self.notifier = Notifier.of(desk.database, running.settings, running.clock)

    async def news(self, text: str) -> list[Delivery]:
        """Let events of four types happen, and return their deliveries."""
        before = len(self.receiver.deliveries)
        policies = Policies(self.desk.database, self.running.clock, OPERATOR)
        scope = f"account:{ADA}"
        await policies.pause(scope, text, None)
        await policies.resume(scope)
        request_id = await self.desk.ask("post_twitter", {"text": text})
        await self.desk.approvals.deny(request_id, OPERATOR)
        found = (await self.receiver.wait_for(before + 4))[before:]
        assert sorted(types_of(found)) == ["approval.decided", "approval.requested", "paused", "resumed"]
        await self.notifier.until_sent()
        return found


@pytest_asyncio.fixture
async def notified(linked: RunningGateway) -> AsyncIterator[Notified]:
    """A gateway with a destination on this machine."""
    async with SendingDesk.opened(linked, {"approve": "*"}) as desk, receiving() as receiver:
        yield Notified(linked, desk, receiver)


def is_signed(secret: str, delivery: Delivery) -> bool:
    """Return whether a delivery verifies with a secret."""
    try:
        verified(secret, delivery)
    except WebhookVerificationError:
        return False
    return True


@pytest.mark.trust("#324")
async def test_every_delivery_verifies_before_during_and_after_a_rotation(notified: Notified) -> None:
    """With the old secret until the overlap ends, and with the new one from the rotation on."""
    old = await notified.notifier.set(f"{notified.receiver.url}/hook")
    before = await notified.news("before")
    new = await notified.notifier.rotate(OVERLAP)
    during = await notified.news("during")
    notified.running.clock.advance(seconds=OVERLAP.total_seconds() + 1)
    after = await notified.news("after")
    assert old != new
    assert [(is_signed(old, one), is_signed(new, one)) for one in before] == [(True, False)] * 4
    assert [(is_signed(old, one), is_signed(new, one)) for one in during] == [(True, True)] * 4
    assert [(is_signed(old, one), is_signed(new, one)) for one in after] == [(False, True)] * 4
    ids = [one.event_id for one in (*before, *during, *after)]
    assert len(set(ids)) == len(ids)
    assert {one.headers["content-type"] for one in (*before, *during, *after)} == {"application/json"}


@pytest.mark.trust("#324")
async def test_a_changed_delivery_does_not_verify(notified: Notified) -> None:
    """Another body, another id, another time, another secret."""
    secret = await notified.notifier.set(f"{notified.receiver.url}/hook")
    [one, *_] = await notified.news("changed")
    assert is_signed(secret, one)
    changed: list[dict[str, Any]] = [
        {"body": one.body.replace(b"paused", b"resumed", 1)},
        {"body": one.body + b" "},
        {"headers": one.headers | {"webhook-id": f"{one.event_id}0"}},
        {"headers": one.headers | {"webhook-timestamp": str(int(one.headers["webhook-timestamp"]) - 1)}},
        {"headers": one.headers | {"webhook-signature": "v1,"}},
    ]
    assert [is_signed(secret, Delivery(**{**vars(one), **change})) for change in changed] == [False] * len(changed)
    assert not is_signed(new_secret(), one)


@pytest.mark.trust("#324")
def test_an_old_time_does_not_verify() -> None:
    """A recorded delivery cannot be replayed later: its time is signed with it."""
    body, now_s = b'{"type":"paused"}', int(time.time())
    for age_s, verifies in ((0, True), (240, True), (360, False), (86_400, False)):
        headers = dict(signed((SECRET,), "evt_1", now_s - age_s, body))
        delivery = Delivery(now_s, "POST", "/", {name.lower(): value for name, value in headers.items()}, body)
        assert is_signed(SECRET, delivery) is verifies, age_s
