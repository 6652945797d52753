"""The guarded way out: no connection to an address that was not checked, and a result of every POST, in time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import warnings
from datetime import UTC, datetime
from email.utils import format_datetime
from ipaddress import ip_network
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdwire import __version__
from birdwire.runtime import outbound as module
from birdwire.runtime.clock import Clock
from birdwire.runtime.outbound import Outbound, OutboundLimits, OutboundRules, Sent
from harness.outbound_peer import ACCEPTED, Authority, Peer, Then

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

pytestmark = pytest.mark.trust("T14")

PUBLIC = OutboundRules()
SANDBOX = OutboundRules(loopback=True)
STAND_IN = "127.0.0.2"
"""The address of this machine that stands for one on the public Internet: these tests allow it."""
STANDING_IN = OutboundRules((ip_network(f"{STAND_IN}/32"),))
JSON = [("content-type", "application/json")]
BRIEF = OutboundLimits(connect_s=0.15, total_s=0.3)
CANARY = "canary-7d1f"


class Names:
    """A resolver with scripted answers, of which the last is repeated. It counts how often it was asked."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, host: str) -> list[str]:
        """Return the next answer."""
        self.asked.append(host)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


@contextlib.asynccontextmanager
async def sending(rules: OutboundRules = SANDBOX, **parts: Any) -> AsyncIterator[Outbound]:
    """A sender, closed at the end of the block."""
    sender = Outbound(rules, **parts)
    try:
        yield sender
    finally:
        await sender.close()


@contextlib.asynccontextmanager
async def forbidden() -> AsyncIterator[list[Peer]]:
    """Listen where nothing may connect to: on one port of each loopback address."""
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(Peer().serving("127.0.0.1"))
        peers = [first]
        if socket.has_ipv6:
            with contextlib.suppress(OSError):
                peers.append(await stack.enter_async_context(Peer().serving("::1", first.port)))
        yield peers


# Forms of the same attack: a URL with the port of the forbidden listeners.

SPELLINGS = [
    *("https://127.0.0.1:{port}/", "https://[::1]:{port}/", "https://[::]:{port}/", "https://0.0.0.0:{port}/"),
    *(
        "https://2130706433:{port}/",
        "https://0x7f000001:{port}/",
        "https://0177.0.0.1:{port}/",
        "https://127.1:{port}/",
    ),
    *("https://0x7f.1:{port}/", "https://127.0.0.1.:{port}/", "https://017700000001:{port}/", "https://0:{port}/"),
    *("https://[::ffff:127.0.0.1]:{port}/", "https://[::ffff:7f00:1]:{port}/", "https://[::127.0.0.1]:{port}/"),
    *("https://[0:0:0:0:0:0:0:1]:{port}/", "https://[::1%25lo]:{port}/", "https://[64:ff9b::7f00:1]:{port}/"),
    *("https://[2002:7f00:1::]:{port}/", "https://[2606:4700::5efe:7f00:1]:{port}/", "https://127.0.0.1:{port}#.com/"),
    *("https://example.com@127.0.0.1:{port}/", "https://example.com:443@127.0.0.1:{port}/", "//127.0.0.1:{port}/"),
    *("https://example.com\\@127.0.0.1:{port}/", "https://example.com#@127.0.0.1:{port}/", "127.0.0.1:{port}"),
    *("https://%31%32%37.0.0.1:{port}/", "https://127%2e0.0.1:{port}/", "https://127.0.0.1%00.example.com:{port}/"),
    *(
        "https://\uff11\uff12\uff17.0.0.1:{port}/",
        "https://127\u30020\u30020\u30021:{port}/",
        "https:\\\\127.0.0.1:{port}/",
    ),
    *("http://127.0.0.1:{port}/", "http://localhost:{port}/", "http://[::1]:{port}/", "http://example.com:{port}/"),
    *("gopher://127.0.0.1:{port}/_POST", "ftp://127.0.0.1:{port}/", "file:///etc/passwd", "ws://127.0.0.1:{port}/"),
    *("https://127.0.0.1:{port}/\r\nHost: example.com", "\thttps://127.0.0.1:{port}/", "https://127.0.0.1 :{port}/"),
    *("https://example.com:{port}:{port}/", "https:127.0.0.1:{port}/", "https:///127.0.0.1:{port}/"),
]

