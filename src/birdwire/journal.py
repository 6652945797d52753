"""What was asked of X and what became of it: one row a write, durable before its answer. Holds no token, no text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from birdwire.errors import GatewayError
from birdwire.store import journal as store
from birdwire.store.db import StorageDownError

if TYPE_CHECKING:
    from datetime import datetime

    from birdwire.clock import Clock
    from birdwire.store.db import Database

Outcome = Literal["confirmed", "refused", "not_sent", "unknown"]

_HALVES = {
    "confirmed": "X did what was asked, but it could not be recorded",
    "refused": "X refused what was asked, and that could not be recorded",
    "not_sent": "nothing was sent to X",
    "unknown": "X may have done what was asked, and that could not be recorded",
}


class Journal:
    """The journal of one database."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def record(  # noqa: PLR0913 - one column each
        self,
        *,
        request_id: str,
        key_id: str,
        user_id: str,
        operation: str,
        target: str,
        created_at: datetime,
        outcome: Outcome,
        status: int,
        reason: str | None,
    ) -> None:
        """Write one row; it is on the disk when this returns.

        Raises:
            GatewayError: storage_unavailable, saying which half happened.
        """
        row = {
            "request_id": request_id,
            "key_id": key_id,
            "user_id": user_id,
            "operation": operation,
            "target": target,
            "state": outcome,
            "status": status,
            "reason": reason,
            "created_at": created_at,
            "settled_at": self._clock.now(),
        }
        try:
            async with self._database.write() as connection:
                await store.add(connection, row)
        except StorageDownError:
            raise GatewayError("storage_unavailable", half=_HALVES[outcome]) from None
