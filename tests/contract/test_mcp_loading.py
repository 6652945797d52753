"""When the SDK of MCP is loaded: with the first admitted message, and never otherwise; and a gateway without it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from harness.gateway import RunningGateway
from harness.mcp import Agent

if TYPE_CHECKING:
    from pathlib import Path

KERNEL = "birdwire.surfaces.mcp.kernel"
PROCESS = """
import asyncio, io, json, os, sys
import httpx2
from birdwire.app import create_app
from birdwire.settings import Settings

def loaded():
    return sorted({"mcp", "mcp_types", "pydantic_settings", "jsonschema"} & set(sys.modules))

async def start():
    gateway = create_app(Settings.load(dict(os.environ)), log=io.StringIO())
    found = {"start": loaded()}
    async with gateway.app.router.lifespan_context(gateway.app):
        _, raw_key = await gateway.keys.create("live", "an agent", "growth")
        transport = httpx2.ASGITransport(app=gateway.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8787") as client:
            ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            for name, key in (("refused", raw_key[:-1] + "_"), ("served", raw_key)):
                answer = await client.post("/mcp", json=ping, headers={"authorization": f"Bearer {key}"})
                found[name] = [answer.status_code, *loaded()]
    print(json.dumps(found))

asyncio.run(start())
"""


@pytest.mark.trust("#342")
def test_a_process_loads_the_sdk_with_the_first_admitted_message(tmp_path: Path) -> None:
    """Neither a start nor a caller without a valid key loads anything of it."""
    environment = {
        "BIRDWIRE_DATABASE_URL": f"sqlite:///{tmp_path / 'birdwire.db'}",
        "BIRDWIRE_VAULT_KEY": "a2" * 21 + "a=",
        "BIRDWIRE_X_CLIENT_ID": "client",
    }
    done = subprocess.run([sys.executable, "-c", PROCESS], env=environment, capture_output=True, text=True, check=True)  # noqa: S603 - our own program
    found = json.loads(done.stdout)
    assert found["start"] == []
    assert found["refused"] == [401]
    assert found["served"][0] == 200
    assert {"mcp", "mcp_types"} <= set(found["served"])


@pytest.mark.trust("#342")
async def test_without_the_package_the_endpoint_answers_404(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do, also to a caller without a key; everything else works."""
    monkeypatch.setitem(sys.modules, "mcp", None)
    async with RunningGateway.built(tmp_path) as running:
        await running.link("ada")
        for agent in (Agent(running), Agent(running, "no key")):
            answer = await agent.request("ping")
            error = answer.json()["error"]
            assert (answer.status_code, error["reason"], error["whose"]) == (404, "mcp_unavailable", "operator")
            assert "birdwire[mcp]" in error["fix"]
        assert (await running.like()).status_code == 200


async def test_a_broken_package_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug within Birdwire is not hidden so."""
    monkeypatch.delitem(sys.modules, KERNEL, raising=False)
    async with RunningGateway.built(tmp_path) as running:
        with monkeypatch.context() as broken:
            broken.setitem(sys.modules, "mcp.server.runner", None)
            answer = await Agent(running).request("ping")
            assert (answer.status_code, answer.json()["error"]["reason"]) == (404, "mcp_unavailable")
            broken.undo()
            broken.setitem(sys.modules, "birdwire.surfaces.mcp.tool_calls", None)
            answer = await Agent(running).request("ping")
            assert (answer.status_code, answer.json()["error"]["reason"]) == (500, "internal")
        assert '"crash"' in running.log.getvalue()
        # Once it can be imported, it is.
        assert (await Agent(running).request("ping")).status_code == 200