ANSWERS = [
    *(["127.0.0.1"], ["::1"], ["127.0.0.1", "::1"], ["0.0.0.0"], ["::"], ["::ffff:127.0.0.1"]),  # noqa: S104 - refused
    ["::127.0.0.1"],
    *(["10.0.0.1"], ["172.16.0.1"], ["192.168.0.1"], ["169.254.169.254"], ["100.64.0.1"], ["fd00:ec2::254"]),
    *(["fe80::1%lo"], ["2606:4700::1%lo"], ["64:ff9b::7f00:1"], ["2002:7f00:1::"], ["2001:0:7f00:1::"]),
    *(["2606:4700::5efe:7f00:1"], ["224.0.0.1"], ["255.255.255.255"], ["ff02::1"], ["192.88.99.1"], ["198.18.0.1"]),
    *(["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"], ["2606:4700::1", "8.8.8.8", "::1"], ["8.8.8.8", "10.0.0.1"]),
    [*(f"8.8.4.{last}" for last in range(200)), "127.0.0.1"],
    *(["127.0.0.3"], [STAND_IN, "127.0.0.1"], ["127.0.0.1", STAND_IN], ["8.8.8.8", "not an address"], ["127.1"]),
]
"""What a name resolves to. At least one address of each row is not allowed."""

FORMS = [
    *((url, ["127.0.0.1"]) for url in SPELLINGS),
    *(("https://rebinding.example:{port}/", addresses) for addresses in ANSWERS),
    *(
        (f"https://{name}:{{port}}/", ["127.0.0.1"])
        for name in ("localhost", "a.localhost", "localtest.me", "intranet")
    ),
]


@pytest.mark.parametrize(("form", "addresses"), FORMS, ids=[f"{url!r} {found[:3]}" for url, found in FORMS])
async def test_no_form_of_a_forbidden_url_connects(form: str, addresses: list[str]) -> None:
    """Whether the URL spells an address in another way, or its host resolves to one, also among public addresses."""
    names = Names(addresses)
    async with forbidden() as peers, sending(STANDING_IN, resolve=names) as sender:
        sent = await sender.post(form.format(port=peers[0].port), JSON, b"{}")
        assert sent == Sent(None, "forbidden_address")
        assert [peer.connections for peer in peers] == [0] * len(peers)
        assert len(names.asked) <= 1


def test_there_are_enough_forms() -> None:
    """By the spelling of the URL, and by what a name resolves to."""
    assert len(set(SPELLINGS)) >= 40
    assert len({tuple(found) for found in ANSWERS}) >= 30


async def test_the_forbidden_listeners_count() -> None:
    """They would see a connection of a sender that does not check."""
    async with forbidden() as peers, sending() as sender:
        for peer in peers:
            host = f"[{peer.host}]" if ":" in peer.host else peer.host
            assert await sender.post(f"http://{host}:{peer.port}/", JSON, b"{}") == Sent(204, None)
        assert [peer.connections for peer in peers] == [1] * len(peers)


async def test_with_the_sandbox_localhost_must_be_this_machine() -> None:
    """Otherwise plain http would leave it, even if the operator allows the address for https."""
    allowed = OutboundRules((ip_network("10.0.0.0/8"),), loopback=True)
    for found in (["10.0.0.1"], ["8.8.8.8"], ["127.0.0.1", "10.0.0.1"]):
        async with forbidden() as peers, sending(allowed, resolve=Names(found)) as sender:
            for scheme in ("http", "https"):
                sent = await sender.post(f"{scheme}://localhost:{peers[0].port}/", JSON, b"{}")
                assert sent == Sent(None, "forbidden_address")
            assert peers[0].connections == 0


async def test_localhost_is_resolved_by_the_system() -> None:
    """As any name is."""
    async with Peer().serving() as peer, sending() as sender:
        assert await sender.post(f"http://localhost:{peer.port}/", JSON, b"{}") == Sent(204, None)


async def test_the_connection_goes_to_the_address_that_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that resolves to a forbidden address a moment later gains nothing: there is no second resolution."""
    authority = Authority(tmp_path)
    names = Names([STAND_IN], ["127.0.0.1"])

    def never(*_: object, **__: object) -> None:
        pytest.fail("another resolver was asked")

    async with forbidden() as peers:
        peer = Peer(tls=authority.serving("rebinding.example"))
        async with (
            peer.serving(STAND_IN, peers[0].port),
            sending(STANDING_IN, resolve=names, ssl_context=authority.trusted()) as sender,
        ):
            url = f"https://rebinding.example:{peer.port}/hook"
            monkeypatch.setattr(socket, "getaddrinfo", never)
            assert await sender.post(url, JSON, b"{}") == Sent(204, None)
            assert (names.asked, peer.connections) == (["rebinding.example"], 1)
            assert await sender.post(url, JSON, b"{}") == Sent(None, "forbidden_address")
            assert (len(names.asked), peer.connections) == (2, 1)
        assert [each.connections for each in peers] == [0] * len(peers)


async def test_the_request_is_exact(tmp_path: Path) -> None:
    """Host and server name are the URL's; the path and the query are sent as they are, once, with the body."""
    authority = Authority(tmp_path)
    peer = Peer(tls=authority.serving("ntfy.example"))
    async with (
        peer.serving(STAND_IN),
        sending(STANDING_IN, resolve=Names([STAND_IN]), ssl_context=authority.trusted()) as sender,
    ):
        url = f"https://NTFY.example:{peer.port}/topic/%2e%2e?auth=QmVh&x=/?"
        headers = [*JSON, ("Title", "Approve: a post"), ("webhook-id", "")]
        assert await sender.post(url, headers, b"\x00body") == Sent(204, None)
        assert peer.names == ["ntfy.example"]
        assert peer.requests == [
            f"POST /topic/%2e%2e?auth=QmVh&x=/? HTTP/1.1\r\nHost: ntfy.example:{peer.port}\r\n"
            f"User-Agent: birdwire/{__version__}\r\nAccept: */*\r\nConnection: close\r\nContent-Length: 5\r\n"
            "content-type: application/json\r\nTitle: Approve: a post\r\nwebhook-id: \r\n\r\n\x00body".encode()
        ]


