"""What was asked of X and what became of it: a row for each write, durable before its answer. Words are sealed.

What must never be sent twice is written down before it is sent. While the store refuses writes, what is safe to repeat
goes on, and its rows wait in memory, as many as MOST_WAITING; then it is refused before it is sent, too. A row that the
store will never take is logged, counted and set aside.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from ulid import ULID

from birdwire.api.body import Empty, check
from birdwire.api.errors import GatewayError
from birdwire.api.messages import Answer
from birdwire.outcomes.leases import LEASE
from birdwire.outcomes.rejections import Rejections
from birdwire.runtime.clock import rfc3339
from birdwire.store.database import RowRefusedError, StorageDownError
from birdwire.store.encryption.vault import Place, VaultError
from birdwire.store.tables import journal as store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import RowMapping

    from birdwire.keys.context import CallContext
    from birdwire.outcomes.leases import ProcessLeases
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.telemetry import Telemetry
    from birdwire.store.database import Database
    from birdwire.store.encryption.vault import Vault

State = Literal["started", "confirmed", "refused", "not_sent", "unknown", "found", "not_found"]
Outcome = Literal["confirmed", "refused", "not_sent", "unknown"]
Why = Literal["looking", "no_read", "several_match", "too_many_posts", "not_linked", "not_in_timeline", "upload"]

DELETE = "delete_twitter"
DONE = ("confirmed", "found")
FIRST_LOOK = timedelta(seconds=2)
MOST_WAITING = 10_000
_AT_ONCE = 500
_TOGETHER = 100

_HALVES = {
    "confirmed": "X carried out the write, but the outcome could not be recorded",
    "refused": "X refused the write, but the outcome could not be recorded",
    "not_sent": "nothing was sent to X",
    "unknown": "X may have carried out the write, but the outcome could not be recorded",
}


@dataclass(slots=True)
class Entry:
    """One write asked of X: who asks, through which account, for what; what X bills for it, in millionths of a dollar.

    `sought` is how a post is told in a timeline (see timeline.py), for operations that must never be sent twice.
    """

    request_id: str
    key_id: str
    user_id: str
    operation: str
    target: str
    asked: bytes
    cost: int | None = None
    sought: str | None = field(default=None, repr=False)


def fingerprint(operation: str, fields: Mapping[str, Any]) -> bytes:
    """What a write asks for, whatever its white space and the order of its members; what files hold is left out."""
    return hashlib.sha256(f"{operation}\n{_in_order(fields)}".encode()).digest()


_in_order = json.JSONEncoder(sort_keys=True).encode  # made once: `json.dumps` would make one for each call


class Journal:
    """The journal of one database."""

    def __init__(
        self, database: Database, vault: Vault, presence: ProcessLeases, clock: Clock, telemetry: Telemetry
    ) -> None:
        self._database = database
        self._vault = vault
        self._presence = presence
        self._clock = clock
        self._telemetry = telemetry
        self.rejections = Rejections(clock)
        self._waiting: dict[str, tuple[str, dict[str, Any]]] = {}
        self._flushing = asyncio.Lock()
        self.ended: Counter[str] = Counter()
        """Writes by their outcome, since the start."""
        self.refused = 0
        """Rows that the database refused and that were set aside, since the start."""

    @property
    def waiting(self) -> int:
        """How many rows wait in memory for the store to take them."""
        return len(self._waiting)

    def open(self, entry: Entry) -> Record:
        """The record of one write.

        Raises:
            GatewayError: storage_unavailable: there is no room for it, and nothing may be sent.
        """
        if len(self._waiting) >= MOST_WAITING:
            raise _unrecorded("not_sent")
        return Record(self, entry)

    async def begin(self, entry: Entry) -> None:
        """Write down that a write is about to be sent."""
        now = self._clock.now()
        row = {
            **_row(entry),
            "state": "started",
            "words_ct": None if entry.sought is None else self._seal(entry, entry.sought),
            "owner": self._presence.me,
            "created_at": now,
            "due_at": now + LEASE,
        }
        try:
            await self._database.append(store.ADD, row)
        except StorageDownError as error:
            if isinstance(error, RowRefusedError):
                self._set_aside(entry.request_id, "started")
            raise _unrecorded("not_sent") from None

    async def end(self, entry: Entry, outcome: Outcome, values: dict[str, Any], *, begun: bool) -> None:
        """Write down what became of it; a row that was not begun is added."""
        self.ended[outcome] += 1
        now = self._clock.now()
        data = dict(values["data"]) if values.get("data") else None
        words = data.pop("text", None) if data and begun else None
        values = values | {"data": data, "state": outcome, "settled_at": now}
        if outcome == "confirmed":
            if begun and data is not None:
                values["x_id"] = data.get("id") or data.get("media_id")
            elif entry.operation == DELETE and data is not None and data.get("deleted"):
                values["x_id"] = entry.target
        elif outcome == "unknown" and begun:
            words = entry.sought
            values |= {"settled_at": None, "lost_at": now, **_to_look(entry, now)}
        if words is not None:
            values["words_ct"] = self._seal(entry, words)
        if begun:
            await self._settle(entry, outcome, values)
        else:
            await self._add({**_row(entry), **values, "created_at": now})
        if values.get("reason") == "duplicate_post":  # evidence that a lost one was done
            await self.hurry(entry.user_id)

    async def _add(self, row: dict[str, Any]) -> None:
        if not self._waiting:  # else the store is down: trying it again with each call would hold all of them up
            try:
                await self._database.append(store.ADD, row)
            except RowRefusedError:
                self._set_aside(row["request_id"], row["state"])
                return
            except StorageDownError:
                pass
            else:
                return
        self._waiting[row["request_id"]] = ("add", row)

    async def _settle(self, entry: Entry, outcome: Outcome, values: dict[str, Any]) -> None:
        row = store.settled(entry.request_id, values)
        try:
            await self._database.append(store.SETTLE, row)
        except StorageDownError as error:
            if isinstance(error, RowRefusedError):  # the row still says `started`, and is looked after as a lost one
                self._set_aside(entry.request_id, outcome)
            else:
                self._waiting[entry.request_id] = ("settle", row)
            raise _unrecorded(outcome) from None

    def _set_aside(self, request_id: str, state: str) -> None:
        """Log and count a row that the database refuses: it would be refused for ever."""
        self.refused += 1
        self._telemetry.event("error", "journal_row_refused", request_id=request_id, state=state)

    async def hurry(self, user_id: str) -> None:
        """Look for an account's lost posts now: somebody asks, or X called a post a duplicate, of one maybe."""
        with contextlib.suppress(StorageDownError):  # then it is only looked for a little later
            async with self._database.write() as connection:
                await store.hurry(connection, user_id, self._clock.now())

    async def flush(self) -> None:
        """Write down what had to wait; due every second.

        Raises:
            StorageDownError: the store refuses writes still.
        """
        async with self._flushing:
            while self._waiting:
                batch = list(self._waiting.items())[:_TOGETHER]
                results = await asyncio.gather(*(self._write(*item) for item in batch), return_exceptions=True)
                for fault in results:
                    if fault is not None:
                        raise fault

    async def _write(self, request_id: str, waits: tuple[str, dict[str, Any]]) -> None:
        """Write one row that had to wait. The rows of a batch share a transaction, and one that is refused fails alone.

        Raises:
            StorageDownError: the store refuses writes still.
        """
        kind, row = waits
        try:
            await self._database.append(store.ADD if kind == "add" else store.SETTLE, row)
        except RowRefusedError:
            # An added row may be there already: the answer of the commit that wrote it may have been lost.
            if kind == "settle" or not await self._stored(request_id):
                self._set_aside(request_id, row["state" if kind == "add" else "new_state"])
        if self._waiting.get(request_id) is waits:
            del self._waiting[request_id]

    async def _stored(self, request_id: str) -> bool:
        async with self._database.read() as connection:
            return await store.get(connection, request_id) is not None

    async def close(self) -> None:
        """Try once more to write down what waits; what the store does not take is lost, as the log has said."""
        with contextlib.suppress(StorageDownError):
            await self.flush()

    async def purge(self, keep: timedelta) -> None:
        """Drop what is older, a few rows a transaction, so that nobody waits long."""
        before = self._clock.now() - keep
        dropped = _AT_ONCE
        while dropped == _AT_ONCE:
            async with self._database.write() as connection:
                dropped = await store.purge(connection, f"req_{ULID.from_datetime(before)}", before, _AT_ONCE)
            await asyncio.sleep(0)

    async def find(self, request_id: str) -> dict[str, Any] | None:
        """A row as it is known here, with the data as it was answered.

        Raises:
            StorageDownError: the database does not answer.
        """
        async with self._database.read() as connection:
            found = await store.get(connection, request_id)
        row = None if found is None else dict(found)
        kind, waits = self._waiting.get(request_id, ("", {}))
        if kind == "add":
            row = dict.fromkeys(store.journal.c.keys()) | waits
        elif kind == "settle" and row is not None:
            row |= {name.removeprefix("new_"): value for name, value in waits.items() if name.startswith("new_")}
        if row is not None and row["data"] is not None and row["words_ct"] is not None and row["state"] in DONE:
            row["data"] = {**row["data"], "text": self.words(row)}
        return row

    def words(self, row: Mapping[str, Any] | RowMapping) -> str | None:
        """What is sealed in a row: how a post is told in a timeline, or, once X has it, its text."""
        if row["words_ct"] is None:
            return None
        try:
            return self._vault.open(row["words_ct"], _place(row["request_id"]))
        except VaultError:  # changed at rest
            return None

    def sealed(self, request_id: str, words: str) -> bytes:
        """Words for a row; half a character, which only X could send, becomes `?`, as in an answer."""
        return self._vault.seal(words.encode("utf-8", "replace").decode(), _place(request_id))

    async def request(self, context: CallContext) -> Answer:
        """What became of one write of the key's, or of a call that was refused here: GET requests/{request_id}.

        Raises:
            GatewayError: request_not_found; another key's requests are none either.
        """
        check(context.parsed.fields, Empty)
        key, request_id = context.key, context.call.path.rsplit("/", 1)[-1]
        row = await self.find(request_id)
        if row is not None and row["key_id"] == key.key_id:
            return Answer.of(told(row))
        rejection = self.rejections.find(key.key_id, request_id)
        if rejection is None:
            raise GatewayError("request_not_found")
        return Answer.of(rejection)

    async def asked_later(self, entry: Entry, operation: str) -> bool:
        """Whether any process was asked later to do `operation` to the same target, and may have done it.

        Raises:
            StorageDownError: nobody knows.
        """
        async with self._database.read() as connection:
            return await store.newer(connection, entry.request_id, entry.user_id, operation, entry.target)

    async def knows_of_post(self, user_id: str, post_id: str) -> tuple[bool, bool]:
        """Whether an account made a post through this gateway, and whether it deleted it.

        Raises:
            StorageDownError: the database does not answer.
        """
        async with self._database.read() as connection:
            operations = {row["operation"] for row in await store.of_post(connection, user_id, post_id)}
        return "post_twitter" in operations, DELETE in operations

    def _seal(self, entry: Entry, words: str) -> bytes:
        return self.sealed(entry.request_id, words)


