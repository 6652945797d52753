"""Gateway processes that deliver notifications to a scripted destination, on a clock that stands still."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from birdwire.gateway.notifications.deliveries import Deliveries
from birdwire.gateway.notifications.destination import Destinations
from birdwire.gateway.notifications.extras import Extras
from birdwire.gateway.notifications.news import Message, News
from birdwire.keys.cache import KeyCache
from birdwire.runtime.outbound import OutboundRules, Sent
from birdwire.runtime.telemetry import Telemetry
from birdwire.store.tables import acts, destinations, outbox
from harness.approval_replicas import Replica
from harness.gateway import MovableClock
from harness.webhook_receiver import in_turn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from birdwire.runtime.outbound import Outbound
    from birdwire.store.encryption.vault import Vault
    from birdwire.store.tables.acts import ActRow
    from birdwire.store.tables.destinations import DestinationRow, Kind
    from birdwire.store.tables.outbox import OutboxRow

ADA = acts.Actor("ada", "cli")
PAUSED = {"scope": "gateway", "name": "the gateway", "why": None, "until": None, "by": "ada"}
LOOPBACK = OutboundRules(loopback=True)
DELIVERED = Sent(204, None, None)


def failed(status: int = 500, retry_after_s: float | None = None) -> Sent:
    """Return an answer that is a failure."""
    return Sent(status, "status", retry_after_s)


class StoppedClock(MovableClock):
    """A clock that only a test moves; so does the database's."""

    _START = datetime(2026, 11, 28, 12, tzinfo=UTC)

    def unix_s(self) -> float:
        """Return the time that was set."""
        return self.now().timestamp()

    def now(self) -> datetime:
        """Return the time that was set, to the microsecond."""
        return self._START + self.added

    def adjusted(self, at: datetime) -> datetime:
        """Return the time that was set."""
        del at
        return self.now()

    def monotonic(self) -> float:
        """Return the seconds by which it was moved."""
        return self.added.total_seconds()


@dataclass(frozen=True)
class Post:
    """What was sent to the destination."""

    url: str
    headers: dict[str, str]
    body: bytes

    @property
    def event_id(self) -> str:
        """The id of the event."""
        return self.headers["webhook-id"]

    @property
    def document(self) -> Any:
        """The body, as JSON."""
        return json.loads(self.body)


@dataclass
class ScriptedOutbound:
    """Stands for `Outbound`: answers each POST by `reply`, once `open` is set."""

    reply: Callable[[Post], Sent] = lambda _: DELIVERED
    posts: list[Post] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    running: int = 0
    most: int = 0

    def __post_init__(self) -> None:
        """Answer at once."""
        self.open.set()

    def answer(self, *replies: Sent) -> None:
        """Answer the next POSTs so, one after the other, and all later ones as the last."""
        self.reply = in_turn(*replies)

    async def post(self, url: str, headers: Sequence[tuple[str, str]], body: bytes) -> Sent:
        """Record a POST and answer it."""
        post = Post(url, dict(headers), body)
        self.posts.append(post)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.open.wait()
        finally:
            self.running -= 1
        return self.reply(post)


def as_json(kind: Kind, news: News) -> Message:
    """Word an event as its facts."""
    more = {"kind": kind, "text": news.text, "review_url": news.review_url}
    body = json.dumps({"type": news.type, "data": news.data} | more).encode()
    return Message((("content-type", "application/json"),), body)


