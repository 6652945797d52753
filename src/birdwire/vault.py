"""Seals secrets at rest with AES-256-GCM and opens them again; never writes a key, and never makes one on its own."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

if TYPE_CHECKING:
    from pathlib import Path

KEY_BYTES = 32
_VERSION = b"\x01"
_NONCE_BYTES = 12
_ID_BYTES = 8
_HEAD_BYTES = len(_VERSION) + _ID_BYTES + _NONCE_BYTES


class VaultError(Exception):
    """The vault key is missing, malformed or wrong, or a sealed value was changed. The text is safe to show."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sealed value lives. It opens nowhere else: not in another row or column, not under another generation."""

    table: str
    row: str
    column: str
    gen: int = 0


class Vault:
    """Seals and opens with one 32-byte key. A blob is: version, key id (8 bytes), nonce (12), ciphertext and tag."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise VaultError(f"The vault key must be {KEY_BYTES} bytes, but has {len(key)}.")
        self._key = key
        self._cipher = AESGCM(key)
        self._id = hashlib.sha256(b"birdwire vault key id" + key).digest()[:_ID_BYTES]

    @property
    def key_id(self) -> str:
        """Names the key without telling anything about it."""
        return self._id.hex()

    def seal(self, secret: str, place: Place) -> bytes:
        """Encrypt for one place."""
        nonce = os.urandom(_NONCE_BYTES)
        return b"".join((_VERSION, self._id, nonce, self._cipher.encrypt(nonce, secret.encode(), self._bind(place))))

    def open(self, blob: bytes, place: Place) -> str:
        """Decrypt what `seal` made for the same place.

        Raises:
            VaultError: another key sealed it, or a bit or its place was changed.
        """
        if blob[: len(_VERSION)] != _VERSION or len(blob) < _HEAD_BYTES:
            raise VaultError(f"A sealed value in {place.table}.{place.column} is damaged.")
        if blob[len(_VERSION) : len(_VERSION) + _ID_BYTES] != self._id:
            raise VaultError(f"A value in {place.table}.{place.column} was sealed with another vault key.")
        try:
            plain = self._cipher.decrypt(
                blob[_HEAD_BYTES - _NONCE_BYTES : _HEAD_BYTES], blob[_HEAD_BYTES:], self._bind(place)
            )
        except InvalidTag:
            raise VaultError(f"A sealed value in {place.table}.{place.column} was changed or moved.") from None
        return plain.decode()

    def derive(self, purpose: str) -> bytes:
        """32 bytes that follow from the key and the purpose (HKDF, RFC 5869); nothing leads back to the key."""
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=f"birdwire {purpose}".encode()).derive(self._key)

    def _bind(self, place: Place) -> bytes:
        return "\x1f".join(("birdwire", place.table, place.row, place.column, str(place.gen), self.key_id)).encode()


def decode_key(text: str) -> bytes:
    """32 bytes from base64 of either alphabet, padded or not.

    Raises:
        VaultError: it is no base64 or another length.
    """
    compact = text.strip().rstrip("=").replace("-", "+").replace("_", "/")
    try:
        key = base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise VaultError("The vault key is not base64.") from None
    if len(key) != KEY_BYTES:
        raise VaultError(f"The vault key must be {KEY_BYTES} bytes in base64, but has {len(key)}.")
    return key


def read_key_file(path: Path) -> bytes:
    """The key in a file that others cannot read.

    Raises:
        VaultError: the file is missing, readable by everyone, or holds no key.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text("utf-8") if stat.S_ISREG(mode) else ""
    except (OSError, UnicodeDecodeError) as error:
        raise VaultError(f"The vault key file {path} cannot be read: {type(error).__name__}.") from None
    if not stat.S_ISREG(mode):
        raise VaultError(f"The vault key file {path} is not a file.")
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise VaultError(f"The vault key file {path} is open to every user; run: chmod 600 {path}")
    return decode_key(text)


def create_key_file(path: Path) -> bytes:
    """Make a new key and keep it in a file (0600) that must not exist yet; returns the key.

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
        raise VaultError(f"The vault key file {path} cannot be made: {error.strerror}.") from None
    return key
