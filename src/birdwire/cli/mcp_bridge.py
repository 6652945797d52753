"""MCP over stdio: carries JSON-RPC messages, one a line, from stdin to POST /mcp of a gateway, and answers to stdout.

It knows no tool and decides nothing: a message is sent as it came, once, and the answer's body becomes a line. It needs
neither the SDK nor the libraries of the command line, because an agent's program waits until it has started. Every
message has a connection of its own: a gateway may close a kept one just as a post is sent, whose outcome were unknown.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import sys
import time
from contextlib import suppress
from threading import BoundedSemaphore, Lock, Thread
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from birdwire.cli.gateway_client import GatewayClient
from birdwire.cli.inputs import gateway_url, read_key
from birdwire.cli.printable import printable
from birdwire.cli.stop import ExitCode, Stop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_CALLS: Final = 64
"""The maximum number of calls in flight. Further lines stay unread, and most of these calls wait for a person."""

MAX_LINE: Final = 262_144
"""The maximum length of a line, in bytes. The gateway's own limit is lower, and its refusal states the request's id."""

MAX_ANSWER: Final = 8_388_608
"""The maximum length of an answer, in bytes. What is read from X is in it twice, as data and as text."""

DEADLINE_S: Final = 60.0
FINISH_S: Final = 30.0
"""The maximum duration of a call, and of those in flight once stdin has ended. get_request waits up to 25 seconds."""

_PARSE_ERROR, _INVALID_REQUEST, _INTERNAL_ERROR, _SERVER_ERROR = -32700, -32600, -32603, -32000
_ACCEPT: Final = {"Accept": "application/json, text/event-stream"}
_ENVELOPE_VERSION: Final = "io.modelcontextprotocol/protocolVersion"
_NAMES: Final = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
"""Methods whose requests name something in a header, and the parameter that has the name."""

_UNKNOWN: Final = "It may have been carried out. Before you repeat a tool call without `once`, check that."
_SAFE: Final = re.compile(r"(?!=\?base64\?)[!-~](?:[ -~]*[!-~])?")
"""What a header can carry as it is."""


def bridge(file: Path | None) -> int:
    """Carry messages until stdin ends; return the exit code. `file` has the API key; None: the environment has it."""
    # Python would wait for the calls in flight before it ends.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        client = GatewayClient(gateway_url(), read_key(file), deadline_s=DEADLINE_S, max_answer=MAX_ANSWER)
    except Stop as stop:
        _note(f"{stop.message} {stop.fix}")
        return stop.code
    if sys.stdin.isatty():
        _note("This carries MCP messages for a program. To configure one, press Ctrl-C and run: birdwire mcp setup")
    _Bridge(client, sys.stdout.fileno()).run(sys.stdin.buffer)
    return ExitCode.OK


class _Bridge:
    """Carries messages to a gateway; answers are written in the order in which they come."""

    def __init__(self, client: GatewayClient, out: int) -> None:
        self._client = client
        self._out = out
        self._writing = Lock()
        self._free = BoundedSemaphore(MAX_CALLS)
        self._version: object = None

    def run(self, lines: BinaryIO) -> None:
        """Carry each line, until the last one has been read and the calls in flight have finished."""
        for line in _bounded(lines):
            if line is None:
                self._write(_error(None, _INVALID_REQUEST, f"A message has at most {MAX_LINE:,} bytes."))
            elif line.strip():
                self._take(line.strip())
        end = time.monotonic() + FINISH_S
        for _ in range(MAX_CALLS):
            self._free.acquire(timeout=max(0.0, end - time.monotonic()))

    def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line.decode())
        except (ValueError, RecursionError):
            self._write(_error(None, _PARSE_ERROR, "The line is not JSON in UTF-8."))
            return
        request = _object(message)
        self._free.acquire()
        # The version that initialize negotiates belongs to the header of what follows.
        if request.get("method") == "initialize":
            self._carry(line, request)
        else:
            Thread(target=self._carry, args=(line, request), daemon=True).start()

    def _carry(self, line: bytes, request: dict[str, Any]) -> None:
        """Send a message and write its answer. A notification has none, whatever happens to it."""
        try:
            answer = self._answer(line, request)
            if answer is not None and ("id" in request or "method" not in request):
                self._write(answer)
        finally:
            self._free.release()

    def _answer(self, line: bytes, request: dict[str, Any]) -> bytes | None:
        """Return the answer's line; None if there is none. A failure is an answer, too."""
        request_id = request.get("id") if type(request.get("id")) in {str, int} else None
        try:
            reply = self._client.post("/mcp", line, self._headers(request))
            if reply.status == 202 and not reply.body:
                return None
            document = _object(reply.document)
            if document.get("jsonrpc") != "2.0":
                return _refusal(request_id, self._client.refusal(reply), reply.headers.get("retry-after", ""))
        except Stop as stop:
            return _refusal(request_id, stop)
        # The client waits for an answer, and only its name is worth a report.
        except Exception as error:  # noqa: BLE001
            _note(f"A message failed: {type(error).__name__}")
            return _error(request_id, _INTERNAL_ERROR, "The message could not be carried to the gateway.")
        if request.get("method") == "initialize" and "result" in document:
            self._version = _object(document["result"]).get("protocolVersion")
        if document.get("id") is None and request_id is not None:
            return _line(document | {"id": request_id})
        return _line(document) if b"\n" in reply.body or b"\r" in reply.body else reply.body + b"\n"

    def _headers(self, request: dict[str, Any]) -> dict[str, str]:
        """Return the headers that repeat parts of a message: for 2026-07-28 its method and what it names, too."""
        method, params = request.get("method"), _object(request.get("params"))
        version = _object(params.get("_meta")).get(_ENVELOPE_VERSION)
        named = {"MCP-Protocol-Version": None if method == "initialize" else self._version}
        if version is not None:
            name = params.get(_NAMES.get(str(method), ""))
            named = {"MCP-Protocol-Version": version, "Mcp-Method": method, "Mcp-Name": name}
        return _ACCEPT | {header: _encoded(value) for header, value in named.items() if isinstance(value, str)}

    def _write(self, line: bytes) -> None:
        try:
            with self._writing:
                while line:
                    line = line[os.write(self._out, line) :]
        except OSError:
            # The client has closed stdout and waits for nothing, but another thread still reads stdin.
            os._exit(ExitCode.OK)