@pytest.mark.parametrize("fault", ["another name", "an address", "expired", "another authority", "the system's roots"])
async def test_a_certificate_must_be_the_host_s(tmp_path: Path, fault: str) -> None:
    """For its name, valid now, by an authority that is trusted. Otherwise, nothing is sent."""
    authority, other = Authority(tmp_path / "one"), Authority(tmp_path / "other")
    peer = Peer(
        tls=(other if fault == "another authority" else authority).serving(
            {"another name": "b.example", "an address": STAND_IN}.get(fault, "a.example"),
            days=-1 if fault == "expired" else 1,
        )
    )
    trusted = None if fault == "the system's roots" else authority.trusted()
    async with (
        peer.serving(STAND_IN),
        sending(STANDING_IN, resolve=Names([STAND_IN]), ssl_context=trusted) as sender,
    ):
        assert await sender.post(f"https://a.example:{peer.port}/", JSON, b"{}") == Sent(None, "tls")
    assert peer.requests == []


async def test_an_old_version_of_tls_is_refused(tmp_path: Path) -> None:
    """By the context that the sender makes itself, too."""
    authority = Authority(tmp_path)
    old = authority.serving("a.example")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    peer = Peer(tls=old)
    async with (
        peer.serving(STAND_IN),
        sending(STANDING_IN, resolve=Names([STAND_IN]), ssl_context=authority.trusted()) as sender,
    ):
        assert await sender.post(f"https://a.example:{peer.port}/", JSON, b"{}") == Sent(None, "tls")
    assert peer.requests == []


async def test_an_address_in_a_url_is_verified_as_one(tmp_path: Path) -> None:
    """By the certificate's IP address. No server name is sent, since RFC 6066 allows none."""
    authority = Authority(tmp_path)
    peer = Peer(tls=authority.serving(STAND_IN))
    never = Names(["127.0.0.1"])
    async with (
        peer.serving(STAND_IN),
        sending(STANDING_IN, resolve=never, ssl_context=authority.trusted()) as sender,
    ):
        assert await sender.post(f"https://{STAND_IN}:{peer.port}/", JSON, b"{}") == Sent(204, None)
        assert (peer.names, never.asked) == ([None], [])


def test_a_tls_context_must_verify() -> None:
    """Certificate, host name and a recent version."""
    lax = ssl.create_default_context()
    lax.check_hostname = False
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    old = ssl.create_default_context()
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    for context in (lax, unverified, old):
        with pytest.raises(ValueError, match="the TLS context must"):
            Outbound(PUBLIC, ssl_context=context)


