"""The windows in which rules count: clock hours, days and months by UTC; and quiet hours by a time zone's clock."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, NamedTuple
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

Unit = Literal["hour", "day", "month"]

_LENGTHS: Final[dict[int, Unit]] = {13: "hour", 10: "day", 7: "month"}
_HOURS: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")
_ZONE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+-]{0,30}(?:/[A-Za-z0-9_+-]{1,30}){0,2}")


class Moment(NamedTuple):
    """One moment: its UNIX time in milliseconds, and the windows in which it is, such as `2026-11-28T05`."""

    ms: int
    windows: Mapping[Unit, str]

    @classmethod
    def of(cls, now: datetime) -> Moment:
        """Return the moment of a time."""
        unix_s = now.timestamp()
        return cls(int(unix_s * 1_000), _windows(int(unix_s // 3_600)))


@lru_cache(maxsize=64)
def _windows(hour: int) -> Mapping[Unit, str]:
    """Return the windows in which an hour is, given as the number of hours since 1970."""
    text = datetime.fromtimestamp(hour * 3_600, UTC).isoformat()
    return {unit: text[:length] for length, unit in _LENGTHS.items()}


def unit_of(window: str) -> Unit:
    """Return whether a window is an hour, a day or a month."""
    return _LENGTHS[len(window)]


def seconds_left(unit: Unit, now: datetime) -> int:
    """Return the whole seconds until the current window has ended, at least 1."""
    return seconds_between(now, end_of(unit, now))


def end_of(unit: Unit, now: datetime) -> datetime:
    """Return when the current window ends."""
    start = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    if unit == "hour":
        return start + timedelta(hours=1)
    if unit == "day":
        return start.replace(hour=0) + timedelta(days=1)
    return (start.replace(day=1, hour=0) + timedelta(days=32)).replace(day=1)


def end_of_window(window: str) -> datetime:
    """Return when a window ends."""
    # A month's name is not a date.
    start = datetime.fromisoformat(f"{window}-01" if unit_of(window) == "month" else window)
    return end_of(unit_of(window), start.replace(tzinfo=UTC))


def seconds_between(now: datetime, end: datetime) -> int:
    """Return the whole seconds from now on after which `end` has come, at least 1."""
    return max(1, -((now - end) // timedelta(seconds=1)))


def zone_named(name: str) -> tzinfo | None:
    """Return a time zone of the IANA database by its name; None if this machine does not know it."""
    if name == "UTC":
        return UTC
    # The name becomes a path below the database's folder.
    if not _ZONE.fullmatch(name):
        return None
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError):
        return None


@dataclass(frozen=True, slots=True)
class QuietHours:
    """A part of each day by the clock on the wall of a zone, from `start` until before `end`, in minutes.

    It goes over midnight if it ends before it starts. On a day on which the clock changes, an hour that does not exist
    is in no quiet hours, and an hour that occurs twice is in them both times.
    """

    start: int
    end: int
    zone: tzinfo

    @classmethod
    def read(cls, hours: str, zone: tzinfo) -> QuietHours | None:
        """Return the quiet hours written as `22:00-07:00`; None if they are not such, or have no length."""
        written = _HOURS.fullmatch(hours)
        if written is None:
            return None
        hour, minute, end_hour, end_minute = map(int, written.groups())
        quiet = cls(hour * 60 + minute, end_hour * 60 + end_minute, zone)
        return quiet if quiet.start != quiet.end else None

    def holds(self, now: datetime) -> bool:
        """Return whether a moment is in the quiet hours."""
        local = now.astimezone(self.zone)
        minute = local.hour * 60 + local.minute
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end

    def seconds_left(self, now: datetime) -> int:
        """Return the seconds after which the quiet hours have ended.

        That is late, but never early, on the day on which the clock skips their end.
        """
        today = now.astimezone(self.zone).replace(
            hour=self.end // 60, minute=self.end % 60, second=0, microsecond=0, tzinfo=None
        )
        ends = [
            (today + timedelta(days=days)).replace(tzinfo=self.zone, fold=fold).astimezone(UTC)
            for days in (0, 1, 2)
            for fold in (0, 1)
        ]
        return seconds_between(now, min(end for end in ends if end > now and not self.holds(end)))
