"""What X lately let this X app do, and why not, for each operation. A record for people; it never refuses a call."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from birdwire.store import capabilities as store
from birdwire.store.db import StorageDownError

if TYPE_CHECKING:
    from birdwire.clock import Clock
    from birdwire.store.db import Database

LATELY = timedelta(days=7)
NOTE_EVERY = timedelta(hours=1)

ABOUT_THE_APP = frozenset(
    {"x_tier_lacks_action", "x_not_enrolled", "x_credits_depleted", "x_spend_cap", "x_usage_capped"}
)
"""Refusals that say something of the X app, not of an account or a post."""


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

    async def all(self) -> list[Capability]:
        """Everything known, by name."""
        known = await self._load()
        return [known[name] for name in sorted(known)]

    async def lately_allowed(self, operation: str) -> bool:
        """Whether X let the app do this within the last week, and did not take it back since."""
        if self._just_said(operation, None):
            return True
        try:
            found = (await self._load()).get(operation)
        except StorageDownError:
            return False
        return bool(found and found.allowed and found.allowed_at and self._clock.now() - found.allowed_at < LATELY)

    async def note(self, operation: str, reason: str | None) -> None:
        """X allowed the operation (reason None) or refused it; a reason that is not about the app is left out.

        Never fails: the call has been made, and a record for people must not spoil its answer.
        """
        if (reason is None or reason in ABOUT_THE_APP) and not self._just_said(operation, reason):
            with contextlib.suppress(StorageDownError):
                await self._note(operation, reason)

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

    async def _load(self) -> dict[str, Capability]:
        if self._known is None:
            async with self._database.read() as connection:
                rows = await store.of_app(connection, self._client_id)
            names = ("operation", "allowed_at", "refused_at", "reason")
            self._known = {row["operation"]: Capability(**{name: row[name] for name in names}) for row in rows}
        return self._known
