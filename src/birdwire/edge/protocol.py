"""The HTTP edge on the wire: deadlines, sizes, one Host, one meaning for every byte, and every refusal in the envelope.

A subclass of uvicorn's protocol: what is whole, small and unambiguous goes on to the app. It knows no key and no route.
"""

from __future__ import annotations

import asyncio
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from birdwire.api.errors import GatewayError, refuse
from birdwire.api.messages import Call, new_request_id
from birdwire.edge.asgi import headers_out
from birdwire.edge.connections import ConnectionLimits, EdgeLimits, Outlet, send_at_once, unread
from birdwire.edge.request_head import SIMPLE, TELLING, WRONG, body_length, malformed, one_host, origin_form
from birdwire.runtime.addresses import address_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from starlette.types import ASGIApp
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from birdwire.runtime.telemetry import Telemetry

PIECE = 4_096  # bytes parsed at a time: the most that one look at the queue or at a size may come too late
CHUNK_OVERHEAD = 8  # bytes of framing that an ordinary chunk has: up to four digits, two line ends

_WAITING, _HEAD, _BODY, _DEAF = range(4)  # what is read now: nothing yet, a head, a body; or nothing ever again


def config(
    app: ASGIApp,
    *,
    limits: EdgeLimits,
    telemetry: Telemetry | None = None,
    protocol: Callable[..., EdgeProtocol] | None = None,
    draining: Callable[[], bool] = bool,
    **overrides: Any,
) -> uvicorn.Config:
    """The configuration to serve `app` with; `overrides` are uvicorn's own options.

    Once it is `draining`, each connection ends after its next answer.

    Raises:
        ValueError: `uncapped` or `trusted_proxies` holds something that is no network.
    """
    options: dict[str, Any] = {
        "http": partial(protocol or EdgeProtocol, ConnectionLimits(limits, telemetry, draining)),
        "ws": "none",
        "lifespan": "on",
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        "date_header": True,
        "proxy_headers": False,  # ours trusts nobody by default
    }
    return uvicorn.Config(app, **(options | overrides))


