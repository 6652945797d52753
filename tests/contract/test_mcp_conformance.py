"""The conformance suite of the Model Context Protocol ends as its list states, scenario by scenario."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from harness import mcp_conformance
from harness.javascript import require_node
from harness.mcp_conformance import Check, Expected, surprises
from harness.mcp_proxy import adding_key

if TYPE_CHECKING:
    from pathlib import Path

    from harness.gateway import RunningGateway

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


@pytest.mark.timeout(240)
async def test_the_suite_ends_as_its_list_states(linked: RunningGateway, tmp_path: Path) -> None:
    """Over 200 checks pass, those of scenarios that need no fixture without exception; the others have a reason."""
    require_node()
    results = tmp_path / "results"
    results.mkdir()
    async with adding_key(linked.settings.base_url, linked.raw_key) as proxy:
        checks = await mcp_conformance.run_all(f"{proxy}/mcp", results)
    expected = Expected.read()
    assert surprises(checks, expected) == []
    assert {check.run for check in checks} == set(mcp_conformance.RUNS)
    assert sum(expected.passed.values()) > 200
    for scenario in WHOLE:
        statuses = {check.status for check in checks if check.scenario == scenario}
        assert "SUCCESS" in statuses, scenario
        assert statuses <= {"SUCCESS", "INFO"}, scenario
    for scenario, reason in NEEDS_A_FIXTURE.items():
        own = [check for check in checks if check.scenario == scenario]
        assert any(check.status == "SUCCESS" for check in own)
        unmet = [check.name for check in own if check.status in mcp_conformance.UNMET]
        assert unmet
        assert all(expected.reasons[name].startswith(reason) for name in unmet)


def test_any_other_result_is_a_surprise() -> None:
    """A check that fails or warns unlisted, a listed one that passes, one that did not run, and an unknown name."""
    expected = Expected({"b:two": "A reason."}, {"usual": 1})
    passes, fails = Check("usual", "a", "a:one", "SUCCESS", ""), Check("usual", "b", "b:two", "FAILURE", "no")
    neutral = [Check("usual", "a", "a:three", "SKIPPED", ""), Check("usual", "a", "a:four", "INFO", "")]
    assert surprises([passes, fails, *neutral], expected) == []
    assert surprises([passes, fails._replace(status="WARNING")], expected) == []
    missing = "usual: 0 checks passed, and the list states 1"
    assert surprises([fails], expected) == [missing]
    assert surprises([passes._replace(status="SKIPPED"), fails], expected) == [missing]
    for status in ("FAILURE", "WARNING"):
        found = surprises([passes._replace(status=status, message="why"), fails], expected)
        assert found == [f"usual: a:one is not listed: {status}: why", missing]
    unused = "b:two is listed, and no run has it"
    assert surprises([passes], expected) == [unused]
    found = surprises([passes, fails._replace(status="SUCCESS")], expected)
    assert found[:2] == ["usual: b:two passes and must leave the list", unused]


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
