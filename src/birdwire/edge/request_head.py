"""What the head of a request must say in one way only: its host, its target, how long its body is. Refuses the rest."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

import httptools

from birdwire.api.errors import GatewayError

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

_HOST = re.compile(rb"([A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?]*)(/[^?]*)?(\?.*)?")
_MAX_LENGTH_DIGITS = 20  # of 2^64

TELLING = frozenset({b"host", b"content-length", b"content-type", b"transfer-encoding", b"upgrade", b"x-forwarded-for"})
"""The fields that decide on the request itself."""

SIMPLE = re.compile(rb"(?:\A|\n)[A-Z]+ [^ \r\n]+\r\n\Z")
"""A request line without a version, as HTTP/0.9 had it."""

WRONG = {
    httptools.HttpParserInvalidMethodError: "its method is none that HTTP knows",
    httptools.HttpParserInvalidURLError: "its target holds a character that no URL has",
}
"""What is said of a parser's error, where the general words would tell too little."""


def one_host(hosts: Sequence[bytes], version: str, allowed: Container[str]) -> bytes:
    """The value of Host (RFC 9112 §3.2), which names an `allowed` host if any are; b"" if HTTP/1.0 left it out."""
    if len(hosts) != 1:
        if hosts or version == "1.1":
            raise malformed("it needs exactly one Host header")
        return b""
    name = host_name(hosts[0])
    if allowed and name not in allowed:
        raise GatewayError("host_not_allowed")
    return hosts[0]


@lru_cache(64)
def host_name(host: bytes) -> str:
    """The name in a Host header, in lower case and without the port (RFC 9110 §7.2)."""
    match = _HOST.fullmatch(host)
    if match is None:
        raise malformed("the Host header is not a host")
    return match[1].decode().lower()


def origin_form(method: bytes, target: bytes, host: bytes) -> bytes:
    """The request target as /path?query, if it was sent in another form (RFC 9112 §3.2.2, §3.2.4)."""
    if target == b"*" and method == b"OPTIONS":
        allow = "GET, HEAD, POST"
        raise GatewayError("method_not_allowed", headers=(("allow", allow),), method="*", allow=allow)
    match = _ABSOLUTE.fullmatch(target)
    if match is None or b"#" in target:
        raise malformed("the request target is not a path")
    if match[1].lower() != (host or match[1]).lower():
        raise malformed("the request target and the Host header disagree")
    return (match[2] or b"/") + (match[3] or b"")


def body_length(lengths: Sequence[bytes], codings: Sequence[bytes], version: str) -> int | None:
    """How many bytes were announced; None if they come in chunks. Said once, in one way (RFC 9112 §6)."""
    if codings:
        if lengths or version == "1.0" or len(codings) > 1 or codings[0].lower() != b"chunked":
            raise malformed("Transfer-Encoding must be just `chunked`, without a Content-Length")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not lengths[0].isdigit() or len(lengths[0]) > _MAX_LENGTH_DIGITS:
        raise malformed("Content-Length must be one number")
    return int(lengths[0])


def is_multipart(types: Sequence[bytes]) -> bool:
    """Whether Content-Type names a form that may hold files (RFC 7578)."""
    return len(types) == 1 and types[0].partition(b";")[0].strip().lower() == b"multipart/form-data"


def malformed(detail: str) -> GatewayError:
    """The refusal of what breaks HTTP itself."""
    return GatewayError("http_malformed", detail=detail)
