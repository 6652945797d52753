"""Calls that Birdwire itself refused: the newest ones of each key, in memory, so that callers can ask for them."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from birdwire.runtime.bounded_dict import BoundedDict
from birdwire.store.tables.journal import JournalRow, State

if TYPE_CHECKING:
    from birdwire.api.errors import GatewayError
    from birdwire.api.messages import Call
    from birdwire.runtime.clock import Clock

MAX_KEYS = 256
MAX_PER_KEY = 16
"""Refusals of one key. Older ones are evicted, so that the memory for a key that is refused endlessly is bounded."""


class Rejections:
    """Calls refused before anything was sent. They never became writes, so the journal has no rows for them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._keys: BoundedDict[str, deque[JournalRow]] = BoundedDict(MAX_KEYS)

    def add(self, call: Call, error: GatewayError) -> None:
        """Record a refusal, unless X refused the call, the call may have reached X, or its key is not known."""
        key_id = call.note.get("key_id")
        if key_id is None or error.upstream is not None or error.outcome != "not_sent":
            return
        now = self._clock.now()
        row = JournalRow(
            request_id=call.request_id,
            key_id=key_id,
            user_id="",
            operation=call.note["operation"],
            target=None,
            asked=b"",
            state=State.NOT_SENT,
            status=error.problem.status,
            reason=error.reason,
            why=None,
            data=None,
            x_id=None,
            words_ct=None,
            cost_microusd=None,
            owner=None,
            created_at=now if call.admitted_at is None else datetime.fromtimestamp(call.admitted_at, UTC),
            settled_at=now,
            lost_at=None,
            due_at=None,
            looks=0,
            reads=0,
        )
        self._keys.setdefault(key_id, deque(maxlen=MAX_PER_KEY)).append(row)
        self._keys.move_to_end(key_id)

    def find(self, key_id: str, request_id: str) -> JournalRow | None:
        """Return a refusal of this key as a journal row, or None if it is unknown or was evicted."""
        return next((row for row in self._keys.get(key_id, ()) if row.request_id == request_id), None)
