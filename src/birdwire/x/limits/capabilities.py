"""Whether X recently allowed this X app each operation, and why not. A record for people: it never refuses a call."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from birdwire.runtime.bounded_dict import BoundedDict
from birdwire.store.database import StorageDownError
from birdwire.store.tables import capabilities as store
from birdwire.store.tables import outbox

if TYPE_CHECKING:
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database

RECENT = timedelta(days=7)
RECORD_INTERVAL = timedelta(hours=1)

APP_REASONS = frozenset(
    {"x_tier_lacks_action", "x_not_enrolled", "x_credits_depleted", "x_spend_cap", "x_usage_capped"}
)
"""Refusals that concern the X app, not an account or a post."""

TIER_REASON = "x_tier_lacks_action"
"""The only one that every key may read. The others concern the operator's bills: a key may read one that it met."""

MAX_MET_ENTRIES = 10_000


@dataclass(frozen=True, slots=True)
class Capability:
    """When X last allowed and last refused an operation, and the reason of the refusal."""

    operation: str
    allowed_at: datetime | None = None
    refused_at: datetime | None = None
    reason: str | None = None

    @property
    def allowed(self) -> bool:
        """Whether X allowed the operation when it last decided."""
        return self.allowed_at is not None and (self.refused_at is None or self.refused_at < self.allowed_at)

    @property
    def refused(self) -> bool:
        """Whether X refused the operation when it last decided; neither this nor `allowed` before it ever decided."""
        return self.refused_at is not None and not self.allowed


class Capabilities:
    """The record of one X app. Kept in memory; stored when an operation's status changes, otherwise once an hour."""

    def __init__(self, database: Database, clock: Clock, client_id: str) -> None:
        self._database = database
        self._clock = clock
        self._client_id = client_id
        self._known: dict[str, Capability] | None = None
        # By operation: X's last reason (None: allowed), and until when the same one need not be stored.
        self._recent: dict[str, tuple[str | None, float]] = {}
        # By key and operation: the reason that is stored as met by the key.
        self._met: BoundedDict[tuple[str, str], str] = BoundedDict(MAX_MET_ENTRIES)

    async def all(self) -> list[Capability]:
        """Return every recorded operation, by name."""
        known = await self._load()
        return [known[name] for name in sorted(known)]

    async def visible_to(self, key_id: str) -> list[Capability]:
        """Return what a key's holder may read: a reason only if it is the tier's, or the key's own calls met it."""
        known = await self.all()
        if all(one.allowed or one.reason == TIER_REASON for one in known):
            return known
        async with self._database.read() as connection:
            rows = await store.met_by(connection, key_id, self._client_id)
        met = {row.operation: row for row in rows}
        return [one if _may_see(one, met.get(one.operation)) else replace(one, reason=None) for one in known]

    async def recently_allowed(self, operation: str) -> bool:
        """Return whether X allowed the app this within the last week, and has not refused it since."""
        if self._is_known(operation, None):
            return True
        try:
            found = (await self._load()).get(operation)
        except StorageDownError:
            return False
        return bool(found and found.allowed and found.allowed_at and self._clock.now() - found.allowed_at < RECENT)

    async def record(self, operation: str, reason: str | None, key_id: str) -> None:
        """Record that X allowed a key's operation (reason None) or refused it. Reasons not about the app are ignored.

        Never fails: the call has been made, and a record for people must not spoil its answer.
        """
        if (reason is None and self._is_known(operation, None)) or (reason is not None and reason not in APP_REASONS):
            return
        with contextlib.suppress(StorageDownError):
            if not self._is_known(operation, reason):
                await self._store(operation, reason)
            if reason is not None and reason != TIER_REASON and self._met.get((key_id, operation)) != reason:
                await self._record_met(operation, reason, key_id)

    def _is_known(self, operation: str, reason: str | None) -> bool:
        """Return whether the same was recorded recently, as for most calls."""
        last, until = self._recent.get(operation, (reason, 0.0))
        return last == reason and self._clock.monotonic() < until

    async def _store(self, operation: str, reason: str | None) -> None:
        known, now = await self._load(), self._clock.now()
        before = known.get(operation, Capability(operation))
        if reason is None:
            last = before.allowed_at if before.allowed else None
        else:
            last = before.refused_at if not before.allowed and before.reason == reason else None
        if last is None:
            # The status changed, so what keys meet from now on must be stored again.
            self._met.clear()
        stored_at = now if last is None else last
        self._recent[operation] = reason, self._clock.monotonic() + (stored_at + RECORD_INTERVAL - now).total_seconds()
        if last is not None and now - last < RECORD_INTERVAL:
            return
        try:
            known[operation] = await self._change(operation, reason, now)
        except StorageDownError:
            # The next call stores it.
            self._recent.pop(operation, None)
            raise

    async def _change(self, operation: str, reason: str | None, now: datetime) -> Capability:
        """Store what X decided now, and return it; write an event if the row, which all replicas change, differs."""
        fresh = {"allowed_at": now} if reason is None else {"refused_at": now, "reason": reason}
        async with self._database.write() as connection:
            before = _of(await store.hold(connection, self._client_id, operation))
            after = replace(before, **fresh)
            await store.put(connection, self._client_id, operation, after.allowed_at, after.refused_at, after.reason)
            if after.refused != before.refused:
                changed = {"operation": operation, "allowed": not after.refused, "reason": reason}
                await outbox.add(connection, "x.changed", now, changed)
        return after

    async def _record_met(self, operation: str, reason: str, key_id: str) -> None:
        async with self._database.write() as connection:
            await store.put_met(connection, key_id, self._client_id, operation, reason, self._clock.now())
        self._met[key_id, operation] = reason

    async def _load(self) -> dict[str, Capability]:
        if self._known is None:
            async with self._database.read() as connection:
                rows = await store.of_app(connection, self._client_id)
            self._known = {row.operation: _of(row) for row in rows}
        return self._known


def _of(row: store.CapabilityRow) -> Capability:
    return Capability(row.operation, row.allowed_at, row.refused_at, row.reason)


def _may_see(one: Capability, met: store.RefusalMetRow | None) -> bool:
    """Return whether a key's holder may read the reason: its own calls met it since X last allowed the operation."""
    if one.reason == TIER_REASON:
        return True
    if met is None or met.reason != one.reason:
        return False
    return one.allowed_at is None or met.met_at > one.allowed_at
