"""Gateways that notify a receiver: their destination, what they have to deliver, and what has arrived."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, select
from standardwebhooks.webhooks import Webhook

from birdwire.gateway.notifications.destination import Destinations
from birdwire.runtime.clock import Clock
from birdwire.runtime.outbound import OutboundRules
from birdwire.startup import open_vault
from birdwire.store.tables import destinations, outbox
from harness.guarded_gateway import OPERATOR

if TYPE_CHECKING:
    from collections.abc import Iterable

    from birdwire.settings import Settings
    from birdwire.store.database import Database
    from birdwire.store.tables.destinations import DestinationRow, Kind
    from birdwire.store.tables.outbox import OutboxRow
    from harness.webhook_receiver import Delivery

START_S = 30.0
POLL_S = 0.05


@dataclass
class Notifier:
    """The operator's side of the notifications of one database, as the command line has it."""

    database: Database
    destinations: Destinations
    secrets: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, database: Database, settings: Settings, clock: Clock | None = None) -> Notifier:
        """Return the operator's side of a database whose gateways have these settings."""
        rules = OutboundRules(loopback=True)
        return cls(database, Destinations(database, open_vault(settings), clock or Clock(), rules))

    async def set(self, url: str, kind: Kind = "standard", *, with_link: bool = False, with_text: bool = False) -> str:
        """Set the destination, and return its signing secret."""
        secret = await self.destinations.set(url, kind, OPERATOR, with_link=with_link, with_text=with_text)
        self.secrets.append(secret)
        return secret

    async def rotate(self, overlap: timedelta) -> str:
        """Make a new signing secret, and return it."""
        self.secrets.append(await self.destinations.rotate(OPERATOR, overlap))
        return self.secrets[-1]

    async def row(self) -> DestinationRow:
        """Return the destination."""
        async with self.database.read() as connection:
            found = await destinations.get(connection)
        assert found is not None
        return found

    async def events(self) -> dict[str, OutboxRow]:
        """Return every event of the outbox by its id."""
        async with self.database.read() as connection:
            rows = [outbox.OutboxRow(*row) for row in await connection.execute(select(outbox.outbox))]
        return {row.event_id: row for row in rows}

    async def waiting(self) -> int:
        """Return how many events wait to be sent."""
        async with self.database.read() as connection:
            return (await outbox.pending(connection))[0]

    async def tries(self) -> int:
        """Return how often events were tried, all of them together."""
        async with self.database.read() as connection:
            return int((await connection.execute(select(func.sum(outbox.outbox.c.tries)))).scalar_one() or 0)

    async def until_sent(self, seconds: float = START_S) -> None:
        """Wait until no event waits.

        Raises:
            TimeoutError: one still waits after `seconds`.
        """
        async with asyncio.timeout(seconds):
            while await self.waiting():  # noqa: ASYNC110 - a gateway's process changes it
                await asyncio.sleep(POLL_S)

    async def until_tried(self, times: int, seconds: float = START_S) -> None:
        """Wait until events were tried so often, all of them together.

        Raises:
            TimeoutError: they were not in `seconds`.
        """
        async with asyncio.timeout(seconds):
            while await self.tries() < times:  # noqa: ASYNC110 - a gateway records it
                await asyncio.sleep(POLL_S)

    async def fill(self, count: int) -> None:
        """Let so many events wait, all of them due, each since another moment."""
        now, apart = Clock().now(), timedelta(milliseconds=1)
        shared: dict[str, Any] = {"destination_id": destinations.OPERATOR, "type": "paused", "tries": 0}
        shared |= {"data": {"scope": "gateway"}, "keep_until": now + outbox.KEPT}
        for start in range(0, count, 500):
            since = [now - (count - number) * apart for number in range(start, min(start + 500, count))]
            rows = [{**shared, "event_id": outbox.new_event_id(), "at": one, "due_at": one} for one in since]
            async with self.database.write() as connection:
                await connection.execute(insert(outbox.outbox), rows)


def verified(secret: str, delivery: Delivery) -> Any:
    """Return the event of a delivery, as an independent implementation of the specification verifies it.

    Raises:
        WebhookVerificationError: the signature, or the time, is not right.
    """
    return Webhook(secret).verify(delivery.body, delivery.headers)


def types_of(deliveries: Iterable[Delivery]) -> list[str]:
    """Return the types of the events that were delivered to a receiver of standard webhooks."""
    return [json.loads(delivery.body)["type"] for delivery in deliveries]
