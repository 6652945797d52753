"""The OAuth authorization code flow with PKCE (RFC 6749 §4.1, RFC 7636): from an auth_url to a named, active link.

In reading order: `AuthorizationRequests` stores a state and its code verifier, and returns the auth_url. `Linking`
takes X's redirect, exchanges the code, stores the pair as a pending link, and asks X for the account; it confirms and
undoes links. Holds no token: `sessions` and `links` do.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qsl, urlsplit

from birdwire.accounts import undo_cookie
from birdwire.accounts.attempts import attempt, ending, unconfirmable
from birdwire.accounts.links import UNDO_FOR, missing_scopes, reported_state
from birdwire.api.errors import GatewayError, excerpt
from birdwire.api.web_page import is_prefetch
from birdwire.keys.permissions import SCOPES, describe
from birdwire.keys.rules import LINK, KeyRules
from birdwire.runtime.clock import rfc3339
from birdwire.store.database import StorageDownError, now
from birdwire.store.encryption.vault import Place, VaultError
from birdwire.store.tables import acts, api_keys
from birdwire.store.tables import link_states as store
from birdwire.store.tables.acts import Actor
from birdwire.store.tables.x_sessions import LinkState
from birdwire.x.client.auth_server import (
    ALWAYS_SCOPES,
    DEFAULT_SCOPES,
    Meaning,
    TokenError,
    authorize_url,
    new_verifier,
    offered_scopes,
)

if TYPE_CHECKING:
    from datetime import datetime

    from birdwire.accounts.bodies import AuthTwitter, Confirm
    from birdwire.accounts.callbacks import Callbacks
    from birdwire.accounts.links import Links
    from birdwire.accounts.sessions import Sessions
    from birdwire.api.messages import Call
    from birdwire.keys.registry import Key, Keys
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.failpoints import Failpoints
    from birdwire.settings import Settings
    from birdwire.store.database import Database
    from birdwire.store.encryption.vault import Vault
    from birdwire.store.tables.link_states import StateOutcome, StateRow
    from birdwire.store.tables.x_sessions import SessionRow
    from birdwire.x.client.auth_server import AuthServer, Tokens

STATE_FOR = timedelta(minutes=10)
STATE_KEPT = timedelta(hours=24)
MAX_STATES = 20
"""States that are kept per key, besides those whose link can still be undone."""

MAX_STATE, MAX_CODE = 500, 2_000
"""Characters of the callback's parameters."""

# RFC 6749 §4.1.2.1
_DENIAL = "access_denied"
_DENIED, _FAILED = "Access was denied on X's page", "X returned an error instead of an approval"

_FINAL = ("account_mismatch", "x_not_linked", "x_scope_missing")
"""Refusals to name an account that no later call can turn into a link."""

_HINTS = {True: "refresh_token", False: "access_token"}

How = Literal["linked", "pending", "confirm", "already"]

_HOWS: dict[tuple[bool, bool], How] = {
    (True, False): "pending",
    (True, True): "confirm",
    (False, True): "already",
    (False, False): "already",
}
"""How an earlier callback ended, by whether its link is pending and whether its account is named."""


@dataclass(frozen=True, slots=True)
class Linked:
    """How a callback ended.

    `how` is `linked`, `pending` (X has not named the account yet), `confirm` (the key's holder must confirm the named
    account) or `already` (the page was opened before). `works`: calls with the key can use the link, or will once it is
    active. `return_to` is the page from which the person came, if the key allows it. `may` is as `permissions.describe`
    returns it: empty if the link allows nothing.
    """

    how: How
    label: str
    may: str
    username: str | None = None
    works: bool = True
    undo_token: str | None = field(default=None, repr=False)
    return_to: str | None = None
    state_hash: bytes = field(default=b"", repr=False)
    undo_hash: bytes | None = field(default=None, repr=False)
    undo_until: datetime | None = field(default=None, repr=False)

    def again(self) -> Linked:
        """Return the result for another browser: the link without its undo."""
        return replace(self, how="already" if self.how == "linked" else self.how, undo_token=None)

    def with_undo(self, undo_token: str, at: datetime) -> Linked:
        """Return the result for a reload in the browser that holds the undo token: the same page, while it is valid."""
        if self.undo_hash is None or self.undo_until is None or self.undo_until <= at:
            return self
        if not hmac.compare_digest(hash_of(undo_token), self.undo_hash):
            return self
        return replace(self, how="linked" if self.how == "already" else self.how, undo_token=undo_token)


