"""The HTTP edge, byte by byte on real sockets: every request gets one answer in the one shape, or none, and in time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import TYPE_CHECKING, Never

import pytest
import pytest_asyncio

from birdwire.edge import protocol
from birdwire.edge.connections import EdgeLimits
from harness.edge_server import GUARD_S, RunningServer, gateway, hang_up, serving
from harness.http_corpus import (
    LIKE,
    PROBE,
    ROWS,
    Row,
    answers,
    check_shape,
    coded,
    framed,
    get,
    head,
    like,
    marked,
    sized,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

SOON_S = 0.2
"""A deadline that a test waits for."""


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["lane", "app"])
async def served(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[RunningServer]:
    """One gateway for all rows but the late ones."""
    async with gateway(tmp_path_factory.mktemp("edge"), EdgeLimits(), request.param) as one:
        yield one


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hasty(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    """One gateway for the rows that are never whole."""
    async with gateway(tmp_path_factory.mktemp("hasty"), EdgeLimits(head_s=SOON_S, body_s=SOON_S)) as one:
        yield one


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("row", [marked(row) for row in ROWS])
async def test_every_byte_has_one_meaning(served: RunningServer, hasty: RunningServer, row: Row) -> None:
    """The right answers in order, each in our shape; after a refusal by the edge nothing more is read."""
    server = hasty if 408 in row.statuses else served
    got = answers(await server.talk(row.sent + PROBE if row.probe else row.sent), row.heads)
    assert [one.status for one in got] == [*row.statuses, *([200] if row.kept else [])]
    for number, one in enumerate(got):
        if one.status != 100:
            check_shape(one, empty=number in row.heads)
    finals = [one for one in got if one.status != 100]
    for one, reason in zip(finals, row.reasons, strict=False):
        assert one.reason == reason
    assert finals[-1].headers["connection"] == "close"
    assert not any("connection" in one.headers for one in finals[:-1])


# Time.


SHORT = EdgeLimits(head_s=SOON_S, body_s=SOON_S, idle_s=SOON_S, linger_s=SOON_S, write_s=SOON_S)
LONG_S = 3_600.0
"""A deadline that no test reaches: what ends was ended by another."""


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body, and return the caller's address and the body's size."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            break
    await say(send, {"client": scope["client"][0], "size": size, "path": scope["path"]})


async def lifespan(receive: Receive, send: Send) -> None:
    """Start and stop."""
    for stage in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{stage}.complete"})


async def say(send: Send, value: object) -> None:
    """A JSON answer with the headers that every answer of the real app has."""
    body = json.dumps(value).encode()
    fields = {"content-length": str(len(body)), "x-content-type-options": "nosniff", "cache-control": "no-store"}
    fields["x-request-id"] = f"req_{'0' * 26}"
    headers = [(name.encode(), text.encode()) for name, text in fields.items()]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def eager(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer immediately without reading the body."""
    await (lifespan(receive, send) if scope["type"] == "lifespan" else say(send, scope["path"]))


async def flood(peer: socket.socket, data: bytes) -> Never:
    """Send for ever, and read nothing."""
    while True:
        await asyncio.get_running_loop().sock_sendall(peer, data)


