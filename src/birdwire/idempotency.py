"""Idempotency-Key: one call is done once, and its answer told again (IETF draft-ietf-httpapi-idempotency-key-header).

A row says that a call began before anything is done: neither a second caller nor a crash can make it happen twice.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import timedelta
from typing import TYPE_CHECKING

from ulid import ULID

from birdwire.call import Answer
from birdwire.errors import GatewayError
from birdwire.store import idempotency as store
from birdwire.vault import Place

if TYPE_CHECKING:
    from birdwire.body import Parsed
    from birdwire.call import Call
    from birdwire.clock import Clock
    from birdwire.store.db import Database
    from birdwire.vault import Vault

KEPT_FOR = timedelta(hours=24)
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
    return name


def new_name() -> str:
    """A key for a caller that sent none, so that the outcome can be asked for."""
    return f"idem_{ULID()}"


def fingerprint(call: Call, parsed: Parsed) -> bytes:
    """What a call asks for, whatever its white space, the order of its members, or which of its paths was taken."""
    digest = hashlib.sha256(call.path.rsplit("/", 1)[-1].encode())
    digest.update(json.dumps(parsed.fields, sort_keys=True).encode())
    for part in parsed.files:
        digest.update(f"\n{part.name}\n{part.size}\n".encode())
        while chunk := part.file.read(1 << 16):
            digest.update(chunk)
        part.file.seek(0)
    return digest.digest()


class Idempotency:
    """The calls of one database that have an Idempotency-Key, for 24 hours; each API key has its own."""

    def __init__(self, database: Database, vault: Vault, clock: Clock) -> None:
        self._database = database
        self._vault = vault
        self._clock = clock
        self._running: set[tuple[str, str]] = set()

    async def begin(self, key_id: str, name: str, asked: bytes, *, repeatable: bool) -> Answer | None:
        """None: this is the first, and it is written down that it began. Else the answer of the first.

        Raises:
            GatewayError: idempotency_in_flight, idempotency_key_reused, outcome_unknown.
        """
        now = self._clock.now()
        async with self._database.write() as connection:
            await store.forget(connection, now - KEPT_FOR)
            row = await store.find(connection, key_id, name)
            if row is None:
                values = {"key_id": key_id, "name": name, "asked": asked, "repeatable": repeatable}
                if await store.add(connection, {**values, "state": "started", "created_at": now}):
                    self._running.add((key_id, name))
                    return None
                row = await store.find(connection, key_id, name)  # another process came first
        if row is None:  # and has ended meanwhile without leaving an answer
            raise GatewayError("idempotency_in_flight", retry_after_s=1)
        if row["asked"] != asked:
            raise GatewayError("idempotency_key_reused")
        if row["state"] == "started" and (key_id, name) in self._running:
            raise GatewayError("idempotency_in_flight", retry_after_s=1)
        if row["state"] == "started" and row["repeatable"]:  # its end could not be written down: again does no harm
            self._running.add((key_id, name))
            return None
        if row["state"] != "kept":  # also what was begun, and whose end could not be written down
            raise GatewayError("outcome_unknown", outcome="unknown", headers=REPLAYED)
        return Answer.of(json.loads(self._vault.open(row["body"], _place(key_id, name))), row["status"], REPLAYED)

    async def keep(self, key_id: str, name: str, answer: Answer) -> None:
        """The call is answered for good. The answer is sealed: it may hold a link's state, or the words of a post."""
        self._running.discard((key_id, name))
        body = self._vault.seal(answer.body.decode(), _place(key_id, name))
        async with self._database.write() as connection:
            await store.settle(connection, key_id, name, {"state": "kept", "status": answer.status, "body": body})

    async def lose(self, key_id: str, name: str) -> None:
        """Nobody knows what became of the call: it must never be done again under this name."""
        self._running.discard((key_id, name))
        async with self._database.write() as connection:
            await store.settle(connection, key_id, name, {"state": "unknown"})

    async def release(self, key_id: str, name: str) -> None:
        """Nothing was done, or doing it again does no harm: the name is free."""
        self._running.discard((key_id, name))
        async with self._database.write() as connection:
            await store.remove(connection, key_id, name)

    async def recover(self) -> None:
        """At start: what began and never ended may be repeated if it does no harm, and is unknown otherwise."""
        async with self._database.write() as connection:
            await store.unsettle(connection)


def _place(key_id: str, name: str) -> Place:
    return Place("idempotency", f"{key_id}/{name}", "body")
