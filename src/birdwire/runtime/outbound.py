"""The guarded way out: one POST to a URL that an operator set, and that an attacker may have proposed.

`outbound_urls` decides which URLs and addresses are allowed. The host is resolved once, all of its addresses are
checked, and the connection goes to one that was checked: a second answer of the DNS has no effect.
Nothing of a response is kept but its status and Retry-After. The sender must never follow a redirect, keep a cookie or
a connection, read a proxy from the environment, or log what it carries.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import threading
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from birdwire import __version__
from birdwire.runtime.addresses import plain
from birdwire.runtime.clock import Clock
from birdwire.runtime.outbound_urls import ForbiddenURLError, OutboundRules, Target, read_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from birdwire.runtime.addresses import Address

__all__ = ["Failure", "ForbiddenURLError", "Outbound", "OutboundLimits", "OutboundRules", "Sent", "Target", "read_url"]

MAX_BODY_BYTES: Final = 4 << 20
"""More than the longest post that `max_post_bytes` admits takes as JSON."""
MAX_RETRY_AFTER_S: Final = 86_400.0
"""A longer Retry-After counts as a day."""
MAX_ADDRESSES: Final = 4
"""The number of the host's addresses that are tried. All of them are checked."""
MAX_RESOLUTIONS: Final = 2
"""The number of hosts that are resolved concurrently, each in a thread of its own."""

Failure = Literal["forbidden_address", "not_resolved", "unreachable", "tls", "timeout", "cut", "malformed", "status"]
"""Why a POST did not succeed.

  forbidden_address  the URL or an address of its host is not allowed; nothing was connected
  not_resolved       the host has no address
  unreachable        no address accepted a connection, or the sender is closed
  tls                the handshake failed, or the certificate does not match the host
  timeout            a deadline passed before the status was known
  cut                the connection closed before the status was known
  malformed          the response is not HTTP/1.1
  status             the status is not 2xx
"""

# RFC 9110 §5.6.2, and §5.5 without obs-text.
_FIELD_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_FIELD_VALUE: Final = re.compile(r"(?:[!-~](?:[\t -~]*[!-~])?)?").fullmatch
# The sender writes these fields itself, or they could change where the request ends.
_RESERVED: Final = frozenset({
    "accept", "accept-encoding", "connection", "content-length", "cookie", "expect", "host", "keep-alive",
    "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "user-agent",
})  # fmt: skip

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] (?P<status>[1-5][0-9]{2})(?: [^\r\n]*)?\r?").fullmatch
_BLANK_LINE: Final = re.compile(rb"\r?\n\r?\n").search
_RETRY_AFTER: Final = re.compile(rb"^retry-after:[ \t]*([^\r\n]*?)[ \t]*\r?\n", re.IGNORECASE | re.MULTILINE).search
_HTTP_DATE: Final = re.compile(
    rb"[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT"
).fullmatch


@dataclass(frozen=True, slots=True)
class OutboundLimits:
    """The bounds of one POST: seconds to resolve, connect and finish TLS, seconds in all, and bytes of the response."""

    connect_s: float = 5.0
    total_s: float = 15.0
    max_reply_bytes: int = 4_096


@dataclass(frozen=True, slots=True)
class Sent:
    """The result of a POST: the `status`, if there was one; `error`, unless it is 2xx; Retry-After in seconds."""

    status: int | None
    error: Failure | None
    retry_after_s: float | None = None


