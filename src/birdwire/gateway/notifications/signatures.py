"""Signatures of deliveries, as Standard Webhooks 1.0 defines them: HMAC-SHA256 over id, time and body."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

PREFIX = "whsec_"
SECRET_BYTES = 32


def new_secret() -> str:
    """Return a new signing secret: `whsec_` and the base64 of 32 random bytes."""
    return PREFIX + base64.b64encode(os.urandom(SECRET_BYTES)).decode()


def signed(secrets: Sequence[str], event_id: str, at_unix_s: int, body: bytes) -> tuple[tuple[str, str], ...]:
    """Return the headers that sign a body with each of the secrets, so that a receiver may know any one of them.

    `at_unix_s` is when the body is sent: a receiver refuses a time that is too far from its own.
    """
    content = f"{event_id}.{at_unix_s}.".encode() + body
    return (
        ("webhook-id", event_id),
        ("webhook-timestamp", str(at_unix_s)),
        ("webhook-signature", " ".join(_signature(secret, content) for secret in secrets)),
    )


def _signature(secret: str, content: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(PREFIX))
    return f"v1,{base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()}"
