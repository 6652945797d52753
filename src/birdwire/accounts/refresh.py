"""Renews the tokens of a session: asks X once, and stores the new pair before any call uses it. Never calls X's API.

X accepts a refresh token once. So a refresh, in reading order, stores that the token is about to be presented, presents
it once within a lease, and stores the new pair. The session's row decides, not a lock, and no transaction is open while
X is asked. A process that dies or freezes on the way leaves its mark in the row, and the next process acts on that.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from dataclasses import replace
from datetime import timedelta
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ulid import ULID

from birdwire.accounts.acts import account_of, notify
from birdwire.accounts.tokens import binding_of
from birdwire.api.errors import GatewayError
from birdwire.runtime.backoff import Backoff
from birdwire.runtime.bounded_dict import BoundedDict
from birdwire.runtime.single_flight import SingleFlight
from birdwire.store import database
from birdwire.store.database import StorageDownError
from birdwire.store.encryption.vault import DamagedError, VaultError
from birdwire.store.tables import x_sessions as store
from birdwire.store.tables.x_sessions import LinkState, RefreshState
from birdwire.x.client.auth_server import TOKEN_DEADLINE_S, Meaning, TokenError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.accounts.revocation import RevocationQueue
    from birdwire.accounts.tokens import SealedTokens
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.failpoints import Failpoints
    from birdwire.runtime.telemetry import Level, Telemetry
    from birdwire.store.database import Database
    from birdwire.store.tables.x_sessions import SessionRow
    from birdwire.x.client.auth_server import AuthServer, Tokens

EARLY_S, MAX_JITTER_S = 15 * 60, 10 * 60
MAX_CONCURRENT, MAX_IN_BACKGROUND = 50, 8
WAIT_S = 12.0
"""How long a caller waits: longer than the process that asks X (TOKEN_DEADLINE_S), so that it sees the outcome."""

LEASE, MAX_LEASE = timedelta(seconds=30), timedelta(minutes=8)
"""Always longer than TOKEN_DEADLINE_S: while one process may still send, no other does."""

# That reaches MAX_LEASE; more doublings would overflow in an outage of half a day.
_MAX_DOUBLINGS = 4
STALE_CLAIM_S = 5.0
ANSWER_WITHIN = timedelta(seconds=TOKEN_DEADLINE_S + 2)
INITIAL_POLL_S, MAX_POLL_S = 0.05, 0.5
INITIAL_PAUSE_S, MAX_PAUSE_S = 1.0, 32.0
MAX_PAUSES = 10_000
CLOSE_WAIT_S = 15.0

Outcome = Literal[
    "success",
    "late",
    "refused",
    "held",
    "not_sent",
    "lost_reply",
    "x_5xx",
    "operator_fault",
    "wait_timeout",
    "persist_failure",
]
"""The outcome of a refresh. late: another pair was stored first, or the link has ended; held: X neither accepted nor
refused (429 and the like); lost_reply: X may have accepted the token, and its answer is lost; x_5xx: X may have, and
failed."""

LOST = "refresh_lost_reply"

_OUTCOMES: dict[Meaning, Outcome] = {
    Meaning.REFUSED: "refused",
    Meaning.OPERATOR: "operator_fault",
    Meaning.HELD: "held",
    Meaning.FAILED: "x_5xx",
    Meaning.MAYBE: "lost_reply",
    Meaning.NOT_SENT: "not_sent",
}


class _Pause(NamedTuple):
    """A backoff of a session: its length, its end by the monotonic clock, and whether X failed (5xx)."""

    length_s: float
    ends_at: float
    failed: bool


class Refresher:
    """The refreshes of one process: at most 50 concurrently, 8 of them in the background, and one per session.

    `require_relink` marks a link whose tokens X no longer accepts, and stores why.
    """

    def __init__(
        self,
        database: Database,
        tokens: SealedTokens,
        authserver: AuthServer,
        revocations: RevocationQueue,
        require_relink: Callable[[SessionRow, str | None], Awaitable[None]],
        clock: Clock,
        telemetry: Telemetry,
        failpoints: Failpoints,
    ) -> None:
        self._database = database
        self._tokens = tokens
        self._authserver = authserver
        self._revocations = revocations
        self._require_relink = require_relink
        self._clock = clock
        self._telemetry = telemetry
        self._failpoints = failpoints
        self._written = partial(failpoints.reach_now, "refresh_in_persist")
        self._process_id = f"gw_{ULID()}"
        self._flights: SingleFlight[SessionRow] = SingleFlight()
        self._slots = asyncio.Semaphore(MAX_CONCURRENT)
        self._background: set[asyncio.Task[SessionRow]] = set()
        self._pauses: BoundedDict[str, _Pause] = BoundedDict(MAX_PAUSES)
        self._draining = False
        self.unsaved = 0
        """Pairs that X has issued and the store has not accepted yet. While there are any, no refresh starts."""

    def drain(self) -> None:
        """Stop background renewals, as this process is shutting down; calls still renew the tokens that they need."""
        self._draining = True

    def start(self, row: SessionRow) -> None:
        """Renew in the background if it is due and a slot is free: the old token still works, and no call waits.

        Without a free slot, the session's next call tries again.
        """
        now = self._clock.now()
        if self._draining or renews_at(row) > now or _lease_runs(row, now) or row.refresh_state == RefreshState.OVER:
            return
        # Without a refresh token, the access token is good until it expires.
        if row.refresh_ct is None:
            return
        if len(self._background) >= MAX_IN_BACKGROUND or self._pause_s(row.session_id) > 0:
            return
        task = self._flights.start(row.session_id, lambda: self._refresh(row.session_id, row.gen, early=True))
        if task not in self._background:
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def refreshed(self, row: SessionRow) -> SessionRow:
        """Return the row with a newer pair, from any process's refresh. It continues if the caller stops waiting.

        Raises:
            GatewayError: x_session_expired, or why X could not be asked or did not answer.
            StorageDownError: X was not asked.
        """
        session_id, gen = row.session_id, row.gen
        try:
            async with asyncio.timeout(WAIT_S):
                return await self._flights.run(session_id, lambda: self._refresh(session_id, gen))
        except TimeoutError:
            self._report("wait_timeout", session_id)
            # After any wait, the row is read before a decision.
            row, _ = await self._read(session_id)
            if row.gen != gen:
                return row
            raise GatewayError("x_timeout") from None

    async def close(self) -> None:
        """Wait for running refreshes: their tokens are spent once sent."""
        await self._flights.close(CLOSE_WAIT_S)

    # The steps of one refresh.

    async def _refresh(self, session_id: str, gen: int, *, early: bool = False) -> SessionRow:
        while True:
            row = await self._presentable(session_id, gen)
            # Another refresh may have finished first.
            if row.gen != gen:
                return row
            if self._pause_s(session_id, failed=True) > 0:
                raise self._failed(session_id)
            refresh_token = await self._refresh_token(row)
            async with self._slots:
                await self._database.ready(store.SAVE)
                claimed_at = self._clock.monotonic()
                await self._failpoints.reach("refresh_before_claim")
                claimed = await self._claim(row)
                # Another process claimed the token first: wait for its answer.
                if claimed is None:
                    continue
                await self._failpoints.reach("refresh_after_claim")
                # This process was frozen, and another may soon hold the lease.
                if self._clock.monotonic() - claimed_at > STALE_CLAIM_S:
                    await self._unclaim(claimed)
                    raise GatewayError("x_timeout")
                try:
                    asking = self._authserver.refresh(refresh_token)
                    tokens = await self._failpoints.during("refresh_after_send", asking)
                except TokenError as error:
                    return await self._without_tokens(claimed, error, early=early)
                await self._failpoints.reach("refresh_after_reply")
                return await self._save(claimed, tokens)

    async def _presentable(self, session_id: str, gen: int) -> SessionRow:
        """Return the row as soon as it has another pair, or its token may be presented.

        Raises:
            GatewayError: the link is over; or the token was presented, and its answer will not arrive.
        """
        pauses = iter(Backoff(INITIAL_POLL_S, MAX_POLL_S))
        while True:
            row, now = await self._read(session_id)
            if row.gen != gen:
                return row
            if row.state == LinkState.NEEDS_RELINK:
                raise _expired(row)
            # The old access token is over, too, or no caller would ask.
            if row.refresh_state == RefreshState.OVER:
                raise await self._ended(row, row.why)
            if not _lease_runs(row, now):
                return row
            sent_here = row.presented_by in (None, self._process_id)
            if sent_here or row.presented_at is None or row.presented_at + ANSWER_WITHIN < now:
                raise GatewayError("x_timeout")
            # Another process is asking X.
            await asyncio.sleep(next(pauses))

    async def _refresh_token(self, row: SessionRow) -> str:
        if row.refresh_ct is None:
            raise await self._ended(row, "no_refresh_token")
        try:
            return self._tokens.open(row, "refresh")
        except DamagedError:
            raise await self._ended(row, "damaged") from None
        except VaultError:
            # The vault key is missing. The link stays: the operator may configure the key again.
            self._telemetry.event("error", "session_unreadable", session_id=row.session_id)
            raise _expired(row) from None

    async def _claim(self, row: SessionRow) -> SessionRow | None:
        """Store durably that the refresh token is about to be presented; return None if another process did so first.

        It also proves that the store accepts writes. A claim whose answer was lost leaves its mark. When its lease
        expires, the same token is presented again: if X has rotated it, it is lost in any case, and X refuses it; if X
        never accepted it, this saves the link. X's outages last for hours, so the lease doubles with each such try, and
        only a refusal by X ends a link.
        """
        if self.unsaved:
            raise StorageDownError("UnsavedPair")
        async with self._database.write() as connection:
            values = {
                "refresh_state": RefreshState.PRESENTED,
                "presented_gen": row.gen,
                "presented_at": await database.now(connection, self._clock),
                "presented_by": self._process_id,
                "tries": row.tries + 1,
            }
            if not await store.mark(connection, row, values):
                return None
            return await _get(connection, row.session_id)

    async def _without_tokens(self, row: SessionRow, error: TokenError, *, early: bool) -> SessionRow:
        """Handle a reply without tokens by its meaning (see the table in `auth_server`).

        `early`: the old access token works, and callers continue to use it.
        """
        session_id = row.session_id
        self._report(_OUTCOMES[error.meaning], session_id)
        if error.meaning is Meaning.REFUSED:
            # A refusal proves nothing if another process has refreshed in the meantime.
            newer, _ = await self._read(session_id)
            if newer.gen != row.gen:
                return newer
            if not early or _why(row) != LOST:
                raise await self._ended(row, _why(row))
            # Until the access token expires, a frozen process may resume that holds X's answer.
            await self._mark(row, {"refresh_state": RefreshState.OVER, "why": LOST})
            raise GatewayError("x_timeout")
        if error.meaning is Meaning.FAILED:
            # X may have accepted the token now, and a later refusal may be due to that.
            await self._release(row, tries=max(1, row.tries - 1))
            self._pause(session_id, failed=True)
            raise self._failed(session_id, error.upstream)
        if error.meaning is Meaning.MAYBE:
            # If the store is unavailable, other processes wait a little longer before they know.
            with contextlib.suppress(StorageDownError):
                await self._mark(row, {"presented_by": None})
        else:
            # X did not accept the token, so it may be presented again after a pause.
            await self._unclaim(row)
            self._pause(session_id, failed=False)
        raise GatewayError(error.reason, upstream=error.upstream)

    async def _save(self, row: SessionRow, tokens: Tokens) -> SessionRow:
        """Store the new pair before any call uses it. The old pair is spent, so retry until the store accepts it."""
        replied_at = self._clock.monotonic()
        session_id, gen = row.session_id, row.gen + 1
        kept = tokens if tokens.refresh_token else replace(tokens, refresh_token=self._tokens.open(row, "refresh"))
        values = {
            **self._tokens.seal(binding_of(row), gen, kept),
            "scopes": row.scopes if tokens.scopes is None else " ".join(tokens.scopes),
            "refreshed_at": self._clock.now(),
        }
        self._pauses.pop(session_id, None)
        try:
            newer = await self._store(row, values, kept)
        except StorageDownError:
            newer = await self._store_with_retries(row, values, kept)
        ms = round((self._clock.monotonic() - replied_at) * 1000, 1)
        # What this refresh does next must not delay the pairs that still wait to be stored.
        await self._database.saved()
        await self._failpoints.reach("refresh_after_persist")
        ours = newer is not None and newer.access_ct == values["access_ct"]
        self._report("success" if ours else "late", session_id, level="info", ms=ms)
        if newer is None:
            raise GatewayError("x_not_linked")
        return newer

    async def _store(self, row: SessionRow, values: dict[str, Any], tokens: Tokens) -> SessionRow | None:
        """Store the pair if the row still has the old generation, else discard it; return the row.

        A link that was marked as needs_relink in the meantime is active again, which is an event.
        """
        if await self._database.save(store.SAVE, store.saved(row, values), row.key_id, self._written):
            # The row is not read again: that would cost more than the save, and other pairs wait.
            return replace(row, **values)
        async with self._database.write() as connection:
            newer = await store.get(connection, row.session_id, hold=True)
            if newer is not None and newer.gen == row.gen:
                # X may have named the account since the pair was encrypted.
                values |= self._tokens.rename(replace(row, **values), newer.user_id)
                await store.save(connection, newer, values)
                if newer.state == LinkState.NEEDS_RELINK:
                    await notify(connection, "account.recovered", self._clock.now(), newer)
                newer = await store.get(connection, row.session_id)
            elif newer is None and not await store.acts_as(connection, row):
                # The key was unlinked, so the pair must not stay valid.
                await self._revocations.add_pair(connection, row.issuer, tokens)
        return newer

    async def _store_with_retries(self, row: SessionRow, values: dict[str, Any], tokens: Tokens) -> SessionRow | None:
        """Repeat `_store` until the store accepts the pair. Until then, this process asks X for no other pair."""
        pauses = iter(Backoff(INITIAL_PAUSE_S / 16, MAX_PAUSE_S))
        self.unsaved += 1
        try:
            while True:
                self._report("persist_failure", row.session_id, level="error")
                await asyncio.sleep(next(pauses))
                with contextlib.suppress(StorageDownError):
                    return await self._store(row, values, tokens)
        finally:
            self.unsaved -= 1

    async def _ended(self, row: SessionRow, why: str | None) -> GatewayError:
        """Mark the link as over, and return the refusal."""
        await self._require_relink(row, why)
        return _expired(row)

    async def _unclaim(self, row: SessionRow) -> None:
        """Withdraw a claim whose token X did not accept; what was lost before it still counts."""
        await self._release(row, tries=row.tries - 1)

    async def _release(self, row: SessionRow, *, tries: int) -> None:
        """Let the token be presented again; `tries`: how often X may have accepted it."""
        await self._mark(row, {"refresh_state": RefreshState.IDLE, "tries": tries})

    async def _mark(self, row: SessionRow, values: dict[str, object]) -> None:
        """Change this process's own mark, but not one that another process has set since."""
        async with self._database.write() as connection:
            await store.mark(connection, row, values)

    async def _read(self, session_id: str) -> tuple[SessionRow, datetime]:
        """Return the row, and the time by which its lease is counted."""
        async with self._database.read() as connection:
            return await _get(connection, session_id), await database.now(connection, self._clock)

    def _pause(self, session_id: str, *, failed: bool) -> None:
        last = self._pauses.get(session_id)
        if last is None or last.ends_at + MAX_PAUSE_S < self._clock.monotonic():
            length_s = INITIAL_PAUSE_S
        else:
            length_s = min(MAX_PAUSE_S, 2 * last.length_s)
        self._pauses[session_id] = _Pause(length_s, self._clock.monotonic() + length_s, failed)

    def _pause_s(self, session_id: str, *, failed: bool = False) -> float:
        """Return how much of a session's pause is left; `failed`: only of a pause because X failed."""
        pause = self._pauses.get(session_id)
        return 0.0 if pause is None or (failed and not pause.failed) else pause.ends_at - self._clock.monotonic()

    def _failed(self, session_id: str, upstream: dict[str, object] | None = None) -> GatewayError:
        wait_s = ceil(self._pause_s(session_id))
        return GatewayError("x_renewal_failed", retry_after_s=max(1, wait_s), upstream=upstream)

    def _report(self, outcome: Outcome, session_id: str, *, level: Level = "warning", **fields: float) -> None:
        self._telemetry.metrics.add("birdwire_refreshes_total", outcome)
        self._telemetry.event(level, "refresh", outcome=outcome, session_id=session_id, **fields)


