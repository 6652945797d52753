"""The ledger of X's limits: what X said is left, by account, endpoint and window. Has no number of its own.

Learned from the headers of every reply, kept across restarts, shared by replicas. A window that X showed as used up is
not asked again before its reset. Must never make a call wait for the database, nor hold one account's limit against
another: only what X calls the app's counts for all.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING, Any, cast

from birdwire.api.errors import GatewayError
from birdwire.runtime.clock import rfc3339
from birdwire.store.database import StorageDownError, now
from birdwire.store.tables import rate_windows as store
from birdwire.x.catalog import media
from birdwire.x.catalog.lookups import LOOKUPS
from birdwire.x.catalog.operations import OPERATIONS
from birdwire.x.client.rate_headers import LONGEST_S, about, spent, told

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from birdwire.api.reasons import Reason
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database
    from birdwire.x.client.pool import Reply
    from birdwire.x.client.rate_headers import Name

MOST = 20_000
"""Accounts times endpoints held in memory; beyond that the one that was learned of first is forgotten."""
LARGEST = 2**31 - 1
"""The largest number that PostgreSQL's columns hold; one row beyond it would keep all others from the store."""
EXCHANGE_EVERY_S = 2.0
WRITE_EVERY_S = 30.0
FORGET_EVERY_S = 600.0
OVERLAP = timedelta(seconds=10)
"""Rows are read again that changed so shortly before the last look: a transaction may end later than it began."""
BATCH = 500
APART_S = store.APART_US / 1e6

_APP = ""
"""The account of what counts for all of them."""

_Place = tuple[str, str]


@dataclass(slots=True)
class _Mark:
    """What is left in one window, and the UNIX second, by our clock, at which it resets."""

    limit: int | None
    remaining: int
    reset_at: float
    dirty: bool = True


