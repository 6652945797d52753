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
            self._key = await self._load()
        return hmac.new(self._key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    async def _load(self) -> bytes:
        async with self._database.read() as connection:
            found = await store.find(connection, _NAME)
        if found is None:
            made = self._vault.seal(secrets.token_hex(KEY_BYTES), _PLACE)
            async with self._database.write() as connection:
                await store.add(connection, _NAME, made, self._clock.now())
                # Another process may have been first.
                found = await store.find(connection, _NAME)
        return bytes.fromhex(self._vault.open(found or b"", _PLACE))