@dataclass(frozen=True, slots=True)
class Undone:
    """The result of an undo: the account of the link, and whether an earlier press had already ended it."""

    account: str
    again: bool = False


class AuthorizationRequests:
    """Authorization requests of one database, for a key's holder and for the operator, who needs no running gateway."""

    def __init__(self, settings: Settings, database: Database, vault: Vault, clock: Clock) -> None:
        self._settings = settings
        self._database = database
        self._vault = vault
        self._clock = clock

    async def start(self, key: Key, options: AuthTwitter, by: acts.Actor) -> dict[str, str]:
        """Store a new state and return `auth_url`, `state` and `expires_at`: valid once, for 10 minutes.

        A key's holder, who asks over HTTP, may have lost the right to link since the call was admitted.

        Raises:
            GatewayError: scope_unknown, return_to_not_allowed, key_not_allowed (a scope that the key's actions do not
                need), account_mismatch (the key is pinned to another account).
        """
        return_to, expected = self._checked(key, options)
        scopes = _scopes(options.scopes, key)
        state, verifier, at = secrets.token_urlsafe(32), new_verifier(), self._clock.now()
        state_hash = hash_of(state)
        row = {
            "state_hash": state_hash,
            "key_id": key.key_id,
            "issuer": self._settings.issuer,
            "redirect_uri": self._settings.redirect_uri,
            "verifier_ct": self._vault.seal(verifier, _place(state_hash)),
            "scopes": " ".join(scopes),
            "return_to": return_to,
            "expected_username": expected or None,
            "created_at": at,
            "expires_at": at + STATE_FOR,
        }
        async with self._database.write() as connection:
            await api_keys.hold(connection, key.key_id)
            if by.via == "http" and not await api_keys.may(connection, key.key_id, LINK):
                raise GatewayError("key_not_allowed", what=LINK)
            await store.trim(
                connection, key.key_id, keep=MAX_STATES - 1, ended_before=at - UNDO_FOR, expired_before=at - STATE_KEPT
            )
            await store.add(connection, row)
            wanted = {name: row[name] for name in ("scopes", "expected_username", "return_to") if row[name]}
            await acts.append(connection, at, by, "link.started", key.key_id, after=wanted)
        return {
            "auth_url": authorize_url(self._settings, scopes=scopes, state=state, verifier=verifier),
            "state": state,
            "expires_at": rfc3339(at + STATE_FOR),
        }

    def _checked(self, key: Key, options: AuthTwitter) -> tuple[str | None, str]:
        """Return where the last page leads, and the account that must approve, if the key allows both."""
        offered = offered_scopes(self._settings)
        unknown = next((scope for scope in options.scopes if scope not in offered), None)
        if unknown is not None:
            raise GatewayError("scope_unknown", scope=excerpt(unknown), known=" ".join(sorted(offered)))
        return_to = None if options.return_to == self._settings.base_url else options.return_to
        if return_to is not None and return_to not in key.rules.return_to:
            raise GatewayError("return_to_not_allowed")
        expected, pinned = (options.expected_username or "").lstrip("@"), key.rules.account_username
        if pinned is not None and expected and expected.lower() != pinned.lower():
            raise GatewayError("account_mismatch", username=expected, expected=f"@{pinned}")
        return return_to, expected

    async def find(self, state: str) -> StateRow | None:
        """Return the row of a state."""
        async with self._database.read() as connection:
            return await store.find(connection, hash_of(state))

    async def last_attempt(self, key_id: str) -> dict[str, str | None] | None:
        """Return what became of the key's newest auth_url, as auth/status reports it."""
        async with self._database.read() as connection:
            newest = await store.newest(connection, key_id, self._settings.issuer)
            return None if newest is None else attempt(newest, await now(connection, self._clock))

    def verifier_of(self, row: StateRow) -> str:
        """Return the code verifier of a state.

        Raises:
            GatewayError: state_unknown: it was changed at rest. X accepts no other, so a new link must be started.
        """
        try:
            return self._vault.open(row.verifier_ct, _place(row.state_hash))
        except VaultError:
            raise GatewayError("state_unknown") from None


