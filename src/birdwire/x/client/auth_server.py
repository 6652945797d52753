"""X's authorization server: authorize URL, exchange, refresh, revoke, and what its answers mean. Keeps nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from birdwire.api.errors import SEND_REASONS, excerpt
from birdwire.settings import listed
from birdwire.x.client.pool import Request, SendFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from birdwire.api.reasons import Reason
    from birdwire.settings import Settings
    from birdwire.x.client.pool import ConnectionPool, Reply

DEFAULT_SCOPES = (
    "tweet.read",
    "users.read",
    "tweet.write",
    "like.write",
    "follows.write",
    "bookmark.write",
    "media.write",
    "offline.access",
)
"""What a link asks for unless it is narrowed: all that the operations need, so that nobody has to link twice."""

NAMING_SCOPES = ("tweet.read", "users.read")
"""Without both, X does not say which account approved a link."""

ALWAYS_SCOPES = (*NAMING_SCOPES, "offline.access")
"""Added to every narrowed link: X names the account only with the first two, and refreshes only with the third."""

TOKEN_DEADLINE_S = 10.0
_LARGEST_REPLY = 64 * 1_024
_LONGEST_TOKEN_S = 10 * 366 * 86_400


class Meaning(Enum):
    """What an answer of the token endpoint says about the token or code that was presented."""

    REFUSED = "refused"  # a definite no to this token or code
    OPERATOR = "operator"  # the gateway's own credentials are wrong; says nothing about the token
    HELD = "held"  # no proof of anything: back off, keep the token
    FAILED = "failed"  # X answered 5xx: nothing is under way, though X may have rotated the token
    MAYBE = "maybe"  # X may have rotated the token, and the answer is lost
    NOT_SENT = "not_sent"  # nothing reached X


class TokenError(Exception):
    """The token endpoint gave no tokens. `reason` is the gateway's reason for it."""

    def __init__(self, meaning: Meaning, reason: Reason, upstream: dict[str, object] | None = None) -> None:
        super().__init__(meaning.value)
        self.meaning = meaning
        self.reason = reason
        self.upstream = upstream


@dataclass(frozen=True, slots=True)
class Tokens:
    """A new pair. `refresh_token` is None without offline.access, or when a refresh brought no new one."""

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    expires_in_s: int
    scopes: tuple[str, ...] | None


# What an error of X's token endpoint means, first match wins: status or None, `error` or None, words of its text.
# X says invalid_request where RFC 6749 §5.2 says invalid_grant; a missing client_id is the operator's doing.
_CLASSES: tuple[tuple[int | None, str | None, str, Meaning], ...] = (
    (None, None, "[client_id]", Meaning.OPERATOR),
    (None, "unauthorized_client", "", Meaning.OPERATOR),
    (None, "invalid_client", "", Meaning.OPERATOR),
    (None, "invalid_grant", "", Meaning.REFUSED),
    (400, "invalid_request", "token was invalid", Meaning.REFUSED),
    (400, "invalid_request", "code was invalid", Meaning.REFUSED),
    (400, "invalid_request", "code_verifier", Meaning.REFUSED),
)


class AuthServer:
    """The three calls that OAuth makes to an authorization server. Sends; never repeats."""

    def __init__(self, settings: Settings, upstream: ConnectionPool) -> None:
        self._upstream = upstream
        self._client_id = settings.x_client_id
        self._headers: tuple[tuple[str, str], ...] = (("content-type", "application/x-www-form-urlencoded"),)
        if settings.x_client_secret is not None:
            pair = f"{quote(self._client_id, safe='')}:{quote(settings.x_client_secret.get_secret_value(), safe='')}"
            self._headers += (("authorization", f"Basic {base64.b64encode(pair.encode()).decode()}"),)

    async def exchange(self, *, code: str, redirect_uri: str, verifier: str) -> Tokens:
        """Tokens for an authorization code.

        Raises:
            TokenError: what X said instead.
        """
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }
        return _tokens(await self._post("/2/oauth2/token", form, "code_rejected"))

    async def refresh(self, refresh_token: str) -> Tokens:
        """A new pair for a refresh token, which X accepts once.

        Raises:
            TokenError: what X said instead.
        """
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        return _tokens(await self._post("/2/oauth2/token", form, "x_session_expired"))

    async def revoke(self, token: str, hint: str) -> None:
        """End a token (RFC 7009). X refuses without token_type_hint, which the RFC leaves optional.

        Raises:
            TokenError: what X said instead.
        """
        await self._post("/2/oauth2/revoke", {"token": token, "token_type_hint": hint}, "x_session_expired")

    async def _post(self, path: str, form: dict[str, str], refused: Reason) -> Reply:
        """A 2xx reply. The client id goes into the form too: a public client must (RFC 6749 §3.2.1), others may."""
        body = urlencode({**form, "client_id": self._client_id}).encode()
        try:
            reply = await self._upstream.send(Request("POST", path, self._headers, body), deadline_s=TOKEN_DEADLINE_S)
        except SendFailed as error:
            raise TokenError(Meaning.MAYBE if error.sent else Meaning.NOT_SENT, SEND_REASONS[error.cause]) from None
        if 200 <= reply.status < 300:
            return reply
        raise _refusal(reply, refused)


