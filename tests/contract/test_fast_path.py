"""The fast path on real sockets: a POST that bypasses the framework meets the same edge as every other request."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import socket
import struct
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from birdwire.api.messages import Answer, Call
from birdwire.edge import asgi
from birdwire.edge.connections import EdgeLimits
from birdwire.edge.fast_path import FastPathProtocol
from birdwire.edge.protocol import EdgeProtocol
from birdwire.runtime.clock import Clock
from birdwire.runtime.telemetry import Telemetry
from harness.edge_server import GUARD_S, RunningServer, hang_up, serving
from harness.http_corpus import answers, check_shape, coded, get, head

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from harness.http_corpus import RawResponse

SOON_S = 0.2
LONG_S = 3_600.0
"""A deadline that no test reaches."""
PATIENT = EdgeLimits(head_s=LONG_S, body_s=LONG_S, idle_s=LONG_S)


class Handlers:
    """The handlers of some paths, and what they did. `/gated` waits for `go` after it has `entered`."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.go = asyncio.Event()
        self.chunks: asyncio.Queue[bytes] = asyncio.Queue()
        self.finished: list[str] = []
        self.headers: tuple[tuple[str, str], ...] = ()

    async def echo(self, call: Call) -> Answer:
        """Return what the call holds once its body has been read."""
        body = call.whole if call.whole is not None else b"".join([chunk async for chunk in call.stream()])
        found = {"body": body.decode(), "query": call.query, "peer": call.peer, "test": call.header_values("x-test")}
        return Answer.of(found | {"whole": call.whole is not None}, headers=self.headers)

    async def gated(self, call: Call) -> Answer:
        """Wait, then echo."""
        self.entered.set()
        await self.go.wait()
        self.finished.append(call.request_id)
        return await self.echo(call)

    async def late(self, _call: Call) -> Answer:
        """Wait, then answer without reading the body."""
        self.entered.set()
        await self.go.wait()
        return Answer.of("late")

    async def streamed(self, call: Call) -> Answer:
        """Report each chunk as it arrives."""
        async for chunk in call.stream():
            self.chunks.put_nowait(chunk)
        return Answer.of(None)

    async def eager(self, _call: Call) -> Answer:
        """Answer without reading the body."""
        return Answer.of(None, 403)

    async def large(self, _call: Call) -> Answer:
        """Answer with more than a socket takes."""
        self.finished.append("")
        return Answer.of("x" * 1_000_000)

    async def broken(self, _call: Call) -> Answer:
        """Fail."""
        raise RuntimeError("canary")

    @contextlib.asynccontextmanager
    async def serving(self, limits: EdgeLimits = PATIENT, **options: Any) -> AsyncIterator[RunningServer]:
        """Serve every handler on the fast path; the app behind it serves `/app` and is otherwise the same."""
        log = io.StringIO()
        telemetry = Telemetry(log, Clock())
        names = ("echo", "gated", "late", "streamed", "eager", "large", "broken")
        handlers = {f"/{name}": getattr(self, name) for name in names}
        app = asgi.create([asgi.Route("POST", "/app", self.echo)], telemetry=telemetry)
        protocol = partial(FastPathProtocol, handlers, telemetry)
        async with serving(app, limits, log, protocol=protocol, **options) as served, asyncio.timeout(GUARD_S):
            yield served


def post(path: bytes, body: bytes = b"", *lines: bytes, length: int | None = None, version: bytes = b"1.1") -> bytes:
    """A POST with its body, or with the first part of one of `length` bytes."""
    size = len(body) if length is None else length
    return head(b"Content-Length: %d" % size, *lines, start=b"POST %b HTTP/%b" % (path, version)) + body


LAST = post(b"/echo", b"last", b"Connection: close")


def bodies(got: Sequence[RawResponse]) -> list[str]:
    """The bodies that were echoed."""
    return [json.loads(one.body)["body"] for one in got]


def reset(writer: asyncio.StreamWriter) -> None:
    """Disconnect at once: closing alone would leave the connection open for its answer."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def lines(served: RunningServer) -> list[tuple[str, int]]:
    """The path and status of each request's line in the log."""
    logged = [json.loads(line) for line in served.log.getvalue().splitlines()]
    return [(line["path"], line["status"]) for line in logged if line["event"] == "request"]


def edges(served: RunningServer) -> list[EdgeProtocol]:
    """The connections of a server."""
    return [one for one in served.server.server_state.connections if isinstance(one, EdgeProtocol)]