class RateWindows:
    """The ledger of one X app."""

    def __init__(self, database: Database, clock: Clock, client_id: str) -> None:
        self._database = database
        self._clock = clock
        self._client_id = client_id
        self._marks: OrderedDict[_Place, dict[Name, _Mark]] = OrderedDict()
        self._empty: set[_Place] = set()
        self._heard: dict[_Place, tuple[float, dict[str, str]]] = {}
        self._read_up_to = datetime.fromtimestamp(0, UTC)
        self._write_all_at = self._forget_at = clock.monotonic()
        self.refused = 0

    def check(self, endpoint: str, account: str) -> None:
        """Let a call pass unless X said that one of its windows is used up.

        Raises:
            GatewayError: x_window_24h or x_window_15m, with the seconds until its reset; nothing was sent.
        """
        if not self._empty:
            return
        for place in ((account, endpoint), (_APP, endpoint)):
            if place in self._empty:
                self._check(place)

    def spare(self, endpoint: str, account: str) -> int | None:
        """How many calls are left in the tightest window; None: X did not say."""
        self._read_heard([(account, endpoint)])
        now_s = self._clock.now().timestamp()
        left = [
            mark.remaining
            for place in ((account, endpoint), (_APP, endpoint))
            for name, mark in self._marks.get(place, {}).items()
            if _runs(name, mark, now_s)
        ]
        return min(left, default=None)

    def learn(self, endpoint: str, account: str, reply: Reply) -> None:
        """Take in what a reply says of the windows; a 401 tells of nobody's."""
        if reply.status == 401:
            return
        if spent(reply.headers):
            self._hear(account, endpoint, reply.headers, self._clock.now())
            return
        heard, place, said = self._heard, (account, endpoint), about(reply.headers)
        if not said:
            return
        if place not in heard and len(heard) >= MOST:
            del heard[next(iter(heard))]
        heard[place] = self._clock.monotonic(), said

    def known(self, account: str) -> dict[str, dict[str, dict[str, Any]]]:
        """What is left to an account, by operation or look-up and window: {limit, remaining, reset_at}.

        One that calls several endpoints of X is as the tightest of them.
        """
        found: dict[str, dict[str, dict[str, Any]]] = {}
        self._read_heard([(account, endpoint) for endpoint in NAMES])
        now_s = self._clock.now().timestamp()
        for endpoint, operation in NAMES.items():
            for place in ((account, endpoint), (_APP, endpoint)):
                for name, mark in self._marks.get(place, {}).items():
                    if not _runs(name, mark, now_s):
                        continue
                    windows = found.setdefault(operation, {})
                    if name not in windows or mark.remaining < windows[name]["remaining"]:
                        reset_at = rfc3339(datetime.fromtimestamp(mark.reset_at, UTC))
                        windows[name] = {"limit": mark.limit, "remaining": mark.remaining, "reset_at": reset_at}
        return found

    async def exchange(self, *, everything: bool = False) -> None:
        """Write what is new here, and read what is new elsewhere: due every EXCHANGE_EVERY_S.

        Windows that are used up are written each time, the others every WRITE_EVERY_S.

        Raises:
            StorageDownError: what could not be written stays to be written.
        """
        at = self._clock.monotonic()
        everything = everything or at >= self._write_all_at
        while everything and (places := list(islice(self._heard, BATCH // 5))):
            self._read_heard(places)
            await asyncio.sleep(0)  # reading them all in one go would block other calls
        while new := self._new(everything=everything):
            async with self._database.write() as connection:
                changed_at = await now(connection, self._clock)
                await store.put(connection, [{**row, "changed_at": changed_at} for row, _ in new])
            for _, mark in new:
                mark.dirty = False
        if everything:
            self._write_all_at = at + WRITE_EVERY_S
        if at >= self._forget_at:
            self._sweep()
            async with self._database.write() as connection:
                await store.purge(connection, self._clock.now())
            self._forget_at = at + FORGET_EVERY_S
        await self._read()

    async def close(self) -> None:
        """Write down what is left to write, if the store takes it."""
        with contextlib.suppress(StorageDownError):
            await self.exchange(everything=True)

    async def _read(self) -> None:
        async with self._database.read() as connection:
            rows = await store.changed(connection, self._client_id, self._read_up_to, self._clock.now(), MOST)
        for row in rows:
            place, name = (row.user_id, row.endpoint), cast("Name", row.span)
            mark = _Mark(row.most, row.remaining, row.reset_at.timestamp(), dirty=False)
            ours = self._marks.get(place, {}).get(name)
            if ours is None or ours.reset_at <= mark.reset_at + APART_S:  # else X told us of a later window
                self._take(place, name, mark)
        if rows:
            self._read_up_to = max(self._read_up_to, rows[-1].changed_at - OVERLAP)

    def _hear(self, account: str, endpoint: str, headers: Mapping[str, str], at: datetime) -> None:
        for window in told(headers, at):
            place = (_APP if window.name == "24h_app" else account, endpoint)
            limit = None if window.limit is None else min(window.limit, LARGEST)
            mark = _Mark(limit, min(window.remaining, LARGEST), at.timestamp() + window.reset_in_s)
            self._take(place, window.name, mark)

    def _read_heard(self, places: Iterable[_Place]) -> None:
        """Read what replies said and nobody needed until now."""
        now, monotonic = self._clock.now(), self._clock.monotonic()
        for place in places:
            if heard := self._heard.pop(place, None):
                heard_at, headers = heard
                self._hear(*place, headers, now - timedelta(seconds=monotonic - heard_at))

    def _check(self, place: _Place) -> None:
        self._read_heard([place])
        at = self._clock.now()
        now_s = at.timestamp()
        for name in LONGEST_S:
            mark = self._marks.get(place, {}).get(name)
            if mark is None or mark.remaining or not _runs(name, mark, now_s):
                continue
            wait_s = max(1, ceil(mark.reset_at - now_s))
            self.refused += 1
            reset = f"at {rfc3339(at + timedelta(seconds=wait_s))}"
            reason: Reason = "x_window_15m" if name == "15m" else "x_window_24h"
            raise GatewayError(reason, retry_after_s=wait_s, reset=reset)
        self._empty.discard(place)

    def _take(self, place: _Place, name: Name, new: _Mark) -> None:
        """Take in one mark, if it says something new. Replies come out of order: in one window, less is newer."""
        marks = self._marks.get(place)
        if marks is None:
            if len(self._marks) >= MOST:
                gone, _ = self._marks.popitem(last=False)
                self._empty.discard(gone)
            marks = self._marks[place] = {}
        old = marks.get(name)
        same = old is not None and old.limit == new.limit and abs(old.reset_at - new.reset_at) <= APART_S
        if same and old is not None and new.remaining >= old.remaining:
            return
        marks[name] = new
        if new.remaining == 0:
            self._empty.add(place)

    def _new(self, *, everything: bool) -> list[tuple[dict[str, object], _Mark]]:
        """Some rows that the store does not have yet; if not everything, only of windows that are used up."""
        found: list[tuple[dict[str, object], _Mark]] = []
        for place in list(self._marks if everything else self._empty):
            for name, mark in self._marks.get(place, {}).items():
                if mark.dirty and (everything or mark.remaining == 0) and len(found) < BATCH:
                    found.append((self._row(place, name, mark), mark))
        return found

    def _row(self, place: _Place, name: Name, mark: _Mark) -> dict[str, object]:
        user_id, endpoint = place
        return {
            "client_id": self._client_id,
            "user_id": user_id,
            "endpoint": endpoint,
            "span": name,
            "most": mark.limit,
            "remaining": mark.remaining,
            "reset_at": datetime.fromtimestamp(mark.reset_at, UTC),
        }

    def _sweep(self) -> None:
        """Forget what is over."""
        now_s = self._clock.now().timestamp()
        for place, marks in list(self._marks.items()):
            if not any(_runs(name, mark, now_s) for name, mark in marks.items()):
                del self._marks[place]
                self._empty.discard(place)


def _runs(name: Name, mark: _Mark, now_s: float) -> bool:
    """Whether the window is not over; one that would last longer than it can is a clock that was set back."""
    return 0 < mark.reset_at - now_s <= LONGEST_S[name] + APART_S


def _names() -> Mapping[str, str]:
    """X's endpoints, by what calls them here."""
    operations = {row.endpoint: row.name for row in OPERATIONS}
    uploads = dict.fromkeys(media.ENDPOINTS, "upload_media")
    return operations | uploads | {endpoint: row.name for row in LOOKUPS for endpoint in row.endpoints}


NAMES: Mapping[str, str] = _names()
"""What apps call the endpoints of X."""
