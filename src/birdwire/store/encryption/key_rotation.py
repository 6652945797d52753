"""Key rotation: which vault keys sealed which values, the proof at startup, resealing, and retiring an old key.

`bind` reseals the token pairs of an older version in form 2, once, before a gateway serves the database. A rotation
runs alongside serving gateways. It replaces a value only if it is unchanged since it was read, so a concurrent refresh
wins. Each batch is committed, so after a crash it continues where it stopped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from birdwire.runtime.clock import rfc3339
from birdwire.runtime.failpoints import Failpoints
from birdwire.store.database import lock_database
from birdwire.store.encryption.vault import FORM_1, FORM_2, HEAD_BYTES, Place, VaultError, blob_head
from birdwire.store.tables import acts, store_facts, vault_keys
from birdwire.store.tables import sealed_columns as store

if TYPE_CHECKING:
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database
    from birdwire.store.encryption.vault import Vault
    from birdwire.store.tables.sealed_columns import Sealed, SealedValue

Progress = Callable[[int, int], None]
"""Called with the number of values resealed so far, and of those that could not be opened."""

_Key = tuple[object, ...]
"""The parts of a row's primary key."""

BATCH, LARGE_BATCH = 100, 1
"""Rows resealed in one transaction: about 3 ms, so that concurrent writes hardly wait; of large values, one."""

START_BATCH = 1_000
"""Rows resealed in one transaction before a gateway serves the database."""


@dataclass(frozen=True, slots=True)
class Count:
    """The values that one vault key sealed. `known`: the database lists the key; `here`: the key was given."""

    key_id: str
    values: int
    seals: bool
    here: bool
    known: bool


