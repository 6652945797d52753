"""The cookie that keeps a link's undo token in the browser for 10 minutes. Only the callback and undo pages read it."""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import TYPE_CHECKING

from birdwire.accounts.links import UNDO_FOR

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from birdwire.api.messages import Call, Headers

PREFIX = "birdwire_undo_"
"""The hash of the link's state follows, so that two links in one browser do not replace each other's cookie."""


def write(state_hash: bytes, undo_token: str, paths: Iterable[str], *, secure: bool) -> Headers:
    """Return the headers that set the cookie for these paths and no others (RFC 6265 §4.1).

    SameSite=Lax: a reload of a page that X redirected to counts as a navigation from X, which withholds a Strict one.
    """
    attributes = f"Max-Age={int(UNDO_FOR.total_seconds())}; HttpOnly; SameSite=Lax{'; Secure' if secure else ''}"
    name = PREFIX + base64.urlsafe_b64encode(state_hash).rstrip(b"=").decode()
    return tuple(("set-cookie", f"{name}={undo_token}; Path={path}; {attributes}") for path in paths)


def tokens_for(call: Call, state_hash: bytes) -> list[str]:
    """Return the undo tokens that the browser holds for a state, unverified: a sibling host may have set one."""
    return [token for found, token in _cookies(call) if found == state_hash]


def state_for(call: Call, undo_token: str) -> bytes | None:
    """Return the hash of the state for which the browser holds exactly this undo token."""
    sent = undo_token.encode("utf-8", "replace")
    return next((found for found, token in _cookies(call) if hmac.compare_digest(token.encode(), sent)), None)


def _cookies(call: Call) -> Iterator[tuple[bytes, str]]:
    for header in call.header_values("cookie"):
        for pair in header.split(";"):
            name, _, value = pair.strip().partition("=")
            if name.startswith(PREFIX):
                try:
                    yield base64.b64decode(name.removeprefix(PREFIX) + "=", altchars=b"-_", validate=True), value
                except (binascii.Error, ValueError):
                    continue
