"""Writes that wait for a person, and the signed links by which a person decides on them."""

from __future__ import annotations

import contextlib
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from birdwire.gateway.guardrails.approvals import hash_token
from birdwire.runtime.clock import Clock
from birdwire.store.database import Database
from birdwire.store.tables import approvals as store
from birdwire.store.tables.journal import journal
from harness.guarded_gateway import OPERATOR, set_rules
from harness.linking import HTML

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import httpx2

    from harness.gateway import RunningGateway

FORM = "application/x-www-form-urlencoded"
ASK_ALWAYS = {"approve": "*"}


@dataclass
class Asking:
    """A gateway with a key whose writes wait for a person, and its database."""

    running: RunningGateway
    database: Database
    tokens: list[str] = field(default_factory=list)

    async def ask(self, body: Mapping[str, Any], name: str = "post_twitter", **options: Any) -> str:
        """Ask for a write, which waits; return its request."""
        answer = await self.running.call(name, dict(body), **options)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["approval"]["request_id"])

    async def link_to(self, request_id: str) -> str:
        """Make a signed link as `birdwire approvals link` stores it; return the path of its page."""
        token = secrets.token_urlsafe(20)
        self.tokens.append(token)
        async with self.database.write() as connection:
            await store.add_link(connection, hash_token(token), request_id, OPERATOR.who, Clock().now())
        return f"/approve/{token}"

    async def page_of(self, body: Mapping[str, Any], name: str = "post_twitter", **options: Any) -> str:
        """Ask for a write, and return the path of its page."""
        return await self.link_to(await self.ask(body, name, **options))

    async def get(self, path: str, **headers: str) -> httpx2.Response:
        """Open a page as a browser does."""
        return await self.running.bare.get(path, headers=HTML | headers)

    async def press(self, path: str, verdict: str, *, sha256: str = "", **fields: str) -> httpx2.Response:
        """Press a button of a page as it is now, or was when it had another hash."""
        sent = {"verdict": verdict, "payload_sha256": sha256 or hash_on(await self.get(path)), **fields}
        return await self.running.bare.post(path, data=sent, headers=HTML | {"sec-fetch-site": "same-origin"})

    async def state_of(self, path: str) -> str:
        """Return the state of a page's request in the journal."""
        async with self.database.read() as connection:
            link = (await store.links(connection, [hash_token(path.split("/")[2])])).popitem()[1]
            query = select(journal.c.state).where(journal.c.request_id == link.request_id)
            return str((await connection.execute(query)).scalar_one())

    async def links_used(self) -> int:
        """Return how many signed links have decided."""
        async with self.database.read() as connection:
            found = await store.links(connection, list(map(hash_token, self.tokens)))
        return sum(link.used_at is not None for link in found.values())


@contextlib.asynccontextmanager
async def asking(running: RunningGateway, rules: Mapping[str, Any] = ASK_ALWAYS) -> AsyncIterator[Asking]:
    """Set the rules of the gateway's key, link ada to it, and open its database beside it."""
    database = Database(running.settings.database_url)
    try:
        await set_rules(database, running.key_id, rules)
        await running.link("ada")
        running.bare.cookies.clear()
        yield Asking(running, database)
    finally:
        await database.close()


def hash_on(page: httpx2.Response) -> str:
    """Return the hash that a page's forms name."""
    found = set(re.findall(r'name="payload_sha256" value="([0-9a-f]{64})"', page.text))
    assert len(found) == 1, page.text
    return str(found.pop())