async def test_a_whole_body_is_given_whole_and_any_other_as_a_stream() -> None:
    """Sized or chunked, in one segment with its head or after it: the handler reads the same bytes."""
    async with Handlers().serving() as served:
        for sent in (
            post(b"/echo", b"{}"),
            head(b"Transfer-Encoding: chunked", start=b"POST /echo HTTP/1.1") + coded(b"{", b"}") + b"0\r\n\r\n",
            head(start=b"POST /echo HTTP/1.1"),
        ):
            got = answers(await served.talk(sent + LAST))
            assert [json.loads(one.body)["whole"] for one in got] == [True, True]
            assert bodies(got) == ["{}" if b"{" in sent else "", "last"]
        reader, writer = await served.open()
        writer.write(post(b"/streamed", length=2))
        while not edges(served) or edges(served)[0].url != b"/streamed":  # noqa: ASYNC110 - until the head is read
            await asyncio.sleep(0)
        writer.write(b"{}" + LAST)
        assert [one.status for one in answers(await reader.read())] == [200, 200]
        await hang_up(writer)


async def test_a_body_is_streamed_as_it_arrives() -> None:
    """The handler runs from the head on, and gets each part of a multipart body before the next one is sent."""
    handlers = Handlers()
    limits = EdgeLimits(files={"/streamed": (1 << 20, LONG_S)})
    async with handlers.serving(limits) as served:
        reader, writer = await served.open()
        writer.write(post(b"/streamed", b"1", b"Content-Type: multipart/form-data; boundary=a", length=3))
        for part in (b"1", b"2", b"3"):
            assert await handlers.chunks.get() == part
            if part != b"3":
                writer.write(b"%d" % (int(part) + 1))
        writer.write(LAST)
        assert [one.status for one in answers(await reader.read())] == [200, 200]
        await hang_up(writer)


async def test_a_large_stream_pauses_reading_until_it_is_read() -> None:
    """At most uvicorn's high-water mark and a piece are kept while the handler does not read."""
    handlers = Handlers()
    limits = EdgeLimits(files={"/gated": (1 << 24, LONG_S)})
    async with handlers.serving(limits) as served:
        reader, writer = await served.open()
        body = b"x" * (1 << 23)
        writer.write(post(b"/gated", body, b"Content-Type: multipart/form-data; boundary=a") + LAST)
        await handlers.entered.wait()
        (edge,) = edges(served)
        while not edge.flow.read_paused:  # noqa: ASYNC110 - until the mark is reached
            await asyncio.sleep(0)
        assert len(edge.cycle.body) < 1 << 20
        handlers.go.set()
        assert [len(body) for body in bodies(answers(await reader.read()))] == [len(body), 4]
        await hang_up(writer)


async def test_a_refusal_does_not_wait_for_the_body() -> None:
    """The answer comes while the body is still owed; what then arrives is dropped, and the connection continues."""
    async with Handlers().serving() as served:
        reader, writer = await served.open()
        writer.write(post(b"/eager", b"x", length=10_000))
        first = await reader.readuntil(b"null")
        writer.write(b"x" * 9_999 + LAST)
        assert [one.status for one in answers(first + await reader.read())] == [403, 200]
        await hang_up(writer)


async def test_a_body_gets_100_continue_once_it_is_read_and_not_before() -> None:
    """A handler that refuses the call never asks for the body."""
    async with Handlers().serving() as served:
        for path, body in ((b"/eager", b"null"), (b"/echo", b"}")):
            reader, writer = await served.open()
            writer.write(post(path, b"", b"Expect: 100-Continue", length=2))
            if path == b"/echo":
                assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
                writer.write(b"{}")
            assert (await reader.readuntil(body)).count(b"HTTP/1.1 ") == 1
            await hang_up(writer)
        got = answers(await served.talk(post(b"/echo", b"", b"Expect: 100-continue", length=0, version=b"1.0")))
        assert [one.status for one in got] == [200]


LATE = {
    "a body that never arrives": (b"", 408, "request_timeout"),
    "chunks that are too large": (coded(b"x" * 20_000), 413, "body_too_large"),
    "chunks that are malformed": (b"zz\r\n", 400, "http_malformed"),
}


