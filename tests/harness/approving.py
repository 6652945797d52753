"""Gateways at which writes wait for a person: what their callers ask, how a person decides, and what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select

from birdwire.api.messages import new_request_id
from birdwire.outcomes.approval_payload import Payload
from birdwire.outcomes.entry import Entry
from birdwire.runtime.clock import Clock
from birdwire.runtime.telemetry import Telemetry
from birdwire.settings import Settings
from birdwire.store.tables import approvals, journal
from birdwire.store.tables.journal import STATES, State
from harness.gateway import API
from harness.guarded_gateway import (
    ADA,
    OPERATOR,
    POST_MICROUSD,
    ROOM,
    GuardedDeployment,
    Holder,
    guarded,
    set_rules,
)
from harness.sending_desk import operator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection
    from datetime import datetime
    from pathlib import Path

    import httpx2

    from birdwire.gateway.guardrails.approvals import Approvals
    from birdwire.outcomes.approval_records import ApprovalRecords
    from birdwire.store.database import Database
    from harness.processes import GatewayProcess

POSTS_WAIT = {"approve": ["post_twitter"]}
LIKES_WAIT = {"approve": ["like_twitter", "unlike_twitter", "retweet_twitter"]}
HASH = re.compile(r'name="payload_sha256" value="([0-9a-f]{64})"')
"""Where the page of a signed link has the hash of what it shows."""


@dataclass(frozen=True)
class Asked:
    """A request that waits: its id, and the hash of what it asks for."""

    request_id: str
    sha256: str

    @classmethod
    def of(cls, answer: httpx2.Response) -> Asked:
        """Return the request of a 202."""
        assert answer.status_code == 202, answer.text
        found = answer.json()["approval"]
        return cls(found["request_id"], found["payload_sha256"])


@dataclass
class ApprovingDeployment:
    """Some replicas, and the operator's own functions on their database, `desk`, as the command line has them."""

    guarded: GuardedDeployment
    desk: Approvals
    records: ApprovalRecords

    @property
    def database(self) -> Database:
        """The database of the deployment."""
        return self.guarded.database

    @property
    def replicas(self) -> list[GatewayProcess]:
        """The running gateways."""
        return self.guarded.replicas

    async def holder(self, rules: dict[str, Any] | None = None, username: str = "ada") -> Holder:
        """Create a linked key whose rules ask about posts, or other rules."""
        holder = await self.guarded.holder(username)
        await set_rules(self.database, holder.key_id, POSTS_WAIT if rules is None else rules)
        for at in self.replicas:
            await self.until_ruled(at, holder)
        return holder

    async def until_ruled(self, at: GatewayProcess, holder: Holder) -> None:
        """Wait until a gateway knows the rules of a key."""
        async with asyncio.timeout(10):
            while (await self._get(at, holder, "auth/status")).json()["rules"] is None:  # noqa: ASYNC110 - other processes learn of it
                await asyncio.sleep(0.02)

    async def _get(self, at: GatewayProcess, holder: Holder, name: str, **headers: str) -> httpx2.Response:
        return await self.guarded.deployment.client.get(f"{at.url}{API}{name}", headers=holder.headers | headers)

    async def call(
        self, at: GatewayProcess, holder: Holder, name: str, body: dict[str, Any], **headers: str
    ) -> httpx2.Response:
        """Send a call; underscores in the names of headers are hyphens."""
        given = holder.headers | {header.replace("_", "-"): value for header, value in headers.items()}
        return await self.guarded.deployment.client.post(f"{at.url}{API}{name}", json=body, headers=given)

    async def ask(self, at: GatewayProcess, holder: Holder, text: str, **headers: str) -> Asked:
        """Ask for a post."""
        return Asked.of(await self.call(at, holder, "post_twitter", {"text": text}, **headers))

    async def report(self, at: GatewayProcess, holder: Holder, request_id: str, **headers: str) -> dict[str, Any]:
        """Return what GET requests/{id} reports."""
        answer = await self._get(at, holder, f"requests/{request_id}", **headers)
        return dict(answer.raise_for_status().json())

    async def link(self, request_id: str) -> str:
        """Make a signed link and return its path."""
        token, _ = await self.desk.make_link(request_id, OPERATOR)
        return f"/approve/{token}"

    async def open_link(self, at: GatewayProcess, path: str) -> str:
        """Open a signed link as a browser does, and return the hash of what it shows."""
        page = await self.guarded.deployment.client.get(at.url + path, headers={"accept": "text/html"})
        found = HASH.search(page.raise_for_status().text)
        assert found is not None, page.text
        return found[1]

    async def press(self, at: GatewayProcess, path: str, sha256: str, verdict: str = "approve") -> httpx2.Response:
        """Press a button of the page of a signed link, and return the answer to a client that asks for JSON."""
        form = {"verdict": verdict, "payload_sha256": sha256}
        return await self.guarded.deployment.client.post(
            at.url + path, data=form, headers={"accept": "application/json"}
        )

    async def states(self, request_ids: Collection[str]) -> dict[str, Any]:
        """Return the journal's rows of requests, by their ids."""
        query = select(journal.journal).where(journal.journal.c.request_id.in_(request_ids))
        async with self.database.read() as connection:
            return {row.request_id: row for row in await connection.execute(query)}

    async def rows_since(self, key_ids: Collection[str], since: datetime) -> list[Any]:
        """Return the journal's rows of keys that were made since a time."""
        table = journal.journal
        query = select(table).where(table.c.key_id.in_(key_ids), table.c.created_at >= since)
        async with self.database.read() as connection:
            return list(await connection.execute(query))

    async def until_ended(self, request_ids: Collection[str], seconds: float) -> dict[str, Any]:
        """Wait until each request has ended, or its outcome is known to be unknown; return the journal's rows."""
        async with asyncio.timeout(seconds):
            while True:
                rows = await self.states(request_ids)
                if all(STATES[State(row.state)].final for row in rows.values()):
                    return rows
                await asyncio.sleep(0.1)

    async def posted(self, prefix: str) -> list[str]:
        """Return the texts of all posts at X that start so, each as often as it is there."""
        posts = (await self.guarded.deployment.x.get("/_sandbox/state")).json()["posts"]
        return [post["text"] for post in posts if post["text"].startswith(prefix)]

    async def restart(self, number: int, **settings: str) -> GatewayProcess:
        """Kill a gateway, if it still runs, and start another one in its place."""
        await self.replicas[number].kill()
        self.replicas[number] = await self.guarded.deployment.serve(**(ROOM | settings))
        return self.replicas[number]