def offered_scopes(settings: Settings) -> tuple[str, ...]:
    """Return the scopes that a link may ask for: those that the operations need, and the operator's extra ones."""
    return tuple(dict.fromkeys((*DEFAULT_SCOPES, *listed(settings.extra_scopes))))


def authorize_url(settings: Settings, *, scopes: Sequence[str], state: str, verifier: str) -> str:
    """X's consent page for one link (RFC 6749 §4.1.1, RFC 7636 §4.3; S256 always)."""
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    parameters = {
        "response_type": "code",
        "client_id": settings.x_client_id,
        "redirect_uri": settings.redirect_uri,
        "scope": " ".join(scopes),
        "state": state,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    return f"{settings.x_authorize_url}?{urlencode(parameters, quote_via=quote)}"


def new_verifier() -> str:
    """A code verifier of 256 random bits, 43 characters (RFC 7636 §4.1)."""
    return secrets.token_urlsafe(32)


def _refusal(reply: Reply, refused: Reason) -> TokenError:
    value = _object(reply) or {}
    error, description = str(value.get("error", "")), str(value.get("error_description", ""))
    upstream: dict[str, object] = {
        "status": reply.status,
        "type": excerpt(error),
        "title": "",
        "detail": excerpt(description, 200),
    }
    if reply.status >= 500:
        return TokenError(Meaning.FAILED, "x_5xx", upstream)
    for status, word, part, meaning in _CLASSES:
        if (status in (None, reply.status)) and (word in (None, error)) and part in description:
            return TokenError(meaning, refused if meaning is Meaning.REFUSED else "x_client_credentials", upstream)
    return TokenError(Meaning.HELD, "x_window_15m" if reply.status == 429 else "x_reply_malformed", upstream)


def _tokens(reply: Reply) -> Tokens:
    """The pair in a token reply, checked member by member: what is stored wrong is lost for good."""
    value = _object(reply) or {}
    access, refresh = value.get("access_token"), value.get("refresh_token")
    expires_in, scope = value.get("expires_in"), value.get("scope")
    fits = (
        len(reply.body) <= _LARGEST_REPLY
        and _is_token(access)
        and (refresh is None or _is_token(refresh))
        and isinstance(expires_in, int)
        and not isinstance(expires_in, bool)
        and 0 < expires_in <= _LONGEST_TOKEN_S
        and (scope is None or (isinstance(scope, str) and scope.isascii() and scope.isprintable()))
        and str(value.get("token_type", "")).lower() == "bearer"
    )
    if not fits:
        raise TokenError(
            Meaning.MAYBE, "x_reply_malformed", {"status": reply.status, "type": "", "title": "", "detail": ""}
        )
    assert isinstance(access, str) and isinstance(expires_in, int)  # noqa: S101, PT018 - for the type checker
    return Tokens(access, refresh, expires_in, None if scope is None else tuple(scope.split()))


def _is_token(value: object) -> bool:
    """Whether it can be sent back in a header or form (RFC 6750 §2.1); the length is far above any token of X."""
    return isinstance(value, str) and value.isascii() and value.isprintable() and 0 < len(value) <= 4_096


def _object(reply: Reply) -> dict[str, Any] | None:
    try:
        value = json.loads(reply.body)  # lenient: a pair that cannot be read is lost, and the link with it
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
