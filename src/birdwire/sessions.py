"""X sessions: links() and open() hand out a token that is good now; the only owner of X tokens. Never calls X's API."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import zlib
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ulid import ULID

from birdwire.authserver import Meaning, TokenError
from birdwire.errors import GatewayError
from birdwire.flight import SingleFlight
from birdwire.revocations import Revocations
from birdwire.store import sessions as store
from birdwire.store.db import StorageDownError
from birdwire.vault import Place, VaultError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.authserver import AuthServer, Tokens
    from birdwire.clock import Clock
    from birdwire.store.db import Database
    from birdwire.telemetry import Telemetry
    from birdwire.vault import Vault

EARLY_S, JITTER_S = 15 * 60, 10 * 60
INLINE_S = 60.0
LEASE, LONGEST_LEASE = timedelta(seconds=30), timedelta(minutes=8)
STALE_CLAIM_S = 5.0
LONGEST_PAUSE_S = 32.0
WAIT_S = 12.0
UNDO_FOR = timedelta(minutes=10)
CONFIRM_WITHIN = timedelta(minutes=10)
HOLD_OFF_S = 15 * 60
_MOST_HELD_OFF = 10_000


@dataclass(frozen=True, slots=True)
class XSession:
    """What a call to X needs: the token, whose it is, what it may do. `gen` tells this pair from the next."""

    session_id: str
    gen: int
    access_token: str = field(repr=False)
    user_id: str
    username: str
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Links:
    """A key's links: the one in use (active or needs_relink), and a newer one that X has not named yet."""

    current: RowMapping | None
    pending: RowMapping | None


