"""MCP clients that Birdwire's authors did not write, and the habits of real ones, work with POST /mcp."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import pytest_asyncio
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from birdwire.surfaces.mcp.tools import TOOLS
from harness.fault_scale import LONG
from harness.gateway import GRACE, POST
from harness.mcp import HANDSHAKE, REVISIONS, STATELESS, USUAL, Agent, headers, message
from harness.mcp_conformance import LIMIT_S, NODE, PACKAGES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from harness.gateway import RunningGateway

    Call = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]

INSPECTOR = PACKAGES.parent / "inspector" / "node_modules" / "@modelcontextprotocol" / "inspector"
INSPECTOR_CLI = INSPECTOR / "clients" / "launcher" / "build" / "index.js"

STEPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("get_user", {"userName": "grace"}),
    ("get_user_posts", {"userName": "grace"}),
    ("search_users", {"query": "grace"}),
    ("preview", {"operation": "post_twitter", "arguments": {"text": "Hello"}}),
    ("like_post", {"tweet_id": POST}),
    ("like_post", {"tweet_id": POST, "undo": True}),
    ("repost", {"tweet_id": POST}),
    ("repost", {"tweet_id": POST, "undo": True}),
    ("follow_user", {"target_user_id": GRACE}),
    ("follow_user", {"target_user_id": GRACE, "undo": True}),
    ("bookmark_post", {"tweet_id": POST}),
    ("bookmark_post", {"tweet_id": POST, "undo": True}),
    ("create_post", {"text": "Hello"}),
    ("get_request", {"request_id": "CREATED"}),
    ("delete_post", {"tweet_id": "CREATED"}),
    ("like_post", {"tweet_id": "1"}),
    ("like_post", {"tweet_id": 1}),
    ("like_post", {"tweet_id": POST, "whatever": True}),
    ("get_account", {}),
    ("link_account", {"expected_username": "ada"}),
)
"""Each tool at least once, and three refusals. What is done is undone, so that the next client finds the same state."""
REFUSED = ("tweet_not_found", "tweet_id_malformed", "unknown_field")

CHANGING = re.compile(
    r"(?:req|idem)_[0-9A-HJKMNP-TV-Z]{26}"
    r"|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    r"|(?<=state=)[\w-]{43}|(?<=code_challenge=)[\w-]{43}|(?<=\"state\":\")[\w-]{43}"
    r"|(?<=\"remaining\":)\d+"
)
"""What differs from one call to the next: generated ids, times, the secrets of a link, and what a limit has left."""


async def sequence(call: Call) -> list[dict[str, Any]]:
    """Take every step with one client and return the results: content, structured content and isError."""
    results: list[dict[str, Any]] = []
    created: dict[str, Any] = {}
    for tool, arguments in STEPS:
        sent = {name: created[name] if value == "CREATED" else value for name, value in arguments.items()}
        result = await call(tool, sent)
        if tool == "create_post":
            content = result["structuredContent"]
            created = {"tweet_id": content["data"]["id"], "request_id": content["request_id"]}
        results.append({name: result[name] for name in ("content", "structuredContent", "isError")})
    unlike = json.dumps(results, sort_keys=True).replace(created["tweet_id"], "CREATED")
    assert created["tweet_id"] not in unlike
    return [dict(result) for result in json.loads(unlike)]


def lasting(results: list[dict[str, Any]]) -> list[Any]:
    """Return the results without what changes from one call to the next."""
    flat = []
    for result in results:
        content = json.dumps(result["structuredContent"], separators=(",", ":"))
        texts = [CHANGING.sub("*", block["text"]) for block in result["content"]]
        flat.append((CHANGING.sub("*", content), texts, result["isError"]))
    return flat


def checked(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Check that every step ended as it must, and return the results."""
    assert {tool for tool, _ in STEPS} == set(TOOLS)
    reasons = [(result["structuredContent"]["error"] or {}).get("reason") for result in results]
    assert [reason for reason in reasons if reason] == list(REFUSED)
    for result in results:
        content = result["structuredContent"]
        assert result["isError"] is not content["ok"]
        assert json.loads(result["content"][0]["text"].splitlines()[1]).items() <= content.items()
    return results


