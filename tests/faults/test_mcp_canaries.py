"""What passes through POST /mcp is afterwards in no table, file, log, metric or error in clear."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pydantic import SecretStr

from birdwire.api.paths import MCP
from birdwire.store.database import Database
from harness.fault_scale import LONG
from harness.gateway import POST, RunningGateway
from harness.guarded_gateway import hidden_forms, places_of, set_rules
from harness.mcp import Agent

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

TEXT, HOST, OPTION = "avocet-canary-5512", "curlew-canary.example.org", "godwit-canary-7741"
ONCE, READ, UNKNOWN = "plover-canary-8806", "sanderling-canary-3018", "dunlin-canary-1204"
TOKEN = "canaries-metrics-token"
X_TOKENS = ("MToxOmF0OjE", "MToxOnJ0OjE")
"""How the sandbox's access and refresh tokens end: `1:1:at:1` and `1:1:rt:1` in base64."""

BAD_KEY = "bw_test_" + "stilt" * 9
REPLY = {"reply": {"in_reply_to_tweet_id": POST}}


def _found(raw: bytes, canaries: Iterable[str]) -> list[str]:
    return [one for one in canaries if any(form in raw for form in hidden_forms(one))]


def _files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("birdwire.db*")}


async def leaks(running: RunningGateway, database: Database, canaries: list[str]) -> list[str]:
    """Return where a canary is in clear. Only a name may be, and only where names of calls are kept."""
    answer = await running.bare.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"})
    shown = {"metrics": answer.raise_for_status().content, "log": running.log.getvalue().encode()}
    files = await asyncio.to_thread(_files, running.directory)
    found = [f"{name}: {one}" for name, raw in shown.items() for one in _found(raw, [*canaries, ONCE])]
    found += [f"{name}: {one}" for name, raw in files.items() for one in _found(raw, canaries)]
    found += await places_of(database, canaries)
    assert set(await places_of(database, [ONCE])) == {"idempotency.name"}
    return found


async def use_every_tool(agent: Agent) -> list[str]:
    """Send texts, names and unknown members by every tool; return what else must be nowhere."""
    link = await agent.content("link_account")
    auth_url = link["data"]["auth_url"]
    sent: tuple[tuple[str, dict[str, Any]], ...] = (
        ("create_post", {"text": f"{TEXT} https://{HOST}/a", "once": ONCE}),
        ("create_post", {"text": f"{TEXT} b", "poll": {"options": [OPTION, "No"], "duration_minutes": 60}}),
        ("create_post", {"text": f"{TEXT} c", **REPLY, "once": f"{ONCE} again"}),
        ("create_post", {"text": f"{TEXT} d", "once": f"{ONCE}\n"}),
        ("create_post", {"text": TEXT * 40, UNKNOWN: UNKNOWN}),
        ("preview", {"operation": "post_twitter", "arguments": {"text": f"{TEXT} e", UNKNOWN: TEXT}}),
        ("preview", {"operation": UNKNOWN}),
        ("get_user_posts", {"userName": "grace"}),
        ("get_user", {"userName": UNKNOWN}),
        ("get_request", {"request_id": UNKNOWN}),
        (UNKNOWN, {"text": TEXT}),
    )
    for name, arguments in sent:
        answer = await agent.request("tools/call", {"name": name, "arguments": arguments})
        assert answer.status_code == 200
    assert (
        READ in (await agent.request("tools/call", {"name": "get_user_posts", "arguments": {"userName": "grace"}})).text
    )
    await agent.request(UNKNOWN, {"text": TEXT})
    await agent.send(f'{{"{UNKNOWN}": "{TEXT}')
    await agent.send(json.dumps({"jsonrpc": "2.0", "method": UNKNOWN, "params": {"text": TEXT}}))
    await agent.send(b"{}", {"mcp-protocol-version": UNKNOWN, "mcp-method": TEXT, "idempotency-key": ONCE})
    bad = await Agent(agent.on, BAD_KEY).send(b"{}")
    assert bad.status_code == 401
    assert not _found(bad.content, [BAD_KEY])
    return [auth_url, *parse_qs(urlsplit(auth_url).query)["state"]]


@pytest.mark.engines("sqlite", *["postgres"] * LONG)
async def test_nothing_of_a_tool_call_is_at_rest_in_clear(
    tmp_path: Path, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether the posts are sent or wait for a person: neither keys, texts, states nor tokens are."""
    built = RunningGateway.built(tmp_path, database_url=database_url, metrics_token=SecretStr(TOKEN), rpm=1_000_000)
    async with built as running:
        await running.link("ada")
        planted = {"posts": [{"author": "grace", "text": f"{READ} at rest"}]}
        (await running.x.post("/_sandbox/seed", json=planted)).raise_for_status()
        database, agent = Database(database_url), Agent(running)
        try:
            canaries = [TEXT, HOST, OPTION, READ, UNKNOWN, running.raw_key, BAD_KEY, *X_TOKENS]
            for rules in (None, {"approve": "*"}):
                await set_rules(database, running.key_id, rules)
                canaries += await use_every_tool(agent)
                assert await leaks(running, database, canaries) == []
        finally:
            await database.close()
        lines = [json.loads(line) for line in running.log.getvalue().splitlines()]
    assert [line for line in lines if line.get("path") == MCP or line.get("operation") == "mcp"]
    assert not _found(caplog.text.encode(), [*canaries, ONCE])
