"""POST /mcp: every revision of the protocol, its errors and bounds, and what is refused before any message is read."""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from birdwire.surfaces.mcp.kernel import MAX_ENVELOPE
from harness.gateway import POST
from harness.mcp import HANDSHAKE, REVISIONS, STATELESS, Agent, headers, message
from harness.raw_http import MEMBERS, RawRequest, exchange

if TYPE_CHECKING:
    import httpx2

    from harness.gateway import RunningGateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX = 65_536
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


def error_of(answer: httpx2.Response) -> tuple[int, int, object]:
    """Return the status, the code and the id of a JSON-RPC error."""
    body = answer.json()
    assert body.keys() == {"jsonrpc", "id", "error"}
    return answer.status_code, body["error"]["code"], body["id"]


def refusal_of(answer: httpx2.Response) -> tuple[int, str]:
    """Return the status and the reason of a refusal in the shape of the HTTP API."""
    assert list(answer.json()) == ["error"]
    error = answer.json()["error"]
    assert [name for name in error if name in MEMBERS] == MEMBERS
    return answer.status_code, str(error["reason"])


@pytest.mark.trust("#337")
@pytest.mark.parametrize("revision", REVISIONS)
async def test_every_revision_is_served_without_state(shared_gateway: RunningGateway, revision: str) -> None:
    """The handshake or the discovery, a ping, the list and a call, each by itself; and the same answers in all."""
    agent = Agent(shared_gateway, revision=revision)
    if revision == STATELESS:
        found = await agent.result("server/discover")
        assert STATELESS in found["supportedVersions"]
    else:
        found = await agent.result("initialize")
        assert found["protocolVersion"] == revision
        assert found["serverInfo"]["name"] == "birdwire"
        assert await agent.result("ping") == {}
    assert "tools" in found["capabilities"]
    assert found["instructions"].startswith("Birdwire acts on X")
    tools = await agent.request("tools/list")
    assert len(tools.content) <= 12_288
    names = [tool["name"] for tool in tools.json()["result"]["tools"]]
    assert names == sorted(names)
    assert len(names) == 13
    called = await agent.call("like_post", tweet_id=POST)
    assert called["isError"] is False
    assert called["structuredContent"]["data"] == {"liked": True}
    assert (called.get("resultType") == "complete") == (revision == STATELESS)


async def test_an_unknown_revision_is_answered_with_one_that_is_served(shared_gateway: RunningGateway) -> None:
    """The client decides whether it speaks that."""
    request = message("initialize", revision="2019-01-01")
    answer = await Agent(shared_gateway).send(json.dumps(request))
    assert answer.json()["result"]["protocolVersion"] in HANDSHAKE


async def test_a_list_may_be_kept_for_a_minute(shared_gateway: RunningGateway) -> None:
    """By the client of that key only: what is listed depends on the key."""
    found = await Agent(shared_gateway, revision=STATELESS).result("tools/list")
    assert (found["ttlMs"], found["cacheScope"]) == (60_000, "private")


@pytest.mark.parametrize("method", ["notifications/initialized", "notifications/cancelled", "notifications/made-up"])
async def test_a_notification_is_accepted_and_ignored(shared_gateway: RunningGateway, method: str) -> None:
    """202 without a body."""
    answer = await Agent(shared_gateway).send(json.dumps({"jsonrpc": "2.0", "method": method, "params": {}}))
    assert (answer.status_code, answer.content) == (202, b"")


