"""The connection pool to X: HTTP/1.1 to one host, kept-alive connections, bounded replies, one deadline per request.

Every failure states whether a byte of the request may have reached X. The pool must never send a request twice, follow
a redirect, keep a cookie, read a proxy from the environment, disable certificate verification, or log what it carries.
Its callers decide what a reply means, and whether to repeat a request.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import socket
import ssl
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Final, NewType
from urllib.parse import unquote_to_bytes, urlsplit

from birdwire.runtime.slots import Slots
from birdwire.x.client.connection import Connection, Reply, SendFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from birdwire.x.client.connection import Cause

MAX_ADDRESSES: Final = 4
"""The number of the host's addresses that are tried for one connection."""

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
# The origin form of RFC 9112 §3.2.1: visible ASCII without "#".
_TARGET: Final = re.compile(r"/[!-\"$-~]*").fullmatch
# RFC 9110 §5.6.2.
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
# RFC 9110 §5.5, without obs-text.
_VALUE: Final = re.compile(r"(?:[!-~](?:[\t -~]*[!-~])?)?").fullmatch
# The pool writes these fields itself, or they could change where a message ends.
_RESERVED: Final = frozenset({
    "accept", "accept-encoding", "connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization",
    "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "user-agent",
})  # fmt: skip
# These methods send Content-Length even if it is 0 (RFC 9110 §8.6).
_WITH_LENGTH: Final = frozenset({"POST", "PUT", "PATCH"})


__all__ = ["ConnectionPool", "Fields", "PoolLimits", "Reply", "Request", "SendFailed", "Stats", "fields"]

Fields = NewType("Fields", str)
"""Header fields as they are sent: what `fields` returns, or several of those joined."""


def fields(*pairs: tuple[str, str]) -> Fields:
    """Return names and values as header fields. Checking them takes long: keep the result for as long as it is valid.

    Raises:
        ValueError: a field could break the framing of its request. Its value is not repeated.
    """
    for name, value in pairs:
        if not _NAME(name) or not _VALUE(value):
            raise ValueError("a header name must be a token, its value visible ASCII")
        if name.lower() in _RESERVED:
            raise ValueError(f"the header {name} cannot be set by the caller")
    return Fields("".join([f"{name}: {value}\r\n" for name, value in pairs]))


