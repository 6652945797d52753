"""What a gateway asks of its store again and again, or at its start, costs the same however much is in it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest_asyncio
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine

from birdwire.store import idempotency, journal, sessions
from birdwire.store.db import Database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection

NOW = datetime(2026, 4, 18, tzinfo=UTC)


class Plans:
    """A connection to a new SQLite file, and how the engine would carry out what was asked over it."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self._asked: list[tuple[str, Any]] = []

    def heard(self, _connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        """Remember a statement."""
        self._asked.append((statement, parameters))

    async def scans(self) -> list[str]:
        """The steps that walk through a whole table."""
        asked, self._asked = self._asked, []
        steps = []
        for statement, parameters in asked:
            found = await self.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            steps += [str(step) for step in found.scalars(3)]
        self._asked.clear()
        assert steps
        return [step for step in steps if step.startswith("SCAN") and "INDEX" not in step]


@pytest_asyncio.fixture
async def plans(tmp_path: Path) -> AsyncIterator[Plans]:
    """Over a schema as a start makes it."""
    path = tmp_path / "birdwire.db"
    database = Database(f"sqlite:///{path}")
    await database.prepare(upgrade=True)
    await database.close()
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with engine.connect() as connection:
        found = Plans(connection)
        event.listen(engine.sync_engine, "before_cursor_execute", found.heard)
        yield found
    await engine.dispose()


async def test_the_sweep_walks_through_no_table(plans: Plans) -> None:
    """Every few seconds: sessions of revoked keys, links that nobody confirmed, tokens to be revoked."""
    await sessions.of_revoked_keys(plans.connection, "x")
    await sessions.unconfirmed(plans.connection, "x", NOW)
    await sessions.due_revocations(plans.connection, "x", NOW, 50)
    assert await plans.scans() == []


async def test_looking_after_the_journal_walks_through_no_table(plans: Plans) -> None:
    """Every second, and every minute: what is due, what is too old."""
    await journal.due(plans.connection, NOW, 50)
    await journal.hasten(plans.connection, NOW)
    await journal.unknown_of(plans.connection, "1", 50)
    await journal.purge(plans.connection, "req_01", NOW, 500)
    await idempotency.forget(plans.connection, NOW, 500)
    assert await plans.scans() == []
