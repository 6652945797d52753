"""Parses times on the command line: an age such as 24h, a delay or duration such as 30m, a time of day, a date."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from birdwire.cli.printable import printable
from birdwire.cli.stop import ExitCode, Stop
from birdwire.runtime.clock import Clock

_SPAN = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_TIME_OF_DAY = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")


def since(text: str) -> datetime:
    """Return the moment that an age such as 24h or a time names.

    Raises:
        Stop: the text is neither.
    """
    span = _span(text)
    return _moment(text, "an age such as 24h or 7d") if span is None else _shifted(text, -span)


def until(text: str) -> datetime:
    """Return the moment that a delay such as 30m or a time names; it must be in the future.

    Raises:
        Stop: the text is neither, or the moment has passed.
    """
    span = _span(text)
    moment = _moment(text, "a delay such as 30m or 2d") if span is None else _shifted(text, span)
    if moment <= Clock().now():
        raise Stop(ExitCode.USAGE, f"{printable(text, 60)} is not in the future.", "Use a delay such as 30m.")
    return moment


def duration(text: str, longest: timedelta) -> timedelta:
    """Return a duration such as 10s or 5m, of at most `longest`.

    Raises:
        Stop: the text is not a duration, or it is too long.
    """
    span = _span(text)
    if span is None or span > longest:
        hours = int(longest.total_seconds()) // 3_600
        message = f"{printable(text, 60)!r} is not a valid duration."
        raise Stop(ExitCode.USAGE, message, f"Use one such as 10s, 5m or 2h, up to {hours}h.")
    return span


def at(text: str) -> datetime:
    """Return the moment that a time names; a time of day such as 23:30 is today's, on this machine's clock.

    Raises:
        Stop: the text is not a time.
    """
    of_day = _TIME_OF_DAY.fullmatch(text)
    if of_day is None:
        return _moment(text, "a time of day such as 23:30")
    today = Clock().now().astimezone()
    return today.replace(hour=int(of_day[1]), minute=int(of_day[2]), second=0, microsecond=0)


def _span(text: str) -> timedelta | None:
    found = _SPAN.fullmatch(text)
    return timedelta(**{_UNITS[found[2]]: int(found[1])}) if found else None


def _shifted(text: str, by: timedelta) -> datetime:
    try:
        return Clock().now() + by
    except OverflowError:
        raise _wrong(text, "an age or delay such as 24h or 7d") from None


def _moment(text: str, wanted: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise _wrong(text, wanted) from None


def _wrong(text: str, wanted: str) -> Stop:
    message = f"{printable(text, 60)!r} is not a valid time."
    return Stop(ExitCode.USAGE, message, f"Use {wanted}, or a time such as 2026-09-22T10:00Z.")