class Sessions:
    """The sessions of one database with one issuer."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        authserver: AuthServer,
        clock: Clock,
        telemetry: Telemetry,
        issuer: str,
        *,
        confirm: bool = False,
    ) -> None:
        self._database = database
        self._vault = vault
        self._authserver = authserver
        self._clock = clock
        self._issuer = issuer
        self._confirm = confirm
        self._telemetry = telemetry
        self._me = f"gw_{ULID()}"
        self._revocations = Revocations(database, vault, authserver, clock, issuer)
        self._refreshes: SingleFlight[RowMapping] = SingleFlight()
        self._pauses: dict[str, tuple[float, float]] = {}
        self._held_off: dict[tuple[str, int], float] = {}

    async def links(self, key_id: str) -> Links:
        """What is linked to a key."""
        async with self._database.read() as connection:
            return _links(await store.of_key(connection, key_id, self._issuer))

    async def open(self, row: RowMapping) -> XSession:
        """The session of a row. Its token is renewed in good time, while the old one works, so that nobody waits.

        Raises:
            GatewayError: x_session_expired, or why there is no token that works now.
        """
        if row["state"] == "needs_relink":
            raise GatewayError("x_session_expired", account=_account(row))
        left_s = (row["expires_at"] - self._clock.now()).total_seconds()
        if left_s > INLINE_S:
            if left_s <= _early_s(row) and self._may_try(row):
                self._refreshes.start(row["session_id"], lambda: self._refresh(row["session_id"], row["gen"]))
            return self._session(row)
        try:
            row = await self._refreshed(row)
        except (GatewayError, StorageDownError) as error:
            gone = isinstance(error, GatewayError) and error.reason in ("x_session_expired", "x_not_linked")
            if gone or row["expires_at"] <= self._clock.now():
                raise  # otherwise the old token still works, and X's token endpoint may be back before it ends
        return self._session(row)

    async def renew(self, session: XSession, upstream: dict[str, object] | None) -> XSession:
        """The session with a newer token than the one that X just answered 401 to, with those words.

        Raises:
            GatewayError: x_session_expired, or why X could not be asked for a new token.
        """
        until = self._held_off.get((session.session_id, session.gen))
        if until is not None and self._clock.monotonic() < until:
            raise GatewayError("x_session_expired", account=f"@{session.username}", upstream=upstream)
        row = await self._read(session.session_id)
        return self._session(await self._refreshed(row) if row["gen"] == session.gen else row)

    def hold_off(self, session: XSession) -> None:
        """X refused a token that it had just issued: it is unwell, so do not spend refresh tokens on it for a while."""
        if len(self._held_off) >= _MOST_HELD_OFF:
            self._held_off.clear()
        self._held_off[session.session_id, session.gen] = self._clock.monotonic() + HOLD_OFF_S

    async def keep(
        self, key_id: str, tokens: Tokens, scopes: Sequence[str], expected_username: str | None
    ) -> tuple[RowMapping, str]:
        """Store a new pair beside any old link, unusable until `activate`; its row, and the undo token for the page.

        An older pair that was still pending gives way.
        """
        now = self._clock.now()
        session_id, undo_token = f"xs_{ULID()}", secrets.token_urlsafe(32)
        row = {
            "session_id": session_id,
            "key_id": key_id,
            "issuer": self._issuer,
            "state": "pending",
            "gen": 1,
            **self._sealed(session_id, 1, tokens),
            "scopes": " ".join(scopes if tokens.scopes is None else tokens.scopes),
            "expected_username": expected_username,
            "undo_hash": _hash(undo_token),
            "undo_until": now + UNDO_FOR,
            "created_at": now,
        }
        async with self._database.write() as connection:
            older = _links(await store.of_key(connection, key_id, self._issuer)).pending
            if older is not None:
                await self._end(connection, older)
            await store.add(connection, row)
            return await self._get(connection, session_id), undo_token

    async def name(self, session_id: str, user_id: str, username: str) -> RowMapping:
        """X has named a pending session's account: put it in use, or let it wait for the key's holder (mode `confirm`).

        Raises:
            GatewayError: account_mismatch: this pair is revoked and gone, and the old link as it was.
            GatewayError: x_not_linked: it was unlinked meanwhile.
        """
        named = {"user_id": user_id, "username": username}
        async with self._database.write() as connection:
            row = await self._get(connection, session_id)
            if row["state"] != "pending":
                return row
            current = _links(await store.of_key(connection, row["key_id"], self._issuer)).current
            waits = self._confirm and row["expected_username"] is None
            expected = None if waits else _mismatch(row, current, user_id, username)
            if expected is not None:
                await self._end(connection, row)
            elif waits:
                await store.change(connection, session_id, row["gen"], named)
                row = await self._get(connection, session_id)
            else:
                row = await self._put_in_use(connection, row, current, named)
        if expected is not None:
            await self._revocations.hurry()
            raise GatewayError("account_mismatch", username=username, expected=expected)
        return row

    async def activate(self, session_id: str) -> RowMapping:
        """Put a named session in use, now that the key's holder has confirmed it.

        Raises:
            GatewayError: x_not_linked: it is gone.
        """
        async with self._database.write() as connection:
            row = await self._get(connection, session_id)
            current = _links(await store.of_key(connection, row["key_id"], self._issuer)).current
            return row if row["state"] != "pending" else await self._put_in_use(connection, row, current, {})

    async def _put_in_use(
        self, connection: AsyncConnection, row: RowMapping, current: RowMapping | None, named: Mapping[str, object]
    ) -> RowMapping:
        """Replace the key's link. The same account's old pair is forgotten, not revoked: X might end both."""
        if current is not None and current["user_id"] == named.get("user_id", row["user_id"]):
            await store.remove(connection, current["session_id"])
        elif current is not None:
            await self._end(connection, current)  # another account's pair: nothing of the new one hangs on it
        values = {**named, "state": "active", "linked_at": self._clock.now()}
        await store.change(connection, row["session_id"], row["gen"], values)
        return await self._get(connection, row["session_id"])

    async def unlink(self, key_id: str) -> bool:
        """End every session of a key: gone here at once, revoked at X as soon as X answers. Whether there was one."""
        async with self._database.write() as connection:
            rows = await store.of_key(connection, key_id, self._issuer)
            for row in rows:
                await self._end(connection, row)
        if rows:
            await self._revocations.hurry()
        return bool(rows)

    async def undo(self, undo_token: str) -> str:
        """End the session that a page offered to undo, within its 10 minutes; returns whose it was.

        Raises:
            GatewayError: undo_unknown.
        """
        async with self._database.read() as connection:  # a stranger's guess costs no write
            if await store.by_undo(connection, self._issuer, _hash(undo_token)) is None:
                raise GatewayError("undo_unknown")
        async with self._database.write() as connection:
            row = await store.by_undo(connection, self._issuer, _hash(undo_token))
            if row is None or row["undo_until"] <= self._clock.now():
                raise GatewayError("undo_unknown")
            await self._end(connection, row)
        await self._revocations.hurry()
        return _account(row)

    async def sweep(self) -> None:
        """End the sessions of revoked keys and those nobody confirmed; try again what X could not revoke yet."""
        async with self._database.write() as connection:
            before = self._clock.now() - CONFIRM_WITHIN
            for row in await store.of_revoked_keys(connection, self._issuer):
                await self._end(connection, row)
            for row in await store.unconfirmed(connection, self._issuer, before):
                await self._end(connection, row)
        await self._revocations.drain()

    async def close(self) -> None:
        """Let refreshes under way end: their tokens are spent once sent."""
        await self._refreshes.close(wait_s=15)
        await self._revocations.close()

    # The way of one refresh, in reading order. X takes a refresh token once, so: write down that it is about to be
    # presented, present it once within a lease, store the new pair before anybody uses it. The row decides, never a
    # lock, and no lock is held while X is asked.

    async def _refreshed(self, row: RowMapping) -> RowMapping:
        """The row with a newer pair; one refresh at a time for a session, whoever asks or stops waiting."""
        session_id, gen = row["session_id"], row["gen"]
        try:
            async with asyncio.timeout(WAIT_S):
                return await self._refreshes.run(session_id, lambda: self._refresh(session_id, gen))
        except TimeoutError:
            row = await self._read(session_id)  # after any wait the row is asked first
            if row["gen"] != gen:
                return row
            raise GatewayError("x_timeout") from None

    async def _refresh(self, session_id: str, gen: int) -> RowMapping:
        row = await self._read(session_id)
        if row["gen"] != gen:
            return row  # somebody else's refresh came first
        if row["state"] == "needs_relink":
            raise GatewayError("x_session_expired", account=_account(row))
        if row["refresh_ct"] is None:
            return await self._needs_relink(row, "no_refresh_token")
        claimed_at = self._clock.monotonic()
        row = await self._claim(row)
        if self._clock.monotonic() - claimed_at > STALE_CLAIM_S:  # frozen meanwhile: the lease may soon be another's
            await self._unclaim(row)
            raise GatewayError("x_timeout")
        try:
            tokens = await self._authserver.refresh(self._opened(row, "refresh"))
        except TokenError as error:
            return await self._without_tokens(row, error)
        self._pauses.pop(session_id, None)
        return await self._save(row, tokens)

    async def _claim(self, row: RowMapping) -> RowMapping:
        """Write down, durably, that the refresh token is about to be presented; it proves the store writable, too.

        A claim whose answer was lost leaves its mark. When its lease is over, the same token is tried again: if X
        rotated, it is lost anyway, and X says so; if X never took it, this saves the link. X's outages last for hours,
        so the lease doubles with each such try, and only X's own refusal ends a link.
        """
        if self._lease_runs(row):
            raise GatewayError("x_timeout")
        values = {
            "refresh_state": "presented",
            "presented_gen": row["gen"],
            "presented_at": self._clock.now(),
            "presented_by": self._me,
            "tries": row["tries"] + 1,
        }
        async with self._database.write() as connection:
            if not await store.claim(connection, row, values):
                raise GatewayError("x_timeout")  # another came first: its answer is worth waiting for
            return await self._get(connection, row["session_id"])

    async def _without_tokens(self, row: RowMapping, error: TokenError) -> RowMapping:
        """What each of X's other answers means for the link (the meanings are authserver's table)."""
        self._telemetry.event("warning", "refresh", outcome=error.meaning.value, session_id=row["session_id"])
        if error.meaning is Meaning.REFUSED:
            newer = await self._read(row["session_id"])  # a refusal proves nothing if another has refreshed meanwhile
            if newer["gen"] != row["gen"]:
                return newer
            return await self._needs_relink(row, "refused" if row["tries"] == 1 else "refresh_lost_reply")
        if error.meaning is not Meaning.MAYBE:  # X did not take the token: it may be presented again, after a pause
            await self._unclaim(row)
            pause_s = min(LONGEST_PAUSE_S, 2 * self._pauses.get(row["session_id"], (0.5, 0.0))[0])
            if len(self._pauses) >= _MOST_HELD_OFF:
                self._pauses.clear()
            self._pauses[row["session_id"]] = (pause_s, self._clock.monotonic() + pause_s)
        raise GatewayError(error.reason, upstream=error.upstream)

    async def _unclaim(self, row: RowMapping) -> None:
        async with self._database.write() as connection:
            await store.change(connection, row["session_id"], row["gen"], {"refresh_state": "idle", "tries": 0})

    async def _save(self, row: RowMapping, tokens: Tokens) -> RowMapping:
        """Store the new pair before anybody uses it. The old one is spent, so this goes on until the store takes it."""
        session_id, gen = row["session_id"], row["gen"] + 1
        kept = tokens if tokens.refresh_token else replace(tokens, refresh_token=self._opened(row, "refresh"))
        values = {**self._sealed(session_id, gen, kept), "gen": gen, "refreshed_at": self._clock.now(), **_IDLE}
        if tokens.scopes is not None:
            values["scopes"] = " ".join(tokens.scopes)
        pause_s = 0.05
        while True:
            try:
                async with self._database.write() as connection:
                    saved = await store.change(connection, session_id, row["gen"], values)
                    if not saved and await store.get(connection, session_id) is None:
                        await self._drop(connection, kept)  # unlinked meanwhile: the new pair must not outlive it
                self._telemetry.event("info", "refresh", outcome="success" if saved else "late", session_id=session_id)
                return await self._read(session_id)
            except StorageDownError:
                self._telemetry.event("error", "refresh", outcome="persist_failure", session_id=session_id)
                await asyncio.sleep(pause_s)
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)

    async def _needs_relink(self, row: RowMapping, why: str) -> RowMapping:
        async with self._database.write() as connection:
            if row["state"] == "pending":  # it never was in use: it must not stand in for a link that is
                await self._end(connection, row)
            else:
                await store.change(connection, row["session_id"], row["gen"], {"state": "needs_relink", "why": why})
        raise GatewayError("x_session_expired", account=_account(row))

    async def _read(self, session_id: str) -> RowMapping:
        async with self._database.read() as connection:
            return await self._get(connection, session_id)

    async def _get(self, connection: AsyncConnection, session_id: str) -> RowMapping:
        row = await store.get(connection, session_id)
        if row is None:
            raise GatewayError("x_not_linked")
        return row

    # Sealing, opening, ending.

    def _session(self, row: RowMapping) -> XSession:
        return XSession(
            session_id=row["session_id"],
            gen=row["gen"],
            access_token=self._opened(row, "access"),
            user_id=row["user_id"] or "",
            username=row["username"] or "",
            scopes=frozenset(row["scopes"].split()),
        )

    def _sealed(self, session_id: str, gen: int, tokens: Tokens) -> dict[str, Any]:
        refresh = tokens.refresh_token
        return {
            "access_ct": self._vault.seal(tokens.access_token, _place(session_id, "access", gen)),
            "refresh_ct": None if refresh is None else self._vault.seal(refresh, _place(session_id, "refresh", gen)),
            "expires_at": self._clock.now() + timedelta(seconds=tokens.expires_in_s),
        }

    def _opened(self, row: RowMapping, column: str) -> str:
        return self._vault.open(row[f"{column}_ct"], _place(row["session_id"], column, row["gen"]))

    def _lease_runs(self, row: RowMapping) -> bool:
        """Whether the refresh token was presented, its answer is not known, and it must not be presented yet again."""
        if row["refresh_state"] != "presented" or row["presented_gen"] != row["gen"]:
            return False
        lease = min(LONGEST_LEASE, LEASE * 2 ** (row["tries"] - 1))
        return bool(row["presented_at"] + lease > self._clock.now())

    def _may_try(self, row: RowMapping) -> bool:
        """Whether an early refresh is due: not while a claim's lease runs, nor in the pause after a failure."""
        return (
            not self._lease_runs(row) and self._clock.monotonic() >= self._pauses.get(row["session_id"], (0.0, 0.0))[1]
        )

    async def _drop(self, connection: AsyncConnection, tokens: Tokens) -> None:
        if tokens.refresh_token:
            await self._revocations.add(connection, self._issuer, tokens.refresh_token, "refresh_token")
        await self._revocations.add(connection, self._issuer, tokens.access_token, "access_token")

    async def _end(self, connection: AsyncConnection, row: RowMapping) -> None:
        """Remove a session, and queue its tokens to be revoked, in the caller's transaction."""
        gone = await store.remove(connection, row["session_id"])
        if gone is None:
            return
        for column in ("refresh", "access"):
            if gone[f"{column}_ct"] is None:
                continue
            try:
                token = self._opened(gone, column)
            except VaultError:  # changed at rest: there is nothing left to present or to revoke
                self._telemetry.event("error", "session_unreadable", session_id=gone["session_id"])
            else:
                await self._revocations.add(connection, gone["issuer"], token, f"{column}_token")


