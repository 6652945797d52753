"""Raw HTTP requests and the answers that each must get: the corpus for the edge and its fronts."""

# ruff: noqa: E501 - a row of a table is one line

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Collection

LIKE = "/apis/v1/twitter/like_twitter"
BODY = b'{"tweet_id":"1346889436626259968"}'
KEY = b"bw-key"
"""Placeholder for the real key in the rows."""

FIELDS = {"type", "code", "message", "request_id", "reason", "fix", "whose", "retryable"}
PROBE = b"GET /livez HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n"


# What a row sends.


def head(*lines: bytes, start: bytes = b"GET /livez HTTP/1.1", host: bytes | None = b"Host: birdwire.test") -> bytes:
    """Build a request head."""
    return b"\r\n".join([start, *([host] if host is not None else []), *lines, b"", b""])


def get(*lines: bytes, path: bytes = b"/livez", version: bytes = b"1.1", host: bytes | None = b"Host: a") -> bytes:
    """Build a GET request."""
    return head(*lines, start=b"GET %b HTTP/%b" % (path, version), host=host)


def like(*lines: bytes, body: bytes = b"", path: bytes = LIKE.encode(), version: bytes = b"1.1") -> bytes:
    """Build a like with a key; `lines` set the body's framing."""
    fields = (b"Authorization: Bearer " + KEY, b"Content-Type: application/json")
    return head(*fields, *lines, start=b"POST %b HTTP/%b" % (path, version)) + body


def sized(body: bytes = BODY, *lines: bytes, path: bytes = LIKE.encode()) -> bytes:
    """Build a like with a correct Content-Length."""
    return like(b"Content-Length: %d" % len(body), *lines, body=body, path=path)


def chunked(*chunks: bytes, trailers: bytes = b"", lines: tuple[bytes, ...] = ()) -> bytes:
    """Build a chunked like."""
    return like(b"Transfer-Encoding: chunked", *lines, body=coded(*chunks) + b"0\r\n" + trailers + b"\r\n")


def coded(*chunks: bytes) -> bytes:
    """Build a chunked like without its last chunk."""
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)


def framed(body: bytes) -> bytes:
    """Build a chunked like from the raw bytes of its chunks."""
    return like(b"Transfer-Encoding: chunked", body=body)


# What comes back.


@dataclass(frozen=True)
class RawResponse:
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def reason(self) -> str | None:
        """The reason of a refusal, or None."""
        return json.loads(self.body)["error"]["reason"] if self.status >= 400 and self.body else None


def answers(raw: bytes, heads: Collection[int] = ()) -> list[RawResponse]:
    """Parse the answers in a stream; those numbered in `heads` answer a HEAD and have no body."""
    found: list[RawResponse] = []
    while raw:
        top, _, raw = raw.partition(b"\r\n\r\n")
        line, *fields = top.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.1 (\d{3}) .*", line)
        assert match is not None, f"no status line: {line[:100]!r}"
        headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)}
        assert len(headers) == len(fields), "a header occurs twice"
        length = 0 if len(found) in heads or match[1] == "100" else int(headers["content-length"])
        found.append(RawResponse(int(match[1]), headers, raw[:length]))
        assert len(raw) >= length, "an answer is cut short"
        raw = raw[length:]
    return found


def check_shape(got: RawResponse, *, empty: bool = False) -> None:
    """Check that Birdwire wrote the answer, in any layer: fixed headers, a request id, an envelope for a refusal."""
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["cache-control"] == "no-store"
    assert re.fullmatch(r"req_[0-9A-Z]{26}", got.headers["x-request-id"])
    assert "date" in got.headers
    assert "server" not in got.headers
    if got.status == 503:
        assert int(got.headers["retry-after"]) >= 1
    if got.status == 405:
        assert got.headers["allow"]
    if got.status < 400 or empty:
        return
    assert got.headers["content-type"] == "application/json"
    error = json.loads(got.body)["error"]
    assert set(error) >= FIELDS
    assert error["request_id"] == got.headers["x-request-id"]


# The corpus. Each row's bytes are followed by a probe that ends the connection: its answer shows that the connection stayed open.