class EdgeProtocol(HttpToolsProtocol):
    """One connection. Refusals are raised as GatewayError, also in the parser's callbacks, and end it."""

    def __init__(self, door: ConnectionLimits, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._door = door
        self._limits = door.limits
        self._phase = _WAITING
        self._running: RequestResponseCycle | None = None
        self._rest = b""  # read, but not parsed until what is queued is answered
        self._last_words = b""  # the refusal that follows the answers still owed
        self._eof = self._ended = self.inside = False
        self._last = False  # whether the next answer is this connection's last
        self._now = self._began = self.loop.time()
        self._due = self._write_due = self._armed = inf
        self._timer: asyncio.TimerHandle | None = None
        self.url = b""
        self._told: dict[bytes, list[bytes]] = {}
        self._head_fed = self._framing = self._body_left = self._dropped = 0
        self._body_limit, self._body_s = self._limits.body_bytes, self._limits.body_s

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Accept the connection or answer 503; beyond the limit of 503 answers, close it."""
        super().connection_made(transport)
        send_at_once(transport)
        self._wire = transport
        self.transport = cast("asyncio.Transport", Outlet(transport, self._finish))
        self._address = address_of(self.client[0]) if self.client else None
        self._proxied = self._door.trusts(self._address)
        self.inside, reads = self._door.admit(self, self._address, cast("set[EdgeProtocol]", self.connections))
        if reads:
            self._due = self._now + self._limits.head_s
            self._arm()
        elif self._door.crowded(self.connections):
            self._cut()
        else:
            self._refuse(GatewayError("overloaded"))

    def waits(self) -> tuple[int, float] | None:
        """Rank it for eviction: heads, idle ones, bodies, each by deadline. None: its request is being answered."""
        if self._due == inf or (self._running is not None and self._phase != _BODY):
            return None
        return (2 if self._phase == _BODY else int(self._phase == _WAITING and self.url != b"")), self._due

    def speaks(self) -> bool:
        """Whether a request has reached the kernel, and not yet this process."""
        return self._phase == _WAITING and unread(self._wire)

    def evict(self) -> None:
        """End as if the deadline had come, with 503 if a request has begun to come. The place is free immediately."""
        self._leave()
        if self._door.crowded(self.connections):
            self._cut()
        elif self._phase in (_HEAD, _BODY):
            self._refuse(GatewayError("overloaded"))
        else:
            self._finish()

    def _cut(self) -> None:
        self.connections.discard(self)
        self._phase = _DEAF
        self._wire.abort()

    def _leave(self) -> None:
        if self.inside:
            self.inside = False
            self._door.leave(self._address)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone: nothing is owed, nothing is waited for."""
        self._ended, self._phase = True, _DEAF
        self._due = self._write_due = inf
        if self._timer is not None:
            self._timer.cancel()
        self._leave()
        self.pipeline.clear()
        self._rest = b""
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def drain(self) -> None:
        """End after the answer under way, or the next one, and say so in it (RFC 9112 §9.6)."""
        self._last = True
        if self._running is not None:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """End now if nothing is owed; a request that has begun to come may do so for a moment, and is answered."""
        self.drain()
        if self._running is not None or self._ended:
            return
        if self._phase == _WAITING and not unread(self._wire):
            self._finish()
        else:
            self._due = min(self._due, self.loop.time() + self._limits.linger_s)
            self._arm()

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._phase == _DEAF:
            self._dropped += len(data)
            if self._dropped > self._limits.linger_bytes:
                self._wire.abort()
        elif self._rest:  # the app asked for more of its own request, which is whole already
            self._rest += data
            self.flow.pause_reading()
        else:
            self._now = self.loop.time()
            self._read(data)
            self._arm()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio knows an answer
        """The peer sends no more; what it asked for is still answered."""
        if self._phase == _DEAF and self._ended:
            self._wire.close()
        else:
            self._eof = True
            self._at_eof()
        return self.scheme == "http"  # TLS has no half-closed state

    def pause_writing(self) -> None:
        """The peer reads too slowly."""
        super().pause_writing()
        self._write_due = self.loop.time() + self._limits.write_s
        self._arm()

    def resume_writing(self) -> None:
        """The peer caught up."""
        super().resume_writing()
        if not self._ended:
            self._write_due = inf

    # Reading.

    def _read(self, data: bytes | memoryview) -> None:
        """Parse what came, piece by piece; what comes after a queued request waits."""
        limits = self._limits
        if len(data) > PIECE:
            data = memoryview(data)
        while data and self._phase != _DEAF:
            if self.pipeline:
                self._rest = bytes(data)
                break
            size = min(PIECE, limits.head_bytes - self._head_fed) if self._phase == _HEAD else PIECE
            piece, data = (data, b"") if len(data) <= size else (data[:size], data[size:])
            try:
                self._parse(piece)
            except GatewayError as error:
                self._refuse(error)
            except httptools.HttpParserError as error:
                self._refuse(self._cause(error))
        if self.pipeline:
            self.flow.pause_reading()
            self._due = inf

    def _parse(self, piece: bytes | memoryview) -> None:
        before, unread = self._phase, None
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            unread = piece[upgrade.args[0] :]
        if unread is not None:
            self._read_on(unread)  # outside of `except`: its own errors have contexts of their own
        elif self._phase == _WAITING:
            self._head_fed = 0
        elif self._phase == _HEAD:
            self._head_fed += len(piece)
            if self._head_fed >= self._limits.head_bytes:
                raise GatewayError("headers_too_large")
            if before == _WAITING and SIMPLE.search(piece):  # as HTTP/0.9 had it: no header would ever follow
                raise malformed("it names no version of HTTP")
        elif before == _BODY:
            self._framing += len(piece)
            if self._framing > self._limits.framing_bytes:
                raise malformed("the body has more framing than content")

    def _read_on(self, rest: bytes | memoryview) -> None:
        """Read a request again without its Upgrade: the parser stops at one, but we have nothing else to speak."""
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._phase, self._head_fed = _WAITING, -PIECE
        self._parse(b"\r\n".join([*lines, b"", b""]))
        if rest:
            self._parse(rest)

    def _cause(self, error: httptools.HttpParserError) -> GatewayError:
        cause = error.__context__
        if isinstance(cause, GatewayError):
            return cause
        if cause is not None:
            return self._bug(cause)
        return malformed(WRONG.get(type(error), "its head or its framing breaks a rule of RFC 9112"))

    def _bug(self, error: BaseException) -> GatewayError:
        if self._door.telemetry is not None:
            self._door.telemetry.crash(new_request_id(), error)
        return GatewayError("internal")

    def _at_eof(self) -> None:
        if self._phase in (_HEAD, _BODY):
            self._refuse(malformed("it ends early"))
        elif self._running is None:
            self._finish()

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._phase = _HEAD
        self._told = {}
        self._began = self._now
        self._due = self._now + self._limits.head_s

    def on_url(self, url: bytes) -> None:
        """A part of the request target."""
        self.url += url
        if len(self.url) > self._limits.target_bytes:
            raise GatewayError("uri_too_long", limit=self._limits.target_bytes)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, whole; or a trailer, which is ignored (RFC 9110 §6.5.1)."""
        if self._phase != _HEAD:
            return
        if len(self.headers) >= self._limits.headers:
            raise GatewayError("headers_too_large")
        name, value = name.lower(), value.strip(b" \t")
        self.headers.append((name, value))
        if name in TELLING:
            self._told.setdefault(name, []).append(value)
        elif name == b"expect":
            self.expect_100_continue = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        """The head is whole: check what the parser leaves open, then let uvicorn begin the request."""
        told, version = self._told, self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise malformed("this is HTTP/1.1")
        host = one_host(told.get(b"host", ()), version, self._limits.hosts)
        if self.url[:1] != b"/" or b"#" in self.url:
            self.url = origin_form(self.parser.get_method(), self.url, host)
        self._announced(told.get(b"content-length", ()), told.get(b"transfer-encoding", ()), version)
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise malformed("this server is not a proxy")
            if b"websocket" in (value.lower() for value in told.get(b"upgrade", ())):
                raise GatewayError("route_unknown")
            return  # _read_on
        if not self.inside:
            self._last, self.inside = True, self._door.enter_late(self._address, self.url)
        if version == "1.0":
            self.expect_100_continue = False  # RFC 9110 §10.1.1
        if self._proxied and (caller := self._door.caller(told.get(b"x-forwarded-for", ()))) is not None:
            self.scope["client"] = (str(caller), 0)
        super().on_headers_complete()
        if self._last or self._door.draining():
            self.cycle.keep_alive = False
        self._phase = _BODY
        self._due = self._now + self._body_s

    def on_chunk_header(self) -> None:
        """The size line of a chunk."""
        self._framing -= CHUNK_OVERHEAD

    def on_body(self, body: bytes) -> None:
        """A part of the body, counted before anybody keeps it."""
        self._framing -= len(body)
        self._body_left -= len(body)
        if self._body_left < 0:
            raise GatewayError("body_too_large", limit=self._body_limit)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self.parser.should_upgrade():
            return  # _read_on
        super().on_message_complete()
        if b"transfer-encoding" in self._told:
            self.parser.set_dangerous_leniencies(lenient_chunked_length=False)
        self._phase = _WAITING
        self._head_fed = -PIECE  # a request that begins in the same piece does not begin at its start
        self._due = inf if self._running is not None else self._now + self._limits.idle_s

    def _announced(self, lengths: Sequence[bytes], codings: Sequence[bytes], version: str) -> None:
        """The body that was announced must be within the limit of its path."""
        limit, self._body_s = self._limits.body_bytes, self._limits.body_s
        if lengths or codings:
            limit, self._body_s = self._door.bounds(self.url, self._told.get(b"content-type", ()))
        self._body_left = self._body_limit = limit
        self._framing = 0
        length = body_length(lengths, codings, version)
        if length is None:
            self.parser.set_dangerous_leniencies(lenient_chunked_length=True)  # a Content-Length among the trailers
        elif length > limit:
            raise GatewayError("body_too_large", limit=limit)

    # Answering.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        task = self.loop.create_task(self._serve(cycle, self._way(cycle, app)))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _way(self, cycle: RequestResponseCycle, app: ASGIApp) -> Awaitable[None]:
        """How one request is answered; a subclass may know a shorter one."""
        return app(cast("Any", cycle.scope), cast("Any", cycle.receive), cast("Any", cycle.send))

    def _head(self, status: int, headers: Iterable[tuple[str, str]]) -> bytes:
        fixed = b"".join([b"%b: %b\r\n" % header for header in self.server_state.default_headers])
        own = "".join([f"{name}: {value}\r\n" for name, value in headers])
        return STATUS_LINE[status] + fixed + own.encode("latin-1") + b"\r\n"

    async def _serve(self, cycle: RequestResponseCycle, way: Awaitable[None]) -> None:
        """Have one request answered; if that fails, answer in its place."""
        try:
            await way
        except asyncio.CancelledError:  # a forced end: X may have been asked, so no answer is better than a wrong one
            cycle.disconnected = True
            self._wire.abort()
            raise
        except Exception as error:  # noqa: BLE001 - the last net, under the app's own
            self._bug(error)
        finally:
            if not (cycle.response_complete or cycle.disconnected):
                if not cycle.response_started:
                    self._wire.write(self._words(GatewayError("internal")))
                self._finish()

    def on_response_complete(self) -> None:
        """An answer is written: go on with the next request, or end what has to end."""
        self.server_state.total_requests += 1
        self._running = None
        if self._ended:
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._phase == _DEAF:
            self._wire.write(self._last_words)
            self._finish()
        if not self.pipeline and self._phase != _DEAF:
            self._go_on()
        self._arm()

    def _go_on(self) -> None:
        """Nothing is queued: read on."""
        self._now = self.loop.time()
        if self._phase == _WAITING:
            self._due = inf if self._running is not None else self._now + self._limits.idle_s
        else:  # the peer could not go on while we did not read, or was answered before the end of its body
            body_s = self._limits.body_s if self._running is None else self._body_s
            self._due = min(self._due, self._now + (self._limits.head_s if self._phase == _HEAD else body_s))
        self.flow.resume_reading()
        if self._rest:
            rest, self._rest = self._rest, b""
            self._read(rest)
        if self._eof and not self._rest:
            self._at_eof()

    def _refuse(self, error: GatewayError) -> None:
        """Read no more, and say why, after the answers still owed. A request answered already gets no second."""
        in_body, self._phase, self._rest = self._phase == _BODY, _DEAF, b""
        cycle, answered = self.cycle, False
        if in_body and self.pipeline:
            self.pipeline.popleft()
        elif in_body:
            answered = cycle.response_started
            if not answered:
                cycle.disconnected, self._running = True, None
                cycle.message_event.set()
        self._last_words, self._due = b"" if answered else self._words(error), inf
        if self._running is None:
            self._wire.write(self._last_words)
            self._finish()

    def _words(self, error: GatewayError) -> bytes:
        """A refusal as the last answer of this connection."""
        method = self.parser.get_method().decode() if self.url else ""
        path = self.url.partition(b"?")[0].decode("latin-1")
        call = Call(method, path, peer=self.client[0] if self.client else "")
        answer = refuse(error, call)
        if self._door.telemetry is not None:
            self._door.telemetry.request(call, answer.status, self.loop.time() - self._began)
        head = self._head(answer.status, [*headers_out(call, answer), ("connection", "close")])
        return head if method == "HEAD" else head + answer.body

    def _finish(self) -> None:
        """End the connection. A peer that may still be sending is read out first: a reset would cost it the answer."""
        if self._ended:
            self._wire.close()
            return
        unread = self._phase != _WAITING or self.flow.read_paused
        self._ended, self._phase = True, _DEAF
        now = self.loop.time()
        self._due, self._write_due = now + self._limits.linger_s, now + self._limits.write_s
        if self._eof or not unread:
            self._due = inf
            self._wire.close()
        else:
            if self._wire.can_write_eof():
                self._wire.write_eof()
            self.flow.resume_reading()
        self._arm()

    # The one timer. Deadlines move often, and mostly away: it is armed again only when it would ring too late.

    def _arm(self) -> None:
        due = min(self._due, self._write_due)
        if due < self._armed:
            if self._timer is not None:
                self._timer.cancel()
            self._armed = due
            self._timer = self.loop.call_at(due, self._ring)

    def _ring(self) -> None:
        self._timer, self._armed, self._now = None, inf, self.loop.time()
        if self._now >= self._write_due:
            self._wire.abort()
            return
        if self._now >= self._due:
            self._due = inf
            if self._phase in (_HEAD, _BODY):
                self._refuse(GatewayError("request_timeout"))
            else:
                self._finish()
        self._arm()
