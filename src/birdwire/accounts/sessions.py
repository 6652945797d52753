"""Gives a call a session whose token is good now: from memory, or from the key's link, renewed and named if needed."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from birdwire.accounts.acts import account_of
from birdwire.accounts.links import KeyLinks, missing_scopes, only_confirmation_helps, scope_set
from birdwire.accounts.refresh import renews_at
from birdwire.api.errors import GatewayError
from birdwire.api.paths import API
from birdwire.runtime.bounded_dict import BoundedDict
from birdwire.runtime.single_flight import SingleFlight
from birdwire.store.database import StorageDownError
from birdwire.store.encryption.vault import VaultError
from birdwire.store.tables.x_sessions import LinkState
from birdwire.x.client.api import bearer
from birdwire.x.client.replies import Unauthorized

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from birdwire.accounts.links import Links
    from birdwire.accounts.refresh import Refresher
    from birdwire.keys.cache import KeyCache
    from birdwire.keys.registry import Key
    from birdwire.runtime.clock import Clock
    from birdwire.store.tables.x_sessions import SessionRow
    from birdwire.x.client.api import Account
    from birdwire.x.client.pool import Fields

INLINE_S = 60.0
"""A token that expires sooner is renewed before it is used; one that lives longer, in the background."""

SUSPEND_S = 15 * 60
MAX_SUSPENDED = 10_000
ASK_EVERY_S = 5.0
MAX_ASKED = 10_000
ME_DEADLINE_S = 8.0
"""With the code exchange's 10 s, a callback finishes within 20 s."""


@dataclass(frozen=True)
class XSession:
    """What a call to X needs: a token, its account, and its scopes. `gen` distinguishes this pair from the next.

    `linked_at` is in UNIX seconds.
    """

    session_id: str
    gen: int
    access_token: str = field(repr=False)
    user_id: str
    username: str
    scopes: frozenset[str]
    linked_at: float | None = None

    @cached_property
    def authorization(self) -> Fields:
        """The header that carries the token. It is kept as long as the session, and no longer."""
        return bearer(self.access_token)


