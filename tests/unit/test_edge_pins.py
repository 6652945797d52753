"""What the edge builds on in uvicorn and httptools, though neither promises it: a version that moves it fails here."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any

import httptools
import pytest
import uvicorn
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = b"POST /x HTTP/1.1\r\nHost: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Heard:
    """A listener that records the parser's callbacks."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []
        self.parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        """A first byte."""
        self.told.append(("begin",))

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        self.told.append(("url", url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header or trailer."""
        self.told.append((name, value))

    def on_headers_complete(self) -> None:
        """The head's end."""
        self.told.append(("head", self.parser.get_method(), self.parser.get_http_version()))

    def on_chunk_header(self) -> None:
        """A chunk's size line."""
        self.told.append(("chunk",))

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self.told.append(("body", body))

    def on_message_complete(self) -> None:
        """The request's end."""
        self.told.append(("end",))

    def feed(self, data: bytes) -> list[tuple[object, ...]]:
        """What parsing these bytes tells."""
        self.parser.feed_data(data)
        return self.told


REFUSED = {
    "Content-Length and chunked": HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "chunked and Content-Length": HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
    "a coding that is not chunked": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n",
    "chunked, and more behind it": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n",
    "two codings": HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n",
    "a length with a plus": HEAD + b"Content-Length: +2\r\n\r\n",
    "a length with a minus": HEAD + b"Content-Length: -2\r\n\r\n",
    "a length in hex": HEAD + b"Content-Length: 0x2\r\n\r\n",
    "a list of lengths": HEAD + b"Content-Length: 2, 2\r\n\r\n",
    "an empty length": HEAD + b"Content-Length:\r\n\r\n",
    "a length of 2^64": HEAD + b"Content-Length: 18446744073709551616\r\n\r\n",
    "a blank before the colon": HEAD + b"X : 1\r\n\r\n",
    "a blank in a name": HEAD + b"X Y: 1\r\n\r\n",
    "an empty name": HEAD + b": 1\r\n\r\n",
    "no colon": HEAD + b"X\r\n\r\n",
    "a folded header": HEAD + b"X: 1\r\n 2\r\n\r\n",
    "a blank before the first header": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "bare LFs": b"GET / HTTP/1.1\nHost: a\n\n",
    "a bare LF after a value": b"GET / HTTP/1.1\r\nHost: a\n\r\n",
    "a bare CR in a value": HEAD + b"X: a\rb\r\n\r\n",
    "a NUL in a value": HEAD + b"X: a\x00b\r\n\r\n",
    "a control character in a value": HEAD + b"X: a\x01b\r\n\r\n",
    "a NUL in a name": HEAD + b"X\x00: 1\r\n\r\n",
    "a NUL in the target": b"GET /\x00 HTTP/1.1\r\n\r\n",
    "a byte beyond ASCII in the target": b"GET /\xff HTTP/1.1\r\n\r\n",
    "a version of HTTP to come": b"GET / HTTP/3.7\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01",
    "a method in lower case": b"get / HTTP/1.1\r\n\r\n",
    "a chunk size that is no number": CHUNKED + b"zz\r\n",
    "a chunk size with a blank": CHUNKED + b"1 \r\n",
    "a chunk size of 2^68": CHUNKED + b"100000000000000000\r\n",
    "a chunk ended by a bare LF": CHUNKED + b"1\na\n0\n\n",
    "a chunk that is longer than its size": CHUNKED + b"1\r\nab\r\n",
    "a bare LF in a chunk extension": CHUNKED + b"1;a\nb\r\na\r\n",
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("leniency", [{}, {"lenient_data_after_close": True}], ids=["strict", "as uvicorn sets it"])
def test_the_parser_refuses(data: bytes, leniency: dict[str, bool]) -> None:
    """The edge leaves these to the parser, so it has to go on refusing them."""
    heard = Heard()
    heard.parser.set_dangerous_leniencies(**leniency)
    with pytest.raises(httptools.HttpParserError):
        heard.feed(data)


LET_THROUGH = {
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "gzip before chunked": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2.0 by name": b"GET / HTTP/2.0\r\n\r\n",
    "a fragment in the target": b"GET /#x HTTP/1.1\r\n\r\n",
    "the asterisk": b"GET * HTTP/1.1\r\n\r\n",
    "70 KB of chunk extension": CHUNKED + b"0;" + b"x" * 70_000 + b"\r\n\r\n",
    "70 KB of header": HEAD + b"X: " + b"x" * 70_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("data", LET_THROUGH.values(), ids=LET_THROUGH)
def test_the_parser_lets_through(data: bytes) -> None:
    """The edge has to refuse these itself; if the parser starts to refuse them, the edge's check is redundant."""
    assert ("end",) in Heard().feed(data)


def test_the_parser_calls_back_in_this_order() -> None:
    """Also that a trailer comes as a header after the head's end, and that bytes after a request begin the next."""
    data = CHUNKED + b"2;x\r\nab\r\n0\r\nX: 1\r\n\r\n" + b"\r\n" + WHOLE
    assert Heard().feed(data) == [
        *[("begin",), ("url", b"/x"), (b"Host", b"a"), (b"Transfer-Encoding", b"chunked"), ("head", b"POST", "1.1")],
        *[("chunk",), ("body", b"ab"), ("chunk",), (b"X", b"1"), ("end",)],
        *[("begin",), ("url", b"/"), (b"Host", b"a"), ("head", b"GET", "1.1"), ("end",)],
    ]


def test_the_parser_reports_a_header_only_when_it_is_complete() -> None:
    """What it holds back meanwhile has no bound of its own: the edge counts what it feeds."""
    heard = Heard()
    assert heard.feed(HEAD + b"X: " + b"x" * 100_000)[-1] == (b"Host", b"a")


def test_the_parser_drops_blanks_before_a_value_and_keeps_those_behind() -> None:
    """The edge strips them (RFC 9112 §5.1)."""
    assert (b"X", b"a \t ") in Heard().feed(HEAD + b"X: \t a \t \r\n\r\n")


def test_an_error_raised_in_a_callback_comes_out_as_the_context() -> None:
    """The edge raises its refusals there."""

    class Raising(Heard):
        def on_url(self, url: bytes) -> None:
            raise LookupError(url)

    with pytest.raises(httptools.HttpParserCallbackError) as caught:
        Raising().feed(WHOLE)
    assert isinstance(caught.value.__context__, LookupError)


def test_an_upgrade_stops_the_parser_behind_the_head_with_its_body_unread() -> None:
    """The edge reads such a request again without its Upgrade, from the offset that the exception tells."""
    heard = Heard()
    head = HEAD + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n"
    with pytest.raises(httptools.HttpParserUpgrade) as caught:
        heard.feed(head + b"ab")
    assert caught.value.args == (len(head),)
    assert heard.parser.should_upgrade()
    assert heard.told[-2:] == [("head", b"POST", "1.1"), ("end",)]


def test_without_connection_an_upgrade_is_a_header_like_any_other() -> None:
    """It takes both to stop the parser, so that leaving out Upgrade suffices."""
    for line in (b"Connection: Upgrade\r\n", b"Upgrade: h2c\r\n"):
        heard = Heard()
        assert heard.feed(HEAD + line + b"Content-Length: 2\r\n\r\nab")[-2:] == [("body", b"ab"), ("end",)]


def test_a_length_among_the_trailers_is_refused_by_default() -> None:
    """The edge tells it so for the body alone, and takes it back after; a head is judged as ever."""
    trailer = b"0\r\nContent-Length: 5\r\n\r\n"
    with pytest.raises(httptools.HttpParserError):
        Heard().feed(CHUNKED + trailer)
    heard = Heard()
    heard.feed(CHUNKED)
    heard.parser.set_dangerous_leniencies(lenient_chunked_length=True)
    assert heard.feed(trailer)[-2:] == [(b"Content-Length", b"5"), ("end",)]
    heard.parser.set_dangerous_leniencies(lenient_chunked_length=False)
    assert heard.feed(WHOLE)[-1] == ("end",)  # the trailer's length is forgotten
    with pytest.raises(httptools.HttpParserError):
        heard.feed(REFUSED["Content-Length and chunked"])


# uvicorn.


class Pipe(asyncio.Transport):
    """A transport that keeps what is written and notes what is done, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[str] = []
        self.sent = b""
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Keep it."""
        self.sent += data

    def close(self) -> None:
        """Note it."""
        self.closing = True
        self.done.append("close")

    def is_closing(self) -> bool:
        """Whether it was closed."""
        return self.closing

    def pause_reading(self) -> None:
        """Note it."""
        self.done.append("pause")

    def resume_reading(self) -> None:
        """Note it."""
        self.done.append("resume")


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """An app that answers nothing but 204."""
    del scope
    await receive()
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


class Watched(HttpToolsProtocol):
    """uvicorn's protocol, noting which of its methods are called."""

    def on_response_complete(self) -> None:
        """Note it."""
        self.noted.append(f"complete {self.cycle.response_complete} {self.transport.is_closing()}")
        super().on_response_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.noted.append(f"start {cycle.scope['path']} {len(self.pipeline)}")
        super()._start_asgi_task(cycle, app)

    noted: list[str]


def connected() -> tuple[Watched, Pipe]:
    """A connection of uvicorn's own, without a socket."""
    config = uvicorn.Config(answer, http=Watched, ws="none", lifespan="off", log_config=None)
    config.load()
    protocol, pipe = Watched(config, ServerState(), {}), Pipe()
    protocol.noted = []
    protocol.connection_made(pipe)
    return protocol, pipe


async def settle(protocol: Watched) -> None:
    """Until no request is served any more."""
    while protocol.tasks:
        await asyncio.wait(protocol.tasks)
    protocol._unset_keepalive_if_required()  # noqa: SLF001 - a timer of uvicorn's, which the edge never arms


def target(number: int, *lines: bytes) -> bytes:
    """A GET of /NUMBER."""
    return b"\r\n".join([b"GET /%d HTTP/1.1" % number, b"Host: a", *lines, b"", b""])


async def test_requests_are_queued_on_the_left_and_served_from_the_right() -> None:
    """The newest is the cycle; each answer starts the next; reading pauses as the queue begins."""
    protocol, pipe = connected()
    protocol.data_received(target(1) + target(2) + target(3))
    assert [cycle.scope["path"] for cycle, _ in protocol.pipeline] == ["/3", "/2"]
    assert protocol.cycle.scope["path"] == "/3"
    assert pipe.done == ["pause"]
    await settle(protocol)
    starts = [note for note in protocol.noted if note.startswith("start")]
    assert starts == ["start /1 0", "start /2 1", "start /3 0"]
    assert pipe.sent.count(b"HTTP/1.1 204") == 3


async def test_the_transport_is_closed_before_the_protocol_hears_of_the_end() -> None:
    """Without keep-alive the cycle itself closes; the edge's own close() decides how."""
    protocol, pipe = connected()
    protocol.data_received(target(1, b"Connection: close"))
    await settle(protocol)
    assert protocol.noted == ["start /1 0", "complete True True"]
    assert pipe.done == ["close"]
    assert b"connection: close" in pipe.sent


async def test_a_cycle_that_lost_its_peer_sends_nothing_and_reports_it() -> None:
    """The edge sets `disconnected` and wakes it, to answer in its place."""
    protocol, pipe = connected()
    protocol.data_received(HEAD + b"Content-Length: 5\r\n\r\n")
    protocol.cycle.disconnected = True
    protocol.cycle.message_event.set()
    assert await protocol.cycle.receive() == {"type": "http.disconnect"}
    await settle(protocol)
    assert pipe.sent == b""
    assert not protocol.cycle.response_started


async def test_a_stop_closes_an_idle_connection_and_lets_the_last_request_close_a_busy_one() -> None:
    """Both by way of `transport` and `keep_alive`, which the edge builds on."""
    protocol, pipe = connected()
    protocol.shutdown()
    assert pipe.done == ["close"]
    protocol, pipe = connected()
    protocol.data_received(target(1) + target(2))
    protocol.shutdown()
    await settle(protocol)
    assert pipe.sent.count(b"HTTP/1.1 204") == 2
    assert pipe.done[-1] == "close"


async def test_uvicorn_has_the_names_that_the_edge_uses() -> None:
    """Attributes of a connection, of a cycle and of the shared state, and what its methods take."""
    protocol, _ = connected()
    protocol.data_received(target(1))
    for owner, names in (
        (protocol, "parser transport flow loop tasks connections server_state client scheme scope url headers"),
        (protocol, "cycle pipeline expect_100_continue timeout_keep_alive_task app config"),
        (protocol.cycle, "scope receive send response_started response_complete disconnected keep_alive message_event"),
        (protocol.cycle, "flow transport body more_body waiting_for_100_continue"),
        (protocol.flow, "read_paused pause_reading resume_reading"),
        (protocol.server_state, "default_headers total_requests"),
    ):
        assert [name for name in names.split() if not hasattr(owner, name)] == []
    await settle(protocol)
    taken: dict[Callable[..., Any], list[str]] = {
        HttpToolsProtocol.__init__: ["self", "config", "server_state", "app_state", "_loop"],
        HttpToolsProtocol._start_asgi_task: ["self", "cycle", "app"],  # noqa: SLF001 - the edge overrides it
        HttpToolsProtocol.on_message_begin: ["self"],
        HttpToolsProtocol.on_header: ["self", "name", "value"],
        HttpToolsProtocol.on_headers_complete: ["self"],
        HttpToolsProtocol.on_response_complete: ["self"],
        HttpToolsProtocol.shutdown: ["self"],
    }
    for method, parameters in taken.items():
        assert list(inspect.signature(method).parameters) == parameters
    assert httptools_impl.STATUS_LINE[431] == b"HTTP/1.1 431 Request Header Fields Too Large\r\n"


async def test_the_body_of_a_cycle_is_read_by_few_of_its_parts() -> None:
    """A request on the fast path has a cycle without a scope, which `receive` must not need."""
    protocol, pipe = connected()
    cycle = RequestResponseCycle.__new__(RequestResponseCycle)
    cycle.transport, cycle.flow, cycle.message_event = pipe, protocol.flow, asyncio.Event()
    cycle.body, cycle.more_body, cycle.waiting_for_100_continue = bytearray(), True, True
    cycle.disconnected = cycle.response_complete = False
    protocol.cycle = cycle
    protocol.on_body(b"ab")
    protocol.on_message_complete()
    assert await cycle.receive() == {"type": "http.request", "body": b"ab", "more_body": False}
    assert pipe.sent == b"HTTP/1.1 100 Continue\r\n\r\n"
    protocol.connection_lost(None)
    assert await cycle.receive() == {"type": "http.disconnect"}


def test_the_configuration_takes_a_callable_as_protocol() -> None:
    """The edge hands over a partial, which brings the limits."""
    calls: list[dict[str, Any]] = []

    def protocol(**uvicorns: Any) -> None:
        calls.append(uvicorns)

    config = uvicorn.Config(answer, http=protocol, ws="none", log_config=None)  # type: ignore[arg-type]  # as it is
    config.load()
    config.http_protocol_class(config=config, server_state=None, app_state={}, _loop=None)  # type: ignore[call-arg]
    assert [sorted(call) for call in calls] == [["_loop", "app_state", "config", "server_state"]]
