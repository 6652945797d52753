"""HTTP/1.1 towards X: one host, a pool of kept-alive connections, bounded replies, one deadline a call.

It knows whether a byte of a request may have reached X, and says so in every failure. It must never send a request
twice, follow a redirect, keep a cookie, read a proxy from the environment, switch verification off, or log what it
carries. What a reply means, and whether to repeat a call, is for its callers to decide.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import select
import socket
import ssl
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NoReturn, cast
from urllib.parse import unquote_to_bytes, urlsplit

from httptools import HttpParserError, HttpResponseParser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from zlib import _Decompress

Cause = Literal["unreachable", "tls", "busy", "timeout", "cut", "malformed"]

MAX_INTERIM: Final = 8  # 1xx replies before the final one
MAX_FIELDS: Final = 256  # header fields in one reply
MAX_ADDRESSES: Final = 4  # addresses of the host tried for one connection
WIRE_FACTOR: Final = 8  # a body of one-byte chunks takes six bytes on the wire for each of its own

_METHOD: Final = re.compile(r"[A-Z]{1,16}").fullmatch
_TARGET: Final = re.compile(r"/[!-\"$-~]*").fullmatch  # origin form: visible ASCII without "#"
_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch  # RFC 9110 §5.6.2
_VALUE: Final = re.compile(r"(?:[!-~](?:[\t -~]*[!-~])?)?").fullmatch  # RFC 9110 §5.5, without obs-text
_RESERVED: Final = frozenset({  # written here, or able to change where a message ends
    "accept", "accept-encoding", "connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization",
    "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "user-agent",
})  # fmt: skip
_WITH_LENGTH: Final = frozenset({"POST", "PUT", "PATCH"})  # say Content-Length: 0 too (RFC 9110 §8.6)
_BODILESS: Final = frozenset({204, 304})
_CODINGS: Final = frozenset({"content-encoding", "transfer-encoding"})


@dataclass(frozen=True, slots=True, repr=False)
class Request:
    """A request to the one host: `target` in origin form, below the base URL's path. Its repr shows no secrets."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def __repr__(self) -> str:
        return f"Request({self.method} {self.target.partition('?')[0]})"


