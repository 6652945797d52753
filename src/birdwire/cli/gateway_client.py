"""HTTP client for a running gateway: bounded, without redirects, and never plain HTTP with a key to another machine."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import socket
import ssl
from dataclasses import dataclass, field
from email.message import Message
from functools import cached_property
from threading import Timer
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from birdwire import __version__
from birdwire.cli.printable import printable
from birdwire.cli.stop import ExitCode, Stop

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEADLINE_S = 30.0
UPLOAD_DEADLINE_S = 300.0
CHUNK = 1 << 16
MAX_ANSWER = 1 << 20

_EXITS = {401: ExitCode.AUTH, 429: ExitCode.LIMIT}
_LINK = (
    "Run `birdwire accounts link`, or ask the operator to run `birdwire accounts link KEY_ID`. Then have the account's "
    "owner open the page that the command prints."
)
_KEY = "Check BIRDWIRE_API_KEY or the file given with --api-key-file, and copy the whole key again."
_FIXES = {"x_not_linked": _LINK, "x_session_expired": _LINK, "key_malformed": _KEY}
"""Fixes by reason for a person at a terminal; the gateway's own fixes are for programs that call it."""


@dataclass(frozen=True, slots=True)
class _Content:
    """Content of a request."""

    body: bytes | Iterator[bytes] | None = field(default=None, repr=False)
    content_type: str = ""
    length: int = 0
    idempotency_key: str | None = None
    wait_s: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """A gateway's response."""

    status: int
    body: bytes
    headers: Message = field(default_factory=Message, repr=False)

    @property
    def document(self) -> dict[str, Any] | None:
        """Return the body as a JSON object; None for any other body."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None


class GatewayClient:
    """Client for one gateway with one key or none; each request must finish within `deadline_s`.

    A response of `max_answer` bytes or more counts as incomplete.

    Raises:
        Stop: the URL is invalid, or is plain HTTP to another machine.
    """

    def __init__(
        self, url: str, raw_key: str | None = None, *, deadline_s: float = DEADLINE_S, max_answer: int = MAX_ANSWER
    ) -> None:
        self.url = url.rstrip("/")
        self._key = raw_key
        self._deadline_s = deadline_s
        self._max_answer = max_answer
        try:
            parts = urlsplit(self.url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:
            raise _bad_url(url) from None
        self._tls = parts.scheme == "https"
        if parts.scheme not in ("http", "https") or not self._host or parts.path or parts.query or "@" in parts.netloc:
            raise _bad_url(url)
        if not self._tls and not _is_loopback(self._host):
            raise Stop(
                ExitCode.USAGE,
                f"{printable(self.url, 100)} is plain HTTP to another machine: the network could read the API key.",
                "Use an https:// URL.",
            )

    def ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> dict[str, Any]:
        """Send a request and return the response's JSON document.

        Raises:
            Stop: the gateway refused the request, is unreachable, or is not a Birdwire gateway.
        """
        return self.accepted(self.call(method, path, body, idempotency_key=idempotency_key))

    def look(self, path: str) -> tuple[dict[str, Any], Message]:
        """Send a GET request and return the response's JSON document and headers.

        Raises:
            Stop: as for `ask`.
        """
        reply = self.call("GET", path)
        return self.accepted(reply), reply.headers

    def upload(self, path: str, part: str, file: IO[bytes]) -> dict[str, Any]:
        """Send a file, without its name, as a multipart body (RFC 7578) and return the response's JSON document.

        Raises:
            Stop: as for `ask`.
        """
        boundary = secrets.token_hex(16)
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{part}"; filename="file"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        size = os.fstat(file.fileno()).st_size
        content = _Content(
            _chunks(head, file, size, tail),
            f"multipart/form-data; boundary={boundary}",
            len(head) + size + len(tail),
        )
        return self.accepted(self._send("POST", path, content, UPLOAD_DEADLINE_S))

    def call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        wait_s: int = 0,
    ) -> Reply:
        """Send a request once, without retries. The gateway may hold it for `wait_s` until a person has decided.

        Raises:
            Stop: no complete response arrived; UNKNOWN if the gateway may have carried the request out.
        """
        raw = None if body is None else json.dumps(body).encode()
        content = _Content(raw, "application/json", len(raw or b""), idempotency_key, wait_s)
        return self._send(method, path, content, self._deadline_s + wait_s)

    def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """Send a JSON body once, byte for byte, with these headers.

        Raises:
            Stop: as for `call`.
        """
        content = _Content(body, "application/json", len(body), headers=headers)
        return self._send("POST", path, content, self._deadline_s)

    def accepted(self, reply: Reply) -> dict[str, Any]:
        """Return the JSON document of a successful response.

        Raises:
            Stop: the gateway refused the request, or is not a Birdwire gateway.
        """
        document = reply.document
        if 200 <= reply.status < 300 and document is not None:
            return document
        raise self.refusal(reply)

    def refusal(self, reply: Reply) -> Stop:
        """Return what a response states that is not a success."""
        status, document = reply.status, reply.document
        error = (document or {}).get("error")
        if not isinstance(error, dict) or "message" not in error:
            return Stop(
                ExitCode.UPSTREAM,
                f"{self.url} answered with HTTP {status}, but it is not a Birdwire gateway.",
                "Set BIRDWIRE_URL to the gateway's URL.",
            )
        code = _EXITS.get(status, ExitCode.UPSTREAM if status >= 500 else ExitCode.REFUSED)
        if error.get("code") == "outcome_unknown":
            code = ExitCode.UNKNOWN
        message, fix, request_id = (printable(error.get(name, "")) for name in ("message", "fix", "request_id"))
        fix = _FIXES.get(str(error.get("reason")), fix)
        return Stop(code, message, fix, request_id=request_id, document=document)

    def _send(self, method: str, path: str, content: _Content, deadline_s: float) -> Reply:
        connection = self._connect()
        # The socket's own timeout limits each read, not the whole request.
        deadline = Timer(deadline_s, _hang_up, [connection.sock])
        deadline.daemon = True
        deadline.start()
        try:
            connection.sock.settimeout(deadline_s)
            return self._exchange(connection, method, path, content)
        except (OSError, http.client.HTTPException) as error:
            message = f"{self.url} received the request but sent no complete response ({type(error).__name__})."
            if method == "GET":
                raise Stop(ExitCode.UPSTREAM, message, "Nothing was changed. Try again.") from None
            fix = "The call may have been carried out. Check on x.com before you repeat it."
            raise Stop(ExitCode.UNKNOWN, message, fix) from None
        finally:
            deadline.cancel()
            connection.close()

    @cached_property
    def _trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    def _connect(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection
        if self._tls:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=self._deadline_s, context=self._trusted
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._deadline_s)
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            why = error.strerror or type(error).__name__
            fix = "Start one with `birdwire dev` or `birdwire serve`, or set BIRDWIRE_URL to the gateway's URL."
            if isinstance(error, ssl.SSLError):
                fix = "Check the gateway's certificate, and whether BIRDWIRE_URL has the right scheme and port."
            raise Stop(ExitCode.UPSTREAM, f"Cannot connect to a gateway at {self.url} ({why}).", fix) from None
        return connection

    def _exchange(self, connection: http.client.HTTPConnection, method: str, path: str, content: _Content) -> Reply:
        headers = {"Accept": "application/json", "User-Agent": f"birdwire/{__version__}", "Connection": "close"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        if content.body is not None:
            headers |= {"Content-Type": content.content_type, "Content-Length": str(content.length)}
        if content.idempotency_key is not None:
            headers["Idempotency-Key"] = content.idempotency_key
        if content.wait_s:
            headers["Prefer"] = f"wait={content.wait_s}"
        headers |= content.headers
        # A gateway that refuses an upload early may stop reading, but it has sent its response.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, path, content.body, headers)
        answer = connection.getresponse()
        received = answer.read(self._max_answer)
        if (answer.length != 0 and not answer.chunked) or len(received) == self._max_answer:
            raise http.client.IncompleteRead(received)
        return Reply(answer.status, received, answer.headers)


def data_of(document: dict[str, Any]) -> dict[str, Any]:
    """Return the response's data; empty if the response is not Birdwire's."""
    data = document.get("data")
    return data if isinstance(data, dict) else {}


def _chunks(head: bytes, file: IO[bytes], size: int, tail: bytes) -> Iterator[bytes]:
    """Yield the body in chunks, exactly as long as Content-Length: a file that has grown meanwhile is truncated."""
    yield head
    while size > 0 and (chunk := file.read(min(CHUNK, size))):
        size -= len(chunk)
        yield chunk
    if size == 0:
        yield tail


def _hang_up(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def _bad_url(url: str) -> Stop:
    return Stop(
        ExitCode.USAGE,
        f"{printable(url, 100)} is not a valid gateway URL.",
        "Set BIRDWIRE_URL to scheme, host and port only, such as http://127.0.0.1:8700.",
    )


def _is_loopback(host: str) -> bool:
    from birdwire.runtime.addresses import is_loopback  # noqa: PLC0415 - its module is large and needed for plain HTTP only

    return is_loopback(host)
