"""Caches learn of changes by other processes immediately, and are not trusted while they cannot."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from sqlalchemy import bindparam, text, update

from birdwire.store.database import ALL, Database
from birdwire.store.engines.change_feed import KEPT_ROWS, TRIM_EVERY
from birdwire.store.tables import api_keys, x_sessions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncConnection

    from harness.engines import Postgres

pytestmark = pytest.mark.engines("sqlite", "postgres")

NOW = datetime(2026, 4, 18, 7, tzinfo=UTC)
KEY = "key_1"
SESSION = {
    "session_id": "xs_1",
    "key_id": KEY,
    "issuer": "x",
    "state": "active",
    "gen": 1,
    "access_ct": b"",
    "expires_at": NOW,
    "scopes": "",
    "created_at": NOW,
}
NOTE = (
    update(x_sessions.x_sessions)
    .where(x_sessions.x_sessions.c.session_id == bindparam("of"))
    .values(why=bindparam("note"))
)
LISTENERS = "FROM pg_stat_activity WHERE datname = current_database() AND (query LIKE 'LISTEN%' OR query = 'SELECT')"


@pytest_asyncio.fixture
async def gateway(database_url: str) -> AsyncIterator[Database]:
    """What a gateway's caches ask: the database of a key, a secret and a session."""
    async with AsyncExitStack() as stack:
        database = Database(database_url)
        stack.push_async_callback(database.close)
        await database.prepare(upgrade=False)
        async with database.write() as connection:
            await api_keys.add(
                connection, {"key_id": KEY, "mode": "test", "label": "", "tier": "free", "created_at": NOW}
            )
            await api_keys.add_secret(connection, {"secret_hash": b"1", "key_id": KEY, "hint": "", "created_at": NOW})
            await x_sessions.add(connection, SESSION)
        await settled(database)
        yield database


@pytest_asyncio.fixture
async def other(database_url: str) -> AsyncIterator[Database]:
    """What another process has of it."""
    database = Database(database_url)
    yield database
    await database.close()


async def settled(database: Database) -> None:
    """Poll until every change has been reported."""
    async with asyncio.timeout(20):
        while database.changed():  # noqa: ASYNC110 - a server answers
            await asyncio.sleep(0)


async def told(database: Database) -> object:
    """Return the next reported change."""
    async with asyncio.timeout(20):
        while not (changed := database.changed()):  # noqa: ASYNC110 - another process tells
            await asyncio.sleep(0)
        return changed


CHANGES: dict[str, Callable[[AsyncConnection], Awaitable[Any]]] = {
    "a key's limit": lambda connection: api_keys.change(connection, KEY, {"rpm": 7}),
    "a key's end": lambda connection: api_keys.revoke(connection, KEY, NOW),
    "a secret's end": lambda connection: api_keys.expire_secret(connection, b"1", NOW),
    "a new secret": lambda connection: api_keys.add_secret(
        connection, {"secret_hash": b"2", "key_id": KEY, "hint": "", "created_at": NOW}
    ),
    "a new link": lambda connection: x_sessions.add(connection, SESSION | {"session_id": "xs_2"}),
    "a new pair of tokens": lambda connection: x_sessions.change(connection, "xs_1", 1, {"gen": 2}),
    "a link's end": lambda connection: x_sessions.remove(connection, "xs_1"),
}


@pytest.mark.trust("G4")
@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_by_another_process_is_reported(
    gateway: Database, other: Database, engine: str, change: str
) -> None:
    """On one file at the very next question, on PostgreSQL as soon as the notification is here."""
    async with other.write() as connection:
        await CHANGES[change](connection)
    assert (gateway.changed() if engine == "sqlite" else await told(gateway)) == {KEY}
    assert not gateway.changed()


async def test_a_rolled_back_change_is_not_announced(gateway: Database, other: Database) -> None:
    """A change is announced with its commit."""

    async def fail() -> None:
        async with other.write() as connection:
            await api_keys.change(connection, "key_2", {"rpm": 7})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with other.write() as connection:
        await api_keys.change(connection, KEY, {"rpm": 7})
    assert await told(gateway) == {KEY}


async def test_a_write_for_an_old_generation_announces_no_change(gateway: Database, other: Database) -> None:
    """A write that finds another generation changes nothing."""
    async with other.write() as connection:
        assert not await x_sessions.change(connection, "xs_1", 9, {"gen": 10})
        await api_keys.change(connection, "key_2", {"rpm": 7})
    assert await told(gateway) == {"key_2"}


