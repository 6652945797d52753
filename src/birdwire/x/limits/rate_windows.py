"""X's rate windows: the calls left by account, endpoint and window, as X's replies report them.

They are learned from the headers of every reply, kept across restarts and shared by replicas. A window that X reported
as exhausted is not asked again before its reset. This module has no limit of X built in, never makes a call wait for
the database, and never applies one account's limit to another: only what X calls the app's window counts for all.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING, Any, cast

from birdwire.api.errors import GatewayError
from birdwire.runtime.bounded_dict import BoundedDict
from birdwire.runtime.clock import rfc3339
from birdwire.store.database import StorageDownError, now
from birdwire.store.tables import rate_windows as store
from birdwire.x.catalog.endpoints import CALLED_BY
from birdwire.x.client.rate_headers import MAX_WINDOW_S, parse, reported_remaining

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from birdwire.api.reason_type import Reason
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database
    from birdwire.x.client.pool import Reply
    from birdwire.x.client.rate_headers import WindowName

MAX_SUBJECTS = 20_000
"""Accounts times endpoints held in memory; beyond that, the one that was learned first is evicted."""
MAX_COLUMN_VALUE = 2**31 - 1
"""The largest number that PostgreSQL's columns hold; one row beyond it would fail the whole batch."""
SYNC_INTERVAL_S = 2.0
WRITE_INTERVAL_S = 30.0
PRUNE_INTERVAL_S = 600.0
REREAD_OVERLAP = timedelta(seconds=10)
"""Rows that changed so shortly before the last read are read again: transactions may commit out of order."""
MAX_BATCH_ROWS = 500
SAME_RESET_S = store.APART_US / 1e6

_APP = ""
"""Stands for the account in windows that count for all accounts."""

_Subject = tuple[str, str]
"""An account and an endpoint."""


@dataclass(slots=True)
class _Window:
    """The calls left in one window, and the UNIX second, by this clock, at which it resets."""

    limit: int | None
    remaining: int
    reset_at: float
    unsaved: bool = True


