"""One connection to X and the reply that is read on it: bounded, framed by HTTP/1.1, with codings undone.

It says in every failure whether a byte of the request may have reached X. It knows no pool, and never sends by itself.
"""

from __future__ import annotations

import asyncio
import select
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NoReturn, cast

from httptools import HttpParserError, HttpResponseParser

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from zlib import _Decompress

Cause = Literal["unreachable", "tls", "busy", "timeout", "cut", "malformed"]

MAX_INTERIM: Final = 8  # 1xx replies before the final one
MAX_FIELDS: Final = 256  # header fields in one reply
WIRE_FACTOR: Final = 8  # a body of one-byte chunks takes six bytes on the wire for each of its own

_BODILESS: Final = frozenset({204, 304})
_CODINGS: Final = frozenset({"content-encoding", "transfer-encoding"})


@dataclass(slots=True, repr=False)
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


class Connection(asyncio.Protocol):
    """One connection and the reply being read on it: idle, then busy from the write until the reply, then idle or gone.

    Its callbacks from the parser run inside `data_received`. The first end of a call wins; later ones only close.
    """

    def __init__(self, max_reply: int, max_head: int, forget: Callable[[Connection], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._max_reply, self._max_head, self._forget = max_reply, max_head, forget
        self._parser = HttpResponseParser(self)
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._waiter: asyncio.Future[Reply] | None = None
        self.opened_at = self.idle_at = self._loop.time()
        self._clean = True
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
        """The transport is there."""
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
        """Whether it is fit for a request: it has had none yet, or read the whole reply to the last one."""
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
        timer = self._loop.call_at(ends_at, self._fail, "timeout", "no complete reply before the deadline")
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
        """More bytes of the reply, or bytes that nobody asked for."""
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
                self._fail("malformed", "too much framing for the content")

    def eof_received(self) -> None:
        """The peer says no more: the end of a close-delimited reply, or too early."""
        if self._until_close:
            self._finish(keep=False)
        else:
            self._fail("cut", "the connection ended before the reply did")

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        del exc
        self._fail("cut", "the connection was lost before the reply was complete")
        if not self._lost.done():
            self._lost.set_result(None)
        self._forget(self)

    def on_message_begin(self) -> None:
        """A reply begins."""
        if self._status:
            raise _RefusedError

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field, or a trailer, which is dropped."""
        if self._status:
            return  # a trailer
        if len(self._fields) >= MAX_FIELDS:
            self._refuse("too many header fields")
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole: frame the body by RFC 9112 §6.3."""
        status = self._parser.get_status_code()
        if 100 <= status <= 199 and status != 101:
            self._interim += 1
            if self._interim > MAX_INTERIM:
                self._refuse("too many interim replies")
            self._fields.clear()
            return
        version = self._parser.get_http_version()
        if not 200 <= status <= 599 or version not in {"1.1", "1.0"}:
            self._refuse("an unknown HTTP version, an unrequested upgrade or an invalid status")
        # The sum is needed only when one read brought more than a whole head may have.
        if self._wire > self._max_head < sum(len(name) + len(value) + 4 for name, value in self._fields):
            self._refuse("the head is too large")
        self._status, self._headers = status, _headers(self._fields)
        transfer = self._headers.get("transfer-encoding")
        if transfer is not None and (transfer.lower() != "chunked" or version == "1.0"):
            self._refuse("an unexpected transfer coding")  # the parser refuses one beside a Content-Length
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
        """A piece of the body."""
        if not self._status or self._bodiless:
            self._refuse("a body where none is allowed")
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
            self._refuse("bytes after the end of the gzip data")
        try:
            # One byte more than the bound is enough to know, so a bomb is never inflated.
            plain = self._inflate.decompress(body, self._left + 1)
        except zlib.error:
            self._refuse("invalid gzip data")
        if self._inflate.unused_data:
            self._refuse("bytes after the end of the gzip data")
        return plain

    def on_message_complete(self) -> None:
        """The reply is whole."""
        if self._status and not self._bodiless:
            self._finish(keep=self._parser.should_keep_alive())

    def _finish(self, *, keep: bool) -> None:
        if self._waiter is None or self._waiter.done():
            return
        if self._inflate is not None and not self._inflate.eof:
            self._fail("malformed", "truncated gzip data")
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