async def test_the_first_answer_is_that_everything_may_have_changed(gateway: Database, other: Database) -> None:
    """A new process trusts nothing from before, and begins to listen with its first question."""
    del gateway
    assert other.changed() is ALL
    await settled(other)


@pytest.mark.engines("sqlite")
async def test_a_process_behind_the_trimmed_change_feed_drops_its_caches(gateway: Database, other: Database) -> None:
    """The past is trimmed; a process stopped meanwhile must not take the rest for all."""
    async with other.write() as connection:
        for number in range(3):
            await api_keys.change(connection, f"key_{number}", {"rpm": 7})
        await connection.execute(text("DELETE FROM changes WHERE key_id = 'key_0'"))
    assert gateway.changed() is ALL
    assert not gateway.changed()


@pytest.mark.engines("sqlite")
async def test_the_past_is_trimmed_now_and_then(gateway: Database) -> None:
    """It keeps as much as it promises, and TRIM_EVERY rows more at most."""
    later = KEPT_ROWS + 2 * TRIM_EVERY
    async with gateway.write() as connection:
        await api_keys.change(connection, KEY, {"rpm": 7})
        await connection.execute(text("INSERT INTO changes VALUES (:number, 'key_2')"), {"number": later - 1})
        await api_keys.change(connection, KEY, {"rpm": 8})
        numbers = (await connection.execute(text("SELECT number FROM changes ORDER BY number"))).scalars().all()
    assert numbers == [later - 1, later]


@pytest.mark.engines("sqlite")
async def test_saves_in_one_transaction_trim_the_past_too(gateway: Database) -> None:
    """Also when the number at which it is due is not the last of them."""
    later = KEPT_ROWS + 2 * TRIM_EVERY
    async with gateway.write() as connection:
        await connection.execute(text("INSERT INTO changes VALUES (:number, 'key_2')"), {"number": later - 2})
    saves = (gateway.save(NOTE, {"of": "xs_1", "note": str(number)}, KEY) for number in range(3))
    assert all(await asyncio.gather(*saves))
    async with gateway.read() as connection:
        numbers = (await connection.execute(text("SELECT number FROM changes ORDER BY number"))).scalars().all()
    assert numbers == [later - 2, later - 1, later, later + 1]


@pytest.mark.engines("sqlite")
async def test_a_file_that_cannot_be_asked_makes_no_cache_trusted(database_url: str) -> None:
    """The table or the file is missing; either way nothing is known."""
    database = Database(database_url)
    assert [database.changed(), database.changed()] == [ALL, ALL]
    await database.close()


@pytest.mark.engines("postgres")
@pytest.mark.trust("G4")
async def test_a_lost_listener_makes_no_cache_trusted(gateway: Database, other: Database) -> None:
    """Changes missed while the listener is down are covered by distrust once it listens again."""
    async with other.write() as connection:
        await connection.execute(text(f"SELECT pg_terminate_backend(pid) {LISTENERS}"))
    assert await told(gateway) is ALL
    await settled(gateway)
    async with other.write() as connection:
        await api_keys.change(connection, KEY, {"rpm": 7})
    assert await told(gateway) == {KEY}


@pytest.mark.engines("postgres")
@pytest.mark.trust("F15", "G4")
async def test_no_cache_is_trusted_while_the_server_is_unavailable(gateway: Database, postgres: Postgres) -> None:
    """A revoked key must not live on in a memory; afterwards all is heard again."""
    postgres.stop()
    try:
        assert await told(gateway) is ALL
        assert [gateway.changed() for _ in range(3)] == [ALL] * 3
    finally:
        postgres.start()
    await settled(gateway)


@pytest.mark.engines("postgres")
@pytest.mark.trust("G4")
async def test_a_listener_that_hears_nothing_is_noticed(gateway: Database, other: Database) -> None:
    """A connection whose peer vanished silently looks alive: only an answer proves that it is."""
    async with other.read() as connection:
        process = (await connection.execute(text(f"SELECT pid {LISTENERS}"))).scalar_one()
    os.kill(process, signal.SIGSTOP)
    try:
        assert await told(gateway) is ALL
    finally:
        os.kill(process, signal.SIGCONT)
    await settled(gateway)


@pytest.mark.engines("postgres")
async def test_short_commands_open_no_listener(gateway: Database, other: Database) -> None:
    """Commands of a moment open no connection for it, and a gateway just one."""
    await settled(gateway)
    async with other.read() as connection:
        assert (await connection.execute(text(f"SELECT count(*) {LISTENERS}"))).scalar_one() == 1
