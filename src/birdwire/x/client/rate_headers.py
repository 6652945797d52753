"""X's rate windows, as the headers of its replies tell them, by X's own clock. Keeps nothing, and no number of X's.

Three windows may be told of: 15 minutes and 24 hours for the account, and 24 hours for the whole X app.
"""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

Name = Literal["24h", "24h_app", "15m"]

LONGEST_S: dict[Name, int] = {"24h": 86_400, "24h_app": 86_400, "15m": 900}
UNKNOWN_WAIT_S = 60
"""The wait where X names no time, or none that can be."""
ABSURD_WAIT_S = 7 * 86_400

_HEADERS: dict[Name, tuple[str, str, str]] = {
    "24h": ("x-user-limit-24hour-remaining", "x-user-limit-24hour-limit", "x-user-limit-24hour-reset"),
    "24h_app": ("x-app-limit-24hour-remaining", "x-app-limit-24hour-limit", "x-app-limit-24hour-reset"),
    "15m": ("x-rate-limit-remaining", "x-rate-limit-limit", "x-rate-limit-reset"),
}
"""In the order in which an exhausted one decides: a day's first, since the other opens earlier, to no avail."""


_RESTS = tuple(names[0] for names in _HEADERS.values())
_ALL = (*(name for names in _HEADERS.values() for name in names), "date")


@dataclass(frozen=True, slots=True)
class Window:
    """One window: what is left of `limit` (None: X did not say), and in how many seconds it resets, 1 at least."""

    name: Name
    limit: int | None
    remaining: int
    reset_in_s: int


def about(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that `told` reads, to be read later: that costs more than all else that a reply needs. None: {}."""
    found = {name: headers[name] for name in _ALL if name in headers}
    return found if len(found) > 1 else {}


def spent(headers: Mapping[str, str]) -> bool:
    """Whether a window is used up, at a glance."""
    return "0" in (headers.get(_RESTS[0]), headers.get(_RESTS[1]), headers.get(_RESTS[2]))


def told(headers: Mapping[str, str], now: datetime) -> list[Window]:
    """The windows that a reply tells of; one whose rest cannot be read is left out."""
    found = []
    for name, (remaining_header, limit_header, _) in _HEADERS.items():
        remaining = _number(headers.get(remaining_header))
        if remaining is not None:
            limit = _number(headers.get(limit_header))
            found.append(Window(name, limit, remaining, wait_s(headers, name, now)))
    return found


def exhausted(headers: Mapping[str, str]) -> Name | None:
    """The window that is used up and decides."""
    return next((name for name, of in _HEADERS.items() if _number(headers.get(of[0])) == 0), None)


def wait_s(headers: Mapping[str, str], name: Name, now: datetime) -> int:
    """Seconds until a window resets: its reset minus X's Date, since what matters is X's clock, not ours."""
    reset_at = _number(headers.get(_HEADERS[name][2]))
    if reset_at is None:
        return UNKNOWN_WAIT_S
    date = _seconds(headers.get("date", ""))
    left_s = reset_at - int(now.timestamp() if date is None else date)
    return UNKNOWN_WAIT_S if left_s > ABSURD_WAIT_S else min(LONGEST_S[name], max(1, left_s))


def _number(text: str | None) -> int | None:
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else None


@lru_cache(maxsize=8)  # X's Date changes once a second, and reading it takes longer than all the rest
def _seconds(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None
