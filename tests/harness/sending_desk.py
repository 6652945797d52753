"""An operator's desk: asks for writes under a policy, decides on them as the operator does, and reads how they end."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import select, update

from birdwire.gateway.guardrails.approvals import Approvals
from birdwire.gateway.guardrails.guards import read_guard
from birdwire.gateway.guardrails.spending import Spending
from birdwire.outcomes.approval_records import ApprovalRecords
from birdwire.startup import open_vault
from birdwire.store.database import Database
from birdwire.store.encryption.text_marks import TextMarks
from birdwire.store.tables import approvals as store
from birdwire.store.tables import journal
from birdwire.store.tables.journal import WAITING, State
from birdwire.store.tables.usage import usage
from birdwire.x.catalog.prices import Prices
from harness.gateway import API
from harness.guarded_gateway import OPERATOR, set_rules

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import httpx2

    from birdwire.gateway.guardrails.policy import Guard
    from birdwire.outcomes.approval_records import Waiting
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.telemetry import Telemetry
    from birdwire.settings import Settings
    from birdwire.store.tables.journal import JournalRow
    from harness.gateway import RunningGateway

ENDS_S = 15.0
POLL_S = 0.05
OPEN = WAITING | {State.STARTED}


def operator(
    database: Database, settings: Settings, telemetry: Telemetry, clock: Clock
) -> tuple[Approvals, ApprovalRecords]:
    """Return the approvals of a database as another process, such as the command line, has them."""
    vault = open_vault(settings)

    async def guard_of(key_id: str) -> Guard | None:
        async with database.read() as connection:
            return await read_guard(connection, key_id, None)

    async def find(request_id: str) -> JournalRow | None:
        async with database.read() as connection:
            return await journal.get(connection, request_id)

    records = ApprovalRecords(database, vault, find, clock)
    spending = Spending(database, guard_of, TextMarks(database, vault, clock), Prices.load(), clock)
    return Approvals(database, records, spending, telemetry, clock, settings.approval_ttl_s), records


@dataclass
class SendingDesk:
    """The operator of one running gateway. `database` is another process's view of its database."""

    running: RunningGateway
    database: Database
    approvals: Approvals
    records: ApprovalRecords

    @classmethod
    @contextlib.asynccontextmanager
    async def opened(cls, running: RunningGateway, rules: Mapping[str, Any] | None = None) -> AsyncIterator[Self]:
        """Open the desk of a gateway, under whose key's policy these rules hold."""
        database = Database(running.settings.database_url)
        try:
            parts = operator(database, running.settings, running.gateway.telemetry, running.clock)
            desk = cls(running, database, *parts)
            if rules is not None:
                await desk.rule(rules)
            yield desk
        finally:
            await database.close()

    async def rule(self, rules: Mapping[str, Any] | None) -> None:
        """Set the rules of the gateway's key."""
        await set_rules(self.database, self.running.key_id, rules)

    async def ask(self, operation: str, body: Mapping[str, Any], name: str | None = None) -> str:
        """Ask for a write that needs a person; return its request id."""
        headers = {} if name is None else {"idempotency-key": name}
        answer = await self.running.call(operation, dict(body), headers=headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["approval"]["request_id"])

    async def waiting(self, request_id: str) -> Waiting:
        """Return a request that waits or waited."""
        found = await self.records.find(request_id)
        assert found is not None
        return found

    async def approve(self, request_id: str) -> None:
        """Approve what is shown of a request."""
        row = (await self.waiting(request_id)).row
        await self.approvals.approve(request_id, row.payload_sha256, OPERATOR)

    async def change(self, request_id: str, **values: Any) -> None:
        """Change columns of a request's approval, as nothing but a fault or another process would."""
        async with self.database.write() as connection:
            await store.change(connection, request_id, values)

    async def change_row(self, request_id: str, **values: Any) -> None:
        """Change columns of a request's row in the journal."""
        async with self.database.write() as connection:
            query = update(journal.journal).where(journal.journal.c.request_id == request_id)
            await connection.execute(query.values(values))

    async def report(self, request_id: str) -> dict[str, Any]:
        """Return how a request stands: the report that its caller gets, read from the database."""
        entry = (await self.waiting(request_id)).entry
        return {"state": entry.state, "reason": entry.reason, "data": entry.data, "x_id": entry.x_id}

    async def ended(self, request_id: str, within_s: float = ENDS_S) -> dict[str, Any]:
        """Return how a request stands once it has ended."""
        return await self.until(request_id, lambda state: state not in OPEN, within_s)

    async def until(self, request_id: str, is_met: Any, within_s: float = ENDS_S) -> dict[str, Any]:
        """Return how a request stands once its state is as wanted."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + within_s
        while True:
            found = await self.report(request_id)
            if is_met(found["state"]):
                return found
            assert loop.time() < ends_at, f"{request_id}: {found}"
            await asyncio.sleep(POLL_S)

    async def tried(self, request_id: str, within_s: float = ENDS_S) -> Waiting:
        """Return an approved request once a gateway has tried to send it, and will try again."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + within_s
        while True:
            found = await self.waiting(request_id)
            if found.entry.state is State.APPROVED and found.row.due_at != found.row.decided_at:
                return found
            assert found.entry.state in OPEN, found.entry
            assert loop.time() < ends_at, found.row
            await asyncio.sleep(POLL_S)

    async def http_report(self, request_id: str) -> dict[str, Any]:
        """Return the answer of GET requests/{id} to the holder of the key."""
        answer = await self.running.client.get(f"{API}requests/{request_id}")
        return dict(answer.raise_for_status().json())

    async def repeated(self, name: str, operation: str, body: Mapping[str, Any]) -> httpx2.Response:
        """Repeat a call under its Idempotency-Key."""
        return await self.running.call(operation, dict(body), headers={"idempotency-key": name})

    async def sends(self) -> list[str]:
        """Return the writes that X received, as `METHOD /path`."""
        calls = await self.running.calls("/2/")
        return [f"{call['method']} {call['path']}" for call in calls if _is_write(call)]

    async def spent(self, measure: str = "usd") -> int:
        """Return what the key has used of a measure in windows of a day."""
        query = select(usage.c.window, usage.c.amount).where(
            usage.c.scope == self.running.key_id, usage.c.measure == measure
        )
        async with self.database.read() as connection:
            return sum(row.amount for row in await connection.execute(query) if len(row.window) == len("2026-01-01"))

    async def in_journal(self) -> int:
        """Return what the rows of the key say that they have spent, in millionths of a dollar."""
        rows = journal.journal
        query = select(rows.c.spent).where(rows.c.key_id == self.running.key_id)
        async with self.database.read() as connection:
            spent = [found for found in (await connection.execute(query)).scalars() if found]
        return sum(
            amount for row in spent for _, _, measure, window, amount in row if measure == "usd" and _day(window)
        )

    async def event(self, name: str) -> dict[str, Any]:
        """Return the gateway's only event of a name, once it is logged: the end of a request is stored before."""
        for _ in range(100):
            if self.events(name):
                break
            await asyncio.sleep(POLL_S)
        (found,) = self.events(name)
        return found

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the gateway's events of a name, in their order."""
        lines = [json.loads(line) for line in self.running.log.getvalue().splitlines()]
        return [line for line in lines if line.get("event") == name]


def _day(window: str) -> bool:
    return len(window) == len("2026-01-01")


def _is_write(call: Mapping[str, Any]) -> bool:
    path = str(call["path"])
    return call["method"] != "GET" and not path.startswith(("/2/oauth2/", "/2/media/"))
