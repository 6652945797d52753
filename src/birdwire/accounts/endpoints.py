"""A link from its callback to its end: exchange, naming the account, confirm, undo. Holds no token: the sessions do."""

from __future__ import annotations

import contextlib
import hmac
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field

from birdwire.accounts import undo_cookie
from birdwire.accounts.callbacks import Callbacks, attempt, ending, unconfirmable
from birdwire.accounts.linking import AuthTwitter, hash_of, place_of
from birdwire.accounts.refresh import renews_at
from birdwire.accounts.sessions import Links, lacking, standing
from birdwire.api.body import Body, Empty, check
from birdwire.api.errors import GatewayError, excerpt
from birdwire.api.messages import Answer
from birdwire.api.paths import API
from birdwire.keys.permissions import describe
from birdwire.keys.rules import KeyRules
from birdwire.runtime.clock import rfc3339
from birdwire.runtime.single_flight import SingleFlight
from birdwire.store.database import StorageDownError, now
from birdwire.store.encryption.vault import VaultError
from birdwire.store.tables import link_states as store
from birdwire.store.tables.acts import Actor
from birdwire.x.client.auth_server import Meaning, TokenError
from birdwire.x.client.replies import Unauthorized

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import RowMapping

    from birdwire.accounts.linking import LinkStarts
    from birdwire.accounts.sessions import Sessions
    from birdwire.api.messages import Call
    from birdwire.keys.context import CallContext
    from birdwire.keys.guess_limit import GuessLimiter
    from birdwire.keys.registry import Key, Keys
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.failpoints import Failpoints
    from birdwire.settings import Settings
    from birdwire.store.database import Database
    from birdwire.store.encryption.vault import Vault
    from birdwire.x.client.api import X
    from birdwire.x.client.auth_server import AuthServer
    from birdwire.x.limits.capabilities import Capabilities
    from birdwire.x.limits.rate_windows import RateWindows

ASK_EVERY_S, MOST_ASKED = 5.0, 10_000
ME_DEADLINE_S = 8.0  # with the exchange's 10 s, a callback ends within 20 s
_DENIAL = "access_denied"  # RFC 6749 §4.1.2.1
_DENIED, _FAILED = "Access was denied on X's page", "X returned an error instead of an approval"
_LONGEST_STATE, _LONGEST_CODE = 500, 2_000


class Confirm(Body):
    """The link to confirm, and the account that you expect."""

    state: str = Field(min_length=1, max_length=500, description="the state that auth_twitter returned")
    username: str = Field(pattern=r"^@?[A-Za-z0-9_]{1,15}$", description="the X account that you expect")


@dataclass(frozen=True, slots=True)
class Linked:
    """How a callback ended.

    `linked`; `pending`: X has not named the account yet; `confirm`: the key's holder must confirm the named account;
    `already`: the page was opened before. `works`: calls with the key can go through the link, or will once it is in
    use. `return_to` is where the person came from, if the key allows it.
    """

    how: Literal["linked", "pending", "confirm", "already"]
    label: str
    may: str
    """As `permissions.describe` returns it; empty: nothing."""
    username: str | None = None
    works: bool = True
    undo_token: str | None = field(default=None, repr=False)
    return_to: str | None = None
    state_hash: bytes = field(default=b"", repr=False)
    undo_hash: bytes | None = field(default=None, repr=False)
    undo_until: datetime | None = field(default=None, repr=False)

    def again(self) -> Linked:
        """Return what a load from another browser may see: the link, and not its undo."""
        return replace(self, how="already" if self.how == "linked" else self.how, undo_token=None)

    def with_undo(self, undo_token: str, at: datetime) -> Linked:
        """Return what a reload in the browser that holds the undo sees: the same page, until that is over."""
        if self.undo_hash is None or self.undo_until is None or self.undo_until <= at:
            return self
        if not hmac.compare_digest(hash_of(undo_token), self.undo_hash):
            return self
        return replace(self, how="linked" if self.how == "already" else self.how, undo_token=undo_token)