def resolve_host(host: str) -> list[str]:
    """Return a host's addresses by the system's resolver. Blocks. Raises OSError if it has none."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class Outbound:
    """Sends POSTs to URLs that pass the rules, each on a connection of its own.

    `resolve` returns the addresses of a host; it runs in a thread and may block. `ssl_context` is for a private CA: a
    ValueError is raised if it does not verify, or allows less than TLS 1.2.
    """

    def __init__(
        self,
        rules: OutboundRules,
        *,
        resolve: Callable[[str], Iterable[str]] | None = None,
        limits: OutboundLimits | None = None,
        ssl_context: ssl.SSLContext | None = None,
        clock: Clock | None = None,
    ) -> None:
        if ssl_context is not None:
            _check_verifies(ssl_context)
        self._rules = rules
        self._resolver = _Resolver(resolve or resolve_host)
        self._limits = limits or OutboundLimits()
        self._ssl_context = ssl_context
        self._clock = clock or Clock()
        self._closed = False

    async def post(self, url: str, headers: Sequence[tuple[str, str]], body: bytes) -> Sent:
        """Send one POST, and return what became of it. The state of the network, or a bad URL, raises nothing.

        Raises:
            ValueError: a header could break the framing of the request, or the body is larger than MAX_BODY_BYTES.
                Nothing was sent, and the value is not repeated.
        """
        fields = _fields(headers)
        if len(body) > MAX_BODY_BYTES:
            raise ValueError(f"the body has more than {MAX_BODY_BYTES} bytes")
        reply = _Reply(self._limits.max_reply_bytes)
        failure: Failure | None = None
        try:
            target = read_url(url, self._rules)
            async with asyncio.timeout(self._limits.total_s):
                await self._connect(target, reply)
                reply.send(_request(target, fields, body))
                failure = await reply.ended
        except ForbiddenURLError:
            failure = "forbidden_address"
        except TimeoutError:
            failure = "timeout"
        except _FailedError as error:
            failure = error.failure
        finally:
            reply.abort()
        if reply.head is None:
            return Sent(None, failure or "cut")
        # However the exchange ended, a status that arrived counts.
        status, retry_after = reply.head.status, reply.head.retry_after
        return Sent(status, None if 200 <= status <= 299 else "status", _seconds(retry_after, self._clock.unix_s()))

    async def close(self) -> None:
        """Let every further POST fail. It waits for no resolver; cancel POSTs that are in progress before."""
        self._closed = True

    async def _connect(self, target: Target, reply: _Reply) -> None:
        """Open a connection to an address of the target, checked and with TLS, on which `reply` is read."""
        if self._closed:
            raise _FailedError("unreachable")
        loop = asyncio.get_running_loop()
        until = loop.time() + self._limits.connect_s
        async with asyncio.timeout_at(until):
            addresses = await self._addresses(target)
            # The connection's first protocol drops what a peer sends before TLS: it proves nothing.
            tcp = await _dial(loop, addresses, target.port, until)
            reply.attach(tcp)
            if tcp.is_closing():
                raise _FailedError("cut")
            if target.scheme == "http":
                tcp.set_protocol(reply)
                return
            try:
                tls = await loop.start_tls(tcp, reply, self._tls(), server_hostname=target.host)
            except OSError as error:
                raise _FailedError("tls") from error
            if tls is None:
                raise _FailedError("tls")
            reply.attach(tls)

    async def _addresses(self, target: Target) -> list[Address]:
        """Return the addresses to try. All that the host has are checked, since a resolver's order is arbitrary."""
        if target.address is not None:
            # `read_url` has checked it.
            return [target.address]
        try:
            found = [plain(ip_address(text)) for text in await self._resolver.addresses(target.host)]
        except ValueError as error:
            raise _FailedError("forbidden_address") from error
        if not found:
            raise _FailedError("not_resolved")
        if not all(self._rules.permits(target.host, address) for address in found):
            raise _FailedError("forbidden_address")
        return list(dict.fromkeys(found))[:MAX_ADDRESSES]

    def _tls(self) -> ssl.SSLContext:
        # Made for the first use: the system's roots take long to load, and most gateways send no notification.
        if self._ssl_context is None:
            self._ssl_context = ssl.create_default_context()
            self._ssl_context.minimum_version = ssl.TLSVersion.TLSv1_2
        return self._ssl_context


