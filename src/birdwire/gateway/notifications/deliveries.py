"""Deliveries: sends each event of the outbox to the destination, from one gateway process of a database at a time.

That process is named in the destination's row. Another one takes over by a compare-and-set once its lease has expired.
An event whose result is not recorded, because its process was killed, is sent again: each arrives at least once.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

from birdwire.gateway.notifications.extras import NotYetError, OutdatedError
from birdwire.gateway.notifications.news import News
from birdwire.gateway.notifications.results import Results
from birdwire.gateway.notifications.schedule import asked_delay
from birdwire.gateway.notifications.signatures import signed
from birdwire.runtime.tasks import finish
from birdwire.store.database import StorageDownError
from birdwire.store.database import now as store_now
from birdwire.store.encryption.vault import VaultError
from birdwire.store.tables import destinations, outbox, processes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from birdwire.gateway.notifications.destination import Destinations, Opened
    from birdwire.gateway.notifications.extras import Extras
    from birdwire.gateway.notifications.news import Message, Word
    from birdwire.keys.cache import KeyCache
    from birdwire.outcomes.process_leases import ProcessLeases
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.outbound import Outbound, Sent
    from birdwire.runtime.telemetry import Telemetry
    from birdwire.store.database import Database
    from birdwire.store.tables.destinations import DestinationRow
    from birdwire.store.tables.outbox import OutboxRow

ROUND_EVERY_S: Final = 0.5
MAX_SENDING: Final = 16
"""Deliveries in progress at a time."""

PROBE_AFTER, PROBE_EVERY_S = 3, 5.0
"""After this number of failures in a row, one delivery is tried at a time, with this pause, until one succeeds.