@dataclass(frozen=True)
class Row:
    """A request as bytes, and the answers that it must get."""

    name: str
    sent: bytes
    statuses: tuple[int, ...]
    reasons: tuple[str | None, ...] = ()
    kept: bool = False
    probe: bool = True
    heads: frozenset[int] = frozenset()


def refused(name: str, sent: bytes, status: int = 400, reason: str = "http_malformed", *, probe: bool = True) -> Row:
    """Expect one answer and the end of the connection; later bytes are not read."""
    return Row(name, sent, (status,), (reason,), probe=probe)


def taken(name: str, sent: bytes, *statuses: int, reason: str | None = None, heads: tuple[int, ...] = ()) -> Row:
    """Expect the app to answer and the connection to stay open."""
    return Row(name, sent, statuses or (200,), (reason,) if reason else (), kept=True, heads=frozenset(heads))


def whole(name: str, sent: bytes) -> Row:
    """Expect the app to accept the body, and to refuse for the missing link alone."""
    return taken(name, sent, 403, reason="x_not_linked")


def late(name: str, sent: bytes) -> Row:
    """Expect a 408 at the deadline, because the request is never complete."""
    return refused(name, sent, 408, "request_timeout", probe=False)


NINETY_NINE = [b"X-%d: 1" % number for number in range(99)]

