"""Windows by UTC, and quiet hours by the clock of a time zone, on both days on which it changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdwire.gateway.guardrails.windows import Moment, QuietHours, seconds_between, seconds_left, unit_of, zone_named

BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")
SECOND = timedelta(seconds=1)


def at(text: str) -> datetime:
    """Return a time of UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def quiet(hours: str, zone: ZoneInfo) -> QuietHours:
    """Return quiet hours."""
    read = QuietHours.read(hours, zone)
    assert read is not None
    return read


def test_a_moment_has_its_windows_by_utc() -> None:
    """Whatever its own zone is."""
    moment = Moment.of(datetime(2027, 1, 1, 1, 30, 0, 250_000, tzinfo=timezone(timedelta(hours=2))))
    assert moment.windows == {"hour": "2026-12-31T23", "day": "2026-12-31", "month": "2026-12"}
    assert moment.ms == 1_798_759_800_250
    assert [unit_of(window) for window in moment.windows.values()] == ["hour", "day", "month"]


@pytest.mark.parametrize(
    ("now", "hour", "day", "month"),
    [
        ("2026-11-28T12:30:00", 1_800, 41_400, 2 * 86_400 + 41_400),
        ("2026-11-28T00:00:00", 3_600, 86_400, 3 * 86_400),
        ("2026-11-28T23:59:59.999999", 1, 1, 2 * 86_400 + 1),
        ("2026-12-31T23:59:58", 2, 2, 2),
        ("2028-02-01T00:00:00", 3_600, 86_400, 29 * 86_400),
        ("2026-01-31T23:00:00", 3_600, 3_600, 3_600),
    ],
)
def test_the_seconds_until_a_window_ends(now: str, hour: int, day: int, month: int) -> None:
    """Over the ends of months and years, rounded up."""
    assert [seconds_left(unit, at(now)) for unit in ("hour", "day", "month")] == [hour, day, month]


def test_the_seconds_between_two_times_are_at_least_one() -> None:
    """Retry-After: 0 would be an invitation."""
    now = at("2026-11-28T12:00:00")
    assert [seconds_between(now, now + timedelta(seconds=s)) for s in (-5, 0, 0.5, 1, 1.001)] == [1, 1, 1, 1, 2]


@pytest.mark.parametrize(
    ("hours", "inside", "outside"),
    [
        ("22:00-07:00", ["22:00:00", "23:59:59", "00:00:00", "06:59:59"], ["07:00:00", "12:00:00", "21:59:59"]),
        ("09:30-17:15", ["09:30:00", "17:14:59"], ["09:29:59", "17:15:00", "00:00:00"]),
        ("00:00-00:01", ["00:00:00", "00:00:59"], ["00:01:00", "23:59:59"]),
        ("12:00-00:00", ["12:00:00", "23:59:59"], ["00:00:00", "11:59:59"]),
    ],
)
def test_quiet_hours_start_with_their_first_minute_and_end_before_the_last(
    hours: str, inside: list[str], outside: list[str]
) -> None:
    """Half open, also over midnight."""
    read = quiet(hours, ZoneInfo("UTC"))
    assert all(read.holds(at(f"2026-11-28T{time}")) for time in inside)
    assert not any(read.holds(at(f"2026-11-28T{time}")) for time in outside)


@pytest.mark.parametrize(
    "hours", ["", "22:00", "24:00-07:00", "22:60-07:00", "7:00-8:00", "07:00-07:00", "07:00 - 08:00"]
)
def test_what_are_no_quiet_hours(hours: str) -> None:
    """Nor are hours without a length."""
    assert QuietHours.read(hours, UTC) is None


