"""The MCP bridge: programs that speak MCP over stdio reach a gateway, and every failure is an answer."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters

from birdwire.cli.mcp_bridge import MAX_CALLS, MAX_LINE
from birdwire.cli.stop import ExitCode
from birdwire.keys.registry import Keys
from birdwire.keys.secrets import mint
from birdwire.runtime.clock import Clock
from birdwire.sandbox.app import create_sandbox
from birdwire.sandbox.server import config as sandbox_config
from birdwire.store.database import Database
from harness.bridging import COMMAND, ENVELOPE, SOON_S, bridging, call, request
from harness.gateway import POST, RunningGateway, free_port, gateway, serving
from harness.processes import environment
from harness.sending_desk import SendingDesk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODERN, HANDSHAKE = "2026-07-28", "2025-06-18"
HEAVY = {"typer", "click", "rich", "pydantic", "jinja2", "sqlalchemy", "mcp", "anyio", "asyncio", "cryptography"}
HELLO = {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    """Start a gateway of this module, linked to ada."""
    async with RunningGateway.built(tmp_path_factory.mktemp("running"), rpm=1_000_000) as built:
        await built.link("ada")
        yield built


class Peer:
    """Something on loopback that counts requests and answers each with the same bytes, or with none."""

    def __init__(self, raw: bytes | None) -> None:
        self.raw = raw
        self.heads: list[str] = []
        self.url = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read a request, and answer it or let it wait."""
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
            await reader.readexactly(int(length[1]) if length else 0)
            self.heads.append(head)
            if self.raw is None:
                await reader.read()
            else:
                writer.write(self.raw)
                await writer.drain()


@contextlib.asynccontextmanager
async def peer(raw: bytes | None) -> AsyncIterator[Peer]:
    """Start such a peer."""
    made = Peer(raw)
    async with await asyncio.start_server(made.answer, "127.0.0.1", 0) as server:
        made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield made


def ok(document: object) -> bytes:
    """Return the bytes of a successful HTTP response."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def headers(head: str) -> dict[str, str]:
    """Return the headers of a request by their names in lower case."""
    lines = (line.partition(": ") for line in head.splitlines()[1:] if line)
    return {name.lower(): value for name, _, value in lines}


# What clients of each revision see.


@pytest.mark.parametrize(("mode", "version"), [("legacy", "2025-11-25"), ("auto", MODERN), (MODERN, MODERN)])
async def test_the_official_client_works_over_stdio(running: RunningGateway, mode: str, version: str) -> None:
    """With a handshake and without: it connects, lists the tools and calls one."""
    given = environment(url=running.settings.base_url, api_key=running.raw_key)
    server = StdioServerParameters(command=COMMAND[0], args=list(COMMAND[1:]), env=given)
    async with Client(server, mode=mode, read_timeout_seconds=SOON_S) as client:
        assert client.session.protocol_version == version
        assert "like_post" in {tool.name for tool in (await client.list_tools()).tools}
        result = await client.call_tool("like_post", {"tweet_id": POST})
    assert not result.is_error
    assert result.structured_content is not None
    assert result.structured_content["state"] == "done"


async def test_an_answer_is_the_one_over_http(running: RunningGateway) -> None:
    """An older client, message by message. A notification has no answer."""
    async with bridging(running.settings.base_url, running.raw_key) as bridge:
        opened = await bridge.ask(request("initialize", "a", **HELLO))
        assert opened["result"]["protocolVersion"] == HANDSHAKE
        await bridge.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        for number, message in enumerate((request("ping"), request("tools/list"), call("get_user", userName="grace"))):
            sent = message | {"id": number}
            direct = await running.client.post("/mcp", json=sent, headers={"mcp-protocol-version": HANDSHAKE})
            answer = await bridge.ask(sent)
            ids = re.compile(r"req_\w+")
            assert ids.sub("", json.dumps(answer)) == ids.sub("", json.dumps(direct.json()))
        code, out, err = await bridge.ended()
    assert (code, out, err) == (0, b"", "")


async def test_headers_repeat_what_the_message_states() -> None:
    """The envelope's version, method and name; after a handshake, the version that both sides agreed on."""
    hello = {"jsonrpc": "2.0", "id": 1, "result": {"protocolVersion": HANDSHAKE}}
    async with peer(ok(hello)) as gateway, bridging(gateway.url, "key") as bridge:
        await bridge.ask(request("tools/list"))
        await bridge.ask(request("initialize", **HELLO))
        await bridge.ask(request("tools/list"))
        await bridge.ask(request("tools/list", _meta=ENVELOPE))
        await bridge.ask(request("tools/call", name="like_post", _meta=ENVELOPE))
        await bridge.ask(request("resources/read", uri="post://ä\r\nX-Evil: 1", _meta=ENVELOPE))
        await bridge.ask(request("prompts/get", name=" edge ", _meta=ENVELOPE))
        await bridge.ask(request("tools/call", name="=?base64?YQ==?=", _meta=ENVELOPE))
        sent = [headers(head) for head in gateway.heads]
    named = [[one.get(name) for name in ("mcp-protocol-version", "mcp-method", "mcp-name")] for one in sent]

    def encoded(value: str) -> str:
        return f"=?base64?{base64.b64encode(value.encode()).decode()}?="

    assert named == [
        [None, None, None],
        [None, None, None],
        [HANDSHAKE, None, None],
        [MODERN, "tools/list", None],
        [MODERN, "tools/call", "like_post"],
        [MODERN, "resources/read", encoded("post://ä\r\nX-Evil: 1")],
        [MODERN, "prompts/get", encoded(" edge ")],
        [MODERN, "tools/call", encoded("=?base64?YQ==?=")],
    ]
    assert {one["accept"] for one in sent} == {"application/json, text/event-stream"}
    assert {one["authorization"] for one in sent} == {"Bearer key"}


