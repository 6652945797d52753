"""The vault: encrypts secrets at rest with AES-256-GCM, each bound to its place in the database."""

from __future__ import annotations

import hashlib
import os
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES = 32
FORM_1, FORM_2 = b"\x01", b"\x02"
"""The first byte of a blob. Form 1 binds a value to its place, form 2 also to other columns of its row."""

_NONCE_BYTES = 12
_ID_BYTES = 8
HEAD_BYTES = len(FORM_1) + _ID_BYTES
"""The bytes of a blob that state its form and the key that sealed it."""

_BODY_AT = HEAD_BYTES + _NONCE_BYTES


class VaultError(Exception):
    """Raised for a missing, malformed or wrong vault key, or a changed value. The text is safe to show."""


class DamagedError(VaultError):
    """Raised when a sealed value was changed or moved: no vault key opens it."""


class Place(NamedTuple):
    """The place of a sealed value. It opens nowhere else: in no other row or column, and under no other generation.

    `row` is the row's primary key: its parts joined by "/", bytes in hexadecimal. `bound` holds the values of further
    columns of the row: with any, the value is sealed in form 2, and no longer opens once one of them changes.
    """

    table: str
    row: str
    column: str
    gen: int = 0
    bound: tuple[str, ...] = ()

    @property
    def form(self) -> bytes:
        """The form in which a value is sealed for this place, the only one that opens there."""
        return FORM_2 if self.bound else FORM_1


class Vault:
    """Seals with one 32-byte key; opens with that key and with the others, which a key rotation needs.

    A blob is: form (1 byte), key id (8 bytes), nonce (12), ciphertext and tag.
    """

    def __init__(self, key: bytes, *others: bytes) -> None:
        self._key = key
        self._ciphers = {_id_of(one): AESGCM(one) for one in (key, *others)}
        self._id = _id_of(key)

    @property
    def key_id(self) -> str:
        """The id of the sealing key, which reveals nothing about the key."""
        return self._id.hex()

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of all keys, the sealing key first."""
        return tuple(key_id.hex() for key_id in self._ciphers)

    def seal(self, secret: str, place: Place) -> bytes:
        """Encrypt a secret for one place."""
        return self.seal_bytes(secret.encode(), place)

    def seal_bytes(self, secret: bytes, place: Place) -> bytes:
        """Encrypt bytes for one place."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._ciphers[self._id].encrypt(nonce, secret, _bind(place, self._id))
        return b"".join((place.form, self._id, nonce, sealed))

    def open(self, blob: bytes, place: Place) -> str:
        """Decrypt what `seal` returned for the same place.

        Raises:
            DamagedError: the blob or its place was changed, or it has another form.
            VaultError: it was sealed with a key that was not given.
        """
        return self.open_bytes(blob, place).decode()

    def open_bytes(self, blob: bytes, place: Place) -> bytes:
        """Decrypt what `seal_bytes` returned for the same place.

        Raises:
            DamagedError: the blob or its place was changed, or it has another form.
            VaultError: it was sealed with a key that was not given.
        """
        if blob[: len(FORM_1)] != place.form or len(blob) < _BODY_AT:
            raise DamagedError(f"An encrypted value in {place.table}.{place.column} is damaged.")
        key_id, nonce = blob[len(FORM_1) : HEAD_BYTES], blob[HEAD_BYTES:_BODY_AT]
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise VaultError(f"A value in {place.table}.{place.column} was encrypted with a different vault key.")
        try:
            return cipher.decrypt(nonce, blob[_BODY_AT:], _bind(place, key_id))
        except InvalidTag:
            raise DamagedError(f"An encrypted value in {place.table}.{place.column} was changed or moved.") from None

    def derive(self, purpose: str) -> bytes:
        """Derive 32 bytes from the sealing key and a purpose (HKDF, RFC 5869).

        Another sealing key derives other bytes: use it only where the key never rotates, as in a development folder.
        """
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=f"birdwire {purpose}".encode()).derive(self._key)


def blob_head(key_id: str, form: bytes = FORM_1) -> bytes:
    """Return the first bytes of every blob that a key sealed in a form."""
    return form + bytes.fromhex(key_id)


def _id_of(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise VaultError(f"The vault key must be {KEY_BYTES} bytes long, but it has {len(key)} bytes.")
    return hashlib.sha256(b"birdwire vault key id" + key).digest()[:_ID_BYTES]


def _bind(place: Place, key_id: bytes) -> bytes:
    """Return the associated data. Each form has a fixed number of parts, so a separator in a part is unambiguous."""
    name = "birdwire 2" if place.bound else "birdwire"
    parts = (name, place.table, place.row, place.column, str(place.gen), key_id.hex(), *place.bound)
    return "\x1f".join(parts).encode()