CHANGES = {
    # In Berlin, 02:00 becomes 03:00 on 29 March (01:00 UTC), and 03:00 becomes 02:00 on 25 October (01:00 UTC).
    "spring, over the change": (BERLIN, "22:00-07:00", "2026-03-28T21:00:00", "2026-03-29T05:00:00"),
    "spring, until the skipped hour": (BERLIN, "22:00-02:00", "2026-03-28T21:00:00", "2026-03-29T01:00:00"),
    "spring, into the skipped hour": (BERLIN, "22:00-02:30", "2026-03-28T21:00:00", "2026-03-29T01:00:00"),
    "spring, from the skipped hour": (BERLIN, "02:30-06:00", "2026-03-29T01:00:00", "2026-03-29T04:00:00"),
    "autumn, over the change": (BERLIN, "22:00-07:00", "2026-10-24T20:00:00", "2026-10-25T06:00:00"),
    "autumn, until after the repeated hour": (BERLIN, "22:00-03:00", "2026-10-24T20:00:00", "2026-10-25T02:00:00"),
    "autumn, the repeated hour": (BERLIN, "02:00-03:00", "2026-10-25T00:00:00", "2026-10-25T02:00:00"),
    # In New York, 02:00 becomes 03:00 on 8 March (07:00 UTC), and 02:00 becomes 01:00 on 1 November (06:00 UTC).
    "New York, spring": (NEW_YORK, "22:00-07:00", "2026-03-08T03:00:00", "2026-03-08T11:00:00"),
    "New York, autumn": (NEW_YORK, "22:00-07:00", "2026-11-01T02:00:00", "2026-11-01T12:00:00"),
    "New York, the repeated hour": (NEW_YORK, "01:00-02:00", "2026-11-01T05:00:00", "2026-11-01T07:00:00"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_quiet_hours_follow_the_clock_on_the_days_on_which_it_changes(name: str) -> None:
    """From the first second to before the last, in UTC."""
    zone, hours, start, end = CHANGES[name]
    read = quiet(hours, zone)
    first, last = at(start), at(end)
    assert not read.holds(first - SECOND)
    minutes = int((last - first) / timedelta(minutes=1))
    assert all(read.holds(first + timedelta(minutes=minute)) for minute in range(minutes))
    assert read.holds(last - SECOND)
    assert not read.holds(last)


def test_an_hour_that_occurs_twice_is_quiet_both_times() -> None:
    """The clock on the wall decides: an end within it comes twice."""
    read = quiet("22:00-02:30", BERLIN)
    assert [
        read.holds(at(f"2026-10-25T{time}:00")) for time in ("00:29", "00:30", "00:59", "01:00", "01:29", "01:30")
    ] == [
        *(True, False, False),
        *(True, True, False),
    ]
    assert read.seconds_left(at("2026-10-25T00:29:00")) == 60
    assert read.seconds_left(at("2026-10-25T01:10:00")) == 20 * 60


@pytest.mark.parametrize(
    ("zone", "hours", "now", "left"),
    [
        (BERLIN, "22:00-07:00", "2026-11-28T21:00:00", 9 * 3_600),
        (BERLIN, "22:00-07:00", "2026-11-29T05:59:30", 30),
        (BERLIN, "12:00-14:00", "2026-11-28T11:00:00", 2 * 3_600),
        # Nine hours by the clock are eight in spring and ten in autumn.
        (BERLIN, "22:00-07:00", "2026-03-28T21:00:00", 8 * 3_600),
        (BERLIN, "22:00-07:00", "2026-10-24T20:00:00", 10 * 3_600),
        (NEW_YORK, "22:00-07:00", "2026-03-08T03:00:00", 8 * 3_600),
        (NEW_YORK, "22:00-07:00", "2026-11-01T02:00:00", 10 * 3_600),
        # The clock skips the end.
        (BERLIN, "22:00-02:30", "2026-03-29T00:30:00", 3_600),
        (BERLIN, "03:30-02:30", "2026-03-29T00:30:00", 86_400),
        # It skips the end, and the next minute is quiet again.
        (BERLIN, "02:45-02:15", "2026-03-28T12:00:00", 36 * 3_600 + 900),
    ],
)
def test_the_seconds_until_quiet_hours_end(zone: ZoneInfo, hours: str, now: str, left: int) -> None:
    """By the clock of the zone."""
    assert quiet(hours, zone).seconds_left(at(now)) == left


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - hypothesis adds the zone
    st.integers(0, 1_439),
    st.integers(0, 1_439),
    st.sampled_from(
        ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia", "UTC"]
    ),
)
def test_quiet_hours_always_end(now: datetime, start: int, end: int, zone: str) -> None:
    """After the seconds stated, at most two days later, the call is allowed by this rule."""
    known = zone_named(zone)
    assert known is not None
    read = QuietHours(start, end, known)
    if start != end and read.holds(now):
        left = read.seconds_left(now)
        assert 1 <= left <= 2 * 86_400 + 3_600
        assert not read.holds(now + timedelta(seconds=left))


def test_a_zone_is_one_of_the_database() -> None:
    """A name is no path, and UTC needs no database."""
    assert zone_named("UTC") is UTC
    assert zone_named("Europe/Berlin") == BERLIN
    assert zone_named("America/Argentina/Buenos_Aires") is not None
    assert zone_named("Etc/GMT+5") is not None
    for name in (
        "",
        "Europe",
        "Europe/Bonn",
        "/etc/passwd",
        "../UTC",
        "Europe/../UTC",
        "a" * 500,
        "Europe\\Berlin",
        "Ü",
    ):
        assert zone_named(name) is None, name
