"""Marks of texts: HMACs that show whether a text was posted before, without keeping the text."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import TYPE_CHECKING

from birdwire.store.encryption.vault import KEY_BYTES, Place
from birdwire.store.tables import text_mark_keys as store

if TYPE_CHECKING:
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database
    from birdwire.store.encryption.vault import Vault

_NAME = "texts"
_PLACE = Place("text_mark_keys", _NAME, "key_ct")


class TextMarks:
    """Marks texts under a random key, which every process on the database shares.

    The vault seals that key as it seals any other value, so marks stay valid when the vault's key rotates.
    """

    def __init__(self, database: Database, vault: Vault, clock: Clock) -> None:
        self._database = database
        self._vault = vault
        self._clock = clock
        self._key: bytes | None = None

    async def mark(self, text: str) -> str:
        """Return the mark of a text, in hexadecimal; the caller has normalized the text.

        Raises:
            StorageDownError: the database does not answer.
            VaultError: the vault's keys do not open the stored key.
        """
        if self._key is None:
            self._key = await self._find() or await self._make()
        return _mark(self._key, text)

    async def known_mark(self, text: str) -> str | None:
        """Return the mark of a text; None if no text has ever been marked. It changes nothing.

        Raises:
            StorageDownError, VaultError: as `mark`.
        """
        if self._key is None:
            self._key = await self._find()
        return None if self._key is None else _mark(self._key, text)

    async def _find(self) -> bytes | None:
        async with self._database.read() as connection:
            return self._open(await store.find(connection, _NAME))

    async def _make(self) -> bytes:
        made = self._vault.seal(secrets.token_hex(KEY_BYTES), _PLACE)
        async with self._database.write() as connection:
            await store.add(connection, _NAME, made, self._clock.now())
            # Another process may have been first.
            return self._open(await store.find(connection, _NAME)) or b""

    def _open(self, sealed: bytes | None) -> bytes | None:
        return None if sealed is None else bytes.fromhex(self._vault.open(sealed, _PLACE))


def _mark(key: bytes, text: str) -> str:
    return hmac.new(key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()