@pytest.mark.parametrize(("rest", "status", "reason"), LATE.values(), ids=LATE)
async def test_the_edge_refuses_a_body_that_the_handler_awaits(rest: bytes, status: int, reason: str) -> None:
    """The handler's call ends without an answer of its own: one answer, and one line in the log."""
    async with Handlers().serving(EdgeLimits(body_s=SOON_S if not rest else LONG_S)) as served:
        reader, writer = await served.open()
        writer.write(head(b"Transfer-Encoding: chunked", start=b"POST /streamed HTTP/1.1"))
        while not served.server.server_state.tasks:  # noqa: ASYNC110 - until the handler runs
            await asyncio.sleep(0)
        writer.write(rest)
        got = answers(await reader.read())
        assert [(one.status, one.reason) for one in got] == [(status, reason)]
        check_shape(got[0])
        assert got[0].headers["connection"] == "close"
        await hang_up(writer)
        while served.server.server_state.tasks:  # noqa: ASYNC110 - until the handler has heard of it
            await asyncio.sleep(0)
        assert lines(served) == [("/streamed", status)]


async def test_a_request_that_the_edge_refused_gets_no_second_answer() -> None:
    """Its handler finishes after the 408, while the connection is still read out."""
    handlers = Handlers()
    async with handlers.serving(EdgeLimits(body_s=SOON_S, linger_s=LONG_S)) as served:
        reader, writer = await served.open()
        writer.write(post(b"/late", length=2))
        await handlers.entered.wait()
        raw = await reader.readuntil(b"}")
        handlers.go.set()
        while served.server.server_state.tasks:  # noqa: ASYNC110 - until the handler has answered
            await asyncio.sleep(0)
        writer.write_eof()
        assert [one.status for one in answers(raw + await reader.read())] == [408]
        await hang_up(writer)
    # Writing to a connection that has sent its end raises.
    assert "crash" not in served.log.getvalue()


async def test_a_client_that_disconnects_does_not_end_its_call() -> None:
    """The handler goes on to its outcome and its line in the log; only the answer is dropped."""
    handlers = Handlers()
    async with handlers.serving() as served:
        _, writer = await served.open()
        writer.write(post(b"/gated", b"{}"))
        await handlers.entered.wait()
        reset(writer)
        while edges(served):  # noqa: ASYNC110 - until the edge has noticed
            await asyncio.sleep(0)
        handlers.go.set()
        while served.server.server_state.tasks:  # noqa: ASYNC110 - until the call has finished
            await asyncio.sleep(0)
        assert len(handlers.finished) == 1
        assert lines(served) == [("/gated", 200)]
        assert "crash" not in served.log.getvalue()


async def test_a_client_that_disconnects_in_its_body_gets_no_line() -> None:
    """The handler is told, and there is no answer to log."""
    async with Handlers().serving() as served:
        _, writer = await served.open()
        writer.write(post(b"/streamed", b"x", length=2))
        while not served.server.server_state.tasks:  # noqa: ASYNC110 - until the handler runs
            await asyncio.sleep(0)
        reset(writer)
        while served.server.server_state.tasks:  # noqa: ASYNC110 - until it has heard of it
            await asyncio.sleep(0)
        assert served.log.getvalue() == ""


async def test_requests_in_one_segment_are_answered_in_order_with_their_own_heads() -> None:
    """Of the fast path and of the app by turns; each has its own headers, query and body."""
    handlers = Handlers()
    paths = [b"/gated", b"/app", b"/echo", b"/echo", b"/app", b"/gated"]
    sent = [
        post(path + (b"" if path == b"/app" else b"?n=%d" % number), b"b%d" % number, b"X-Test: t%d" % number)
        for number, path in enumerate(paths)
    ]
    async with handlers.serving() as served:
        answered = asyncio.create_task(served.talk(b"".join(sent) + LAST))
        await handlers.entered.wait()
        handlers.go.set()
        got = [json.loads(one.body) for one in answers(await answered)]
    assert [one["body"] for one in got] == ["b0", "b1", "b2", "b3", "b4", "b5", "last"]
    assert [one["test"] for one in got] == [[f"t{number}"] for number in range(6)] + [[]]
    assert [one["query"] for one in got] == ["n=0", "", "n=2", "n=3", "", "n=5", ""]


async def test_a_queue_behind_a_fast_call_is_bounded() -> None:
    """Reading pauses as soon as one request waits; the rest is neither parsed nor started, and all are answered."""
    handlers = Handlers()
    async with handlers.serving() as served:
        answered = asyncio.create_task(served.talk(post(b"/gated", b"{}") + post(b"/echo", b"{}") * 2_000 + LAST))
        await handlers.entered.wait()
        (edge,) = edges(served)
        assert 0 < len(edge.pipeline) < 100
        assert edge.flow.read_paused
        assert len(served.server.server_state.tasks) == 1
        assert edge.eviction_rank() is None
        handlers.go.set()
        assert len(answers(await answered)) == 2_002


