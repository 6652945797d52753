"""What a write that waits for a person keeps encrypted: its payload, its images, and the body of its final refusal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from birdwire.api.errors import GatewayError, render
from birdwire.outcomes.approval_payload import Payload
from birdwire.store.encryption.vault import Place, VaultError

if TYPE_CHECKING:
    from birdwire.store.encryption.vault import Vault


def seal_payload(vault: Vault, request_id: str, payload: Payload) -> bytes:
    """Encrypt what a write asks for; a lone surrogate becomes `?`, as in an answer."""
    return vault.seal_bytes(payload.encode().encode("utf-8", "replace"), _place(request_id, "payload_ct"))


def open_payload(vault: Vault, request_id: str, blob: bytes) -> Payload | None:
    """Decrypt what a write asks for; None if it was changed at rest, or its vault key is missing."""
    try:
        return Payload.decode(vault.open(blob, _place(request_id, "payload_ct")))
    except (VaultError, ValueError):
        return None


def seal_refusal(vault: Vault, request_id: str, error: GatewayError) -> bytes | None:
    """Encrypt the body of a final refusal; None if the reason alone defines it."""
    if not (error.values or error.upstream or error.findings):
        return None
    body = render(error, request_id).body
    return vault.seal_bytes(body, _place(request_id, "refusal_ct"))


def open_refusal(vault: Vault, request_id: str, blob: bytes) -> dict[str, Any] | None:
    """Decrypt the body of a refusal; None if it was changed at rest, or its vault key is missing."""
    try:
        body = json.loads(vault.open(blob, _place(request_id, "refusal_ct")))
    except (VaultError, ValueError):
        return None
    return body if isinstance(body, dict) else None


def seal_file(vault: Vault, request_id: str, number: int, data: bytes) -> bytes:
    """Encrypt an image that is shown with a write."""
    return vault.seal_bytes(data, _file(request_id, number))


def open_file(vault: Vault, request_id: str, number: int, blob: bytes) -> bytes | None:
    """Decrypt an image; None if it was changed at rest, or its vault key is missing."""
    try:
        return vault.open_bytes(blob, _file(request_id, number))
    except VaultError:
        return None


def seal_upload(vault: Vault, key_id: str, media_id: str, data: bytes) -> bytes:
    """Encrypt an image that a key uploaded."""
    return vault.seal_bytes(data, _upload(key_id, media_id))


def open_upload(vault: Vault, key_id: str, media_id: str, blob: bytes) -> bytes | None:
    """Decrypt an uploaded image; None if it was changed at rest, or its vault key is missing."""
    try:
        return vault.open_bytes(blob, _upload(key_id, media_id))
    except VaultError:
        return None


def _place(request_id: str, column: str) -> Place:
    return Place("approvals", request_id, column)


def _file(request_id: str, number: int) -> Place:
    return Place("approval_files", f"{request_id}/{number}", "blob_ct")


def _upload(key_id: str, media_id: str) -> Place:
    return Place("kept_images", f"{key_id}/{media_id}", "blob_ct")
