"""Codes and tokens: issue, exchange, refresh, revoke. Stores only SHA-256 digests; a client receives each text once."""

from __future__ import annotations

import secrets
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING, Any

from birdwire.sandbox.oauth.clients import ALPHANUMERIC
from birdwire.sandbox.state.world import Grant, Token, World

if TYPE_CHECKING:
    from birdwire.sandbox.oauth.clients import Client
    from birdwire.sandbox.state.clock import Clock
    from birdwire.sandbox.state.switches import Switches

CODES_AT_ONCE = 10_000
GRANTS_AT_ONCE = 100_000
# Spent refresh tokens kept per grant, to detect their reuse.
SPENT_KEPT = 50


def digest(text: str) -> str:
    """Return the stored form of a token."""
    return sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Ask:
    """A client's authorization request, from the authorize URL."""

    client_id: str
    redirect_uri: str
    scopes: tuple[str, ...]
    state: str
    code_challenge: str
    code_challenge_method: str


@dataclass(frozen=True)
class _Code:
    ask: Ask
    user_id: str
    scopes: tuple[str, ...]
    issued_at: datetime
    expires_at: datetime


class Grants:
    """State of the authorization server, based on the world's grants."""

    def __init__(self, world: World, clock: Clock) -> None:
        self._world, self._clock = world, clock
        self._codes: dict[str, _Code] = {}
        # Digest of a token -> id of its grant.
        self._holder: dict[str, str] = {}
        self.adopt(world)

    def adopt(self, world: World) -> None:
        """Use the grants of this world from now on; outstanding codes become invalid."""
        self._world = world
        self._codes.clear()
        self._holder = {token: grant.id for grant in world.grants.values() for token in grant.tokens}

    def issue_code(self, ask: Ask, user_id: str, scopes: tuple[str, ...], code_s: float) -> str:
        """Issue a one-time authorization code for the scopes that the user allowed."""
        now = self._clock.now()
        self._codes = {key: code for key, code in self._codes.items() if code.expires_at > now}
        if len(self._codes) >= CODES_AT_ONCE:
            self._codes.pop(next(iter(self._codes)))
        text = self._text("ac")
        self._codes[digest(text)] = _Code(ask, user_id, scopes, now, now + timedelta(seconds=code_s))
        return text

    def exchange(self, client: Client, form: dict[str, str], config: Switches) -> dict[str, Any] | None:
        """Return the token answer for a code; None if code, client, redirect URI or verifier do not match."""
        code = self._codes.pop(digest(form.get("code", "")), None)
        now = self._clock.now()
        if code is None or not code.issued_at <= now < code.expires_at:
            return None
        if code.ask.client_id != client.client_id or code.ask.redirect_uri != form.get("redirect_uri"):
            return None
        if not _verified(code.ask, form.get("code_verifier", "")):
            return None
        grant = Grant(secrets.token_hex(8), code.user_id, client.client_id, list(code.scopes), now)
        self._world.grants[grant.id] = grant
        if len(self._world.grants) > GRANTS_AT_ONCE:
            self._end(next(iter(self._world.grants.values())))
        return self._issue(grant, None, config)

    def refresh(self, client: Client, text: str, config: Switches) -> dict[str, Any] | None:
        """Return the token answer for a refresh token, by the configured mode; None if the token is refused."""
        grant, token = self._find(text, "refresh")
        if grant is None or token is None or grant.client_id != client.client_id:
            return None
        if token.spent_at is not None and not self._may_repeat(grant, token, config):
            return None
        if token.spent_at is None:
            self._spend(grant, token, config)
        return self._issue(grant, token.digest, config)

    def _spend(self, grant: Grant, token: Token, config: Switches) -> None:
        token.spent_at = self._clock.now()
        if config.refresh_mode == "parent_of_active":
            # Siblings come from one parent that was used twice. The use of one sibling ends the others.
            for other in grant.tokens.values():
                if other.kind == "refresh" and other.parent == token.parent and other.spent_at is None:
                    other.spent_at = token.spent_at

    def _may_repeat(self, grant: Grant, token: Token, config: Switches) -> bool:
        """Return whether a spent refresh token may be used again; end the token family if the mode requires it."""
        match config.refresh_mode:
            case "grace":
                spent_at = token.spent_at
                return spent_at is not None and self._clock.now() < spent_at + timedelta(seconds=config.grace_s)
            case "parent_of_active":
                active = [one for one in grant.tokens.values() if one.kind == "refresh" and one.spent_at is None]
                if any(one.parent == token.digest for one in active):
                    return True
                self._end(grant)
            case "family_revoke":
                self._end(grant)
            case "strict":
                pass
        return False

    def _issue(self, grant: Grant, parent: str | None, config: Switches) -> dict[str, Any]:
        now = self._clock.now()
        self._prune(grant)
        lifetime = timedelta(seconds=config.access_token_s)
        access = self._keep(grant, "at", Token("", "access", now, now + lifetime, parent))
        answer = {
            "token_type": "bearer",
            "expires_in": max(1, int(config.access_token_s)),
            "access_token": access,
            "scope": " ".join(grant.scopes),
        }
        if "offline.access" in grant.scopes:
            answer["refresh_token"] = self._keep(grant, "rt", Token("", "refresh", now, None, parent))
        return answer

    def _keep(self, grant: Grant, kind: str, token: Token) -> str:
        text = self._text(kind)
        token.digest = digest(text)
        grant.tokens[token.digest] = token
        self._holder[token.digest] = grant.id
        return text

    def _prune(self, grant: Grant) -> None:
        """Delete tokens that no longer matter, so that a grant stays small."""
        now = self._clock.now()
        spent = [one for one in grant.tokens.values() if one.spent_at is not None]
        old = spent[: max(0, len(spent) - SPENT_KEPT)]
        run_out = [one for one in grant.tokens.values() if one.expires_at is not None and one.expires_at <= now]
        for token in old + run_out:
            del grant.tokens[token.digest]
            del self._holder[token.digest]

    def access(self, text: str) -> Grant | None:
        """Return the grant of an access token, if the token is valid now."""
        grant, token = self._find(text, "access")
        if grant is None or token is None or token.expires_at is None:
            return None
        return grant if self._clock.now() < token.expires_at else None

    def revoke(self, client: Client, text: str) -> None:
        """Revoke a token; a refresh token ends its whole grant (RFC 7009 §2.1). An unknown token is not an error."""
        for kind in ("refresh", "access"):
            grant, token = self._find(text, kind)
            if grant is None or token is None or grant.client_id != client.client_id:
                continue
            if token.kind == "refresh":
                self._end(grant)
            else:
                del grant.tokens[token.digest]
                del self._holder[token.digest]

    def remove_app(self, user_id: str) -> int:
        """End all grants of a user, as removal from the connected apps does; return their number."""
        mine = [grant for grant in self._world.grants.values() if grant.user_id == user_id]
        for grant in mine:
            self._end(grant)
        return len(mine)

    def app_token(self) -> str:
        """Issue a token for the app alone, without a user."""
        text = "A" * 22 + secrets.token_urlsafe(60)
        self._world.app_tokens.add(digest(text))
        while len(self._world.app_tokens) > SPENT_KEPT:
            self._world.app_tokens.pop()
        return text

    def is_app_token(self, text: str) -> bool:
        """Return whether this is a token for the app alone."""
        return digest(text) in self._world.app_tokens

    def _find(self, text: str, kind: str) -> tuple[Grant | None, Token | None]:
        key = digest(text)
        grant = self._world.grants.get(self._holder.get(key, ""))
        token = grant.tokens.get(key) if grant else None
        return (grant, token) if token is not None and token.kind == kind else (None, None)

    def _end(self, grant: Grant) -> None:
        for token in grant.tokens:
            self._holder.pop(token, None)
        grant.tokens.clear()
        self._world.grants.pop(grant.id, None)

    def _text(self, kind: str) -> str:
        """Return a token in X's format: 45 characters, the time of issue in milliseconds, `at`, `rt` or `ac`."""
        letters = "".join(secrets.choice(ALPHANUMERIC) for _ in range(45))
        millis = int(self._clock.now().timestamp() * 1000)
        return urlsafe_b64encode(f"{letters}:{millis}:1:1:{kind}:1".encode()).rstrip(b"=").decode()


def _verified(ask: Ask, verifier: str) -> bool:
    """Return whether the verifier matches the challenge (RFC 7636 §4.6)."""
    if ask.code_challenge_method == "plain":
        answer = verifier
    else:
        answer = urlsafe_b64encode(sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    return compare_digest(answer.encode(), ask.code_challenge.encode())
