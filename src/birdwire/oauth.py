"""A link from start to end: state, PKCE, callback, naming the account, undo. Holds no token: the sessions do."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field

from birdwire.authserver import ALWAYS_SCOPES, DEFAULT_SCOPES, KNOWN_SCOPES, Meaning, TokenError, new_verifier
from birdwire.body import Body, Empty, check
from birdwire.call import Answer
from birdwire.clock import rfc3339
from birdwire.errors import GatewayError, excerpt
from birdwire.flight import SingleFlight
from birdwire.operations import OPERATIONS
from birdwire.reads import READS
from birdwire.refresh import renews_at
from birdwire.sessions import Links, expired
from birdwire.store import states as store
from birdwire.store.db import StorageDownError
from birdwire.vault import Place, VaultError
from birdwire.x import Unauthorized

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import RowMapping

    from birdwire.authserver import AuthServer
    from birdwire.body import Parsed
    from birdwire.call import Call
    from birdwire.capabilities import Capabilities
    from birdwire.clock import Clock
    from birdwire.failpoints import Failpoints
    from birdwire.keys import Key, Keys
    from birdwire.ledger import Ledger
    from birdwire.lookups import Lookups
    from birdwire.sessions import Sessions
    from birdwire.settings import Settings
    from birdwire.store.db import Database
    from birdwire.vault import Vault
    from birdwire.x import X

STATE_FOR = timedelta(minutes=10)
STATE_KEPT = timedelta(hours=24)
MOST_PENDING = 20
ASK_EVERY_S, MOST_ASKED = 5.0, 10_000
ME_DEADLINE_S = 8.0  # with the exchange's 10 s, a callback ends within 20 s
_LONGEST_STATE, _LONGEST_CODE = 500, 2_000


class AuthTwitter(Body):
    """What a link may be narrowed to."""

    scopes: list[str] = Field(
        default_factory=list,
        max_length=32,
        description='X scopes to ask for, such as ["like.write"]; all that the operations need, if left out',
    )
    expected_username: str | None = Field(
        None, pattern=r"^@?[A-Za-z0-9_]{1,15}$", description="the X account that must approve; any other is refused"
    )
    return_to: str | None = Field(
        None, max_length=2_000, description="where the page after the link leads; must be allowed for the key"
    )


class Confirm(Body):
    """Which link to put in use, and as whom."""

    state: str = Field(min_length=1, max_length=500, description="the state that auth_twitter answered")
    username: str = Field(pattern=r"^@?[A-Za-z0-9_]{1,15}$", description="the X account that is meant")


@dataclass(frozen=True, slots=True)
class Linked:
    """How a callback ended.

    `linked`; `pending`: X has not named the account yet; `confirm`: the key's holder must confirm the named account;
    `already`: the page was opened before. `return_to` is where the person came from, if the key allows it.
    """

    how: Literal["linked", "pending", "confirm", "already"]
    label: str
    username: str | None = None
    undo_token: str | None = field(default=None, repr=False)
    return_to: str | None = None


_STATUS = (
    *("user_id", "username", "scopes", "state", "access_expires_at", "linked_at"),
    *("generation", "refreshed_at", "next_refresh_at", "why", "limits", "capabilities"),
)
"""What auth/status tells of a link, in its order."""

_HINTS = {True: "refresh_token", False: "access_token"}
_HOWS: dict[tuple[bool, bool], Literal["pending", "confirm", "already"]] = {
    (True, False): "pending",
    (True, True): "confirm",
    (False, True): "already",
    (False, False): "already",
}


class OAuth:
    """Linking. Mode `open`: whoever opens the auth_url links their account to its key. `confirm`: the holder agrees."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        vault: Vault,
        authserver: AuthServer,
        x: X,
        sessions: Sessions,
        keys: Keys,
        capabilities: Capabilities,
        ledger: Ledger,
        clock: Clock,
        failpoints: Failpoints,
        lookups: Lookups,
    ) -> None:
        self._issuer = settings.issuer
        self._redirect_uri = settings.redirect_uri
        self._iss = "{0.scheme}://{0.netloc}".format(urlsplit(settings.x_authorize_url))
        self._database = database
        self._vault = vault
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

    # What the holder of a key may ask.

    async def auth_twitter(self, call: Call, key: Key, parsed: Parsed) -> Answer:
        """Begin a link: a fresh auth_url, good for 10 minutes and one use."""
        del call
        body = check(parsed.fields, AuthTwitter)
        unknown = next((scope for scope in body.scopes if scope not in KNOWN_SCOPES), None)
        if unknown is not None:
            raise GatewayError("scope_unknown", scope=excerpt(unknown), known=" ".join(sorted(KNOWN_SCOPES)))
        if body.return_to is not None and body.return_to not in key.rules.return_to:
            raise GatewayError("return_to_not_allowed")
        scopes = _scopes(body.scopes, key)
        state, verifier, now = secrets.token_urlsafe(32), new_verifier(), self._clock.now()
        row = {
            "state_hash": _hash(state),
            "key_id": key.key_id,
            "issuer": self._issuer,
            "redirect_uri": self._redirect_uri,
            "verifier_ct": self._vault.seal(verifier, _place(_hash(state))),
            "scopes": " ".join(scopes),
            "return_to": body.return_to,
            "expected_username": body.expected_username.lstrip("@") if body.expected_username else None,
            "created_at": now,
            "expires_at": now + STATE_FOR,
        }
        async with self._database.write() as connection:
            await store.trim(connection, key.key_id, keep=MOST_PENDING - 1, expired_before=now - STATE_KEPT)
            await store.add(connection, row)
        auth_url = self._authserver.authorize_url(
            redirect_uri=self._redirect_uri, scopes=scopes, state=state, verifier=verifier
        )
        return Answer.of({"auth_url": auth_url, "state": state, "expires_at": rfc3339(now + STATE_FOR)})

    async def status(self, call: Call, key: Key, parsed: Parsed) -> Answer:
        """What is linked to the key; never a token."""
        del call
        check(parsed.fields, Empty)
        return await self._status(key)

    async def confirm(self, call: Call, key: Key, parsed: Parsed) -> Answer:
        """Put a link in use that waits for the key's holder (mode `confirm`); answers as `status`."""
        del call
        body = check(parsed.fields, Confirm)
        async with self._database.read() as connection:
            state = await store.find(connection, _hash(body.state))
        if state is None or state["key_id"] != key.key_id:
            raise GatewayError("state_unknown")
        links = await self._sessions.links(key.key_id)
        row = next(
            (row for row in (links.pending, links.current) if row and row["session_id"] == state["session_id"]), None
        )
        if row is None and state["session_id"] is None and state["expires_at"] > self._clock.now():
            raise GatewayError(
                "x_link_pending", why="nobody has approved it at X", remedy="Have the account's owner open the auth_url"
            )
        if row is None:
            raise GatewayError("state_expired")
        if row["state"] == "pending":
            if row["user_id"] is None:
                row = await self._name(row)
            username = body.username.lstrip("@")
            if row["username"].lower() != username.lower():
                raise GatewayError("account_mismatch", username=row["username"], expected=f"@{username}")
            await self._sessions.activate(row["session_id"])
        return await self._status(key)

    async def _status(self, key: Key) -> Answer:
        links = await self._sessions.links(key.key_id)
        row = links.current or links.pending
        if row is None:
            return Answer.of({"linked": False, **dict.fromkeys(_STATUS)})
        ended = row["state"] == "active" and expired(row, self._clock.now())
        state = "needs_relink" if ended else row["state"]
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
            "why": "no_refresh_token" if ended else row["why"],
            "limits": self._ledger.known(row["user_id"] or ""),
            "capabilities": {
                known.operation: {"allowed": known.allowed, "reason": None if known.allowed else known.reason}
                for known in await self._capabilities.all()
            },
        }
        return Answer.of({"linked": True, **{name: told[name] for name in _STATUS}})

    async def unlink(self, call: Call, key: Key, parsed: Parsed) -> Answer:
        """End the key's link: gone here at once, revoked at X at once or as soon as X answers."""
        del call
        check(parsed.fields, Empty)
        await self._sessions.unlink(key.key_id)
        return Answer.of({"data": {"linked": False}})

    async def settle(self, links: Links) -> Links:
        """The key's links after asking X, once more, who a still unnamed one is.

        Raises:
            GatewayError: account_mismatch, x_link_pending, or why X could not be asked; not if an older link goes on.
        """
        row = links.pending
        if row is None:
            return links
        try:
            if row["user_id"] is None:
                if links.current is not None and not self._may_ask(row["session_id"]):
                    return Links(links.current, None)
                row = await self._name(row)
            if row["state"] == "pending":
                raise GatewayError(
                    "x_link_pending",
                    why=f"@{row['username']} approved it, and whoever holds the key has yet to confirm that account",
                    remedy="Call POST /apis/v1/twitter/auth/confirm with the state and the username",
                )
            return Links(row, None)
        except GatewayError as error:
            if links.current is None:
                error.outcome = "not_sent"  # X's word was on users/me, not on what is asked for
                raise
            return Links(links.current, None)

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
        state_hash = _hash(unverified_state)
        known = await self._known(state_hash, call.peer)
        row = await self._take(state_hash) if _unused(known) else None
        if row is None:
            return _again(await self._known(state_hash, call.peer) if _unused(known) else known)
        call.note["key_id"] = row["key_id"]
        if row["expires_at"] <= self._clock.now():
            raise GatewayError("state_expired")
        if row["issuer"] != self._issuer or row["redirect_uri"] != self._redirect_uri:
            raise GatewayError("issuer_mismatch")
        if "error" in parameters:
            raise GatewayError("consent_denied")
        key = await self._keys.get(row["key_id"])
        if key.revoked_at is not None:
            raise GatewayError("key_revoked")
        if key.rules.expires_at is not None and key.rules.expires_at <= self._clock.now():
            raise GatewayError("key_expired", expired=rfc3339(key.rules.expires_at))
        return await self._link(row, code, key)

    async def undo(self, undo_token: str, peer: str) -> str:
        """End the link that a page offered to undo; returns whose it was.

        Raises:
            GatewayError: undo_unknown, auth_failures.
        """
        return await self._sessions.undo(undo_token, peer)

    async def close(self) -> None:
        """Let what is under way end."""
        await self._settling.close(wait_s=ME_DEADLINE_S)

    async def _link(self, row: RowMapping, code: str, key: Key) -> Linked:
        try:
            verifier = self._vault.open(row["verifier_ct"], _place(row["state_hash"]))
        except VaultError:  # changed at rest: X takes no other, so the link has to be begun anew
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
                key.key_id, tokens, row["scopes"].split(), row["expected_username"]
            )
        except StorageDownError:
            with contextlib.suppress(TokenError):  # what cannot be kept is given back
                await self._authserver.revoke(
                    tokens.refresh_token or tokens.access_token, _HINTS[bool(tokens.refresh_token)]
                )
            raise GatewayError(
                "storage_unavailable", half="X's approval could not be stored, and was given back"
            ) from None
        try:
            async with self._database.write() as connection:
                await store.note_session(connection, row["state_hash"], session["session_id"])
            await self._failpoints.reach("link_after_persist")
            session = await self._name(session)
        except (GatewayError, StorageDownError) as error:  # the pair is kept: the key's next call asks again
            if isinstance(error, GatewayError) and error.reason == "account_mismatch":
                raise
            return Linked("pending", key.label, None, undo_token, _back(row, key))
        how: Literal["linked", "confirm"] = "linked" if session["state"] == "active" else "confirm"
        return Linked(how, key.label, session["username"], undo_token, _back(row, key))

    async def _known(self, state_hash: bytes, peer: str) -> RowMapping:
        """Return a state and what became of it, in one look-up, which is limited by the caller's address.

        Raises:
            GatewayError: state_unknown, auth_failures.
        """
        row = await self._lookups.run(peer, self._outcomes, state_hash, _unused)
        if row is None:
            raise GatewayError("state_unknown")
        return row

    async def _take(self, state_hash: bytes) -> RowMapping | None:
        """Use a state up, if nobody has."""
        async with self._database.write() as connection:
            return await store.take(connection, state_hash, self._clock.now())

    async def _outcomes(self, state_hashes: Sequence[bytes]) -> Mapping[bytes, RowMapping]:
        async with self._database.read() as connection:
            return await store.outcomes(connection, state_hashes)

    async def _name(self, row: RowMapping) -> RowMapping:
        """Ask X whose pending pair this is, and make it the key's link."""
        return await self._settling.run(row["session_id"], lambda: self._ask_name(row))

    async def _ask_name(self, row: RowMapping) -> RowMapping:
        try:
            session = await self._sessions.open(row)
            account = await self._x.me(session.access_token, ME_DEADLINE_S)
        except Unauthorized as error:
            raise GatewayError(
                "x_link_pending",
                why="X has not yet said which account approved it",
                remedy="Try again in a minute; Birdwire asks X again with every call",
                upstream=error.upstream,
            ) from None
        return await self._sessions.name(row["session_id"], account.id, account.username)