async def test_the_gateway_accepts_an_encoded_name(running: RunningGateway) -> None:
    """Its reader and the bridge's writer agree."""
    async with bridging(running.settings.base_url, running.raw_key) as bridge:
        answer = await bridge.ask(request("tools/call", name="löschen\n", arguments={}, _meta=ENVELOPE))
    assert answer["error"]["code"] == -32602


# Several calls.


async def test_a_like_passes_calls_that_wait_for_a_person(tmp_path: Path) -> None:
    """20 wait at the gateway; the like is answered before them."""
    async with RunningGateway.built(tmp_path, rpm=1_000_000) as running:
        await running.link("ada")
        async with (
            SendingDesk.opened(running, {"approve": ["post_twitter"]}) as desk,
            bridging(running.settings.base_url, running.raw_key) as bridge,
        ):
            post = (await bridge.ask(call("create_post", "post", text="hello")))["result"]["structuredContent"]
            assert post["state"] == "awaiting_approval"
            asked = post["request_id"]
            await bridge.send(
                *(call("get_request", number, {"request_id": asked, "wait_s": 25}) for number in range(20))
            )
            async with asyncio.timeout(SOON_S):
                while running.gateway.waits.held < 20:  # noqa: ASYNC110 - nothing announces it
                    await asyncio.sleep(0.01)
            like = await bridge.ask(call("like_post", "like", tweet_id=POST))
            assert like["result"]["structuredContent"]["state"] == "done"
            await desk.approve(asked)
            answers = [await bridge.receive() for _ in range(20)]
    assert sorted(answer["id"] for answer in answers) == list(range(20))
    assert {answer["result"]["structuredContent"]["state"] for answer in answers} == {"done"}


async def test_calls_in_flight_are_finished_when_stdin_ends(running: RunningGateway) -> None:
    """Every answer is written, then the bridge exits."""
    async with bridging(running.settings.base_url, running.raw_key) as bridge:
        await bridge.send(*(call("get_user", number, userName="grace") for number in range(30)))
        code, out, _ = await bridge.ended()
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert sorted(answer["id"] for answer in answers) == list(range(30))
    assert all(answer["result"]["structuredContent"]["ok"] for answer in answers)