class Linking:
    """The flow from X's redirect on. Mode `open` activates the account that approves; `confirm` asks the holder."""

    def __init__(
        self,
        settings: Settings,
        requests: AuthorizationRequests,
        callbacks: Callbacks[Linked],
        authserver: AuthServer,
        links: Links,
        sessions: Sessions,
        keys: Keys,
        clock: Clock,
        failpoints: Failpoints,
    ) -> None:
        self._settings = settings
        self._issuer = "{0.scheme}://{0.netloc}".format(urlsplit(settings.x_authorize_url))
        self._requests = requests
        self._callbacks = callbacks
        self._authserver = authserver
        self._links = links
        self._sessions = sessions
        self._keys = keys
        self._clock = clock
        self._failpoints = failpoints

    async def callback(self, call: Call) -> Linked:
        """Process X's redirect: use the state, exchange the code, store the pair, and ask X for the account.

        Other loads of the page wait meanwhile, at any replica, and return the same without the undo. A later load that
        brings the first one's cookie gets the undo again.

        Raises:
            GatewayError: why nothing was linked; auth_failures: state_unknown, from an address that sent too many.
        """
        if is_prefetch(call):
            raise GatewayError("prefetch")
        parameters = _parameters(call.query)
        unverified_state, code = parameters.get("state", ""), parameters.get("code", "")
        if not unverified_state or bool(code) == ("error" in parameters):
            raise GatewayError("callback_malformed")
        # RFC 9207
        if parameters.get("iss", self._issuer) != self._issuer:
            raise GatewayError("issuer_mismatch")
        state_hash = hash_of(unverified_state)
        linked, first = await self._callbacks.run(
            state_hash, call.peer, lambda row: self._finish(call, row, parameters), self._again
        )
        linked = linked if first else linked.again()
        for held in undo_cookie.tokens_for(call, state_hash):
            linked = linked.with_undo(held, self._clock.now())
        return linked

    async def _finish(self, call: Call, row: StateRow, parameters: dict[str, str]) -> Linked:
        call.note["key_id"] = row.key_id
        if row.expires_at <= self._clock.now():
            await self._links.acts.refuse(row.key_id, "link.expired", "state_expired")
            raise GatewayError("state_expired")
        if row.issuer != self._settings.issuer or row.redirect_uri != self._settings.redirect_uri:
            raise GatewayError("issuer_mismatch")
        if "error" in parameters:
            error = excerpt(parameters["error"])
            await self._links.acts.refuse(row.key_id, "link.denied", "consent_denied", error=error)
            raise GatewayError("consent_denied", what=_DENIED if parameters["error"] == _DENIAL else _FAILED)
        key = await self._keys.get(row.key_id)
        key.check(self._clock, self._settings.mode)
        tokens = await self._exchange(row, parameters["code"])
        session, undo_token = await self._store(row, tokens)
        try:
            await self._failpoints.reach("link_after_persist")
            session = await self._sessions.name(session)
        except (GatewayError, StorageDownError) as error:
            # Unless the refusal is final, the pair is kept, and the key's next call asks X again.
            if isinstance(error, GatewayError) and error.reason in _FINAL:
                raise
        how: How = "linked" if session.state == LinkState.ACTIVE else "confirm"
        if session.username is None:
            how = "pending"
        return Linked(
            how,
            key.label,
            describe(key.rules, self._settings.offered_reads, session.scopes.split()),
            session.username,
            undo_token=undo_token,
            return_to=row.return_to if row.return_to in key.rules.return_to else None,
            state_hash=row.state_hash,
        )

    async def _exchange(self, row: StateRow, code: str) -> Tokens:
        verifier = self._requests.verifier_of(row)
        try:
            tokens = await self._authserver.exchange(code=code, redirect_uri=row.redirect_uri, verifier=verifier)
        except TokenError as error:
            refused = error.meaning is Meaning.REFUSED or (
                error.meaning is Meaning.HELD and error.reason == "x_reply_malformed"
            )
            raise GatewayError("code_rejected" if refused else error.reason, upstream=error.upstream) from None
        await self._failpoints.reach("link_after_exchange")
        return tokens

    async def _store(self, row: StateRow, tokens: Tokens) -> tuple[SessionRow, str]:
        try:
            return await self._links.store_pending(
                row.key_id, tokens, row.scopes.split(), row.expected_username, row.state_hash
            )
        except StorageDownError:
            # A pair that cannot be stored is revoked.
            with contextlib.suppress(TokenError):
                await self._authserver.revoke(
                    tokens.refresh_token or tokens.access_token, _HINTS[bool(tokens.refresh_token)]
                )
            raise GatewayError("storage_unavailable", half="X's approval could not be stored and was revoked") from None

    def _again(self, outcome: StateOutcome) -> Linked:
        """Return what the page of a used state shows: to reload it after a link does no harm.

        Raises:
            GatewayError: x_scope_missing; state_used: nothing is linked through it (see `ending`).
        """
        state, key, session = outcome.state, outcome.key, outcome.session
        if session is None:
            raise GatewayError("state_used", **ending(outcome))
        pending, at = session.state == LinkState.PENDING, self._clock.now()
        if pending and (scopes := missing_scopes(session)):
            raise GatewayError("x_scope_missing", scope=" ".join(scopes))
        over = key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= at)
        rules = KeyRules(expires_at=key.expires_at, actions=tuple(key.actions or ()), daily_writes=key.daily_writes)
        return Linked(
            _HOWS[pending, session.username is not None],
            key.label,
            describe(rules, self._settings.offered_reads, session.scopes.split()),
            session.username,
            works=not over and reported_state(session, at)[0] != LinkState.NEEDS_RELINK,
            return_to=state.return_to if state.return_to in (key.return_to or ()) else None,
            state_hash=state.state_hash,
            undo_hash=session.undo_hash,
            undo_until=session.undo_until,
        )

    async def confirm(self, key: Key, expected: Confirm) -> None:
        """Activate the link of a state, if the account that approved it is the expected one. Repeating it is harmless.

        Raises:
            GatewayError: state_unknown, account_mismatch, or why the state has no link to confirm.
        """
        state = await self._requests.find(expected.state)
        if state is None or state.key_id != key.key_id:
            raise GatewayError("state_unknown")
        links = await self._links.of_key(key.key_id)
        own = [row for row in (links.pending, links.current) if row and row.session_id == state.session_id]
        if not own:
            raise unconfirmable(state, self._clock.now())
        [row] = own
        if row.state != LinkState.PENDING:
            return
        if row.user_id is None:
            row = await self._sessions.name(row)
        username, approved = expected.username.lstrip("@"), row.username or ""
        if approved.lower() != username.lower():
            raise GatewayError("account_mismatch", username=approved, expected=f"@{username}")
        await self._links.activate(row.session_id, holder_of(key))

    async def undo(self, undo_token: str, call: Call) -> Undone:
        """End the link that a page offered to undo. If repeated with the page's cookie, report the earlier end.

        Raises:
            GatewayError: undo_unknown (`ended`: the cookie's link has ended in another way), auth_failures.
        """
        try:
            return Undone(await self._links.undo(undo_token, call.peer))
        except GatewayError as error:
            # An address that guesses too much gets auth_failures here, so it cannot ask the database for more.
            state_hash = undo_cookie.state_for(call, undo_token) if error.reason == "undo_unknown" else None
            outcomes = {} if state_hash is None else await self._callbacks.outcomes([state_hash])
            end = next((ending(outcome) for outcome in outcomes.values()), {})
            if "undone" in end:
                return Undone(end["undone"], again=True)
            error.values.update(end)
            raise