async def test_a_refusal_waits_for_the_fast_call_before_it() -> None:
    """The second request is malformed, or never becomes whole, while the first still runs: two answers, in order."""
    for second, status in ((get(host=None), 400), (b"POST /echo HTTP/1.1\r\n", 408), (post(b"/echo", length=2), 408)):
        handlers = Handlers()
        async with handlers.serving(EdgeLimits(head_s=SOON_S, body_s=SOON_S)) as served:
            answered = asyncio.create_task(served.talk(post(b"/gated", b"{}") + second))
            await handlers.entered.wait()
            await asyncio.sleep(SOON_S * 2)
            handlers.go.set()
            assert [one.status for one in answers(await answered)] == [200, status]


async def test_answers_wait_for_a_reader_that_is_slow() -> None:
    """While the socket takes no more, no further answer is added; at the write deadline the connection is reset."""
    handlers = Handlers()
    loop = asyncio.get_running_loop()
    async with handlers.serving(EdgeLimits(write_s=SOON_S)) as served:
        with socket.socket() as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            peer.settimeout(0)
            await loop.sock_connect(peer, ("127.0.0.1", served.port))
            await loop.sock_sendall(peer, post(b"/large") * 40)
            while not handlers.finished:  # noqa: ASYNC110 - until the first is answered
                await asyncio.sleep(0)
            await asyncio.sleep(SOON_S * 2)
            assert len(handlers.finished) < 10
            while edges(served):  # noqa: ASYNC110 - until the connection is reset
                await asyncio.sleep(0)


CLOSING = {
    "the client closes": post(b"/echo", b"{}", b"Connection: close"),
    "HTTP/1.0": post(b"/echo", b"{}", version=b"1.0"),
    "HTTP/1.0 with keep-alive": post(b"/echo", b"{}", b"Connection: keep-alive", version=b"1.0"),
}


@pytest.mark.parametrize("sent", CLOSING.values(), ids=CLOSING)
async def test_the_last_answer_says_that_it_is_the_last(sent: bytes) -> None:
    """One `connection: close`, then the end."""
    async with Handlers().serving() as served:
        raw = await served.talk(sent)
    assert raw.count(b"connection: close\r\n") == 1
    assert bodies(answers(raw)) == ["{}"]


async def test_an_answer_may_close_the_connection() -> None:
    """Its header is sent once, and the next request is not served."""
    handlers = Handlers()
    handlers.headers = (("connection", "close"),)
    async with handlers.serving() as served:
        raw = await served.talk(post(b"/echo", b"{}") + LAST)
    assert raw.count(b"connection: close\r\n") == raw.count(b"HTTP/1.1 200 ") == 1


async def test_an_answer_has_the_headers_of_the_app_in_the_same_order() -> None:
    """Also one that replaces a header that every answer has."""
    handlers = Handlers()
    handlers.headers = (("x-test", "1"), ("cache-control", "public"))
    async with handlers.serving() as served:
        app, fast = answers(await served.talk(post(b"/app", b"{}") + post(b"/echo", b"{}") + LAST))[:2]
        close = b"Connection: close"
        last = [answers(await served.talk(post(path, b"{}", close)))[0] for path in (b"/app", b"/echo")]
    assert list(app.headers) == list(fast.headers)
    assert list(last[0].headers) == list(last[1].headers) == [*app.headers, "connection"]
    assert fast.headers["cache-control"] == "public"


async def test_a_draining_server_closes_with_the_answer_of_a_running_call() -> None:
    """Begun before or during the call, or noticed only by the check."""
    for begin in ("before", "during", "check"):
        handlers, draining = Handlers(), begin == "check"
        async with handlers.serving(draining=lambda draining=draining: draining) as served:
            reader, writer = await served.open()
            while not edges(served):  # noqa: ASYNC110 - until it is accepted
                await asyncio.sleep(0)
            if begin == "before":
                edges(served)[0].drain()
            writer.write(post(b"/gated", b"{}"))
            await handlers.entered.wait()
            if begin == "during":
                edges(served)[0].drain()
            handlers.go.set()
            got = answers(await reader.read())
            assert [one.headers["connection"] for one in got] == ["close"]
            await hang_up(writer)


