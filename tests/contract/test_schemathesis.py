"""The running pair under Schemathesis, all checks; and a flood of malformed requests: no 5xx, never another shape."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest

from birdwire.api.errors import PROBLEMS
from birdwire.runtime.health import STALLED_FOR_S
from birdwire.surfaces.openapi.endpoints import Endpoint, endpoints
from harness.gateway import API, GRACE, POST, RunningGateway

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping
    from pathlib import Path

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

THOROUGH = bool(os.environ.get("CI"))
EXAMPLES, FLOOD = (20, 100_000) if THOROUGH else (10, 20_000)
"""Examples a call and phase, and malformed requests in all; CI has the patience."""

WAVES = 4
"""The flood comes in parts, each a test of its own, so that workers share them."""

UNLINK = API + "unlink_twitter"
SEED = "61531470413717962384208104526818924090"  # it once found a code of 8 KB


def failures(report: Path) -> Iterator[tuple[str, str, str, int, str]]:
    """Yield each failed check of a run: the phase, the operation, the check, the status and the request id."""
    for line in report.read_text().splitlines():
        finished = json.loads(line).get("ScenarioFinished", {})
        recorder = finished.get("recorder", {})
        for case, checks in recorder.get("checks", {}).items():
            for check in checks:
                if check["status"] != "success":
                    response = recorder["interactions"][case]["response"]
                    (request_id,) = response["headers"]["x-request-id"]
                    operation = check["failure_info"]["failure"]["operation"]
                    yield finished["phase"], operation, check["name"], response["status_code"], request_id


def explained(running: RunningGateway, document: dict[str, Any], report: Path) -> int:
    """Return how many failures a rule in the document explains; any other fails the test.

    Only one kind has an explanation: 400 to what fits the schema, for a reason that the operation's description names.
    Pages show no reason, so the log is asked for it.
    """
    reasons = {}
    for line in running.log.getvalue().splitlines():
        entry = json.loads(line)
        reasons[entry.get("request_id")] = entry.get("reason")
    found = 0
    for phase, operation, check, status, request_id in failures(report):
        method, path = operation.split()
        described = document["paths"][path][method.lower()]
        reason = reasons[request_id]
        case = (phase, operation, check, str(status), str(reason))
        assert (check, status) == ("positive_data_acceptance", 400), case
        assert reason in described.get("x-beyond-schema", {}), case
        assert f"400 `{reason}`: " in described["description"], case
        found += 1
    return found


async def schemathesis(running: RunningGateway, directory: Path, *options: str) -> tuple[int | None, str]:
    """Run schemathesis with every check; return its exit code and output."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{running.settings.base_url}/openapi.json"),
        *("--max-examples", str(EXAMPLES), "--seed", SEED, "--no-color"),
        *("--header", f"Authorization: Bearer {running.raw_key}"),
        *("--report", "ndjson", "--report-ndjson-path", str(directory / "report.ndjson"), *options),
    ]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=directory, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode(errors="replace")


async def test_schemathesis_finds_nothing_that_the_document_does_not_explain(tmp_path: Path) -> None:
    """All checks and phases, in the default configuration; unlinking comes last, since nothing works after it.

    On the lane alone: the flood below goes both ways.
    """
    async with RunningGateway.built(tmp_path, rpm=1_000_000) as running:
        await running.link("ada")
        await _every_call(running, tmp_path)


async def _every_call(running: RunningGateway, tmp_path: Path) -> None:
    document = (await running.bare.get("/openapi.json")).json()
    for options in (("--exclude-path", UNLINK), ("--include-path", UNLINK)):
        status, said = await schemathesis(running, tmp_path, *options)
        found = explained(running, document, tmp_path / "report.ndjson")
        assert status == (1 if found else 0), said[-8_000:]
        for phase in ("Examples", "Coverage", "Fuzzing"):
            assert re.search(f"[✅❌] {phase}", said), said[-8_000:]


