"""The windows of X's limits by itself: out of order, over, too many, and with a store that is away."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birdwire.api.errors import GatewayError
from birdwire.runtime.clock import Clock
from birdwire.store.database import Database, StorageDownError
from birdwire.store.tables import rate_windows as store
from birdwire.x.catalog.endpoints import CALLED_BY
from birdwire.x.catalog.operations import OPERATIONS
from birdwire.x.client.pool import Reply
from birdwire.x.client.rate_headers import MAX_WINDOW_S, parse
from birdwire.x.limits.rate_windows import MAX_SUBJECTS, RateWindows

if TYPE_CHECKING:
    from pathlib import Path

START = datetime(2026, 4, 18, 7, tzinfo=UTC)
LIKE, ADA = "POST /2/users/{user_id}/likes", "2244994945"


class Still(Clock):
    """A time that a test sets."""

    at = START

    def unix_s(self) -> float:
        """As set."""
        return self.at.timestamp()

    def monotonic(self) -> float:
        """As set."""
        return self.at.timestamp()


@pytest.fixture
def clock() -> Still:
    """A time that stands."""
    return Still()


@pytest.fixture
def windows(clock: Still, tmp_path: Path) -> RateWindows:
    """Windows without any replies, on a missing database."""
    return RateWindows(Database(f"sqlite:///{tmp_path / 'none' / 'b.db'}"), clock, "app")


def reply(remaining: object, reset_in_s: int = 900, status: int = 200, prefix: str = "x-rate-limit") -> Reply:
    """A reply that tells of one window."""
    reset = str(int(START.timestamp()) + reset_in_s)
    headers = {f"{prefix}-limit": "50", f"{prefix}-remaining": str(remaining), f"{prefix}-reset": reset}
    headers["date"] = format_datetime(START, usegmt=True)
    return Reply(status, {name: value.encode() for name, value in headers.items()}, b"")


def held(windows: RateWindows, account: str = ADA) -> tuple[str, int | None] | None:
    """Why and how long a like is held; None: it is not."""
    try:
        windows.check(LIKE, account)
    except GatewayError as error:
        return error.reason, error.retry_after_s
    return None


def test_replies_that_come_out_of_order_do_not_open_a_window_again(windows: RateWindows, clock: Still) -> None:
    """In one window less is newer; a later window is newer than all of it."""
    for remaining, reset_in_s in ((1, 900), (0, 899), (1, 901), (5, 900)):
        windows.record(LIKE, ADA, reply(remaining, reset_in_s))
    assert held(windows) == ("x_window_15m", 899)
    assert (held(windows, "1"), windows.refused) == (None, 1)
    clock.at += timedelta(seconds=899)
    assert held(windows) is None
    assert windows.remaining(LIKE, ADA) is None


def test_a_day_decides_before_a_quarter_of_an_hour(windows: RateWindows) -> None:
    """The shorter wait would be in vain."""
    windows.record(LIKE, ADA, reply(0, 60))
    windows.record(LIKE, ADA, reply(0, 7_000, prefix="x-user-limit-24hour"))
    assert held(windows) == ("x_window_24h", 7_000)
    assert windows.remaining(LIKE, ADA) == 0


def test_a_401_updates_no_window(windows: RateWindows) -> None:
    """X does not know whose window it should have looked at."""
    windows.record(LIKE, ADA, reply(0, status=401))
    assert held(windows) is None


def test_a_clock_that_is_set_back_holds_nothing_for_longer_than_a_window_lasts(
    windows: RateWindows, clock: Still
) -> None:
    """Three hours of waiting for a quarter of an hour would be nonsense."""
    windows.record(LIKE, ADA, reply(0))
    clock.at -= timedelta(hours=3)
    assert held(windows) is None


def test_a_raised_limit_counts_immediately(windows: RateWindows) -> None:
    """Another limit is another window."""
    windows.record(LIKE, ADA, reply(0))
    raised = dict(reply(40).headers) | {"x-rate-limit-limit": b"100"}
    windows.record(LIKE, ADA, Reply(200, raised, b""))
    assert held(windows) is None
    assert windows.remaining(LIKE, ADA) == 40


def test_its_memory_is_bounded(windows: RateWindows) -> None:
    """The account learned of first is forgotten first."""
    for account in range(MAX_SUBJECTS + 10):
        windows.record(LIKE, str(account), reply(0))
    assert held(windows, "0") is None
    assert held(windows, str(MAX_SUBJECTS)) is not None
    assert len(vars(windows)["_windows"]) == len(vars(windows)["_exhausted"]) == MAX_SUBJECTS


async def test_an_unavailable_store_changes_no_window_in_memory(windows: RateWindows) -> None:
    """What cannot be written is kept and written later; an end without it is an end."""
    windows.record(LIKE, ADA, reply(0))
    with pytest.raises(StorageDownError):
        await windows.sync()
    assert held(windows) is not None
    await windows.close()


async def test_expired_windows_are_deleted_from_memory_and_store(clock: Still, tmp_path: Path) -> None:
    """Nothing grows with time."""
    database = Database(f"sqlite:///{tmp_path / 'b.db'}")
    await database.prepare(upgrade=False)
    windows = RateWindows(database, clock, "app")
    for account in range(3):
        windows.record(LIKE, str(account), reply(account))
    await windows.sync(everything=True)
    clock.at += timedelta(hours=1)
    await windows.sync()
    assert (len(vars(windows)["_windows"]), vars(windows)["_exhausted"]) == (0, set())
    async with database.read() as connection:
        assert await store.changed(connection, "app", START - timedelta(days=1), START, 10) == []
    await database.close()


@pytest.mark.engines("sqlite", "postgres")
async def test_a_number_that_no_column_holds_keeps_no_other_from_the_store(clock: Still, database_url: str) -> None:
    """X may say anything; what it says of others is shared all the same, and a huge rest is a large one."""
    database = Database(database_url)
    await database.prepare(upgrade=False)
    first, second = RateWindows(database, clock, "app"), RateWindows(database, clock, "app")
    headers = dict(reply(99_999_999_999).headers) | {"x-rate-limit-limit": b"99999999999"}
    first.record(LIKE, "1", Reply(200, headers, b""))
    first.record(LIKE, ADA, reply(0))
    await first.sync(everything=True)
    await second.sync()
    assert held(second) is not None
    assert (second.remaining(LIKE, "1") or 0) > 1_000_000
    await database.close()


def test_every_operation_is_among_the_names() -> None:
    """Or its limits would be learned and not shown."""
    assert {row.name for row in OPERATIONS} <= set(CALLED_BY.values())


TEXTS = st.one_of(st.integers(-5, 10**13).map(str), st.text(max_size=20), st.just("0"))
VALUES = st.one_of(st.none(), TEXTS.map(str.encode), st.binary(max_size=20))


@given(
    remaining=VALUES,
    limit=VALUES,
    reset=VALUES,
    date=st.one_of(
        VALUES, st.datetimes().map(lambda at: format_datetime(at.replace(tzinfo=UTC), usegmt=True).encode())
    ),
    prefix=st.sampled_from(["x-rate-limit", "x-user-limit-24hour", "x-app-limit-24hour"]),
)
@settings(max_examples=300)
def test_no_header_of_x_makes_a_window_that_cannot_be(
    remaining: bytes | None, limit: bytes | None, reset: bytes | None, date: bytes | None, prefix: str
) -> None:
    """Whatever it says: a rest that is a number, and a wait between a second and the window's length."""
    given_headers = {f"{prefix}-remaining": remaining, f"{prefix}-limit": limit, f"{prefix}-reset": reset, "date": date}
    for window in parse({name: value for name, value in given_headers.items() if value is not None}, START):
        assert window.remaining >= 0
        assert 1 <= window.reset_in_s <= MAX_WINDOW_S[window.name]