class Gated:
    """The same app, but it waits for `go` first. `entered` tells that a request is at the gate."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.go = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http":
            self.entered.set()
            await self.go.wait()
        await app(scope, receive, send)


async def drip(served: RunningServer, start: bytes, drop: bytes) -> bytes:
    """Send a start, then a drop whenever nothing comes back for a moment; what came until the end."""
    got = b""
    async with asyncio.timeout(GUARD_S):
        reader, writer = await served.open()
        try:
            writer.write(start)
            while not reader.at_eof():
                writer.write(drop)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SOON_S / 20):
                        got += await reader.read(1 << 16)
            return got
        except ConnectionResetError:  # a drop that came after the end
            return got
        finally:
            await hang_up(writer)


TRICKLES = {
    "a head, a letter at a time": (b"GET /livez HTTP/1.1\r\nHost: a\r\nX: ", b"x"),
    "a head, a header at a time": (b"GET /livez HTTP/1.1\r\nHost: a\r\n", b"X: 1\r\n"),
    "a target, a letter at a time": (b"GET /", b"x"),
    "a body, a byte at a time": (like(b"Content-Length: 10000"), b" "),
    "chunks, one at a time": (like(b"Transfer-Encoding: chunked"), b"1\r\n \r\n"),
    "a chunk extension, a letter at a time": (framed(b"1;"), b"x"),
    "trailers, one at a time": (framed(b"0\r\n"), b"X: 1\r\n"),
}


@pytest.mark.trust("G15")
@pytest.mark.parametrize(("start", "drop"), TRICKLES.values(), ids=TRICKLES)
async def test_a_deadline_is_for_the_whole_and_not_for_each_read(start: bytes, drop: bytes) -> None:
    """A client that trickles gets a 408 and is cut off, although bytes keep arriving."""
    async with serving(app, SHORT) as served:
        got = answers(await drip(served, start, drop))
    assert [one.status for one in got] == [408]
    check_shape(got[0])
    assert got[0].headers["connection"] == "close"


@pytest.mark.trust("G15")
@pytest.mark.parametrize(
    "start", [b"GET /livez HTTP/1.1\r\nHost: a\r\n", like(b"Content-Length: 5")], ids=["heads", "bodies"]
)
async def test_many_half_open_requests_are_closed_while_others_are_served(start: bytes) -> None:
    """200 half requests each get a 408; a complete request meanwhile gets its answer."""
    async with serving(app, EdgeLimits(head_s=SOON_S, body_s=SOON_S, connections=500)) as served:
        *halves, whole_one = await asyncio.gather(*(served.talk(start) for _ in range(200)), served.talk(PROBE))
    assert {answers(raw)[0].status for raw in halves} == {408}
    assert answers(whole_one)[0].status == 200


async def test_a_silent_connection_is_closed_without_a_response() -> None:
    """Nothing was asked, so nothing is answered; empty lines are nothing."""
    async with serving(app, SHORT) as served:
        assert await served.talk(b"") == b""
        assert await served.talk(b"\r\n") == b""


async def test_an_idle_connection_is_closed_without_a_response() -> None:
    """One answer, then the end after the idle time, though a head may take long."""
    async with serving(app, EdgeLimits(head_s=LONG_S, body_s=LONG_S, idle_s=SOON_S)) as served:
        got = answers(await served.talk(get()))
        assert [one.status for one in got] == [200]
        assert "connection" not in got[0].headers
        assert await drip(served, get(), b"\r\n")  # empty lines do not keep it


async def test_a_deadline_does_not_count_while_the_answer_is_awaited() -> None:
    """A request that is whole waits for its answer longer than any deadline of reading."""
    gated = Gated()
    async with serving(gated, SHORT) as served, asyncio.timeout(GUARD_S):
        patient = asyncio.create_task(served.talk(get(path=b"/slow")))
        await gated.entered.wait()
        assert answers(await served.talk(b"GET / HTTP/1.1\r\n"))[0].status == 408  # a deadline later
        gated.go.set()
        assert [one.status for one in answers(await patient)] == [200]


async def test_a_reader_that_takes_nothing_is_cut_off() -> None:
    """Answers pile up for the write deadline, then the connection is reset."""
    loop = asyncio.get_running_loop()

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        await (lifespan(receive, send) if scope["type"] == "lifespan" else say(send, "x" * 1_000_000))

    async with serving(large, EdgeLimits(write_s=SOON_S)) as served, asyncio.timeout(GUARD_S):
        with socket.socket() as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            peer.settimeout(0)
            await loop.sock_connect(peer, ("127.0.0.1", served.port))
            with pytest.raises(ConnectionError):
                await flood(peer, get() * 100)


async def test_a_reader_that_takes_nothing_cannot_hold_a_closing_connection() -> None:
    """The last answer's bytes, too, are kept for the write deadline only: a stop waits no longer than that."""

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        await (lifespan(receive, send) if scope["type"] == "lifespan" else say(send, "x" * 8_000_000))

    loop = asyncio.get_running_loop()
    async with asyncio.timeout(GUARD_S):
        with socket.socket() as peer:
            async with serving(large, EdgeLimits(write_s=SOON_S)) as served:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
                peer.settimeout(0)
                await loop.sock_connect(peer, ("127.0.0.1", served.port))
                await loop.sock_sendall(peer, get(b"Connection: close"))
                assert await loop.sock_recv(peer, 12) == b"HTTP/1.1 200"