JUNK: tuple[bytes, ...] = (
    *(b"", b" ", b"{", b"}", b"[]", b"null", b"1", b'"x"', b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"{}{}", b"{'a':1}"),
    *(b"{,}", b'{"a":1,}', b'{"a":NaN}', b'{"a":1e999}', b'{"a":' + b"9" * 5_000 + b"}", b"[" * 2_000),
    *(b'{"a":' * 40 + b"1" + b"}" * 40, b'{"tweet_id":"1","tweet_id":"2"}', b'{"\\ud800":1}', b'{"text":"\\ud800"}'),
    *(b"a=b&c", b"%", b"--x--", b"\x00" * 9),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 10**40, "", " ", "\n", "1\n", "x", "\x00", "\x7f", "é", "👌" * 200, "9" * 19),
    *("9" * 20, "1' OR '1'='1", "../../etc", "<script>", "%00", "\u202e", "@ada", POST, GRACE, [], [None], ["1"]),
    *(["1"] * 300, {}, {"in_reply_to_tweet_id": "1"}, {"media_ids": ["1"]}, {"x": {"y": []}}),
    {"options": ["a", "b"], "duration_minutes": 5},
)
TYPES = (
    *("application/json", "application/json; charset=utf-8", "application/json; charset=latin-1", "text/plain", ""),
    *("application/x-www-form-urlencoded", "multipart/form-data", "multipart/form-data; boundary=x", "/"),
)
QUERIES = (
    *("", "a=b", "api_key=1", "access_token=x", "userName=ada&userName=ada", "userName=%00", "%", "&&&"),
    *("=", "userName=@ada&userId=1", "query=" + "x" * 60, "state=x&code=y", "state=x&error=y&code=z"),
)
METHODS = ("POST", "POST", "POST", "GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "X" * 40)
PATHS = (
    *("", "/", "//", "/apis", API, API + "like", API + "like_twitter/", "/apis/v1/%6Cike", "/%00", "/é", "/docs/"),
    *("/..", "/apis/v1/like_twitter", API + "requests/x"),
)
"""What mutations are made of."""

ALIASES = (
    ("POST", API + "like_twitter", "/apis/v1/like_twitter"),
    ("GET", API + "requests/{request_id}", API + "requests/x"),
)
"""Paths among these that are described under another one."""


class Flood:
    """Requests that are wrong somewhere, from one seed."""

    def __init__(self, seed: int, running: RunningGateway, raw_key: str) -> None:
        self._dice = random.Random(seed)  # noqa: S311 - no secret: the same requests every time
        self._all = list(endpoints(running.settings))
        self._bodied = [endpoint for endpoint in self._all if endpoint.examples]
        self._key = raw_key
        self._bodies = [example for endpoint in self._all for example in endpoint.examples.values()]
        self._names = sorted(
            {name for body in self._bodies for name in body} | {"aisa_api_key", "content", "__proto__"}
        )

    def next(self) -> tuple[dict[str, Any], bytes]:
        """An ASGI scope and a body."""
        dice = self._dice
        endpoint: Endpoint = dice.choice(self._bodied if dice.random() < 0.85 else self._all)
        path = dice.choice(PATHS) if dice.random() < 0.05 else endpoint.path
        method = dice.choice(METHODS) if dice.random() < 0.1 else endpoint.method
        query = dice.choice(QUERIES) if dice.random() < (0.8 if endpoint.method == "GET" else 0.1) else ""
        headers = [(b"host", b"127.0.0.1"), *self._credentials()]
        if content_type := dice.choice(TYPES) if dice.random() < 0.2 else TYPES[0]:
            headers.append((b"content-type", content_type.encode()))
        if dice.random() < 0.1:
            headers.append((b"idempotency-key", dice.choice((b"", b"k", b"\xff", b"x" * 300, b'"'))))
        if dice.random() < 0.05:
            headers.append((b"content-encoding", dice.choice((b"gzip", b"identity", b"br, gzip"))))
        if dice.random() < 0.3:
            headers.append((b"accept", b"application/json"))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": headers,
            "client": (f"127.0.{dice.randrange(256)}.{dice.randrange(256)}", 1),
            "server": ("127.0.0.1", 80),
        }
        return scope, self._body(endpoint)

    def _credentials(self) -> Iterator[tuple[bytes, bytes]]:
        shape = self._dice.random()
        if shape < 0.7:
            yield b"authorization", f"Bearer {self._key}".encode()
        elif shape < 0.95:
            broken = (f"Bearer {self._key[:-1]}", "Bearer", "Basic eDp5", f"Bearer {self._key} x", "\xff", self._key)
            yield b"authorization", self._dice.choice(broken).encode("latin-1")

    def _body(self, endpoint: Endpoint) -> bytes:
        dice = self._dice
        if dice.random() < 0.25:
            return dice.choice(JUNK)
        own = dice.random() < 0.8
        body = dict(dice.choice(list(endpoint.examples.values()) if own and endpoint.examples else self._bodies))
        names = [name for name in body if own] + list(endpoint.takes.model_fields) * own or self._names
        for _ in range(dice.randrange(1, 4)):
            body[dice.choice(names)] = dice.choice(VALUES)
        raw = json.dumps(body).encode()
        if dice.random() < 0.2:
            at = dice.randrange(len(raw))
            raw = raw[:at] + bytes([dice.randrange(256)]) + raw[at + dice.randrange(3) :]
        return raw