@dataclass(frozen=True, slots=True)
class Undone:
    """The end of an undo: whose link it was, and whether an earlier press had ended it."""

    account: str
    again: bool = False


_STATUS = (
    *("user_id", "username", "scopes", "state", "access_expires_at", "linked_at"),
    *("generation", "refreshed_at", "next_refresh_at", "why", "limits", "capabilities"),
)
"""Members of auth/status that describe a link, in its order."""

_FINAL = ("account_mismatch", "x_not_linked", "x_scope_missing")
"""Refusals to name an account that no later call can turn into a link."""

_HINTS = {True: "refresh_token", False: "access_token"}
_HOWS: dict[tuple[bool, bool], Literal["pending", "confirm", "already"]] = {
    (True, False): "pending",
    (True, True): "confirm",
    (False, True): "already",
    (False, False): "already",
}


class LinkEndpoints:
    """Linking. Mode `open`: the first who approves at the auth_url is linked. `confirm`: the key's holder agrees."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        vault: Vault,
        authorizations: LinkStarts,
        authserver: AuthServer,
        x: X,
        sessions: Sessions,
        keys: Keys,
        capabilities: Capabilities,
        ledger: RateWindows,
        clock: Clock,
        failpoints: Failpoints,
        lookups: GuessLimiter,
    ) -> None:
        self._issuer = settings.issuer
        self._mode = settings.mode
        self._reads = settings.offered_reads
        self._redirect_uri = settings.redirect_uri
        self._iss = "{0.scheme}://{0.netloc}".format(urlsplit(settings.x_authorize_url))
        self._database = database
        self._vault = vault
        self._authorizations = authorizations
        self._authserver = authserver
        self._x = x
        self._sessions = sessions
        self._keys = keys
        self._capabilities = capabilities
        self._ledger = ledger
        self._clock = clock
        self._failpoints = failpoints
        self._lookups = lookups
        self._ask_again: dict[str, float] = {}
        self._settling: SingleFlight[RowMapping] = SingleFlight()
        self._landings: Callbacks[Linked] = Callbacks(database, clock)

    # What the holder of a key may ask.

    async def auth_twitter(self, context: CallContext) -> Answer:
        """Begin a link: a fresh auth_url, good for 10 minutes and one use."""
        return Answer.of(
            await self._authorizations.start(
                context.key, check(context.parsed.fields, AuthTwitter), _holder(context.key)
            )
        )

    async def status(self, context: CallContext) -> Answer:
        """What is linked to the key; never a token."""
        check(context.parsed.fields, Empty)
        return await self._status(context.key)

    async def confirm(self, context: CallContext) -> Answer:
        """Confirm a link that is waiting for the key's holder (mode `confirm`); answers as `status`."""
        key, body = context.key, check(context.parsed.fields, Confirm)
        async with self._database.read() as connection:
            state = await store.find(connection, hash_of(body.state))
        if state is None or state["key_id"] != key.key_id:
            raise GatewayError("state_unknown")
        links = await self._sessions.links(key.key_id)
        row = next(
            (row for row in (links.pending, links.current) if row and row["session_id"] == state["session_id"]), None
        )
        if row is None:
            raise unconfirmable(state, self._clock.now())
        if row["state"] == "pending":
            if row["user_id"] is None:
                row = await self._name(row)
            username = body.username.lstrip("@")
            if row["username"].lower() != username.lower():
                raise GatewayError("account_mismatch", username=row["username"], expected=f"@{username}")
            await self._sessions.activate(row["session_id"], _holder(key))
        return await self._status(key)

    async def _status(self, key: Key) -> Answer:
        links = await self._sessions.links(key.key_id)
        async with self._database.read() as connection:
            newest = await store.newest(connection, key.key_id, self._issuer)
            at = await now(connection, self._clock)
        last = {"last_attempt": None if newest is None else attempt(newest, at)}
        row = links.pending if self._waits_alone(links) else links.current or links.pending
        if row is None:
            why = "undone_by_owner" if await self._sessions.acts.undone(key.key_id) else None
            return Answer.of({"linked": False, "usable": False, **dict.fromkeys(_STATUS), "why": why, **last})
        state, why = standing(row, self._clock.now())
        renews = state != "needs_relink" and row["refresh_ct"] is not None and row["refresh_state"] != "over"
        told = {
            "user_id": row["user_id"],
            "username": row["username"],
            "scopes": row["scopes"].split(),
            "state": state,
            "access_expires_at": rfc3339(row["expires_at"]),
            "linked_at": rfc3339(row["linked_at"]) if row["linked_at"] else None,
            "generation": row["gen"],
            "refreshed_at": rfc3339(row["refreshed_at"]) if row["refreshed_at"] else None,
            "next_refresh_at": rfc3339(renews_at(row)) if renews else None,
            "why": why,
            "limits": self._ledger.report(row["user_id"] or ""),
            "capabilities": {
                known.operation: {"allowed": known.allowed, "reason": None if known.allowed else known.reason}
                for known in await self._capabilities.visible_to(key.key_id)
            },
        }
        return Answer.of(
            {"linked": True, "usable": state == "active", **{name: told[name] for name in _STATUS}, **last}
        )

    async def unlink(self, context: CallContext) -> Answer:
        """End the key's link: gone here at once, revoked at X at once or as soon as X answers."""
        check(context.parsed.fields, Empty)
        await self._sessions.unlink(context.key.key_id, _holder(context.key))
        return Answer.of({"data": {"linked": False}})

    async def settle(self, links: Links) -> Links:
        """The key's links after asking X, once more, who a still unnamed one is.

        Raises:
            GatewayError: account_mismatch, x_link_pending, or why X could not be asked; not if an older link goes on.
                Where that must be linked again, x_link_pending if the newer one is named.
        """
        row = links.pending
        if row is None:
            return links
        if links.current is not None and lacking(row):  # X will never name it, so the older link serves for good
            return replace(links, pending=None)
        try:
            if row["user_id"] is None:
                if links.current is not None and not self._may_ask(row["session_id"]):
                    return Links(links.current, None)
                row = await self._name(row)
            if row["state"] == "pending":
                raise GatewayError(
                    "x_link_pending",
                    why=f"@{row['username']} approved it, but the key's holder has not confirmed that account yet",
                    remedy=f"Call POST {API}/auth/confirm with the state and the username",
                )
            return Links(row, None)
        except GatewayError as error:
            if links.current is None or self._waits_alone(replace(links, pending=row)):
                error.outcome = "not_sent"  # X's word was on users/me, not on what is asked for
                raise
            return Links(links.current, None)

    def _waits_alone(self, links: Links) -> bool:
        """Whether a named link waits for the key's holder, and the older one can serve no call any more."""
        over = links.current is not None and standing(links.current, self._clock.now())[0] == "needs_relink"
        return over and links.pending is not None and links.pending["user_id"] is not None

    def _may_ask(self, session_id: str) -> bool:
        """Whether X may be asked again whose a pair is, while an older link serves: X bills and limits the question."""
        now = self._clock.monotonic()
        if now < self._ask_again.get(session_id, 0.0):
            return False
        if len(self._ask_again) >= MOST_ASKED:
            self._ask_again.clear()
        self._ask_again[session_id] = now + ASK_EVERY_S
        return True

    # What comes back through the browser.

    async def callback(self, call: Call) -> Linked:
        """X's redirect: use the state up, exchange the code, store the pair, ask whose it is.

        Other loads of the page wait meanwhile, at any replica, and return the same without the undo; a later load that
        brings the first one's cookie gets the undo again.

        Raises:
            GatewayError: why nothing was linked; auth_failures: state_unknown, from an address that sent too many.
        """
        if "prefetch" in " ".join(call.header(name) or "" for name in ("purpose", "sec-purpose", "x-moz")).lower():
            raise GatewayError("prefetch")
        parameters = _parameters(call.query)
        unverified_state, code = parameters.get("state", ""), parameters.get("code", "")
        if not unverified_state or bool(code) == ("error" in parameters):
            raise GatewayError("callback_malformed")
        if parameters.get("iss", self._iss) != self._iss:
            raise GatewayError("issuer_mismatch")
        state_hash = hash_of(unverified_state)
        linked, first = await self._landings.land(
            state_hash,
            lambda: self._known(state_hash, call.peer),
            lambda row: self._finish(call, row, parameters),
            self._again,
        )
        linked = linked if first else linked.again()
        for held in undo_cookie.tokens_for(call, state_hash):
            linked = linked.with_undo(held, self._clock.now())
        return linked

    async def undo(self, undo_token: str, call: Call) -> Undone:
        """End the link that a page offered to undo. Repeated with the page's cookie, report the earlier end.

        Raises:
            GatewayError: undo_unknown (`ended`: the cookie's link has ended in another way), auth_failures.
        """
        try:
            return Undone(await self._sessions.undo(undo_token, call.peer))
        except GatewayError as error:
            # An address that guesses too much gets auth_failures here, so it cannot ask the database for more.
            state_hash = undo_cookie.state_for(call, undo_token) if error.reason == "undo_unknown" else None
            states = {} if state_hash is None else await self._outcomes([state_hash])
            end = next((ending(state) for state in states.values()), {})
            if "undone" in end:
                return Undone(end["undone"], again=True)
            error.values.update(end)
            raise

    async def close(self) -> None:
        """Let what is under way end."""
        await self._landings.close()
        await self._settling.close(wait_s=ME_DEADLINE_S)

    async def _finish(self, call: Call, row: RowMapping, parameters: dict[str, str]) -> Linked:
        call.note["key_id"] = row["key_id"]
        if row["expires_at"] <= self._clock.now():
            await self._sessions.acts.refuse(row["key_id"], "link.expired", "state_expired")
            raise GatewayError("state_expired")
        if row["issuer"] != self._issuer or row["redirect_uri"] != self._redirect_uri:
            raise GatewayError("issuer_mismatch")
        if "error" in parameters:
            await self._sessions.acts.refuse(
                row["key_id"], "link.denied", "consent_denied", error=excerpt(parameters["error"])
            )
            raise GatewayError("consent_denied", what=_DENIED if parameters["error"] == _DENIAL else _FAILED)
        key = await self._keys.get(row["key_id"])
        key.check(self._clock.now(), self._mode)
        return await self._link(row, parameters["code"], key)

    async def _link(self, row: RowMapping, code: str, key: Key) -> Linked:
        try:
            verifier = self._vault.open(row["verifier_ct"], place_of(row["state_hash"]))
        except VaultError:  # changed at rest: X accepts no other, so the link must be started again
            raise GatewayError("state_unknown") from None
        try:
            tokens = await self._authserver.exchange(code=code, redirect_uri=row["redirect_uri"], verifier=verifier)
        except TokenError as error:
            refused = error.meaning is Meaning.REFUSED or (
                error.meaning is Meaning.HELD and error.reason == "x_reply_malformed"
            )
            raise GatewayError("code_rejected" if refused else error.reason, upstream=error.upstream) from None
        await self._failpoints.reach("link_after_exchange")
        try:
            session, undo_token = await self._sessions.keep(
                key.key_id, tokens, row["scopes"].split(), row["expected_username"], row["state_hash"]
            )
        except StorageDownError:
            with contextlib.suppress(TokenError):  # what cannot be kept is given back
                await self._authserver.revoke(
                    tokens.refresh_token or tokens.access_token, _HINTS[bool(tokens.refresh_token)]
                )
            raise GatewayError("storage_unavailable", half="X's approval could not be stored and was revoked") from None
        try:
            await self._failpoints.reach("link_after_persist")
            session = await self._name(session)
        except (GatewayError, StorageDownError) as error:  # the pair is kept: the key's next call asks again
            if isinstance(error, GatewayError) and error.reason in _FINAL:
                raise
        how: Literal["linked", "pending", "confirm"] = "linked" if session["state"] == "active" else "confirm"
        if session["username"] is None:
            how = "pending"
        allowed = describe(key.rules, self._reads, session["scopes"].split())
        return Linked(
            how,
            key.label,
            allowed,
            session["username"],
            undo_token=undo_token,
            return_to=_back(row, key),
            state_hash=row["state_hash"],
        )

    async def _known(self, state_hash: bytes, peer: str) -> RowMapping:
        """Return a state and what became of it, in one look-up, which is limited by the caller's address.

        Raises:
            GatewayError: state_unknown, auth_failures.
        """
        row = await self._lookups.run(peer, self._outcomes, state_hash, _unused)
        if row is None:
            raise GatewayError("state_unknown")
        return row

    async def _outcomes(self, state_hashes: Sequence[bytes]) -> Mapping[bytes, RowMapping]:
        async with self._database.read() as connection:
            return await store.outcomes(connection, state_hashes)

    def _again(self, state: RowMapping) -> Linked:
        """What to say to a state that was taken before: reloading the page after a link does no harm.

        Raises:
            GatewayError: x_scope_missing; state_used: nothing is linked through it (see `ending`).
        """
        if state["state"] is None:
            raise GatewayError("state_used", **ending(state))
        pending, at = state["state"] == "pending", self._clock.now()
        if pending and (scopes := lacking(state)):
            raise GatewayError("x_scope_missing", scope=" ".join(scopes))
        expires_at = state["key_expires_at"]
        over = state["revoked_at"] is not None or (expires_at is not None and expires_at <= at)
        rules = KeyRules(
            expires_at=expires_at, actions=tuple(state["actions"] or ()), daily_writes=state["daily_writes"]
        )
        return Linked(
            _HOWS[pending, state["username"] is not None],
            state["label"],
            describe(rules, self._reads, state["scopes"].split()),
            state["username"],
            works=not over and standing(state, at)[0] != "needs_relink",
            return_to=state["return_to"] if state["return_to"] in (state["return_to_allowed"] or ()) else None,
            **{name: state[name] for name in ("state_hash", "undo_hash", "undo_until")},
        )

    async def _name(self, row: RowMapping) -> RowMapping:
        """Ask X whose pending pair this is, and make it the key's link.

        Raises:
            GatewayError: x_scope_missing, without asking: the owner did not allow X to say. Or as `_ask_name`.
        """
        if scopes := lacking(row):
            raise GatewayError("x_scope_missing", scope=" ".join(scopes))
        return await self._settling.run(row["session_id"], lambda: self._ask_name(row))

    async def _ask_name(self, row: RowMapping) -> RowMapping:
        try:
            session = await self._sessions.open(row)
            account = await self._x.me(session.access_token, ME_DEADLINE_S)
        except Unauthorized as error:
            raise GatewayError(
                "x_link_pending",
                why="X has not yet reported which account approved it",
                remedy="Try again in a minute; Birdwire asks X again with every call",
                upstream=error.upstream,
            ) from None
        return await self._sessions.name(row["session_id"], account.id, account.username)


def _parameters(query: str) -> dict[str, str]:
    """The callback's parameters, each at most once (RFC 6749 §3.1), printable and of bounded length."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=20)
    except ValueError:
        raise GatewayError("callback_malformed") from None
    parameters = dict(pairs)
    bounds = {"state": _LONGEST_STATE, "code": _LONGEST_CODE}
    if len(parameters) != len(pairs):
        raise GatewayError("callback_malformed")
    for name, bound in bounds.items():
        value = parameters.get(name, "")
        if len(value) > bound or not value.isascii() or not (value.isprintable()):
            raise GatewayError("callback_malformed")
    return parameters


def _holder(key: Key) -> Actor:
    """The key's holder, who acts over HTTP."""
    return Actor(key.key_id, "http")


def _unused(state: RowMapping) -> bool:
    return state["taken_at"] is None


def _back(state: RowMapping, key: Key) -> str | None:
    """Where the person came from, if the key may still send people there."""
    return state["return_to"] if state["return_to"] in key.rules.return_to else None