async def test_a_path_may_have_its_own_time_for_files() -> None:
    """A slow multipart body there is still waited for when others are late already, and when JSON is late there."""
    limits = EdgeLimits(body_s=SOON_S, files={"/slow": (100, LONG_S)})

    def form(path: bytes) -> bytes:
        kind = b"Content-Type: Multipart/Form-Data; boundary=a"
        return head(b"Content-Length: 2", kind, start=b"POST %b HTTP/1.1" % path)

    async with serving(app, limits) as served, asyncio.timeout(GUARD_S):
        reader, writer = await served.open()
        writer.write(form(b"/slow"))
        for late in (like(b"Content-Length: 2", path=b"/slow"), form(b"/slower")):
            assert [one.status for one in answers(await served.talk(late))] == [408]
        writer.write(b"{}" + PROBE)
        assert [one.status for one in answers(await reader.read())] == [200, 200]
        await hang_up(writer)


async def test_a_refused_body_has_an_ordinary_bodys_time_left() -> None:
    """A request that was answered before its end holds its connection no longer, even where files have more time."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})
        else:
            await app(scope, receive, send)

    limits = EdgeLimits(body_s=SOON_S, idle_s=SOON_S, files={"/slow": (1 << 20, LONG_S)})
    kind = b"Content-Type: multipart/form-data; boundary=a"
    async with serving(refuse, limits) as served:
        for sent in (head(b"Content-Length: 9", kind, start=b"POST /slow HTTP/1.1"), get() * 2):
            assert {one.status for one in answers(await served.talk(sent))} == {403}


# Order.


async def test_a_queue_of_requests_is_bounded() -> None:
    """Of 5,000 pipelined requests a piece's worth is taken in at a time, and all are answered in the end."""
    gated = Gated()
    async with serving(gated, EdgeLimits()) as served:
        answered = asyncio.create_task(served.talk(get() * 5_000))
        await gated.entered.wait()
        (connection,) = (
            one for one in served.server.server_state.connections if isinstance(one, protocol.EdgeProtocol)
        )
        assert 0 < len(connection.pipeline) <= protocol.MAX_PIECE_BYTES // len(get())
        gated.go.set()
        assert [one.status for one in answers(await answered)] == [200] * 5_000


async def test_a_refusal_waits_for_the_answer_before_it() -> None:
    """The second request is malformed while the first is still being served: two answers, in order."""
    gated = Gated()
    async with serving(gated, EdgeLimits()) as served:
        answered = asyncio.create_task(served.talk(get() + get(host=None) + get()))
        await gated.entered.wait()
        gated.go.set()
        assert [one.status for one in answers(await answered)] == [200, 400]


@pytest.mark.parametrize("late_one", [b"GET / HTTP/1.1\r\n", like(b"Content-Length: 5")], ids=["head", "body"])
async def test_a_timeout_waits_for_the_answer_before_it(late_one: bytes) -> None:
    """The second request never becomes whole while the first is still being served: 200, then 408."""
    gated = Gated()
    async with serving(gated, EdgeLimits(head_s=SOON_S, body_s=SOON_S)) as served:
        answered = asyncio.create_task(served.talk(get() + late_one))
        await gated.entered.wait()
        await served.talk(b"GET / HTTP/1.1\r\n")  # ends when a deadline has passed
        gated.go.set()
        assert [one.status for one in answers(await answered)] == [200, 408]


async def test_a_body_that_fails_after_its_answer_gets_no_second_one() -> None:
    """The app answered without reading; the body then breaks a rule, or never ends: the connection just ends."""
    async with serving(eager, SHORT) as served:
        for rest in (b"zz\r\n", b"1\r\na", coded(b" " * 20_000)):
            async with asyncio.timeout(GUARD_S):
                reader, writer = await served.open()
                writer.write(like(b"Transfer-Encoding: chunked"))
                first = await reader.readuntil(b'"' + LIKE.encode() + b'"')
                writer.write(rest)
                assert await reader.read() == b""
                assert [one.status for one in answers(first)] == [200]
                await hang_up(writer)


