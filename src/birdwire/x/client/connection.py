"""One connection to X and the reply that is read on it: bounded, framed by HTTP/1.1, with its codings decoded.

Every failure states whether a byte of the request may have reached X. A connection knows no pool, and sends nothing by
itself.
"""

from __future__ import annotations

import asyncio
import select
import zlib
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Final, Literal, NoReturn, cast

from httptools import HttpParserError, HttpResponseParser

from birdwire.x.client.rate_headers import RATE_HEADERS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from zlib import _Decompress

Cause = Literal["unreachable", "tls", "busy", "timeout", "cut", "malformed"]

MAX_INTERIM_REPLIES: Final = 8
"""The number of 1xx replies before the final one."""
MAX_FIELDS: Final = 256
"""The number of header fields in one reply."""
MAX_WIRE_FACTOR: Final = 8
"""Bytes on the wire for each byte of the body: a body of one-byte chunks takes six."""

_BODILESS: Final = frozenset({204, 304})

HEADERS_READ: Final = frozenset({"content-encoding", "content-length", "transfer-encoding", *RATE_HEADERS})
"""The headers of a reply that the gateway reads. X sends twice as many: the others are counted, but never decoded."""
_BY_NAME: Final = {name.encode(): name for name in HEADERS_READ}


@dataclass(slots=True, repr=False)
class Reply:
    """A whole final reply.

    `headers` has those of HEADERS_READ, in lower case, with repeated fields joined by ", ". The values are as received.
    `body` is decoded: chunked framing and gzip are removed. The repr shows neither.
    """

    status: int
    headers: Mapping[str, bytes]
    body: bytes

    def __repr__(self) -> str:
        return f"Reply({self.status}, {len(self.body)} bytes)"


class SendFailed(Exception):  # noqa: N818 - it reads as what happened
    """There is no whole, valid reply.

    `cause` is one of:
      unreachable  no address, no connection, no tunnel, or the pool is closed
      tls          the handshake failed, or the certificate does not match the host
      busy         no connection became free in time
      timeout      the deadline passed
      cut          the connection closed before the reply was complete
      malformed    the reply violates HTTP or exceeds a bound

    `sent` False: no byte of the request left on a live connection. `sent` True: X may have applied it.
    """

    def __init__(self, cause: Cause, detail: str, *, sent: bool) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause: Cause = cause
        self.sent = sent


