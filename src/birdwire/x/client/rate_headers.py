"""X's rate limit headers, read by X's own clock. Keeps nothing, and has no limit of X built in.

A reply may report three windows: 15 minutes and 24 hours for the account, and 24 hours for the whole X app.
"""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

WindowName = Literal["24h", "24h_app", "15m"]

MAX_WINDOW_S: dict[WindowName, int] = {"24h": 86_400, "24h_app": 86_400, "15m": 900}
DEFAULT_WAIT_S = 60
"""The wait if X reports no reset, or an impossible one."""
MAX_PLAUSIBLE_WAIT_S = 7 * 86_400

_HEADERS: dict[WindowName, tuple[str, str, str]] = {
    "24h": ("x-user-limit-24hour-remaining", "x-user-limit-24hour-limit", "x-user-limit-24hour-reset"),
    "24h_app": ("x-app-limit-24hour-remaining", "x-app-limit-24hour-limit", "x-app-limit-24hour-reset"),
    "15m": ("x-rate-limit-remaining", "x-rate-limit-limit", "x-rate-limit-reset"),
}
"""Remaining, limit and reset of each window, the longer windows first: if several are exhausted, the first decides,
since waiting for a shorter one would be in vain."""

RATE_HEADERS = frozenset({"date", *(name for names in _HEADERS.values() for name in names)})
"""Every header that this module reads."""

_REMAINING = tuple(names[0] for names in _HEADERS.values())


@dataclass(frozen=True, slots=True)
class ReportedWindow:
    """A window as a reply reports it: the calls left of `limit` (None: not reported), and the seconds to its reset."""

    name: WindowName
    limit: int | None
    remaining: int
    reset_in_s: int


def reported_remaining(headers: Mapping[str, bytes]) -> list[bytes]:
    """Return the calls left in each window that a reply reports, as X wrote them.

    Cheaper than `parse`, which costs more than the rest of reading a reply and can run later.
    """
    return [headers[name] for name in _REMAINING if name in headers]


def parse(headers: Mapping[str, bytes], now: datetime) -> list[ReportedWindow]:
    """Return the windows that a reply reports; one whose remaining calls cannot be read is left out."""
    found = []
    for name, (remaining_header, limit_header, _) in _HEADERS.items():
        remaining = _number(headers.get(remaining_header))
        if remaining is not None:
            limit = _number(headers.get(limit_header))
            found.append(ReportedWindow(name, limit, remaining, wait_s(headers, name, now)))
    return found


def exhausted(headers: Mapping[str, bytes]) -> WindowName | None:
    """Return the exhausted window that decides the wait."""
    return next((name for name, of in _HEADERS.items() if _number(headers.get(of[0])) == 0), None)


def wait_s(headers: Mapping[str, bytes], name: WindowName, now: datetime) -> int:
    """Return the seconds until a window resets: its reset minus X's Date, since X's clock counts, not this one."""
    reset_at = _number(headers.get(_HEADERS[name][2]))
    if reset_at is None:
        return DEFAULT_WAIT_S
    date = _seconds(headers.get("date", b""))
    left_s = reset_at - int(now.timestamp() if date is None else date)
    return DEFAULT_WAIT_S if left_s > MAX_PLAUSIBLE_WAIT_S else min(MAX_WINDOW_S[name], max(1, left_s))


def _number(value: bytes | None) -> int | None:
    value = (value or b"").strip()
    return int(value) if value.isdigit() and len(value) <= 12 else None


# X's Date changes once a second, and parsing it takes longer than the rest of this module.
@lru_cache(maxsize=8)
def _seconds(date: bytes) -> float | None:
    try:
        return parsedate_to_datetime(date.decode("latin-1")).timestamp()
    except (ValueError, OverflowError):
        return None
