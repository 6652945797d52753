"""The schedule of a delivery: when it is tried again, and for how long a destination may fail."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

    from birdwire.runtime.outbound import Sent

DELAYS: Final = (
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
    timedelta(hours=14),
    timedelta(hours=20),
    timedelta(hours=24),
)
"""The delay after each failed try. After the try that follows the last one, the delivery is given up."""

MAX_HOLD: Final = timedelta(hours=24)
"""The longest delay that a Retry-After can ask for."""

FAILING_FOR: Final = timedelta(days=5)
"""How long a destination may fail before it is switched off."""

CONTINUES_WITHIN: Final = DELAYS[-1] + timedelta(hours=1)
"""A failure continues an earlier one only within this time: nobody knows how the destination was in between.

Otherwise one failed try would switch it off that follows a quiet week, or the week that a laptop was closed.
"""

GONE: Final = 410
"""The status by which a receiver wants no further deliveries."""

_OVERLOADED: Final = (429, 503)


def asked_delay(sent: Sent) -> timedelta:
    """Return for how long a destination wants no delivery: the Retry-After of a 429 or 503, up to MAX_HOLD."""
    if sent.status not in _OVERLOADED or sent.retry_after_s is None:
        return timedelta()
    return min(timedelta(seconds=max(0.0, sent.retry_after_s)), MAX_HOLD)


def next_try(tries: int, failed_at: datetime, sent: Sent) -> datetime | None:
    """Return when a delivery is due that has failed for the `tries`-th time; None: it is given up."""
    return None if tries > len(DELAYS) else failed_at + max(DELAYS[tries - 1], asked_delay(sent))