FRAMING = [
    refused("#139 a Content-Length alongside chunked", like(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n")),
    refused("#139 chunked alongside a Content-Length", like(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n")),
    refused("#140 Transfer-Encoding xchunked", like(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n")),
    refused("#141 chunked, identity", like(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n")),
    refused("identity alone", like(b"Transfer-Encoding: identity")),
    refused("gzip, chunked", like(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n")),
    refused("gzip alone", like(b"Transfer-Encoding: gzip")),
    refused("an empty Transfer-Encoding", like(b"Transfer-Encoding:")),
    refused("a Transfer-Encoding behind a vertical tab", like(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n")),
    refused("a quoted Transfer-Encoding", like(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n")),
    refused("chunked with a parameter", like(b"Transfer-Encoding: chunked;q=1", body=b"0\r\n\r\n")),
    refused("chunked in HTTP/1.0", like(b"Transfer-Encoding: chunked", body=b"0\r\n\r\n", version=b"1.0")),
    refused("#142 a blank before the colon", like(b"Content-Length : 0")),
    refused("a tab before the colon", get(b"X\t: 1")),
    refused("#143 Transfer-Encoding twice", like(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n")),
    refused("#144 Content-Length twice, equal", like(b"Content-Length: 2", b"Content-Length: 2", body=b"{}")),
    refused("#145 Content-Length twice, different", like(b"Content-Length: 2", b"Content-Length: 3", body=b"{}")),
    refused("#146 Content-Length with a plus", like(b"Content-Length: +2", body=b"{}")),
    refused("#147 Content-Length with a minus", like(b"Content-Length: -1")),
    refused("#148 Content-Length in hex", like(b"Content-Length: 0x10")),
    refused("#149 Content-Length as a list", like(b"Content-Length: 16, 16")),
    refused("#150 Content-Length of 23 digits", like(b"Content-Length: 10000000000000000000000")),
    refused("Content-Length of 2^64", like(b"Content-Length: 18446744073709551616")),
    refused("Content-Length of 2^64 - 1", like(b"Content-Length: 18446744073709551615"), 413, "body_too_large"),
    refused("Content-Length of 5,000 zeros and a 2", like(b"Content-Length: %b2" % (b"0" * 5_000), body=b"{}")),
    refused("Content-Length with an underscore", like(b"Content-Length: 1_6")),
    refused("Content-Length with a blank inside", like(b"Content-Length: 1 6")),
    refused("an empty Content-Length", like(b"Content-Length:")),
    refused("Content-Length of a word", like(b"Content-Length: two")),
    refused("Content-Length of a fraction", like(b"Content-Length: 2.0", body=b"{}")),
    refused("Content-Length in superscript", like("Content-Length: ²".encode())),
    whole("Content-Length with a blank behind it", like(b"Content-Length: %d " % len(BODY), body=BODY)),
    whole("Content-Length with leading zeros", like(b"Content-Length: 0000%d" % len(BODY), body=BODY)),
    late("#151 a Content-Length beyond the body", like(b"Content-Length: 100", body=b"{}")),
    late("a chunk that never comes", framed(b"5\r\nab")),
    late("chunks without an end", framed(coded(BODY))),
    late("trailers without an end", framed(coded(BODY) + b"0\r\nX: 1\r\n")),
    Row("#152 a Content-Length that is too short", like(b"Content-Length: 2", body=b"{}abc"), (400, 400), ("tweet_id_missing", "http_malformed")),
    refused("#153 a chunk size that is not a number", framed(b"zz\r\n")),
    refused("a chunk size with a minus", framed(b"-1\r\n")),
    refused("a chunk size with 0x", framed(b"0x1\r\na\r\n0\r\n\r\n")),
    refused("a chunk size with a blank behind it", framed(b"1 \r\na\r\n0\r\n\r\n")),
    refused("a chunk size with a blank before it", framed(b" 1\r\na\r\n0\r\n\r\n")),
    refused("no chunk size", framed(b"\r\na\r\n0\r\n\r\n")),
    refused("#154 a chunk size of 2^68", framed(b"100000000000000000\r\n")),
    refused("a chunk of 2^60 bytes", framed(b"1000000000000000\r\n" + b" " * 20_000), 413, "body_too_large"),
    refused("a chunk that is longer than its size", framed(b"1\r\nabc\r\n0\r\n\r\n")),
    refused("a chunk ended by a bare LF", framed(b"1\r\na\n0\r\n\r\n")),
    refused("a chunk size ended by a bare LF", framed(b"1\na\n0\n\n")),
    refused("a chunk size ended by a bare CR", framed(b"1\ra\r\n0\r\n\r\n")),
    refused("#155 a chunk extension of 70 KB", framed(b"1;" + b"x" * 70_000 + b"\r\n{\r\n0\r\n\r\n")),
    refused("a bare LF in a chunk extension", framed(b"1;a\nb\r\na\r\n0\r\n\r\n")),
    refused("a bare CR in a chunk extension", framed(b"1;a\rb\r\na\r\n0\r\n\r\n")),
    refused("a NUL in a chunk extension", framed(b"1;a\x00\r\na\r\n0\r\n\r\n")),
    refused("3 KB of extension on each of ten chunks", framed((b"1;" + b"x" * 3_000 + b"\r\n \r\n") * 10 + b"0\r\n\r\n")),
    refused("a chunk size of 20,000 zeros", framed(b"0" * 20_000 + b"1\r\na\r\n0\r\n\r\n")),
    whole("a short chunk extension", framed(b"%x;a=b\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))),
    whole("chunked", chunked(BODY)),
    whole("Chunked, in capitals", like(b"Transfer-Encoding: CHUNKED", body=coded(BODY) + b"0\r\n\r\n")),
    whole("one byte in each chunk", chunked(*(bytes([byte]) for byte in BODY))),
    whole("16 KiB with one byte in each chunk", chunked(*[b" "] * (16_384 - len(BODY)), BODY)),
    whole("#156 a Content-Length as trailer", chunked(BODY, trailers=b"Content-Length: 5\r\n")),
    whole("#156 an Authorization as trailer", chunked(BODY, trailers=b"Authorization: Bearer x\r\n")),
    whole("a Host as trailer", chunked(BODY, trailers=b"Host: evil\r\nContent-Type: text/plain\r\n")),
    taken("trailers do not outlive their request", chunked(BODY, trailers=b"Content-Length: 5\r\n") + get(), 403, 200),
    refused("a Transfer-Encoding as trailer", chunked(BODY, trailers=b"Transfer-Encoding: chunked\r\n")),
    Row("a Content-Length alongside chunked after one as trailer", chunked(BODY, trailers=b"Content-Length: 5\r\n") + chunked(BODY, lines=(b"Content-Length: 5",)), (403, 400)),
    refused("70 KB of trailers", chunked(BODY, trailers=b"X: %b\r\n" % (b"x" * 70_000))),
    refused("2,000 trailers", chunked(BODY, trailers=b"X-Y: 1234\r\n" * 2_000)),
    refused("#157 bare LFs", b"GET /livez HTTP/1.1\nHost: a\n\n"),
    refused("a bare LF after a header", b"GET /livez HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n"),
    refused("a bare LF after the head", b"GET /livez HTTP/1.1\r\nHost: a\r\n\n"),
    refused("#158 a bare CR in a value", get(b"X: a\rb")),
    refused("a CR before the line's end", get(b"X: a\r")),
    refused("#159 a folded header", get(b"X: 1\r\n 2")),
    refused("a header folded by a tab", get(b"X: 1\r\n\t2")),
    refused("a blank before the first header", b"GET /livez HTTP/1.1\r\n Host: a\r\n\r\n"),
    refused("#160 a NUL in a value", get(b"X: a\x00b")),
    refused("#19 a NUL in the key", like(b"Content-Length: 0").replace(KEY, b"bw_\x00")),
    refused("a NUL in a name", get(b"X\x00: 1")),
    refused("a NUL in the target", get(path=b"/livez\x00")),
    refused("a NUL before the request", b"\x00" + get()),
    refused("a control character in a value", get(b"X: a\x01b")),
    refused("a DEL in a value", get(b"X: a\x7fb")),
    refused("#161 a blank in a name", get(b"X Y: 1")),
    refused("#162 an empty name", get(b": 1")),
    refused("a header without a colon", get(b"Xabc")),
    refused("a name beyond ASCII", get(b"X\xff: 1")),
    refused("a name in parentheses", get(b"(X): 1")),
    taken("a value beyond ASCII", get(b"X: \xff\xfe")),
    taken("#18 a key beyond ASCII", like(b"Content-Length: 0").replace(KEY, b"bw_\xff\xfe"), 401, reason="key_malformed"),
    taken("an empty value", get(b"X:")),
    taken("a value in many blanks", get(b"X:" + b" " * 5_000 + b"1" + b" " * 5_000)),
    taken("every odd character that a name may have", get(b"!#$%&'*+-.^_`|~0aZ: 1")),
]  # fmt: skip

HOSTS = [
    refused("#163 no Host", get(host=None)),
    refused("#164 two Hosts, equal", get(b"Host: a")),
    refused("#164 two Hosts, different", get(b"Host: b")),
    refused("two Hosts in HTTP/1.0", get(b"Host: b", version=b"1.0")),
    refused("an empty Host", get(host=b"Host:")),
    refused("a Host with a path", get(host=b"Host: a/b")),
    refused("a Host with a user", get(host=b"Host: u@a")),
    refused("a Host with a blank", get(host=b"Host: a b")),
    refused("two Hosts in one header", get(host=b"Host: a, b")),
    refused("a Host with a port that is not a number", get(host=b"Host: a:b")),
    refused("a Host with a port of six digits", get(host=b"Host: a:123456")),
    refused("a Host beyond ASCII", get(host=b"Host: \xc3\xa9.test")),
    refused("a Host in open brackets", get(host=b"Host: [::1")),
    refused("a Host in brackets that is not an address", get(host=b"Host: [evil]")),
    refused("a Host with a query", get(host=b"Host: a?b")),
    taken("a Host with a port", get(host=b"Host: a:8700")),
    taken("a Host of IPv6", get(host=b"Host: [::1]:8700")),
    taken("a Host in blanks", get(host=b"Host: \t a \t ")),
    taken("a Host with an underscore", get(host=b"Host: birdwire_1:8700")),
    taken("another Host in the next request", get(host=b"Host: a") + get(host=b"Host: b"), 200, 200),
    Row("no Host in the second request", get() + get(host=None), (200, 400), (None, "http_malformed")),
    refused("#166 an absolute target with another host", get(path=b"http://b/livez")),
    refused("an absolute target with a user", get(path=b"http://u@a/livez")),
    refused("an absolute target with another port", get(path=b"http://a:1/livez")),
    refused("an absolute target of ftp", get(path=b"ftp://a/livez")),
    refused("an absolute target without a host", get(path=b"http:///livez")),
    taken("an absolute target with the same host", get(path=b"http://a/livez")),
    taken("an absolute target in capitals", get(path=b"HTTP://A/livez")),
    taken("an absolute target of https", get(path=b"https://a/livez")),
    taken("an absolute target without a path", get(path=b"http://a"), 404, reason="route_unknown"),
    taken("an absolute target with just a query", get(path=b"http://a?x=1"), 404, reason="route_unknown"),
]  # fmt: skip

SIZES = [
    refused("#167 a header of 70 KB", get(b"X: " + b"x" * 70_000), 431, "headers_too_large"),
    refused("a header of 17 KB that never ends", b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 17_000, 431, "headers_too_large", probe=False),
    refused("a header name of 17 KB that never ends", b"GET / HTTP/1.1\r\nHost: a\r\n" + b"x" * 17_000, 431, "headers_too_large", probe=False),
    refused("blanks of 17 KB that never end", b"GET / HTTP/1.1\r\nHost: a\r\nX:" + b" " * 17_000, 431, "headers_too_large", probe=False),
    refused("#168 2,000 headers", get(*[b"X: 1"] * 2_000), 431, "headers_too_large"),
    refused("101 headers", get(*NINETY_NINE, b"X: 1"), 431, "headers_too_large"),
    taken("100 headers", get(*NINETY_NINE)),
    taken("a head of 16 KiB", get(b"X: " + b"x" * (16_384 - len(get(b"X: "))))),
    refused("a head of 16 KiB and one", get(b"X: " + b"x" * (16_385 - len(get(b"X: ")))), 431, "headers_too_large"),
    taken("a head of 16 KiB behind another request", get() + get(b"X: " + b"x" * (16_384 - len(get(b"X: ")))), 200, 200),
    Row("a header of 70 KB behind another request", get() + get(b"X: " + b"x" * 70_000), (200, 431), (None, "headers_too_large")),
    refused("#169 a target of 100 KB", get(path=b"/" + b"x" * 100_000), 414, "uri_too_long"),
    refused("a query of 9 KB", get(path=b"/livez?" + b"x" * 9_000), 414, "uri_too_long"),
    refused("a target of 9 KB that never ends", b"GET /" + b"x" * 9_000, 414, "uri_too_long", probe=False),
    taken("a target of 8 KiB", get(path=b"/" + b"x" * 8_191), 404, reason="route_unknown"),
    refused("a target of 8 KiB and one", get(path=b"/" + b"x" * 8_192), 414, "uri_too_long"),
    whole("#118 a body of 16 KiB", sized(BODY + b" " * (16_384 - len(BODY)))),
    refused("#117 a body of 16 KiB and one", sized(BODY + b" " * (16_385 - len(BODY))), 413, "body_too_large"),
    refused("#116 a body of 1 MB", sized(b" " * 1_000_000), 413, "body_too_large"),
    refused("a body of 1 MB that is only announced", like(b"Content-Length: 1000000"), 413, "body_too_large", probe=False),
    refused("a body of 1 MB that is announced with Expect", like(b"Content-Length: 1000000", b"Expect: 100-continue"), 413, "body_too_large", probe=False),
    refused("chunks of 16 KiB and one", chunked(b" " * 16_384, b" "), 413, "body_too_large"),
    refused("a chunk of 1 MB", chunked(b" " * 1_000_000), 413, "body_too_large"),
    refused("chunks of one byte, 20,000 times", chunked(*[b" "] * 20_000), 413, "body_too_large"),
    taken("a body to an unknown path", sized(path=b"/nowhere"), 404, reason="route_unknown"),
    refused("a large body to an unknown path", sized(b" " * 20_000, path=b"/nowhere"), 413, "body_too_large"),
    taken("a GET with a body", get(b"Content-Length: 2") + b"{}"),
    refused("a GET with a large body", get(b"Content-Length: 20000"), 413, "body_too_large", probe=False),
]  # fmt: skip

PROTOCOLS = [
    refused("#170 HTTP/0.9", b"GET /livez\r\n", probe=False),
    refused("HTTP/0.9 with an empty line", b"GET /livez\r\n\r\n", probe=False),
    refused("HTTP/0.9 by name", get(version=b"0.9")),
    Row("HTTP/0.9 behind another request", get() + b"GET /livez\r\n", (200, 400), (None, "http_malformed"), probe=False),
    Row("#171 HTTP/1.0", get(version=b"1.0", host=None), (200,)),
    Row("HTTP/1.0 with keep-alive", get(b"Connection: keep-alive", version=b"1.0"), (200,)),
    Row("HTTP/1.0 with Expect gets no interim answer", like(b"Expect: 100-continue", b"Content-Length: %d" % len(BODY), body=BODY, version=b"1.0"), (403,), ("x_not_linked",)),
    refused("#172 HTTP/3.7", get(version=b"3.7")),
    refused("HTTP/1.2", get(version=b"1.2")),
    refused("HTTP/2.0 by name", get(version=b"2.0")),
    refused("HTTP/11.1", get(version=b"11.1")),
    refused("http in lower case", head(start=b"GET /livez http/1.1")),
    refused("no protocol's name", head(start=b"GET /livez 1.1")),
    refused("a blank after the version", head(start=b"GET /livez HTTP/1.1 ")),
    refused("a blank in the target", head(start=b"GET /li vez HTTP/1.1")),
    refused("a blank before the method", b" " + get()),
    refused("#173 the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    refused("#174 a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", probe=False),
    refused("an SSH banner", b"SSH-2.0-OpenSSH_9.2\r\n"),
    refused("the PROXY protocol", b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n" + get()),
    refused("random bytes", bytes(range(128, 256))),
    taken("empty lines before a request", b"\r\n\r\n" + get()),
    taken("empty lines between requests", get() + b"\r\n\r\n" + get(), 200, 200),
    taken("#175 100 pipelined requests", get() * 100, *[200] * 100),
    taken("1,000 pipelined requests", get() * 1_000, *[200] * 1_000),
    taken("pipelined requests with bodies", (sized() + chunked(BODY)) * 20, *[403] * 40),
    Row("Connection: close before another request", get(b"Connection: close") + get(), (200,)),
    Row("a refusal behind 50 requests", get() * 50 + b"nonsense\r\n\r\n", (200,) * 50 + (400,)),
    refused("#176 a method in lower case", head(start=b"get /livez HTTP/1.1")),
    refused("an unknown method", head(start=b"FETCH /livez HTTP/1.1")),
    refused("a method without an end", b"POSTPOSTPOSTPOSTPOST", probe=False),
    whole("#177 Expect 999", sized(BODY, b"Expect: 999")),
    taken("Expect: 100-continue, and the body immediately", sized(BODY, b"Expect: 100-continue"), 100, 403),
    Row("#178 Expect: 100-continue without a body", like(b"Expect: 100-continue", b"Content-Length: 5"), (100, 408), probe=False),
    taken("Expect for an unknown path gets no interim answer", get(b"Expect: 100-continue", b"Content-Length: 2", path=b"/nowhere") + b"{}", 404),
    refused("#179 a websocket", get(b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: eA=="), 404, "route_unknown"),
    refused("a WebSocket in capitals", get(b"Connection: keep-alive, UPGRADE", b"Upgrade: WebSocket"), 404, "route_unknown"),
    taken("a websocket without Connection", get(b"Upgrade: websocket")),
    taken("#180 h2c", get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAA")),
    whole("h2c with a body", sized(BODY, b"Connection: Upgrade", b"Upgrade: h2c")),
    whole("h2c with a chunked body", chunked(BODY, lines=(b"Connection: Upgrade", b"Upgrade: h2c"))),
    taken("h2c, twice, pipelined", sized(BODY, b"Connection: Upgrade", b"Upgrade: h2c") * 2, 403, 403),
    Row("h2c, and nonsense behind it", sized(BODY, b"Connection: Upgrade", b"Upgrade: h2c") + b"nonsense", (403, 400), ("x_not_linked", "http_malformed")),
    Row("h2c, and a request without a Host behind it", get(b"Connection: Upgrade", b"Upgrade: h2c") + get(host=None), (200, 400)),
    Row("h2c and close", sized(BODY, b"Connection: Upgrade, close", b"Upgrade: h2c"), (403,)),
    Row("h2c in HTTP/1.0", get(b"Connection: Upgrade", b"Upgrade: h2c", version=b"1.0"), (200,)),
    refused("h2c with two lengths", like(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 2", b"Content-Length: 2", body=b"{}")),
    refused("h2c with a large body", like(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 20000"), 413, "body_too_large", probe=False),
    taken("an Upgrade to an unknown protocol", get(b"Connection: Upgrade", b"Upgrade: TLS/1.0")),
]  # fmt: skip

METHODS = [
    taken("#181 GET of an operation", get(path=LIKE.encode()), 405, reason="method_not_allowed"),
    *(
        taken(f"#182 {method} of an operation", head(b"Content-Length: 0", start=f"{method} {LIKE} HTTP/1.1".encode()), 405, reason="method_not_allowed")
        for method in ("PUT", "PATCH", "DELETE")
    ),
    taken("#183 HEAD of an operation", head(start=f"HEAD {LIKE} HTTP/1.1".encode()), 405, heads=(0,)),
    taken("#184 TRACE of an operation", head(start=f"TRACE {LIKE} HTTP/1.1".encode()), 405, reason="method_not_allowed"),
    taken("TRACE of /livez", head(start=b"TRACE /livez HTTP/1.1"), 405, reason="method_not_allowed"),
    refused("#185 CONNECT", head(start=b"CONNECT a:443 HTTP/1.1", host=b"Host: a:443")),
    refused("CONNECT of a path", head(start=b"CONNECT /livez HTTP/1.1")),
    taken("#186 OPTIONS", head(start=f"OPTIONS {LIKE} HTTP/1.1".encode()), 405, reason="method_not_allowed"),
    refused("OPTIONS of everything", head(start=b"OPTIONS * HTTP/1.1"), 405, "method_not_allowed"),
    refused("GET of everything", head(start=b"GET * HTTP/1.1")),
    refused("a target without a slash", head(start=b"GET livez HTTP/1.1")),
    refused("a target with a fragment", get(path=b"/livez#x")),
    refused("an absolute target with a fragment", get(path=b"http://a/livez#x")),
    refused("a target beyond ASCII", get(path=b"/\xff")),
    refused("a target with a control character", get(path=b"/\x01")),
    taken("#188 a trailing slash", get(path=b"/livez/"), 404, reason="route_unknown"),
    taken("#189 two slashes", get(path=b"//apis/v1"), 404, reason="route_unknown"),
    taken("two slashes and a path that resembles a host", get(path=b"//a:1@b/livez"), 404, reason="route_unknown"),
    taken("#191 dots in escapes", get(path=b"/%2e%2e/livez"), 404, reason="route_unknown"),
    taken("dots", get(path=b"/x/../livez"), 404, reason="route_unknown"),
    taken("#192 a slash in an escape", get(path=b"/%2flivez"), 404, reason="route_unknown"),
    taken("#193 a NUL in an escape", get(path=b"/%00"), 400, reason="http_malformed"),
    taken("#194 an escape of nothing", get(path=b"/%zz"), 400, reason="http_malformed"),
    taken("a colon in the path", get(path=b"/livez:80"), 404, reason="route_unknown"),
    taken("#200 a method override", get(b"X-HTTP-Method-Override: POST"), 200),
    taken("a HEAD of /livez", head(start=b"HEAD /livez HTTP/1.1"), heads=(0,)),
    taken("a HEAD of the callback", head(start=b"HEAD /apis/v1/twitter/oauth_callback HTTP/1.1"), heads=(0,)),
    taken("a HEAD of an unknown path", head(start=b"HEAD /nowhere HTTP/1.1"), 404, heads=(0,)),
    Row("a HEAD without a Host", head(start=b"HEAD /livez HTTP/1.1", host=None), (400,), heads=frozenset({0})),
    Row("a HEAD with a body that is too large", head(b"Content-Length: 20000", start=b"HEAD /livez HTTP/1.1"), (413,), heads=frozenset({0}), probe=False),
]  # fmt: skip

ROWS = [*FRAMING, *HOSTS, *SIZES, *PROTOCOLS, *METHODS]


def marked(row: Row) -> Any:
    """Return a row as a test parameter, marked with the promise id at the start of its name."""
    number, _, _ = row.name.partition(" ")
    return pytest.param(row, id=row.name, marks=[pytest.mark.trust(number)] if number.startswith("#") else [])
