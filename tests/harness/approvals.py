"""Decisions on writes that wait for a person, made by a process of their own, as the command line makes them."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from birdwire.api.errors import PROBLEMS, GatewayError, describe
from birdwire.gateway.guardrails.approvals import Approvals
from birdwire.gateway.guardrails.guards import read_guard
from birdwire.gateway.guardrails.spending import Spending
from birdwire.outcomes.approval_records import ApprovalRecords
from birdwire.startup import open_vault
from birdwire.store.database import Database
from birdwire.store.encryption.text_marks import TextMarks
from birdwire.store.tables import acts, journal
from birdwire.store.tables import approvals as store
from birdwire.x.catalog.prices import Prices
from harness.gateway import API
from harness.guarded_gateway import ADA, OPERATOR, set_rules

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Mapping

    import httpx2

    from birdwire.gateway.guardrails.policy import Guard
    from birdwire.store.encryption.vault import Vault
    from birdwire.store.tables.acts import ActRow
    from birdwire.store.tables.approvals import ApprovalRow
    from birdwire.store.tables.journal import JournalRow
    from harness.gateway import RunningGateway

TTL_S = 3_600


@dataclass
class Desk:
    """A gateway with a key, and the operator's own process on its database."""

    running: RunningGateway
    database: Database
    vault: Vault
    approvals: Approvals = field(init=False)
    records: ApprovalRecords = field(init=False)

    def __post_init__(self) -> None:
        clock, database = self.running.clock, self.database
        self.records = ApprovalRecords(database, self.vault, self.row, clock)
        spending = Spending(database, self._guard, TextMarks(database, self.vault, clock), Prices.load(), clock)
        telemetry = self.running.gateway.telemetry
        self.approvals = Approvals(database, self.records, spending, telemetry, clock, TTL_S)

    async def _guard(self, key_id: str) -> Guard | None:
        async with self.database.read() as connection:
            return await read_guard(connection, key_id, ADA)

    async def rules(self, rules: Mapping[str, Any] | None, scope: str = "") -> None:
        """Set the policy of a scope: the gateway's key, if none is given."""
        await set_rules(self.database, scope or self.running.key_id, rules)

    async def ask(self, body: Mapping[str, Any], name: str = "post_twitter", **options: Any) -> dict[str, Any]:
        """Ask for a write that waits; return the member `approval` of its answer."""
        answer = await self.running.call(name, dict(body), **options)
        assert answer.status_code == 202, answer.text
        return dict(answer.json()["approval"])

    async def post(self, text: str = "Good morning") -> dict[str, Any]:
        """Ask for a post."""
        return await self.ask({"text": text})

    async def cancel(self, request_id: str) -> httpx2.Response:
        """Cancel a request over HTTP, as its key."""
        return await self.running.call(f"requests/{request_id}/cancel")

    async def report(self, request_id: str) -> dict[str, Any]:
        """Return the report of a request, as its caller reads it."""
        answer = await self.running.client.get(f"{API}requests/{request_id}")
        return dict(answer.raise_for_status().json())

    async def until(self, request_id: str, state: str) -> dict[str, Any]:
        """Wait until a request is in a state; return its report. A background task of the gateway brings it there."""
        async with asyncio.timeout(30):
            while await self.state(request_id) != state:  # noqa: ASYNC110 - nothing else reports it
                await asyncio.sleep(0.05)
        return await self.report(request_id)

    async def row(self, request_id: str) -> JournalRow | None:
        """Return a row of the journal."""
        async with self.database.read() as connection:
            return await journal.get(connection, request_id)

    async def state(self, request_id: str) -> str:
        """Return the state of a request."""
        row = await self.row(request_id)
        assert row is not None
        return str(row.state)

    async def approval(self, request_id: str) -> ApprovalRow:
        """Return a row of the approvals."""
        async with self.database.read() as connection:
            row = await store.get(connection, request_id)
        assert row is not None
        return row

    async def waiting(self) -> int:
        """Return how many writes of any key wait for a decision."""
        async with self.database.read() as connection:
            return await store.count_waiting(connection)

    async def acts(self) -> list[ActRow]:
        """Return the acts on requests of the gateway's key, oldest first."""
        async with self.database.read() as connection:
            found = await acts.listed(connection, self.running.key_id, None, 1_000)
        return [act for act in reversed(found) if act.act.startswith(("approval.", "deletion."))]

    async def approve(self, asked: Mapping[str, Any]) -> ApprovalRow:
        """Approve what an answer states."""
        return await self.approvals.approve(asked["request_id"], asked["payload_sha256"], OPERATOR)

    async def refused(self, decision: Awaitable[object]) -> GatewayError:
        """Make a decision that must be refused; return the error, whose texts are filled."""
        with pytest.raises(GatewayError) as caught:
            await decision
        error = caught.value
        assert error.reason in PROBLEMS
        assert "unknown" not in " ".join(describe(error))
        return error


@contextlib.asynccontextmanager
async def desk(running: RunningGateway, rules: Mapping[str, Any] | None = None) -> AsyncIterator[Desk]:
    """Open the operator's process on a gateway's database; every write of its key waits, or what the rules state."""
    database = Database(running.settings.database_url)
    try:
        made = Desk(running, database, open_vault(running.settings))
        await made.rules({"approve": "*"} if rules is None else rules)
        yield made
    finally:
        await database.close()


@contextlib.asynccontextmanager
async def other_key(running: RunningGateway, *, linked: bool = True) -> AsyncIterator[str]:
    """Let the gateway's client use a new key, which is linked to the same account; yield its id."""
    before = running.key_id, running.raw_key
    key, running.raw_key = await running.gateway.keys.create("test", "another", "growth")
    running.key_id = key.key_id
    running.client.headers["authorization"] = f"Bearer {running.raw_key}"
    try:
        if linked:
            await running.link("ada")
        yield key.key_id
    finally:
        running.key_id, running.raw_key = before
        running.client.headers["authorization"] = f"Bearer {running.raw_key}"