class Connection(asyncio.Protocol):
    """One connection and the reply being read on it: idle, busy from the write until the reply, then idle or closed.

    The parser's callbacks run inside `data_received`. The first result of a request counts; later ones only close.
    """

    def __init__(self, max_reply: int, max_head: int, on_lost: Callable[[Connection], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._max_reply, self._max_head, self._on_lost = max_reply, max_head, on_lost
        self._parser = HttpResponseParser(self)
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._waiter: asyncio.Future[Reply] | None = None
        self._ends_at = 0.0
        self.opened_at = self.idle_at = self._loop.time()
        self._clean = True
        self._begin(bodiless=False)

    def _begin(self, *, bodiless: bool) -> None:
        self._bodiless, self._until_close, self._gzip = bodiless, False, False
        # The status is 0 until the head of the final reply is complete.
        self._status = self._interim = self._fields = self._wire = 0
        self._left = self._max_reply
        self._headers: dict[str, bytes] = {}
        self._body = bytearray()
        self._inflate: _Decompress | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport of a new connection."""
        # uvloop's transport does not inherit from asyncio's.
        tcp = cast("asyncio.Transport", transport)
        self.attach(tcp, tcp)

    def attach(self, transport: asyncio.Transport, tcp: asyncio.Transport) -> None:
        """Use `transport`, which is `tcp` itself or TLS on top of it."""
        self._transport, self._tcp = transport, tcp
        self._poll = select.poll()
        self._poll.register(tcp.get_extra_info("socket").fileno(), select.POLLIN)

    def quiet(self) -> bool:
        """Return whether an idle connection is open and nothing has arrived on it.

        It polls the kernel, since the loop may not have read yet: bytes that arrived before a request do not answer
        it, and a request written after the peer's FIN is lost in a way that looks like a request that was served.
        """
        return not self._transport.is_closing() and not self._poll.poll(0)

    def closing(self) -> bool:
        """Return whether the connection is closed, or about to be."""
        return self._lost.done() or self._transport.is_closing()

    def reusable(self) -> bool:
        """Return whether the connection can take a request: it is new, or has read the whole reply to the last one."""
        return self._clean and not self._transport.is_closing()

    def abort(self) -> asyncio.Future[None]:
        """Close immediately, without flushing or a TLS close_notify. The returned future is done once it is closed."""
        self._transport.abort()
        return self._lost

    def exchange(self, data: bytes, ends_at: float, *, bodiless: bool) -> asyncio.Future[Reply]:
        """Write one request, and return the future of its reply; `bodiless` for HEAD and CONNECT. Raises SendFailed.

        The future raises it too. The caller applies the deadline by `expire`, or by cancelling.
        """
        # Written so that it also holds for NaN.
        if not self._loop.time() < ends_at:
            raise SendFailed("timeout", "the deadline passed before the request was sent", sent=False)
        if self.closing():
            raise SendFailed("unreachable", "closed before the request was sent", sent=False)
        self._begin(bodiless=bodiless)
        self._clean = False
        self._waiter = waiter = self._loop.create_future()
        self._ends_at = ends_at
        # The only write. Once the kernel may have taken a byte, a failure means "maybe applied": even a peer that
        # resets may have read the request first, and no transport reports how much of a write was accepted.
        self._transport.write(data)
        return waiter

    def expire(self, now: float) -> float:
        """Fail the request in progress if its deadline has passed; otherwise return that deadline (inf: no request)."""
        if self._waiter is None or self._waiter.done():
            return inf
        if now < self._ends_at:
            return self._ends_at
        self._fail("timeout", "no complete reply before the deadline")
        return inf

    async def tunnel(self, connect: bytes, until: float) -> None:
        """Open a tunnel through a proxy. Raises ConnectionError unless the proxy answers 2xx and nothing more."""
        try:
            reply = await self.exchange(connect, until, bodiless=True)
        except SendFailed as error:
            raise ConnectionError(f"the proxy failed: {error}") from error
        if not 200 <= reply.status <= 299 or self.closing():
            raise ConnectionError(f"the proxy answered {reply.status}")

    def data_received(self, data: bytes) -> None:
        """Feed bytes of the reply to the parser. Bytes that no request is waiting for close the connection."""
        if self._waiter is None or self._waiter.done():
            # They must not be taken for the reply to the next request.
            self._transport.abort()
            return
        head_room = self._max_head - self._wire
        self._wire += len(data)
        try:
            if self._status == 0 and len(data) > head_room:
                # Only the bytes that the head may still have: the rest belongs to the body, or is too much.
                self._parser.feed_data(data[:head_room])
                if self._status == 0:
                    self._fail("malformed", "the head is too large")
                    return
                data = data[head_room:]
            self._parser.feed_data(data)
        except HttpParserError:
            self._fail("malformed", "not a valid HTTP/1.1 reply")
        else:
            if self._wire > self._max_head + MAX_WIRE_FACTOR * self._max_reply:
                self._fail("malformed", "too many bytes on the wire for the size of the body")

    def eof_received(self) -> None:
        """Finish a reply that is delimited by the close; any other reply is cut."""
        if self._until_close:
            self._finish(keep=False)
        else:
            self._fail("cut", "the connection ended before the reply did")

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request in progress, and report the loss to the pool."""
        del exc
        self._fail("cut", "the connection was lost before the reply was complete")
        if not self._lost.done():
            self._lost.set_result(None)
        self._on_lost(self)

    def on_message_begin(self) -> None:
        """Refuse a second final reply."""
        if self._status:
            raise _RefusedError

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header field, and keep it if it is read. Trailers, which follow the head, are dropped."""
        self._fields += 1
        key = _BY_NAME.get(name.lower())
        if key is None or self._status or self._fields > MAX_FIELDS:
            return
        value = value.strip(b" \t")
        self._headers[key] = b"%b, %b" % (self._headers[key], value) if key in self._headers else value

    def on_headers_complete(self) -> None:
        """Choose the framing of the body by RFC 9112 §6.3, now that the head is complete."""
        # Until the head is complete, the bound of its bytes also bounds its fields.
        if self._fields > MAX_FIELDS:
            self._refuse("too many header fields")
        status = self._parser.get_status_code()
        if 100 <= status <= 199 and status != 101:
            self._interim += 1
            if self._interim > MAX_INTERIM_REPLIES:
                self._refuse("too many interim replies")
            self._fields = 0
            self._headers.clear()
            return
        version = self._parser.get_http_version()
        if not 200 <= status <= 599 or version not in {"1.1", "1.0"}:
            self._refuse("an unknown version, an unrequested upgrade or an invalid status")
        self._status = status
        transfer = self._headers.get("transfer-encoding")
        if transfer is not None and (transfer.lower() != b"chunked" or version == "1.0"):
            # The parser itself refuses a transfer coding together with a Content-Length.
            self._refuse("a misplaced transfer coding")
        coding = self._headers.get("content-encoding", b"identity").lower()
        if coding in {b"gzip", b"x-gzip"}:
            self._gzip = True
        elif coding != b"identity":
            self._refuse("an unknown content coding")
        if self._bodiless:
            # The parser has no option for a reply without a body.
            self._finish(keep=False)
        elif transfer is None and "content-length" not in self._headers and status not in _BODILESS:
            self._until_close = True

    def on_body(self, body: bytes) -> None:
        """Add a part of the body."""
        if not self._status or self._bodiless:
            self._refuse("an unexpected body")
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
            # One byte more than the bound is enough to detect a bomb, which is never inflated.
            plain = self._inflate.decompress(body, self._left + 1)
        except zlib.error:
            self._refuse("invalid gzip data")
        if self._inflate.unused_data:
            self._refuse("bytes after the end of the gzip data")
        return plain

    def on_message_complete(self) -> None:
        """Finish a complete reply."""
        if self._status and not self._bodiless:
            self._finish(keep=self._parser.should_keep_alive())

    def _finish(self, *, keep: bool) -> None:
        if self._waiter is None or self._waiter.done():
            return
        if self._inflate is not None and not self._inflate.eof:
            self._fail("malformed", "truncated gzip")
            return
        # If part of the request is still buffered, an early reply ends the connection too.
        unsent = self._transport.get_write_buffer_size() or self._tcp.get_write_buffer_size()
        self._clean = keep and not unsent
        self._waiter.set_result(Reply(self._status, self._headers, bytes(self._body)))
        # An idle connection holds no reply: it may have brought tokens.
        self._waiter, self._headers, self._body = None, {}, bytearray()

    def _refuse(self, detail: str) -> NoReturn:
        self._fail("malformed", detail)
        raise _RefusedError

    def _fail(self, cause: Cause, detail: str) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(SendFailed(cause, detail, sent=True))
        self._transport.abort()


class _RefusedError(Exception):
    """Stops the parser."""
