"""Seals secrets at rest with AES-256-GCM and opens them again; never writes a key, and never makes one on its own."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from birdwire.runtime import private_files

if TYPE_CHECKING:
    from pathlib import Path

KEY_BYTES = 32
FORM_1, FORM_2 = b"\x01", b"\x02"
"""The first byte of a blob. Form 1 binds a value to its place; form 2 also to what other columns of its row hold."""

_NONCE_BYTES = 12
_ID_BYTES = 8
HEAD_BYTES = len(FORM_1) + _ID_BYTES
"""How many bytes of a blob state its form and the key that sealed it."""

_BODY_AT = HEAD_BYTES + _NONCE_BYTES


class VaultError(Exception):
    """The vault key is missing, malformed or wrong, or a sealed value was changed. The text is safe to show."""


class DamagedError(VaultError):
    """A sealed value was changed or moved: no vault key opens it any more."""


class Place(NamedTuple):
    """Where a sealed value lives. It opens nowhere else: not in another row or column, not under another generation.

    `row` is the row's primary key: its parts joined by "/", bytes in hexadecimal. `bound` are the values of further
    columns of the row: with any, the value is sealed in form 2 and no longer opens when one of them changes.
    """

    table: str
    row: str
    column: str
    gen: int = 0
    bound: tuple[str, ...] = ()

    @property
    def form(self) -> bytes:
        """The form in which a value is sealed for this place, and the only one that opens there."""
        return FORM_2 if self.bound else FORM_1


class Vault:
    """Seals with one 32-byte key; opens with that, and with others that it is given for the change from key to key.

    A blob is: form (1 byte), key id (8 bytes), nonce (12), ciphertext and tag.
    """

    def __init__(self, key: bytes, *others: bytes) -> None:
        self._key = key
        self._ciphers = {_id_of(one): AESGCM(one) for one in (key, *others)}
        self._id = _id_of(key)

    @property
    def key_id(self) -> str:
        """Names the key that seals, without telling anything about it."""
        return self._id.hex()

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of every key that opens, the one that seals first."""
        return tuple(key_id.hex() for key_id in self._ciphers)

    def seal(self, secret: str, place: Place) -> bytes:
        """Encrypt for one place."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[self._id].encrypt(nonce, secret.encode(), _bind(place, self._id))
        return b"".join((place.form, self._id, nonce, sealed))

    def open(self, blob: bytes, place: Place) -> str:
        """Decrypt what `seal` made for the same place.

        Raises:
            DamagedError: a bit or its place was changed, or it is of another form.
            VaultError: a key sealed it that is not here.
        """
        if blob[: len(FORM_1)] != place.form or len(blob) < _BODY_AT:
            raise DamagedError(f"A sealed value in {place.table}.{place.column} is damaged.")
        key_id, nonce = blob[len(FORM_1) : HEAD_BYTES], blob[HEAD_BYTES:_BODY_AT]
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise VaultError(f"A value in {place.table}.{place.column} was sealed with another vault key.")
        try:
            plain = cipher.decrypt(nonce, blob[_BODY_AT:], _bind(place, key_id))
        except InvalidTag:
            raise DamagedError(f"A sealed value in {place.table}.{place.column} was changed or moved.") from None
        return plain.decode()

    def derive(self, purpose: str) -> bytes:
        """32 bytes that follow from the sealing key and the purpose (HKDF, RFC 5869); nothing leads back to the key.

        Another sealing key gives others: fit for a dev folder, whose key stays, and for nothing that is to outlive it.
        """
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=f"birdwire {purpose}".encode()).derive(self._key)


def head(key_id: str, form: bytes = FORM_1) -> bytes:
    """Return the first bytes of everything that a key sealed in a form."""
    return form + bytes.fromhex(key_id)


def _id_of(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise VaultError(f"The vault key must be {KEY_BYTES} bytes, but has {len(key)}.")
    return hashlib.sha256(b"birdwire vault key id" + key).digest()[:_ID_BYTES]


def _bind(place: Place, key_id: bytes) -> bytes:
    """The associated data. Each form has a fixed number of parts, so a separator inside a part makes no other place."""
    name = "birdwire 2" if place.bound else "birdwire"
    parts = (name, place.table, place.row, place.column, str(place.gen), key_id.hex(), *place.bound)
    return "\x1f".join(parts).encode()


def decode_key(text: str) -> bytes:
    """32 bytes from base64 of either alphabet, padded or not.

    Raises:
        VaultError: it is no base64 or another length.
    """
    compact = text.strip().rstrip("=").replace("-", "+").replace("_", "/")
    try:
        key = base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise VaultError(
            "The vault key is not base64. Copy the whole line that `birdwire vault create` wrote."
        ) from None
    if len(key) != KEY_BYTES:
        raise VaultError(
            f"The vault key must be {KEY_BYTES} bytes in base64, but has {len(key)}. "
            "Copy the whole line that `birdwire vault create` wrote."
        )
    return key


def read_key_file(path: Path) -> bytes:
    """Return the key in a private file.

    Raises:
        VaultError: the file is missing, not private, or holds no key.
    """
    try:
        mode, fault = path.stat().st_mode, private_files.fault(path, "vault key file")
        text = path.read_text("utf-8") if stat.S_ISREG(mode) and fault is None else ""
    except (OSError, UnicodeDecodeError) as error:
        raise VaultError(
            f"The vault key file {path} cannot be read: {type(error).__name__}. "
            "Name the file that `birdwire vault create FILE` made."
        ) from None
    if not stat.S_ISREG(mode):
        raise VaultError(f"The vault key file {path} is not a file.")
    if fault is not None:
        raise VaultError(fault)
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
