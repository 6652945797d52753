"""HTTP towards X against a peer that does anything: random replies, cuts and stalls, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import selectors
import socket
import struct
import tracemalloc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from birdwire.x.client.pool import ConnectionPool, PoolLimits, Request, SendFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

CASES: Final = 1_000  # a long run has 10,000 and more
MAX_REPLY: Final = 4096
MAX_HEAD: Final = 2048
BOUNDS: Final[dict[str, Any]] = {"max_reply_bytes": MAX_REPLY, "max_head_bytes": MAX_HEAD}
DEADLINE_S: Final = 15.0
SETTLE_S: Final = 0.001
"""A moment of virtual time: the loop reaches it only once no socket has anything left to report."""

TEARDOWN_S: Final = 1.0
"""Virtual time after the last call for the client to close the connections that the peer broke."""

FINE: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine"


class VirtualSelector(selectors.DefaultSelector):
    """A selector that never waits: when no socket is ready, the clock jumps to the next timer."""

    now: float = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Give loopback half a millisecond to deliver before the clock jumps."""
        ready = super().select(0)
        if not ready and timeout != 0:
            ready = super().select(0.0005)
        if not ready and timeout != 0:
            if timeout is None:
                raise RuntimeError("every task waits and no timer is set")
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with its own clock and its own names."""

    def __init__(self) -> None:
        self._clock = VirtualSelector()
        super().__init__(self._clock)
        self.addresses: list[str] | None = ["127.0.0.1"]
        self.lookups = 0

    def time(self) -> float:
        """Seconds since it was made."""
        return self._clock.now

    async def getaddrinfo(self, host: Any, port: Any, **_: Any) -> list[Any]:
        """The addresses it was given; None never answers."""
        del host
        self.lookups += 1
        if self.addresses is None:
            await asyncio.Event().wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.addresses or []]


T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


@dataclass(frozen=True)
class Step:
    """What the peer does next: it writes, waits, ends, ends its half, resets, or awaits a whole request."""

    do: Literal["write", "wait", "end", "half", "reset", "request"]
    data: bytes = b""
    wait_s: float = 0.0


@dataclass
class Hostile:
    """A peer that plays its steps, shared by all connections, until they are used up. From then on it behaves."""

    steps: list[Step]
    requests: list[bytes] = field(default_factory=list)  # received to their last byte
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    ended: set[asyncio.StreamWriter] = field(default_factory=set)  # those whose half is closed
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def listening(self, scheme: str = "http", port: int = 0, **limits: Any) -> AsyncIterator[ConnectionPool]:
        """A client for it, which asks the loop for the peer's address."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", port)
        url = f"{scheme}://api.test:{server.sockets[0].getsockname()[1]}"
        upstream = ConnectionPool(url, PoolLimits(**limits))
        try:
            yield upstream
        finally:
            await upstream.close()
            server.close()
            await asyncio.sleep(SETTLE_S)  # connections accepted last get their tasks
            for writer in self.writers:
                writer.transport.abort()
            await asyncio.gather(*self.tasks)
            await server.wait_closed()
            await asyncio.sleep(SETTLE_S)  # connections aborted last are closed

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        received = asyncio.Event()
        self.tasks += (
            asyncio.create_task(self._read(reader, writer, received)),
            asyncio.create_task(self._play(writer, received)),
        )

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, received: asyncio.Event) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0] or b"0")
                self.requests.append(head + await reader.readexactly(length))
                received.set()
                if not self.steps and writer not in self.ended:
                    writer.write(FINE)
        writer.transport.abort()
        received.set()

    async def _play(self, writer: asyncio.StreamWriter, received: asyncio.Event) -> None:
        while self.steps and not writer.is_closing():
            step = self.steps.pop(0)
            if step.do == "write":
                writer.write(step.data)
                with contextlib.suppress(OSError):
                    await writer.drain()
            elif step.do == "wait":
                await asyncio.sleep(step.wait_s)
            elif step.do == "request":
                await received.wait()
                if not writer.is_closing():
                    received.clear()
            elif step.do == "half":
                self.ended.add(writer)
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            else:
                if step.do == "reset":
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
                return


