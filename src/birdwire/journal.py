"""What was asked of X and what became of it: one row a write, durable before its answer. Holds no token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from birdwire.body import Empty, check
from birdwire.call import Answer
from birdwire.clock import rfc3339
from birdwire.errors import GatewayError
from birdwire.store import journal as store
from birdwire.store.db import StorageDownError

if TYPE_CHECKING:
    from birdwire.body import Parsed
    from birdwire.call import Call
    from birdwire.clock import Clock
    from birdwire.keys import Key
    from birdwire.store.db import Database

Outcome = Literal["confirmed", "refused", "not_sent", "unknown"]

_HALVES = {
    "confirmed": "X did what was asked, but it could not be recorded",
    "refused": "X refused what was asked, and that could not be recorded",
    "not_sent": "nothing was sent to X",
    "unknown": "X may have done what was asked, and that could not be recorded",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One write asked of X: who asks, through which account, for what. `target` may be known only afterwards."""

    request_id: str
    key_id: str
    user_id: str
    operation: str
    target: str


class Journal:
    """The journal of one database."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def begin(self, entry: Entry) -> None:
        """Write down, before it is sent, what must never be sent twice.

        Raises:
            GatewayError: storage_unavailable; then nothing may be sent.
        """
        await self._add(entry, {"state": "started", "created_at": self._clock.now()}, "not_sent")

    async def settle(
        self,
        entry: Entry,
        outcome: Outcome,
        status: int,
        reason: str | None,
        *,
        begun: bool,
        data: dict[str, Any] | None = None,
    ) -> None:
        """Write down what became of it, and what was answered; it is on the disk when this returns.

        Raises:
            GatewayError: storage_unavailable, saying which half happened.
        """
        now = self._clock.now()
        values = {"state": outcome, "status": status, "reason": reason, "data": data, "settled_at": now}
        if not begun:
            await self._add(entry, {**values, "created_at": now}, outcome)
            return
        try:
            async with self._database.write() as connection:
                await store.settle(connection, entry.request_id, {**values, "target": entry.target})
        except StorageDownError:
            raise _unrecorded(outcome) from None

    async def request(self, call: Call, key: Key, parsed: Parsed) -> Answer:
        """What became of one write of the key's: GET requests/{request_id}.

        Raises:
            GatewayError: request_not_found; another key's requests are none either.
        """
        check(parsed.fields, Empty)
        async with self._database.read() as connection:
            row = await store.find(connection, key.key_id, call.path.rsplit("/", 1)[-1])
        if row is None:
            raise GatewayError("request_not_found")
        settled_at = row["settled_at"]
        return Answer.of(
            {
                **{name: row[name] for name in ("request_id", "operation", "state", "status", "reason", "data")},
                "created_at": rfc3339(row["created_at"]),
                "settled_at": None if settled_at is None else rfc3339(settled_at),
            }
        )

    async def asked_later(self, entry: Entry, operation: str) -> bool:
        """Whether any process was asked later to do `operation` to the same target, and may have done it.

        Raises:
            StorageDownError: nobody knows.
        """
        async with self._database.read() as connection:
            return await store.newer(connection, entry.request_id, entry.user_id, operation, entry.target)

    async def recover(self) -> int:
        """At start: what was begun and never settled has an unknown outcome. How many there were."""
        async with self._database.write() as connection:
            return await store.unsettle(connection)

    async def _add(self, entry: Entry, values: dict[str, object], outcome: Outcome) -> None:
        row = {
            "request_id": entry.request_id,
            "key_id": entry.key_id,
            "user_id": entry.user_id,
            "operation": entry.operation,
            "target": entry.target,
            **values,
        }
        try:
            async with self._database.write() as connection:
                await store.add(connection, row)
        except StorageDownError:
            raise _unrecorded(outcome) from None


def _unrecorded(outcome: Outcome) -> GatewayError:
    """The store is down. What X did cannot be told later, so it is unknown to whoever asks again."""
    known: Literal["refused", "not_sent", "unknown"] = "unknown" if outcome == "confirmed" else outcome
    return GatewayError("storage_unavailable", half=_HALVES[outcome], outcome=known)