def _bounded(lines: BinaryIO) -> Iterator[bytes | None]:
    """Yield each line; None for one that is too long, whose rest is skipped."""
    while line := lines.readline(MAX_LINE + 1):
        if len(line) <= MAX_LINE or line.endswith(b"\n"):
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = lines.readline(MAX_LINE)
        yield None


def _encoded(value: str) -> str:
    """Return a header's value; what a header cannot carry as it is in Base64, as the MCP specification has it."""
    if _SAFE.fullmatch(value):
        return value
    return f"=?base64?{base64.b64encode(value.encode('utf-8', 'replace')).decode()}?="


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _refusal(request_id: object, stop: Stop, retry_after: str = "") -> bytes:
    """Return a refusal from outside JSON-RPC as a JSON-RPC error."""
    _note(stop.message)
    fix = _UNKNOWN if stop.code == ExitCode.UNKNOWN else stop.fix
    data = (
        stop.document["error"] | {"fix": fix} | ({"retry_after_s": int(retry_after)} if retry_after.isdecimal() else {})
    )
    return _error(request_id, _SERVER_ERROR, f"{stop.message} {fix}", data)


def _error(request_id: object, code: int, message: str, data: object = None) -> bytes:
    error = {"code": code, "message": message} | ({} if data is None else {"data": data})
    return _line({"jsonrpc": "2.0", "id": request_id, "error": error})


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _note(text: str) -> None:
    """Write to stderr, for the log of the program that started the bridge."""
    with suppress(OSError, AttributeError):
        sys.stderr.write(f"birdwire mcp: {printable(text)}\n")