async def test_a_connection_continues_after_an_unread_body() -> None:
    """The app answered immediately; the body is read and dropped, and the next request is served."""
    async with serving(eager, EdgeLimits()) as served:
        got = answers(await served.talk(sized(b" " * 10_000) + PROBE))
    assert [one.status for one in got] == [200, 200]


async def test_a_half_closed_connection_gets_its_responses() -> None:
    """A half-closed connection gets its answers, then the end; an incomplete request is refused immediately."""
    gated = Gated()
    async with serving(gated, EdgeLimits(head_s=LONG_S, body_s=LONG_S, idle_s=LONG_S)) as served:
        answered = asyncio.create_task(served.talk(get() * 1_000, eof=True))
        await gated.entered.wait()
        gated.go.set()
        assert [one.status for one in answers(await answered)] == [200] * 1_000
        for half in (b"GET / HTTP/1.1\r\nHo", like(b"Content-Length: 5"), framed(b"5\r\nab")):
            got = answers(await served.talk(half, eof=True))
            assert [(one.status, one.reason) for one in got] == [(400, "http_malformed")]
            assert [one.status for one in answers(await served.talk(get() + half, eof=True))] == [200, 400]
        assert await served.talk(b"", eof=True) == b""


async def test_a_client_that_keeps_sending_receives_the_refusal() -> None:
    """The whole answer to a large body arrives: the connection is read out before it ends."""
    async with serving(app, EdgeLimits()) as served:
        for _ in range(20):
            got = answers(await served.talk(sized(b"x" * 900_000)))
            assert [one.status for one in got] == [413]


async def test_draining_a_refused_body_is_bounded() -> None:
    """The reading-out has a bound."""
    loop = asyncio.get_running_loop()
    async with serving(app, EdgeLimits(linger_s=LONG_S)) as served, asyncio.timeout(GUARD_S):
        with socket.socket() as peer:
            peer.settimeout(0)
            await loop.sock_connect(peer, ("127.0.0.1", served.port))
            await loop.sock_sendall(peer, like(b"Content-Length: 1000000000"))
            with pytest.raises(ConnectionError):
                await flood(peer, b"x" * 65_536)


