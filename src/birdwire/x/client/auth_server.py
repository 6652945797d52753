"""X's authorization server: authorize URL, exchange, refresh, revocation, and what its replies mean. Keeps nothing."""

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
from birdwire.x.client.pool import Request, SendFailed, fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from birdwire.api.reason_type import Reason
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
"""The scopes of a link unless it is narrowed: all that the operations need, so that no account is linked twice."""

NAMING_SCOPES = ("tweet.read", "users.read")
"""Without both scopes, X does not name the account that approved a link."""

ALWAYS_SCOPES = (*NAMING_SCOPES, "offline.access")
"""Added to every narrowed link: X names the account only with the first two, and refreshes only with the third."""

TOKEN_DEADLINE_S = 10.0
_MAX_REPLY_BYTES = 64 * 1_024
_MAX_TOKEN_LIFETIME_S = 10 * 366 * 86_400


class Meaning(Enum):
    """What a reply of the token endpoint proves about the token or code that was presented."""

    # A definite refusal of this token or code.
    REFUSED = "refused"
    # The gateway's own credentials are wrong, which proves nothing about the token.
    OPERATOR = "operator"
    # Nothing is proved: back off, and keep the token.
    HELD = "held"
    # X answered 5xx: nothing is known, and X may have rotated the token.
    FAILED = "failed"
    # X may have rotated the token, and the reply is lost.
    MAYBE = "maybe"
    # Nothing reached X.
    NOT_SENT = "not_sent"


class TokenError(Exception):
    """The token endpoint issued no tokens. `reason` is the gateway's own reason."""

    def __init__(self, meaning: Meaning, reason: Reason, upstream: dict[str, object] | None = None) -> None:
        super().__init__(meaning.value)
        self.meaning = meaning
        self.reason = reason
        self.upstream = upstream


@dataclass(frozen=True, slots=True)
class Tokens:
    """A new pair. `refresh_token` is None without offline.access, or if X returned no new one at a refresh."""

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    expires_in_s: int
    scopes: tuple[str, ...] | None


# What an error of X's token endpoint means; the first match decides: status or None, `error` or None, part of its text.
# X returns invalid_request where RFC 6749 §5.2 has invalid_grant; a missing client_id is the operator's mistake.
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
    """The three requests that OAuth makes to an authorization server. It never repeats one."""

    def __init__(self, settings: Settings, pool: ConnectionPool) -> None:
        self._pool = pool
        self._client_id = settings.x_client_id
        headers = [("content-type", "application/x-www-form-urlencoded")]
        if settings.x_client_secret is not None:
            pair = f"{quote(self._client_id, safe='')}:{quote(settings.x_client_secret.get_secret_value(), safe='')}"
            headers.append(("authorization", f"Basic {base64.b64encode(pair.encode()).decode()}"))
        self._headers = fields(*headers)

    async def exchange(self, *, code: str, redirect_uri: str, verifier: str) -> Tokens:
        """Return the tokens for an authorization code.

        Raises:
            TokenError: X issued no tokens.
        """
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": verifier,
        }
        return _tokens(await self._post("/2/oauth2/token", form, "code_rejected"))

    async def refresh(self, refresh_token: str) -> Tokens:
        """Return a new pair for a refresh token, which X accepts once.

        Raises:
            TokenError: X issued no tokens.
        """
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        return _tokens(await self._post("/2/oauth2/token", form, "x_session_expired"))

    async def revoke(self, token: str, hint: str) -> None:
        """Revoke a token (RFC 7009). X requires token_type_hint, which the RFC leaves optional.

        Raises:
            TokenError: X did not confirm the revocation.
        """
        await self._post("/2/oauth2/revoke", {"token": token, "token_type_hint": hint}, "x_session_expired")

    async def _post(self, path: str, form: dict[str, str], refused: Reason) -> Reply:
        """Return a 2xx reply. The form holds the client id too: a public client must send it (RFC 6749 §3.2.1)."""
        body = urlencode({**form, "client_id": self._client_id}).encode()
        try:
            reply = await self._pool.send(Request("POST", path, self._headers, body), deadline_s=TOKEN_DEADLINE_S)
        except SendFailed as error:
            raise TokenError(Meaning.MAYBE if error.sent else Meaning.NOT_SENT, SEND_REASONS[error.cause]) from None
        if 200 <= reply.status < 300:
            return reply
        raise _refusal(reply, refused)


def offered_scopes(settings: Settings) -> tuple[str, ...]:
    """Return the scopes that a link may ask for: those that the operations need, and the operator's extra ones."""
    return tuple(dict.fromkeys((*DEFAULT_SCOPES, *listed(settings.extra_scopes))))


def authorize_url(settings: Settings, *, scopes: Sequence[str], state: str, verifier: str) -> str:
    """Return the address of X's consent page for one link (RFC 6749 §4.1.1, RFC 7636 §4.3; always S256)."""
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
    """Return a code verifier of 256 random bits, 43 characters (RFC 7636 §4.1)."""
    return secrets.token_urlsafe(32)


def _refusal(reply: Reply, refused: Reason) -> TokenError:
    value = _decode_object(reply) or {}
    error, description = str(value.get("error", "")), str(value.get("error_description", ""))
    upstream: dict[str, object] = {
        "status": reply.status,
        "type": excerpt(error),
        "title": "",
        "detail": excerpt(description, 200),
    }
    if reply.status >= 500:
        return TokenError(Meaning.FAILED, "x_5xx", upstream)
    for status, code, part, meaning in _CLASSES:
        if (status in (None, reply.status)) and (code in (None, error)) and part in description:
            return TokenError(meaning, refused if meaning is Meaning.REFUSED else "x_client_credentials", upstream)
    return TokenError(Meaning.HELD, "x_window_15m" if reply.status == 429 else "x_reply_malformed", upstream)


def _tokens(reply: Reply) -> Tokens:
    """Return the pair in a token reply, with every member checked: a pair that is stored wrong is lost for good."""
    value = _decode_object(reply) or {}
    access, refresh = value.get("access_token"), value.get("refresh_token")
    expires_in, scope = value.get("expires_in"), value.get("scope")
    valid = (
        len(reply.body) <= _MAX_REPLY_BYTES
        and _is_token(access)
        and (refresh is None or _is_token(refresh))
        and isinstance(expires_in, int)
        and not isinstance(expires_in, bool)
        and 0 < expires_in <= _MAX_TOKEN_LIFETIME_S
        and (scope is None or (isinstance(scope, str) and scope.isascii() and scope.isprintable()))
        and str(value.get("token_type", "")).lower() == "bearer"
    )
    if not valid:
        raise TokenError(
            Meaning.MAYBE, "x_reply_malformed", {"status": reply.status, "type": "", "title": "", "detail": ""}
        )
    assert isinstance(access, str) and isinstance(expires_in, int)  # noqa: S101, PT018 - for the type checker
    return Tokens(access, refresh, expires_in, None if scope is None else tuple(scope.split()))


def _is_token(value: object) -> bool:
    """Return whether a value fits a header or form (RFC 6750 §2.1). The maximum length is far above any token of X."""
    return isinstance(value, str) and value.isascii() and value.isprintable() and 0 < len(value) <= 4_096


def _decode_object(reply: Reply) -> dict[str, Any] | None:
    try:
        # The lenient decoder is used because a pair that cannot be read is lost, and the link with it.
        value = json.loads(reply.body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
