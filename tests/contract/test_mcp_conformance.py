"""The conformance suite of the Model Context Protocol ends as its list states, scenario by scenario."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from harness import mcp_conformance
from harness.gateway import RunningGateway
from harness.mcp_conformance import Check, Expected, surprises
from harness.mcp_proxy import adding_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

WHOLE = (
    "server-initialize",
    "ping",
    "tools-list",
    "dns-rebinding-protection",
    "http-header-validation",
    "input-required-result-unsupported-methods",
    "input-required-result-validate-input",
)
"""Scenarios that need no fixture at all: every check of theirs passes."""

NEEDS_A_FIXTURE = {
    "server-stateless": "It calls a tool of the suite's own fixture server.",
    "caching": "Birdwire offers tools only: no ",
    "sep-2164-resource-not-found": "Birdwire offers tools only: no resources.",
}
"""Scenarios of which a part needs a fixture, and how the reason for each check that fails starts."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def checks(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Check]]:
    """Run the whole suite once."""
    if not mcp_conformance.SUITE.exists():
        missing = "the npm packages of tests/node are missing. Run make setup-dev"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"NOT RUN: {missing}")
    async with RunningGateway.built(tmp_path_factory.mktemp("gateway"), rpm=1_000_000) as running:
        await running.link("ada")
        async with adding_key(running.settings.base_url, running.raw_key) as proxy:
            yield await mcp_conformance.run_all(f"{proxy}/mcp", tmp_path_factory.mktemp("results"))


async def test_the_suite_ends_as_its_list_states(checks: list[Check]) -> None:
    """Over 200 checks pass, and every other one is listed with its reason."""
    expected = Expected.read()
    assert surprises(checks, expected) == []
    assert sum(expected.passed.values()) > 200
    assert {check.run for check in checks} == set(mcp_conformance.RUNS)


async def test_scenarios_without_fixtures_pass(checks: list[Check]) -> None:
    """Not one of their checks fails, warns or is skipped, at any revision."""
    for scenario in WHOLE:
        statuses = {check.status for check in checks if check.scenario == scenario}
        assert "SUCCESS" in statuses, scenario
        assert statuses <= {"SUCCESS", "INFO"}, scenario
    expected = Expected.read()
    for scenario, reason in NEEDS_A_FIXTURE.items():
        own = [check for check in checks if check.scenario == scenario]
        assert any(check.status == "SUCCESS" for check in own)
        unmet = [check.name for check in own if check.status in {"FAILURE", "WARNING"}]
        assert unmet
        assert all(expected.reasons[name].startswith(reason) for name in unmet)


async def test_any_other_result_is_a_surprise(checks: list[Check]) -> None:
    """A check that fails unlisted, a listed one that passes, one that did not run, and an unknown name."""
    expected = Expected.read()
    passing = next(check for check in checks if check.status == "SUCCESS")
    failing = next(check for check in checks if check.status == "FAILURE")
    others = [check for check in checks if check.name != failing.name]

    fails = [check._replace(status="FAILURE") if check is passing else check for check in checks]
    assert [line for line in surprises(fails, expected) if f"{passing.name} is not listed" in line]

    passes = [*others, failing._replace(status="SUCCESS")]
    assert [line for line in surprises(passes, expected) if f"{failing.name} passes" in line]

    assert surprises(others, expected) == [f"{failing.name} is listed, and no run has it"]
    assert surprises([check for check in checks if check is not passing], expected)

    longer = replace(expected, reasons={**expected.reasons, "ping:pong": "It does not exist."})
    assert surprises(checks, longer) == ["ping:pong is listed, and no run has it"]


async def test_the_proxy_changes_nothing_but_the_key() -> None:
    """Host, Origin and every header of the protocol arrive as they were sent."""
    received = asyncio.get_running_loop().create_future()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.set_result(await reader.readuntil(b"}"))
        writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    head = b"POST /mcp HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\nMcp-Method: ping\r\n"
    async with server, adding_key(f"http://127.0.0.1:{port}", "KEY") as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.rpartition(":")[2]))
        writer.write(head + b"Connection: keep-alive\r\nContent-Length: 2\r\n\r\n{}")
        assert (await reader.read()).startswith(b"HTTP/1.1 202 ")
        writer.close()
    added = b"Authorization: Bearer KEY\r\nConnection: close\r\n\r\n{}"
    assert await received == head + b"Content-Length: 2\r\n" + added
