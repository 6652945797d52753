"""Which refusals are remembered, and how many."""

from __future__ import annotations

from birdwire.api.errors import GatewayError
from birdwire.api.messages import Call
from birdwire.outcomes.own_refusals import MAX_KEYS, MAX_PER_KEY, Rejections
from birdwire.runtime.clock import Clock


def call(number: int, key_id: str | None) -> Call:
    """Build a call of a key, or of no known key."""
    made = Call("POST", "/", request_id=f"req_{number}")
    made.note["operation"] = "like_twitter"
    if key_id is not None:
        made.note["key_id"] = key_id
    return made


def test_refusals_take_a_bounded_memory() -> None:
    """The oldest give way: of a key, and the keys that were not refused for longest."""
    rejections = Rejections(Clock())
    for number in range(MAX_PER_KEY + 1):
        rejections.add(call(number, "key_1"), GatewayError("x_not_linked"))
    assert [rejections.find("key_1", f"req_{number}") is None for number in (0, 1, MAX_PER_KEY)] == [True, False, False]
    for number in range(MAX_KEYS):
        rejections.add(call(0, f"other_{number}"), GatewayError("x_not_linked"))
    assert rejections.find("key_1", "req_1") is None
    assert rejections.find("other_0", "req_0") is not None


def test_only_birdwires_own_refusals_of_unsent_calls_are_remembered() -> None:
    """X's refusals are X's word; what may have been sent is the journal's."""
    rejections = Rejections(Clock())
    rejections.add(call(1, "key_1"), GatewayError("user_not_found", upstream={"status": 404}, outcome="refused"))
    rejections.add(call(2, "key_1"), GatewayError("x_timeout", outcome="unknown"))
    rejections.add(call(3, None), GatewayError("key_unknown"))
    assert [rejections.find("key_1", f"req_{number}") for number in (1, 2, 3)] == [None] * 3
