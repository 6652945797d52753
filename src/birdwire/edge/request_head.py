"""The parts of a request head that must be unambiguous: host, target, body length. Rejects every other form."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

import httptools

from birdwire.api.errors import GatewayError

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

_HOST = re.compile(r"([A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(r"(?i:https?)://([^/?]*)(/[^?]*)?(\?.*)?")
_MAX_LENGTH_DIGITS = 20
"""The digits of 2^64."""

SIMPLE_REQUEST = re.compile(rb"(?:\A|\n)[A-Z]+ [^ \r\n]+\r\n\Z")
"""A request line without a version, as HTTP/0.9 had it."""

PARSER_ERRORS = {
    httptools.HttpParserInvalidMethodError: "the request method is unknown",
    httptools.HttpParserInvalidURLError: "the request target contains a character that is not allowed in a URL",
}
"""Details for the parser's errors that need more than the general sentence."""


def checked_host(hosts: Sequence[str], version: str, allowed: Container[str]) -> str:
    """Return the Host header (RFC 9112 §3.2), or "" if an HTTP/1.0 request omits it.

    Raises:
        GatewayError: the header is missing, repeated or malformed, or names a host that is not `allowed`.
    """
    if len(hosts) != 1:
        if hosts or version == "1.1":
            raise malformed("it must have exactly one Host header")
        return ""
    name = host_name(hosts[0])
    if allowed and name not in allowed:
        raise GatewayError("host_not_allowed")
    return hosts[0]


@lru_cache(64)
def host_name(host: str) -> str:
    """Return the name in a Host header, in lower case and without the port (RFC 9110 §7.2)."""
    match = _HOST.fullmatch(host)
    if match is None:
        raise malformed("the Host header is not a valid host")
    return match[1].lower()


def origin_form(method: bytes, target: str, host: str) -> str:
    """Return the request target as /path?query when it was sent in another form (RFC 9112 §3.2.2, §3.2.4)."""
    if target == "*" and method == b"OPTIONS":
        allow = "GET, HEAD, POST"
        raise GatewayError("method_not_allowed", headers=(("allow", allow),), method="*", allow=allow)
    match = _ABSOLUTE.fullmatch(target)
    if match is None or "#" in target:
        raise malformed("the request target is not a path")
    if match[1].lower() != (host or match[1]).lower():
        raise malformed("the request target and the Host header name different hosts")
    return (match[2] or "/") + (match[3] or "")


def body_length(lengths: Sequence[str], codings: Sequence[str], version: str) -> int | None:
    """Return the announced length of the body, or None for chunked transfer coding (RFC 9112 §6).

    Raises:
        GatewayError: the length is given twice, or in two ways.
    """
    if codings:
        if lengths or version == "1.0" or len(codings) > 1 or codings[0].lower() != "chunked":
            raise malformed("Transfer-Encoding must be `chunked` alone, without Content-Length")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not lengths[0].isdecimal() or len(lengths[0]) > _MAX_LENGTH_DIGITS:
        raise malformed("Content-Length must be a single number")
    return int(lengths[0])


def is_multipart(types: Sequence[str]) -> bool:
    """Return whether Content-Type is multipart/form-data, which may hold files (RFC 7578)."""
    return len(types) == 1 and types[0].partition(";")[0].strip(" \t").lower() == "multipart/form-data"


def encoded(fields: Mapping[str, Sequence[str]]) -> list[tuple[bytes, bytes]]:
    """Return the headers as ASGI has them."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name in fields for value in fields[name]]


def malformed(detail: str) -> GatewayError:
    """Return the error for a request that violates HTTP itself."""
    return GatewayError("http_malformed", detail=detail)