async def test_a_response_before_tls_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any machine on the way could write it, before the handshake or in its place."""
    authority = Authority(tmp_path)
    names, trusted = Names([STAND_IN]), authority.trusted()
    async with Peer(greeting=ACCEPTED).serving(STAND_IN) as peer:
        async with sending(STANDING_IN, resolve=names, ssl_context=trusted, limits=BRIEF) as sender:
            sent = await sender.post(f"https://a.example:{peer.port}/", JSON, b"{}")
        assert (sent.status, sent.error in {"tls", "timeout"}) == (None, True)
    connect = asyncio.get_running_loop().create_connection

    async def early(*parts: Any) -> Any:
        transport, protocol = await connect(*parts)
        protocol.data_received(ACCEPTED)
        return transport, protocol

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", early)
    peer = Peer(b"HTTP/1.1 410 Gone\r\n\r\n", tls=authority.serving("a.example"))
    async with peer.serving(STAND_IN), sending(STANDING_IN, resolve=names, ssl_context=trusted) as sender:
        assert await sender.post(f"https://a.example:{peer.port}/", JSON, b"{}") == Sent(410, "status")


async def test_a_mapped_answer_is_the_address_in_it(tmp_path: Path) -> None:
    """It is checked and connected as that, so that allowing an IPv4 network is enough."""
    authority = Authority(tmp_path)
    names, trusted = Names([f"::ffff:{STAND_IN}"]), authority.trusted()
    peer = Peer(tls=authority.serving("a.example"))
    async with peer.serving(STAND_IN), sending(STANDING_IN, resolve=names, ssl_context=trusted) as sender:
        assert await sender.post(f"https://a.example:{peer.port}/", JSON, b"{}") == Sent(204, None)


OK = b"HTTP/1.1 200 OK\r\n"
BUSY = b"HTTP/1.1 503 Unavailable\r\n"
PADDING = b"X-Padding: " + b"x" * 8_000
AFTER = b"Retry-After: "
END = b"\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
TRIED = Sent(503, "status")
DAY = Sent(503, "status", 86_400.0)

REPLIES: list[tuple[str, bytes, Then, Sent]] = [
    ("200", OK + b"Content-Length: 2\r\n\r\nok", "stall", Sent(200, None)),
    ("204", ACCEPTED, "end", Sent(204, None)),
    ("299", b"HTTP/1.1 299 Odd" + END, "stall", Sent(299, None)),
    ("HTTP/1.0", b"HTTP/1.0 200 OK\r\n\r\nok", "end", Sent(200, None)),
    ("no reason phrase", b"HTTP/1.1 200" + END, "end", Sent(200, None)),
    ("bare line feeds", b"HTTP/1.1 429 Slow\nRetry-After: 3\n\n", "stall", Sent(429, "status", 3.0)),
    ("304", b"HTTP/1.1 304 Not Modified" + END, "end", Sent(304, "status")),
    ("404", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0" + END, "end", Sent(404, "status")),
    ("410", b"HTTP/1.1 410 Gone" + END, "end", Sent(410, "status")),
    ("500", b"HTTP/1.1 500 Oops" + END, "reset", Sent(500, "status")),
    # Interim responses are not the answer.
    ("100 and 103", CONTINUE + b"HTTP/1.1 103 Hints\r\nLink: x" + END + ACCEPTED, "end", Sent(204, None)),
    ("only 102", b"HTTP/1.1 102 Processing" + END, "end", Sent(None, "cut")),
    ("endless 100", CONTINUE * 400, "stall", Sent(None, "malformed")),
    ("a 102 with the Retry-After of another", b"HTTP/1.1 102 P\r\nRetry-After: 9" + END + BUSY + b"\r\n", "end", TRIED),
    ("101", b"HTTP/1.1 101 Switching" + END + ACCEPTED, "end", Sent(None, "malformed")),
    # The status line is enough, whatever follows.
    ("200 with a huge head", OK + PADDING, "stall", Sent(200, None)),
    ("200 with a huge head that ends", OK + PADDING + END, "end", Sent(200, None)),
    ("200, then the end", OK, "end", Sent(200, None)),
    ("200, then a reset", OK, "reset", Sent(200, None)),
    ("200, then silence", OK, "stall", Sent(200, None)),
    ("200, then a drip", OK + b"X-Drip: ", "drip", Sent(200, None)),
    ("200, then garbage", OK + b"\x00\xff no field\r\n: " + END, "end", Sent(200, None)),
    ("200 with two framings", OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked" + END, "end", Sent(200, None)),
    ("200 in bad chunks", OK + b"Transfer-Encoding: chunked\r\n\r\nnot a size\r\n", "end", Sent(200, None)),
    ("200 in gzip that is none", OK + b"Content-Encoding: gzip\r\n\r\n\x1f\x8b\x00", "end", Sent(200, None)),
    ("200 and 10 MB", OK + b"\r\n" + b"x" * 10_000_000, "end", Sent(200, None)),
    ("200, then 500", OK + b"\r\n" + b"HTTP/1.1 500 Oops" + END, "end", Sent(200, None)),
    ("503 with a huge head", BUSY + PADDING, "end", TRIED),
    # Retry-After: seconds or a date, if it is among the bytes that are read.
    ("seconds", BUSY + AFTER + b"120" + END, "end", Sent(503, "status", 120.0)),
    ("seconds, in another case", BUSY + b"RETRY-AFTER:120\t" + END, "end", Sent(503, "status", 120.0)),
    ("seconds in a huge head", BUSY + AFTER + b"7\r\n" + PADDING, "end", Sent(503, "status", 7.0)),
    ("seconds after a huge head", BUSY + PADDING + b"\r\nRetry-After: 7" + END, "end", TRIED),
    ("seconds in the body", BUSY + b"\r\nRetry-After: 7" + END, "end", TRIED),
    ("seconds that are cut", BUSY + AFTER + b"12", "end", TRIED),
    ("seconds with a 200", OK + b"Retry-After: 5" + END, "end", Sent(200, None, 5.0)),
    ("the first of two", BUSY + AFTER + b"5\r\nRetry-After: 9" + END, "end", Sent(503, "status", 5.0)),
    ("a year", BUSY + AFTER + b"31536000" + END, "end", DAY),
    ("more than a float has", BUSY + AFTER + b"9" * 2_000 + END, "end", DAY),
    ("a date", BUSY + AFTER + b"Sat, 18 Apr 2026 07:01:30 GMT" + END, "end", Sent(503, "status", 90.0)),
    ("a date in the past", BUSY + AFTER + b"Sat, 18 Apr 2020 07:00:00 GMT" + END, "end", Sent(503, "status", 0.0)),
    ("a date far away", BUSY + AFTER + b"Sun, 18 Apr 2099 07:00:00 GMT" + END, "end", DAY),
    *(
        (f"not a delay: {text!r}", BUSY + AFTER + text + END, "end", TRIED)
        for text in (
            *(b"", b"-1", b"1.5", b"1e3", b"soon", b"\xb2", b"0x10", b"1, 2", b"Sat, 99 Foo 2026 07:00:00 GMT"),
            *(b"Sat, 18 Apr 2026 25:61:99 GMT", b"2026-04-18T07:00:00Z"),
        )
    ),
    # No status is known.
    ("nothing, then the end", b"", "end", Sent(None, "cut")),
    ("nothing, then a reset", b"", "reset", Sent(None, "cut")),
    ("nothing, then silence", b"", "stall", Sent(None, "timeout")),
    ("a drip", b"", "drip", Sent(None, "timeout")),
    ("a cut status line", b"HTTP/1.1 20", "end", Sent(None, "cut")),
    ("a status line that drips", b"HTTP/1.1 200 ", "drip", Sent(None, "timeout")),
    ("a line that is too long", b"HTTP/1.1 200 " + b"x" * 5_000, "stall", Sent(None, "malformed")),
    *(
        (f"not HTTP/1.1: {line!r}", line + END, "stall", Sent(None, "malformed"))
        for line in (
            *(b"", b"SSH-2.0-OpenSSH_9.6", b"HTTP/2 200", b"HTTP/1.2 200 OK", b"ICY 200 OK", b"http/1.1 200 OK"),
            *(b"HTTP/1.1 099 Low", b"HTTP/1.1 600 High", b"HTTP/1.1 2000 OK", b"HTTP/1.1 20 OK", b"HTTP/1.1  200 OK"),
            *(b"HTTP/1.1 +200 OK", b" HTTP/1.1 200 OK", b"HTTP/1.1 200OK", b"\x16\x03\x01", b"HTTP/1.1 2\x000 OK"),
        )
    ),
]  # fmt: skip


class Fixed(Clock):
    """A clock that does not move from 2026-04-18 07:00 UTC."""

    unix_s = staticmethod(datetime(2026, 4, 18, 7, tzinfo=UTC).timestamp)


@pytest.mark.parametrize(("reply", "then", "sent"), [row[1:] for row in REPLIES], ids=[row[0] for row in REPLIES])
async def test_what_a_reply_means(reply: bytes, then: Then, sent: Sent) -> None:
    """A status counts once its line has arrived, also if the deadline passes before the rest."""
    peer = Peer(reply, then)
    short = {"timeout": BRIEF, None: OutboundLimits(1, 1.5)}.get(sent.error) if then in {"stall", "drip"} else None
    async with peer.serving(), sending(limits=short, clock=Fixed()) as sender:
        assert await sender.post(f"http://127.0.0.1:{peer.port}/", JSON, b"{}") == sent


PIECES = st.sampled_from(
    [OK, BUSY, ACCEPTED, b"HTTP/1.1 100 C\r\n\r\n", b"\r\n", b"\n", b"Retry-After: 5", b"x: y\r\n", b"\0"]
)


@given(st.lists(PIECES | st.binary(max_size=8), max_size=8).map(b"".join), st.lists(st.integers(0, 60), max_size=4))
def test_a_reply_means_the_same_in_any_pieces(received: bytes, cuts: list[int]) -> None:
    """Once a status is known, no further byte changes it; and whatever arrives is read without an error."""

    async def read(parts: Iterable[bytes]) -> list[object]:
        reply = module._Reply(4_096)  # noqa: SLF001 - sockets would merge the pieces
        statuses = []
        for part in parts:
            reply.data_received(part)
            statuses.append(reply.head and reply.head.status)
        reply.connection_lost(None)
        known = [status for status in statuses if status is not None]
        assert known == [reply.head and reply.head.status] * len(known)
        return [reply.head, reply.ended.result()]

    edges = [0, *sorted(min(cut, len(received)) for cut in cuts), len(received)]
    pieces = [received[low:high] for low, high in pairwise(edges)]
    assert asyncio.run(read(pieces)) == asyncio.run(read([received]))


async def test_a_redirect_is_not_followed() -> None:
    """Wherever it leads."""
    async with forbidden() as peers:
        place = f"http://127.0.0.1:{peers[0].port}/".encode()
        for status in (301, 302, 303, 307, 308, 300):
            peer = Peer(b"HTTP/1.1 %d Elsewhere\r\nLocation: %b\r\nRefresh: 0;url=%b\r\n\r\n" % (status, place, place))
            async with peer.serving(), sending() as sender:
                sent = await sender.post(f"http://localhost:{peer.port}/", JSON, b"{}")
                assert (sent, peer.connections) == (Sent(status, "status"), 1)
        assert [each.connections for each in peers] == [0] * len(peers)


async def test_no_proxy_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would connect to what it likes."""
    async with forbidden() as peers, Peer().serving() as peer:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{peers[0].port}")
        async with sending() as sender:
            assert await sender.post(f"http://127.0.0.1:{peer.port}/", JSON, b"{}") == Sent(204, None)
        assert (peer.connections, peers[0].connections) == (1, 0)


