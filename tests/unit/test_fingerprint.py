"""The fingerprint of a call with an Idempotency-Key."""

from __future__ import annotations

import hashlib

import pytest

from birdwire.outcomes import journal
from birdwire.outcomes.idempotency import fingerprint


@pytest.mark.parametrize(("operation", "last"), [("like_twitter", b"like_twitter"), ("auth/confirm", b"confirm")])
def test_a_fingerprint_made_before_an_upgrade_still_matches(operation: str, last: bytes) -> None:
    """Earlier versions took the last part of the call's path. A key is kept for 24 hours, so it outlives an upgrade."""
    stored = hashlib.sha256(last + b'{"a": "1", "b": ["2"]}').digest()
    assert fingerprint(operation, {"b": ["2"], "a": "1"}, ()) == stored


def test_another_operation_or_another_field_has_another_fingerprint() -> None:
    """So a key that is used again for something else is refused."""
    made = {fingerprint(name, {"tweet_id": item}, ()) for name in ("like_twitter", "unlike_twitter") for item in "12"}
    assert len(made) == 4


def test_what_the_journal_was_asked_for_does_not_depend_on_the_order_of_members() -> None:
    """At any depth; the order of a list counts."""
    poll = {"options": ["a", "b"], "duration_minutes": 5}
    asked = journal.fingerprint("post_twitter", {"text": "é", "poll": poll})
    assert asked == journal.fingerprint("post_twitter", {"poll": dict(reversed(poll.items())), "text": "é"})
    swapped = poll | {"options": ["b", "a"]}
    others = [("post_twitter", {"text": "é", "poll": swapped}), ("x", {"text": "é", "poll": poll})]
    assert asked not in {journal.fingerprint(operation, fields) for operation, fields in others}