class KeyRotation:
    """Compares the vault keys that a database lists with those of a vault, and moves values from key to key."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        clock: Clock,
        failpoints: Failpoints | None = None,
        by: acts.Actor = acts.GATEWAY,
    ) -> None:
        self._by = by
        self._database = database
        self._vault = vault
        self._clock = clock
        self._failpoints = failpoints or Failpoints()

    async def check(self) -> None:
        """Check that every listed key was given, and is the right one; change nothing.

        Raises:
            VaultError: a key is missing or wrong.
        """
        async with self._database.read() as connection:
            proofs = {row.key_id: row.proof_ct for row in await vault_keys.list_all(connection)}
        self._prove(proofs)

    async def enlist(self, *, starting: bool = True) -> None:
        """Check the keys as `check` does, and list the sealing key: from then on, no process starts without it.

        Only a gateway that is `starting` may list a new key. A command must not while a gateway runs, since that
        gateway could not open what the new key seals.

        Raises:
            VaultError: a key is missing or wrong; nothing was changed.
        """
        async with self._database.write() as connection:
            await lock_database(connection)
            proofs = {row.key_id: row.proof_ct for row in await vault_keys.list_all(connection)}
            self._prove(proofs)
            key_id = self._vault.key_id
            if not starting and proofs and key_id not in proofs:
                raise VaultError(
                    "The gateways on this database do not have this vault key yet. Restart them with this key and the"
                    " old one. Nothing was changed."
                )
            if key_id not in proofs:
                proof, now = self._vault.seal(key_id, _place(key_id)), self._clock.now()
                await vault_keys.add(connection, {"key_id": key_id, "proof_ct": proof, "created_at": now})
                await acts.append(connection, now, self._by, "vault.key_added", key_id)

    def _prove(self, proofs: dict[str, bytes]) -> None:
        missing = sorted(set(proofs) - set(self._vault.key_ids))
        if missing and len(missing) == len(proofs):
            raise VaultError(
                "This database was encrypted with a different vault key. Nothing was changed. "
                "Set BIRDWIRE_VAULT_KEY_FILE to the file with that key."
            )
        if missing:
            raise VaultError(
                f"The vault key {missing[0]} is still in use. Keep its file in BIRDWIRE_VAULT_OTHER_KEY_FILES until "
                "`birdwire vault rotate` reports that it can be removed. Nothing was changed."
            )
        for key_id, proof in proofs.items():
            self._vault.open(proof, _place(key_id))

    async def known(self) -> bool:
        """Return whether the sealing key is listed, so that every gateway on this database can open its values."""
        async with self._database.read() as connection:
            return self._vault.key_id in {row.key_id for row in await vault_keys.list_all(connection)}

    async def counts(self) -> list[Count]:
        """Count the values that each key sealed, the sealing key first. Reads the first bytes of every sealed value."""
        found: Counter[str] = Counter()
        async with self._database.read() as connection:
            listed = {row.key_id for row in await vault_keys.list_all(connection)}
            for sealed in store.SEALED:
                for begin, number in (await store.count(connection, sealed, HEAD_BYTES)).items():
                    found[begin[1:].hex()] += number
        key_ids = dict.fromkeys((*self._vault.key_ids, *sorted(listed), *sorted(found)))
        return [
            Count(key_id, found[key_id], key_id == self._vault.key_id, key_id in self._vault.key_ids, key_id in listed)
            for key_id in key_ids
        ]

    async def reseal(self, progress: Callable[[int], None]) -> int:
        """Reseal what other keys sealed, and call `progress` with the count so far; return how many did not open.

        A value that changes meanwhile is skipped: its writer has resealed it, or the next round will.
        """
        done, unreadable = 0, 0
        for sealed in store.SEALED:
            here, after = blob_head(self._vault.key_id, FORM_2 if sealed.bound else FORM_1), None
            while True:
                size = LARGE_BATCH if sealed.large else BATCH
                resealed, broken, after = await self._batch(sealed, here, after, size)
                done, unreadable = done + resealed, unreadable + broken
                if after is None:
                    break
                progress(done)
        return unreadable

    async def bind(self, progress: Progress | None = None) -> None:
        """Reseal in form 2 what an older version sealed in form 1, unless that was done before, and record it.

        Afterwards a value of form 1 no longer opens there. Safe to run concurrently in several processes. A value that
        cannot be opened stays as it is, and its link ends as damaged.
        """
        async with self._database.read() as connection:
            if await store_facts.known(connection, store_facts.PAIRS_BOUND):
                return
        done, unreadable = 0, 0
        for sealed in (one for one in store.SEALED if one.bound):
            after: _Key | None = None
            while True:
                resealed, broken, after = await self._batch(sealed, FORM_2, after, START_BATCH, unbound=True)
                done, unreadable = done + resealed, unreadable + broken
                if progress is not None and (resealed or broken):
                    progress(done, unreadable)
                if after is None:
                    break
        async with self._database.write() as connection:
            await store_facts.state(connection, store_facts.PAIRS_BOUND, rfc3339(self._clock.now()))

    async def retire(self) -> list[str]:
        """Unlist the keys that no longer seal anything, and return their ids: a start no longer needs them."""
        idle = [count.key_id for count in await self.counts() if count.known and not count.seals and not count.values]
        async with self._database.write() as connection:
            for key_id in idle:
                await vault_keys.remove(connection, key_id)
            now, retired = self._clock.now(), {"retired": idle}
            await acts.append(connection, now, self._by, "vault.rotated", self._vault.key_id, after=retired)
        return idle

    async def _batch(
        self, sealed: Sealed, here: bytes, after: _Key | None, size: int, *, unbound: bool = False
    ) -> tuple[int, int, _Key | None]:
        """Reseal, in one transaction, values that do not start with `here`; `unbound`: they are in form 1.

        Returns how many were resealed, how many cannot be opened, and where the next batch starts.
        """
        new, broken = [], 0
        async with self._database.read() as connection:
            rows = await store.others(connection, sealed, here, after, size)
        for value in rows:
            place = _place_of(sealed, value)
            found = place._replace(bound=()) if unbound else place
            try:
                new.append((value, self._vault.seal_bytes(self._vault.open_bytes(value.blob, found), place)))
            except VaultError:
                broken += 1
        if new:
            async with self._database.write() as connection:
                await store.replace(connection, sealed, new)
                await self._failpoints.reach("rotation")
        last = rows[-1].key if len(rows) == size else None
        return len(new), broken, last


def _place(key_id: str) -> Place:
    return Place("vault_keys", key_id, "proof_ct")


def _place_of(sealed: Sealed, value: SealedValue) -> Place:
    parts = (part.hex() if isinstance(part, bytes) else str(part) for part in value.key)
    bound = tuple(column or "" for column in value.bound)
    return Place(sealed.table.name, "/".join(parts), sealed.column.name, value.gen, bound)
