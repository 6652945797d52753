"""HTTP towards X: every rule of the client, against real sockets on loopback."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import gzip
import socket
import ssl
import struct
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from birdwire.x.client.connection import HEADERS_READ
from birdwire.x.client.pool import ConnectionPool, PoolLimits, Reply, Request, SendFailed, Stats, fields
from birdwire.x.client.rate_headers import RATE_HEADERS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LIKE = Request("POST", "/2/users/1/likes", fields(("Authorization", "Bearer s3cret")), b'{"tweet_id":"1"}')
ME = Request("GET", "/2/users/me")


@dataclass
class Act:
    """What the peer does with one request: it writes `data`, then goes on, ends, resets or stays silent."""

    data: bytes = OK
    then: Literal["go on", "end", "reset", "stall"] = "go on"
    read: Literal["request", "head", "nothing"] = "request"


@dataclass
class Peer:
    """A scripted server on loopback. It records whole requests; after its last act it repeats it."""

    acts: list[Act]
    tls: ssl.SSLContext | None = None
    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    used: list[int] = field(default_factory=list)  # the connection of each request
    connections: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A new connection."""
        self.tasks.append(asyncio.create_task(self.serve(reader, writer)))

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"{'https' if self.tls else 'http'}://localhost:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        number = self.connections
        self.writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                act = self.acts.pop(0) if len(self.acts) > 1 else self.acts[0]
                if act.read != "nothing":
                    self.requests.append(await read_request(reader, body=act.read == "request"))
                    self.used.append(number)
                writer.write(act.data)
                await writer.drain()
                if act.then == "stall":
                    await reader.read()
                if act.then == "reset":
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    writer.transport.abort()
                if act.then != "go on":
                    break
        self.gone.set()
        writer.close()


async def read_request(reader: asyncio.StreamReader, *, body: bool = True) -> bytes:
    """One request with a Content-Length or none."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = [line.partition(b":")[2] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
    return head + (await reader.readexactly(int(length[0])) if body and length else b"")


@contextlib.asynccontextmanager
async def talk(
    *acts: Act, tls: ssl.SSLContext | None = None, ssl_context: ssl.SSLContext | None = None, **limits: Any
) -> AsyncIterator[tuple[Peer, ConnectionPool]]:
    """A scripted peer, and a client for it."""
    peer = Peer(list(acts) or [Act()], tls)
    server = await asyncio.start_server(peer.accept, "127.0.0.1", 0, ssl=tls)
    peer.port = server.sockets[0].getsockname()[1]
    upstream = ConnectionPool(peer.url, PoolLimits(**limits), ssl_context=ssl_context)
    try:
        yield peer, upstream
    finally:
        await upstream.close()
        for writer in peer.writers:
            writer.transport.abort()
        await asyncio.gather(*peer.tasks)
        server.close()
        await server.wait_closed()


async def until(true: Callable[[], bool]) -> None:
    """Let the loop turn until something is so."""
    while not true():  # noqa: ASYNC110 - what is waited for has no event of its own
        await asyncio.sleep(0)


async def answer(data: bytes, then: Literal["go on", "end", "reset", "stall"] = "go on", **limits: Any) -> Reply:
    """The reply that the client makes of these bytes."""
    async with talk(Act(data, then), **limits) as (_, upstream):
        return await upstream.send(ME, deadline_s=5)


async def refusal(data: bytes, then: Literal["go on", "end", "reset", "stall"] = "stall", **limits: Any) -> SendFailed:
    """Return the client's failure for these bytes; its connection must be closed and its slot free."""
    async with talk(Act(data, then), **limits) as (_, upstream):
        with pytest.raises(SendFailed) as caught:
            await upstream.send(LIKE, deadline_s=5)
        assert upstream.stats().in_use == upstream.stats().idle == 0
        return caught.value


class TestRequest:
    """What leaves us."""

    async def test_a_request_is_written_with_our_fields_and_the_callers(self) -> None:
        """The client sets host, agent, accept and length; the path of the base URL comes first."""
        async with talk() as (peer, _):
            upstream = ConnectionPool(peer.url + "/v9/", user_agent="birdwire/1")
            await upstream.send(LIKE, deadline_s=5)
            await upstream.close()
            assert peer.requests == [
                b"POST /v9/2/users/1/likes HTTP/1.1\r\nHost: localhost:%d\r\nUser-Agent: birdwire/1\r\n"
                b"Accept: application/json\r\nAccept-Encoding: gzip\r\nAuthorization: Bearer s3cret\r\n"
                b'Content-Length: 16\r\n\r\n{"tweet_id":"1"}' % peer.port
            ]

    async def test_a_get_has_no_content_length_and_an_empty_post_has_zero(self) -> None:
        """RFC 9110 §8.6."""
        async with talk() as (peer, upstream):
            await upstream.send(ME, deadline_s=5)
            await upstream.send(Request("POST", "/"), deadline_s=5)
            await upstream.send(Request("DELETE", "/"), deadline_s=5)
            lengths = [b"Content-Length: 0\r\n" in request for request in peer.requests]
            assert lengths == [False, True, False]
            assert b"Content-Length" not in peer.requests[0] + peer.requests[2]

    @pytest.mark.parametrize(
        "request_",
        [
            Request("GET\r\nX: y", "/"),
            Request("get", "/"),
            Request("", "/"),
            Request("CONNECT", "/"),
            Request("GET", "/a b"),
            Request("GET", "/a\r\nX: y"),
            Request("GET", "/a\n"),
            Request("GET", "/a\0"),
            Request("GET", "/caf\xe9"),
            Request("GET", "/a#b"),
            Request("GET", "a"),
            Request("GET", ""),
            Request("GET", "http://elsewhere/"),
        ],
        ids=repr,
    )
    async def test_a_request_that_could_break_its_framing_is_never_sent(self, request_: Request) -> None:
        """A ValueError before anything is opened."""
        async with talk() as (peer, upstream):
            with pytest.raises(ValueError, match=r"^the method ") as caught:
                await upstream.send(request_, deadline_s=5)
            assert caught.value.__cause__ is None
            assert peer.connections == 0
            assert upstream.stats() == Stats(open=0, idle=0, in_use=0, opened=0)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("X", "a\r\nY: b"),
            ("X", "a\n"),
            ("X", "a\0"),
            ("X", "\u2028"),
            ("X", " a"),
            ("X:", "a"),
            ("X\r\nY", "a"),
            ("", "a"),
            ("Host", "elsewhere"),
            ("content-LENGTH", "5"),
            ("Transfer-Encoding", "chunked"),
            ("Connection", "upgrade"),
        ],
    )
    def test_a_header_that_could_break_its_framing_cannot_be_made(self, name: str, value: str) -> None:
        """A ValueError without the value in its words, wherever it stands among others."""
        with pytest.raises(ValueError, match=r"header") as caught:
            fields(("A", "b"), (name, value))
        assert caught.value.__cause__ is None
        told = (
            "a header name must be a token, its value visible ASCII",
            f"the header {name} cannot be set by the caller",
        )
        assert str(caught.value) in told

    def test_secrets_do_not_show_in_a_repr(self) -> None:
        """Neither headers nor bodies nor queries."""
        assert repr(Request("POST", "/p?q=1", fields(("A", "s")), b"s")) == "Request(POST /p)"
        assert repr(Reply(200, {"a": b"s"}, b"secret")) == "Reply(200, 6 bytes)"

    @pytest.mark.parametrize(
        "url",
        [
            "ftp://x",
            "//x",
            "x",
            "http://",
            "https://u:p@x",
            "https://x?q",
            "https://x#f",
            "https://x/a b",
            "http://caf\xe9",
        ],
    )
    def test_a_base_url_names_scheme_host_port_and_path_only(self, url: str) -> None:
        """Everything else is a ValueError."""
        with pytest.raises(ValueError, match="base URL"):
            ConnectionPool(url)