class Sessions:
    """The X sessions of keys. Asks X only for new tokens and for the account of a token.

    `me` returns the account of an access token, as users/me names it, within a deadline in seconds. X bills that, so
    `on_named` gets the key and the account each time.
    """

    def __init__(
        self,
        links: Links,
        refresher: Refresher,
        cache: KeyCache,
        clock: Clock,
        me: Callable[[str, float], Awaitable[Account]],
        on_named: Callable[[str, str], Awaitable[None]] | None = None,
    ) -> None:
        self._links = links
        self._refresher = refresher
        self._cache = cache
        self._clock = clock
        self._me = me
        self._on_named = on_named
        self._suspended: BoundedDict[tuple[str, int], float] = BoundedDict(MAX_SUSPENDED)
        self._ask_again: BoundedDict[str, float] = BoundedDict(MAX_ASKED)
        self._naming: SingleFlight[SessionRow] = SingleFlight()

    async def session_for(self, key: Key, scopes: Sequence[str]) -> XSession:
        """Return a session of the key's link that has these scopes, and whose token is good now.

        Raises:
            GatewayError: x_not_linked, x_link_pending, x_session_expired, x_scope_missing, or why X could not be asked
                for a token or a name.
            StorageDownError: the database does not answer.
        """
        session = self.ready(key.key_id) or await self._from_store(key.key_id)
        if not session.scopes.issuperset(scopes):
            raise _scope_missing(session, scopes)
        return session

    async def again(self, key: Key, held: XSession, scopes: Sequence[str]) -> XSession:
        """Return the session of the key's link as the database has it now, for a call that holds one already.

        It renews only a token that has expired, and asks X for no name: both are changes of the key, which would end
        what was just read. If X does not accept the token, the call renews it.

        Raises:
            GatewayError: x_not_linked, x_session_expired, x_scope_missing, or why there is no token that works now.
            StorageDownError: the database does not answer.
        """
        links = await self._links.of_key(key.key_id)
        row, session = _usable(links), held
        if (row.session_id, row.gen) != (held.session_id, held.gen):
            session = await self._unrenewed(row)
        if not session.scopes.issuperset(scopes):
            raise _scope_missing(session, scopes)
        self.remember(links, session)
        return session

    async def peek(self, key: Key, scopes: Sequence[str]) -> XSession:
        """Return the session of the key's link without its token, to see whether a call could use it.

        Nothing is renewed or named, and X is not asked.

        Raises:
            GatewayError: x_not_linked, x_session_expired, x_scope_missing.
            StorageDownError: the database does not answer.
        """
        session = _session_of(_usable(await self._links.of_key(key.key_id)), "")
        if not session.scopes.issuperset(scopes):
            raise _scope_missing(session, scopes)
        return session

    async def _unrenewed(self, row: SessionRow) -> XSession:
        """Return the session of a row with the token that it has, unless that has expired or cannot be opened."""
        if row.expires_at > self._clock.now():
            with contextlib.suppress(VaultError):
                return self._session(row)
        return await self.open(row)

    async def acting_as(self, key_id: str, user_id: str) -> XSession | None:
        """Return a session of the key's link if that is active and acts as this account, without naming anything.

        Raises:
            GatewayError: there is no token that works now.
        """
        current = (await self._links.of_key(key_id)).current
        if current is None or current.user_id != user_id or current.state != LinkState.ACTIVE:
            return None
        return await self.open(current)

    async def for_account(self, user_id: str, key_id: str, scopes: Sequence[str]) -> XSession:
        """Return a session of an account for what the operator ordered.

        It is of the link of the key `key_id` if that one is active and has the scopes, or else of any other link.

        Raises:
            GatewayError: x_not_linked, x_scope_missing, or why there is no token that works now.
            StorageDownError: the database does not answer.
        """
        rows = sorted(await self._links.of_account(user_id), key=lambda row: row.key_id != key_id)
        if not rows:
            raise GatewayError("x_not_linked")
        able = [row for row in rows if scope_set(row.scopes).issuperset(scopes)]
        if not able:
            raise _scope_missing(_session_of(rows[0], ""), scopes)
        return await self.open(able[0])

    async def reopened(self, session: XSession) -> tuple[XSession, str]:
        """Return a session with the newest token of its link, as the database has it now, and the id of its key.

        Raises:
            GatewayError: x_not_linked: the link has ended; x_session_expired, or why there is no token that works now.
            StorageDownError: the database does not answer.
        """
        row = await self._links.get(session.session_id)
        if row.over_at is not None and row.over_at <= self._clock.now():
            raise GatewayError("x_not_linked")
        if row.state == LinkState.NEEDS_RELINK:
            raise GatewayError("x_session_expired", account=account_of(row))
        return session if row.gen == session.gen else await self._unrenewed(row), row.key_id

    def ready(self, key_id: str) -> XSession | None:
        """Return the key's session from memory, if its token is known to be good for a while."""
        # The call may have waited for a slot, or for a long body, since its key was found.
        self._cache.poll()
        known: tuple[float, XSession] | None = self._cache.get(key_id, "session")
        return known[1] if known is not None and known[0] > self._clock.unix_s() else None

    async def _from_store(self, key_id: str) -> XSession:
        links = await self._settle(await self._links.of_key(key_id))
        if links.current is None:
            raise GatewayError("x_not_linked")
        session = await self.open(links.current)
        self.remember(links, session)
        return session

    def remember(self, links: KeyLinks, session: XSession) -> None:
        """Let `ready` return a session that was opened from these links, until its token is due for renewal."""
        row = links.current
        if row is None or links.pending is not None or (row.state, row.gen) != (LinkState.ACTIVE, session.gen):
            return
        self._cache.put(row.key_id, "session", (renews_at(row).timestamp(), session), links.epoch)

    async def open(self, row: SessionRow) -> XSession:
        """Return the session of a row. A token is renewed early, while the old one works, so that no call waits.

        Raises:
            GatewayError: x_session_expired, or why there is no token that works now.
        """
        if row.state == LinkState.NEEDS_RELINK:
            raise GatewayError("x_session_expired", account=account_of(row))
        if (row.expires_at - self._clock.now()).total_seconds() > INLINE_S:
            self._refresher.start(row)
            # If the token was changed at rest, or its vault key is missing, a newer pair may open.
            with contextlib.suppress(VaultError):
                return self._session(row)
        try:
            return self._session(await self._refresher.refreshed(row))
        except (GatewayError, StorageDownError) as error:
            over = isinstance(error, GatewayError) and error.reason in ("x_session_expired", "x_not_linked")
            if not over and row.expires_at > self._clock.now():
                # The old token still works, and X's token endpoint may be available again before it expires.
                with contextlib.suppress(VaultError):
                    return self._session(row)
            raise

    async def renew(self, session: XSession, upstream: dict[str, object] | None) -> XSession:
        """Return the session with a newer token than the one to which X answered 401 with this body.

        Raises:
            GatewayError: x_session_expired, or why X could not be asked for a new token.
        """
        until = self._suspended.get((session.session_id, session.gen))
        if until is not None and self._clock.monotonic() < until:
            raise GatewayError("x_session_expired", account=f"@{session.username}", upstream=upstream)
        row = await self._links.get(session.session_id)
        if row.gen != session.gen:
            return self._session(row)
        if row.refresh_ct is None and row.expires_at > self._clock.now():
            # Without a refresh token, X cannot be asked whether the link is over. A 401 alone proves nothing, so the
            # link stays.
            raise GatewayError("x_session_expired", account=f"@{session.username}", upstream=upstream)
        return self._session(await self._refresher.refreshed(row))

    def hold_off(self, session: XSession) -> None:
        """Stop renewing a session for a while: X refused a token that it had just issued, so X is failing."""
        self._suspended[session.session_id, session.gen] = self._clock.monotonic() + SUSPEND_S

    # Naming the account of a pending link.

    async def _settle(self, links: KeyLinks) -> KeyLinks:
        """Return the key's links after asking X once more for the account of a pending one.

        Raises:
            GatewayError: account_mismatch, x_link_pending, or why X could not be asked. While an older link can be
                used, nothing is raised; if that one must be linked again and the newer one awaits confirmation,
                x_link_pending.
        """
        row = links.pending
        if row is None:
            return links
        # X never names an account without these scopes, so the older link stays in use.
        if links.current is not None and missing_scopes(row):
            return replace(links, pending=None)
        try:
            if row.user_id is None:
                if links.current is not None and not self._may_ask(row.session_id):
                    return KeyLinks(links.current, None)
                row = await self.name(row)
            if row.state == LinkState.PENDING:
                raise GatewayError(
                    "x_link_pending",
                    why=f"@{row.username} approved it, but the key's holder has not confirmed that account yet",
                    remedy=f"Call POST {API}/auth/confirm with the state and the username",
                )
            return KeyLinks(row, None)
        except GatewayError as error:
            if links.current is None or only_confirmation_helps(replace(links, pending=row), self._clock.now()):
                # The request that failed was users/me: the caller's own request was not sent.
                error.outcome = "not_sent"
                raise
            return KeyLinks(links.current, None)

    def _may_ask(self, session_id: str) -> bool:
        """Return whether X may be asked for an account again while an older link serves: X bills and limits it."""
        now = self._clock.monotonic()
        if now < self._ask_again.get(session_id, 0.0):
            return False
        self._ask_again[session_id] = now + ASK_EVERY_S
        return True

    async def name(self, row: SessionRow) -> SessionRow:
        """Ask X which account a pending link belongs to, and store it.

        Raises:
            GatewayError: x_scope_missing, without asking: the owner did not let X name the account; x_link_pending: X
                answered 401; account_mismatch, x_not_linked, or why X could not be asked.
        """
        if scopes := missing_scopes(row):
            raise GatewayError("x_scope_missing", scope=" ".join(scopes))
        return await self._naming.run(row.session_id, lambda: self._ask_name(row))

    async def _ask_name(self, row: SessionRow) -> SessionRow:
        try:
            session = await self.open(row)
            account = await self._me(session.access_token, ME_DEADLINE_S)
        except Unauthorized as error:
            raise GatewayError(
                "x_link_pending",
                why="X has not yet reported which account approved it",
                remedy="Try again in a minute; Birdwire asks X again with every call",
                upstream=error.upstream,
            ) from None
        try:
            return await self._links.name(row.session_id, account.id, account.username)
        finally:
            if self._on_named is not None:
                with contextlib.suppress(StorageDownError):
                    await self._on_named(row.key_id, account.id)

    @property
    def unsaved(self) -> int:
        """Pairs of X tokens that the store has not accepted yet."""
        return self._refresher.unsaved

    def drain(self) -> None:
        """Stop background renewals, as this process is shutting down; calls still renew the tokens that they need."""
        self._refresher.drain()

    async def close(self) -> None:
        """Wait for running refreshes and requests to X."""
        await self._naming.close(wait_s=ME_DEADLINE_S)
        await self._refresher.close()

    def _session(self, row: SessionRow) -> XSession:
        return _session_of(row, self._links.tokens.open(row, "access"))


def _session_of(row: SessionRow, access_token: str) -> XSession:
    return XSession(
        session_id=row.session_id,
        gen=row.gen,
        access_token=access_token,
        user_id=row.user_id or "",
        username=row.username or "",
        scopes=scope_set(row.scopes),
        linked_at=None if row.linked_at is None else row.linked_at.timestamp(),
    )


def _usable(links: KeyLinks) -> SessionRow:
    """Return the link in use.

    Raises:
        GatewayError: x_not_linked, x_session_expired.
    """
    row = links.current
    if row is None:
        raise GatewayError("x_not_linked")
    if row.state == LinkState.NEEDS_RELINK:
        raise GatewayError("x_session_expired", account=account_of(row))
    return row


def _scope_missing(session: XSession, scopes: Sequence[str]) -> GatewayError:
    return GatewayError("x_scope_missing", scope=" ".join(scope for scope in scopes if scope not in session.scopes))
