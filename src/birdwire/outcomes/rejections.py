"""Calls that Birdwire refused itself: the newest of each key, in the memory of one process, so that it can ask."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

from birdwire.runtime.clock import rfc3339

if TYPE_CHECKING:
    from birdwire.api.errors import GatewayError
    from birdwire.api.messages import Call
    from birdwire.runtime.clock import Clock

MOST_KEYS = 256
MOST_EACH = 16
"""Refusals of one key at most. Older ones give way, so that a key that is refused without end takes no more memory."""


class Rejections:
    """What the journal does not hold, since it never became a write: refused before anything of it was sent."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._keys: OrderedDict[str, deque[dict[str, Any]]] = OrderedDict()

    def add(self, call: Call, error: GatewayError) -> None:
        """Remember a refusal, unless it is X's, or the call may have reached X, or no key may ask for it."""
        key_id = call.note.get("key_id")
        if key_id is None or error.upstream is not None or error.outcome != "not_sent":
            return
        now = self._clock.now()
        if key_id not in self._keys and len(self._keys) >= MOST_KEYS:
            self._keys.popitem(last=False)
        self._keys.setdefault(key_id, deque(maxlen=MOST_EACH)).append(
            {
                "request_id": call.request_id,
                "operation": call.note["operation"],
                "state": "not_sent",
                "status": error.problem.status,
                "reason": error.reason,
                "data": None,
                "created_at": rfc3339(call.admitted_at or now),
                "settled_at": rfc3339(now),
                "why": None,
                "cost_usd": 0.0,
            }
        )
        self._keys.move_to_end(key_id)

    def find(self, key_id: str, request_id: str) -> dict[str, Any] | None:
        """Return a refusal of this key as `journal.told` reports a write; None if it is not known (any more)."""
        return next((one for one in self._keys.get(key_id, ()) if one["request_id"] == request_id), None)