async def test_each_post_has_its_own_connection_and_no_memory() -> None:
    """No cookie is returned, and nothing is asked to be kept open."""
    peer = Peer(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", "stall")
    async with peer.serving(), sending() as sender:
        for _ in range(2):
            assert await sender.post(f"http://127.0.0.1:{peer.port}/", JSON, b"{}") == Sent(200, None)
        assert peer.connections == 2
        assert peer.requests[0] == peer.requests[1]
        assert b"\r\nConnection: close\r\n" in peer.requests[1]
        assert b"ookie" not in peer.requests[1]


@pytest.mark.parametrize(
    "header",
    [
        *(("X-A", f"{CANARY}\r\nX-B: c"), ("X-A", f"{CANARY}\nb"), ("X-A", f"{CANARY}\rb"), ("X-A", f"{CANARY}\x00")),
        *(("X-A", f"{CANARY}\u010a"), ("X-A", f"{CANARY}ü"), ("X-A", f" {CANARY}"), ("X-A", f"{CANARY} ")),
        *(("X-A:", CANARY), ("X A", CANARY), ("", CANARY), ("X-A\r\nX-B", CANARY), ("X-Ä", CANARY), ("(x)", CANARY)),
        *(("Host", CANARY), ("CONTENT-LENGTH", "1"), ("Transfer-Encoding", "chunked"), ("connection", "keep-alive")),
        *(("Cookie", CANARY), ("Expect", "100-continue"), ("Upgrade", "h2c"), ("Proxy-Authorization", CANARY)),
    ],
    ids=repr,
)
async def test_a_header_that_could_break_the_request_is_refused(header: tuple[str, str]) -> None:
    """Before anything is connected, and without its value."""
    async with Peer().serving() as peer, sending() as sender:
        with pytest.raises(ValueError, match="header") as refused:
            await sender.post(f"http://127.0.0.1:{peer.port}/", [*JSON, header], b"{}")
        assert CANARY not in str(refused.value)
        assert peer.connections == 0


async def test_a_body_is_bounded() -> None:
    """The largest one arrives whole."""
    async with Peer().serving() as peer, sending() as sender:
        url = f"http://127.0.0.1:{peer.port}/"
        assert await sender.post(url, JSON, b"x" * module.MAX_BODY_BYTES) == Sent(204, None)
        assert peer.requests[0].endswith(b"\r\n\r\n" + b"x" * module.MAX_BODY_BYTES)
        with pytest.raises(ValueError, match="the body has more than"):
            await sender.post(url, JSON, b"x" * (module.MAX_BODY_BYTES + 1))
        assert peer.connections == 1


async def test_a_peer_that_reads_nothing_cannot_delay_the_deadline() -> None:
    """Nor does the unsent rest keep the connection open."""
    async with silent() as port, sending(limits=BRIEF) as sender:
        assert await sender.post(f"http://127.0.0.1:{port}/", JSON, b"x" * 200_000) == Sent(None, "timeout")


@contextlib.asynccontextmanager
async def silent(host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Accept connections in the kernel only: nothing is read, and nothing is written."""
    with socket.create_server((host, 0)) as server:
        yield server.getsockname()[1]


async def test_a_handshake_has_a_deadline() -> None:
    """The same as the resolution and the connection; the response has a longer one."""
    async with silent(STAND_IN) as port, sending(STANDING_IN, limits=OutboundLimits(0.2, 600)) as sender:
        assert await sender.post(f"https://{STAND_IN}:{port}/", JSON, b"{}") == Sent(None, "timeout")


async def test_a_host_without_an_address_is_not_resolved() -> None:
    """Whatever the resolver raises."""

    def fails(error: Exception) -> Callable[[str], list[str]]:
        def resolve(_: str) -> list[str]:
            raise error

        return resolve

    for resolve in (Names([]), *map(fails, (socket.gaierror(-2, "unknown"), UnicodeError(), OSError(), KeyError()))):
        async with sending(PUBLIC, resolve=resolve) as sender:
            assert await sender.post("https://a.example/", JSON, b"{}") == Sent(None, "not_resolved")


async def test_an_address_that_refuses_is_unreachable() -> None:
    """Whichever of the host's addresses was tried last."""
    with socket.socket() as closed:
        closed.bind((STAND_IN, 0))
        port = closed.getsockname()[1]
        async with sending(STANDING_IN) as sender:
            assert await sender.post(f"https://{STAND_IN}:{port}/", JSON, b"{}") == Sent(None, "unreachable")


NEAR = OutboundRules((ip_network("127.0.0.0/8"),))


async def test_the_next_address_is_tried_if_one_is_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that refuses, and one that never answers, which uses up its share of the time only."""
    authority = Authority(tmp_path)
    loop = asyncio.get_running_loop()
    connect = loop.create_connection
    tried: list[str] = []

    async def dead(protocol: Any, host: str, port: int) -> Any:
        tried.append(host)
        if host == "127.0.0.9":
            await asyncio.Event().wait()
        return await connect(protocol, host, port)

    monkeypatch.setattr(loop, "create_connection", dead)
    names = Names(["127.0.0.9", "127.0.0.3", STAND_IN, STAND_IN])
    peer = Peer(tls=authority.serving("a.example"))
    async with (
        peer.serving(STAND_IN),
        sending(NEAR, resolve=names, ssl_context=authority.trusted(), limits=OutboundLimits(0.9, 5)) as sender,
    ):
        started = loop.time()
        assert await sender.post(f"https://a.example:{peer.port}/", JSON, b"{}") == Sent(204, None)
        assert tried == ["127.0.0.9", "127.0.0.3", STAND_IN]
        assert 0.25 < loop.time() - started < 0.9


async def test_at_most_four_addresses_are_tried_and_none_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the resolver's order."""
    loop = asyncio.get_running_loop()
    tried: list[str] = []

    async def refused(_: Any, host: str, __: int) -> Any:
        tried.append(host)
        raise ConnectionRefusedError

    monkeypatch.setattr(loop, "create_connection", refused)
    names = Names([f"127.0.0.{last}" for last in (9, 9, 8, 7, 6, 5, 4)])
    async with sending(NEAR, resolve=names) as sender:
        assert await sender.post("https://a.example/", JSON, b"{}") == Sent(None, "unreachable")
    assert tried == ["127.0.0.9", "127.0.0.8", "127.0.0.7", "127.0.0.6"]


class Hanging:
    """A resolver that hangs until it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.asked = 0

    def __call__(self, _: str) -> list[str]:
        """Wait, then return an address that is not allowed."""
        self.asked += 1
        self.released.wait()
        return ["127.0.0.1"]


def resolving() -> list[threading.Thread]:
    """Return the threads that resolve a name for a sender."""
    return [thread for thread in threading.enumerate() if thread.name == "outbound-resolver"]


async def test_a_resolver_that_hangs_takes_two_threads_and_no_time_of_others() -> None:
    """Its POSTs time out, the loop's own threads stay free, and `close` returns."""
    hanging = Hanging()
    async with sending(PUBLIC, resolve=hanging, limits=BRIEF) as sender:
        posts = [sender.post("https://a.example/", JSON, b"{}") for _ in range(20)]
        assert await asyncio.gather(*posts) == [Sent(None, "timeout")] * 20
        assert (hanging.asked, len(resolving())) == (2, 2)
        assert await asyncio.get_running_loop().run_in_executor(None, lambda: "free") == "free"
    threads = resolving()
    hanging.released.set()
    for thread in threads:
        thread.join(10)
    assert resolving() == []


async def test_a_slot_comes_back_when_its_thread_ends() -> None:
    """Although the deadline of its POST passed long before."""
    hanging = Hanging()
    async with sending(PUBLIC, resolve=hanging, limits=OutboundLimits(1, 600)) as sender:
        posts = [sender.post("https://a.example/", JSON, b"{}") for _ in range(3)]
        assert await asyncio.gather(*posts) == [Sent(None, "timeout")] * 3
        hanging.released.set()
        assert await sender.post("https://a.example/", JSON, b"{}") == Sent(None, "forbidden_address")
        assert hanging.asked == 3


def test_a_resolver_that_hangs_does_not_delay_the_end_of_the_process() -> None:
    """The threads of an executor would be joined."""
    program = """
import asyncio, threading
from birdwire.runtime.outbound import Outbound, OutboundLimits, OutboundRules

async def main():
    sender = Outbound(OutboundRules(), resolve=lambda _: threading.Event().wait(), limits=OutboundLimits(0.1, 0.1))
    print((await sender.post("https://a.example/", [], b"")).error)
    await sender.close()

asyncio.run(main())
"""
    ended = subprocess.run(  # noqa: S603 - this Python, with the program above
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert (ended.stdout, ended.stderr) == ("timeout\n", "")


async def test_a_closed_sender_connects_to_nothing() -> None:
    """It resolves nothing either."""
    names = Names(["127.0.0.1"])
    async with Peer().serving() as peer, sending(resolve=names) as sender:
        await sender.close()
        assert await sender.post(f"http://localhost:{peer.port}/", JSON, b"{}") == Sent(None, "unreachable")
        assert (peer.connections, names.asked) == (0, [])


def open_files() -> int:
    """Return the number of this process's file descriptors."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the count includes the folder's own


async def test_nothing_is_left_after_any_post(tmp_path: Path) -> None:
    """No task, no socket and no thread, however the POST ended; also if it was cancelled at some step."""
    authority = Authority(tmp_path)
    before, tasks = open_files(), len(asyncio.all_tasks())
    async with contextlib.AsyncExitStack() as stack:
        plain = await stack.enter_async_context(Peer().serving())
        mute = await stack.enter_async_context(Peer(b"", "stall").serving())
        secure = await stack.enter_async_context(Peer(tls=authority.serving("a.example")).serving(STAND_IN))
        rules = OutboundRules((ip_network(f"{STAND_IN}/32"),), loopback=True)
        trusted = {"ssl_context": authority.trusted(), "limits": BRIEF}
        sender = await stack.enter_async_context(sending(rules, resolve=Names([STAND_IN]), **trusted))
        urls = [
            *(f"http://127.0.0.1:{plain.port}/", f"http://127.0.0.1:{mute.port}/", f"https://a.example:{secure.port}/"),
            *(f"https://b.example:{secure.port}/", f"https://{STAND_IN}:1/", "https://10.0.0.1/", "nothing"),
        ]
        await asyncio.gather(*(sender.post(url, JSON, b"{}") for url in urls))
        for url in urls[:4]:
            for steps in range(12):
                post = asyncio.create_task(sender.post(url, JSON, b"{}"))
                for _ in range(steps):
                    await asyncio.sleep(0)
                post.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await post
    for thread in resolving():
        await asyncio.to_thread(thread.join, 10)
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == tasks
    assert resolving() == []
    # The pool of `to_thread` has no descriptor of its own.
    assert open_files() == before


async def test_a_cancelled_post_closes_its_connection() -> None:
    """Immediately, whatever the peer does."""
    peer = Peer(b"", "stall")
    async with peer.serving(), sending() as sender:
        post = asyncio.create_task(sender.post(f"http://127.0.0.1:{peer.port}/", JSON, b"{}"))
        await peer.reading.wait()
        post.cancel()
        with pytest.raises(asyncio.CancelledError):
            await post
        await asyncio.wait_for(peer.lost.wait(), 10)


async def test_a_finished_post_closes_its_connection() -> None:
    """It does not wait for a peer that would keep it open."""
    peer = Peer(OK + b"\r\n", "stall")
    async with peer.serving(), sending() as sender:
        assert await sender.post(f"http://127.0.0.1:{peer.port}/", JSON, b"{}") == Sent(200, None)
        await asyncio.wait_for(peer.lost.wait(), 10)


async def test_no_byte_of_a_reply_and_no_secret_of_a_url_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any level. The result has numbers and a word of a closed set only."""
    caplog.set_level(logging.DEBUG)
    kept: list[Any] = []

    class Watched(module._Reply):  # noqa: SLF001 - what it keeps is the point
        def __init__(self, max_bytes: int) -> None:
            super().__init__(max_bytes)
            kept.append(self)

    monkeypatch.setattr(module, "_Reply", Watched)
    asyncio.get_running_loop().set_debug(True)
    secret = CANARY.encode()
    answers = (OK + b"X: %b\r\n\r\n%b" % (secret, secret), b"HTTP/1.1 500 %b\r\n" % secret, secret + b"\r\n", b"")
    for answer in answers:
        async with Peer(answer).serving() as peer, sending(limits=BRIEF) as sender:
            url = f"http://127.0.0.1:{peer.port}/{CANARY}?{CANARY}"
            sent = await sender.post(url, [("X-A", CANARY)], secret)
            assert CANARY not in repr(sent)
            await sender.post(f"https://10.0.0.1/{CANARY}", JSON, secret)
    assert CANARY not in caplog.text
    assert len(kept) == 8
    assert CANARY not in repr([vars(each) for each in kept])


def test_dates_are_those_of_http() -> None:
    """What the standard library formats is read."""
    at = datetime(2026, 4, 18, 7, 0, 30, tzinfo=UTC)
    found = module._seconds(format_datetime(at, usegmt=True).encode(), at.timestamp() - 30)  # noqa: SLF001 - a column
    assert found == 30.0