MALFORMED: dict[str, tuple[bytes, tuple[int, int, object]]] = {
    "no JSON": (b"{", (400, -32700, None)),
    "not UTF-8": (b'{"jsonrpc":"\xff"}', (400, -32700, None)),
    "NaN": (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":NaN}}', (400, -32700, None)),
    "a huge number": (
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":1%b}}' % (b"0" * 5_000),
        (400, -32700, None),
    ),
    "a huge exponent": (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":1e999}}', (400, -32700, None)),
    "a member twice": (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}', (400, -32700, None)),
    "too deep": (b'{"a":' * 40 + b"1" + b"}" * 40, (400, -32700, None)),
    "a batch": (json.dumps([PING]).encode(), (400, -32600, None)),
    "null": (b"null", (400, -32600, None)),
    "nothing": (b"", (400, -32600, None)),
    "an empty object": (b"{}", (400, -32600, None)),
    "an older JSON-RPC": (json.dumps(PING | {"jsonrpc": "1.0"}).encode(), (400, -32600, 1)),
    "an id of null": (json.dumps(PING | {"id": None}).encode(), (400, -32600, None)),
    "a fraction as id": (json.dumps(PING | {"id": 1.5}).encode(), (400, -32600, None)),
    "a long id": (json.dumps(PING | {"id": "x" * 256}).encode(), (400, -32600, None)),
    "half a character as id": (json.dumps(PING | {"id": "\ud800"}).encode(), (400, -32600, None)),
    "a list of parameters": (json.dumps(PING | {"params": []}).encode(), (400, -32600, 1)),
    "a response": (b'{"jsonrpc":"2.0","id":"a","result":{}}', (400, -32600, "a")),
}


@pytest.mark.trust("#338")
@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_message_is_an_error_of_json_rpc(shared_gateway: RunningGateway, name: str) -> None:
    """With HTTP 400, the allowance of the key, and nothing of the HTTP API's examples."""
    sent, wanted = MALFORMED[name]
    answer = await Agent(shared_gateway).send(sent)
    assert error_of(answer) == wanted
    assert "tweet_id" not in answer.text
    assert answer.headers["x-ratelimit-limit"]
    assert answer.headers["content-type"] == "application/json"


ERRORS: list[tuple[str, dict[str, Any], int]] = [
    ("no/such", {}, -32601),
    ("resources/list", {}, -32601),
    ("tools/call", {}, -32602),
    ("tools/call", {"name": 5}, -32602),
    ("tools/call", {"name": "like_post", "arguments": []}, -32602),
    ("tools/call", {"name": "no_such_tool"}, -32602),
    ("tools/call", {"name": "no such\ntool"}, -32602),
    ("tools/list", {"cursor": "page 2"}, -32602),
]


@pytest.mark.parametrize(("method", "params", "code"), ERRORS, ids=range(len(ERRORS)))
@pytest.mark.parametrize("revision", ["2025-06-18", STATELESS])
async def test_an_error_of_the_protocol_has_its_code(
    shared_gateway: RunningGateway, revision: str, method: str, params: dict[str, Any], code: int
) -> None:
    """HTTP 200 in the revisions with a handshake; 2026-07-28 gives each code a status."""
    answer = await Agent(shared_gateway, revision=revision).request(method, params)
    if revision == STATELESS:
        # A name that is not a string contradicts its header.
        contradicts = params.get("name") == 5
        assert error_of(answer) == (404 if code == -32601 else 400, -32020 if contradicts else code, 1)
    else:
        assert error_of(answer) == (200, code, 1)
    assert "no such\\n" not in answer.text


@pytest.mark.parametrize(
    "params", [{"name": "\ud800"}, {"name": "x", "_meta": 5}, {"name": "get_account", "_meta": []}]
)
async def test_odd_parameters_are_malformed(shared_gateway: RunningGateway, params: dict[str, Any]) -> None:
    """-32602."""
    sent = json.dumps(PING | {"method": "tools/call", "params": params})
    assert error_of(await Agent(shared_gateway).send(sent)) == (200, -32602, 1)


@pytest.mark.trust("#337")
@pytest.mark.parametrize(
    "changed",
    [
        {"mcp-method": "tools/list"},
        {"mcp-name": "repost"},
        {"mcp-protocol-version": "2025-06-18"},
        {"mcp-method": None},
        {"mcp-name": None},
        {"mcp-protocol-version": None},
    ],
)
async def test_headers_that_contradict_the_body_are_refused(
    shared_gateway: RunningGateway, changed: dict[str, str | None]
) -> None:
    """-32020, and nothing is done: a proxy may have decided by the header."""
    before = len(await shared_gateway.calls("/2/"))
    request = message("tools/call", {"name": "like_post", "arguments": {"tweet_id": POST}}, STATELESS)
    given: dict[str, Any] = headers(shared_gateway.raw_key, request, STATELESS) | changed
    sent = {name: value for name, value in given.items() if value is not None}
    assert error_of(await shared_gateway.bare.post("/mcp", json=request, headers=sent)) == (400, -32020, 1)
    assert len(await shared_gateway.calls("/2/")) == before


async def test_a_routing_header_may_come_once(shared_gateway: RunningGateway) -> None:
    """Readers of the first and of the last would disagree."""
    request = message("ping")
    given = [*headers(shared_gateway.raw_key, request).items(), ("mcp-protocol-version", STATELESS)]
    answer = await shared_gateway.bare.post("/mcp", json=request, headers=given)
    assert error_of(answer) == (400, -32020, 1)


@pytest.mark.trust("#338")
async def test_what_is_refused_before_any_message_has_the_shape_of_the_api(shared_gateway: RunningGateway) -> None:
    """Keys, types, sizes, methods and paths."""
    bare, key = shared_gateway.bare, {"authorization": f"Bearer {shared_gateway.raw_key}"}
    unknown = {"authorization": "Bearer bw_test_" + "a" * 49}
    body = json.dumps(PING)
    json_type = {"content-type": "application/json"}
    assert refusal_of(await bare.post("/mcp", content=body, headers=json_type)) == (401, "key_missing")
    refused = await bare.post("/mcp", content=body, headers=json_type | unknown)
    assert refusal_of(refused)[0] == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"):
        answer = await bare.post("/mcp", content=body, headers=key | {"content-type": content_type})
        assert refusal_of(answer) == (415, "unsupported_media_type"), content_type
    fits = json.dumps(PING | {"params": {"arguments": {"a": ""}}})
    fits = fits.replace('"a": ""', f'"a": "{"x" * (MAX - len(fits))}"')
    assert len(fits) == MAX
    assert (await bare.post("/mcp", content=fits, headers=key | json_type)).status_code == 200
    assert refusal_of(await bare.post("/mcp", content=fits + " ", headers=key | json_type)) == (413, "body_too_large")
    assert refusal_of(await bare.post("/mcp?a=1", content=body, headers=key | json_type)) == (400, "unexpected_query")
    for method in ("GET", "DELETE", "OPTIONS", "PUT", "HEAD"):
        answer = await bare.request(method, "/mcp", headers=key)
        assert answer.status_code == 405
        assert answer.headers["allow"] == "POST"
    for path in ("/mcp/", "/mcp/sse", "/sse", "/.well-known/oauth-authorization-server"):
        assert refusal_of(await bare.get(path)) == (404, "route_unknown")
    for path in ("/.well-known/oauth-protected-resource", "/.well-known/oauth-protected-resource/mcp"):
        assert refusal_of(await bare.get(path)) == (404, "route_unknown")


ORIGINS = {
    "http://localhost:3000": True,
    "http://127.0.0.1": True,
    "http://[::1]:8080": True,
    "https://evil.example": False,
    "https://localhost.evil.example": False,
    "https://localhost@evil.example": False,
    "http://127.0.0.1.evil.example": False,
    "null": False,
    "": False,
    "http://[": False,
    "file://": False,
}


@pytest.mark.trust("#343")
@pytest.mark.parametrize("origin", ORIGINS)
async def test_a_page_of_another_site_is_refused(shared_gateway: RunningGateway, origin: str) -> None:
    """It may have the name of a site that resolves to this machine."""
    answer = await Agent(shared_gateway).send(json.dumps(PING), {"origin": origin})
    if ORIGINS[origin]:
        assert answer.status_code == 200
    else:
        assert refusal_of(answer) == (403, "origin_not_allowed")


@pytest.mark.trust("#343")
@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:80", "169.254.1.1"])
async def test_a_host_that_is_not_served_is_refused(shared_gateway: RunningGateway, host: str) -> None:
    """DNS rebinding reaches a gateway on its reader's machine by the attacker's own name."""
    answer = await Agent(shared_gateway).send(json.dumps(PING), {"host": host})
    assert refusal_of(answer) == (400, "host_not_allowed")
    assert (await Agent(shared_gateway).send(json.dumps(PING), {"host": "localhost:1"})).status_code == 200


async def test_a_request_of_http_1_0_needs_no_host(shared_gateway: RunningGateway) -> None:
    """A browser always sends one. Two Origins are refused like a single one of another site."""
    port = shared_gateway.bare.base_url.port
    body = json.dumps(PING).encode()
    head = f"POST /mcp HTTP/1.0\r\nAuthorization: Bearer {shared_gateway.raw_key}\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    twice = (("Origin", "http://localhost"), ("Origin", "https://evil.example"))
    answer = await exchange(shared_gateway, RawRequest(body, target="/mcp", more=twice))
    assert answer.error["reason"] in ("origin_not_allowed", "duplicate_header")


@pytest.mark.trust("#336")
async def test_a_message_spends_one_call_of_the_key(shared_gateway: RunningGateway) -> None:
    """Also a tool call, a malformed message and a notification."""
    agent = Agent(shared_gateway)
    remaining = []
    call = message("tools/call", {"name": "get_account", "arguments": {}})
    messages: list[Any] = [PING, call, [], {"jsonrpc": "2.0", "method": "x"}]
    for sent in messages:
        answer = await agent.send(json.dumps(sent))
        remaining.append(int(answer.headers["x-ratelimit-remaining"]))
    assert [remaining[0] - left for left in remaining] == [0, 1, 2, 3]


def _odd(chance: random.Random) -> Any:
    return chance.choice(
        [None, True, 0, -1, 10**19, 1.5, "", "x", "\ud800", "\u202e", "a" * 300, [], {}, [[]], {"_meta": {}}, POST]
    )


def _mutated(value: Any, chance: random.Random) -> Any:
    if not isinstance(value, dict) or not value or chance.random() < 0.2:
        return _odd(chance)
    found = dict(value)
    name = chance.choice(sorted(found))
    match chance.randrange(3):
        case 0:
            del found[name]
        case 1:
            found[chance.choice(["id", "undo", "once", "cursor", "_meta", "\ud800"])] = _odd(chance)
        case _:
            found[name] = _mutated(found[name], chance)
    return found


@pytest.mark.trust("#338")
@pytest.mark.parametrize("revision", REVISIONS)
async def test_answers_to_what_was_not_asked_are_not_checked(shared_gateway: RunningGateway, revision: str) -> None:
    """The SDK would take a second to find out that 64 KiB of them are malformed, and no other call is served then."""
    answers = {"one": {"role": "user", "model": "m", "content": [{}] * 20_000}}
    params = {"name": "get_account", "arguments": {}, "inputResponses": answers, "requestState": 1}
    assert (await Agent(shared_gateway, revision=revision).result("tools/call", params))["isError"] is False


@pytest.mark.trust("#338")
@pytest.mark.parametrize("revision", REVISIONS)
async def test_what_the_sdk_checks_of_a_message_is_bounded(shared_gateway: RunningGateway, revision: str) -> None:
    """A client's capabilities and the like; a tool's arguments may be longer, since Birdwire checks them."""
    agent = Agent(shared_gateway, revision=revision)
    sent = {"name": "get_account", "arguments": {}, "experimental": {"a": "x" * MAX_ENVELOPE}}
    response = await agent.request("tools/call", sent)
    assert (response.status_code, response.json()["error"]["code"]) == (400, -32602)
    post = {"operation": "post_twitter", "arguments": {"text": "x" * 60_000}}
    previewed = await agent.result("tools/call", {"name": "preview", "arguments": post})
    assert '"text_too_long"' in previewed["content"][0]["text"]


@pytest.mark.trust("#338")
async def test_no_message_causes_a_server_error(shared_gateway: RunningGateway) -> None:
    """Mutants of good messages in all revisions: an answer of JSON-RPC, or a refusal, and no crash in the log."""
    chance = random.Random(16)  # noqa: S311 - the same messages in every run
    agent = Agent(shared_gateway)
    seeds = [
        message("tools/call", {"name": name, "arguments": arguments}, revision)
        for revision in REVISIONS
        for name, arguments in {
            "get_account": {},
            "preview": {"operation": "post_twitter", "arguments": {"text": "x"}},
            "get_request": {"request_id": "req_01J00000000000000000000000"},
            "get_user": {"userName": "grace"},
        }.items()
    ] + [message(method, {}, revision) for method in ("initialize", "tools/list", "ping") for revision in REVISIONS]
    seen = set()
    for _ in range(400):
        request = chance.choice(seeds)
        sent = request
        for _ in range(chance.randint(1, 3)):
            sent = _mutated(sent, chance)
        revision = chance.choice([*REVISIONS, "x", ""])
        more = headers("", request, revision if revision in REVISIONS else REVISIONS[0])
        more = {name: value for name, value in more.items() if name.startswith("mcp-")} | {
            "mcp-protocol-version": revision
        }
        answer = await agent.send(json.dumps(sent), more)
        assert answer.status_code in (200, 202, 400, 404), (sent, answer.text)
        seen.add(answer.status_code)
    assert {200, 400} <= seen
    assert '"crash"' not in shared_gateway.log.getvalue()