def _scopes(asked: list[str], key: Key) -> tuple[str, ...]:
    """What to ask X for: all that the key may use, or less if it says so."""
    needed: tuple[str, ...] = DEFAULT_SCOPES
    if key.rules.actions:
        scopes = {row.name: row.scopes for row in OPERATIONS} | {row.name: row.scopes for row in READS}
        needed = tuple(scope for name in key.rules.actions for scope in scopes[name])
    beyond = next((scope for scope in asked if key.rules.actions and scope not in (*needed, *ALWAYS_SCOPES)), None)
    if beyond is not None:
        raise GatewayError("key_not_allowed", what=f"ask for the scope {beyond}")
    return tuple(dict.fromkeys((*(asked or needed), *ALWAYS_SCOPES)))


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


def _unused(state: RowMapping) -> bool:
    return state["taken_at"] is None


def _again(state: RowMapping) -> Linked:
    """What to say to a state that was taken before: reloading the page after a link does no harm."""
    if state["session_state"] is None:
        raise GatewayError("state_used")
    how = _HOWS[state["session_state"] == "pending", state["username"] is not None]
    back = state["return_to"] if state["return_to"] in (state["return_to_allowed"] or ()) else None
    return Linked(how, state["label"], state["username"], return_to=back)


def _back(state: RowMapping, key: Key) -> str | None:
    """Where the person came from, if the key may still send people there."""
    return state["return_to"] if state["return_to"] in key.rules.return_to else None


def _place(state_hash: bytes) -> Place:
    return Place("link_states", state_hash.hex(), "verifier_ct")


def _hash(state: str) -> bytes:
    return hashlib.sha256(state.encode()).digest()
