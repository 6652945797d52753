"""Results: what each try changes, in one transaction: the event, and what the destination is known for.

A try of which another process has recorded a result, or whose destination has been replaced, changes nothing.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from birdwire.gateway.notifications.destination import SUBJECT, shown
from birdwire.gateway.notifications.schedule import CONTINUES_WITHIN, FAILING_FOR, GONE, next_try
from birdwire.store.tables import acts, destinations, outbox

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.runtime.clock import Clock
    from birdwire.runtime.outbound import Sent
    from birdwire.runtime.telemetry import Telemetry
    from birdwire.store.database import Database
    from birdwire.store.tables.destinations import DestinationRow
    from birdwire.store.tables.outbox import OutboxRow

Switched = Literal["on", "410", "failing"]
"""How a try switched its destination: on, or off and why."""

CRASHED: Final = {"error": "crash"}
"""What is recorded of an event that could not be worded."""

UNREADABLE: Final = {"status": None, "error": "unreadable"}
"""What is recorded of a destination whose URL or secret cannot be decrypted: nothing is sent to it."""

NOT_YET: Final = timedelta(seconds=5)
"""How long an event waits that cannot be sent yet."""

MAX_PURGED: Final = 1_000
"""Events that one transaction deletes."""

ENDED: Final = {"due_at": None, "extra_ct": None}
"""What changes of every event that is not sent again."""


class Results:
    """Records the results of deliveries, logs and counts them."""

    def __init__(self, database: Database, clock: Clock, telemetry: Telemetry) -> None:
        self._database = database
        self._clock = clock
        self._telemetry = telemetry

    async def record(self, row: OutboxRow, to: DestinationRow, sent: Sent, at: datetime) -> None:
        """Record what a try came to that ended at a moment.

        Raises:
            StorageDownError: it was not recorded.
        """
        dropped, switched = 0, None
        event = _event_after(row, sent, at)
        async with self._database.write() as connection:
            now = await destinations.get(connection, hold=True)
            if now is None or now.set_at != to.set_at:
                return
            if not await outbox.change(connection, row.event_id, row.tries, event):
                return
            values = _destination_after(row, now, sent, at)
            switched = _switched(now, sent, at, values["failing_since"])
            if switched is not None:
                dropped = await self._switch(connection, now, switched, at)
            await destinations.change(connection, values)
        self._report(row, sent, event)
        if switched is not None:
            self._report_switch(switched, dropped)

    async def end(self, row: OutboxRow, outcome: outbox.Outcome) -> None:
        """End an event that is not sent: it is `outdated`, or it is `given_up`, because it cannot be worded.

        Raises:
            StorageDownError: it was not recorded.
        """
        async with self._database.write() as connection:
            values = {**ENDED, "outcome": outcome} | (CRASHED if outcome == "given_up" else {})
            ended = await outbox.change(connection, row.event_id, row.tries, values)
        if ended:
            self._telemetry.metrics.add("birdwire_notifications_total", outcome)

    async def postpone(self, row: OutboxRow) -> None:
        """Let an event that cannot be sent yet wait behind those that can.

        Raises:
            StorageDownError: it was not recorded.
        """
        async with self._database.write() as connection:
            await outbox.change(connection, row.event_id, row.tries, {"due_at": self._clock.now() + NOT_YET})

    async def tidy(self) -> None:
        """Delete what has ended and is kept no longer, and what waits although the destination is off.

        A transaction that had started before the destination was switched off may have added that.

        Raises:
            StorageDownError: not everything was deleted.
        """
        purged, dropped = MAX_PURGED, 0
        while purged == MAX_PURGED:
            async with self._database.write() as connection:
                purged = await outbox.purge(connection, self._clock.now(), MAX_PURGED)
        async with self._database.write() as connection:
            to = await destinations.get(connection, hold=True)
            if to is not None and to.off_at is not None:
                dropped = await outbox.drop_pending(connection)
        self._count_dropped(dropped)

    async def unreadable(self, to: DestinationRow) -> None:
        """Record that a destination cannot be decrypted.

        Raises:
            StorageDownError: it was not recorded.
        """
        self._telemetry.event("error", "notifications_unreadable")
        async with self._database.write() as connection:
            now = await destinations.get(connection, hold=True)
            if now is not None and now.set_at == to.set_at:
                await destinations.change(connection, {"tried_at": self._clock.now(), **UNREADABLE})

    async def _switch(self, connection: AsyncConnection, to: DestinationRow, how: Switched, at: datetime) -> int:
        """Switch a destination on or off; return how many events that waited for it were dropped."""
        if how == "on":
            await destinations.change(connection, {"off_at": None, "off_why": None})
            await acts.append(connection, at, acts.GATEWAY, "notify.switched_on", SUBJECT, after=shown(to))
            return 0
        await destinations.change(connection, {"off_at": at, "off_why": how})
        after = {"host": to.host, "why": how, "failing_since": to.failing_since}
        await acts.append(connection, at, acts.GATEWAY, "notify.switched_off", SUBJECT, after=after)
        return await outbox.drop_pending(connection)

    def _report(self, row: OutboxRow, sent: Sent, event: dict[str, Any]) -> None:
        about = {"event_id": row.event_id, "type": row.type, "tries": event["tries"], "status": sent.status}
        if sent.error is None:
            self._telemetry.event("debug", "notification_sent", **about)
        else:
            self._telemetry.event("warning", "notification_failed", **about, error=sent.error)
        self._telemetry.metrics.add("birdwire_notifications_total", event.get("outcome") or "failed")

    def _report_switch(self, switched: Switched, dropped: int) -> None:
        if switched == "on":
            self._telemetry.event("info", "notifications_on")
            return
        self._telemetry.event("error", "notifications_off", why=switched, dropped=dropped)
        self._count_dropped(dropped)

    def _count_dropped(self, dropped: int) -> None:
        if dropped:
            self._telemetry.metrics.add("birdwire_notifications_total", "dropped", times=dropped)


def _columns(sent: Sent) -> dict[str, Any]:
    """Return the columns that both tables have of the last try."""
    return {name: getattr(sent, name) for name in ("status", "error")}


def _event_after(row: OutboxRow, sent: Sent, at: datetime) -> dict[str, Any]:
    """Return the columns of an event after one more try."""
    tries = row.tries + 1
    values = {"tries": tries, **_columns(sent)}
    if sent.error is None:
        return {**values, **ENDED, "outcome": "delivered"}
    due_at = None if row.type == outbox.TEST else next_try(tries, at, sent)
    return {**values, **ENDED, "outcome": "given_up"} if due_at is None else {**values, "due_at": due_at}


def _destination_after(row: OutboxRow, now: DestinationRow, sent: Sent, at: datetime) -> dict[str, Any]:
    """Return the columns of a destination after one more try."""
    values = {"tried_at": at, **_columns(sent)}
    if sent.error is None:
        return {**values, "delivered_at": at, "failing_since": None}
    if row.type == outbox.TEST:
        # It shows whether the destination works yet; only events that the operator misses count as failing.
        return {**values, "failing_since": now.failing_since}
    continues = now.tried_at is not None and at - now.tried_at <= CONTINUES_WITHIN
    return {**values, "failing_since": (continues and now.failing_since) or at}


def _switched(now: DestinationRow, sent: Sent, at: datetime, failing_since: datetime | None) -> Switched | None:
    """Return how a try switches a destination; None if it stays as it is."""
    if sent.error is None:
        return None if now.off_at is None else "on"
    if now.off_at is not None:
        return None
    if sent.status == GONE:
        return "410"
    return "failing" if failing_since is not None and at - failing_since >= FAILING_FOR else None