@dataclass(slots=True, repr=False)
class Request:
    """A request to the one host: `target` in origin form, below the base URL's path. Its repr shows no secrets."""

    method: str
    target: str
    headers: Fields = Fields("")
    body: bytes = b""

    def __repr__(self) -> str:
        return f"Request({self.method} {self.target.partition('?')[0]})"


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts of connections: `open` = `idle` + busy ones; slots `in_use`; all that were `opened` since the start."""

    open: int
    idle: int
    in_use: int
    opened: int


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """The bounds of a pool: its `connections`, how long each step may take, and the bytes of a reply and of its head.

    A connection is used again if it has been idle for less than `idle_s`, and is younger than `max_age_s`.
    """

    connections: int = 100
    connect_s: float = 3.0
    tls_s: float = 3.0
    pool_wait_s: float = 1.0
    idle_s: float = 15.0
    max_age_s: float = 300.0
    max_reply_bytes: int = 1 << 20
    max_head_bytes: int = 64 << 10


class ConnectionPool:
    """A pool of connections. `base_url` sets scheme, host and port, and its path is prepended to every target.

    `proxy` ("http://user:password@host:port") tunnels https by CONNECT; plain http does not use it. `ssl_context` is
    for a private CA: a ValueError is raised if it does not verify, or allows less than TLS 1.2. The pool must be closed
    by the event loop that used it.
    """

    def __init__(
        self,
        base_url: str,
        limits: PoolLimits = PoolLimits(),
        *,
        proxy: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        user_agent: str = "birdwire",
    ) -> None:
        url = urlsplit(base_url)
        if url.scheme not in {"http", "https"} or not url.hostname or "@" in url.netloc or url.query or url.fragment:
            raise ValueError("the base URL must be http(s)://host[:port][/path]")
        # A label that is too long raises ValueError here, not in a call.
        url.hostname.encode("idna")
        self._prefix = url.path.rstrip("/")
        if not _VALUE(user_agent) or not _TARGET(f"{self._prefix}/") or not _TARGET(f"/{url.netloc}"):
            raise ValueError("the base URL and the user agent must be plain ASCII")
        standard_port = 443 if url.scheme == "https" else 80
        self._host, port = url.hostname, url.port or standard_port
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._fixed = (
            f" HTTP/1.1\r\nHost: {host}{'' if port == standard_port else f':{port}'}\r\nUser-Agent: {user_agent}\r\n"
            "Accept: application/json\r\nAccept-Encoding: gzip\r\n"
        )
        self._peer, self._tunnel = (self._host, port), b""
        self._tls: ssl.SSLContext | None = None
        if url.scheme == "https":
            self._tls = _verifying(ssl_context)
            if proxy is not None:
                self._peer, self._tunnel = _through(proxy, f"{host}:{port}")
        self._limits = limits
        self._slots = Slots(limits.connections)
        self._open: set[Connection] = set()
        # Last in, first out, so that the surplus of a burst grows old and is closed.
        self._idle: list[Connection] = []
        self._timeouts: set[asyncio.Timeout] = set()
        self._dns_query: asyncio.Task[list[str]] | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._expires_at = inf
        self._expiry: asyncio.TimerHandle | None = None
        self._good_address: str | None = None
        self._opened = 0
        self._closed = False

    async def send(self, request: Request, *, deadline_s: float, may_send: Callable[[], None] | None = None) -> Reply:
        """Send once and read the whole reply, all within `deadline_s` seconds.

        `may_send` is called once a connection is ready, with no await between it and the first byte. If it raises,
        nothing is sent, the connection is kept, and the caller gets its exception.

        Raises SendFailed, or ValueError for a request that could break its own framing, before anything is sent.
        Cancelling the call closes the connection in use.
        """
        data = self._encode(request)
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + deadline_s
        if self._closed:
            raise SendFailed("unreachable", "closed", sent=False)
        if not self._slots.try_acquire():
            try:
                await self._slots.wait(min(loop.time() + self._limits.pool_wait_s, ends_at))
            except TimeoutError:
                raise SendFailed("busy", "no connection became free in time", sent=False) from None
        connection = None
        try:
            connection = self._reuse(loop.time()) or await self._connect(loop, ends_at)
            if may_send is not None:
                may_send()
            reply = connection.exchange(data, ends_at, bodiless=request.method == "HEAD")
            if ends_at < self._expires_at:
                self._expire_at(loop, ends_at)
            return await reply
        finally:
            if connection is not None:
                self._keep(loop, connection)
            self._slots.release()

    def _expire_at(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        """Arm the timer of the deadlines. One serves the whole pool: it waits for the earliest of them."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._expires_at, self._expiry = at, loop.call_at(at, self._expire, loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._expires_at, self._expiry = inf, None
        now = loop.time()
        # Only the earliest deadline was waited for; what began meanwhile has later ones.
        earliest = min([connection.expire(now) for connection in list(self._open)], default=inf)
        if earliest < inf:
            self._expire_at(loop, earliest)

    async def close(self) -> None:
        """Close every connection and fail every call. Later calls fail as unreachable, not sent."""
        # Calls that wait for a slot get one from the calls that end here, and then end too.
        self._closed = True
        now = asyncio.get_running_loop().time()
        for timeout in self._timeouts:
            if not timeout.expired():
                timeout.reschedule(now)
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._expiry is not None:
            self._expiry.cancel()
        if self._dns_query is not None:
            self._dns_query.cancel()
        if lost := [connection.abort() for connection in list(self._open)]:
            await asyncio.wait(lost, timeout=1.0)

    def stats(self) -> Stats:
        """Return the pool's current counts."""
        return Stats(open=len(self._open), idle=len(self._idle), in_use=self._slots.in_use, opened=self._opened)

    def _encode(self, request: Request) -> bytes:
        method, target, body = request.method, request.target, request.body
        if method not in _METHODS or not _TARGET(target):
            raise ValueError("the method must be a known one, the target an ASCII path")
        length = f"Content-Length: {len(body)}\r\n" if body or method in _WITH_LENGTH else ""
        head = f"{method} {self._prefix}{target}{self._fixed}{request.headers}{length}\r\n"
        # Head and body in one write: one system call, and one segment for a small request.
        return head.encode() + body

    def _reuse(self, now: float) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            age_s, idle_s = now - connection.opened_at, now - connection.idle_at
            if age_s < self._limits.max_age_s and idle_s < self._limits.idle_s and connection.quiet():
                return connection
            connection.abort()
        return None

    def _keep(self, loop: asyncio.AbstractEventLoop, connection: Connection) -> None:
        if self._closed or not connection.reusable():
            connection.abort()
            return
        connection.idle_at = loop.time()
        self._idle.append(connection)
        # One timer serves the whole pool.
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._limits.idle_s, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweeper = None
        # The first connection has been idle the longest.
        while self._idle and loop.time() - self._idle[0].idle_at >= self._limits.idle_s:
            self._idle.pop(0).abort()
        if self._idle:
            self._sweeper = loop.call_at(self._idle[0].idle_at + self._limits.idle_s, self._sweep, loop)

    def _discard(self, connection: Connection) -> None:
        self._open.discard(connection)
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)

    async def _connect(self, loop: asyncio.AbstractEventLoop, ends_at: float) -> Connection:
        """Open a connection. Raises SendFailed, always with `sent` False, since no request has been written yet."""
        cause: Cause = "unreachable"
        transport: asyncio.Transport | None = None
        try:
            async with self._within(min(loop.time() + self._limits.connect_s, ends_at)):
                transport, connection = await self._dial(loop, min(loop.time() + self._limits.connect_s, ends_at))
            if self._tls is not None:
                cause = "tls"
                async with self._within(min(loop.time() + self._limits.tls_s, ends_at)):
                    connection = await self._secure(loop, transport, self._tls)
            # The pool may have been closed meanwhile: `close` ends only the connections that it knows.
            if self._closed or connection.closing():
                raise ConnectionError("closed immediately after it was opened")
        except BaseException as error:
            if transport is not None:
                transport.abort()
            # TimeoutError, gaierror and SSLError are OSErrors too.
            if isinstance(error, OSError):
                raise SendFailed(cause, str(error) or "no answer in time", sent=False) from error
            raise
        self._open.add(connection)
        self._opened += 1
        return connection

    @contextlib.asynccontextmanager
    async def _within(self, until: float) -> AsyncIterator[None]:
        """Apply a deadline, which `close` can bring forward."""
        if self._closed:
            raise ConnectionError("closed")
        async with asyncio.timeout_at(until) as limit:
            self._timeouts.add(limit)
            try:
                yield
            finally:
                self._timeouts.discard(limit)

    async def _dial(self, loop: asyncio.AbstractEventLoop, until: float) -> tuple[asyncio.Transport, Connection]:
        """Open a TCP connection to the host, or a tunnel through the proxy (CONNECT, RFC 9110 §9.3.6)."""
        if self._dns_query is None:
            # All connections share one DNS query at a time: a resolver that hangs must not fill the loop's threads.
            self._dns_query = loop.create_task(_resolve(loop, *self._peer))
            self._dns_query.add_done_callback(self._dns_query_done)
        addresses = await asyncio.shield(self._dns_query)
        addresses = sorted(addresses, key=lambda address: address != self._good_address)[:MAX_ADDRESSES]
        for left in range(len(addresses), 0, -1):
            address, now = addresses[-left], loop.time()
            try:
                # Each address gets an equal share of the time left: a dead IPv6 route must not use up IPv4's time.
                async with asyncio.timeout_at(now + (until - now) / left):
                    transport, connection = await loop.create_connection(self._connection, address, self._peer[1])
                break
            except OSError:
                if left == 1:
                    raise
        self._good_address = address
        if self._tunnel:
            try:
                await connection.tunnel(self._tunnel, until)
            except BaseException:
                transport.abort()
                raise
        return transport, connection

    def _dns_query_done(self, task: asyncio.Task[list[str]]) -> None:
        self._dns_query = None
        if not task.cancelled():
            # Retrieved here in case every caller was cancelled; otherwise asyncio would log it.
            task.exception()

    async def _secure(
        self, loop: asyncio.AbstractEventLoop, tcp: asyncio.Transport, context: ssl.SSLContext
    ) -> Connection:
        connection = self._connection()
        # The peer may send data or close before `start_tls` returns.
        connection.attach(tcp, tcp)
        transport = await loop.start_tls(tcp, connection, context, server_hostname=self._host)
        if transport is None:
            raise ConnectionError("closed in the handshake")
        connection.attach(transport, tcp)
        return connection

    def _connection(self) -> Connection:
        return Connection(self._limits.max_reply_bytes, self._limits.max_head_bytes, self._discard)


def _through(proxy: str, authority: str) -> tuple[tuple[str, int], bytes]:
    """Return the proxy's address, and the request that opens a tunnel through it (RFC 9110 §9.3.6)."""
    url = urlsplit(proxy)
    if url.scheme != "http" or not url.hostname:
        raise ValueError("the proxy must be http://[user:password@]host[:port]")
    head = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n"
    if url.username is not None:
        pair = unquote_to_bytes(url.username) + b":" + unquote_to_bytes(url.password or "")
        head += f"Proxy-Authorization: Basic {base64.b64encode(pair).decode()}\r\n"
    return (url.hostname, url.port or 80), f"{head}\r\n".encode("ascii")


def _verifying(context: ssl.SSLContext | None) -> ssl.SSLContext:
    if context is None:
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
    if context.verify_mode != ssl.CERT_REQUIRED or not context.check_hostname:
        raise ValueError("the TLS context must verify the certificate and the host name")
    if context.minimum_version < ssl.TLSVersion.TLSv1_2:
        raise ValueError("the TLS context must refuse less than TLS 1.2")
    return context


async def _resolve(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[str]:
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
