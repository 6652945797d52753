"""Request ids, which are built by hand."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from birdwire.api.messages import new_request_id

if TYPE_CHECKING:
    import pytest

DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
SPAN_MS = 1_024
"""A request id's first digits stay the same for so long."""


def value(digits: str) -> int:
    """The number that digits of Crockford's base 32 stand for."""
    number = 0
    for digit in digits:
        number = number << 5 | DIGITS.index(digit)
    return number


def test_a_request_id_begins_with_its_milliseconds_and_sorts_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also across the milliseconds at which its leading digits change, and if the clock steps back."""
    start_ms = 1_764_290_000_000 // SPAN_MS * SPAN_MS
    moments = [start_ms + offset for offset in (0, 1, SPAN_MS - 1, SPAN_MS, SPAN_MS + 1, 3_600_000)]
    made = {}
    for ms in (*moments, *reversed(moments)):
        monkeypatch.setattr(time, "time_ns", lambda ms=ms: ms * 1_000_000 + 999_999)
        made[ms] = new_request_id()
        assert value(made[ms][4:14]) == ms
    assert sorted(made.values()) == [made[ms] for ms in moments]


def test_a_request_id_is_random_in_every_digit_behind() -> None:
    """80 bits: each of the 16 digits takes every value, and no other."""
    made = [new_request_id() for _ in range(2_000)]
    assert all(re.fullmatch(r"req_[0-9A-HJKMNP-TV-Z]{26}", name) for name in made)
    assert len(set(made)) == len(made)
    for place in range(14, 30):
        assert {name[place] for name in made} == set(DIGITS)