async def test_more_calls_than_may_be_in_flight_wait_on_stdin() -> None:
    """At the limit, the bridge reads no further line; no call is lost."""
    async with peer(None) as silent, bridging(silent.url, "key") as bridge:
        await bridge.send(*(request("ping", number) for number in range(MAX_CALLS + 5)))
        async with asyncio.timeout(SOON_S):
            while len(silent.heads) < MAX_CALLS:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.01)
        bridge.process.send_signal(signal.SIGTERM)
        await bridge.ended()
        assert len(silent.heads) == MAX_CALLS


# A gateway that refuses, is down, or is something else.


@pytest.mark.parametrize(
    ("raw_key", "reason"),
    [(mint("test", bytes(range(32))), "key_unknown"), ("bw_test_typo", "key_malformed"), ("x", "key_malformed")],
)
async def test_a_refused_key_is_an_answer(running: RunningGateway, raw_key: str, reason: str) -> None:
    """It has the request's id and the gateway's reason. A notification gets no answer for all that."""
    async with bridging(running.settings.base_url, raw_key) as bridge:
        await bridge.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        answer = await bridge.ask(request("tools/list", "seven"))
        code, out, err = await bridge.ended()
    error = answer["error"]
    assert (error["code"], error["data"]["reason"]) == (-32000, reason)
    assert error["message"] == f"{error['data']['message']} {error['data']['fix']}"
    assert (code, out, err.count("\n")) == (0, b"", 2)


async def test_a_spent_allowance_names_the_seconds_to_wait(running: RunningGateway) -> None:
    """As Retry-After does."""
    _, raw_key = await running.gateway.keys.create("test", "slow", "custom", 1)
    async with bridging(running.settings.base_url, raw_key) as bridge:
        assert "result" in await bridge.ask(request("ping"))
        error = (await bridge.ask(request("ping")))["error"]
    assert error["data"]["whose"] == "caller"
    assert 1 <= error["data"]["retry_after_s"] <= 60


async def test_a_restart_of_the_gateway_neither_loses_nor_repeats_a_call(tmp_path: Path) -> None:
    """While it is down, a call is answered with what to do; afterwards, the next one works."""
    sandbox, port = create_sandbox(), free_port()
    url = f"http://127.0.0.1:{port}"
    database = Database(f"sqlite:///{tmp_path / 'birdwire.db'}")
    await database.prepare(upgrade=False)
    _, raw_key = await Keys(database, Clock()).create("test", "agent", "growth")
    await database.close()
    async with serving(sandbox_config(sandbox, log_level="error")) as x_url, bridging(url, raw_key) as bridge:
        for text in ("one", "two"):
            down = (await bridge.ask(call("create_post", text=text)))["error"]
            assert down["message"] == f"{down['data']['message']} {down['data']['fix']}"
            assert f"at {url} (Connection refused). Start one with `birdwire dev`" in down["message"]
            async with contextlib.AsyncExitStack() as stack, gateway(tmp_path, sandbox, x_url, stack, port=port) as up:
                up.client.headers["authorization"] = f"Bearer {raw_key}"
                if text == "one":
                    await up.link("ada")
                posted = await bridge.ask(call("create_post", text=text))
                assert posted["result"]["structuredContent"]["state"] == "done"
                texts = [post["text"] for post in (await up.state())["posts"]]
    assert [text for text in texts if text in {"one", "two"}] == ["one", "two"]


HTML = b"<html>Welcome</html>"
RESET = b""
SHORT = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (ok(HTML), "it is not a Birdwire gateway. Set BIRDWIRE_URL"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 20\r\n\r\n" + HTML, "HTTP 404, but it is not a Birdwire gateway"),
        (ok({"error": "no"}), "it is not a Birdwire gateway"),
        (ok(["a list"]), "it is not a Birdwire gateway"),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", "HTTP 302"),
        (RESET, "sent no complete response"),
        (SHORT, "sent no complete response"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "sent no complete response"),
    ],
)
async def test_a_peer_that_is_not_a_gateway_is_an_answer(raw: bytes, words: str) -> None:
    """And what was sent once is not sent again: a post might be published twice."""
    async with peer(raw) as other, bridging(other.url, "key") as bridge:
        error = (await bridge.ask(call("create_post", text="once")))["error"]
        assert other.url in error["message"]
        assert words in error["message"]
        assert len(other.heads) == 1
        if "complete" in words:
            assert "It may have been carried out" in error["message"]
        assert (await bridge.ask(request("ping")))["error"]["code"] == -32000