So a destination that is down costs next to nothing, however much waits for it.
"""

CLOSE_S: Final = 5.0
"""How long a shutdown waits for the deliveries in progress."""

COUNT_EVERY_S: Final = 5.0
TIDY_EVERY_S: Final = 60.0
RECORD_AGAIN_S: Final = 1.0
CRASH_PAUSE_S: Final = 30.0
_NOW: Final = float("-inf")


class Deliveries:
    """The deliveries of one database, as one of its gateway processes makes them."""

    def __init__(
        self,
        database: Database,
        destinations: Destinations,
        extras: Extras,
        outbound: Outbound,
        word: Word,
        leases: ProcessLeases,
        cache: KeyCache,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._database = database
        self._destinations = destinations
        self._extras = extras
        self._outbound = outbound
        self._word = word
        self._leases = leases
        self._cache = cache
        self._clock = clock
        self._telemetry = telemetry
        self._results = Results(database, clock, telemetry)
        self._to: DestinationRow | None = None
        self._epoch = -1
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._failures = 0
        # By the monotonic clock, so that they mean the same after the time of day was corrected.
        self._held_until_s = self._count_at_s = self._tidy_at_s = _NOW
        self._unreadable: DestinationRow | None = None
        self._waiting = 0
        self._draining = False
        telemetry.metrics.watch("birdwire_notifications_waiting", lambda: self._waiting)
        telemetry.metrics.watch("birdwire_notifications_off", self._is_off)

    async def round(self) -> None:
        """Send what is due, if this process is the one that sends; due every ROUND_EVERY_S.

        Without a destination, it only asks the change feed.

        Raises:
            StorageDownError: the database does not answer.
        """
        epoch = self._cache.poll()
        if self._to is None and epoch == self._epoch:
            return
        async with self._database.read() as connection:
            to = await self._destinations.read(connection)
            sender = None if to is None else to.sender
            sender_lives = sender is not None and (
                sender == self._leases.me
                or await processes.alive(connection, sender, await store_now(connection, self._clock))
            )
        self._notice(to, epoch)
        me = self._leases.me
        if to is None or not self._leases.certain:
            return
        if self._draining:
            # Another process need not wait until this one has ended.
            if sender == me and not self._sending:
                await self._replace(me, None)
            return
        if not sender_lives and await self._replace(sender, me):
            sender = me
        if sender == me:
            await self._send_due(to)
        else:
            self._waiting = 0

    def drain(self) -> None:
        """Start no further sends: the process is shutting down, and another one goes on."""
        self._draining = True

    async def close(self) -> None:
        """Wait for the deliveries in progress. One that takes too long is cancelled, and is sent again by a process."""
        self.drain()
        await finish(self._sending.values(), CLOSE_S)

    def _is_off(self) -> float:
        return 0.0 if self._to is None or self._to.off_at is None else 1.0

    def _notice(self, to: DestinationRow | None, epoch: int) -> None:
        """Remember the destination as it was read in an epoch; a new one has no past."""
        if to is None or self._to is None or to.set_at != self._to.set_at:
            self._failures, self._held_until_s, self._waiting = 0, _NOW, 0
        self._to, self._epoch = to, epoch

    async def _replace(self, sender: str | None, by: str | None) -> bool:
        """Change which process sends, unless another one was faster; return whether it was changed."""
        async with self._database.write() as connection:
            return await destinations.take_over(connection, by, instead_of=sender)

    async def _send_due(self, to: DestinationRow) -> None:
        now_s, in_progress = self._clock.monotonic(), frozenset(self._sending)
        async with self._database.read() as connection:
            # As many as are in progress may be among them, and no more than that are started. A test comes first.
            alone = self._failures >= PROBE_AFTER or now_s < self._held_until_s
            rows = await outbox.due(connection, self._clock.now(), 1 if alone else MAX_SENDING)
            if now_s >= self._count_at_s:
                (self._waiting, _), self._count_at_s = await outbox.pending(connection), now_s + COUNT_EVERY_S
        if now_s >= self._tidy_at_s:
            await self._results.tidy()
            self._tidy_at_s = now_s + TIDY_EVERY_S
        opened = await self._open(to) if rows else None
        if opened is not None:
            for row in rows:
                # What was in progress when the rows were read may have ended since, and its row is an older one.
                if row.event_id not in in_progress and self._may_start(row, to, now_s):
                    task = asyncio.create_task(self._try(row, to, opened), name=f"notification {row.event_id}")
                    self._sending[row.event_id] = task
                    task.add_done_callback(partial(self._done, row.event_id))

    def _may_start(self, row: OutboxRow, to: DestinationRow, now_s: float) -> bool:
        sending = len(self._sending)
        if sending >= MAX_SENDING or self._draining or not self._leases.certain:
            return False
        # The operator waits for a test, whatever the destination did before.
        if row.type == outbox.TEST:
            return True
        return to.off_at is None and now_s >= self._held_until_s and (sending == 0 or self._failures < PROBE_AFTER)

    async def _open(self, to: DestinationRow) -> Opened | None:
        """Decrypt the destination; None if that fails, which is reported once."""
        try:
            return self._destinations.open(to)
        except VaultError:
            if self._unreadable is None or self._unreadable.set_at != to.set_at:
                await self._results.unreadable(to)
                self._unreadable = to
            return None

    # One delivery, in a task of its own.

    async def _try(self, row: OutboxRow, to: DestinationRow, opened: Opened) -> None:
        """Try a delivery; never fails."""
        try:
            message = await self._message(row, to)
            # The store was asked meanwhile.
            if message is None or self._draining or not self._leases.certain:
                return
            headers = message.headers
            # No other receiver checks a signature, or has been given the secret.
            if to.kind == "standard":
                headers += signed(opened.secrets, row.event_id, int(self._clock.unix_s()), message.body)
            sent = await self._outbound.post(opened.url, headers, message.body)
        except StorageDownError:
            # It is still due.
            return
        except Exception as error:  # noqa: BLE001 - nobody awaits the task
            # Whatever it is, it would happen at every try.
            self._telemetry.crash(row.event_id, error)
            await self._recorded(row, lambda: self._results.end(row, "given_up"))
            return
        at = self._clock.now()
        if self._to is not None and self._to.set_at == to.set_at:
            self._learn(row, sent)
        await self._recorded(row, lambda: self._results.record(row, to, sent, at))

    def _done(self, event_id: str, _: asyncio.Task[None]) -> None:
        del self._sending[event_id]

    async def _message(self, row: OutboxRow, to: DestinationRow) -> Message | None:
        """Return an event as it is sent; None if it is not sent now.

        Raises:
            StorageDownError: the database does not answer.
        """
        try:
            extra = await self._extras.of(row, to)
        except NotYetError:
            await self._results.postpone(row)
            return None
        except OutdatedError:
            await self._results.end(row, "outdated")
            return None
        return self._word(to.kind, News(row.event_id, row.type, row.at, row.data, extra.text, extra.review_url))

    def _learn(self, row: OutboxRow, sent: Sent) -> None:
        """Adjust how much is sent to the destination to what a try came to."""
        self._failures = 0 if sent.error is None else self._failures + 1
        pause_s = PROBE_EVERY_S if self._failures >= PROBE_AFTER else 0.0
        held_until_s = self._clock.monotonic() + max(pause_s, asked_delay(sent).total_seconds())
        # The operator tests what was repaired, so a delivered test ends an earlier hold.
        repaired = row.type == outbox.TEST and sent.error is None
        self._held_until_s = held_until_s if repaired else max(self._held_until_s, held_until_s)

    async def _recorded(self, row: OutboxRow, record: Callable[[], Awaitable[None]]) -> None:
        """Record a result, however long the database is down: until it is recorded, nothing else is sent in its place.

        Otherwise a database that can be read but not written would have each event sent in every round.
        """
        while True:
            try:
                await record()
            except StorageDownError:
                await asyncio.sleep(RECORD_AGAIN_S)
            except Exception as error:  # noqa: BLE001 - nobody awaits the task
                self._telemetry.crash(row.event_id, error)
                await asyncio.sleep(CRASH_PAUSE_S)
                return
            else:
                return