class Record:
    """One write on its way: opened, begun if it must never be sent twice, ended."""

    def __init__(self, journal: Journal, entry: Entry) -> None:
        self._journal = journal
        self._entry = entry
        self._begun = False

    async def begin(self) -> None:
        """Write down, durably, that it is about to be sent.

        Raises:
            GatewayError: storage_unavailable; then nothing may be sent.
        """
        await self._journal.begin(self._entry)
        self._begun = True

    @property
    def begun(self) -> bool:
        """Whether it was written down as about to be sent: from then on it may have been."""
        return self._begun

    async def confirmed(self, status: int, data: dict[str, Any]) -> None:
        """X did it, and said so. On the disk when this returns, unless it is safe to repeat and the store is down.

        Raises:
            GatewayError: storage_unavailable: it was begun, and its end could not be written down.
        """
        values = {"status": status, "data": data}
        await self._journal.end(self._entry, "confirmed", values, begun=self._begun)

    async def failed(self, error: GatewayError) -> GatewayError:
        """It was refused, not sent, or nobody knows; the error as the caller must hear it.

        Raises:
            GatewayError: storage_unavailable: it was begun, and its end could not be written down.
        """
        if self._begun and error.outcome == "unknown":
            error = GatewayError("outcome_unknown", outcome="unknown", upstream=error.upstream)
        values = {"status": error.problem.status, "reason": error.reason}
        await self._journal.end(self._entry, error.outcome, values, begun=self._begun)
        return error