async def test_the_interim_answer_comes_when_the_app_reads_and_not_before() -> None:
    """A caller that waits for 100 Continue gets it once the body is wanted, then its answer."""
    async with serving(app, EdgeLimits()) as served, asyncio.timeout(GUARD_S):
        reader, writer = await served.open()
        writer.write(like(b"Content-Length: 2", b"Expect: 100-continue"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}" + PROBE)
        assert [one.status for one in answers(await reader.read())] == [200, 200]
        await hang_up(writer)


# The app's bugs.


async def test_a_bug_in_the_app_is_answered_in_the_one_shape() -> None:
    """500 before the answer began; a cut after. The exception's text is nowhere."""

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        elif scope["path"] == "/late":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
            raise RuntimeError("canary")
        elif scope["path"] == "/raise":
            raise RuntimeError("canary")

    async with serving(broken, EdgeLimits()) as served:
        for path in (b"/raise", b"/silent"):
            got = answers(await served.talk(get(path=path) + PROBE))
            assert [(one.status, one.reason) for one in got] == [(500, "internal")]
            check_shape(got[0])
        raw = await served.talk(get(path=b"/late") + PROBE)
        assert raw.count(b"HTTP/1.1 ") == 1
        assert raw.endswith(b"\r\n\r\n")
        assert "canary" not in served.log.getvalue()
        assert served.log.getvalue().count('"crash"') == 2


# How many.


async def test_a_full_server_answers_503_and_accepts_again_once_there_is_room() -> None:
    """While all are being answered: 503 with Retry-After. One leaves, one may come."""
    gated = Gated()
    async with serving(gated, EdgeLimits(connections=1)) as served, asyncio.timeout(GUARD_S):
        answered = asyncio.create_task(served.talk(PROBE))
        await gated.entered.wait()
        got = answers(await served.talk(get()))
        assert [(one.status, one.reason) for one in got] == [(503, "overloaded")]
        check_shape(got[0])
        assert got[0].headers["connection"] == "close"
        gated.go.set()
        assert answers(await answered)[0].status == 200
        while answers(await served.talk(PROBE))[0].status != 200:
            pass


WAITING = {
    "nothing yet": (b"", b""),
    "a head": (b"GET / HTTP/1.1\r\nHo", b"HTTP/1.1 503 "),
    "a body": (like(b"Content-Length: 5"), b"HTTP/1.1 503 "),
    "an idle one": (get(), b"HTTP/1.1 200 "),
}


@pytest.mark.parametrize(("sent", "told"), WAITING.values(), ids=WAITING)
async def test_a_full_server_evicts_connections_that_it_waits_for(sent: bytes, told: bytes) -> None:
    """The connection that waited longest is closed, with 503 if its request had started; the newer one continues."""
    limits = EdgeLimits(head_s=LONG_S, body_s=LONG_S, idle_s=LONG_S, connections=2)
    async with serving(app, limits) as served, asyncio.timeout(GUARD_S):
        waiting = [await served.open() for _ in range(2)]
        for number, (reader, writer) in enumerate(waiting):
            writer.write(sent)
            if told.endswith(b" 200 "):
                await reader.readuntil(b"}")
            while sent and len([one for one in edges(served) if one.url]) <= number:  # noqa: ASYNC110 - until it was read
                await asyncio.sleep(0)
        assert answers(await served.talk(PROBE))[0].status == 200
        first = await waiting[0][0].read()
        assert first.startswith(told) or (sent == get() and first == b"")
        rest = {b"": get(), get(): get(), b"GET / HTTP/1.1\r\nHo": b"st: a\r\n\r\n"}.get(sent, b"12345")
        waiting[1][1].write(rest)
        assert (await waiting[1][0].readuntil(b"}")).startswith(b"HTTP/1.1 200 ")
        for _, writer in waiting:
            await hang_up(writer)


def edges(served: RunningServer) -> list[protocol.EdgeProtocol]:
    """The connections of a server."""
    return [one for one in served.server.server_state.connections if isinstance(one, protocol.EdgeProtocol)]


async def test_a_reserved_path_is_answered_by_a_full_server() -> None:
    """Even if no connection can be evicted and other connections hold the places where heads are read."""
    gated = Gated()
    limits = EdgeLimits(
        head_s=LONG_S, connections=1, connections_refused=3, reserved=frozenset({"/livez"}), linger_s=LONG_S
    )

    async def mostly(scope: Scope, receive: Receive, send: Send) -> None:
        await (app if scope.get("path") == "/livez" else gated)(scope, receive, send)

    async with serving(mostly, limits) as served, asyncio.timeout(GUARD_S):
        answered = asyncio.create_task(served.talk(get(b"Connection: close", path=b"/slow")))
        await gated.entered.wait()
        halves = [await served.open() for _ in range(12)]
        for _, writer in halves:
            writer.write(b"GET /livez HTTP/1.1\r\n")
        for path, status in ((b"/livez", 200), (b"/other", 503), (b"/livez?a=b", 200)):
            got = answers(await served.talk(get(path=path)))
            assert [one.status for one in got] == [status]
            assert got[0].headers["connection"] == "close"
        assert len(edges(served)) <= 1 + 3 + 1
        gated.go.set()
        assert answers(await answered)[0].status == 200
        for _, writer in halves:
            await hang_up(writer)


async def test_one_address_cannot_take_every_connection() -> None:
    """Its own cap is lower; an exempt caller is not counted by address."""
    for uncapped, statuses in (((), {503}), (("127.0.0.0/8",), {200})):
        async with serving(app, EdgeLimits(connections_each=1, uncapped=uncapped)) as served, asyncio.timeout(GUARD_S):
            reader, writer = await served.open()
            writer.write(get())
            await reader.readuntil(b"}")
            assert {one.status for one in answers(await served.talk(PROBE))} == statuses
            await hang_up(writer)


async def test_an_address_over_its_cap_evicts_no_other_connection() -> None:
    """It is refused, and the connections of other addresses stay."""
    limits = EdgeLimits(connections=2, connections_each=1, uncapped=(), head_s=LONG_S, idle_s=LONG_S)
    async with serving(app, limits) as served, asyncio.timeout(GUARD_S):
        reader, writer = await served.open("127.0.0.2")
        _, other = await served.open()
        while len(edges(served)) < limits.connections:  # noqa: ASYNC110 - until both are accepted
            await asyncio.sleep(0)
        assert [one.status for one in answers(await served.talk(PROBE))] == [503]
        writer.write(get())
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200 ")
        await hang_up(writer)
        await hang_up(other)


async def test_connections_beyond_the_limit_of_503_responses_are_closed() -> None:
    """Beyond the connections that are being sent a 503, a connection is closed without a response."""
    limits = EdgeLimits(connections_each=0, uncapped=(), connections_refused=1, linger_s=LONG_S, write_s=LONG_S)
    async with asyncio.timeout(GUARD_S):
        async with serving(app, limits) as served:
            reader, writer = await served.open()
            assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
            with contextlib.suppress(ConnectionError):
                assert await served.talk(b"") == b""
            await hang_up(writer)


# The caller's address.

PROXY = ("127.0.0.1/32", "10.0.0.0/8", "2001:db8::/32")
FORWARDED = {
    "an address": (PROXY, [b"192.0.2.7"], "192.0.2.7"),
    "the last address that is no proxy": (PROXY, [b"6.6.6.6, 192.0.2.7, 10.1.2.3"], "192.0.2.7"),
    "only proxies": (PROXY, [b"10.0.0.1, 10.0.0.2"], "10.0.0.1"),
    "two headers": (PROXY, [b"6.6.6.6", b"192.0.2.7"], "192.0.2.7"),
    "two headers, the last a proxy": (PROXY, [b"192.0.2.7", b"10.0.0.2"], "192.0.2.7"),
    "an address with a port": (PROXY, [b"192.0.2.7:4711"], "192.0.2.7"),
    "an address of IPv6": (PROXY, [b"2001:db9::1"], "2001:db9::1"),
    "an address of IPv6 with a port": (PROXY, [b"[2001:db9::1]:4711"], "2001:db9::1"),
    "an IPv4 address in IPv6 form": (PROXY, [b"::ffff:192.0.2.7"], "192.0.2.7"),
    "no address": (PROXY, [b"unknown"], "127.0.0.1"),
    "nothing": (PROXY, [b""], "127.0.0.1"),
    "a comma": (PROXY, [b","], "127.0.0.1"),
    "no address before a proxy": (PROXY, [b"evil, 10.0.0.2"], "10.0.0.2"),
    "bytes beyond ASCII": (PROXY, [b"\xff\xfe"], "127.0.0.1"),
    "no header": (PROXY, [], "127.0.0.1"),
    "an address from who is no proxy": ((), [b"192.0.2.7"], "127.0.0.1"),
    "an address from who is not that proxy": (("10.0.0.0/8",), [b"192.0.2.7"], "127.0.0.1"),
    "1,000 entries": (PROXY, [b",".join([b"9.9.9.9"] * 999 + [b"192.0.2.7"])], "192.0.2.7"),
    "1,000 proxies": (PROXY, [b",".join([b"9.9.9.9"] + [b"10.0.0.1"] * 999)], "10.0.0.1"),
}


@pytest.mark.trust("#262")
@pytest.mark.trust("#263")
@pytest.mark.trust("T20")
@pytest.mark.parametrize(("trusted", "forwarded", "client"), FORWARDED.values(), ids=FORWARDED)
async def test_x_forwarded_for_counts_from_a_trusted_proxy_alone(
    trusted: tuple[str, ...], forwarded: list[bytes], client: str
) -> None:
    """The caller is whom the outermost of our own proxies saw; what anybody else writes is ignored."""
    async with serving(app, EdgeLimits(trusted_proxies=trusted)) as served:
        got = answers(
            await served.talk(get(*(b"X-Forwarded-For: " + value for value in forwarded), b"Connection: close"))
        )
    assert json.loads(got[0].body)["client"] == client


@pytest.mark.trust("#165")
async def test_a_host_outside_the_list_is_refused() -> None:
    """With a list, only its hosts are answered, whatever the port or the case."""
    async with serving(app, EdgeLimits(hosts=frozenset({"birdwire.test", "[::1]"}))) as served:
        for host in (b"birdwire.test", b"BIRDWIRE.test:8700", b"[::1]:8700"):
            assert answers(await served.talk(get(b"Connection: close", host=b"Host: " + host)))[0].status == 200
        for host in (b"evil.test", b"birdwire.test.evil.test", b"127.0.0.1"):
            got = answers(await served.talk(get(host=b"Host: " + host) + PROBE))
            assert [(one.status, one.reason) for one in got] == [(400, "host_not_allowed")]


async def test_a_path_may_have_its_own_body_limit() -> None:
    """Only that very path, whatever its query."""
    async with serving(app, EdgeLimits(bodies={"/large": 40_000, "/small": 10})) as served:
        for path, size, status in (
            (b"/large", 40_000, 200),
            (b"/large?x=1", 40_000, 200),
            (b"/large", 40_001, 413),
            (b"/large/", 20_000, 413),
            (b"/LARGE", 20_000, 413),
            (b"http://birdwire.test/large", 40_000, 200),
            (b"/small", 10, 200),
            (b"/small", 11, 413),
        ):
            body = b" " * size
            for lines, coding in (
                (b"Content-Length: %d" % size, body),
                (b"Transfer-Encoding: chunked", coded(body) + b"0\r\n\r\n"),
            ):
                got = answers(await served.talk(like(lines, b"Connection: close", body=coding, path=path)))
                assert [one.status for one in got] == [status], path
                if status == 200:
                    assert json.loads(got[0].body)["size"] == size


# The end.


async def test_a_stop_closes_idle_connections_and_finishes_what_runs() -> None:
    """Idle connections end immediately, half requests soon; a running request and the next one are answered."""
    gated = Gated()
    limits = EdgeLimits(head_s=LONG_S, body_s=LONG_S, idle_s=LONG_S, linger_s=SOON_S)
    async with asyncio.timeout(GUARD_S):
        async with serving(gated, limits) as served:
            idle = [await served.open() for _ in range(2)]
            idle[1][1].write(b"GET / HT")
            running = asyncio.create_task(served.talk(get() + get()))
            await gated.entered.wait()  # so the two before it were accepted
            served.server.should_exit = True
            assert await idle[0][0].read() == b""
            assert [(one.status, one.reason) for one in answers(await idle[1][0].read())] == [(408, "request_timeout")]
            for _, writer in idle:
                await hang_up(writer)
            gated.go.set()
        got = answers(await running)
    assert [one.status for one in got] == [200, 200]
    assert got[-1].headers["connection"] == "close"


async def test_a_call_cut_off_by_a_stop_gets_no_answer() -> None:
    """X may have been asked by then: "internal, try again" would have a post done twice."""
    async with asyncio.timeout(GUARD_S):
        gated = Gated()
        async with serving(gated, EdgeLimits(), timeout_graceful_shutdown=0) as served:
            cut = asyncio.create_task(served.talk(get()))
            await gated.entered.wait()
        with contextlib.suppress(ConnectionResetError):
            assert await cut == b""


async def test_each_refusal_is_one_line_in_the_log() -> None:
    """With its reason and request id, and without what was sent."""
    async with serving(app, EdgeLimits()) as served:
        got = answers(await served.talk(get(host=None, path=b"/livez?api_key=canary")))
        lines = [json.loads(line) for line in served.log.getvalue().splitlines()]
    assert [(line["reason"], line["request_id"], line["path"]) for line in lines] == [
        ("http_malformed", got[0].headers["x-request-id"], "/livez")
    ]
    assert "canary" not in served.log.getvalue()
