"""The HTTP server protocol: deadlines, sizes, one meaning for every byte, and every refusal in the error envelope.

A subclass of uvicorn's protocol: a complete, small and unambiguous request goes on to the app. Knows no key and no
route.
"""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from birdwire.api.errors import GatewayError, refuse
from birdwire.api.messages import Call, new_request_id
from birdwire.edge.asgi import headers_out
from birdwire.edge.connections import ConnectionLimits, TransportFacade, disable_nagle, unread
from birdwire.edge.request_head import (
    PARSER_ERRORS,
    SIMPLE_REQUEST,
    body_length,
    checked_host,
    encoded,
    malformed,
    origin_form,
)
from birdwire.runtime.addresses import address_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine, Iterable, Mapping, Sequence

    from starlette.types import ASGIApp
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


MAX_PIECE_BYTES = 4_096
"""Bytes parsed at a time: a check of the queue or of a size is late by at most this much."""
CHUNK_OVERHEAD_BYTES = 8
"""Framing of an ordinary chunk: up to four digits and two line ends."""

# What the connection reads now: nothing yet, a head, a body, or bytes that it discards until it closes.
_IDLE, _HEAD, _BODY, _DISCARDING = range(4)


class EdgeProtocol(HttpToolsProtocol):
    """One connection. A GatewayError, also from a parser callback, refuses the request and closes the connection."""

    def __init__(self, connections: ConnectionLimits, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._connections = connections
        self._limits = connections.limits
        self._phase = _IDLE
        self._running: RequestResponseCycle | None = None
        # Bytes read, but not parsed until the queued request is answered.
        self._unparsed = b""
        # The refusal that follows the responses still owed.
        self._final_refusal = b""
        self._eof = self._closing = self.inside = False
        self._close_after_response = False
        self._now = self._started_at = self.loop.time()
        self._read_deadline = self._write_deadline = self._timer_due = inf
        self._timer: asyncio.TimerHandle | None = None
        self.url = b""
        self._fields: dict[str, list[str]] = {}
        self._header_count = self._head_fed = self._framing = self._body_left = self._dropped = 0
        self._body_limit, self._body_s = self._limits.body_bytes, self._limits.body_s

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Accept the connection or answer 503; beyond the limit of 503 answers, close it."""
        super().connection_made(transport)
        disable_nagle(transport)
        self._socket_transport = transport
        self.transport = cast("asyncio.Transport", TransportFacade(transport, self._close))
        self._address = address_of(self.client[0]) if self.client else None
        self._proxied = self._connections.trusts(self._address)
        self.inside, reads = self._connections.admit(self, self._address, cast("set[EdgeProtocol]", self.connections))
        if reads:
            self._read_deadline = self._now + self._limits.head_s
            self._arm()
        elif self._connections.crowded(self.connections):
            self._abort()
        else:
            self._refuse(GatewayError("overloaded"))

    def eviction_rank(self) -> tuple[int, float] | None:
        """Rank it for eviction: heads, idle connections, bodies, each by deadline. None: it serves a request."""
        if self._read_deadline == inf or (self._running is not None and self._phase != _BODY):
            return None
        return (2 if self._phase == _BODY else int(self._phase == _IDLE and self.url != b"")), self._read_deadline

    def has_unread_data(self) -> bool:
        """Return whether a request has reached the kernel but not yet this process."""
        return self._phase == _IDLE and unread(self._socket_transport)

    def evict(self) -> None:
        """Close as at the deadline, with 503 if part of a request has arrived. Frees the place immediately."""
        self._release()
        if self._connections.crowded(self.connections):
            self._abort()
        elif self._phase in (_HEAD, _BODY):
            self._refuse(GatewayError("overloaded"))
        else:
            self._close()

    def _abort(self) -> None:
        self.connections.discard(self)
        self._phase = _DISCARDING
        self._socket_transport.abort()

    def _release(self) -> None:
        if self.inside:
            self.inside = False
            self._connections.leave(self._address)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel every deadline, release the place, and notify the running request that its client disconnected."""
        self._closing, self._phase = True, _DISCARDING
        self._read_deadline = self._write_deadline = inf
        if self._timer is not None:
            self._timer.cancel()
        self._release()
        self.pipeline.clear()
        self._unparsed = b""
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def drain(self) -> None:
        """Close after the current or the next response, and announce it there (RFC 9112 §9.6)."""
        self._close_after_response = True
        if self._running is not None:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """Close now if no response is owed; a request that is arriving gets `linger_s` to complete, and is answered."""
        self.drain()
        if self._running is not None or self._closing:
            return
        if self._phase == _IDLE and not unread(self._socket_transport):
            self._close()
        else:
            self._read_deadline = min(self._read_deadline, self.loop.time() + self._limits.linger_s)
            self._arm()

    def data_received(self, data: bytes) -> None:
        """Parse bytes from the peer, or discard them once the connection is closing."""
        if self._phase == _DISCARDING:
            self._dropped += len(data)
            if self._dropped > self._limits.linger_bytes:
                self._socket_transport.abort()
        elif self._unparsed:
            # The app resumed reading for its own request, which is already complete.
            self._unparsed += data
            self.flow.pause_reading()
        else:
            self._now = self.loop.time()
            self._read(data)
            self._arm()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio knows an answer
        """Handle the end of the peer's bytes; its complete requests are still answered."""
        if self._phase == _DISCARDING and self._closing:
            self._socket_transport.close()
        else:
            self._eof = True
            self._at_eof()
        # TLS has no half-closed state.
        return self.scheme == "http"

    def pause_writing(self) -> None:
        """Start the write deadline: the peer reads too slowly."""
        super().pause_writing()
        self._write_deadline = self.loop.time() + self._limits.write_s
        self._arm()

    def resume_writing(self) -> None:
        """Cancel the write deadline: the peer caught up."""
        super().resume_writing()
        if not self._closing:
            self._write_deadline = inf

    # Reading.

    def _read(self, data: bytes | memoryview) -> None:
        """Parse the bytes piece by piece; those after a queued request wait."""
        limits = self._limits
        if len(data) > MAX_PIECE_BYTES:
            data = memoryview(data)
        while data and self._phase != _DISCARDING:
            if self.pipeline:
                self._unparsed = bytes(data)
                break
            size = min(MAX_PIECE_BYTES, limits.head_bytes - self._head_fed) if self._phase == _HEAD else MAX_PIECE_BYTES
            piece, data = (data, b"") if len(data) <= size else (data[:size], data[size:])
            try:
                self._parse(piece)
            except GatewayError as error:
                self._refuse(error)
            except httptools.HttpParserError as error:
                self._refuse(self._refusal_of(error))
        if self.pipeline:
            self.flow.pause_reading()
            self._read_deadline = inf

    def _parse(self, piece: bytes | memoryview) -> None:
        before, unread = self._phase, None
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            unread = piece[upgrade.args[0] :]
        if unread is not None:
            # Outside of `except`, so that its errors have their own context.
            self._reparse_without_upgrade(unread)
        elif self._phase == _IDLE:
            self._head_fed = 0
        elif self._phase == _HEAD:
            self._head_fed += len(piece)
            if self._head_fed >= self._limits.head_bytes:
                raise GatewayError("headers_too_large")
            # An HTTP/0.9 request line: no header would ever follow.
            if before == _IDLE and SIMPLE_REQUEST.search(piece):
                raise malformed("it has no HTTP version")
        elif before == _BODY:
            self._framing += len(piece)
            if self._framing > self._limits.framing_bytes:
                raise malformed("its chunked framing is larger than its content")

    def _reparse_without_upgrade(self, rest: bytes | memoryview) -> None:
        """Parse a request again without its Upgrade header: the parser stops there, and no upgrade is offered."""
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in encoded(self._fields) if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._phase, self._head_fed = _IDLE, -MAX_PIECE_BYTES
        self._parse(b"\r\n".join([*lines, b"", b""]))
        if rest:
            self._parse(rest)

    def _refusal_of(self, error: httptools.HttpParserError) -> GatewayError:
        cause = error.__context__
        if isinstance(cause, GatewayError):
            return cause
        if cause is not None:
            return self._crash(cause)
        return malformed(PARSER_ERRORS.get(type(error), "its headers or framing violate RFC 9112"))

    def _crash(self, error: BaseException) -> GatewayError:
        if self._connections.telemetry is not None:
            self._connections.telemetry.crash(new_request_id(), error)
        return GatewayError("internal")

    def _at_eof(self) -> None:
        if self._phase in (_HEAD, _BODY):
            self._refuse(malformed("it is incomplete"))
        elif self._running is None:
            self._close()

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        """Start the head's deadline at the first byte of a request."""
        self._phase = _HEAD
        self.url, self._fields, self._header_count = b"", {}, 0
        self._started_at = self._now
        self._read_deadline = self._now + self._limits.head_s

    def on_url(self, url: bytes) -> None:
        """Append a part of the request target, within its limit."""
        self.url += url
        if len(self.url) > self._limits.target_bytes:
            raise GatewayError("uri_too_long", limit=self._limits.target_bytes)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Record a header. A trailer is ignored (RFC 9110 §6.5.1)."""
        if self._phase != _HEAD:
            return
        self._header_count += 1
        if self._header_count > self._limits.headers:
            raise GatewayError("headers_too_large")
        self._fields.setdefault(name.lower().decode("latin-1"), []).append(value.decode("latin-1").strip(" \t"))

    def on_headers_complete(self) -> None:
        """Check what the parser leaves open in a complete head, then start the request."""
        fields, method, version = self._fields, self.parser.get_method(), self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise malformed("its HTTP version is not 1.1 or 1.0")
        host = checked_host(fields.get("host", ()), version, self._limits.hosts)
        target = self.url.decode("latin-1")
        if target[:1] != "/" or "#" in target:
            target = origin_form(method, target, host)
            self.url = target.encode("latin-1")
        path, _, query = target.partition("?")
        self._check_body_length(path, fields, version)
        if self.parser.should_upgrade():
            if method == b"CONNECT":
                raise malformed("this server is not a proxy")
            if "websocket" in (value.lower() for value in fields.get("upgrade", ())):
                raise GatewayError("route_unknown")
            return
        if not self.inside:
            self.inside = self._connections.acquire_after_head(self._address, path)
            self._close_after_response = True
        # HTTP/1.0 has no interim response (RFC 9110 §10.1.1).
        self.expect_100_continue = version == "1.1" and fields.get("expect", ("",))[-1].lower() == "100-continue"
        client = self.client
        if self._proxied and (caller := self._connections.caller(fields.get("x-forwarded-for", ()))) is not None:
            client = (str(caller), 0)
        self._begin(method, path, query, client)
        if version == "1.0" or self._close_after_response or self._connections.draining():
            self.cycle.keep_alive = False
        self._phase = _BODY
        self._read_deadline = self._now + self._body_s

    def on_chunk_header(self) -> None:
        """Allow for the framing of a chunk."""
        self._framing -= CHUNK_OVERHEAD_BYTES

    def on_body(self, body: bytes) -> None:
        """Count a part of the body before it is kept."""
        self._framing -= len(body)
        self._body_left -= len(body)
        if self._body_left < 0:
            raise GatewayError("body_too_large", limit=self._body_limit)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Go back to idle: the request is complete."""
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        if "transfer-encoding" in self._fields:
            self.parser.set_dangerous_leniencies(lenient_chunked_length=False)
        self._phase = _IDLE
        # The next request may start within the same piece.
        self._head_fed = -MAX_PIECE_BYTES
        self._read_deadline = inf if self._running is not None else self._now + self._limits.idle_s

    def _check_body_length(self, path: str, fields: Mapping[str, Sequence[str]], version: str) -> None:
        """Check the announced length of the body against the limit of its path."""
        lengths, codings = fields.get("content-length", ()), fields.get("transfer-encoding", ())
        limit, self._body_s = self._limits.body_bytes, self._limits.body_s
        if lengths or codings:
            limit, self._body_s = self._connections.bounds(path, fields.get("content-type", ()))
        self._body_left = self._body_limit = limit
        self._framing = 0
        length = body_length(lengths, codings, version)
        if length is None:
            # Permits a Content-Length among the trailers.
            self.parser.set_dangerous_leniencies(lenient_chunked_length=True)
        elif length > limit:
            raise GatewayError("body_too_large", limit=limit)

    # Answering.

    def _begin(self, _method: bytes, _path: str, _query: str, client: tuple[str, int] | None) -> None:
        """Let uvicorn start the request; a subclass may know a faster way."""
        url, expects = self.url, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue, self.scope["client"] = url, expects, client
        self.headers += encoded(self._fields)
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        task = self.loop.create_task(self._dispatch(cycle, app))
        task.add_done_callback(partial(self._dispatched, cycle))
        self.tasks.add(task)

    def _dispatch(self, cycle: RequestResponseCycle, app: ASGIApp) -> Coroutine[Any, Any, None]:
        """Return the coroutine that answers one request; a subclass may know a faster one."""
        work = app(cast("Any", cycle.scope), cast("Any", cycle.receive), cast("Any", cycle.send))
        return cast("Coroutine[Any, Any, None]", work)

    def _head(self, status: int, headers: Iterable[tuple[str, str]]) -> bytes:
        fixed = b"".join([b"%b: %b\r\n" % header for header in self.server_state.default_headers])
        own = "\r\n".join(map(": ".join, headers))
        return STATUS_LINE[status] + fixed + own.encode("latin-1") + b"\r\n\r\n"

    def _dispatched(self, cycle: RequestResponseCycle, task: asyncio.Task[None]) -> None:
        """Check that a finished task has answered its request; if it has not, write a 500."""
        self.tasks.discard(task)
        if task.cancelled():
            # A forced shutdown: X may have been called, so no response is better than a wrong one.
            cycle.disconnected = True
            self._socket_transport.abort()
            return
        if (error := task.exception()) is not None:
            self._crash(error)
        if not (cycle.response_complete or cycle.disconnected):
            if not cycle.response_started:
                self._socket_transport.write(self._refusal_bytes(GatewayError("internal")))
            self._close()

    def on_response_complete(self) -> None:
        """Start the next queued request, or close the connection if it has to close."""
        self.server_state.total_requests += 1
        self._running = None
        if self._closing:
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._phase == _DISCARDING:
            self._socket_transport.write(self._final_refusal)
            self._close()
        if not self.pipeline and self._phase != _DISCARDING:
            self._resume()
        self._arm()

    def _resume(self) -> None:
        """Resume reading: no request is queued."""
        self._now = self.loop.time()
        if self._phase == _IDLE:
            self._read_deadline = inf if self._running is not None else self._now + self._limits.idle_s
        else:
            # The peer could not continue while reading was paused, or got its response before the end of its body.
            body_s = self._limits.body_s if self._running is None else self._body_s
            self._read_deadline = min(
                self._read_deadline, self._now + (self._limits.head_s if self._phase == _HEAD else body_s)
            )
        self.flow.resume_reading()
        if self._unparsed:
            rest, self._unparsed = self._unparsed, b""
            self._read(rest)
        if self._eof and not self._unparsed:
            self._at_eof()

    def _refuse(self, error: GatewayError) -> None:
        """Stop reading and write the refusal after the responses still owed. No request gets two responses."""
        in_body, self._phase, self._unparsed = self._phase == _BODY, _DISCARDING, b""
        cycle, answered = self.cycle, False
        if in_body and self.pipeline:
            self.pipeline.popleft()
        elif in_body:
            answered = cycle.response_started
            if not answered:
                cycle.disconnected, cycle.waiting_for_100_continue, self._running = True, False, None
                cycle.message_event.set()
        self._final_refusal, self._read_deadline = b"" if answered else self._refusal_bytes(error), inf
        if self._running is None:
            self._socket_transport.write(self._final_refusal)
            self._close()

    def _refusal_bytes(self, error: GatewayError) -> bytes:
        """Return a refusal as the last response of this connection."""
        method = self.parser.get_method().decode() if self.url else ""
        path = self.url.partition(b"?")[0].decode("latin-1")
        call = Call(method, path, peer=self.client[0] if self.client else "")
        answer = refuse(error, call)
        if self._connections.telemetry is not None:
            self._connections.telemetry.request(call, answer.status, self.loop.time() - self._started_at)
        head = self._head(answer.status, [*headers_out(call, answer), ("connection", "close")])
        return head if method == "HEAD" else head + answer.body

    def _close(self) -> None:
        """Close the connection. Read first what the peer may still send: a reset would discard the response."""
        if self._closing:
            self._socket_transport.close()
            return
        unread = self._phase != _IDLE or self.flow.read_paused
        self._closing, self._phase = True, _DISCARDING
        now = self.loop.time()
        self._read_deadline, self._write_deadline = now + self._limits.linger_s, now + self._limits.write_s
        if self._eof or not unread:
            self._read_deadline = inf
            self._socket_transport.close()
        else:
            if self._socket_transport.can_write_eof():
                self._socket_transport.write_eof()
            self.flow.resume_reading()
        self._arm()

    # One timer for both deadlines. They move often, mostly into the future: the timer is rearmed only when it would
    # fire too late.

    def _arm(self) -> None:
        due = min(self._read_deadline, self._write_deadline)
        if due < self._timer_due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_due = due
            self._timer = self.loop.call_at(due, self._on_deadline)

    def _on_deadline(self) -> None:
        self._timer, self._timer_due, self._now = None, inf, self.loop.time()
        if self._now >= self._write_deadline:
            self._socket_transport.abort()
            return
        if self._now >= self._read_deadline:
            self._read_deadline = inf
            if self._phase in (_HEAD, _BODY):
                self._refuse(GatewayError("request_timeout"))
            else:
                self._close()
        self._arm()