@contextlib.asynccontextmanager
async def approving(
    directory: Path, url: str, replicas: int = 1, **settings: str
) -> AsyncIterator[ApprovingDeployment]:
    """Start a sandbox, some replicas, and the operator's functions on their database."""
    async with guarded(directory, url, replicas, **settings) as place:
        clock, given = Clock(), Settings.model_validate(place.deployment.settings)
        desk, records = operator(place.database, given, Telemetry(io.StringIO(), clock, "error"), clock)
        yield ApprovingDeployment(place, desk, records)


async def fill(database: Database, records: ApprovalRecords, key_id: str, count: int) -> None:
    """Let this many posts of a key wait, without asking a gateway; they expire in an hour."""
    now = Clock().now()
    expires_at = now + timedelta(hours=1)
    for start in range(0, count, 500):
        entries, rows = [], []
        for number in range(start, min(start + 500, count)):
            request_id = new_request_id()
            payload = Payload("post_twitter", ADA, {"text": f"One of many that wait {number}"})
            entry = Entry(request_id, key_id, ADA, payload.operation, "", b"asked", POST_MICROUSD)
            entries.append(records.waiting_row(entry, State.AWAITING_APPROVAL))
            row: dict[str, Any] = {"request_id": request_id, "key_id": key_id, "user_id": ADA, "username": "ada"}
            row |= {"session_id": None, "operation": payload.operation, "payload_sha256": payload.sha256}
            row |= {"payload_ct": records.seal_payload(request_id, payload), "approve_by": "operator"}
            row |= {"cost_microusd": POST_MICROUSD, "ordered": False, "expires_at": expires_at, "due_at": expires_at}
            rows.append(row)
        async with database.write() as connection:
            await connection.execute(journal.ADD, entries)
            await connection.execute(insert(approvals.approvals), rows)