def renews_at(row: SessionRow) -> datetime:
    """Return when the token is to be renewed: 15 to 25 minutes before it expires, spread by session.

    A token that lives less than 100 minutes is renewed when a quarter of its lifetime is left, or later.
    """
    lived_s = (row.expires_at - (row.refreshed_at or row.created_at)).total_seconds()
    jitter = zlib.crc32(row.session_id.encode()) / 2**32
    return row.expires_at - timedelta(seconds=min(EARLY_S + MAX_JITTER_S * jitter, lived_s / 4))


def _expired(row: SessionRow) -> GatewayError:
    return GatewayError("x_session_expired", account=account_of(row))


def _lease_runs(row: SessionRow, now: datetime) -> bool:
    """Return whether the refresh token was presented with an unknown outcome, and must not be presented again yet.

    A mark so far in the future that the clock must have been set back since is ignored.
    """
    if row.refresh_state != RefreshState.PRESENTED or row.presented_gen != row.gen or row.presented_at is None:
        return False
    lease: timedelta = min(MAX_LEASE, LEASE * 2 ** min(row.tries - 1, _MAX_DOUBLINGS))
    return abs(row.presented_at - now) < lease


def _why(row: SessionRow) -> str:
    """Return why X refused, as far as the row shows."""
    if row.why == "restored":
        return "restored_backup"
    return "refused" if row.tries == 1 else LOST


async def _get(connection: AsyncConnection, session_id: str) -> SessionRow:
    row = await store.get(connection, session_id)
    if row is None:
        raise GatewayError("x_not_linked")
    return row