async def test_tls_to_a_plain_port_is_an_answer(running: RunningGateway) -> None:
    """It names the scheme and does not advise to start another gateway."""
    url = running.settings.base_url.replace("http:", "https:")
    async with bridging(url, running.raw_key) as bridge:
        message = (await bridge.ask(request("ping")))["error"]["message"]
    assert url in message
    assert "certificate" in message
    assert "birdwire dev" not in message


async def test_an_answer_is_one_line_with_the_id_of_its_request() -> None:
    """A gateway in front may reformat JSON, and an error about the body as a whole has no id of its own."""
    pretty = json.dumps({"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "no"}}, indent=1)
    async with peer(ok(pretty.encode())) as gateway, bridging(gateway.url, "key") as bridge:
        answer = await bridge.ask(request("ping", "mine"))
        code, out, _ = await bridge.ended()
    assert answer["error"]["code"] == -32600
    assert (code, out) == (0, b"")


def impatient(**limits: float) -> tuple[str, ...]:
    """Return the program of a bridge with shorter time limits."""
    changes = "".join(f"bridge.{name} = {value}; " for name, value in limits.items())
    code = f"import sys; from birdwire.cli import mcp_bridge as bridge; {changes}sys.exit(bridge.bridge(None))"
    return (sys.executable, "-c", code)


async def test_a_gateway_that_does_not_answer_is_given_up_at_the_deadline() -> None:
    """The outcome of the call is unknown then."""
    async with peer(None) as silent, bridging(silent.url, "key", program=impatient(DEADLINE_S=0.2)) as bridge:
        error = (await bridge.ask(call("create_post", text="slow")))["error"]
        assert len(silent.heads) == 1
    assert error["data"]["code"] == "unknown"
    assert "It may have been carried out" in error["message"]


async def test_calls_that_do_not_finish_do_not_keep_the_bridge() -> None:
    """Once stdin has ended, it waits for a bounded time."""
    async with peer(None) as silent, bridging(silent.url, "key", program=impatient(FINISH_S=0.1)) as bridge:
        await bridge.send(*(request("ping", number) for number in range(3)))
        assert await bridge.ended() == (0, b"", "")
        assert len(silent.heads) <= 3


# Lines that are not messages.


GARBAGE = (
    (b"{", -32700),
    (b"\xff\xfe{}", -32700),
    (b"[" * 100_000, -32700),
    (b"1" * 5_000, -32700),
    (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}', -32700),
    (b'{"jsonrpc":"2.0","id":NaN,"method":"ping"}', -32700),
    (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600),
    (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600),
    (b"[]", -32600),
    (b"{}", -32600),
    (b'"text"', -32600),
    (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]', -32600),
    (b'{"jsonrpc":"2.0","id":1}', -32600),
    (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":[]}', -32600),
    (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"_meta":[1],"name":["x"]}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"\\ud800"}', -32600),
)


async def test_every_line_has_an_answer_and_the_next_one_works(running: RunningGateway) -> None:
    """Whatever it holds; blank lines are skipped."""
    async with bridging(running.settings.base_url, running.raw_key) as bridge:
        for line, code in GARBAGE:
            await bridge.send(b"\n  \r\n" + line + b"\r\n")
            answer = await bridge.receive()
            assert answer["error"]["code"] == code, (line[:60], answer)
        assert (await bridge.ask(request("ping")))["result"] == {}
        code, out, err = await bridge.ended()
    assert (code, out) == (0, b"")
    assert "Traceback" not in err


async def test_a_long_line_is_refused_in_bounded_memory(running: RunningGateway) -> None:
    """64 MiB are skipped as they come. What the gateway refuses as too large has the id of its request."""
    async with bridging(running.settings.base_url, running.raw_key) as bridge:
        answer = await bridge.ask(call("create_post", text="a" * 70_000))
        assert answer["error"]["data"]["reason"] == "body_too_large"
        for _ in range(64):
            await bridge.send(b"a" * (1 << 20))
        await bridge.send(b"\n")
        answer = await bridge.receive()
        assert (answer["id"], answer["error"]["code"]) == (None, -32600)
        assert f"{MAX_LINE:,} bytes" in answer["error"]["message"]
        status = Path(f"/proc/{bridge.process.pid}/status").read_text()  # noqa: ASYNC240 - not on a disk
        assert int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) < 60_000
        assert "result" in await bridge.ask(request("ping"))


# The process.


async def test_the_bridge_starts_without_the_libraries_of_the_command_line(running: RunningGateway) -> None:
    """They take longer to import than the bridge may take to start."""
    code = (
        "import sys; sys.argv = ['birdwire', 'mcp']; from birdwire.cli import main\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, len(sys.modules), file=sys.stderr)"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code),
        env=environment(url=running.settings.base_url, api_key=running.raw_key),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(json.dumps(request("ping")).encode()), SOON_S)
    assert json.loads(out)["result"] == {}
    *loaded, number = err.decode().split()
    assert "birdwire" in loaded
    assert not HEAVY & set(loaded)
    assert int(number) < 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_bridge_with_calls_in_flight(number: signal.Signals) -> None:
    """Immediately, and without a traceback."""
    async with peer(None) as silent, bridging(silent.url, "key") as bridge:
        await bridge.send(request("ping"))
        async with asyncio.timeout(SOON_S):
            while not silent.heads:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.01)
        bridge.process.send_signal(number)
        err = (await asyncio.wait_for(bridge.process.communicate(), 5))[1]
        assert bridge.process.returncode == -number
    assert err == b""