def _reply(fields: bytes, body: bytes = b"", status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\n%s\r\n%s" % (status, fields, body)


PACKED: Final = gzip.compress(b"birds " * 99)
BOMB: Final = gzip.compress(bytes(10_000_000))
WHOLE: Final = [
    FINE,
    FINE + FINE,
    FINE + b"surplus",
    _reply(b"Content-Length: 2\r\nConnection: close\r\n", b"ok"),
    _reply(b"Transfer-Encoding: chunked\r\n", b"2\r\nok\r\n1;a=b\r\n!\r\n0\r\nT: x\r\n\r\n"),
    _reply(b"", b"until the end"),
    _reply(b"Content-Length: 9\r\n", status=204),
    _reply(b"", status=100) + FINE,
    _reply(b"", status=100) * 20,
    _reply(b"Upgrade: x\r\nConnection: upgrade\r\n", status=101),
    _reply(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    _reply(b"Content-Encoding: gzip\r\nContent-Length: %d\r\n" % len(PACKED), PACKED),
    _reply(b"Content-Encoding: gzip\r\nContent-Length: %d\r\n" % len(BOMB), BOMB),
    _reply(b"Content-Encoding: br\r\nContent-Length: 1\r\n", b"x"),
    _reply(b"Content-Length: 5000\r\n", bytes(5000)),
    _reply(b"A: " + b"x" * 3000 + b"\r\nContent-Length: 0\r\n"),
    _reply(b"A: \xe9\r\nSet-Cookie: a=b\r\nLocation: /\r\nContent-Length: 0\r\n", status=302),
]


@st.composite
def pieces(draw: st.DrawFn) -> bytes:
    """A reply, a part of one, one with bytes changed, or noise."""
    data = draw(st.sampled_from(WHOLE) | st.binary(max_size=40))
    form = draw(st.sampled_from(["whole", "head", "tail", "changed"]))
    at = draw(st.integers(0, len(data)))
    if form == "changed":
        return data[:at] + draw(st.binary(min_size=1, max_size=3)) + data[at + 1 :]
    return {"whole": data, "head": data[:at], "tail": data[at:]}[form]


STEPS: Final = st.lists(
    st.one_of(
        st.just(Step("request")),
        st.just(Step("request")),
        pieces().map(lambda data: Step("write", data)),
        pieces().map(lambda data: Step("write", data)),
        st.sampled_from([0.001, 1.0, 14.0, 16.0, 400.0]).map(lambda wait_s: Step("wait", wait_s=wait_s)),
        st.sampled_from([Step("end"), Step("half"), Step("reset")]),
    ),
    max_size=12,
)
REQUESTS: Final = st.lists(
    st.tuples(st.sampled_from(["GET", "POST", "DELETE", "HEAD"]), st.sampled_from([0, 20, 300_000])),
    min_size=1,
    max_size=4,
)


async def _one_case(steps: list[Step], requests: list[tuple[str, int]], *, together: bool) -> None:
    peer = Hostile(list(steps))
    loop = asyncio.get_running_loop()
    failed: dict[int, SendFailed] = {}

    async def call(number: int, method: str, size: int) -> None:
        began = loop.time()
        try:
            reply = await upstream.send(Request(method, f"/{number}/", body=bytes(size)), deadline_s=DEADLINE_S)
        except SendFailed as error:
            failed[number] = error
        else:
            assert 200 <= reply.status <= 599
            assert len(reply.body) <= MAX_REPLY
        assert loop.time() - began <= DEADLINE_S + 0.001

    async with peer.listening(connections=2, pool_wait_s=60, **BOUNDS) as upstream:
        calls = [call(number, *request) for number, request in enumerate(requests)]
        if together:
            await asyncio.gather(*calls)
        else:
            for each in calls:
                await each
        stats = upstream.stats()
        assert stats.in_use == 0
        assert stats.idle <= 2
        peer.steps.clear()
        await asyncio.sleep(TEARDOWN_S)
        assert (await upstream.send(Request("GET", "/last/"), deadline_s=DEADLINE_S)).body == b"fine"
    received = [int(request.split(b"/")[1]) for request in peer.requests if b"/last/" not in request[:20]]
    assert len(received) == len(set(received)), "a request was received twice"
    unsent = {number for number, error in failed.items() if not error.sent}
    assert not unsent & set(received), "a request called unsent was received"
    assert {number for number, error in failed.items() if error.cause == "busy"} <= unsent


@pytest.mark.timeout(180)  # twenty seconds of work, which a busy machine stretches
@example(steps=[Step("request"), Step("write", FINE), Step("end")], requests=[("GET", 0)] * 2, together=False)
@example(steps=[Step("write", FINE)], requests=[("GET", 0)] * 2, together=False)
@example(steps=[Step("end")] * 3, requests=[("POST", 300_000)] * 2, together=True)
@given(steps=STEPS, requests=REQUESTS, together=st.booleans())
@settings(max_examples=CASES, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_peer_makes_a_call_hang_repeat_or_lie(
    steps: list[Step],
    requests: list[tuple[str, int]],
    together: bool,  # noqa: FBT001 - hypothesis passes it by name
) -> None:
    """A reply or a failure by the deadline; one request at most; unsent only if not received; the pool lives on."""
    run(_one_case(steps, requests, together=together))


FLOODS: Final = {
    "interim replies": (b"", _reply(b"", status=102) * 50),
    "a status line": (b"HTTP/1.1 200 ", b"x" * 1000),
    "a header value": (b"HTTP/1.1 200 X\r\nA: ", b"x" * 1000),
    "header fields": (b"HTTP/1.1 200 X\r\n", b"A: b\r\n" * 100),
    "a body": (_reply(b""), b"x" * 1000),
    "tiny chunks": (_reply(b"Transfer-Encoding: chunked\r\n"), b"1\r\nx\r\n" * 100),
    "a chunk extension": (_reply(b"Transfer-Encoding: chunked\r\n") + b"1;", b"x" * 1000),
    "trailers": (_reply(b"Transfer-Encoding: chunked\r\n") + b"0\r\n", b"A: b\r\n" * 100),
    "inflating zeros": (_reply(b"Content-Encoding: gzip\r\n"), BOMB),
    "empty gzip blocks": (_reply(b"Content-Encoding: gzip\r\n") + PACKED[:10], b"\x00\x00\x00\xff\xff" * 200),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
def test_no_flood_fills_memory(flood: tuple[bytes, bytes]) -> None:
    """Whatever comes without end, the call ends long before, with little kept."""
    first, then = flood

    async def call() -> SendFailed:
        peer = Hostile([Step("request"), Step("write", first), *[Step("write", then)] * 20_000])
        async with peer.listening(**BOUNDS) as upstream:
            tracemalloc.start()
            with pytest.raises(SendFailed) as caught:
                await upstream.send(Request("GET", "/"), deadline_s=DEADLINE_S)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 4_000_000
            assert len(peer.steps) > 10_000
        return caught.value

    error = run(call())
    assert (error.cause, error.sent) == ("malformed", True)


def test_a_reply_of_a_byte_a_second_ends_at_the_deadline() -> None:
    """The deadline is of the whole call: no byte restarts it."""

    async def call() -> tuple[SendFailed, float]:
        slow = [step for byte in FINE for step in (Step("write", bytes([byte])), Step("wait", wait_s=1.0))]
        async with Hostile([Step("request"), *slow]).listening() as upstream:
            with pytest.raises(SendFailed) as caught:
                await upstream.send(Request("GET", "/"), deadline_s=DEADLINE_S)
            return caught.value, asyncio.get_running_loop().time()

    error, took_s = run(call())
    assert (error.cause, error.sent) == ("timeout", True)
    assert took_s == pytest.approx(DEADLINE_S)


def test_each_call_ends_at_its_own_deadline() -> None:
    """In whatever order they began, and on a connection whose earlier call had another deadline."""

    async def calls() -> list[tuple[str, float]]:
        loop = asyncio.get_running_loop()

        async def call(deadline_s: float) -> tuple[str, float]:
            began_s = loop.time()
            with pytest.raises(SendFailed) as caught:
                await upstream.send(Request("GET", "/"), deadline_s=deadline_s)
            return caught.value.cause, loop.time() - began_s

        steps = [Step("request"), Step("write", FINE), *[Step("wait", wait_s=99)] * 9]
        async with Hostile(steps).listening(idle_s=99.0) as upstream:
            assert (await upstream.send(Request("GET", "/"), deadline_s=4.0)).body == b"fine"
            together = await asyncio.gather(*(call(deadline_s) for deadline_s in (9.0, 2.0, 5.0, 5.0, 0.5)))
            await asyncio.sleep(30.0)
            return [*together, await call(3.0)]

    ends = run(calls())
    assert {cause for cause, _ in ends} == {"timeout"}
    assert [took_s for _, took_s in ends] == pytest.approx([9.0, 2.0, 5.0, 5.0, 0.5, 3.0])


@pytest.mark.parametrize(("deadline_s", "took_s"), [(DEADLINE_S, 3.0), (2.0, 2.0)])
def test_a_handshake_that_stalls_ends_in_time(deadline_s: float, took_s: float) -> None:
    """After its own limit or the call's, with nothing sent."""

    async def call() -> tuple[SendFailed, float]:
        async with Hostile([Step("wait", wait_s=99)]).listening("https") as upstream:
            with pytest.raises(SendFailed) as caught:
                await upstream.send(Request("GET", "/"), deadline_s=deadline_s)
            return caught.value, asyncio.get_running_loop().time()

    error, ended_at_s = run(call())
    assert (error.cause, error.sent) == ("tls", False)
    assert ended_at_s == pytest.approx(took_s)


def test_a_resolver_that_never_answers_is_asked_once_and_left_in_time() -> None:
    """Ten calls share one look-up, and each ends within the time for connecting, unsent."""

    async def calls() -> list[Any]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.addresses = None
        upstream = ConnectionPool("http://api.test")
        ends = await asyncio.gather(
            *(upstream.send(Request("GET", "/"), deadline_s=DEADLINE_S) for _ in range(10)), return_exceptions=True
        )
        assert loop.time() == pytest.approx(3.0)
        assert loop.lookups == 1
        await upstream.close()
        return ends

    ends = run(calls())
    assert {(end.cause, end.sent) for end in ends} == {("unreachable", False)}


def test_close_ends_a_call_that_waits_for_the_resolver() -> None:
    """As a failure, not as a cancellation that its caller did not ask for."""

    async def call() -> SendFailed:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.addresses = None
        upstream = ConnectionPool("http://api.test")
        waiting = asyncio.create_task(upstream.send(Request("GET", "/"), deadline_s=DEADLINE_S))
        await asyncio.sleep(0.5)
        await upstream.close()
        with pytest.raises(SendFailed) as caught:
            await waiting
        assert loop.time() == pytest.approx(0.5)
        return caught.value

    error = run(call())
    assert (error.cause, error.sent) == ("unreachable", False)


@pytest.mark.parametrize("first", ["refused", "a black hole"])
def test_the_next_address_is_tried_when_one_fails(first: str) -> None:
    """And the one that worked is tried first the next time."""

    async def calls() -> tuple[bytes, float, float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        with contextlib.ExitStack() as stack:
            hole = stack.enter_context(socket.socket())
            hole.bind(("127.0.0.2", 0))
            port = hole.getsockname()[1]
            if first == "a black hole":  # a full backlog answers nothing
                hole.listen(0)
                for _ in range(3):
                    filler = stack.enter_context(socket.socket())
                    filler.settimeout(0)
                    filler.connect_ex(("127.0.0.2", port))
            loop.addresses = ["127.0.0.2", "127.0.0.1"]
            async with Hostile([]).listening(port=port, max_age_s=0.0) as upstream:
                reply = await upstream.send(Request("GET", "/"), deadline_s=DEADLINE_S)
                first_s = loop.time()
                await upstream.send(Request("GET", "/"), deadline_s=DEADLINE_S)
                return reply.body, first_s, loop.time() - first_s

    body, first_s, second_s = run(calls())
    assert body == b"fine"
    assert first_s == pytest.approx(0.0 if first == "refused" else 1.5)
    assert second_s == pytest.approx(0.0)