class TestReply:
    """What comes back."""

    async def test_headers_are_lowered_joined_and_filtered(self) -> None:
        """What nothing reads is dropped; what is read is passed on as it came."""
        reply = await answer(
            b"HTTP/1.1 200 OK\r\nDATE: 1 \r\nSet-Cookie: x=1\r\ndate: 2\r\nX-Rate-Limit-Limit: caf\xe9\r\n"
            b"X-Rate-Limit-Reset:\r\nX-Transaction-Id: 3\r\nContent-Length: 2\r\n\r\nok"
        )
        assert reply == Reply(
            200,
            {"date": b"1, 2", "x-rate-limit-limit": b"caf\xe9", "x-rate-limit-reset": b"", "content-length": b"2"},
            b"ok",
        )

    def test_every_header_that_is_read_is_kept(self) -> None:
        """A connection keeps no other: one that is read without being listed would always be missing."""
        read = set(RATE_HEADERS)
        for path in (*Path("src/birdwire/x").rglob("*.py"), *Path("src/birdwire/accounts").rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                match node:
                    case ast.Call(func=ast.Attribute(source, "get"), args=[ast.Constant(str(name)), *_]):
                        found = (source, name)
                    case ast.Subscript(source, ast.Constant(str(name))):
                        found = (source, name)
                    case ast.Compare(ast.Constant(str(name)), comparators=[source]):
                        found = (source, name)
                    case _:
                        continue
                if ast.unparse(found[0]).endswith("headers"):
                    read.add(found[1])
        assert read == HEADERS_READ

    @pytest.mark.parametrize("char", [b"\r", b"\n", b"\0", b"\x01", b"\x7f", b"\r\n "])
    async def test_a_control_character_in_a_header_voids_the_reply(self, char: bytes) -> None:
        """RFC 9110 §5.5: reject it."""
        error = await refusal(b"HTTP/1.1 200 OK\r\nA: b" + char + b"c\r\nContent-Length: 0\r\n\r\n")
        assert (error.cause, error.sent) == ("malformed", True)

    async def test_a_chunked_body_is_put_together(self) -> None:
        """Extensions and trailers are ignored."""
        reply = await answer(
            b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\nA: 1\r\n\r\n"
        )
        assert (reply.status, reply.body, "a" in reply.headers) == (201, b"abc", False)

    async def test_a_body_may_end_with_the_connection(self) -> None:
        """Close-delimited, HTTP/1.0 style."""
        assert (await answer(b"HTTP/1.0 200 OK\r\n\r\nab", "end")).body == b"ab"

    @pytest.mark.parametrize("status", [204, 304])
    async def test_some_statuses_never_have_a_body(self, status: int) -> None:
        """Whatever the length says (RFC 9112 §6.3)."""
        async with talk(Act(b"HTTP/1.1 %d X\r\nContent-Length: 5\r\n\r\n" % status)) as (peer, upstream):
            assert (await upstream.send(ME, deadline_s=5)).body == b""
            assert (await upstream.send(ME, deadline_s=5)).body == b""
            assert peer.connections == 1

    async def test_a_reply_to_head_has_no_body(self) -> None:
        """Its length is that of a body that does not come."""
        async with talk(Act(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")) as (_, upstream):
            reply = await upstream.send(Request("HEAD", "/"), deadline_s=5)
            assert (reply.status, reply.body) == (200, b"")

    async def test_a_body_on_a_reply_to_head_never_reaches_the_next_call(self) -> None:
        """The connection is not used again."""
        async with talk(Act(OK)) as (peer, upstream):
            assert (await upstream.send(Request("HEAD", "/"), deadline_s=5)).body == b""
            assert (await upstream.send(ME, deadline_s=5)).body == b"ok"
            assert peer.connections == 2

    async def test_interim_replies_are_skipped(self) -> None:
        """100, 102 and 103 come before the reply that counts."""
        interim = b"HTTP/1.1 100 Continue\r\nA: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        assert (await answer(interim + OK)).headers == {"content-length": b"2"}

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_a_redirect_is_a_reply_and_not_followed(self, status: int) -> None:
        """One request leaves, and nothing reads the location."""
        head = b"HTTP/1.1 %d X\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n" % status
        async with talk(Act(head)) as (peer, upstream):
            reply = await upstream.send(ME, deadline_s=5)
            assert (reply.status, "location" in reply.headers, len(peer.requests)) == (status, False, 1)

    async def test_cookies_are_not_kept(self) -> None:
        """The second request carries none."""
        async with talk(Act(OK.replace(b"OK", b"OK\r\nSet-Cookie: a=b; Path=/", 1))) as (peer, upstream):
            await upstream.send(ME, deadline_s=5)
            await upstream.send(ME, deadline_s=5)
            assert b"ookie" not in b"".join(peer.requests)

    @pytest.mark.parametrize("coding", [b"gzip", b"GZIP", b"x-gzip"])
    async def test_gzip_is_inflated(self, coding: bytes) -> None:
        """In whatever pieces it comes."""
        packed = gzip.compress(b"birds " * 1000)
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in packed)
        head = b"HTTP/1.1 200 OK\r\nContent-Encoding: " + coding + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert (await answer(head + chunks + b"0\r\n\r\n")).body == b"birds " * 1000

    async def test_an_empty_body_needs_no_gzip(self) -> None:
        """Some servers label even nothing."""
        assert (await answer(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n")).body == b""

    async def test_a_reply_may_come_byte_by_byte(self) -> None:
        """And is the same reply."""
        async with talk(Act(b"", "stall")) as (peer, upstream):
            call = asyncio.create_task(upstream.send(ME, deadline_s=5))
            await until(lambda: bool(peer.requests))
            for byte in OK:
                peer.writers[0].write(bytes([byte]))
                await peer.writers[0].drain()
                await asyncio.sleep(0)
            assert (await call).body == b"ok"

    async def test_a_body_of_exactly_the_bound_passes(self) -> None:
        """The bound is the largest allowed size."""
        assert (await answer(OK, max_reply_bytes=2)).body == b"ok"


def _http(fields: bytes, body: bytes = b"", line: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return line + b"\r\n" + fields + b"\r\n" + body


def _gzipped(packed: bytes) -> bytes:
    return _http(b"Content-Encoding: gzip\r\nContent-Length: %d\r\n" % len(packed), packed)


MALFORMED = {
    "garbage": b"SSH-2.0-OpenSSH_9.9\r\n",
    "another version": _http(b"Content-Length: 0\r\n", line=b"HTTP/2.0 200 OK"),
    "status 99": _http(b"Content-Length: 0\r\n", line=b"HTTP/1.1 099 X"),
    "status 999": _http(b"Content-Length: 0\r\n", line=b"HTTP/1.1 999 X"),
    "an upgrade": _http(b"Upgrade: h2c\r\nConnection: upgrade\r\n", line=b"HTTP/1.1 101 Switching Protocols"),
    "length and chunks": _http(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "chunks and length": _http(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"),
    "two lengths": _http(b"Content-Length: 2\r\nContent-Length: 3\r\n", b"abc"),
    "a signed length": _http(b"Content-Length: +2\r\n", b"ab"),
    "a huge length": _http(b"Content-Length: 99999999999999999999999\r\n"),
    "a bad chunk size": _http(b"Transfer-Encoding: chunked\r\n", b"zz\r\n"),
    "a huge chunk size": _http(b"Transfer-Encoding: chunked\r\n", b"fffffffffffffffff\r\n"),
    "a chunk longer than it says": _http(b"Transfer-Encoding: chunked\r\n", b"1\r\nab\r\n"),
    "a transfer coding": _http(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
    "a transfer coding alone": _http(b"Transfer-Encoding: gzip\r\n", b"x"),
    "an unreadable transfer coding": _http(b"Transfer-Encoding: chunked\xa0\r\n", b"x"),
    "an unreadable content coding": _http(b"Content-Encoding: gzip\xa0\r\nContent-Length: 1\r\n", b"x"),
    "chunks of HTTP/1.0": _http(b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"HTTP/1.0 200 OK"),
    "a body on an interim reply": _http(b"Content-Length: 3\r\n", b"abc" + OK, b"HTTP/1.1 150 X"),
    "a flood of interim replies": _http(b"", line=b"HTTP/1.1 100 Continue") * 9 + OK,
    "too many fields of which only one is read": _http(b"A: b\r\n" * 257 + b"Content-Length: 0\r\n"),
    "bare line feeds": OK.replace(b"\r\n", b"\n"),
    "an unknown coding": _http(b"Content-Encoding: br\r\nContent-Length: 1\r\n", b"x"),
    "two codings": _http(b"Content-Encoding: gzip\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n", b"x"),
    "what is not gzip": _gzipped(b"plain text"),
    "zlib instead of gzip": _gzipped(zlib.compress(b"x")),
    "gzip cut short": _gzipped(gzip.compress(b"x" * 99)[:-9]),
    "gzip with a wrong sum": _gzipped(gzip.compress(b"x" * 99)[:-8] + bytes(8)),
    "a gzip head alone": _gzipped(gzip.compress(b"")[:10]),
    "more after gzip": _http(
        b"Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        b"15\r\n" + gzip.compress(b"x") + b"\r\n1\r\nx\r\n0\r\n\r\n",
    ),
    "two gzips": _gzipped(gzip.compress(b"x") * 2),
}


class TestMalformed:
    """Replies that are none."""

    @pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
    @pytest.mark.trust("F30")
    async def test_a_reply_that_breaks_the_rules_is_malformed(self, data: bytes) -> None:
        """Immediately, without waiting for the peer to end, and maybe applied."""
        error = await refusal(data)
        assert (error.cause, error.sent) == ("malformed", True)

    @pytest.mark.parametrize(
        "data",
        [
            _http(b"Content-Length: 1001\r\n", b"x" * 1001),
            _http(b"Transfer-Encoding: chunked\r\n", b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n"),
            _http(b"", b"x" * 1001),
            _gzipped(gzip.compress(b"x" * 1001)),
            _gzipped(gzip.compress(bytes(10_000_000))),
            _http(b"Transfer-Encoding: chunked\r\n", b"1;" + b"x" * 20_000),
        ],
        ids=["length", "chunked", "close", "gzip", "bomb", "chunk extension"],
    )
    @pytest.mark.trust("F30")
    async def test_a_reply_larger_than_the_bound_is_malformed(self, data: bytes) -> None:
        """The bound holds after inflating, and on the wire too."""
        error = await refusal(data, max_reply_bytes=1000, max_head_bytes=1000)
        assert (error.cause, error.sent) == ("malformed", True)

    @pytest.mark.parametrize(
        "head",
        [b"A: " + b"x" * 1001 + b"\r\n\r\n", b"A: " + b"x" * 1001, b"A: b\r\n" * 200, b"x" * 1001 + b": a\r\n\r\n"],
        ids=["whole", "endless value", "many", "long name"],
    )
    async def test_a_head_larger_than_its_bound_is_malformed(self, head: bytes) -> None:
        """Whether or not it ever ends."""
        error = await refusal(b"HTTP/1.1 200 OK\r\n" + head, max_head_bytes=1000)
        assert (error.cause, error.sent) == ("malformed", True)

    async def test_a_head_of_exactly_its_bound_passes(self) -> None:
        """Whatever body comes in the same read; one byte more is too much."""
        rest = b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\nA: \r\n\r\n"
        data = rest.replace(b"A: ", b"A: " + b"x" * (1000 - len(rest))) + bytes(9000)
        assert len((await answer(data, max_head_bytes=1000)).body) == 9000
        assert (await refusal(data, max_head_bytes=999)).cause == "malformed"

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"HTTP/1.1 2",
            b"HTTP/1.1 200 OK\r\nContent-Le",
            _http(b"Content-Length: 5\r\n", b"abc"),
            _http(b"Transfer-Encoding: chunked\r\n", b"5\r\nabc"),
            _http(b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n"),
            _http(b"", line=b"HTTP/1.1 100 Continue"),
        ],
    )
    @pytest.mark.parametrize("then", ["end", "reset"])
    @pytest.mark.trust("F28")
    async def test_a_reply_that_stops_early_is_cut(self, data: bytes, then: Literal["end", "reset"]) -> None:
        """Whether the connection ends in order or not."""
        error = await refusal(data, then)
        assert (error.cause, error.sent) == ("cut", True)

    async def test_a_reset_does_not_end_a_body_in_order(self) -> None:
        """Only the peer's orderly end closes a body without a length."""
        error = await refusal(b"HTTP/1.1 200 OK\r\n\r\nab", "reset")
        assert error.cause == "cut"

    async def test_no_failure_shows_what_was_sent_or_received(self) -> None:
        """Its words hold no token and no bytes of the peer."""
        error = await refusal(b"HTTP/1.1 200 OK\r\nA: canary\0\r\n\r\n")
        assert "s3cret" not in str(error)
        assert "canary" not in repr(error)
        assert error.__cause__ is None


class TestPool:
    """Connections, kept and given up."""

    async def test_a_connection_is_used_again(self) -> None:
        """One after the other, all on one."""
        async with talk() as (peer, upstream):
            for _ in range(3):
                await upstream.send(ME, deadline_s=5)
            assert (peer.connections, len(peer.requests)) == (1, 3)
            assert upstream.stats() == Stats(open=1, idle=1, in_use=0, opened=1)

    async def test_the_connection_used_last_is_used_next(self) -> None:
        """So that the surplus of a rush grows old and goes."""
        async with talk() as (peer, upstream):
            await asyncio.gather(*(upstream.send(ME, deadline_s=5) for _ in range(3)))
            assert upstream.stats() == Stats(open=3, idle=3, in_use=0, opened=3)
            for _ in range(3):
                await upstream.send(ME, deadline_s=5)
            assert len(set(peer.used[3:])) == 1
            assert len(set(peer.used)) == 3

    @pytest.mark.parametrize(
        "data",
        [
            _http(b"Connection: close\r\nContent-Length: 2\r\n", b"ok"),
            _http(b"Content-Length: 2\r\n", b"ok", b"HTTP/1.0 200 OK"),
            OK + OK,
            OK + b"garbage",
            _http(b"Content-Length: 2\r\nConnection: close\r\n", b"ok" + OK),
        ],
        ids=["close", "1.0", "a second reply", "garbage", "after close"],
    )
    async def test_a_reply_that_leaves_doubt_ends_its_connection(self, data: bytes) -> None:
        """The reply counts; what follows it never does."""
        async with talk(Act(data), Act(OK)) as (peer, upstream):
            assert (await upstream.send(ME, deadline_s=5)).body == b"ok"
            assert upstream.stats().idle == 0
            assert (await upstream.send(ME, deadline_s=5)).body == b"ok"
            assert peer.connections == 2

    async def test_bytes_received_before_a_request_are_not_its_reply(self) -> None:
        """Even if the loop has not read them when the request is made."""
        async with talk(Act(OK), Act(OK.replace(b"ok", b"no"))) as (peer, upstream):
            await upstream.send(ME, deadline_s=5)
            peer.writers[0].write(OK)  # sent by the kernel immediately; the client's transport has not run yet
            assert (await upstream.send(ME, deadline_s=5)).body == b"no"
            assert peer.connections == 2

    async def test_bytes_on_an_idle_connection_end_it(self) -> None:
        """They answer no request."""
        async with talk(idle_s=600) as (peer, upstream):
            await upstream.send(ME, deadline_s=5)
            peer.writers[0].write(OK)
            await until(lambda: upstream.stats() == Stats(open=0, idle=0, in_use=0, opened=1))

    @pytest.mark.trust("F29")
    async def test_a_connection_that_the_peer_ended_is_not_used(self) -> None:
        """Even if the loop has not seen the end yet: the call goes out on a fresh one, once."""
        async with talk(Act(OK), Act(OK)) as (peer, upstream):
            await upstream.send(ME, deadline_s=5)
            peer.writers[0].transport.abort()
            await asyncio.sleep(0)  # the peer's close runs; its end is in our kernel, not yet in our loop
            await upstream.send(LIKE, deadline_s=5)
            assert (peer.connections, len(peer.requests)) == (2, 2)

    @pytest.mark.parametrize("then", ["end", "reset"])
    @pytest.mark.parametrize("request_", [LIKE, Request("DELETE", "/"), ME], ids=repr)
    @pytest.mark.trust("F29")
    async def test_a_request_dropped_on_a_kept_connection_is_not_sent_again(
        self, then: Literal["end", "reset"], request_: Request
    ) -> None:
        """It may have been applied: the caller decides."""
        async with talk(Act(OK), Act(b"", then), Act(OK)) as (peer, upstream):
            await upstream.send(ME, deadline_s=5)
            with pytest.raises(SendFailed) as caught:
                await upstream.send(request_, deadline_s=5)
            assert (caught.value.cause, caught.value.sent) == ("cut", True)
            assert (peer.connections, len(peer.requests)) == (1, 2)
            await upstream.send(ME, deadline_s=5)
            assert (peer.connections, len(peer.requests)) == (2, 3)

    @pytest.mark.parametrize("option", ["idle_s", "max_age_s"])
    async def test_a_connection_too_old_is_not_used(self, option: str) -> None:
        """Neither after idling too long nor after living too long."""
        options: dict[str, Any] = {option: 0.0}
        async with talk(**options) as (peer, upstream):
            await upstream.send(ME, deadline_s=5)
            await upstream.send(ME, deadline_s=5)
            assert peer.connections == 2

    async def test_an_idle_connection_is_closed_without_being_asked_for(self) -> None:
        """The pool shrinks by itself."""
        async with talk(idle_s=0.01) as (peer, upstream):
            await asyncio.gather(*(upstream.send(ME, deadline_s=5) for _ in range(3)))
            await peer.gone.wait()
            await asyncio.gather(*peer.tasks)
            assert upstream.stats() == Stats(open=0, idle=0, in_use=0, opened=3)

    async def test_no_more_connections_than_allowed_are_opened(self) -> None:
        """The others wait their turn."""
        async with talk(connections=4) as (peer, upstream):
            replies = await asyncio.gather(*(upstream.send(ME, deadline_s=5) for _ in range(50)))
            assert [reply.body for reply in replies] == [b"ok"] * 50
            assert (peer.connections, len(peer.requests), upstream.stats().in_use) == (4, 50, 0)

    @pytest.mark.parametrize("options", [{"pool_wait_s": 0.01, "deadline_s": 5.0}, {"deadline_s": 0.01}])
    async def test_a_call_without_a_free_connection_is_busy(self, options: dict[str, Any]) -> None:
        """After the pool's wait or its own deadline, with nothing sent."""
        deadline_s = options.pop("deadline_s")
        async with talk(Act(b"", "stall"), connections=1, **options) as (peer, upstream):
            first = asyncio.create_task(upstream.send(ME, deadline_s=5))
            await until(lambda: bool(peer.requests))
            with pytest.raises(SendFailed) as caught:
                await upstream.send(LIKE, deadline_s=deadline_s)
            assert (caught.value.cause, caught.value.sent) == ("busy", False)
            await cancelled(first)
            assert len(peer.requests) == 1

    async def test_a_cancelled_wait_for_a_connection_takes_none(self) -> None:
        """Not even when the connection came free in the same moment."""
        async with talk(Act(b"", "stall"), Act(OK), connections=1, pool_wait_s=5) as (peer, upstream):
            first = asyncio.create_task(upstream.send(ME, deadline_s=5))
            await until(lambda: bool(peer.requests))
            second, third = (asyncio.create_task(upstream.send(ME, deadline_s=5)) for _ in range(2))
            await asyncio.sleep(0)
            first.cancel()
            await until(first.done)
            await cancelled(second)
            assert (await third).body == b"ok"
            assert upstream.stats().in_use == 0


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel and see it end so."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class TestEnds:
    """Deadlines, cancellation, close."""

    @pytest.mark.parametrize(
        "data",
        [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", b"HTTP/1.1 200 OK\r\n\r\nab"],
    )
    @pytest.mark.trust("F27")
    async def test_a_reply_not_whole_by_the_deadline_is_a_timeout(self, data: bytes) -> None:
        """Maybe applied, and the half-read connection is closed."""
        async with talk(Act(OK), Act(data, "stall")) as (_, upstream):
            await upstream.send(ME, deadline_s=5)  # so that no time goes into connecting
            with pytest.raises(SendFailed) as caught:
                await upstream.send(LIKE, deadline_s=0.02)
            assert (caught.value.cause, caught.value.sent) == ("timeout", True)
            assert upstream.stats().idle == upstream.stats().in_use == 0

    @pytest.mark.parametrize("deadline_s", [0, -1, float("nan")])
    async def test_a_deadline_already_passed_sends_nothing(self, deadline_s: float) -> None:
        """On a kept connection, which stays fit for use."""
        async with talk() as (peer, upstream):
            await upstream.send(ME, deadline_s=5)
            with pytest.raises(SendFailed) as caught:
                await upstream.send(LIKE, deadline_s=deadline_s)
            assert (caught.value.cause, caught.value.sent) == ("timeout", False)
            await upstream.send(ME, deadline_s=5)
            assert (peer.connections, len(peer.requests)) == (1, 2)

    @pytest.mark.parametrize("kept", [False, True])
    async def test_a_cancelled_call_ends_its_connection(self, *, kept: bool) -> None:
        """A reply that comes late must not meet the next call, on a fresh connection or a kept one."""
        async with talk(*[Act(OK)] * kept, Act(b"", "stall"), Act(OK), idle_s=600) as (peer, upstream):
            if kept:
                await upstream.send(ME, deadline_s=5)
            call = asyncio.create_task(upstream.send(LIKE, deadline_s=5))
            await until(lambda: len(peer.requests) == 1 + kept)
            await cancelled(call)
            await peer.gone.wait()
            await until(lambda: upstream.stats() == Stats(open=0, idle=0, in_use=0, opened=1))
            assert (await upstream.send(ME, deadline_s=5)).body == b"ok"

    async def test_a_call_cancelled_after_its_reply_leaves_the_connection_fit(self) -> None:
        """The reply was read whole."""
        async with talk() as (peer, upstream):
            calls = [asyncio.create_task(upstream.send(ME, deadline_s=5)) for _ in range(20)]
            for call in calls:
                await asyncio.sleep(0)
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            assert upstream.stats().in_use == 0
            assert (await upstream.send(ME, deadline_s=5)).body == b"ok"
            assert len(peer.requests) <= 21

    async def test_an_early_reply_is_taken_and_the_connection_closed(self) -> None:
        """A refusal may come before the body was sent; the rest of it is not."""
        refusal = b"HTTP/1.1 413 X\r\nContent-Length: 2\r\n\r\nno"
        async with talk(Act(refusal, "stall", read="head")) as (peer, upstream):
            reply = await upstream.send(Request("POST", "/", body=bytes(50_000_000)), deadline_s=5)
            assert (reply.status, reply.body) == (413, b"no")
            assert upstream.stats().idle == 0
            await peer.gone.wait()

    async def test_close_ends_everything(self) -> None:
        """Calls under way, calls in the queue, idle connections; later calls fail unsent."""
        async with talk(Act(b"", "stall"), connections=1, pool_wait_s=5) as (peer, upstream):
            running = asyncio.create_task(upstream.send(ME, deadline_s=5))
            await until(lambda: bool(peer.requests))
            waiting = asyncio.create_task(upstream.send(ME, deadline_s=5))
            await asyncio.sleep(0)
            await upstream.close()
            ends = await asyncio.gather(running, waiting, return_exceptions=True)
            late = await asyncio.gather(upstream.send(ME, deadline_s=5), return_exceptions=True)
            seen = [(end.cause, end.sent) for end in ends + late if isinstance(end, SendFailed)]
            assert seen == [("cut", True), ("unreachable", False), ("unreachable", False)]
            assert upstream.stats() == Stats(open=0, idle=0, in_use=0, opened=1)
            await upstream.close()

    async def test_close_ends_a_connection_being_made(self) -> None:
        """A handshake that stalls is not waited for."""
        async with talk(Act(b"", "stall", read="nothing")) as (peer, _):
            upstream = ConnectionPool(f"https://localhost:{peer.port}", PoolLimits(tls_s=50))
            call = asyncio.create_task(upstream.send(LIKE, deadline_s=50))
            await until(lambda: bool(peer.connections))
            await upstream.close()
            with pytest.raises(SendFailed) as caught:
                await call
            assert caught.value.sent is False

    async def test_a_connection_made_while_the_pool_closes_carries_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Or a call would wait on it after the timer of the deadlines has been cancelled."""
        async with talk(Act(OK), Act(b"", "stall"), idle_s=0.0) as (peer, upstream):
            assert (await upstream.send(ME, deadline_s=5)).status == 200
            dial = vars(ConnectionPool)["_dial"]

            async def closed_meanwhile(*given: Any) -> Any:
                made = await dial(*given)
                closing.append(asyncio.create_task(upstream.close()))
                await asyncio.sleep(0)
                return made

            closing: list[asyncio.Task[None]] = []
            monkeypatch.setattr(ConnectionPool, "_dial", closed_meanwhile)
            async with asyncio.timeout(5):
                with pytest.raises(SendFailed) as caught:
                    await upstream.send(ME, deadline_s=50)
            await closing[0]
            assert (caught.value.cause, caught.value.sent) == ("unreachable", False)
            assert len(peer.requests) == 1


class TestUnsent:
    """Nothing left us."""

    async def test_a_refused_connection_is_unreachable(self) -> None:
        """A port without a listener."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            upstream = ConnectionPool(f"http://127.0.0.1:{taken.getsockname()[1]}")
            with pytest.raises(SendFailed) as caught:
                await upstream.send(LIKE, deadline_s=5)
        assert (caught.value.cause, caught.value.sent) == ("unreachable", False)
        assert upstream.stats() == Stats(open=0, idle=0, in_use=0, opened=0)

    @pytest.mark.trust("F23")
    async def test_a_name_that_does_not_resolve_is_unreachable(self) -> None:
        """RFC 6761 keeps .invalid free."""
        with pytest.raises(SendFailed) as caught:
            await ConnectionPool("http://nowhere.invalid").send(LIKE, deadline_s=5)
        assert (caught.value.cause, caught.value.sent) == ("unreachable", False)

    @pytest.mark.trust("F25")
    async def test_a_connection_never_accepted_is_unreachable_in_time(self) -> None:
        """A full backlog on loopback is a black hole."""
        with socket.socket() as hole, contextlib.ExitStack() as stack:
            hole.bind(("127.0.0.1", 0))
            hole.listen(0)
            for _ in range(3):
                client = stack.enter_context(socket.socket())
                client.settimeout(0)
                client.connect_ex(hole.getsockname())
            upstream = ConnectionPool(f"http://127.0.0.1:{hole.getsockname()[1]}", PoolLimits(connect_s=0.05))
            with pytest.raises(SendFailed) as caught:
                await upstream.send(LIKE, deadline_s=5)
        assert (caught.value.cause, caught.value.sent) == ("unreachable", False)


class NotNowError(Exception):
    """Raised by a caller to keep its request from being sent."""


class TestMaySend:
    """The caller's last word before the first byte."""

    @pytest.mark.parametrize("kept", [False, True])
    async def test_a_request_that_may_not_be_sent_is_not_and_leaves_the_connection_fit(self, *, kept: bool) -> None:
        """It is asked with the connection at hand, a fresh one or a kept one; the next request takes the same."""
        async with talk() as (peer, upstream):
            seen = []

            def refuse() -> None:
                seen.append(upstream.stats())
                raise NotNowError

            if kept:
                await upstream.send(ME, deadline_s=5)
            for _ in range(3):
                with pytest.raises(NotNowError):
                    await upstream.send(LIKE, deadline_s=5, may_send=refuse)
            assert seen == [Stats(open=1, idle=0, in_use=1, opened=1)] * 3
            assert upstream.stats() == Stats(open=1, idle=1, in_use=0, opened=1)
            assert (await upstream.send(ME, deadline_s=5, may_send=lambda: None)).body == b"ok"
            assert (peer.connections, len(peer.requests)) == (1, 1 + kept)

    async def test_a_call_that_waits_for_a_connection_is_asked_when_it_has_one(self) -> None:
        """Not before: much may change in that time."""
        async with talk(Act(b"", "stall"), connections=1) as (peer, upstream):
            first = asyncio.create_task(upstream.send(ME, deadline_s=5))
            await until(lambda: len(peer.requests) == 1)
            asked = asyncio.Event()
            second = asyncio.create_task(upstream.send(LIKE, deadline_s=5, may_send=asked.set))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not asked.is_set()
            await cancelled(first)
            await asyncio.wait_for(asked.wait(), 5)
            await cancelled(second)

    async def test_nothing_else_runs_between_the_question_and_the_first_byte(self) -> None:
        """Whatever the loop does next finds the request written."""
        async with talk(Act(b"", "stall")) as (peer, upstream):

            def cancel_next() -> None:
                asyncio.get_running_loop().call_soon(call.cancel)

            call = asyncio.create_task(upstream.send(LIKE, deadline_s=5, may_send=cancel_next))
            with pytest.raises(asyncio.CancelledError):
                await call
            await asyncio.wait_for(until(lambda: len(peer.requests) == 1), 5)


@dataclass(frozen=True)
class Authority:
    """A certificate authority that lives as long as the test, and writes what it signs into `folder`."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    cert: x509.Certificate

    @classmethod
    def new(cls, folder: Path) -> Authority:
        """Self-signed."""
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(folder, key, _certificate("a CA", key, None, ca=True))

    def server(self, name: str = "localhost", *, days: int = 1) -> ssl.SSLContext:
        """A server's side with a certificate for `name`, which expired if `days` is negative."""
        return self._serving(name, self, days)

    def self_signed(self) -> ssl.SSLContext:
        """A server's side that vouches for itself."""
        return self._serving("localhost", None, 1)

    def client(self) -> ssl.SSLContext:
        """A client's side that trusts this authority alone."""
        return ssl.create_default_context(cadata=self.cert.public_bytes(serialization.Encoding.PEM).decode())

    def _serving(self, name: str, issuer: Authority | None, days: int) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        cert = _certificate(name, key, issuer, days=days)
        path = self.folder / "server.pem"
        private = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        pem = serialization.Encoding.PEM
        path.write_bytes(key.private_bytes(pem, *private) + cert.public_bytes(pem))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: Authority | None, *, days: int = 1, ca: bool = False
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now, usage = datetime.now(UTC), x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=ca, crl_sign=ca, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    names: list[x509.GeneralName] = [x509.IPAddress(ip_address(name)) if name[0].isdigit() else x509.DNSName(name)]
    signer = issuer.key if issuer else key
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.cert.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=9))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName(names if not ca else [x509.DNSName("ca")]), critical=False)
        .sign(signer, hashes.SHA256())
    )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One authority for all."""
    return Authority.new(tmp_path_factory.mktemp("ca"))


class TestTLS:
    """The host must prove its identity before a byte of a request is sent."""

    async def test_a_verified_host_is_spoken_to_and_its_connection_kept(self, authority: Authority) -> None:
        """TLS on a private CA."""
        async with talk(tls=authority.server(), ssl_context=authority.client()) as (peer, upstream):

            def refuse() -> None:
                raise NotNowError

            with pytest.raises(NotNowError):
                await upstream.send(LIKE, deadline_s=5, may_send=refuse)
            for _ in range(3):
                assert (await upstream.send(LIKE, deadline_s=5)).body == b"ok"
            assert (peer.connections, len(peer.requests)) == (1, 3)

    async def test_a_large_request_and_a_large_reply_pass_through_tls(self, authority: Authority) -> None:
        """More than any buffer on the way."""
        body = bytes(1 << 20)
        act = Act(b"HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n" + body)
        async with talk(act, tls=authority.server(), ssl_context=authority.client()) as (peer, upstream):
            reply = await upstream.send(Request("POST", "/", body=body * 4), deadline_s=5)
            assert reply.body == body
            assert len(peer.requests[0]) > len(body) * 4

    @pytest.mark.parametrize(
        "fault", ["expired", "another name", "self-signed", "unknown authority", "too old a version"]
    )
    @pytest.mark.trust("F24")
    async def test_a_host_that_does_not_prove_itself_gets_nothing(self, authority: Authority, fault: str) -> None:
        """Its cause is tls, and no request was sent."""
        theirs, ours = authority.server(), authority.client()
        if fault == "expired":
            theirs = authority.server(days=-1)
        elif fault == "another name":
            theirs = authority.server("elsewhere.test")
        elif fault == "self-signed":
            theirs = authority.self_signed()
        elif fault == "unknown authority":
            ours = ssl.create_default_context()
        else:
            theirs.set_ciphers("ALL:@SECLEVEL=0")
            with pytest.warns(DeprecationWarning, match="TLSv1_1"):
                theirs.minimum_version = theirs.maximum_version = ssl.TLSVersion.TLSv1_1
        async with talk(tls=theirs, ssl_context=ours) as (peer, upstream):
            with pytest.raises(SendFailed) as caught:
                await upstream.send(LIKE, deadline_s=5)
            assert (caught.value.cause, caught.value.sent) == ("tls", False)
            assert not peer.requests
            assert upstream.stats() == Stats(open=0, idle=0, in_use=0, opened=0)

    @pytest.mark.parametrize("then", ["end", "reset"])
    @pytest.mark.trust("F24")
    async def test_a_handshake_that_breaks_off_is_a_failure_of_tls(self, then: Literal["end", "reset"]) -> None:
        """So is one answered in plain HTTP."""
        async with talk(Act(OK, then, read="nothing")) as (peer, _):
            with pytest.raises(SendFailed) as caught:
                await ConnectionPool(f"https://localhost:{peer.port}").send(LIKE, deadline_s=5)
            assert (caught.value.cause, caught.value.sent) == ("tls", False)

    async def test_a_body_without_length_needs_an_orderly_end_of_tls(self, authority: Authority) -> None:
        """An end of TCP alone may be an attacker's (RFC 9112 §9.8)."""
        data = b"HTTP/1.1 200 OK\r\n\r\nab"
        async with talk(Act(data, "end"), tls=authority.server(), ssl_context=authority.client()) as (_, upstream):
            assert (await upstream.send(ME, deadline_s=5)).body == b"ab"
        async with talk(Act(data, "reset"), tls=authority.server(), ssl_context=authority.client()) as (_, upstream):
            with pytest.raises(SendFailed) as caught:
                await upstream.send(ME, deadline_s=5)
            assert (caught.value.cause, caught.value.sent) == ("cut", True)

    @pytest.mark.parametrize("data", [b"", OK])
    @pytest.mark.parametrize("then", ["end", "reset"])
    async def test_a_peer_that_speaks_or_ends_right_after_the_handshake_breaks_nothing(
        self, authority: Authority, data: bytes, then: Literal["end", "reset"]
    ) -> None:
        """A reply or a failure, and no error in a callback."""
        errors: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        act = Act(data, then, read="nothing")
        async with talk(act, tls=authority.server(), ssl_context=authority.client()) as (_, upstream):
            ends = [await asyncio.gather(upstream.send(ME, deadline_s=5), return_exceptions=True) for _ in range(20)]
            assert all(isinstance(end, Reply | SendFailed) for (end,) in ends)
            assert upstream.stats().in_use == 0
        assert not errors

    def test_verification_cannot_be_switched_off(self) -> None:
        """Nor the version lowered: a ValueError when it is built."""
        blind, nameless, old = (ssl.create_default_context() for _ in range(3))
        blind.check_hostname = nameless.check_hostname = False
        blind.verify_mode = ssl.CERT_NONE
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.minimum_version = ssl.TLSVersion.TLSv1_1
        for context in (blind, nameless, old):
            with pytest.raises(ValueError, match="TLS"):
                ConnectionPool("https://localhost", ssl_context=context)


class TestProxy:
    """CONNECT, only when asked for."""

    async def test_https_goes_through_the_tunnel(self, authority: Authority) -> None:
        """The proxy sees the authority and its own credentials; the request only the host."""
        seen: list[bytes] = []

        async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(await reader.readuntil(b"\r\n\r\n"))
            there, back = await asyncio.open_connection("127.0.0.1", peer.port)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(pump(reader, back), pump(there, writer))

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    sink.write(data)
            sink.close()

        server = await asyncio.start_server(proxy, "127.0.0.1", 0)
        url = f"http://me%40here:p%3Ass@127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with talk(tls=authority.server()) as (peer, _):
            upstream = ConnectionPool(peer.url, proxy=url, ssl_context=authority.client())
            for _ in range(2):
                assert (await upstream.send(LIKE, deadline_s=5)).body == b"ok"
            assert seen == [
                b"CONNECT localhost:%d HTTP/1.1\r\nHost: localhost:%d\r\n"
                b"Proxy-Authorization: Basic bWVAaGVyZTpwOnNz\r\n\r\n" % (peer.port, peer.port)
            ]
            assert b"Proxy" not in peer.requests[0]
            await upstream.close()
        server.close()
        await server.wait_closed()

    @pytest.mark.parametrize(
        "data",
        [
            b"HTTP/1.1 407 X\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 502 X\r\nContent-Length: 2\r\n\r\nno",
            b"HTTP/1.1 200 X\r\n\r\nsurplus",
            b"garbage\r\n\r\n",
            b"",
        ],
    )
    async def test_a_proxy_that_opens_no_tunnel_makes_the_host_unreachable(self, data: bytes) -> None:
        """With nothing sent, and the proxy's password in no message."""
        async with talk(Act(data, "end")) as (peer, _):
            upstream = ConnectionPool("https://localhost", proxy=f"http://u:p4ss@127.0.0.1:{peer.port}")
            with pytest.raises(SendFailed) as caught:
                await upstream.send(LIKE, deadline_s=5)
            assert (caught.value.cause, caught.value.sent) == ("unreachable", False)
            assert "p4ss" not in repr(caught.value) + repr(caught.value.__cause__)
            assert upstream.stats() == Stats(open=0, idle=0, in_use=0, opened=0)

    async def test_a_proxy_that_stalls_is_left_in_time(self) -> None:
        """Within the time for connecting."""
        async with talk(Act(b"", "stall")) as (peer, _):
            upstream = ConnectionPool(
                "https://localhost", PoolLimits(connect_s=0.05), proxy=f"http://127.0.0.1:{peer.port}"
            )
            with pytest.raises(SendFailed) as caught:
                await upstream.send(LIKE, deadline_s=5)
            assert (caught.value.cause, caught.value.sent) == ("unreachable", False)

    async def test_the_environment_names_no_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever it says."""
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        async with talk() as (_, upstream):
            assert (await upstream.send(ME, deadline_s=5)).body == b"ok"

    @pytest.mark.parametrize("proxy", ["https://u:p4ss@x", "socks5://u:p4ss@x", "u:p4ss@x:1", ""])
    def test_a_proxy_is_an_http_url(self, proxy: str) -> None:
        """Everything else is a ValueError that does not repeat it."""
        with pytest.raises(ValueError, match="the proxy must be") as caught:
            ConnectionPool("https://x", proxy=proxy)
        assert "p4ss" not in str(caught.value)
