"""Fixtures of every test: traffic to loopback only, and a gateway with a sandbox on real sockets."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from birdwire.store.database import Database
from harness.engines import Postgres, Redis
from harness.gateway import RunningGateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


def _only_loopback(event: str, arguments: tuple[Any, ...]) -> None:
    """Fail on a connection to any other machine, by any library (PEP 578)."""
    if event != "socket.connect" or not isinstance(arguments[1], tuple):
        return
    host = str(arguments[1][0])
    if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
        pytest.fail(f"a test connects to {host}, which is not this machine")


sys.addaudithook(_only_loopback)

# A shell starts background jobs with Ctrl-C ignored, and every program that a test starts would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Start one PostgreSQL server per test process; each test creates a database. A test that stops it restarts it."""
    with closing(Postgres()) as server:
        yield server


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    """Start one Redis server per test process. A test that stops it restarts it; each test uses its own keys."""
    with closing(Redis()) as server:
        yield server


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test marked `engines` once on each of them."""
    marker = metafunc.definition.get_closest_marker("engines")
    if marker is not None and "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", marker.args)


@pytest.fixture
def engine() -> str:
    """Return the store's engine: sqlite, or the one set by the mark `engines`."""
    return "sqlite"


@pytest.fixture(scope="session")
def prepared(postgres: Postgres) -> str:
    """Create a template database with the schema: a copy takes a tenth of the time of a migration."""

    async def prepare(url: str) -> None:
        database = Database(url)
        await database.prepare(upgrade=False)
        await database.close()

    url = postgres.database()
    asyncio.run(prepare(url))
    return url.rpartition("/")[2]


@pytest.fixture
def empty_url(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Return the URL of the test's own database, without tables."""
    if engine == "sqlite":
        return f"sqlite:///{tmp_path / 'birdwire.db'}"
    return str(request.getfixturevalue("postgres").database())


@pytest.fixture
def database_url(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Return the URL of the test's own new database."""
    if engine == "sqlite":
        return f"sqlite:///{tmp_path / 'birdwire.db'}"
    template = request.getfixturevalue("prepared")
    return str(request.getfixturevalue("postgres").database(template))


@pytest_asyncio.fixture
async def running(tmp_path: Path, database_url: str) -> AsyncIterator[RunningGateway]:
    """Start a fresh gateway and sandbox, with one key and no linked account."""
    async with RunningGateway.built(tmp_path, database_url=database_url) as built:
        yield built


@pytest_asyncio.fixture
async def linked(running: RunningGateway) -> RunningGateway:
    """Link ada to the key of the fresh gateway."""
    await running.link("ada")
    return running


@pytest_asyncio.fixture
async def confirming(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    """Start a gateway whose links wait for confirmation by the key's holder."""
    async with RunningGateway.built(tmp_path, link_mode="confirm") as built:
        yield built


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["lane", "app"])
async def shared_gateway(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[RunningGateway]:
    """Start one linked gateway for a module of tests without side effects, through the lane and the app alone.

    Its rate limit is high enough not to interfere.
    """
    lane = request.param == "lane"
    async with RunningGateway.built(tmp_path_factory.mktemp("running"), rpm=1_000_000, lane=lane) as built:
        await built.link("ada")
        yield built
