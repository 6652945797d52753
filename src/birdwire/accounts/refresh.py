"""The refresh of a session's tokens: asked of X once, stored before anybody uses it. Never calls X's API.

X takes a refresh token once. So, in reading order: write down that it is about to be presented; present it once within
a lease; store the new pair. The row decides, never a lock, and nothing is held while X is asked. A process that dies or
freezes on the way leaves its mark in the row, and the next one acts by that.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from dataclasses import replace
from datetime import timedelta
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Literal, NamedTuple

from ulid import ULID

from birdwire.api.errors import GatewayError
from birdwire.runtime.single_flight import SingleFlight
from birdwire.store import database
from birdwire.store.database import StorageDownError
from birdwire.store.encryption.vault import DamagedError, VaultError
from birdwire.store.tables import acts, api_keys
from birdwire.store.tables import x_sessions as store
from birdwire.x.client.auth_server import TOKEN_DEADLINE_S, Meaning, TokenError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from typing import Any

    from sqlalchemy import RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.accounts.revocation import RevocationQueue
    from birdwire.accounts.tokens import SealedTokens
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.failpoints import Failpoints
    from birdwire.runtime.telemetry import Level, Telemetry
    from birdwire.store.database import Database
    from birdwire.x.client.auth_server import AuthServer, Tokens

    Row = RowMapping | Mapping[str, Any]

EARLY_S, JITTER_S = 15 * 60, 10 * 60
MOST_AT_ONCE, MOST_IN_BACKGROUND = 50, 8
WAIT_S = 12.0
"""How long a caller waits: longer than the process that asks X does (TOKEN_DEADLINE_S), so that its answer is seen."""

LEASE, LONGEST_LEASE = timedelta(seconds=30), timedelta(minutes=8)
"""Longer than TOKEN_DEADLINE_S, always: while one may still send, nobody else does."""

_MOST_DOUBLINGS = 4  # that is LONGEST_LEASE; more would overflow in an outage of half a day
STALE_CLAIM_S = 5.0
ANSWER_WITHIN = timedelta(seconds=TOKEN_DEADLINE_S + 2)
FIRST_POLL_S, LONGEST_POLL_S = 0.05, 0.5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 32.0
MOST_PAUSES = 10_000
CLOSE_S = 15.0

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
"""What became of a refresh. late: another's pair was stored first, or the link is gone; held: X said neither yes nor
no (429 and the like); lost_reply: X may have taken the token, and its answer is gone; x_5xx: X may have, and failed."""

LOST = "refresh_lost_reply"

_OUTCOMES: dict[Meaning, Outcome] = {
    Meaning.REFUSED: "refused",
    Meaning.OPERATOR: "operator_fault",
    Meaning.HELD: "held",
    Meaning.FAILED: "x_5xx",
    Meaning.MAYBE: "lost_reply",
    Meaning.NOT_SENT: "not_sent",
}
# refresh_state: idle; presented; over: X refuses the refresh token, and the access token is used until it ends.


class _Pause(NamedTuple):
    """How long a session is left alone, until when by the monotonic clock, and whether X failed (5xx)."""

    length_s: float
    ends_at: float
    failed: bool


class Refresher:
    """The refreshes of a process: at most 50 at once, 8 of them in the background, and one at a time for a session."""

    def __init__(
        self,
        database: Database,
        pairs: SealedTokens,
        authserver: AuthServer,
        revocations: RevocationQueue,
        clock: Clock,
        telemetry: Telemetry,
        failpoints: Failpoints,
    ) -> None:
        self._database = database
        self._pairs = pairs
        self._authserver = authserver
        self._revocations = revocations
        self._clock = clock
        self._telemetry = telemetry
        self._failpoints = failpoints
        self._written = partial(failpoints.reach_now, "refresh_in_persist")
        self._me = f"gw_{ULID()}"
        self._flights: SingleFlight[Row] = SingleFlight()
        self._slots = asyncio.Semaphore(MOST_AT_ONCE)
        self._background: set[asyncio.Task[Row]] = set()
        self._pauses: dict[str, _Pause] = {}  # by session
        self.draining = False
        """Whether this process is shutting down: then only what a call cannot do without is renewed."""
        self.unsaved = 0
        """Pairs that X gave and the store has not taken yet. While there are any, no refresh begins."""

    def begin(self, row: RowMapping) -> None:
        """Renew in the background, if it is time and there is room: the old token still works, and nobody waits.

        Where there is no room, the session's next call tries again.
        """
        now = self._clock.now()
        if self.draining or renews_at(row) > now or _lease_runs(row, now) or row["refresh_state"] == "over":
            return
        if row["refresh_ct"] is None:
            return  # it cannot be renewed, and is good until its end
        if len(self._background) >= MOST_IN_BACKGROUND or self._pause_s(row["session_id"]) > 0:
            return
        session_id, gen = row["session_id"], row["gen"]
        task = self._flights.start(session_id, lambda: self._refresh(session_id, gen, early=True))
        if task not in self._background:
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def refreshed(self, row: RowMapping) -> Row:
        """The row with a newer pair, by whose refresh ever. It goes on when the caller stops waiting.

        Raises:
            GatewayError: x_session_expired, or why X could not be asked or did not answer.
            StorageDownError: nothing was asked.
        """
        session_id, gen = row["session_id"], row["gen"]
        try:
            async with asyncio.timeout(WAIT_S):
                return await self._flights.run(session_id, lambda: self._refresh(session_id, gen))
        except TimeoutError:
            self._tell("wait_timeout", session_id)
            row, _ = await self._look(session_id)  # after any wait the row is asked first
            if row["gen"] != gen:
                return row
            raise GatewayError("x_timeout") from None

    async def close(self) -> None:
        """Let refreshes under way end: their tokens are spent once sent."""
        await self._flights.close(CLOSE_S)

    # The way of one refresh.

    async def _refresh(self, session_id: str, gen: int, *, early: bool = False) -> Row:
        while True:
            row = await self._turn(session_id, gen)
            if row["gen"] != gen:
                return row  # somebody else's refresh came first
            if self._pause_s(session_id, failed=True) > 0:
                raise self._failed(session_id)
            refresh_token = await self._refresh_token(row)
            async with self._slots:
                await self._database.ready(store.SAVE)
                claimed_at = self._clock.monotonic()
                await self._failpoints.reach("refresh_before_claim")
                claimed = await self._claim(row)
                if claimed is None:
                    continue  # another came first: its answer is worth waiting for
                await self._failpoints.reach("refresh_after_claim")
                if self._clock.monotonic() - claimed_at > STALE_CLAIM_S:  # frozen: the lease may soon be another's
                    await self._unclaim(claimed)
                    raise GatewayError("x_timeout")
                try:
                    asking = self._authserver.refresh(refresh_token)
                    tokens = await self._failpoints.during("refresh_after_send", asking)
                except TokenError as error:
                    return await self._without_tokens(claimed, error, early=early)
                await self._failpoints.reach("refresh_after_reply")
                return await self._save(claimed, tokens)

    async def _turn(self, session_id: str, gen: int) -> RowMapping:
        """The row, as soon as it has another pair or its token may be presented.

        Raises:
            GatewayError: the link is over; or the token was presented, and its answer will not come any more.
        """
        pause_s = FIRST_POLL_S
        while True:
            row, now = await self._look(session_id)
            if row["gen"] != gen:
                return row
            if row["state"] == "needs_relink":
                raise GatewayError("x_session_expired", account=account(row))
            if row["refresh_state"] == "over":  # and so is the old access token, or nobody would ask
                raise await self._needs_relink(row, row["why"])
            if not _lease_runs(row, now):
                return row
            if row["presented_by"] in (None, self._me) or row["presented_at"] + ANSWER_WITHIN < now:
                raise GatewayError("x_timeout")
            await asyncio.sleep(pause_s)  # another process is asking X
            pause_s = min(LONGEST_POLL_S, 2 * pause_s)

    async def _refresh_token(self, row: RowMapping) -> str:
        if row["refresh_ct"] is None:
            raise await self._needs_relink(row, "no_refresh_token")
        try:
            return self._pairs.open(row, "refresh")
        except DamagedError:
            raise await self._needs_relink(row, "damaged") from None
        except VaultError:  # sealed with a key that is not here: that is no reason to end the link
            self._telemetry.event("error", "session_unreadable", session_id=row["session_id"])
            raise GatewayError("x_session_expired", account=account(row)) from None

    async def _claim(self, row: RowMapping) -> dict[str, Any] | None:
        """Write down, durably, that the refresh token is about to be presented; None if another did so first.

        It proves the store writable, too. A claim whose answer was lost leaves its mark. When its lease is over, the
        same token is tried again: if X rotated, it is lost anyway, and X says so; if X never took it, this saves the
        link. X's outages last for hours, so the lease doubles with each such try, and only X's refusal ends a link.
        """
        if self.unsaved:
            raise StorageDownError("UnsavedPair")
        async with self._database.write() as connection:
            values = {
                "refresh_state": "presented",
                "presented_gen": row["gen"],
                "presented_at": await database.now(connection, self._clock),
                "presented_by": self._me,
                "tries": row["tries"] + 1,
            }
            if not await store.mark(connection, row, values):
                return None
            # A plain one: each look into a RowMapping would cost ten times as much while the new pair is not stored.
            return dict(await _get(connection, row["session_id"]))

    async def _without_tokens(self, row: Row, error: TokenError, *, early: bool) -> Row:
        """What each of X's other answers means for the link (the meanings are authserver's table).

        `early`: the old access token works, and callers go on with it.
        """
        session_id = row["session_id"]
        self._tell(_OUTCOMES[error.meaning], session_id)
        if error.meaning is Meaning.REFUSED:
            newer, _ = await self._look(session_id)  # a refusal proves nothing if another has refreshed meanwhile
            if newer["gen"] != row["gen"]:
                return newer
            if not early or _why(row) != LOST:
                raise await self._needs_relink(row, _why(row))
            # Until the access token ends, a process may come round that stands still with X's answer in hand.
            await self._mark(row, {"refresh_state": "over", "why": LOST})
            raise GatewayError("x_timeout")
        if error.meaning is Meaning.FAILED:
            await self._release(row, tries=max(1, row["tries"] - 1))  # a later refusal may be of what X took now
            self._pause(session_id, failed=True)
            raise self._failed(session_id, error.upstream)
        if error.meaning is Meaning.MAYBE:
            with contextlib.suppress(StorageDownError):  # then others wait a little longer before they know
                await self._mark(row, {"presented_by": None})
        else:  # X did not take the token: it may be presented again, after a pause
            await self._unclaim(row)
            self._pause(session_id, failed=False)
        raise GatewayError(error.reason, upstream=error.upstream)

    async def _save(self, row: Row, tokens: Tokens) -> Row:
        """Store the new pair before anybody uses it. The old one is spent, so this goes on until the store takes it."""
        replied_at = self._clock.monotonic()
        session_id, gen = row["session_id"], row["gen"] + 1
        kept = tokens if tokens.refresh_token else replace(tokens, refresh_token=self._pairs.open(row, "refresh"))
        values = {
            **self._pairs.seal(row, gen, kept),
            "scopes": row["scopes"] if tokens.scopes is None else " ".join(tokens.scopes),
            "refreshed_at": self._clock.now(),
        }
        self._pauses.pop(session_id, None)
        try:
            newer = await self._store(row, values, kept)
        except StorageDownError:
            newer = await self._store_at_last(row, values, kept)
        ms = round((self._clock.monotonic() - replied_at) * 1000, 1)
        await self._database.saved()  # what this one goes on with must not delay the pairs that still wait
        await self._failpoints.reach("refresh_after_persist")
        ours = newer is not None and newer["access_ct"] == values["access_ct"]
        self._tell("success" if ours else "late", session_id, level="info", ms=ms)
        if newer is None:
            raise GatewayError("x_not_linked")
        return newer

    async def _store(self, row: Row, values: dict[str, object], tokens: Tokens) -> Row | None:
        """Put the pair into the row if that is of the old generation still; else it is dropped. Returns the row.

        Should the owner have been asked to relink meanwhile: there is no need any more.
        """
        session_id = row["session_id"]
        if await self._database.save(store.SAVE, store.saved(row, values), row["key_id"], self._written):
            return {**row, **values}  # to read it again would cost more than all the rest, while other pairs wait
        async with self._database.write() as connection:
            newer = await store.get(connection, session_id)
            if newer is not None and newer["gen"] == row["gen"]:  # X has named the account since it was sealed
                values |= self._pairs.rename({**row, **values}, newer["user_id"])
                await store.save(connection, newer, values)
                newer = await store.get(connection, session_id)
            elif newer is None and not await store.acts_as(connection, row):
                await self._revocations.add_pair(connection, row["issuer"], tokens)  # unlinked: it must not live on
        return newer

    async def _store_at_last(self, row: Row, values: dict[str, object], tokens: Tokens) -> Row | None:
        """The same, after the store failed: until it takes the pair, this process asks X for none."""
        pause_s = FIRST_PAUSE_S / 16
        self.unsaved += 1
        try:
            while True:
                self._tell("persist_failure", row["session_id"], level="error")
                await asyncio.sleep(pause_s)
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
                with contextlib.suppress(StorageDownError):
                    return await self._store(row, values, tokens)
        finally:
            self.unsaved -= 1

    async def _needs_relink(self, row: Row, why: str) -> GatewayError:
        """End the link, or a pair that never was in use, which must not stand in for one that is; the refusal."""
        async with self._database.write() as connection:
            await api_keys.hold(connection, row["key_id"])
            newer = await store.get(connection, row["session_id"])  # X may have named it while it was asked
            if newer is not None and newer["gen"] == row["gen"]:
                if newer["state"] == "pending":
                    await self._revocations.end(connection, newer)
                else:
                    ended = {"state": "needs_relink", "why": why}
                    await store.change(connection, row["session_id"], row["gen"], ended)
                if newer["state"] != "needs_relink":
                    now, was, key_id = self._clock.now(), store.described(newer), row["key_id"]
                    await acts.append(
                        connection, now, acts.GATEWAY, "link.needs_relink", key_id, before=was, after={"why": why}
                    )
        return GatewayError("x_session_expired", account=account(row))

    async def _unclaim(self, row: Row) -> None:
        """Take back a claim whose token X did not take; what was lost before it still counts."""
        await self._release(row, tries=row["tries"] - 1)

    async def _release(self, row: Row, *, tries: int) -> None:
        """Let the token be presented again; `tries`: how often X may have taken it."""
        await self._mark(row, {"refresh_state": "idle", "tries": tries})

    async def _mark(self, row: Row, values: dict[str, object]) -> None:
        """Change one's own mark; one that another set since is left alone."""
        async with self._database.write() as connection:
            await store.mark(connection, row, values)

    async def _look(self, session_id: str) -> tuple[RowMapping, datetime]:
        """The row, and the time by which its lease is counted."""
        async with self._database.read() as connection:
            return await _get(connection, session_id), await database.now(connection, self._clock)

    def _pause(self, session_id: str, *, failed: bool) -> None:
        last = self._pauses.get(session_id)
        if last is None or last.ends_at + LONGEST_PAUSE_S < self._clock.monotonic():
            length_s = FIRST_PAUSE_S
        else:
            length_s = min(LONGEST_PAUSE_S, 2 * last.length_s)
        if len(self._pauses) >= MOST_PAUSES:
            self._pauses.clear()
        self._pauses[session_id] = _Pause(length_s, self._clock.monotonic() + length_s, failed)

    def _pause_s(self, session_id: str, *, failed: bool = False) -> float:
        """Return for how long a session is still left alone; `failed`: because X failed, and not for another reason."""
        pause = self._pauses.get(session_id)
        return 0.0 if pause is None or (failed and not pause.failed) else pause.ends_at - self._clock.monotonic()

    def _failed(self, session_id: str, upstream: dict[str, object] | None = None) -> GatewayError:
        wait_s = ceil(self._pause_s(session_id))
        return GatewayError("x_renewal_failed", retry_after_s=max(1, wait_s), upstream=upstream)

    def _tell(self, outcome: Outcome, session_id: str, *, level: Level = "warning", **fields: float) -> None:
        self._telemetry.metrics.add("birdwire_refreshes_total", outcome)
        self._telemetry.event(level, "refresh", outcome=outcome, session_id=session_id, **fields)


