"""What every test has: traffic to loopback only, and a gateway with a sandbox on real sockets."""

from __future__ import annotations

import asyncio
import ipaddress
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
    """Refuse to connect anywhere else, whatever library asks (PEP 578)."""
    if event != "socket.connect" or not isinstance(arguments[1], tuple):
        return
    host = str(arguments[1][0])
    if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
        pytest.fail(f"a test connects to {host}, which is not this machine")


sys.addaudithook(_only_loopback)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL server for all tests of a process; each makes itself a database. Who stops it starts it again."""
    with closing(Postgres()) as server:
        yield server


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    """One Redis server for all tests of a process. Who stops it starts it again, and who fills it uses its own keys."""
    with closing(Redis()) as server:
        yield server


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what is marked `engines` once on each of them."""
    marker = metafunc.definition.get_closest_marker("engines")
    if marker is not None and "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", marker.args)


@pytest.fixture
def engine() -> str:
    """What the store runs on: sqlite, or what the mark `engines` says."""
    return "sqlite"


@pytest.fixture(scope="session")
def prepared(postgres: Postgres) -> str:
    """A database with our tables, to be copied: that takes a tenth of the time that making them takes."""

    async def prepare(url: str) -> None:
        database = Database(url)
        await database.prepare(upgrade=False)
        await database.close()

    url = postgres.database()
    asyncio.run(prepare(url))
    return url.rpartition("/")[2]


@pytest.fixture
def empty_url(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A test's own database, without tables."""
    if engine == "sqlite":
        return f"sqlite:///{tmp_path / 'birdwire.db'}"
    return str(request.getfixturevalue("postgres").database())


@pytest.fixture
def database_url(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A test's own database, new."""
    if engine == "sqlite":
        return f"sqlite:///{tmp_path / 'birdwire.db'}"
    template = request.getfixturevalue("prepared")
    return str(request.getfixturevalue("postgres").database(template))


@pytest_asyncio.fixture
async def house(tmp_path: Path, database_url: str) -> AsyncIterator[RunningGateway]:
    """A fresh gateway and sandbox, with one key and nothing linked."""
    async with RunningGateway.built(tmp_path, database_url=database_url) as built:
        yield built


@pytest_asyncio.fixture
async def linked(house: RunningGateway) -> RunningGateway:
    """The same, with ada linked to the key."""
    await house.link("ada")
    return house


@pytest_asyncio.fixture
async def confirming(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    """A house whose links wait for the key's holder."""
    async with RunningGateway.built(tmp_path, link_mode="confirm") as built:
        yield built


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["lane", "app"])
async def shared_house(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[RunningGateway]:
    """One linked house for a whole module of tests that leave no trace, by the lane and by the app alone.

    Its limit is out of the way.
    """
    lane = request.param == "lane"
    async with RunningGateway.built(tmp_path_factory.mktemp("house"), rpm=1_000_000, lane=lane) as built:
        await built.link("ada")
        yield built
