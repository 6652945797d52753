"""X sessions: links() and open() hand out a token that is good now; the only owner of X tokens. Never calls X's API."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ulid import ULID

from birdwire.accounts.acts import LinkActs, owner_of
from birdwire.accounts.callbacks import refused, undone
from birdwire.accounts.refresh import Refresher, account, renews_at
from birdwire.accounts.revocation import RevocationQueue
from birdwire.accounts.tokens import SealedTokens
from birdwire.api.errors import GatewayError
from birdwire.store.database import StorageDownError
from birdwire.store.encryption.vault import VaultError
from birdwire.store.tables import api_keys, link_states
from birdwire.store.tables import x_sessions as store
from birdwire.store.tables.acts import GATEWAY, Actor
from birdwire.x.client.auth_server import NAMING_SCOPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.keys.cache import KeyCache
    from birdwire.keys.guess_limit import GuessLimiter
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.failpoints import Failpoints
    from birdwire.runtime.telemetry import Telemetry
    from birdwire.store.database import Database
    from birdwire.store.encryption.vault import Vault
    from birdwire.store.tables.acts import Act
    from birdwire.x.client.auth_server import AuthServer, Tokens

INLINE_S = 60.0
UNDO_FOR = timedelta(minutes=10)
CONFIRM_WITHIN = timedelta(minutes=10)
HOLD_OFF_S = 15 * 60
_MOST_HELD_OFF = 10_000
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class XSession:
    """What a call to X needs: the token, whose it is, what it may do. `gen` tells this pair from the next."""

    session_id: str
    gen: int
    access_token: str = field(repr=False)
    user_id: str
    username: str
    scopes: frozenset[str]
    linked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Links:
    """A key's links: the one in use (active or needs_relink), and a newer one that X has not named yet.

    `turn` is `Recall`'s when they were read.
    """

    current: RowMapping | None
    pending: RowMapping | None
    turn: int = -1


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
        failpoints: Failpoints,
        recall: KeyCache,
        lookups: GuessLimiter,
        *,
        confirm: bool = False,
    ) -> None:
        self._database = database
        self._recall = recall
        self._lookups = lookups
        self._clock = clock
        self._issuer = issuer
        self._confirm = confirm
        self._pairs = SealedTokens(vault, clock)
        self._revocations = RevocationQueue(database, vault, self._pairs, authserver, clock, telemetry, issuer)
        self._refresher = Refresher(database, self._pairs, authserver, self._revocations, clock, telemetry, failpoints)
        self._held_off: dict[tuple[str, int], float] = {}
        self.acts = LinkActs(database, clock, telemetry)

    def ready(self, key_id: str) -> XSession | None:
        """The key's session, if it is known to be good now and to stay so for a while."""
        self._recall.poll()  # the call may have waited for its turn, or for a long body, since its key was found
        known: tuple[datetime, XSession] | None = self._recall.get(key_id, "session")
        return known[1] if known is not None and known[0] > self._clock.now() else None

    def remembers(self, key_id: str, session: XSession) -> bool:
        """Return whether the cache still holds this pair for the key, as of the last `Recall.catch_up`."""
        known: tuple[datetime, XSession] | None = self._recall.get(key_id, "session")
        return known is not None and (known[1].session_id, known[1].gen) == (session.session_id, session.gen)

    async def links(self, key_id: str) -> Links:
        """What is linked to a key."""
        turn = self._recall.poll()
        async with self._database.read() as connection:
            return replace(_links(await store.of_key(connection, key_id, self._issuer)), turn=turn)

    def remember(self, links: Links, session: XSession) -> None:
        """Let `ready` hand out a session that was opened from these links, until its token is to be renewed."""
        row = links.current
        if row is not None and links.pending is None and (row["state"], row["gen"]) == ("active", session.gen):
            self._recall.put(row["key_id"], "session", (renews_at(row), session), links.turn)

    async def open(self, row: RowMapping) -> XSession:
        """The session of a row. Its token is renewed in good time, while the old one works, so that nobody waits.

        Raises:
            GatewayError: x_session_expired, or why there is no token that works now.
        """
        if row["state"] == "needs_relink":
            raise GatewayError("x_session_expired", account=account(row))
        left_s = (row["expires_at"] - self._clock.now()).total_seconds()
        if left_s > INLINE_S:
            self._refresher.begin(row)
            with contextlib.suppress(VaultError):  # changed at rest, or its vault key is not here: a newer one may open
                return self._session(row)
        try:
            return self._session(await self._refresher.refreshed(row))
        except (GatewayError, StorageDownError) as error:
            gone = isinstance(error, GatewayError) and error.reason in ("x_session_expired", "x_not_linked")
            if not gone and row["expires_at"] > self._clock.now():
                with contextlib.suppress(VaultError):
                    return self._session(row)  # it still works, and X's token endpoint may be back before it ends
            raise

    @property
    def unsaved(self) -> int:
        """How many pairs of X tokens wait in memory for the store to take them."""
        return self._refresher.unsaved

    async def renew(self, session: XSession, upstream: dict[str, object] | None) -> XSession:
        """The session with a newer token than the one that X just answered 401 to, with those words.

        Raises:
            GatewayError: x_session_expired, or why X could not be asked for a new token.
        """
        until = self._held_off.get((session.session_id, session.gen))
        if until is not None and self._clock.monotonic() < until:
            raise GatewayError("x_session_expired", account=f"@{session.username}", upstream=upstream)
        row = await self._read(session.session_id)
        if row["gen"] != session.gen:
            return self._session(row)
        if row["refresh_ct"] is None and row["expires_at"] > self._clock.now():
            # There is nothing to ask X with whether the link is over, and a 401 alone proves nothing: it stays.
            raise GatewayError("x_session_expired", account=f"@{session.username}", upstream=upstream)
        return self._session(await self._refresher.refreshed(row))

    def hold_off(self, session: XSession) -> None:
        """X refused a token that it had just issued: it is unwell, so do not spend refresh tokens on it for a while."""
        if len(self._held_off) >= _MOST_HELD_OFF:
            self._held_off.clear()
        self._held_off[session.session_id, session.gen] = self._clock.monotonic() + HOLD_OFF_S

    async def keep(
        self,
        key_id: str,
        tokens: Tokens,
        scopes: Sequence[str],
        expected_username: str | None,
        state_hash: bytes | None = None,
    ) -> tuple[RowMapping, str]:
        """Store a new pair beside any old link, unusable until `activate`; its row, and the undo token for the page.

        An older pair that was still pending is ended. `state_hash` is the state that led to the pair.

        Raises:
            GatewayError: state_unknown: the state was dropped since it was taken; the pair is revoked.
        """
        now = self._clock.now()
        session_id, undo_token = f"xs_{ULID()}", secrets.token_urlsafe(32)
        owner = {"session_id": session_id, "key_id": key_id, "issuer": self._issuer, "user_id": None}
        row = {
            **owner,
            "state": "pending",
            **self._pairs.seal(owner, 1, tokens),
            "scopes": " ".join(scopes if tokens.scopes is None else tokens.scopes),
            "expected_username": expected_username,
            "undo_hash": _hash(undo_token),
            "undo_until": now + UNDO_FOR,
            "created_at": now,
        }
        async with self._database.write() as connection:
            await api_keys.hold(connection, key_id)
            if state_hash is None or await link_states.note_session(connection, state_hash, session_id):
                older = _links(await store.of_key(connection, key_id, self._issuer)).pending
                if older is not None and lacking(older):
                    # Probably the same account's, which only now granted enough: X might end both.
                    await store.remove(connection, older["session_id"])
                elif older is not None:
                    await self._revocations.end(connection, older)
                await store.add(connection, row)
                await store.end_with_key(connection, key_id)
                new = await self._get(connection, session_id)
                await self.acts.record(connection, owner_of(new), "link.approved", key_id, older, store.described(new))
                return new, undo_token
            await self._revocations.add_pair(connection, self._issuer, tokens)
        await self._revocations.hurry()
        raise GatewayError("state_unknown")

    async def name(self, session_id: str, user_id: str, username: str) -> RowMapping:
        """X has named a pending session's account: put it in use, or let it wait for the key's holder (mode `confirm`).

        Raises:
            GatewayError: account_mismatch: this pair is revoked and gone, and the old link as it was.
            GatewayError: x_not_linked: it was unlinked meanwhile.
        """
        async with self._database.write() as connection:
            row = await self._held(connection, session_id)
            if row["state"] != "pending":
                return row
            named = self._pairs.rename(row, user_id) | {"username": username}
            current = _links(await store.of_key(connection, row["key_id"], self._issuer)).current
            pin = await api_keys.pin_of(connection, row["key_id"])
            waits = self._confirm and row["expected_username"] is None and pin is None
            expected = None if waits else _mismatch(row, pin, current, user_id, username)
            by, key_id = owner_of(named), row["key_id"]
            if expected is not None:
                await self._revocations.end(connection, row)
                mismatch = GatewayError("account_mismatch", username=username, expected=expected)
                await link_states.refuse(connection, key_id, session_id, refused(mismatch))
                after = {"user_id": user_id, **mismatch.values}
                await self.acts.record(connection, by, "link.mismatched", key_id, None, after)
            elif waits:
                over_at = row["created_at"] + CONFIRM_WITHIN
                await store.change(connection, session_id, row["gen"], named | {"over_at": over_at})
                row = await self._get(connection, session_id)
                await self.acts.record(connection, by, "link.named", key_id, None, store.described(row))
            else:
                row = await self._put_in_use(connection, row, current, named, by)
        if not waits:
            self.acts.count("link.activated" if expected is None else "link.mismatched")
        self._recall.invalidate(row["key_id"])  # the next call must not go through the link that this one replaced
        if expected is not None:
            await self._revocations.hurry()
            raise mismatch
        return row

    async def activate(self, session_id: str, by: Actor) -> RowMapping:
        """Put a named session in use, now that the key's holder has confirmed it.

        Raises:
            GatewayError: x_not_linked: it is gone.
        """
        async with self._database.write() as connection:
            row = await self._held(connection, session_id)
            current = _links(await store.of_key(connection, row["key_id"], self._issuer)).current
            waits = row["state"] == "pending"
            if waits:
                row = await self._put_in_use(connection, row, current, {}, by)
        if waits:
            self.acts.count("link.activated")
        self._recall.invalidate(row["key_id"])
        return row

    async def _put_in_use(
        self,
        connection: AsyncConnection,
        row: RowMapping,
        current: RowMapping | None,
        named: Mapping[str, object],
        by: Actor,
    ) -> RowMapping:
        """Replace the key's link. The same account's old pair is forgotten, not revoked: X might end both.

        A pinned key keeps the account's user id from here on.
        """
        if current is not None and current["user_id"] == named.get("user_id", row["user_id"]):
            await store.remove(connection, current["session_id"])
        elif current is not None:
            await self._revocations.end(
                connection, current
            )  # another account's pair: nothing of the new one hangs on it
        values = {**named, "state": "active", "linked_at": self._clock.now(), "over_at": None}
        await store.change(connection, row["session_id"], row["gen"], values)
        await store.end_with_key(connection, row["key_id"])
        row = await self._get(connection, row["session_id"])
        await api_keys.identify(connection, row["key_id"], row["user_id"], row["username"])
        linked = {**(store.described(row) or {}), "scopes": row["scopes"]}
        await self.acts.record(connection, by, "link.activated", row["key_id"], current, linked)
        return row

    async def unlink(self, key_id: str, by: Actor) -> bool:
        """End every session of a key: gone here at once, revoked at X as soon as X answers. Whether there was one."""
        async with self._database.write() as connection:
            await api_keys.hold(connection, key_id)
            rows = await store.of_key(connection, key_id, self._issuer)
            for row in rows:
                await self._revocations.end(connection, row)
            if rows:
                await self.acts.record(connection, by, "link.unlinked", key_id, _links(rows).current or rows[0])
        self._recall.invalidate(key_id)  # the news of one's own change may come a moment later
        if rows:
            self.acts.count("link.unlinked")
            await self._revocations.hurry()
        return bool(rows)

    async def undo(self, undo_token: str, peer: str) -> str:
        """End the session that a page offered to undo, and the key's others of that account; return whose it was.

        Raises:
            GatewayError: undo_unknown, also after 10 minutes; auth_failures: an address sent too many such tokens.
        """
        undo_hash = _hash(undo_token)
        found = await self._lookups.run(peer, self._by_undo, undo_hash, self._undoable)
        if found is None or not self._undoable(found):  # a guess costs no write
            raise GatewayError("undo_unknown")
        key_id = found["key_id"]
        async with self._database.write() as connection:
            await api_keys.hold(connection, key_id)
            row = (await store.by_undo(connection, self._issuer, [undo_hash])).get(undo_hash)
            if row is None or not self._undoable(row):  # another press of the same button, or a newer link
                raise GatewayError("undo_unknown")
            rows = await store.of_key(connection, key_id, self._issuer)
            ended = [one for one in rows if one["session_id"] == row["session_id"] or _same_account(one, row)]
            for one in ended:
                await self._revocations.end(connection, one)
                await link_states.refuse(connection, key_id, one["session_id"], undone(account(one)))
            before = _links(ended).current or row
            await self.acts.record(connection, owner_of(row), "link.undone", key_id, before)
        self.acts.count("link.undone")
        self._recall.invalidate(key_id)
        await self._revocations.hurry()
        return account(row)

    async def _by_undo(self, undo_hashes: Sequence[bytes]) -> Mapping[bytes, RowMapping]:
        async with self._database.read() as connection:
            return await store.by_undo(connection, self._issuer, undo_hashes)

    def _undoable(self, row: RowMapping) -> bool:
        return bool(row["undo_until"] > self._clock.now())

    async def sweep(self) -> None:
        """End the sessions that are over; try again what X could not revoke yet.

        It costs what there is to end, however many sessions there are.
        """
        now = self._clock.now()
        async with self._database.read() as connection:
            over = await store.over(connection, self._issuer, now, _AT_ONCE)
        for row in over:
            await self._end_over(row, now)
        await self._revocations.drain()

    async def _end_over(self, row: RowMapping, now: datetime) -> None:
        """End one, unless it was confirmed or its key was given more time at the last moment.

        A revoked key's tokens, and those that nobody confirmed, are revoked at X. So are an expired key's, but not
        while another key uses the account: X might end both.
        """
        async with self._database.write() as connection:
            lives = await api_keys.hold(connection, row["key_id"])
            newer = await store.get(connection, row["session_id"])
            if newer is None or newer["over_at"] is None or newer["over_at"] > now:
                return
            if lives and newer["state"] != "pending" and await store.shared(connection, newer, now):
                await store.remove(connection, newer["session_id"])
            else:
                await self._revocations.end(connection, newer)
            act, why = _ENDS[lives], store.why_over(newer) if lives else "key_revoked"
            await self.acts.record(connection, GATEWAY, act, row["key_id"], newer, {"why": why})
        self.acts.count(act)

    def drain(self) -> None:
        """Shut down: renew nothing that another can renew in time."""
        self._refresher.draining = True

    async def close(self) -> None:
        """Let refreshes and revocations under way end."""
        await self._refresher.close()
        await self._revocations.close()

    async def _read(self, session_id: str) -> RowMapping:
        async with self._database.read() as connection:
            return await self._get(connection, session_id)

    async def _get(self, connection: AsyncConnection, session_id: str, *, hold: bool = False) -> RowMapping:
        row = await store.get(connection, session_id, hold=hold)
        if row is None:
            raise GatewayError("x_not_linked")
        return row

    async def _held(self, connection: AsyncConnection, session_id: str) -> RowMapping:
        """The row, with its key's links in the hands of the caller's transaction; a revoked key has none.

        Raises:
            GatewayError: x_not_linked: it is gone, or has ended.
        """
        row = await self._get(connection, session_id)
        if not await api_keys.hold(connection, row["key_id"]):
            raise GatewayError("x_not_linked")
        row = await self._get(connection, session_id, hold=True)
        if store.barred(row):
            raise GatewayError("x_not_linked")
        return row

    def _session(self, row: RowMapping | Mapping[str, Any]) -> XSession:
        return XSession(
            session_id=row["session_id"],
            gen=row["gen"],
            access_token=self._pairs.open(row, "access"),
            user_id=row["user_id"] or "",
            username=row["username"] or "",
            scopes=_scopes(row["scopes"]),
            linked_at=row["linked_at"],
        )


