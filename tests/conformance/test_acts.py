"""Acts reach every gateway's log by the change feed: once each, in whatever order a server commits them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from birdwire.keys.cache import KeyCache
from birdwire.outcomes.acts import ActLog
from birdwire.runtime.clock import Clock
from birdwire.runtime.telemetry import Telemetry
from birdwire.store.database import Database, StorageDownError
from birdwire.store.tables import acts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncConnection

pytestmark = pytest.mark.engines("sqlite", "postgres")

BY = acts.Actor("ada", "cli")


class Listener:
    """The log of acts of one gateway."""

    def __init__(self, database: Database) -> None:
        self._log = io.StringIO()
        self._telemetry = Telemetry(self._log, Clock())
        self.acts = ActLog(database, KeyCache(database, Clock()), self._telemetry)

    def subjects(self) -> list[str]:
        """Whose acts were logged, in order."""
        self._telemetry.flush()
        return [json.loads(line)["subject"] for line in self._log.getvalue().splitlines()]

    async def hear(self, number: int) -> list[str]:
        """Run rounds until this many acts are logged."""
        async with asyncio.timeout(20):
            while len(self.subjects()) < number:
                await self.acts.round()
                await asyncio.sleep(0)
        return self.subjects()


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """One process's hands on the database."""
    database = Database(url)
    try:
        await database.prepare(upgrade=False)
        yield database
    finally:
        await database.close()


async def act(connection: AsyncConnection, subject: str) -> None:
    """Record an act."""
    await acts.append(connection, Clock().now(), BY, "key.changed", subject)


async def test_each_gateway_logs_acts_that_any_process_commits_after_its_start(database_url: str) -> None:
    """Two gateways and a command line; what was rolled back is not logged."""
    async with opened(database_url) as first, opened(database_url) as second, opened(database_url) as other:
        async with other.write() as connection:
            await act(connection, "before")
        listeners = [Listener(first), Listener(second)]
        for listener in listeners:
            await listener.acts.start()
            await listener.acts.round()
        for subject in ("one", "two"):
            async with other.write() as connection:
                await act(connection, subject)
        with contextlib.suppress(ZeroDivisionError):
            async with other.write() as connection:
                await act(connection, "undone")
                raise ZeroDivisionError
        async with first.write() as connection:
            await act(connection, "three")
        for listener in listeners:
            assert await listener.hear(3) == ["one", "two", "three"]
            await listener.acts.close()
            assert listener.subjects() == ["one", "two", "three"]


async def test_nothing_is_read_without_changes(database_url: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round of a gateway at rest costs what the feed costs."""
    if engine != "sqlite":
        monkeypatch.setattr("birdwire.store.engines.pg_notifications.PgNotifications.changed", lambda _: frozenset())
    async with opened(database_url) as database:
        listener = Listener(database)
        await listener.acts.start()
        await listener.acts.round()
        monkeypatch.setattr(Database, "read", None)
        for _ in range(3):
            await asyncio.sleep(0)
            await listener.acts.round()


@pytest.mark.engines("postgres")
async def test_an_act_that_is_committed_after_a_later_one_is_logged(database_url: str) -> None:
    """Its number is the lower, and its transaction the longer."""
    async with opened(database_url) as database, opened(database_url) as other:
        listener = Listener(database)
        await listener.acts.start()
        async with other.write() as slow:
            await act(slow, "slow")
            async with database.write() as quick:
                await act(quick, "quick")
            assert await listener.hear(1) == ["quick"]
        assert await listener.hear(2) == ["quick", "slow"]


async def test_more_acts_than_one_round_reads_are_all_logged(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next rounds go on where it stopped."""
    monkeypatch.setattr("birdwire.outcomes.acts.MAX_READ", 7)
    monkeypatch.setattr("birdwire.outcomes.acts.OVERLAP", 3)
    async with opened(database_url) as database:
        listener = Listener(database)
        await listener.acts.start()
        subjects = [f"key_{number}" for number in range(30)]
        async with database.write() as connection:
            for subject in subjects:
                await act(connection, subject)
        assert await listener.hear(30) == subjects


COPY = "acts (number, at, who, via, act, subject) SELECT number, at, 'nobody', via, act, subject FROM acts WHERE true"


async def refused(database: Database, statement: str) -> None:
    """Run a statement that the database refuses, and leave the transaction with the refusal."""
    async with database.write() as connection:
        with pytest.raises(SQLAlchemyError, match="append-only") as refusal:
            await connection.execute(text(statement))
        raise refusal.value


@pytest.mark.parametrize("change", ["update", "delete", "replace"])
async def test_the_database_refuses_to_change_an_act(database_url: str, engine: str, change: str) -> None:
    """Also where an insert replaces the row, which SQLite calls no update."""
    upsert = f"INSERT INTO {COPY} ON CONFLICT (number) DO UPDATE SET who = 'nobody'"
    statements = {
        "update": "UPDATE acts SET who = 'nobody'",
        "delete": "DELETE FROM acts",
        "replace": f"INSERT OR REPLACE INTO {COPY}" if engine == "sqlite" else upsert,
    }
    async with opened(database_url) as database:
        async with database.write() as connection:
            await act(connection, "kept")
        with pytest.raises(StorageDownError):
            await refused(database, statements[change])
        async with database.write() as connection:
            await act(connection, "next")
        async with database.read() as connection:
            rows = await acts.listed(connection, None, None, 10)
        assert [(row.subject, row.who) for row in rows] == [("next", BY.who), ("kept", BY.who)]
