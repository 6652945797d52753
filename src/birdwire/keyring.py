"""Which vault keys sealed what in a database: the proof at start, the change to another key, and an old key's end.

A change from key to key runs beside gateways that serve. It touches a value only as it read it, so a refresh that comes
between wins; what is done is done, so after a crash it begins again and finds less to do.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from birdwire.failpoints import Failpoints
from birdwire.store import sealed as store
from birdwire.store import vault_keys
from birdwire.store.db import alone
from birdwire.vault import HEAD_BYTES, Place, VaultError, head

if TYPE_CHECKING:
    from collections.abc import Callable

    from birdwire.clock import Clock
    from birdwire.store.db import Database
    from birdwire.store.sealed import Sealed
    from birdwire.vault import Vault

_Key = tuple[object, ...]  # the parts of a row's primary key

BATCH = 100
"""Rows resealed in one transaction: some 3 ms, so that a gateway's writes beside it hardly wait."""


@dataclass(frozen=True, slots=True)
class Count:
    """What one vault key sealed. `known`: the database lists it; `here`: its key was given."""

    key_id: str
    values: int
    seals: bool
    here: bool
    known: bool


class Keyring:
    """The vault keys of one database, as seen with the keys of one vault."""

    def __init__(self, database: Database, vault: Vault, clock: Clock, failpoints: Failpoints | None = None) -> None:
        self._database = database
        self._vault = vault
        self._clock = clock
        self._failpoints = failpoints or Failpoints()

    async def check(self) -> None:
        """See that every key is here that sealed something, and is the one it should be; changes nothing.

        Raises:
            VaultError: one is missing or another.
        """
        async with self._database.read() as connection:
            proofs = {row["key_id"]: row["proof_ct"] for row in await vault_keys.list_all(connection)}
        self._prove(proofs)

    async def enlist(self) -> None:
        """The same, and list the key that seals from now on: after that nobody starts without it.

        Raises:
            VaultError: a key is missing or another; then nothing was changed.
        """
        async with self._database.write() as connection:
            await alone(connection)
            proofs = {row["key_id"]: row["proof_ct"] for row in await vault_keys.list_all(connection)}
            self._prove(proofs)
            key_id = self._vault.key_id
            if key_id not in proofs:
                proof = self._vault.seal(key_id, _place(key_id))
                await vault_keys.add(connection, {"key_id": key_id, "proof_ct": proof, "created_at": self._clock.now()})

    def _prove(self, proofs: dict[str, bytes]) -> None:
        missing = sorted(set(proofs) - set(self._vault.key_ids))
        if missing and len(missing) == len(proofs):
            raise VaultError("This vault key is not the one that this database was sealed with; nothing was changed.")
        if missing:
            raise VaultError(
                f"The vault key {missing[0]} is still in use: name its file in BIRDWIRE_VAULT_OTHER_KEY_FILES until "
                "`birdwire vault rotate` says that it may go. Nothing was changed."
            )
        for key_id, proof in proofs.items():
            self._vault.open(proof, _place(key_id))

    async def known(self) -> bool:
        """Whether a start has listed the key that seals, so that whoever serves this database can open its values."""
        async with self._database.read() as connection:
            return self._vault.key_id in {row["key_id"] for row in await vault_keys.list_all(connection)}

    async def counts(self) -> list[Count]:
        """What each key sealed, the one that seals first. It reads every sealed value's first bytes."""
        found: Counter[str] = Counter()
        async with self._database.read() as connection:
            listed = {row["key_id"] for row in await vault_keys.list_all(connection)}
            for sealed in store.SEALED:
                for begin, number in (await store.count(connection, sealed, HEAD_BYTES)).items():
                    found[begin[1:].hex()] += number
        key_ids = dict.fromkeys((*self._vault.key_ids, *sorted(listed), *sorted(found)))
        return [
            Count(key_id, found[key_id], key_id == self._vault.key_id, key_id in self._vault.key_ids, key_id in listed)
            for key_id in key_ids
        ]

    async def reseal(self, progress: Callable[[int], None]) -> int:
        """Seal anew what other keys sealed; `progress` is told how many so far. How many could not be opened.

        What a caller changes meanwhile is left as it is: it was sealed anew with that, or is met in the next round.
        """
        done, unreadable = 0, 0
        for sealed in store.SEALED:
            after: _Key | None = None
            while True:
                resealed, broken, after = await self._batch(sealed, after)
                done, unreadable = done + resealed, unreadable + broken
                if after is None:
                    break
                progress(done)
        return unreadable

    async def retire(self) -> list[str]:
        """Strike the keys that seal nothing any more off the list; their ids. After this a start does without them."""
        idle = [count.key_id for count in await self.counts() if count.known and not count.seals and not count.values]
        async with self._database.write() as connection:
            for key_id in idle:
                await vault_keys.remove(connection, key_id)
        return idle

    async def _batch(self, sealed: Sealed, after: _Key | None) -> tuple[int, int, _Key | None]:
        """One transaction: how many were met, how many cannot be opened, and where the next one begins."""
        new, broken = [], 0
        async with self._database.read() as connection:
            rows = await store.others(connection, sealed, head(self._vault.key_id), after, BATCH)
        for row in rows:
            place = _place_of(sealed, tuple(row[column.name] for column in sealed.key), row["gen"])
            try:
                new.append((row, self._vault.seal(self._vault.open(row["blob"], place), place)))
            except VaultError:
                broken += 1
        if new:
            async with self._database.write() as connection:
                await store.replace(connection, sealed, new)
                await self._failpoints.reach("rotation")
        last = tuple(rows[-1][column.name] for column in sealed.key) if len(rows) == BATCH else None
        return len(new), broken, last


def _place(key_id: str) -> Place:
    return Place("vault_keys", key_id, "proof_ct")


def _place_of(sealed: Sealed, key: _Key, gen: int) -> Place:
    parts = (part.hex() if isinstance(part, bytes) else str(part) for part in key)
    return Place(sealed.table.name, "/".join(parts), sealed.column.name, gen)