class _FailedError(Exception):
    """A POST cannot succeed: `failure` states why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure: Failure = failure


class _Resolver:
    """Resolves hosts in threads of its own.

    A resolver that hangs must use up neither the event loop's threads, on which connections to X depend, nor the end of
    the process, which waits for the threads of an executor. So its threads are daemons, and only a few run.
    """

    def __init__(self, resolve: Callable[[str], Iterable[str]]) -> None:
        self._resolve = resolve
        self._slots = asyncio.Semaphore(MAX_RESOLUTIONS)

    async def addresses(self, host: str) -> list[str]:
        """Return the addresses of a host; none if it cannot be resolved."""
        await self._slots.acquire()
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[str]] = loop.create_future()
        thread = threading.Thread(target=self._run, args=(host, loop, found), name="outbound-resolver", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # The system has no thread to spare.
            self._slots.release()
            return []
        return await found

    def _run(self, host: str, loop: asyncio.AbstractEventLoop, found: asyncio.Future[list[str]]) -> None:
        try:
            addresses = list(self._resolve(host))
        except Exception:  # noqa: BLE001 - whatever happened, the slot must be released
            addresses = []
        # The loop may be closed by now.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._done, found, addresses)

    def _done(self, found: asyncio.Future[list[str]], addresses: list[str]) -> None:
        # The slot belongs to the thread: a caller whose deadline passed does not release it.
        self._slots.release()
        if not found.done():
            found.set_result(addresses)


async def _dial(
    loop: asyncio.AbstractEventLoop, addresses: list[Address], port: int, until: float
) -> asyncio.Transport:
    """Return a TCP connection to the first address that accepts one, in order."""
    failure: OSError = TimeoutError()
    for index, address in enumerate(addresses):
        try:
            # Each address gets an equal share of the time left: a dead IPv6 route must not use up IPv4's time.
            async with asyncio.timeout((until - loop.time()) / (len(addresses) - index)):
                transport, _ = await loop.create_connection(asyncio.Protocol, str(address), port)
                return transport
        except OSError as error:
            failure = error
    raise failure if isinstance(failure, TimeoutError) else _FailedError("unreachable")


class _Head(NamedTuple):
    """The status of the final response and its Retry-After, if that was received; whether its head is complete."""

    status: int
    retry_after: bytes | None
    complete: bool


class _Reply(asyncio.Protocol):
    """Reads the status of the response, and as much of its head as the bound allows. Keeps no other byte.

    `ended` is done when nothing more is read, with why that is, or None after a complete head. `head` is what was read.
    """

    def __init__(self, max_bytes: int) -> None:
        self.ended: asyncio.Future[Failure | None] = asyncio.get_running_loop().create_future()
        self.head: _Head | None = None
        self._bytes, self._max_bytes = b"", max_bytes
        self._transports: list[asyncio.Transport] = []

    def attach(self, transport: asyncio.Transport) -> None:
        """Use a transport for `send`, and for `abort` together with those before it."""
        self._transports.append(transport)

    def send(self, request: bytes) -> None:
        """Write the request."""
        self._transports[-1].write(request)

    def abort(self) -> None:
        """Close the connection without waiting for the peer, and read nothing more."""
        self._end(None)
        for transport in reversed(self._transports):
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Add bytes of the response up to the bound, and read the head so far."""
        if self.ended.done():
            return
        self._bytes += data[: self._max_bytes - len(self._bytes)]
        try:
            self.head = _read_head(self._bytes)
        except _FailedError as error:
            self._end(error.failure)
            return
        if self.head is not None and self.head.complete:
            self._end(None)
        elif len(self._bytes) == self._max_bytes:
            self._end("malformed")

    def eof_received(self) -> None:
        """End the reading: what was not received will not come."""
        self._end("cut")

    def connection_lost(self, exc: Exception | None) -> None:
        """End the reading."""
        del exc
        self._end("cut")

    def _end(self, failure: Failure | None) -> None:
        self._bytes = b""
        if not self.ended.done():
            self.ended.set_result(failure)


def _read_head(received: bytes) -> _Head | None:
    """Return what a response's first bytes state; None if more are needed. 1xx responses are skipped.

    The status line is enough: nothing after it can change whether the receiver accepted the request. No framing is
    read, because the connection is never used again.

    Raises:
        _FailedError: these are not the first bytes of an HTTP/1.1 response.
    """
    while True:
        line, newline, _ = received.partition(b"\n")
        if not newline:
            return None
        parts = _STATUS_LINE(line)
        # 101 would change the protocol, which no request asks for.
        if parts is None or parts["status"] == b"101":
            raise _FailedError("malformed")
        status, blank = int(parts["status"]), _BLANK_LINE(received)
        if status >= 200:
            retry_after = _RETRY_AFTER(received, 0, blank.end() if blank else len(received))
            return _Head(status, retry_after and retry_after[1], complete=blank is not None)
        if blank is None:
            return None
        received = received[blank.end() :]


def _seconds(retry_after: bytes | None, now: float) -> float | None:
    """Return the seconds that a Retry-After asks for, given as such or as a date (RFC 9110 §10.2.3), if it is valid."""
    if retry_after is None:
        return None
    if retry_after.isdigit():
        seconds = float(retry_after)
    elif _HTTP_DATE(retry_after):
        try:
            seconds = parsedate_to_datetime(retry_after.decode("ascii")).timestamp() - now
        except (ValueError, OverflowError):
            return None
    else:
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


def _fields(headers: Sequence[tuple[str, str]]) -> str:
    for name, value in headers:
        if not _FIELD_NAME(name) or not _FIELD_VALUE(value):
            raise ValueError("a header name must be a token, its value visible ASCII")
        if name.lower() in _RESERVED:
            raise ValueError(f"the header {name} cannot be set by the caller")
    return "".join([f"{name}: {value}\r\n" for name, value in headers])


def _request(target: Target, fields: str, body: bytes) -> bytes:
    head = (
        f"POST {target.target} HTTP/1.1\r\nHost: {target.authority}\r\nUser-Agent: birdwire/{__version__}\r\n"
        f"Accept: */*\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{fields}\r\n"
    )
    return head.encode("ascii") + body


def _check_verifies(context: ssl.SSLContext) -> None:
    if context.verify_mode != ssl.CERT_REQUIRED or not context.check_hostname:
        raise ValueError("the TLS context must verify the certificate and the host name")
    if context.minimum_version < ssl.TLSVersion.TLSv1_2:
        raise ValueError("the TLS context must refuse less than TLS 1.2")
