"""Gateways under policies and pauses: what tests set, and what the database and X show afterwards."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import select

from birdwire.keys.registry import Keys
from birdwire.runtime.clock import Clock
from birdwire.store.database import Database
from birdwire.store.schema import metadata
from birdwire.store.tables import acts, pauses, policies
from birdwire.store.tables.journal import State, Why, journal
from birdwire.store.tables.usage import usage
from birdwire.x.catalog.prices import Prices
from harness.gateway import API
from harness.processes import deploy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping
    from pathlib import Path

    import httpx2

    from harness.processes import Deployment, GatewayProcess

Author = Literal["operator", "owner"]

ADA, ALAN = "2244994945", "2244994947"
ACCOUNT = f"account:{ADA}"
GATEWAY = "gateway"
OPERATOR = acts.Actor("tester", "cli")
LIVE = frozenset({"processes", "changes"})
"""Tables that change without a call: the leases of running processes, and the change feed of SQLite."""

POST_MICROUSD, UNLIKE_MICROUSD = 15_000, 10_000
"""The listed prices of a post without a link, and of an unlike."""

ROOM = {"max_calls": "2000", "max_calls_each": "1000", "max_calls_queued": "1000", "max_calls_each_queued": "1000"}
"""Settings under which hundreds of concurrent calls are not an overload."""


async def set_rules(
    database: Database,
    scope: str,
    rules: Mapping[str, Any] | None,
    *,
    author: Author = "operator",
    enforcement: Literal["enforce", "shadow"] = "enforce",
) -> int:
    """Add a version of a scope's policy, announce it, and return its number. Nothing checks the rules; None unsets."""
    now = datetime.now(UTC)
    async with database.write() as connection:
        known = await policies.latest(connection, [scope])
        version = 1 + max((row.version for row in known if row.author == author), default=0)
        given = None if rules is None else dict(rules)
        row = policies.PolicyRow(scope, author, version, enforcement, None, given, now, OPERATOR.who)
        assert await policies.append(connection, row)
        await acts.append(connection, now, OPERATOR, "policy.unset" if rules is None else "policy.set", scope)
    return version


async def pause(database: Database, scope: str, *, author: Author = "operator", why: str = "a drill") -> None:
    """Pause a scope and announce it."""
    now = datetime.now(UTC)
    async with database.write() as connection:
        await pauses.put(connection, pauses.PauseRow(scope, author, now, None, why, OPERATOR.who))
        await acts.append(connection, now, OPERATOR, "paused", scope)


async def resume(database: Database, scope: str, *, author: Author = "operator") -> None:
    """Lift a pause and announce it."""
    async with database.write() as connection:
        await pauses.lift(connection, scope, author)
        await acts.append(connection, datetime.now(UTC), OPERATOR, "resumed", scope)


async def used(database: Database, scope: str, measure: str) -> dict[str, int]:
    """Return what a scope has used of a measure, by window."""
    query = select(usage.c.window, usage.c.amount).where(usage.c.scope == scope, usage.c.measure == measure)
    async with database.read() as connection:
        return {row.window: row.amount for row in await connection.execute(query)}


async def used_today(database: Database, scope: str, measure: str = "usd") -> int:
    """Return what a scope has used of a measure in windows of a day."""
    return sum(amount for window, amount in (await used(database, scope, measure)).items() if len(window) == 10)


async def rows_of(database: Database, key_id: str) -> list[Any]:
    """Return a key's rows of the journal, in their order."""
    query = select(journal).where(journal.c.key_id == key_id).order_by(journal.c.request_id)
    async with database.read() as connection:
        return list(await connection.execute(query))


async def searching(database: Database) -> bool:
    """Return whether a write has no outcome yet that could still be found."""
    lost = (journal.c.state == State.UNKNOWN) & (journal.c.why == Why.LOOKING)
    query = select(journal.c.request_id).where((journal.c.state == State.STARTED) | lost)
    async with database.read() as connection:
        return (await connection.execute(query.limit(1))).first() is not None


async def contents(database: Database, without: Iterable[str] = LIVE) -> dict[str, list[str]]:
    """Return every row of every table, as text in a fixed order."""
    left_out = frozenset(without)
    async with database.read() as connection:
        return {
            table.name: sorted([repr(tuple(row)) for row in await connection.execute(select(table))])
            for table in metadata.sorted_tables
            if table.name not in left_out
        }