def hash_of(state: str) -> bytes:
    """Return the hash under which a state is stored."""
    return hashlib.sha256(state.encode()).digest()


def holder_of(key: Key) -> Actor:
    """Return the key's holder, who acts over HTTP."""
    return Actor(key.key_id, "http")


def _place(state_hash: bytes) -> Place:
    return Place("link_states", state_hash.hex(), "verifier_ct")


def _scopes(requested: list[str], key: Key) -> tuple[str, ...]:
    """Return the scopes to ask X for: all that the key may use, or fewer if the caller asks for fewer."""
    needed: tuple[str, ...] = DEFAULT_SCOPES
    if key.rules.actions:
        needed = tuple(scope for name in key.rules.actions for scope in SCOPES.get(name, ()))
    beyond = next((scope for scope in requested if key.rules.actions and scope not in (*needed, *ALWAYS_SCOPES)), None)
    if beyond is not None:
        raise GatewayError("key_not_allowed", what=f"the scope {beyond}")
    return tuple(dict.fromkeys((*(requested or needed), *ALWAYS_SCOPES)))


def _parameters(query: str) -> dict[str, str]:
    """Return the callback's parameters: each at most once (RFC 6749 §3.1), printable, and of bounded length."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=20)
    except ValueError:
        raise GatewayError("callback_malformed") from None
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        raise GatewayError("callback_malformed")
    for name, bound in {"state": MAX_STATE, "code": MAX_CODE}.items():
        value = parameters.get(name, "")
        if len(value) > bound or not value.isascii() or not value.isprintable():
            raise GatewayError("callback_malformed")
    return parameters
