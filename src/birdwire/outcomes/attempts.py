"""Attempts: calls that a policy, a cap, a pause or a rule of their key refused, recorded in the journal.

The operator sees by them what an agent tried. They never became writes, so their rows have the state `not_sent`, no
text, and no account where none was known yet. They wait in memory and are written in the background: a refused caller
waits for nothing, and a caller that is refused endlessly fills neither the memory nor the disk. Of one key, at most
MAX_A_MINUTE rows of a minute and MAX_A_DAY of a day are recorded; one row an hour counts the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from birdwire.runtime.bounded_dict import BoundedDict
from birdwire.store.database import StorageDownError
from birdwire.store.tables import journal as store

if TYPE_CHECKING:
    from datetime import date, datetime

    from birdwire.api.errors import GatewayError
    from birdwire.api.messages import Call
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database

ATTEMPTED = frozenset({
    *("policy_denied", "owner_denied", "quiet_hours", "cap_reached", "budget_exhausted", "price_unknown"),
    *("policy_unreadable", "duplicate_text", "paused", "paused_by_owner", "approval_denied", "approvals_full"),
    *("daily_cap", "key_not_allowed", "ip_not_allowed", "key_expired", "return_to_not_allowed"),
})  # fmt: skip
"""The reasons of refusals that are recorded: what a policy, a cap, a pause or a rule of the key decides."""

MAX_A_MINUTE, MAX_A_DAY = 20, 1_000
"""Rows of one key in a minute and in a UTC day. The limit of a minute is each process's own."""

RECOUNT_AFTER = 100
"""Rows of one key after which a process counts the day's rows again: other replicas write some, too."""

MAX_WAITING = 10_000
MAX_KEYS = 20_000
_BATCH = 500
_NOT_SHOWN = "message"
"""The member of a finding that is not recorded: its text may quote the call."""


@dataclass(slots=True)
class _Key:
    """What was recorded of one key: rows in the current minute, and rows stored today (None: not counted yet)."""

    minute: int = -1
    in_minute: int = 0
    day: date | None = None
    in_day: int | None = None
    since_count: int = 0


class _Rest(NamedTuple):
    """Attempts of one key and hour without rows of their own: the newest of them, and how many they are."""

    newest: dict[str, Any]
    times: int


class Attempts:
    """The attempts of one database's keys."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._keys: BoundedDict[str, _Key] = BoundedDict(MAX_KEYS)
        self._rows: list[dict[str, Any]] = []
        # Attempts without a row of their own: by key and hour, the newest one and how many there are.
        self._rest: dict[tuple[str, datetime], _Rest] = {}
        self._flushing = asyncio.Lock()

    def add(self, call: Call, error: GatewayError, user_id: str) -> None:
        """Record a refusal of a call whose key is known; `user_id` is empty if the account is not known."""
        # X may have been asked: then the journal has a row of the call.
        if error.upstream is not None or error.outcome != "not_sent":
            return
        now, key_id, operation = self._clock.now(), call.note["key_id"], call.note["operation"]
        row = store.attempt(call.request_id, key_id, user_id, operation, error.problem.status, error.reason, now)
        row["decision"] = _decision(error)
        key = self._key(key_id, now)
        used_up = key.in_minute >= MAX_A_MINUTE or (key.in_day or 0) >= MAX_A_DAY
        if used_up or len(self._rows) >= MAX_WAITING:
            self._count(row, 1)
        else:
            key.in_minute += 1
            self._rows.append(row)

    async def flush(self) -> None:
        """Write what waits; due every second.

        Raises:
            StorageDownError: the store refuses writes. The rows go on waiting, as far as there is room.
        """
        async with self._flushing:
            rows, self._rows = self._rows, []
            try:
                while rows:
                    await self._write(rows[:_BATCH])
                    del rows[:_BATCH]
                await self._write_rest()
            finally:
                self._rows[:0] = rows

    async def close(self) -> None:
        """Write what waits, once; what the store does not take is lost."""
        with contextlib.suppress(StorageDownError):
            await self.flush()

    async def _write(self, rows: list[dict[str, Any]]) -> None:
        """Write rows as far as their keys' days allow, and count the others."""
        kept: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        added: Counter[str] = Counter()
        async with self._database.write() as connection:
            for row in rows:
                key_id, at = row["key_id"], row["created_at"]
                key = self._key(key_id, at)
                if key.in_day is None or key.since_count >= RECOUNT_AFTER:
                    key.in_day, key.since_count = await store.count_attempts(connection, key_id, _midnight(at)), 0
                if key.in_day + added[key_id] >= MAX_A_DAY:
                    others.append(row)
                else:
                    kept.append(row)
                    added[key_id] += 1
            await store.add_attempts(connection, kept)
        for key_id, times in added.items():
            key = self._keys.get(key_id) or _Key()
            key.in_day, key.since_count = (key.in_day or 0) + times, key.since_count + times
        for row in others:
            self._count(row, 1)

    async def _write_rest(self) -> None:
        while self._rest:
            # In one order in all replicas: they count in the same rows, and must not wait for each other.
            batch = dict(sorted(islice(self._rest.items(), _BATCH)))
            for of in batch:
                del self._rest[of]
            try:
                async with self._database.write() as connection:
                    for rest in batch.values():
                        await store.bump_hour(connection, rest.newest, rest.times)
            except StorageDownError:
                for rest in batch.values():
                    self._count(rest.newest, rest.times)
                raise

    def _key(self, key_id: str, at: datetime) -> _Key:
        """Return the state of a key in the minute and on the day of a moment."""
        key = self._keys.get(key_id)
        if key is None:
            key = self._keys[key_id] = _Key()
        self._keys.move_to_end(key_id)
        minute = int(at.timestamp() // 60)
        if minute > key.minute:
            key.minute, key.in_minute = minute, 0
        if key.day is None or at.date() > key.day:
            key.day, key.in_day, key.since_count = at.date(), None, 0
        return key

    def _count(self, row: dict[str, Any], times: int) -> None:
        """Count attempts that get no row of their own, of which this is the newest."""
        of = row["key_id"], row["created_at"].replace(minute=0, second=0, microsecond=0)
        rest = self._rest.get(of)
        if rest is not None:
            self._rest[of] = _Rest(row, rest.times + times)
        elif len(self._rest) < MAX_WAITING:
            self._rest[of] = _Rest(row, times)


def _decision(error: GatewayError) -> dict[str, Any] | None:
    """Return the findings of a refusal as the journal keeps them."""
    if not error.findings:
        return None
    findings = [{name: value for name, value in one.items() if name != _NOT_SHOWN} for one in error.findings]
    return {"versions": {one["scope"]: one["version"] for one in findings}, "findings": findings, "shadow": []}


def _midnight(at: datetime) -> datetime:
    return at.replace(hour=0, minute=0, second=0, microsecond=0)