class RateWindows:
    """The rate windows of one X app."""

    def __init__(self, database: Database, clock: Clock, client_id: str) -> None:
        self._database = database
        self._clock = clock
        self._client_id = client_id
        self._exhausted: set[_Subject] = set()
        self._windows: BoundedDict[_Subject, dict[WindowName, _Window]] = BoundedDict(
            MAX_SUBJECTS, self._exhausted.discard
        )
        # A plain dict, which is set for every reply: a BoundedDict takes ten times as long.
        self._unparsed: dict[_Subject, tuple[float, Mapping[str, bytes]]] = {}
        self._read_up_to = datetime.fromtimestamp(0, UTC)
        self._write_all_at = self._prune_at = clock.monotonic()
        self.refused = 0

    def check(self, endpoint: str, account: str) -> None:
        """Refuse a call if X reported one of its windows as exhausted.

        Raises:
            GatewayError: x_window_24h or x_window_15m, with the seconds until its reset. Nothing was sent.
        """
        if self._exhausted and (refusal := self.refusal(endpoint, account)) is not None:
            self.refused += 1
            raise refusal

    def refusal(self, endpoint: str, account: str) -> GatewayError | None:
        """Return the refusal that a call would get now, without counting it as one."""
        for subject in ((account, endpoint), (_APP, endpoint)):
            if subject in self._exhausted and (refusal := self._refusal(subject)) is not None:
                return refusal
        return None

    def remaining(self, endpoint: str, account: str) -> int | None:
        """Return the calls left in the tightest window; None if X reported none."""
        self._parse([(account, endpoint)])
        now_s = self._clock.now().timestamp()
        left = [
            window.remaining
            for subject in ((account, endpoint), (_APP, endpoint))
            for name, window in self._windows.get(subject, {}).items()
            if _is_open(name, window, now_s)
        ]
        return min(left, default=None)

    def record(self, endpoint: str, account: str, reply: Reply) -> None:
        """Record the windows that a reply reports. A 401 is ignored: it reports no account's windows."""
        remaining = reported_remaining(reply.headers)
        if not remaining or reply.status == 401:
            return
        if b"0" in remaining:
            self._merge_headers(account, endpoint, reply.headers, self._clock.now())
            return
        unparsed, subject = self._unparsed, (account, endpoint)
        if subject not in unparsed and len(unparsed) >= MAX_SUBJECTS:
            del unparsed[next(iter(unparsed))]
        # Parsing costs more than the rest, and most headers are replaced before they are needed.
        unparsed[subject] = self._clock.monotonic(), reply.headers

    def report(self, account: str) -> dict[str, dict[str, dict[str, Any]]]:
        """Return {limit, remaining, reset_at} by operation or lookup and by window, as far as X reported them.

        One that calls several endpoints of X has the tightest of their windows.
        """
        found: dict[str, dict[str, dict[str, Any]]] = {}
        self._parse([(account, endpoint) for endpoint in CALLED_BY])
        now_s = self._clock.now().timestamp()
        for endpoint, operation in CALLED_BY.items():
            for subject in ((account, endpoint), (_APP, endpoint)):
                for name, window in self._windows.get(subject, {}).items():
                    if not _is_open(name, window, now_s):
                        continue
                    windows = found.setdefault(operation, {})
                    if name not in windows or window.remaining < windows[name]["remaining"]:
                        reset_at = rfc3339(datetime.fromtimestamp(window.reset_at, UTC))
                        windows[name] = {"limit": window.limit, "remaining": window.remaining, "reset_at": reset_at}
        return found

    async def sync(self, *, everything: bool = False) -> None:
        """Write what is new in this process, and read what is new in others: due every SYNC_INTERVAL_S.

        Exhausted windows are written each time, the others every WRITE_INTERVAL_S.

        Raises:
            StorageDownError: the unsaved windows are written the next time.
        """
        at = self._clock.monotonic()
        everything = everything or at >= self._write_all_at
        while everything and (subjects := list(islice(self._unparsed, MAX_BATCH_ROWS // 5))):
            self._parse(subjects)
            # Parsing all of them in one go would block other calls.
            await asyncio.sleep(0)
        while unsaved := self._unsaved(everything=everything):
            async with self._database.write() as connection:
                changed_at = await now(connection, self._clock)
                await store.put(connection, [{**row, "changed_at": changed_at} for row, _ in unsaved])
            for _, window in unsaved:
                window.unsaved = False
        if everything:
            self._write_all_at = at + WRITE_INTERVAL_S
        if at >= self._prune_at:
            self._prune()
            async with self._database.write() as connection:
                await store.purge(connection, self._clock.now())
            self._prune_at = at + PRUNE_INTERVAL_S
        await self._read()

    async def close(self) -> None:
        """Write what is unsaved, unless the database does not answer."""
        with contextlib.suppress(StorageDownError):
            await self.sync(everything=True)

    async def _read(self) -> None:
        async with self._database.read() as connection:
            rows = await store.changed(connection, self._client_id, self._read_up_to, self._clock.now(), MAX_SUBJECTS)
        for row in rows:
            subject, name = (row.user_id, row.endpoint), cast("WindowName", row.span)
            window = _Window(row.most, row.remaining, row.reset_at.timestamp(), unsaved=False)
            ours = self._windows.get(subject, {}).get(name)
            # Otherwise X has already reported a later window to this process.
            if ours is None or ours.reset_at <= window.reset_at + SAME_RESET_S:
                self._merge(subject, name, window)
        if rows:
            self._read_up_to = max(self._read_up_to, rows[-1].changed_at - REREAD_OVERLAP)

    def _parse(self, subjects: Iterable[_Subject]) -> None:
        """Parse the headers that were recorded and not needed until now."""
        now, monotonic = self._clock.now(), self._clock.monotonic()
        for subject in subjects:
            if unparsed := self._unparsed.pop(subject, None):
                received_at, headers = unparsed
                self._merge_headers(*subject, headers, now - timedelta(seconds=monotonic - received_at))

    def _merge_headers(self, account: str, endpoint: str, headers: Mapping[str, bytes], at: datetime) -> None:
        for reported in parse(headers, at):
            subject = (_APP if reported.name == "24h_app" else account, endpoint)
            limit = None if reported.limit is None else min(reported.limit, MAX_COLUMN_VALUE)
            remaining = min(reported.remaining, MAX_COLUMN_VALUE)
            self._merge(subject, reported.name, _Window(limit, remaining, at.timestamp() + reported.reset_in_s))

    def _merge(self, subject: _Subject, name: WindowName, new: _Window) -> None:
        """Keep a reported window if it is news. Replies come out of order: in one window, fewer calls left is newer."""
        windows = self._windows.get(subject)
        if windows is None:
            windows = self._windows[subject] = {}
        old = windows.get(name)
        same = old is not None and old.limit == new.limit and abs(old.reset_at - new.reset_at) <= SAME_RESET_S
        if same and old is not None and new.remaining >= old.remaining:
            return
        windows[name] = new
        if new.remaining == 0:
            self._exhausted.add(subject)

    def _refusal(self, subject: _Subject) -> GatewayError | None:
        self._parse([subject])
        at = self._clock.now()
        now_s = at.timestamp()
        for name in MAX_WINDOW_S:
            window = self._windows.get(subject, {}).get(name)
            if window is None or window.remaining or not _is_open(name, window, now_s):
                continue
            wait_s = max(1, ceil(window.reset_at - now_s))
            reset = f"at {rfc3339(at + timedelta(seconds=wait_s))}"
            reason: Reason = "x_window_15m" if name == "15m" else "x_window_24h"
            return GatewayError(reason, retry_after_s=wait_s, reset=reset)
        self._exhausted.discard(subject)
        return None

    def _unsaved(self, *, everything: bool) -> list[tuple[dict[str, object], _Window]]:
        """Return a batch of unsaved windows with their rows; unless `everything`, only exhausted ones."""
        found: list[tuple[dict[str, object], _Window]] = []
        for subject in list(self._windows if everything else self._exhausted):
            for name, window in self._windows.get(subject, {}).items():
                if window.unsaved and (everything or window.remaining == 0) and len(found) < MAX_BATCH_ROWS:
                    found.append((self._row(subject, name, window), window))
        return found

    def _row(self, subject: _Subject, name: WindowName, window: _Window) -> dict[str, object]:
        user_id, endpoint = subject
        return {
            "client_id": self._client_id,
            "user_id": user_id,
            "endpoint": endpoint,
            "span": name,
            "most": window.limit,
            "remaining": window.remaining,
            "reset_at": datetime.fromtimestamp(window.reset_at, UTC),
        }

    def _prune(self) -> None:
        """Drop the windows that have reset."""
        now_s = self._clock.now().timestamp()
        for subject, windows in list(self._windows.items()):
            if not any(_is_open(name, window, now_s) for name, window in windows.items()):
                del self._windows[subject]
                self._exhausted.discard(subject)


def _is_open(name: WindowName, window: _Window, now_s: float) -> bool:
    """Return whether a window has not reset yet. One longer than X's windows shows that this clock was set back."""
    return 0 < window.reset_at - now_s <= MAX_WINDOW_S[name] + SAME_RESET_S
