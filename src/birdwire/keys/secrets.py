"""Secrets of API keys: minting, the check of their form, and their hash. A secret is shown once; its hash is stored."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote

from birdwire.api.errors import GatewayError

if TYPE_CHECKING:
    from birdwire.api.messages import Call

Mode = Literal["live", "test"]

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# 62^43 > 2^256 and 62^6 > 2^32: the random part holds 256 bits, the checksum a CRC-32.
_RANDOM_CHARS, _CHECKSUM_CHARS = 43, 6

KEY_PATTERN = re.compile(r"bw_(live|test)_[0-9A-Za-z]{49}")
"""Matches an API key anywhere in a text."""

MAX_SECRET_CHARS = len("bw_live_") + _RANDOM_CHARS + _CHECKSUM_CHARS

_KEY_PARAMETERS = frozenset({"api_key", "apikey", "key", "token", "access_token", "aisa_api_key", "authorization"})
"""Names of query parameters that suggest that the caller sent its API key in the URL."""


def mint(mode: Mode, entropy: bytes | None = None) -> str:
    """Return a new secret: `bw_live_` or `bw_test_`, 256 random bits in base62, and a checksum against typos."""
    body = f"bw_{mode}_{_base62(int.from_bytes(entropy or secrets.token_bytes(32)), _RANDOM_CHARS)}"
    return body + _checksum(body)


def raw_key_of(call: Call) -> str | None:
    """Return the API key in a call's Authorization header (RFC 6750 §2.1), if there is one; `Keys.find` checks it.

    Raises:
        GatewayError: key_in_query, key_malformed, duplicate_header.
    """
    if call.query and _names_key(call.query):
        raise GatewayError("key_in_query")
    headers = call.header_values("authorization")
    if len(headers) > 1:
        raise GatewayError("duplicate_header", field="Authorization")
    scheme, _, raw_key = (headers[0] if headers else "").strip(" \t").partition(" ")
    if not scheme:
        return None
    if scheme.lower() != "bearer":
        raise GatewayError("key_malformed")
    return raw_key.strip(" \t") or None


def _names_key(query: str) -> bool:
    """Return whether a query seems to contain an API key, under any parameter name or as a name."""
    names = {part.partition("=")[0].lower() for part in query.split("&")}
    return not names.isdisjoint(_KEY_PARAMETERS) or KEY_PATTERN.search(unquote(query)) is not None


def check_form(raw_key: str) -> None:
    """Check a key's form and checksum, without a database lookup.

    Raises:
        GatewayError: key_malformed.
    """
    body, checksum = raw_key[:-_CHECKSUM_CHARS], raw_key[-_CHECKSUM_CHARS:]
    if not KEY_PATTERN.fullmatch(raw_key) or not hmac.compare_digest(_checksum(body), checksum):
        raise GatewayError("key_malformed")


def hash_secret(raw_key: str) -> bytes:
    """Return the SHA-256 of a secret. A slow hash would add nothing: 256 random bits cannot be guessed."""
    return hashlib.sha256(raw_key.encode()).digest()


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECKSUM_CHARS)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
