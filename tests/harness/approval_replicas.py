"""What a gateway process has of writes that wait for a person: its journal, names and records, on a shared database."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from birdwire.keys.registry import Keys
from birdwire.outcomes.approval_payload import Payload
from birdwire.outcomes.approval_records import ApprovalRecords
from birdwire.outcomes.entry import Approved, Entry
from birdwire.outcomes.idempotency import Idempotency, Named
from birdwire.outcomes.journal import Journal, Record
from birdwire.outcomes.process_leases import ProcessLeases
from birdwire.outcomes.reconciler import SCOPES, Reconciler
from birdwire.runtime.telemetry import Telemetry
from birdwire.store.database import Database
from birdwire.store.encryption.vault import Vault
from birdwire.store.tables import approvals, idempotency, journal
from birdwire.store.tables.journal import JournalRow, State
from harness.gateway import MovableClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime

    from birdwire.store.tables.approvals import ApprovalRow

PRICE = 15_000
SECRET = "kingfisher at dawn"
SIGNATURE = f'["{SECRET}", null, null, null]'
IMAGE = b"\x89PNG " + SECRET.encode() + bytes(range(256))


@dataclass
class Replica:
    """One gateway process without its servers. Its clock and vault may be shared."""

    database: Database
    clock: MovableClock
    vault: Vault
    leases: ProcessLeases
    journal: Journal
    records: ApprovalRecords
    once: Idempotency
    key_id: str = ""

    @classmethod
    @contextlib.asynccontextmanager
    async def started(
        cls, database_url: str, clock: MovableClock | None = None, vault: Vault | None = None
    ) -> AsyncIterator[Replica]:
        """Start a process that holds a lease."""
        _make_private(database_url)
        database, clock, vault = Database(database_url), clock or MovableClock(), vault or Vault(bytes(32))
        leases = ProcessLeases(database, clock)
        rows = Journal(database, vault, leases, clock, Telemetry(io.StringIO(), clock))
        records = ApprovalRecords(database, vault, rows.find, clock)
        await database.prepare(upgrade=False)
        await leases.start(alone=False)
        try:
            once = Idempotency(database, vault, rows, leases, records, clock)
            yield cls(database, clock, vault, leases, rows, records, once)
        finally:
            await database.close()

    async def new_key(self) -> str:
        """Create the key that asks."""
        key, _ = await Keys(self.database, self.clock).create("test", "test")
        self.key_id = key.key_id
        return key.key_id

    def entry(self, request_id: str, operation: str = "post_twitter", **more: Any) -> Entry:
        """Return a write as the journal gets it."""
        target = "" if operation == "post_twitter" else "2"
        signature = SIGNATURE if operation == "post_twitter" else None
        entry = Entry(request_id, self.key_id, "1", operation, target, b"asked", PRICE, signature)
        for name, value in more.items():
            setattr(entry, name, value)
        return entry

    def named(self, request_id: str, asked: bytes = b"asked", *, name: str = "k", repeatable: bool = False) -> Named:
        """Return a call under an Idempotency-Key."""
        return Named(self.key_id, name, asked, request_id, repeatable)

    async def ask(
        self,
        request_id: str,
        operation: str = "post_twitter",
        *,
        images: Sequence[bytes] = (),
        ttl: timedelta = timedelta(hours=1),
        ordered: bool = False,
        held_by: str | None = None,
    ) -> Payload:
        """Let a write wait for a person; `held_by` is the call whose Idempotency-Key it then answers for."""
        now, entry = self.clock.now(), self.entry(request_id, operation)
        finding = {"rule": "approve", "message": "a person decides"}
        fields = {"text": SECRET} if operation == "post_twitter" else {"tweet_id": "2"}
        payload = Payload(operation, "1", fields, findings=[finding])
        row: dict[str, object] = {
            "request_id": request_id,
            "key_id": self.key_id,
            "user_id": "1",
            "username": "ada",
            "session_id": "s",
            "operation": operation,
            "payload_sha256": payload.sha256,
            "payload_ct": self.records.seal_payload(request_id, payload),
            "approve_by": "operator",
            "cost_microusd": PRICE,
            "ordered": ordered,
            "expires_at": now + ttl,
            "due_at": now + ttl,
        }
        sealed = [(number, self.records.seal_file(request_id, number, data)) for number, data in enumerate(images)]
        files = [{"request_id": request_id, "number": number, "blob_ct": blob} for number, blob in sealed]
        async with self.database.write() as connection:
            await connection.execute(journal.ADD, self.records.waiting_row(entry, State.AWAITING_APPROVAL))
            await approvals.add(connection, row, files)
            if held_by is not None:
                assert await idempotency.await_person(connection, self.key_id, held_by, request_id)
        return payload

    async def approve(self, request_id: str) -> None:
        """Approve a write that waits."""
        now = self.clock.now()
        async with self.database.write() as connection:
            assert await journal.change(
                connection, request_id, {"state": State.APPROVED}, while_in=State.AWAITING_APPROVAL
            )
            decided: dict[str, object] = {"decided_at": now, "decided_by": "grace", "due_at": now}
            await approvals.change(connection, request_id, decided | {"expires_at": now + timedelta(minutes=10)})

    async def end(self, request_id: str, state: State, reason: str, status: int, **more: object) -> None:
        """End a write that was not started."""
        now = self.clock.now()
        values = {"state": state, "reason": reason, "status": status, "settled_at": now}
        row = await self.row(request_id)
        async with self.database.write() as connection:
            assert await journal.change(connection, request_id, values, while_in=row.state)
            await approvals.close(connection, request_id, now)
            if more:
                await approvals.change(connection, request_id, more)

    def record(self, request_id: str, payload: Payload, operation: str = "post_twitter", **more: Any) -> Record:
        """Return the record of an approved write, which is about to be sent."""
        expires_at = self.clock.now() + timedelta(minutes=10)
        approved = Approved(payload.sha256, expires_at)
        return self.journal.open(self.entry(request_id, operation, approved=approved, **more))

    async def row(self, request_id: str) -> JournalRow:
        """Return a write's row."""
        found = await self.journal.find(request_id)
        assert found is not None
        return found

    async def approval(self, request_id: str) -> ApprovalRow:
        """Return a write's approval."""
        async with self.database.read() as connection:
            found = await approvals.get(connection, request_id)
        assert found is not None
        return found

    async def images(self, request_id: str) -> int:
        """Return how many images of a write are kept."""
        async with self.database.read() as connection:
            return len(await approvals.files_kept(connection, request_id))

    async def vanish(self) -> None:
        """Let other processes consider this one dead: its lease is deleted, and it has not noticed."""
        await self.leases.close()

    def reconciler(self, posts: Sequence[dict[str, Any]] = ()) -> Reconciler:
        """Return a reconciler to which X shows these posts of the account."""

        async def acting_as(*_: str) -> Any:
            return SimpleNamespace(scopes=SCOPES)

        async def ask(*_: object) -> Any:
            return {"data": list(posts), "meta": {}}

        client = SimpleNamespace(user_id="1", ask=ask)
        return Reconciler(
            self.database,
            self.journal,
            self.leases,
            cast("Any", SimpleNamespace(acting_as=acting_as)),
            cast("Any", SimpleNamespace(skew=timedelta)),
            cast("Any", SimpleNamespace(open=lambda _: client)),
            self.clock,
            Telemetry(io.StringIO(), self.clock),
        )


@contextlib.asynccontextmanager
async def two_replicas(database_url: str) -> AsyncIterator[tuple[Replica, Replica]]:
    """Start two processes on one database, which share a clock, a vault and a key."""
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(Replica.started(database_url))
        second = await stack.enter_async_context(Replica.started(database_url, first.clock, first.vault))
        second.key_id = await first.new_key()
        yield first, second


def _make_private(database_url: str) -> None:
    """Make the file, if it is one, so that only its owner can read it."""
    if database_url.startswith("sqlite:///"):
        Path(database_url.removeprefix("sqlite:///")).touch(mode=0o600)


def a_post(text: str, at: datetime, post_id: str = "77") -> dict[str, Any]:
    """Return a post as X's timeline shows it."""
    return {"id": post_id, "text": text, "created_at": at.isoformat()}