@dataclass
class Deliverer:
    """One gateway process, as far as it delivers. `links` are the requests for which it made a signed link."""

    replica: Replica
    destinations: Destinations
    deliveries: Deliveries
    outbound: ScriptedOutbound
    log: io.StringIO
    telemetry: Telemetry
    cache: KeyCache
    links: list[str]
    extras: Extras

    @classmethod
    def of(
        cls,
        replica: Replica,
        *,
        outbound: ScriptedOutbound | None = None,
        real: Outbound | None = None,
        vault: Vault | None = None,
        word: Callable[[Kind, News], Message] = as_json,
        address: str = "https://birdwire.example",
    ) -> Deliverer:
        """Return the process of a replica. `real` sends in place of the scripted one."""
        database, clock, vault = replica.database, replica.clock, vault or replica.vault
        log, links, outbound = io.StringIO(), list[str](), outbound or ScriptedOutbound()
        telemetry, cache = Telemetry(log, clock, "debug"), KeyCache(database, clock)
        places = Destinations(database, vault, clock, LOOPBACK)

        async def make_link(request_id: str, by: acts.Actor) -> tuple[str, datetime]:
            assert by == acts.NOTIFICATION
            links.append(request_id)
            return f"token{len(links)}", clock.now()

        extras = Extras(database, vault, replica.records, make_link, lambda: address, clock)
        sends = cast("Outbound", real or outbound)
        leases = replica.leases
        deliveries = Deliveries(database, places, extras, sends, word, leases, cache, clock, telemetry)
        return cls(replica, places, deliveries, outbound, log, telemetry, cache, links, extras)

    @property
    def clock(self) -> StoppedClock:
        """The clock of all processes."""
        return cast("StoppedClock", self.replica.clock)

    async def set(self, url: str = "http://localhost/in", kind: Kind = "standard", **more: bool) -> str:
        """Set the destination; return its secret."""
        options = {"with_link": False, "with_text": False} | more
        return await self.destinations.set(url, kind, ADA, **options)

    async def happen(self, times: int = 1, event: outbox.EventType = "paused", **data: object) -> list[str]:
        """Write events; return the ids of all that wait."""
        async with self.replica.database.write() as connection:
            for _ in range(times):
                await outbox.add(connection, event, self.clock.now(), data or PAUSED)
        return [row.event_id for row in await self.pending()]

    async def round(self, times: int = 1) -> int:
        """Do rounds, each to its end; return how often something was sent."""
        before = len(self.outbound.posts)
        for _ in range(times):
            others = asyncio.all_tasks()
            await self.deliveries.round()
            await _ended(asyncio.all_tasks() - others)
        return len(self.outbound.posts) - before

    async def settled(self) -> None:
        """Wait for the deliveries in progress, of all processes."""
        await _ended(asyncio.all_tasks())

    async def advance(self, by: timedelta) -> None:
        """Move the clock; the process stays alive."""
        self.clock.added += by
        await self.replica.leases.renew()

    async def pending(self) -> list[OutboxRow]:
        """Return the events that wait, also those that are due later."""
        async with self.replica.database.read() as connection:
            return await outbox.due(connection, datetime(2100, 1, 1, tzinfo=UTC), 100_000)

    async def event(self, event_id: str) -> OutboxRow:
        """Return an event."""
        async with self.replica.database.read() as connection:
            found = await outbox.get(connection, event_id)
        assert found is not None
        return found

    async def to(self) -> DestinationRow:
        """Return the destination."""
        async with self.replica.database.read() as connection:
            found = await destinations.get(connection)
        assert found is not None
        return found

    async def acts(self) -> list[ActRow]:
        """Return the acts on notifications, the last one first."""
        async with self.replica.database.read() as connection:
            return await acts.listed(connection, "notifications", None, 100)

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines of an event."""
        self.telemetry.flush()
        lines = [json.loads(line) for line in self.log.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]

    def counted(self, name: str) -> dict[tuple[str, ...], float]:
        """Return the series of a metric, by the values of their labels."""
        family = next(one for one in self.telemetry.metrics.collect() if one.name == name.removesuffix("_total"))
        return {tuple(sample.labels.values()): sample.value for sample in family.samples}


async def _ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Wait for those tasks that deliver."""
    await asyncio.gather(*(task for task in tasks if task.get_name().startswith("notification ")))


@contextlib.asynccontextmanager
async def two_deliverers(database_url: str) -> AsyncIterator[tuple[Deliverer, Deliverer]]:
    """Start two processes on one database and one clock, which send to the same destination."""
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(Replica.started(database_url, StoppedClock()))
        second = await stack.enter_async_context(Replica.started(database_url, first.clock, first.vault))
        yield Deliverer.of(first), Deliverer.of(second)


@contextlib.asynccontextmanager
async def deliverer(database_url: str, **parts: Any) -> AsyncIterator[Deliverer]:
    """Start one process, on a clock that stands still."""
    async with Replica.started(database_url, StoppedClock()) as replica:
        yield Deliverer.of(replica, **parts)