def told(row: Mapping[str, Any] | RowMapping) -> dict[str, Any]:
    """A row as its caller hears it; what is not known is null."""
    settled_at, cost = row["settled_at"], _cost(row)
    return {
        **{name: row[name] for name in ("request_id", "operation", "state", "status", "reason", "data")},
        "created_at": rfc3339(row["created_at"]),
        "settled_at": None if settled_at is None else rfc3339(settled_at),
        "why": row["why"],
        "cost_usd": None if cost is None else cost / 1_000_000,
    }


def _cost(row: Mapping[str, Any] | RowMapping) -> int | None:
    """What X bills for it: nothing for what was not sent, its list's price for what it did; else not known."""
    if row["state"] in DONE:
        cost: int | None = row["cost_microusd"]
        return cost
    return 0 if row["state"] == "not_sent" else None


def _row(entry: Entry) -> dict[str, Any]:
    """The columns that are known from the start; what a row leaves out is null."""
    return {
        "request_id": entry.request_id,
        "key_id": entry.key_id,
        "user_id": entry.user_id,
        "operation": entry.operation,
        "target": entry.target,
        "asked": entry.asked,
        "cost_microusd": entry.cost,
        "looks": 0,
        "reads": 0,
    }


def _to_look(entry: Entry, now: datetime) -> dict[str, Any]:
    """When a lost write is first looked for, or why it never is."""
    if entry.sought is not None:
        return {"why": "looking", "due_at": now + FIRST_LOOK}
    return {"why": "upload" if entry.operation == "upload_media" else "not_in_timeline"}


def _place(request_id: str) -> Place:
    return Place("journal", request_id, "words_ct")


def _unrecorded(outcome: Outcome) -> GatewayError:
    """The store is down. What X did cannot be looked up later, so it is unknown to a caller that asks again."""
    known: Literal["refused", "not_sent", "unknown"] = "unknown" if outcome == "confirmed" else outcome
    return GatewayError("storage_unavailable", half=_HALVES[outcome], outcome=known)