def renews_at(row: RowMapping) -> datetime:
    """When its token is to be renewed: 15 to 25 minutes before it ends, each session its own; less if it is short."""
    expires_at: datetime = row["expires_at"]
    lived_s = (expires_at - (row["refreshed_at"] or row["created_at"])).total_seconds()
    jitter = zlib.crc32(row["session_id"].encode()) / 2**32
    return expires_at - timedelta(seconds=min(EARLY_S + JITTER_S * jitter, lived_s / 4))


def account(row: Row) -> str:
    """Whose link it is, for a sentence."""
    return f"@{row['username']}" if row["username"] else "the linked account"


def _lease_runs(row: RowMapping, now: datetime) -> bool:
    """Whether the refresh token was presented, its answer is not known, and it must not be presented yet again.

    A mark from so far ahead that only a clock that was put back can explain it holds nothing up.
    """
    if row["refresh_state"] != "presented" or row["presented_gen"] != row["gen"]:
        return False
    lease = min(LONGEST_LEASE, LEASE * 2 ** min(row["tries"] - 1, _MOST_DOUBLINGS))
    return bool(abs(row["presented_at"] - now) < lease)


def _why(row: Row) -> str:
    """Why X's refusal came, as far as we can tell."""
    if row["why"] == "restored":
        return "restored_backup"
    return "refused" if row["tries"] == 1 else LOST


async def _get(connection: AsyncConnection, session_id: str) -> RowMapping:
    row = await store.get(connection, session_id)
    if row is None:
        raise GatewayError("x_not_linked")
    return row