async def test_a_closed_stdout_ends_the_bridge_quietly(running: RunningGateway) -> None:
    """The client is no longer there, although stdin is still open."""
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        env=environment(url=running.settings.base_url, api_key=running.raw_key),
        stdin=asyncio.subprocess.PIPE,
        stdout=writing,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(writing)
    os.close(reading)
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdin.write(json.dumps(request("ping")).encode() + b"\n")
    await process.stdin.drain()
    assert await asyncio.wait_for(process.wait(), SOON_S) == 0
    assert await process.stderr.read() == b""
    process.stdin.close()


@pytest.mark.parametrize(
    ("url", "raw_key", "code", "words"),
    [
        ("http://127.0.0.1:1", "", ExitCode.AUTH, "Set BIRDWIRE_API_KEY, or use --api-key-file FILE."),
        ("http://127.0.0.1:1", "two words", ExitCode.AUTH, "That is not a valid API key."),
        ("http://gateway.example", "key", ExitCode.USAGE, "the network could read the API key. Use an https:// URL."),
        ("http://127.0.0.1:1/mcp", "key", ExitCode.USAGE, "is not a valid gateway URL."),
    ],
)
async def test_without_key_or_safe_url_the_bridge_does_not_start(url: str, raw_key: str, code: int, words: str) -> None:
    """As with the other commands. One line on stderr, for the log of the program that started it."""
    async with bridging(url, raw_key) as bridge:
        ended, out, err = await bridge.ended()
    assert (ended, out, err.count("\n")) == (code, b"", 1)
    assert words in err


@pytest.mark.parametrize("form", ["{} {}", "{}={}"])
async def test_the_key_may_come_from_a_file(running: RunningGateway, tmp_path: Path, form: str) -> None:
    """Programs pass on few variables of their environment."""
    file = tmp_path / "key"
    file.write_text(f"{running.raw_key}\n")
    options = form.format("--api-key-file", file).split()
    async with bridging(running.settings.base_url, "", *options) as bridge:
        assert "result" in await bridge.ask(request("ping"))
        code, out, err = await bridge.ended()
    assert (code, out, err) == (0, b"", "")


async def test_the_url_is_only_scheme_host_and_port(running: RunningGateway) -> None:
    """A trailing slash does no harm."""
    assert not urlsplit(running.settings.base_url).path
    async with bridging(f"{running.settings.base_url}/", running.raw_key) as bridge:
        assert "result" in await bridge.ask(request("ping"))