def hidden_forms(text: str) -> tuple[bytes, ...]:
    """Return a text as a careless program may store it: plain, as escaped JSON, as hexadecimal and as base64."""
    raw = text.encode()
    # A base64 text depends on where in its group of three bytes it starts.
    shifted = [base64.b64encode(b"x" * shift + raw)[4:-4] for shift in range(3)]
    return raw, json.dumps(text)[1:-1].encode(), raw.hex().encode(), raw.hex().upper().encode(), *shifted


async def places_of(database: Database, texts: Iterable[str]) -> list[str]:
    """Return `table.column` of each value that contains one of these texts in clear."""
    forms = [form for text in texts for form in hidden_forms(text)]
    found = []
    async with database.read() as connection:
        # The change feed is a table on SQLite only, and has nothing but the ids of scopes.
        for table in (one for one in metadata.sorted_tables if one.name != "changes"):
            for row in (await connection.execute(select(table))).mappings():
                for name, value in row.items():
                    raw = bytes(value) if isinstance(value, bytes | bytearray) else _text(value).encode()
                    if any(form in raw for form in forms):
                        found.append(f"{table.name}.{name}")
    return found


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


@dataclass
class Holder:
    """The holder of an API key, which is linked to an account."""

    key_id: str
    headers: dict[str, str]


@dataclass
class GuardedDeployment:
    """Some replicas on one database. `database` works on it as the command line does."""

    deployment: Deployment
    database: Database
    replicas: list[GatewayProcess] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def holder(self, username: str = "ada") -> Holder:
        """Create a key and link it to an account."""
        key, raw_key = await Keys(self.database, Clock()).create("test", "guarded", "custom", 1_000_000)
        self.deployment.raw_keys.append(raw_key)
        made = Holder(key.key_id, {"authorization": f"Bearer {raw_key}"})
        await self.deployment.link(self.replicas[0], username, **made.headers)
        self.deployment.client.cookies.clear()
        return made

    async def call(self, replica: int, holder: Holder, name: str, body: object) -> httpx2.Response:
        """Send a call of a key's holder to one replica."""
        url = self.replicas[replica % len(self.replicas)].url
        return await self.deployment.client.post(url + API + name, json=body, headers=holder.headers)

    async def post(self, replica: int, holder: Holder, text: str) -> httpx2.Response:
        """Publish a post through one replica."""
        return await self.call(replica, holder, "post_twitter", {"text": text})

    def new_text(self) -> str:
        """Return a text that no other post has."""
        return f"Note {next(self._numbers)} of a guarded key"

    async def statuses(self, holder: Holder) -> list[dict[str, Any]]:
        """Return the answer of auth/status at each replica."""
        client = self.deployment.client
        answers = [await client.get(f"{at.url}{API}auth/status", headers=holder.headers) for at in self.replicas]
        return [dict(answer.raise_for_status().json()) for answer in answers]

    async def calls(self, method: str, path: str, since: int = 0) -> list[dict[str, Any]]:
        """Return the calls that X received, from the sandbox's own log."""
        calls = (await self.deployment.x.get(f"/_sandbox/calls?since={since}")).json()["calls"]
        return [call for call in calls if call["method"] == method and call["path"].startswith(path)]

    async def last_call(self) -> int:
        """Return the number of the last call that X received."""
        return max((call["n"] for call in await self.calls_since(0)), default=0)

    async def calls_since(self, number: int) -> list[dict[str, Any]]:
        """Return every call that X received after this one."""
        return list((await self.deployment.x.get(f"/_sandbox/calls?since={number}")).json()["calls"])

    async def texts_at_x(self) -> set[str]:
        """Return the texts of all posts that X has."""
        return {post["text"] for post in (await self.deployment.x.get("/_sandbox/state")).json()["posts"]}


@contextlib.asynccontextmanager
async def guarded(directory: Path, url: str, replicas: int = 1, **settings: str) -> AsyncIterator[GuardedDeployment]:
    """Start a sandbox and some replicas on a database, and stop them."""
    async with deploy(directory, url) as deployment, contextlib.AsyncExitStack() as stack:
        database = Database(url)
        stack.push_async_callback(database.close)
        made = GuardedDeployment(deployment, database)
        for _ in range(replicas):
            made.replicas.append(await deployment.serve(**(ROOM | settings)))
        yield made


def price_of(operation: str) -> int:
    """Return the listed price of an operation, in millionths of a dollar; 0 if it is not listed."""
    prices: dict[str, Any] = Prices.load()._rows  # noqa: SLF001 - the test compares with the list itself
    return int(prices.get(operation) or 0)
