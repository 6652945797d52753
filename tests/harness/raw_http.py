"""Raw requests, their answers, and the shape of every refusal."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from birdwire.api.errors import PROBLEMS
from harness.gateway import API, POST

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from harness.gateway import RunningGateway

Refusal = tuple[int, str, str]
Row = tuple[int, str, "RawRequest", "Refusal | None"]

MEMBERS = ["type", "code", "message", "request_id", "reason", "fix", "whose", "retryable"]
EAGER = 18_000
"""Bytes written before reading: a client that keeps writing may lose a refusal to a reset (RFC 9112 §9.6)."""

# Refused by the edge, or for lack of a valid key: these answers carry no allowance.
BEFORE_THE_KEY = {
    *("key_missing", "key_malformed", "key_unknown", "key_revoked", "key_in_query", "mode_mismatch"),
    *("duplicate_header", "route_unknown", "method_not_allowed", "http_malformed", "body_too_large"),
    *("callback_malformed", "state_unknown", "issuer_mismatch", "prefetch", "undo_unknown", "undo_token_missing"),
    *("undo_token_malformed", "form_malformed", "unsupported_media_type on a page"),
}


def bearer(key: str) -> list[str]:
    """Return a correct Authorization header."""
    return [f"Bearer {key}"]


@dataclass(frozen=True)
class RawRequest:
    """One request, as bytes on the wire."""

    body: bytes = json.dumps({"tweet_id": POST}).encode()
    method: str = "POST"
    target: str = API + "like_twitter"
    types: tuple[str, ...] = ("application/json",)
    authorization: Callable[[str], list[str]] = bearer
    more: tuple[tuple[str, str], ...] = ()

    def raw(self, host: str, key: str) -> bytes:
        """Return the complete request; it closes the connection after its answer."""
        fields = [("Host", host), ("Connection", "close"), *self.more]
        fields += [("Authorization", value) for value in self.authorization(key)]
        fields += [("Content-Type", value) for value in self.types]
        if self.body or self.method == "POST":
            fields.append(("Content-Length", str(len(self.body))))
        head = "".join(f"{name}: {value}\r\n" for name, value in fields)
        return f"{self.method} {self.target} HTTP/1.1\r\n{head}\r\n".encode() + self.body


@dataclass(frozen=True)
class RawResponse:
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The content of the error envelope."""
        return dict(json.loads(self.body)["error"])


class SlowRequest:
    """A request whose last byte is held back while the gateway, which has admitted its key, waits for it."""

    def __init__(self, sent: RawRequest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._last, self._reader, self._writer = sent.body[-1:], reader, writer

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, gateway_url: str, key: str, sent: RawRequest) -> AsyncIterator[SlowRequest]:
        """Send all but the last byte. The gateway sends 100 Continue only after it has admitted the key."""
        url = urlsplit(gateway_url)
        raw = replace(sent, more=(*sent.more, ("Expect", "100-continue"))).raw(url.netloc, key)
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        try:
            head, end, body = raw.partition(b"\r\n\r\n")
            writer.write(head + end)
            assert (await asyncio.wait_for(reader.readuntil(end), 15)).startswith(b"HTTP/1.1 100 ")
            writer.write(body[:-1])
            yield cls(sent, reader, writer)
        finally:
            writer.close()

    async def answered(self) -> RawResponse:
        """Return the answer that comes although the last byte is held back."""
        return await answer_in(self._reader)

    async def finish(self) -> RawResponse:
        """Send the last byte and return the answer."""
        self._writer.write(self._last)
        return await answer_in(self._reader)


async def exchange(running: RunningGateway, sent: RawRequest, key: str | None = None) -> RawResponse:
    """Send the request and return its answer; exactly one must arrive before the connection ends."""
    url = urlsplit(str(running.client.base_url))
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        writer.write(sent.raw(url.netloc, key or running.raw_key)[:EAGER])
        return await answer_in(reader, sent.method)
    finally:
        writer.close()


async def answer_in(reader: asyncio.StreamReader, method: str = "POST") -> RawResponse:
    """Read the one answer that arrives before the connection ends."""
    raw = await asyncio.wait_for(reader.read(), 15)
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert len(headers) == len(lines), "a header occurs twice"
    assert len(body) == (0 if method == "HEAD" else int(headers["content-length"]))
    return RawResponse(int(first.split()[1]), headers, body)


def inspect(got: RawResponse, refusal: Refusal) -> None:
    """Check the shape of a refusal, the headers of every answer, and that no input is echoed unescaped."""
    status, code, reason = refusal
    error = got.error
    assert (got.status, error["code"], error["reason"]) == (status, code, reason)
    assert [name for name in error if name != "upstream"] == MEMBERS
    assert got.headers["content-type"] == "application/json"
    assert got.headers["x-request-id"] == error["request_id"]
    assert (got.headers["x-content-type-options"], got.headers["cache-control"]) == ("nosniff", "no-store")
    declared = PROBLEMS[reason].message + PROBLEMS[reason].fix
    assert not (set(error["message"]) - set(declared)) & set('<>{}\\"`\x00\r\n')
    assert error["message"].isascii()
    words = (error["message"] + error["fix"]).replace("the request method is unknown", "")
    assert "unknown" in declared or "unknown" not in words, "a placeholder was left unfilled"
    assert ("x-ratelimit-limit" in got.headers) == (reason not in BEFORE_THE_KEY)
    assert (got.headers.get("www-authenticate") == "Bearer") == (status == 401)
    assert not any(name.startswith("access-control") for name in got.headers)


async def last_call(running: RunningGateway) -> int:
    """Return the number of the last call that X received."""
    calls = (await running.x.get("/_sandbox/calls")).json()["calls"]
    return int(calls[-1]["n"]) if calls else 0


async def judge(
    running: RunningGateway, sent: RawRequest, refusal: Refusal | None, key: str | None = None
) -> RawResponse:
    """Send a row's request and check its answer. A refusal must not reach X; None means that the call is served."""
    before = await last_call(running)
    got = await exchange(running, sent, key)
    if refusal is None:
        assert got.status == 200, got.body
        return got
    inspect(got, refusal)
    assert await last_call(running) == before, "X was called"
    return got


def rows(table: Iterable[Row]) -> list[Any]:
    """Return the table as test parameters, named by number and sentence and marked by number."""
    return [
        pytest.param(sent, refusal, id=f"{number} {what}", marks=pytest.mark.trust(f"#{number}"))
        for number, what, sent, refusal in table
    ]