Known = dict[tuple[str, str], Endpoint]
MEMBERS = ["type", "code", "message", "request_id", "reason", "fix", "whose", "retryable"]
HEADERS = {401: "www-authenticate", 405: "allow", 429: "retry-after", 503: "retry-after"}


async def sent(running: RunningGateway, scope: dict[str, Any], body: bytes) -> tuple[int, dict[str, str], bytes]:
    """The answer to a request, without a socket."""
    begun: dict[str, Any] = {}
    answer = io.BytesIO()
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> MutableMapping[str, Any]:
        return left.pop() if left else {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert not begun
            begun.update(message)
        else:
            answer.write(message.get("body", b""))

    await running.gateway.app(scope, receive, send)
    headers = {name.decode(): value.decode("latin-1") for name, value in begun["headers"]}
    return begun["status"], headers, answer.getvalue()


def look(said: tuple[int, dict[str, str], bytes], scope: dict[str, Any], known: Known) -> str:
    """See that an answer is one of those that are described for its path; why it refused, if it did."""
    status, headers, body = said
    endpoint = known.get((scope["method"], scope["path"]))
    assert headers["x-request-id"].startswith("req_")
    # A machine that stood still for two seconds makes a process unready, as it should.
    stalled = scope["path"] == "/readyz" and status == 503 and headers.get("retry-after") == str(int(STALLED_FOR_S))
    assert status < 500 or stalled
    if scope["method"] == "HEAD":
        read = known.get(("GET", scope["path"]))
        assert body == b""
        assert stalled or (status == 200) == (read is not None and not read.keyed and "metrics" not in read.path)
        return "head"
    if status < 300:
        assert endpoint is not None
        assert status == endpoint.status
        return ""
    assert headers.get(HEADERS.get(status, ""), "-")
    assert HEADERS.get(status, "x-request-id") in headers
    if endpoint is not None and (endpoint.page or endpoint.images) and headers["content-type"].startswith("text/html"):
        return "page"
    assert headers["content-type"] == "application/json"
    assert list(json.loads(body)) == ["error"]
    error = json.loads(body)["error"]
    assert list(error) == MEMBERS
    problem = PROBLEMS[error["reason"]]
    assert (status, problem.type, problem.code) == (problem.status, error["type"], error["code"])
    possible = ("route_unknown",) if endpoint is None else endpoint.reasons
    assert error["reason"] in (*possible, "method_not_allowed", "http_malformed")
    return str(error["reason"])


@pytest.mark.parametrize("seed", range(WAVES))
async def test_no_request_breaks_the_gateway(
    shared_gateway: RunningGateway, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever comes: no 5xx, never outside the envelope, and each reason is one that is described for its path."""
    key, raw_key = await shared_gateway.gateway.keys.create("test", f"flood {seed}", "growth", 1_000_000)
    flood = Flood(seed, shared_gateway, raw_key)
    known: Known = {(endpoint.method, endpoint.path): endpoint for endpoint in endpoints(shared_gateway.settings)}
    for method, path, alias in ALIASES:
        known[method, alias] = known[method, path]
    reasons: set[str] = set()
    for _ in range(FLOOD // WAVES):
        scope, body = flood.next()
        try:
            reasons.add(look(await sent(shared_gateway, scope, body), scope, known))
        except Exception as error:
            raise AssertionError(f"{scope['method']} {scope['path']}?{scope['query_string']!r} {body!r}") from error
    assert len(reasons) > 30
    assert raw_key not in shared_gateway.log.getvalue()
    assert caplog.messages == []
    await shared_gateway.gateway.keys.revoke(key.key_id)