@dataclass(frozen=True, slots=True, repr=False)
class Reply:
    """A whole final reply.

    `headers` has lower-case names, repeated fields joined with ", ", no set-cookie, and no field outside ASCII.
    `body` is what was meant: chunked framing and gzip are undone. The repr shows neither.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"Reply({self.status}, {len(self.body)} bytes)"


@dataclass(frozen=True, slots=True)
class Stats:
    """Connections now: `open` = `idle` + those with a request; slots `in_use`; and how many were `opened` in all."""

    open: int
    idle: int
    in_use: int
    opened: int


class SendFailed(Exception):  # noqa: N818 - it reads as what happened
    """No whole, valid reply.

    `cause` is one of:
      unreachable  no address, no connection, no tunnel, or closed for good
      tls          no handshake, or a certificate that does not prove the host
      busy         no connection became free in time
      timeout      the deadline passed
      cut          the connection ended before the reply did
      malformed    the reply broke HTTP or a bound

    `sent` False: no byte of the request left on a live connection. `sent` True: X may have applied it.
    """

    def __init__(self, cause: Cause, detail: str, *, sent: bool) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause: Cause = cause
        self.sent = sent


class Upstream:
    """The pool. `base_url` alone names scheme, host and port; its path comes before every target.

    `proxy` ("http://user:password@host:port") tunnels https by CONNECT; http goes straight. `ssl_context` is for a
    private CA: one that does not verify, or allows less than TLS 1.2, is a ValueError. Sizes are in bytes.
    Must be closed by the event loop that used it.
    """

    def __init__(
        self,
        base_url: str,
        *,
        connections: int = 100,
        connect_s: float = 3.0,
        tls_s: float = 3.0,
        pool_wait_s: float = 1.0,
        idle_s: float = 15.0,
        max_age_s: float = 300.0,
        max_reply: int = 1 << 20,
        max_head: int = 64 << 10,
        proxy: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        user_agent: str = "birdwire",
    ) -> None:
        url = urlsplit(base_url)
        if url.scheme not in {"http", "https"} or not url.hostname or "@" in url.netloc or url.query or url.fragment:
            raise ValueError("the base URL must be http(s)://host[:port][/path]")
        url.hostname.encode("idna")  # a label too long is a ValueError now, not in a call
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
        self._connections, self._pool_wait_s = connections, pool_wait_s
        self._connect_s, self._tls_s, self._idle_s, self._max_age_s = connect_s, tls_s, idle_s, max_age_s
        self._max_reply, self._max_head = max_reply, max_head
        self._open: set[_Connection] = set()
        self._idle: list[_Connection] = []  # last in, first out: the surplus of a rush grows old and is closed
        self._queue: OrderedDict[asyncio.Future[None], None] = OrderedDict()  # those who wait for a slot, in order
        self._limits: set[asyncio.Timeout] = set()
        self._lookup: asyncio.Task[list[str]] | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._good_address: str | None = None
        self._in_use = self._opened = 0
        self._closed = False

    async def send(self, request: Request, *, deadline_s: float) -> Reply:
        """Send once and read the whole reply, all within `deadline_s` seconds.

        Raises SendFailed; ValueError, before anything is sent, for a request that could break its own framing.
        Cancelling it closes the connection in use.
        """
        data = self._encode(request)
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + deadline_s
        if self._closed:
            raise SendFailed("unreachable", "closed", sent=False)
        if self._in_use < self._connections:
            self._in_use += 1
        else:
            await self._slot(loop, ends_at)
        connection = None
        try:
            connection = self._reuse(loop.time()) or await self._connect(loop, ends_at)
            return await connection.exchange(data, ends_at, bodiless=request.method == "HEAD")
        finally:
            if connection is not None:
                self._keep(loop, connection)
            self._free_slot()

    async def close(self) -> None:
        """End every connection and every call. Later calls fail as unreachable, not sent."""
        self._closed = True  # those who wait for a slot get one from those who end here, and end too
        now = asyncio.get_running_loop().time()
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(now)
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._lookup is not None:
            self._lookup.cancel()
        if lost := [connection.abort() for connection in list(self._open)]:
            await asyncio.wait(lost, timeout=1.0)

    def stats(self) -> Stats:
        """The pool as it is now."""
        return Stats(open=len(self._open), idle=len(self._idle), in_use=self._in_use, opened=self._opened)

    def _encode(self, request: Request) -> bytes:
        method, target, body = request.method, request.target, request.body
        if not _METHOD(method) or method == "CONNECT" or not _TARGET(target):
            raise ValueError("the method must be a word in capitals, the target a path in ASCII")
        lines = [method, " ", self._prefix, target, self._fixed]
        for name, value in request.headers:
            if not _NAME(name) or not _VALUE(value):
                raise ValueError("a header name must be a token, its value visible ASCII")
            if name.lower() in _RESERVED:
                raise ValueError(f"the header {name} is not the caller's to set")
            lines += (name, ": ", value, "\r\n")
        if body or method in _WITH_LENGTH:
            lines.append(f"Content-Length: {len(body)}\r\n")
        lines.append("\r\n")
        # Head and body in one write: one system call, and one segment for a small request.
        return "".join(lines).encode("ascii") + body

    async def _slot(self, loop: asyncio.AbstractEventLoop, ends_at: float) -> None:
        turn: asyncio.Future[None] = loop.create_future()
        self._queue[turn] = None
        timer = loop.call_at(min(loop.time() + self._pool_wait_s, ends_at), _too_late, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._free_slot()  # the slot came in the same turn of the loop as the cancellation
            raise
        finally:
            timer.cancel()
            self._queue.pop(turn, None)

    def _free_slot(self) -> None:
        while self._queue:
            turn, _ = self._queue.popitem(last=False)
            if not turn.done():
                turn.set_result(None)  # handed over, so that a newcomer cannot overtake
                return
        self._in_use -= 1

    def _reuse(self, now: float) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            young = now - connection.opened_at < self._max_age_s and now - connection.idle_at < self._idle_s
            if young and connection.quiet():
                return connection
            connection.abort()
        return None

    def _keep(self, loop: asyncio.AbstractEventLoop, connection: _Connection) -> None:
        if self._closed or not connection.reusable():
            connection.abort()
            return
        connection.idle_at = loop.time()
        self._idle.append(connection)
        if self._sweeper is None:  # one timer for the pool, none for each connection
            self._sweeper = loop.call_later(self._idle_s, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweeper = None
        while self._idle and loop.time() - self._idle[0].idle_at >= self._idle_s:  # the first is idle the longest
            self._idle.pop(0).abort()
        if self._idle:
            self._sweeper = loop.call_at(self._idle[0].idle_at + self._idle_s, self._sweep, loop)

    def _forget(self, connection: _Connection) -> None:
        self._open.discard(connection)
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)

    async def _connect(self, loop: asyncio.AbstractEventLoop, ends_at: float) -> _Connection:
        """Raises SendFailed, always with `sent` False: the request itself is not part of this."""
        cause: Cause = "unreachable"
        transport: asyncio.Transport | None = None
        try:
            async with self._within(min(loop.time() + self._connect_s, ends_at)):
                transport, connection = await self._dial(loop, min(loop.time() + self._connect_s, ends_at))
            if self._tls is not None:
                cause = "tls"
                async with self._within(min(loop.time() + self._tls_s, ends_at)):
                    connection = await self._secure(loop, transport, self._tls)
            if connection.closing():
                raise ConnectionError("closed as soon as it was open")
        except BaseException as error:
            if transport is not None:
                transport.abort()
            if isinstance(error, OSError):  # as TimeoutError, gaierror and SSLError are
                raise SendFailed(cause, str(error) or "no answer in time", sent=False) from error
            raise
        self._open.add(connection)
        self._opened += 1
        return connection

    @contextlib.asynccontextmanager
    async def _within(self, until: float) -> AsyncIterator[None]:
        """A time limit that close() can bring forward."""
        if self._closed:
            raise ConnectionError("closed")
        async with asyncio.timeout_at(until) as limit:
            self._limits.add(limit)
            try:
                yield
            finally:
                self._limits.discard(limit)

    async def _dial(self, loop: asyncio.AbstractEventLoop, until: float) -> tuple[asyncio.Transport, _Connection]:
        """TCP to the host, or a tunnel to it (CONNECT, RFC 9110 §9.3.6)."""
        if self._lookup is None:
            # One look-up at a time, shared: a resolver that hangs must not fill the loop's thread pool.
            self._lookup = loop.create_task(_resolve(loop, *self._peer))
            self._lookup.add_done_callback(self._looked_up)
        addresses = await asyncio.shield(self._lookup)
        addresses = sorted(addresses, key=lambda address: address != self._good_address)[:MAX_ADDRESSES]
        for left in range(len(addresses), 0, -1):
            address, now = addresses[-left], loop.time()
            try:
                # An equal share of what is left: a dead IPv6 route must not use up the time of IPv4.
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

    def _looked_up(self, task: asyncio.Task[list[str]]) -> None:
        self._lookup = None
        if not task.cancelled():
            task.exception()  # seen, even if every caller has gone

    async def _secure(
        self, loop: asyncio.AbstractEventLoop, tcp: asyncio.Transport, context: ssl.SSLContext
    ) -> _Connection:
        connection = self._connection()
        connection.attach(tcp, tcp)  # the peer may push or end before the next line has its result
        transport = await loop.start_tls(tcp, connection, context, server_hostname=self._host)
        if transport is None:
            raise ConnectionError("closed in the handshake")
        connection.attach(transport, tcp)
        return connection

    def _connection(self) -> _Connection:
        return _Connection(self._max_reply, self._max_head, self._forget)


class _Connection(asyncio.Protocol):
    """One connection and the reply being read on it: idle, then busy from the write until the reply, then idle or gone.

    Its callbacks from the parser run inside `data_received`. The first end of a call wins; later ones only close.
    """

    def __init__(self, max_reply: int, max_head: int, forget: Callable[[_Connection], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._max_reply, self._max_head, self._forget = max_reply, max_head, forget
        self._parser = HttpResponseParser(self)
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._waiter: asyncio.Future[Reply] | None = None
        self.opened_at = self.idle_at = self._loop.time()
        self._clean = False
        self._begin(bodiless=False)

    def _begin(self, *, bodiless: bool) -> None:
        self._bodiless, self._until_close, self._gzip = bodiless, False, False
        self._status = self._interim = self._wire = 0  # the status is 0 until the head of the final reply is whole
        self._left = self._max_reply
        self._fields: list[tuple[bytes, bytes]] = []
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._inflate: _Decompress | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        tcp = cast("asyncio.Transport", transport)  # uvloop's is one by shape only
        self.attach(tcp, tcp)

    def attach(self, transport: asyncio.Transport, tcp: asyncio.Transport) -> None:
        """Speak over `transport`, which is `tcp` or TLS upon it."""
        self._transport, self._tcp = transport, tcp
        self._poll = select.poll()
        self._poll.register(tcp.get_extra_info("socket").fileno(), select.POLLIN)

    def quiet(self) -> bool:
        """Whether an idle connection is alive and nothing has come in.

        Asks the kernel, since the loop may not have read yet: what came before a request is no answer to it, and
        a request written after the peer's FIN is lost in a way that nobody can tell from a request that was served.
        """
        return not self._transport.is_closing() and not self._poll.poll(0)

    def closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._lost.done() or self._transport.is_closing()

    def reusable(self) -> bool:
        """Whether the last reply was read whole and leaves the connection fit for another request."""
        return self._clean and not self._transport.is_closing()

    def abort(self) -> asyncio.Future[None]:
        """Close at once, without flushing or a TLS farewell; the future is done when it is closed."""
        self._transport.abort()
        return self._lost

    async def exchange(self, data: bytes, ends_at: float, *, bodiless: bool) -> Reply:
        """Write one request and wait for its reply; `bodiless` for HEAD and CONNECT. Raises SendFailed."""
        if not self._loop.time() < ends_at:  # nor if it is no number
            raise SendFailed("timeout", "the deadline passed before the request was sent", sent=False)
        if self.closing():
            raise SendFailed("unreachable", "closed before the request was sent", sent=False)
        self._begin(bodiless=bodiless)
        self._clean = False
        waiter: asyncio.Future[Reply] = self._loop.create_future()
        self._waiter = waiter
        timer = self._loop.call_at(ends_at, self._fail, "timeout", "no whole reply before the deadline")
        try:
            # The one write. Once the kernel may have taken a byte, a failure is maybe applied: even a peer that
            # resets may have read the request first, and no transport tells how much of a write was accepted.
            self._transport.write(data)
            return await waiter
        finally:
            timer.cancel()
            self._waiter = None

    async def tunnel(self, connect: bytes, until: float) -> None:
        """Have a proxy open a tunnel. Raises ConnectionError unless it answers 2xx and nothing more."""
        try:
            reply = await self.exchange(connect, until, bodiless=True)
        except SendFailed as error:
            raise ConnectionError(f"the proxy failed: {error}") from error
        if not 200 <= reply.status <= 299 or self.closing():
            raise ConnectionError(f"the proxy answered {reply.status}")

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self._waiter.done():
            self._transport.abort()  # nobody asked: it must not be taken for the next reply
            return
        self._wire += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserError:
            self._fail("malformed", "not a valid HTTP/1.1 reply")
        else:
            if not self._status and self._wire > self._max_head:
                self._fail("malformed", "the head is too large")
            elif self._wire > self._max_head + WIRE_FACTOR * self._max_reply:
                self._fail("malformed", "too many bytes for what they hold")

    def eof_received(self) -> None:
        if self._until_close:
            self._finish(keep=False)
        else:
            self._fail("cut", "the connection ended before the reply did")

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._fail("cut", "the connection was lost before the reply was whole")
        if not self._lost.done():
            self._lost.set_result(None)
        self._forget(self)

    def on_message_begin(self) -> None:
        if self._status:
            raise _RefusedError

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._status:
            return  # a trailer
        if len(self._fields) >= MAX_FIELDS:
            self._refuse("too many header fields")
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 <= status <= 199 and status != 101:
            self._interim += 1
            if self._interim > MAX_INTERIM:
                self._refuse("too many interim replies")
            self._fields.clear()
            return
        version = self._parser.get_http_version()
        if not 200 <= status <= 599 or version not in {"1.1", "1.0"}:
            self._refuse("an unknown version, an unasked upgrade or no status of HTTP")
        # The sum is needed only when one read brought more than a whole head may have.
        if self._wire > self._max_head < sum(len(name) + len(value) + 4 for name, value in self._fields):
            self._refuse("the head is too large")
        self._status, self._headers = status, _headers(self._fields)
        transfer = self._headers.get("transfer-encoding")
        if transfer is not None and (transfer.lower() != "chunked" or version == "1.0"):
            self._refuse("a transfer coding out of place")  # the parser refuses one beside a Content-Length
        coding = self._headers.get("content-encoding", "identity").lower()
        if coding in {"gzip", "x-gzip"}:
            self._gzip = True
        elif coding != "identity":
            self._refuse("an unknown content coding")
        if self._bodiless:
            self._finish(keep=False)  # the parser cannot be told that no body follows
        elif transfer is None and "content-length" not in self._headers and status not in _BODILESS:
            self._until_close = True

    def on_body(self, body: bytes) -> None:
        if not self._status or self._bodiless:
            self._refuse("a body where none can be")
        if self._gzip:
            body = self._inflated(body)
        self._left -= len(body)
        if self._left < 0:
            self._refuse("the body is too large")
        self._body += body

    def _inflated(self, body: bytes) -> bytes:
        if self._inflate is None:
            self._inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        elif self._inflate.eof:
            self._refuse("bytes after the end of gzip")
        try:
            # One byte more than the bound is enough to know, so a bomb is never inflated.
            plain = self._inflate.decompress(body, self._left + 1)
        except zlib.error:
            self._refuse("broken gzip")
        if self._inflate.unused_data:
            self._refuse("bytes after the end of gzip")
        return plain

    def on_message_complete(self) -> None:
        if self._status and not self._bodiless:
            self._finish(keep=self._parser.should_keep_alive())

    def _finish(self, *, keep: bool) -> None:
        if self._waiter is None or self._waiter.done():
            return
        if self._inflate is not None and not self._inflate.eof:
            self._fail("malformed", "gzip without its end")
            return
        # With part of the request still here, an early reply ends the connection too.
        unsent = self._transport.get_write_buffer_size() or self._tcp.get_write_buffer_size()
        self._clean = keep and not unsent
        self._waiter.set_result(Reply(self._status, self._headers, bytes(self._body)))

    def _refuse(self, detail: str) -> NoReturn:
        self._fail("malformed", detail)
        raise _RefusedError

    def _fail(self, cause: Cause, detail: str) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(SendFailed(cause, detail, sent=True))
        self._transport.abort()


class _RefusedError(Exception):
    """Stops the parser."""


def _headers(fields: list[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, value in fields:
        key, text = name.decode("ascii").lower(), value.strip(b" \t").decode("latin-1")
        if not text.isascii() and key not in _CODINGS:
            continue  # a coding stays: it is refused for what it is, not overlooked
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    headers.pop("set-cookie", None)
    return headers


def _through(proxy: str, authority: str) -> tuple[tuple[str, int], bytes]:
    """Where the proxy is, and what opens a tunnel through it (RFC 9110 §9.3.6)."""
    url = urlsplit(proxy)
    if url.scheme != "http" or not url.hostname:
        raise ValueError("the proxy must be http://[user:password@]host[:port]")
    head = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n"
    if url.username is not None:
        pair = unquote_to_bytes(url.username) + b":" + unquote_to_bytes(url.password or "")
        head += f"Proxy-Authorization: Basic {base64.b64encode(pair).decode()}\r\n"
    return (url.hostname, url.port or 80), f"{head}\r\n".encode("ascii")


def _too_late(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_exception(SendFailed("busy", "no connection became free in time", sent=False))


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
