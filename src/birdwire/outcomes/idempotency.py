"""Idempotency-Key: one call is done once, and its answer told again (IETF draft-ietf-httpapi-idempotency-key-header).

A row says that a call began before anything is done: neither a second caller nor a crash can make it happen twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from ulid import ULID

from birdwire.api.errors import GatewayError
from birdwire.api.messages import Answer
from birdwire.keys.registry import KEY_FORM
from birdwire.outcomes.journal import DONE
from birdwire.store.database import StorageDownError
from birdwire.store.encryption.vault import Place, VaultError
from birdwire.store.tables import idempotency as store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.api.forms import Part
    from birdwire.api.messages import Call
    from birdwire.outcomes.journal import Journal
    from birdwire.outcomes.leases import ProcessLeases
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database
    from birdwire.store.encryption.vault import Vault

KEPT_FOR = timedelta(hours=24)
MOST_LATE = 10_000
_AT_ONCE = 500
REPLAYED = (("idempotent-replayed", "true"),)

_FORM = re.compile(r"[\x20-\x7e]{1,255}")


def name_of(call: Call) -> str | None:
    """The call's Idempotency-Key; `"k"` and `k` are one.

    Raises:
        GatewayError: idempotency_key_malformed.
    """
    given = call.header_values("idempotency-key")
    if not given:
        return None
    name = given[0].strip(" \t")
    if len(name) > 1 and name[0] == name[-1] == '"':
        name = name[1:-1]
    if len(given) > 1 or not _FORM.fullmatch(name):
        raise GatewayError("idempotency_key_malformed")
    if KEY_FORM.search(name):  # it serves as a name, but is not stored
        return f"sha256 {hashlib.sha256(name.encode()).hexdigest()}"
    return name


def new_name() -> str:
    """A key for a caller that sent none, so that the outcome can be asked for."""
    return f"idem_{ULID()}"


def fingerprint(operation: str, fields: Mapping[str, Any], files: Iterable[Part]) -> bytes:
    """Return a digest of what a call asks for, whatever its white space, the order of its members, or its path.

    Only the last part of an operation's name counts (`confirm` of `auth/confirm`): stored fingerprints were made so.
    """
    digest = hashlib.sha256(operation.rpartition("/")[2].encode())
    digest.update(json.dumps(fields, sort_keys=True).encode())
    for part in files:
        digest.update(f"\n{part.name}\n{part.size}\n".encode() + part.digest)
    return digest.digest()


class Named(NamedTuple):
    """A call with an Idempotency-Key: whose key, the name, what it asks for, and which request it is."""

    key_id: str
    name: str
    asked: bytes
    request_id: str
    repeatable: bool


class Idempotency:
    """The calls of one database that have an Idempotency-Key, for 24 hours; each API key has its own.

    What became of a call that must not be repeated is the journal's to say; here stands only whose name it is.
    """

    def __init__(
        self, database: Database, vault: Vault, journal: Journal, presence: ProcessLeases, clock: Clock
    ) -> None:
        self._database = database
        self._vault = vault
        self._journal = journal
        self._presence = presence
        self._clock = clock
        self._late: dict[Named, dict[str, Any] | None] = {}

    async def begin(self, call: Named) -> Answer | None:
        """None: this is the first, and it is written down that it began. Else the answer of the first.

        Raises:
            GatewayError: idempotency_in_flight, idempotency_key_reused, outcome_unknown, not_applied.
        """
        now = self._clock.now()
        begun = {**call._asdict(), "owner": self._presence.me, "state": "started", "created_at": now}
        async with self._database.write() as connection:
            if await store.add(connection, begun):
                return None
            row = await store.find(connection, call.key_id, call.name)
            if row is None:  # it was freed in between
                raise _in_flight()
            if row["created_at"] < now - KEPT_FOR:
                await self._take(connection, row, begun)
                return None
            if row["asked"] != call.asked:
                raise GatewayError("idempotency_key_reused")
            runs = row["state"] == "started" and await self._presence.runs(connection, row["owner"], row["request_id"])
            if row["repeatable"] and row["state"] == "started" and not runs:  # cut off: again does no harm
                await self._take(connection, row, begun)
                return None
        if row["state"] == "kept":
            with contextlib.suppress(VaultError):  # changed at rest, or its vault key is missing: ask the journal
                body = json.loads(self._vault.open(row["body"], _place(call.key_id, call.name)))
                return Answer.of(body, row["status"], REPLAYED)
        return await self._of_journal(row, begun, runs=runs)

    async def _take(self, connection: AsyncConnection, row: RowMapping, begun: dict[str, Any]) -> None:
        if not await store.change(connection, row, begun | {"status": None, "body": None}):
            raise _in_flight()  # another caller was quicker

    async def _of_journal(self, row: RowMapping, begun: dict[str, Any], *, runs: bool) -> Answer | None:
        """Answer from the journal: no kept answer can be read, and the call must not simply be repeated.

        A call that has a kept answer finished. If the journal does not know it, it is unknown, even where repeating
        does no harm by itself: an opposite call may have come since, which a repetition would undo.
        """
        known = await self._journal.find(row["request_id"])
        state = known["state"] if known else None
        if known is not None and state in DONE:
            return Answer.of({"data": known["data"]}, known["status"], REPLAYED)
        if known is not None and state == "not_found":
            raise GatewayError("not_applied", headers=REPLAYED)
        if runs and state in (None, "started"):
            raise _in_flight()
        if known is not None and state in ("started", "unknown"):
            await self._journal.hurry(known["user_id"])
            raise GatewayError("outcome_unknown", outcome="unknown", headers=REPLAYED)
        if known is None and row["state"] == "kept":
            raise GatewayError("outcome_unknown", outcome="unknown", headers=REPLAYED)
        await self._take_over(row, begun)
        return None

    async def _take_over(self, row: RowMapping, begun: dict[str, Any]) -> None:
        """Do what was refused, not sent, or cut off before it was sent; the process that began it may only be slow.

        That process writes into the journal and then looks whether the name is still its own (`hold`); here the name is
        taken first, and the journal read then. So at least one of the two sees the other, and does not send.
        """
        async with self._database.write() as connection:
            await self._take(connection, row, begun)
        known = await self._journal.find(row["request_id"])
        if known is not None and known["state"] not in ("refused", "not_sent"):
            async with self._database.write() as connection:
                await store.change(connection, begun, {"request_id": row["request_id"], "state": "unknown"})
            raise GatewayError("outcome_unknown", outcome="unknown", headers=REPLAYED)

    async def hold(self, key_id: str, request_id: str) -> None:
        """See, after the journal was written, that the call still has its name.

        Raises:
            GatewayError: idempotency_in_flight: this process was so slow that another took the call over.
            GatewayError: storage_unavailable: nobody can tell, so nothing may be sent.
        """
        if self._presence.sure:
            return
        try:
            async with self._database.read() as connection:
                holds = await store.holds(connection, key_id, request_id)
        except StorageDownError:
            raise GatewayError("storage_unavailable", half="nothing was sent to X") from None
        if not holds:
            raise _in_flight()

    async def keep(self, call: Named, answer: Answer) -> None:
        """The call is answered for good. The answer is sealed: it may hold a link's state, or the words of a post."""
        body = self._vault.seal(answer.body.decode(), _place(call.key_id, call.name))
        await self._end(call, {"state": "kept", "status": answer.status, "body": body})

    async def lose(self, call: Named) -> None:
        """Nobody knows what became of the call: it must never be done again under this name."""
        await self._end(call, {"state": "unknown"})

    async def release(self, call: Named) -> None:
        """Nothing was done, or doing it again does no harm: the name is free."""
        await self._end(call, None)

    async def _end(self, call: Named, values: dict[str, Any] | None) -> None:
        if not self._journal.waiting:  # else the store is down, and the caller need not wait for it twice
            try:
                await self._write(call, values)
            except StorageDownError:
                pass
            else:
                return
        if len(self._late) < MOST_LATE:  # the row says that it runs, which is safe, until `tidy` can correct it
            self._late[call] = values

    async def _write(self, call: Named, values: dict[str, Any] | None) -> None:
        async with self._database.write() as connection:
            if values is None:
                await store.remove(connection, call.key_id, call.name, call.request_id)
            else:
                await store.settle(connection, call.key_id, call.name, call.request_id, values)

    async def tidy(self) -> None:
        """Write down the ends that the store did not take; forget what is a day old, a few rows a transaction.

        Raises:
            StorageDownError: the store refuses writes still.
        """
        for call in list(self._late):
            values = self._late[call] = self._late.pop(call)  # to the end, so that a refused one delays no other
            await self._write(call, values)
            del self._late[call]
        dropped = _AT_ONCE
        while dropped == _AT_ONCE:
            async with self._database.write() as connection:
                dropped = await store.forget(connection, self._clock.now() - KEPT_FOR, _AT_ONCE)


def _in_flight() -> GatewayError:
    return GatewayError("idempotency_in_flight", retry_after_s=1)


def _place(key_id: str, name: str) -> Place:
    return Place("idempotency", f"{key_id}/{name}", "body")
