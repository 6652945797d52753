"""Vault keys in files: created, read and decoded. A key file must be private."""

from __future__ import annotations

import base64
import binascii
import os
import stat
from typing import TYPE_CHECKING

from birdwire.runtime import private_files
from birdwire.store.encryption.vault import KEY_BYTES, VaultError

if TYPE_CHECKING:
    from pathlib import Path


def decode_key(text: str) -> bytes:
    """Decode 32 bytes from base64 of either alphabet, padded or not.

    Raises:
        VaultError: the text is not base64, or has another length.
    """
    compact = text.strip().rstrip("=").replace("-", "+").replace("_", "/")
    try:
        key = base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise VaultError(
            "The vault key is not valid base64. Copy the whole line that `birdwire vault create` wrote."
        ) from None
    if len(key) != KEY_BYTES:
        raise VaultError(
            f"The vault key must be {KEY_BYTES} bytes in base64, but it has {len(key)} bytes. "
            "Copy the whole line that `birdwire vault create` wrote."
        )
    return key


def read_key_file(path: Path) -> bytes:
    """Return the key in a private file.

    Raises:
        VaultError: the file is missing, not private, or does not hold a key.
    """
    try:
        mode, fault = path.stat().st_mode, private_files.fault(path, "vault key file")
        text = path.read_text("utf-8") if stat.S_ISREG(mode) and fault is None else ""
    except (OSError, UnicodeDecodeError) as error:
        raise VaultError(
            f"The vault key file {path} cannot be read: {type(error).__name__}. "
            "Set the path of a file that `birdwire vault create FILE` wrote."
        ) from None
    if not stat.S_ISREG(mode):
        raise VaultError(f"The vault key file {path} is not a regular file.")
    if fault is not None:
        raise VaultError(fault)
    return decode_key(text)


def create_key_file(path: Path) -> bytes:
    """Create a key in a new file (0600), which must not exist yet; return the key.

    Raises:
        VaultError: the file exists or cannot be written.
    """
    key = os.urandom(KEY_BYTES)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(base64.b64encode(key) + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise VaultError(f"The vault key file {path} cannot be created: {error.strerror}.") from None
    return key
