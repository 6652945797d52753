"""What X lately let this X app do, and why not, for each operation. A record for people; it never refuses a call."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from birdwire.store.database import StorageDownError
from birdwire.store.tables import capabilities as store

if TYPE_CHECKING:
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database

LATELY = timedelta(days=7)
NOTE_EVERY = timedelta(hours=1)

ABOUT_THE_APP = frozenset(
    {"x_tier_lacks_action", "x_not_enrolled", "x_credits_depleted", "x_spend_cap", "x_usage_capped"}
)
"""Refusals that say something of the X app, not of an account or a post."""

OF_THE_TIER = "x_tier_lacks_action"
"""The one of them that every key may read. The others tell of the operator's bills, and only to a key that met one."""

MOST_MET = 10_000


@dataclass(frozen=True, slots=True)
class Capability:
    """When X last allowed and last refused an operation, and the reason of the refusal."""

    operation: str
    allowed_at: datetime | None = None
    refused_at: datetime | None = None
    reason: str | None = None

    @property
    def allowed(self) -> bool:
        """Whether X's last word was yes."""
        return self.allowed_at is not None and (self.refused_at is None or self.refused_at < self.allowed_at)


class Capabilities:
    """The record of one X app. Kept in memory; written when X's word changes, else once an hour."""

    def __init__(self, database: Database, clock: Clock, client_id: str) -> None:
        self._database = database
        self._clock = clock
        self._client_id = client_id
        self._known: dict[str, Capability] | None = None
        self._lately: dict[str, tuple[str | None, float]] = {}  # X's last word, and until when it need not be noted
        self._met: dict[tuple[str, str], str] = {}  # a key, an operation: the reason that is noted as met by the key

    async def all(self) -> list[Capability]:
        """Everything known, by name."""
        known = await self._load()
        return [known[name] for name in sorted(known)]

    async def seen_by(self, key_id: str) -> list[Capability]:
        """Return the same for a key's holder: unless it is the tier, a reason only if the key's own calls met it."""
        known = await self.all()
        if all(one.allowed or one.reason == OF_THE_TIER for one in known):
            return known
        async with self._database.read() as connection:
            rows = await store.met_by(connection, key_id, self._client_id)
        met = {row.operation: row for row in rows}
        return [one if _may_see(one, met.get(one.operation)) else replace(one, reason=None) for one in known]

    async def lately_allowed(self, operation: str) -> bool:
        """Whether X let the app do this within the last week, and did not take it back since."""
        if self._just_said(operation, None):
            return True
        try:
            found = (await self._load()).get(operation)
        except StorageDownError:
            return False
        return bool(found and found.allowed and found.allowed_at and self._clock.now() - found.allowed_at < LATELY)

    async def note(self, operation: str, reason: str | None, key_id: str) -> None:
        """X allowed a key's operation (reason None) or refused it; a reason that is not about the app is left out.

        Never fails: the call has been made, and a record for people must not spoil its answer.
        """
        if reason is not None and reason not in ABOUT_THE_APP:
            return
        with contextlib.suppress(StorageDownError):
            if not self._just_said(operation, reason):
                await self._note(operation, reason)
            if reason is not None and reason != OF_THE_TIER and self._met.get((key_id, operation)) != reason:
                await self._note_met(operation, reason, key_id)

    def _just_said(self, operation: str, reason: str | None) -> bool:
        """Whether X said the same not long ago: most calls need not look any further."""
        word, until = self._lately.get(operation, (reason, 0.0))
        return word == reason and self._clock.monotonic() < until

    async def _note(self, operation: str, reason: str | None) -> None:
        known, now = await self._load(), self._clock.now()
        before = known.get(operation, Capability(operation))
        if reason is None:
            last = before.allowed_at if before.allowed else None
        else:
            last = before.refused_at if not before.allowed and before.reason == reason else None
        if last is None:
            self._met.clear()  # X's word changed: what keys meet from now on is news
        noted = now if last is None else last
        self._lately[operation] = reason, self._clock.monotonic() + (noted + NOTE_EVERY - now).total_seconds()
        if last is not None and now - last < NOTE_EVERY:
            return
        fresh = {"allowed_at": now} if reason is None else {"refused_at": now, "reason": reason}
        after = known[operation] = replace(before, **fresh)
        async with self._database.write() as connection:
            await store.put(
                connection, self._client_id, after.operation, after.allowed_at, after.refused_at, after.reason
            )

    async def _note_met(self, operation: str, reason: str, key_id: str) -> None:
        async with self._database.write() as connection:
            await store.put_met(connection, key_id, self._client_id, operation, reason, self._clock.now())
        if len(self._met) >= MOST_MET:
            self._met.clear()
        self._met[key_id, operation] = reason

    async def _load(self) -> dict[str, Capability]:
        if self._known is None:
            async with self._database.read() as connection:
                rows = await store.of_app(connection, self._client_id)
            self._known = {
                row.operation: Capability(row.operation, row.allowed_at, row.refused_at, row.reason) for row in rows
            }
        return self._known


def _may_see(one: Capability, met: store.RefusalMetRow | None) -> bool:
    """Whether a key's holder may read the reason: the key's own calls met it since X last allowed the operation."""
    if one.reason == OF_THE_TIER:
        return True
    if met is None or met.reason != one.reason:
        return False
    return one.allowed_at is None or met.met_at > one.allowed_at