_ENDS: dict[bool, Act] = {True: "link.expired", False: "link.unlinked"}
"""What ends a link that is over, by whether its key lives."""


def _links(rows: Sequence[RowMapping]) -> Links:
    """The session in use, and the one that waits; not one that ended with its key's right to link."""
    current = next((row for row in rows if row["state"] != "pending"), None)
    return Links(current, next((row for row in rows if row["state"] == "pending" and not store.barred(row)), None))


def _same_account(row: RowMapping, other: RowMapping) -> bool:
    return row["user_id"] is not None and bool(row["user_id"] == other["user_id"])


def _mismatch(
    row: RowMapping, pin: api_keys.Pin | None, current: RowMapping | None, user_id: str, username: str
) -> str | None:
    """Return the account that should have approved, if another one did.

    A pinned key takes its account alone: by user id once a link has shown it, until then by name. Else an account that
    was named beforehand may replace another one; an unnamed one may not.
    """
    if pin is not None:
        pinned_id, pinned = pin.account_user_id, pin.account_username
        if user_id != pinned_id if pinned_id else username.lower() != pinned.lower():
            return f"@{pinned}"
    expected = row["expected_username"]
    if expected is not None:
        return None if expected.lower() == username.lower() else f"@{expected}"
    if pin is None and current is not None and current["user_id"] != user_id:
        return account(current)
    return None


@lru_cache(256)  # the same few for everybody: a set of its own would be half of what a remembered key takes
def _scopes(words: str) -> frozenset[str]:
    return frozenset(words.split())


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def lacking(row: RowMapping) -> list[str]:
    """Return the scopes that the account's owner did not grant and without which X does not name the account."""
    return [scope for scope in NAMING_SCOPES if scope not in _scopes(row["scopes"])]


def standing(row: RowMapping, now: datetime) -> tuple[str, str | None]:
    """Return the `state` and the `why` of a link as people and programs read them.

    A link that no call can go through until the owner approves again is `needs_relink`, whether or not one has tried.
    """
    if row["state"] == "pending" and lacking(row):
        return "needs_relink", "scope_missing"
    if row["state"] == "active" and row["expires_at"] <= now:
        if row["refresh_ct"] is None:
            return "needs_relink", "no_refresh_token"
        if row["refresh_state"] == "over":
            return "needs_relink", row["why"]
    return row["state"], row["why"]