async def test_a_stop_waits_for_a_running_call_and_its_body() -> None:
    """A call that runs is answered; one whose body is still arriving may complete it."""
    handlers = Handlers()
    async with handlers.serving() as served:
        running = asyncio.create_task(served.talk(post(b"/gated", b"{}")))
        await handlers.entered.wait()
        reader, writer = await served.open()
        writer.write(post(b"/streamed", b"1", length=2))
        assert await handlers.chunks.get() == b"1"
        idle, idle_writer = await served.open()
        served.server.should_exit = True
        assert await idle.read() == b""
        handlers.go.set()
        assert answers(await running)[0].headers["connection"] == "close"
        writer.write(b"2")
        assert answers(await reader.read())[0].headers["connection"] == "close"
        await hang_up(idle_writer)
        await hang_up(writer)


async def test_a_call_cut_off_by_a_stop_gets_no_answer() -> None:
    """Not even if its handler had not started yet: the connection ends."""
    handlers = Handlers()
    async with asyncio.timeout(GUARD_S):
        async with handlers.serving(timeout_graceful_shutdown=0) as served:
            cut = asyncio.create_task(served.talk(post(b"/gated", b"{}")))
            await handlers.entered.wait()
        with contextlib.suppress(ConnectionResetError):
            assert await cut == b""
    assert not handlers.finished


async def test_a_bug_in_a_handler_is_answered_in_the_one_shape() -> None:
    """The connection continues, as after any answer, and the exception's text is nowhere."""
    async with Handlers().serving() as served:
        raw = await served.talk(post(b"/broken", b"{}") + LAST)
        assert [(one.status, one.reason) for one in answers(raw)] == [(500, "internal"), (200, None)]
        assert "canary" not in served.log.getvalue() + raw.decode()


async def test_a_trusted_proxy_names_the_caller() -> None:
    """For the fast path and for the app alike, and for one request only."""
    async with Handlers().serving(EdgeLimits(trusted_proxies=("127.0.0.1/32",))) as served:
        forwarded = b"X-Forwarded-For: 192.0.2.7"
        got = answers(await served.talk(post(b"/echo", b"", forwarded) + post(b"/app", b"", forwarded) + LAST))
    assert [json.loads(one.body)["peer"] for one in got] == ["192.0.2.7", "192.0.2.7", "127.0.0.1"]


async def test_an_upgrade_is_ignored_and_its_body_read() -> None:
    """The request is read again without it, with every value of its other headers."""
    fields = (b"Connection: Upgrade", b"Upgrade: h2c", b"X-Test: 1", b"X-Test: 2")
    async with Handlers().serving() as served:
        got = answers(await served.talk(post(b"/echo", b"{}", *fields) + LAST))
    assert bodies(got) == ["{}", "last"]
    assert json.loads(got[0].body)["test"] == ["1", "2"]


async def test_nothing_of_a_call_outlives_its_answer() -> None:
    """No cycle of references keeps its key and its body until a garbage collection, which is rare."""
    async with Handlers().serving() as served:
        gc.collect()
        gc.disable()
        try:
            for path in (b"/echo", b"/app", b"/gone", b"/eager"):
                await served.talk(post(path, b"{}", b"Authorization: Bearer one") * 3 + LAST)
            while served.server.server_state.tasks:  # noqa: ASYNC110 - until the last task is forgotten
                await asyncio.sleep(0)
            assert [one for one in gc.get_objects() if isinstance(one, Call)] == []
        finally:
            gc.enable()


async def test_a_connection_keeps_no_headers_of_an_earlier_caller() -> None:
    """A proxy sends the requests of many callers on one connection."""
    async with Handlers().serving() as served:
        reader, writer = await served.open()
        for path in (b"/app", b"/echo"):
            writer.write(post(path, b"1", b"X-Test: of %b" % path))
            await reader.readuntil(b"}")
        (edge,) = edges(served)
        assert "of /echo" in repr(vars(edge))
        assert "of /app" not in repr(vars(edge))
        await hang_up(writer)


async def test_a_refused_body_is_not_asked_for() -> None:
    """The edge refuses it before its handler runs: one answer, one line, and no interim response after the end."""
    async with Handlers().serving() as served:
        reader, writer = await served.open()
        chunked = (b"Transfer-Encoding: chunked", b"Expect: 100-continue")
        writer.write(head(*chunked, start=b"POST /streamed HTTP/1.1") + coded(b"x" * 20_000))
        got = answers(await reader.read())
        assert [one.status for one in got] == [413]
        while served.server.server_state.tasks:  # noqa: ASYNC110 - until the handler ends
            await asyncio.sleep(0)
        assert lines(served) == [("/streamed", 413)]
        assert "crash" not in served.log.getvalue()
        await hang_up(writer)