def _place(session_id: str, column: str, gen: int) -> Place:
    return Place("x_sessions", session_id, f"{column}_ct", gen)


_IDLE = {"refresh_state": "idle", "presented_gen": None, "presented_at": None, "presented_by": None, "tries": 0}


def _early_s(row: RowMapping) -> float:
    """How long before its end a token is renewed: 15 to 25 minutes, spread over sessions; less if it lives short."""
    lived = row["expires_at"] - (row["refreshed_at"] or row["created_at"])
    jitter = zlib.crc32(row["session_id"].encode()) / 2**32
    return min(EARLY_S + JITTER_S * jitter, float(lived.total_seconds()) / 4)


def _links(rows: Sequence[RowMapping]) -> Links:
    current = next((row for row in rows if row["state"] != "pending"), None)
    return Links(current, next((row for row in rows if row["state"] == "pending"), None))


def _mismatch(row: RowMapping, current: RowMapping | None, user_id: str, username: str) -> str | None:
    """Who should have approved, if somebody else did. A named account may replace another; an unnamed one may not."""
    expected = row["expected_username"]
    if expected is not None:
        return None if expected.lower() == username.lower() else f"@{expected}"
    if current is not None and current["user_id"] != user_id:
        return _account(current)
    return None


def _account(row: RowMapping) -> str:
    return f"@{row['username']}" if row["username"] else "the linked account"


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def expired(row: RowMapping, now: datetime) -> bool:
    """Whether a link has run out for good: refused, or past its end without a way to renew it."""
    return row["state"] == "needs_relink" or (row["refresh_ct"] is None and row["expires_at"] <= now)
