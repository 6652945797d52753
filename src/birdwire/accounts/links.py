"""The lifecycle of a link: pending, active, needs_relink, ended. Every change of a link's state is made here.

TRANSITIONS is the state machine; `Links` makes each transition in one transaction that holds the key's lock, together
with its act and its event. A refresh that stores a new pair (`refresh.Refresher`) makes the only transition outside of
this module, by `x_sessions.save`: a link that needed relinking while the pair was on its way is active again.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

from ulid import ULID

from birdwire.accounts.acts import LinkActs, account_of, notify, owner_of
from birdwire.accounts.attempts import encode_refusal, encode_undone
from birdwire.accounts.revocation import RevocationQueue
from birdwire.accounts.tokens import Binding, SealedTokens
from birdwire.api.errors import GatewayError
from birdwire.store.tables import api_keys, link_states
from birdwire.store.tables import x_sessions as store
from birdwire.store.tables.acts import GATEWAY, Actor
from birdwire.store.tables.x_sessions import LinkState, RefreshState
from birdwire.x.client.auth_server import NAMING_SCOPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.keys.cache import KeyCache
    from birdwire.keys.guess_limit import GuessLimiter
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.telemetry import Telemetry
    from birdwire.store.database import Database
    from birdwire.store.encryption.vault import Vault
    from birdwire.store.tables.acts import Act
    from birdwire.store.tables.api_keys import Pin
    from birdwire.store.tables.x_sessions import SessionRow
    from birdwire.x.client.auth_server import AuthServer, Tokens

TRANSITIONS: Mapping[LinkState, frozenset[LinkState]] = {
    LinkState.PENDING: frozenset({LinkState.ACTIVE, LinkState.ENDED}),
    LinkState.ACTIVE: frozenset({LinkState.NEEDS_RELINK, LinkState.ENDED}),
    LinkState.NEEDS_RELINK: frozenset({LinkState.ACTIVE, LinkState.ENDED}),
    LinkState.ENDED: frozenset(),
}
"""The legal transitions between the states of a link."""

UNDO_FOR = timedelta(minutes=10)
CONFIRM_WITHIN = timedelta(minutes=10)
MAX_SWEPT = 500


class IllegalTransitionError(Exception):
    """A link cannot change between these two states: a defect of the gateway."""


def check_transition(before: LinkState, after: LinkState) -> None:
    """Check that a link may change from one state to another.

    Raises:
        IllegalTransitionError: it may not.
    """
    # A state that only another version knows is treated as active, as calls treat it: the link can be ended.
    if after not in TRANSITIONS.get(before, TRANSITIONS[LinkState.ACTIVE]):
        raise IllegalTransitionError(f"a link cannot change from {before} to {after}")


@dataclass(frozen=True, slots=True)
class KeyLinks:
    """A key's links: the one in use (active or needs_relink), and a newer one that is pending.

    `epoch` is the key cache's when they were read.
    """

    current: SessionRow | None
    pending: SessionRow | None
    epoch: int = -1


class Links:
    """The links of one database with one issuer. `confirm`: a key's holder confirms each named account."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        authserver: AuthServer,
        cache: KeyCache,
        guesses: GuessLimiter,
        clock: Clock,
        telemetry: Telemetry,
        issuer: str,
        *,
        confirm: bool = False,
    ) -> None:
        self._database = database
        self._cache = cache
        self._guesses = guesses
        self._clock = clock
        self._issuer = issuer
        self._confirm = confirm
        self.tokens = SealedTokens(vault, clock)
        self.revocations = RevocationQueue(database, vault, self.tokens, authserver, clock, telemetry, issuer)
        self.acts = LinkActs(database, clock, telemetry)

    async def of_key(self, key_id: str) -> KeyLinks:
        """Return a key's links."""
        epoch = self._cache.poll()
        async with self._database.read() as connection:
            return replace(_links(await store.of_key(connection, key_id, self._issuer)), epoch=epoch)

    async def of_account(self, user_id: str) -> list[SessionRow]:
        """Return the links of an account that calls can use, by any key; newest first."""
        async with self._database.read() as connection:
            return await store.of_account(connection, user_id, self._issuer, self._clock.now())

    async def get(self, session_id: str) -> SessionRow:
        """Return one session.

        Raises:
            GatewayError: x_not_linked: it no longer exists.
        """
        async with self._database.read() as connection:
            return await _get(connection, session_id)

    async def store_pending(
        self,
        key_id: str,
        tokens: Tokens,
        scopes: Sequence[str],
        expected_username: str | None,
        state_hash: bytes | None = None,
    ) -> tuple[SessionRow, str]:
        """Store a new pair as a pending link alongside any older one; return its row, and the undo token for the page.

        An older link that was still pending is ended. `state_hash` is the state that led to the pair.

        Raises:
            GatewayError: state_unknown: the state was deleted since it was taken; the pair is revoked.
        """
        now = self._clock.now()
        session_id, undo_token = f"xs_{ULID()}", secrets.token_urlsafe(32)
        binding = Binding(session_id, key_id, self._issuer)
        row = {
            **binding._asdict(),
            "state": LinkState.PENDING,
            **self.tokens.seal(binding, 1, tokens),
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
                if older is not None:
                    # A pair that lacks scopes is probably the same account's, which granted enough only now. X might
                    # end both pairs if one is revoked.
                    await self._end(connection, older, revoke=not missing_scopes(older))
                await store.add(connection, row)
                await store.end_with_key(connection, key_id)
                new = await _get(connection, session_id)
                described = store.described(new)
                await self.acts.record(connection, owner_of(None), "link.approved", key_id, older, described)
                return new, undo_token
            await self.revocations.add_pair(connection, self._issuer, tokens)
        await self.revocations.expedite()
        raise GatewayError("state_unknown")

    async def name(self, session_id: str, user_id: str, username: str) -> SessionRow:
        """Store the account that X has named for a pending link, and activate it unless it awaits confirmation.

        Raises:
            GatewayError: account_mismatch: the link is ended, its pair revoked, and any older link unchanged.
            GatewayError: x_not_linked: it was unlinked in the meantime.
        """
        async with self._database.write() as connection:
            row = await self._hold(connection, session_id)
            if row.state != LinkState.PENDING:
                return row
            named = self.tokens.rename(row, user_id) | {"username": username}
            current = _links(await store.of_key(connection, row.key_id, self._issuer)).current
            pin = await api_keys.pin_of(connection, row.key_id)
            waits = self._confirm and row.expected_username is None and pin is None
            expected = None if waits else _expected(row, pin, current, user_id, username)
            by, key_id = owner_of(username), row.key_id
            if expected is not None:
                await self._end(connection, row)
                mismatch = GatewayError("account_mismatch", username=username, expected=expected)
                await link_states.refuse(connection, key_id, session_id, encode_refusal(mismatch))
                after = {"user_id": user_id, **mismatch.values}
                await self.acts.record(connection, by, "link.mismatched", key_id, None, after)
            elif waits:
                await store.change(
                    connection, session_id, row.gen, named | {"over_at": row.created_at + CONFIRM_WITHIN}
                )
                row = await _get(connection, session_id)
                await self.acts.record(connection, by, "link.named", key_id, None, store.described(row))
            else:
                row = await self._activate(connection, row, current, by, named)
        if not waits:
            self.acts.count("link.activated" if expected is None else "link.mismatched")
        # The next call must not use the link that this one has replaced.
        self._cache.invalidate(key_id)
        if expected is not None:
            await self.revocations.expedite()
            raise mismatch
        return row

    async def activate(self, session_id: str, by: Actor) -> SessionRow:
        """Activate a named link, after the key's holder has confirmed it.

        Raises:
            GatewayError: x_not_linked: it no longer exists.
        """
        async with self._database.write() as connection:
            row = await self._hold(connection, session_id)
            current = _links(await store.of_key(connection, row.key_id, self._issuer)).current
            waits = row.state == LinkState.PENDING
            if waits:
                row = await self._activate(connection, row, current, by, {})
        if waits:
            self.acts.count("link.activated")
        self._cache.invalidate(row.key_id)
        return row

    async def _activate(
        self,
        connection: AsyncConnection,
        row: SessionRow,
        current: SessionRow | None,
        by: Actor,
        named: Mapping[str, object],
    ) -> SessionRow:
        """Activate a link in place of the key's current one; `named`: columns that X's naming of the account changes.

        A pinned key keeps the account's user id from here on.
        """
        if current is not None:
            # The same account's older pair is deleted, not revoked: X might end both. Another account's is revoked.
            await self._end(connection, current, revoke=current.user_id != named.get("user_id", row.user_id))
        now = self._clock.now()
        values = {**named, "linked_at": now, "over_at": None}
        await self._change_state(connection, row, LinkState.ACTIVE, values)
        await store.end_with_key(connection, row.key_id)
        row = await _get(connection, row.session_id)
        await api_keys.identify(connection, row.key_id, row.user_id or "", row.username or "")
        linked = {**(store.described(row) or {}), "scopes": row.scopes}
        await self.acts.record(connection, by, "link.activated", row.key_id, current, linked)
        await notify(connection, "account.linked", now, row)
        return row

    async def require_relink(self, session: SessionRow, why: str | None) -> None:
        """Mark a link whose tokens X no longer accepts, unless it has a newer pair; end it if it was never active.

        A pending link must not stand in for an active one.
        """
        async with self._database.write() as connection:
            await api_keys.hold(connection, session.key_id)
            # X may have named the account while the caller asked X for tokens. The row is locked: a refresh that stores
            # a pair takes no lock of the key.
            newer = await store.get(connection, session.session_id, hold=True)
            if newer is None or newer.gen != session.gen:
                return
            if newer.state == LinkState.NEEDS_RELINK:
                await store.change(connection, newer.session_id, newer.gen, {"why": why})
                return
            if newer.state == LinkState.PENDING:
                await self._end(connection, newer)
            else:
                await self._change_state(connection, newer, LinkState.NEEDS_RELINK, {"why": why})
                await notify(connection, "account.needs_relink", self._clock.now(), newer, reason=why)
            await self.acts.record(connection, GATEWAY, "link.needs_relink", newer.key_id, newer, {"why": why})

    async def unlink(self, key_id: str, by: Actor) -> bool:
        """End all links of a key; return whether there was one.

        The tokens are deleted here immediately, and revoked at X as soon as X answers.
        """
        async with self._database.write() as connection:
            await api_keys.hold(connection, key_id)
            rows = await store.of_key(connection, key_id, self._issuer)
            for row in rows:
                await self._end(connection, row)
            if rows:
                await self.acts.record(connection, by, "link.unlinked", key_id, _links(rows).current or rows[0])
        # The change feed may report one's own change a moment later.
        self._cache.invalidate(key_id)
        if rows:
            self.acts.count("link.unlinked")
            await self.revocations.expedite()
        return bool(rows)

    async def undo(self, undo_token: str, peer: str) -> str:
        """End the link that a page offered to undo, and the key's other links to that account; return the account.

        Raises:
            GatewayError: undo_unknown, also after 10 minutes; auth_failures: an address sent too many such tokens.
        """
        undo_hash = _hash(undo_token)
        found = await self._guesses.run(peer, self._by_undo, undo_hash, self._undoable)
        # A guess costs no write.
        if found is None or not self._undoable(found):
            raise GatewayError("undo_unknown")
        key_id = found.key_id
        async with self._database.write() as connection:
            await api_keys.hold(connection, key_id)
            row = (await store.by_undo(connection, self._issuer, [undo_hash])).get(undo_hash)
            # The button may have been pressed twice, or a newer link may have replaced this one.
            if row is None or not self._undoable(row):
                raise GatewayError("undo_unknown")
            rows = await store.of_key(connection, key_id, self._issuer)
            ended = [one for one in rows if one.session_id == row.session_id or _same_account(one, row)]
            for one in ended:
                await self._end(connection, one)
                await link_states.refuse(connection, key_id, one.session_id, encode_undone(account_of(one)))
            before = _links(ended).current or row
            await self.acts.record(connection, owner_of(row.username), "link.undone", key_id, before)
            await notify(connection, "account.undone", self._clock.now(), row)
        self.acts.count("link.undone")
        self._cache.invalidate(key_id)
        await self.revocations.expedite()
        return account_of(row)

    async def _by_undo(self, undo_hashes: Sequence[bytes]) -> Mapping[bytes, SessionRow]:
        async with self._database.read() as connection:
            return await store.by_undo(connection, self._issuer, undo_hashes)

    def _undoable(self, row: SessionRow) -> bool:
        return row.undo_until is not None and row.undo_until > self._clock.now()

    async def sweep(self) -> None:
        """End the links that are over, and retry queued revocations.

        The cost depends on how many links there are to end, not on how many exist.
        """
        now = self._clock.now()
        async with self._database.read() as connection:
            over = await store.over(connection, self._issuer, now, MAX_SWEPT)
        for row in over:
            await self._end_over(row, now)
        await self.revocations.drain()

    async def _end_over(self, row: SessionRow, now: datetime) -> None:
        """End one link, unless it was confirmed or its key was extended in the last moment.

        The tokens of a revoked key, and those that nobody confirmed, are revoked at X. So are those of an expired key,
        but not while another key uses the account: X might end both.
        """
        async with self._database.write() as connection:
            lives = await api_keys.hold(connection, row.key_id)
            newer = await store.get(connection, row.session_id)
            if newer is None or newer.over_at is None or newer.over_at > now:
                return
            shared = lives and newer.state != LinkState.PENDING and await store.shared(connection, newer, now)
            await self._end(connection, newer, revoke=not shared)
            act: Act = "link.expired" if lives else "link.unlinked"
            why = store.why_over(newer) if lives else "key_revoked"
            await self.acts.record(connection, GATEWAY, act, row.key_id, newer, {"why": why})
        self.acts.count(act)

    async def close(self) -> None:
        """Wait for running revocations."""
        await self.revocations.close()

    async def _change_state(
        self, connection: AsyncConnection, row: SessionRow, after: LinkState, values: Mapping[str, object]
    ) -> None:
        check_transition(row.state, after)
        await store.change(connection, row.session_id, row.gen, {**values, "state": after})

    async def _end(self, connection: AsyncConnection, row: SessionRow, *, revoke: bool = True) -> None:
        """Delete a link's row, and queue its tokens for revocation unless `revoke` is false."""
        check_transition(row.state, LinkState.ENDED)
        if revoke:
            await self.revocations.remove(connection, row)
        else:
            await store.remove(connection, row.session_id)

    async def _hold(self, connection: AsyncConnection, session_id: str) -> SessionRow:
        """Return a row whose key's links are locked until the caller's transaction ends. A revoked key has none.

        Raises:
            GatewayError: x_not_linked: it no longer exists, or has ended.
        """
        row = await _get(connection, session_id)
        if not await api_keys.hold(connection, row.key_id):
            raise GatewayError("x_not_linked")
        row = await _get(connection, session_id, hold=True)
        if store.barred(row):
            raise GatewayError("x_not_linked")
        return row


async def _get(connection: AsyncConnection, session_id: str, *, hold: bool = False) -> SessionRow:
    row = await store.get(connection, session_id, hold=hold)
    if row is None:
        raise GatewayError("x_not_linked")
    return row


def _links(rows: Sequence[SessionRow]) -> KeyLinks:
    """Return the link in use and the pending one, but no pending link that ended with its key's right to link."""
    current = next((row for row in rows if row.state != LinkState.PENDING), None)
    pending = next((row for row in rows if row.state == LinkState.PENDING and not store.barred(row)), None)
    return KeyLinks(current, pending)


def _same_account(row: SessionRow, other: SessionRow) -> bool:
    return row.user_id is not None and row.user_id == other.user_id


def _expected(row: SessionRow, pin: Pin | None, current: SessionRow | None, user_id: str, username: str) -> str | None:
    """Return the account that should have approved, if another one did.

    A pinned key accepts its account alone: by user id once a link has shown it, by name until then. Otherwise an
    account that was named in advance may replace another one; an account that was not named may not.
    """
    if pin is not None:
        pinned_id, pinned = pin.account_user_id, pin.account_username
        if user_id != pinned_id if pinned_id else username.lower() != pinned.lower():
            return f"@{pinned}"
    expected = row.expected_username
    if expected is not None:
        return None if expected.lower() == username.lower() else f"@{expected}"
    if pin is None and current is not None and current.user_id != user_id:
        return account_of(current)
    return None


@lru_cache(256)
def scope_set(scopes: str) -> frozenset[str]:
    """Return stored scopes as a set, shared by all sessions: a set per session would double a cached session's size."""
    return frozenset(scopes.split())


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def missing_scopes(row: SessionRow) -> list[str]:
    """Return the scopes without which X does not name the account, and which the account's owner did not grant."""
    return [scope for scope in NAMING_SCOPES if scope not in scope_set(row.scopes)]


def reported_state(row: SessionRow, now: datetime) -> tuple[LinkState, str | None]:
    """Return the state of a link, and why it has it, as callers and operators see it.

    A link that no call can use until the owner approves again is reported as needs_relink, even if no call has tried.
    """
    if row.state == LinkState.PENDING and missing_scopes(row):
        return LinkState.NEEDS_RELINK, "scope_missing"
    if row.state == LinkState.ACTIVE and row.expires_at <= now:
        if row.refresh_ct is None:
            return LinkState.NEEDS_RELINK, "no_refresh_token"
        if row.refresh_state == RefreshState.OVER:
            return LinkState.NEEDS_RELINK, row.why
    return row.state, row.why


def only_confirmation_helps(links: KeyLinks, now: datetime) -> bool:
    """Return whether the link in use serves no call any longer while a named one awaits confirmation."""
    over = links.current is not None and reported_state(links.current, now)[0] == LinkState.NEEDS_RELINK
    return over and links.pending is not None and links.pending.user_id is not None