def plain(running: RunningGateway, revision: str = USUAL) -> Call:
    """Return a client in plain JSON over HTTP."""
    agent = Agent(running, revision=revision)
    return lambda tool, arguments: agent.call(tool, **arguments)


@pytest_asyncio.fixture
async def used(linked: RunningGateway) -> RunningGateway:
    """Take every step once, so that what the gateway learns from X is known from then on."""
    await sequence(plain(linked))
    return linked


@pytest.mark.parametrize("revision", REVISIONS)
async def test_the_official_client_and_a_plain_one_get_the_same_answers(
    used: RunningGateway, revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tool, at each revision: data and text are equal but for ids, times and what limits have left."""
    expected = lasting(checked(await sequence(plain(used))))
    # The client offers its newest revision with a handshake; a client of an earlier time would offer its own.
    monkeypatch.setattr("mcp.client.session.LATEST_HANDSHAKE_VERSION", revision)
    mode = "auto" if revision == STATELESS else "legacy"
    async with httpx2.AsyncClient(headers={"authorization": f"Bearer {used.raw_key}"}, timeout=30) as http:
        transport = streamable_http_client(f"{used.settings.base_url}/mcp", http_client=http)
        async with Client(transport, mode=mode) as client:
            assert client.protocol_version == revision
            assert client.server_info is not None
            assert client.server_info.name == "birdwire"
            listed = (await client.list_tools()).model_dump(mode="json", by_alias=True, exclude_unset=True)["tools"]

            async def call(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
                result = await client.call_tool(tool, arguments)
                return dict(result.model_dump(mode="json", by_alias=True, exclude_unset=True))

            results = await sequence(call)
    assert lasting(checked(results)) == expected
    assert {tool["name"]: tool for tool in listed} == await Agent(used).tools()


async def test_a_plain_client_gets_the_same_answers_at_every_revision(used: RunningGateway) -> None:
    """The revision changes the envelope, not the answer."""
    first, *others = [lasting(checked(await sequence(plain(used, revision)))) for revision in REVISIONS]
    assert len(others) == 4
    for other in others:
        assert other == first


def without(request: httpx2.Request, *names: str) -> httpx2.Request:
    """Remove headers that the HTTP library adds by itself."""
    for name in names:
        request.headers.pop(name, None)
    return request


@pytest.mark.parametrize("revision", HANDSHAKE)
async def test_the_life_of_a_client_with_a_handshake(linked: RunningGateway, revision: str) -> None:
    """It tries to open a stream, initializes, reports that it did, opens a stream, calls, and ends its session.

    It sends back a session id if it was given one. None is, and one from an earlier server means nothing.
    """
    session = {"mcp-session-id": "of-an-earlier-server"}
    stream = {"accept": "text/event-stream", "authorization": f"Bearer {linked.raw_key}"}

    async def refused(method: str, sent: dict[str, str]) -> None:
        answer = await linked.bare.request(method, "/mcp", headers=sent)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert answer.json()["error"]["reason"] == "method_not_allowed"
        # A challenge would start a sign-in by OAuth that cannot succeed.
        assert "www-authenticate" not in answer.headers

    await refused("GET", stream)
    await refused("GET", {"accept": "text/event-stream"})

    agent = Agent(linked, revision=revision)
    greeting = message("initialize", revision=revision)
    sent = headers(linked.raw_key, greeting, revision)
    del sent["mcp-protocol-version"]
    answer = await linked.bare.post("/mcp", json=greeting, headers=sent)
    assert answer.json()["result"]["protocolVersion"] == revision
    assert "mcp-session-id" not in answer.headers

    notice = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    answer = await agent.send(json.dumps(notice), {"mcp-protocol-version": revision} | session)
    assert (answer.status_code, answer.content) == (202, b"")

    await refused("GET", stream | session | {"mcp-protocol-version": revision, "last-event-id": "7"})
    called = await agent.request("tools/call", {"name": "like_post", "arguments": {"tweet_id": POST}}, session)
    assert called.json()["result"]["structuredContent"]["data"] == {"liked": True}
    await refused("DELETE", stream | session)
    assert (await agent.request("ping", None, session)).json()["result"] == {}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "accept",
    ["application/json, text/event-stream", "text/event-stream, application/json", "application/json", "*/*", ""],
)
@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
async def test_answers_in_json_whatever_the_client_accepts(
    shared_gateway: RunningGateway, accept: str, content_type: str
) -> None:
    """Some clients accept only JSON, some name no types; nobody gets 406, which clients take for a missing sign-in."""
    for revision in (USUAL, STATELESS):
        asked = message("tools/call", {"name": "get_account", "arguments": {}}, revision)
        sent = headers(shared_gateway.raw_key, asked, revision) | {"content-type": content_type, "accept": accept}
        request = shared_gateway.bare.build_request("POST", "/mcp", content=json.dumps(asked), headers=sent)
        answer = await shared_gateway.bare.send(without(request, *([] if accept else ["accept"])))
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json()["result"]["structuredContent"]["data"]["username"] == "ada"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("asked", ["2025-12-31", "2099-01-01", "1.0"])
async def test_an_unknown_revision_is_answered_with_a_known_one(shared_gateway: RunningGateway, asked: str) -> None:
    """A client of another time offers its own revision in `initialize`, and decides on the answer."""
    greeting = message("initialize", revision=asked)
    sent = headers(shared_gateway.raw_key, greeting)
    del sent["mcp-protocol-version"]
    answer = await shared_gateway.bare.post("/mcp", json=greeting, headers=sent)
    assert answer.json()["result"]["protocolVersion"] == HANDSHAKE[-1]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "path",
    [
        "/.well-known/oauth-protected-resource",
        "/.well-known/oauth-protected-resource/mcp",
        "/.well-known/oauth-authorization-server",
        "/.well-known/oauth-authorization-server/mcp",
        "/.well-known/openid-configuration",
        "/mcp/.well-known/openid-configuration",
    ],
)
async def test_a_search_for_oauth_finds_nothing(shared_gateway: RunningGateway, path: str) -> None:
    """With and without the key: 404 with a JSON body, because a client has failed on an empty one."""
    for client in (shared_gateway.bare, shared_gateway.client):
        answer = await client.get(path, headers={"accept": "application/json", "mcp-protocol-version": USUAL})
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
        assert answer.json()["error"]["reason"] == "route_unknown"
        assert "www-authenticate" not in answer.headers


async def inspect(config: Path, era: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the Inspector's CLI with a server's configuration, which holds the key, at one era of the protocol."""
    home = {"HOME": str(config.parent), "MCP_INSPECTOR_SECRET_STORE": "memory", "NO_COLOR": "1"}
    command = [NODE, INSPECTOR_CLI, "--cli", "--config", config, "--server", "birdwire", "--protocol-era", era]
    return await asyncio.to_thread(
        subprocess.run,
        [*map(str, command), "--quiet", "--format", "json", *arguments],
        env=os.environ | home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )


@pytest.mark.skipif(not LONG, reason="in the long form only: make mcp-conformance")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_the_inspector_lists_and_calls_each_tool(used: RunningGateway, tmp_path: Path, era: str) -> None:
    """The official Inspector gets the answers that a plain client gets, and finds no error in a schema."""
    assert INSPECTOR_CLI.exists(), "The Inspector is not installed. Run make mcp-conformance"
    expected = lasting(checked(await sequence(plain(used))))
    config = tmp_path / "inspector" / "servers.json"
    config.parent.mkdir()
    server = {
        "type": "streamable-http",
        "url": f"{used.settings.base_url}/mcp",
        "headers": {"Authorization": f"Bearer {used.raw_key}"},
    }
    config.write_text(json.dumps({"mcpServers": {"birdwire": server}}))

    listed = await inspect(config, era, "--method", "tools/list", "--strict")
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert {tool["name"]: tool for tool in json.loads(listed.stdout)["result"]["tools"]} == await Agent(used).tools()

    async def call(tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
        # The CLI reads a value as JSON if it can: an id has to be quoted, or it is sent as a number.
        pairs = [f"{name}={json.dumps(value)}" for name, value in arguments.items()]
        given = ["--tool-arg", *pairs] if pairs else []
        called = await inspect(config, era, "--method", "tools/call", "--tool-name", tool, *given)
        result = dict(json.loads(called.stdout)["result"])
        assert called.returncode == (5 if result["isError"] else 0), called.stderr
        return result

    assert lasting(checked(await sequence(call))) == expected
