"""A faulty network to X, and a failing X: the answers that callers get, and how soon."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from birdwire.sandbox.control.tcp_proxy import Slicer, TcpProxy, Toxics
from birdwire.x.limits.circuit_breaker import PROBE_INTERVAL_S
from harness.fault_scale import record, scaled
from harness.gateway import API, GRACE, POST, RunningGateway, bound, gateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx2

CALLS = scaled("STORM", 300, 10_000)
CALLERS = 20
STORM = (
    ("like_twitter", {"tweet_id": POST}),
    ("unlike_twitter", {"tweet_id": POST}),
    ("retweet_twitter", {"tweet_id": POST}),
    ("follow_twitter", {"target_user_id": GRACE}),
    ("post_twitter", {"text": "stormy"}),
)


def reason(answer: httpx2.Response) -> tuple[int, str | None]:
    """How it ended."""
    return answer.status_code, answer.json().get("error", {}).get("reason")


@contextlib.asynccontextmanager
async def through_a_line(running: RunningGateway, **options: Any) -> AsyncIterator[tuple[RunningGateway, TcpProxy]]:
    """Start a second gateway whose connection to X passes a proxy with configurable faults."""
    url = urlsplit(str(running.settings.x_api_url))
    proxy = TcpProxy(bound(), (str(url.hostname), int(url.port or 0)))
    await proxy.open()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(proxy.close)
        x_url = f"http://127.0.0.1:{proxy.port}"
        other = await stack.enter_async_context(
            gateway(running.directory, running.sandbox, x_url, stack, public=False, **options)
        )
        other.client.headers["authorization"] = f"Bearer {running.raw_key}"
        yield other, proxy


@pytest.mark.trust("F27")
async def test_a_reply_that_trickles_ends_at_the_deadline_of_the_whole_call(linked: RunningGateway) -> None:
    """However steadily its bytes come."""
    async with through_a_line(linked, x_deadline_s=0.5) as (running, proxy):
        await proxy.set(Toxics(slicer=Slicer(bytes=1, delay_s=0.05)))
        assert reason(await running.like()) == (502, "x_timeout")
        assert reason(await running.call("post_twitter", {"text": "slow"})) == (502, "outcome_unknown")
        await proxy.set(Toxics())
        assert reason(await running.like()) == (200, None)


@pytest.mark.trust("F29")
async def test_a_pooled_peer_that_vanished_costs_no_second_post(linked: RunningGateway) -> None:
    """The connection looks alive, and swallows what is sent on it."""
    async with through_a_line(linked, x_deadline_s=0.5) as (running, proxy):
        assert reason(await running.call("post_twitter", {"text": "first"})) == (201, None)
        await proxy.set(Toxics(half_open=True, direction="both"))
        assert reason(await running.call("post_twitter", {"text": "second"})) == (502, "outcome_unknown")
        await proxy.set(Toxics())
        assert len(await linked.calls("/2/tweets")) == 1
        assert reason(await running.like()) == (200, None)


@pytest.mark.trust("F28")
async def test_a_line_that_resets_is_tried_again_where_that_does_no_harm(linked: RunningGateway) -> None:
    """A like goes through in the end; a post is not sent twice."""
    async with through_a_line(linked) as (running, proxy):

        async def heal() -> None:
            await proxy.set(Toxics())

        running.clock.meanwhile = heal
        await proxy.set(Toxics(drop="after_apply"))
        assert reason(await running.like()) == (200, None)
        await proxy.set(Toxics(drop="after_apply"))
        assert reason(await running.call("post_twitter", {"text": "once"})) == (502, "outcome_unknown")
        assert len(await linked.calls("/2/tweets", method="POST")) == 1


@pytest.mark.trust("F24")
async def test_a_host_that_speaks_no_tls_gets_no_token(linked: RunningGateway) -> None:
    """Nothing is sent before the host has proven itself."""
    received = bytearray()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.read(4096))
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    x_url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(server.close)
        running = await stack.enter_async_context(gateway(linked.directory, linked.sandbox, x_url, stack))
        running.client.headers["authorization"] = f"Bearer {linked.raw_key}"
        assert reason(await running.like()) == (502, "x_tls")
    assert received.startswith(b"\x16\x03")  # a handshake's first record (RFC 8446 §5.1), and nothing but that
    assert b"Bearer" not in received


@pytest.mark.trust("G10")
@pytest.mark.trust("F32")
async def test_a_storm_of_failures_is_not_made_worse(linked: RunningGateway) -> None:
    """X fails at everything: few calls more than callers made, quick refusals, and well again with the first probes."""
    await linked.gateway.keys.change(linked.key_id, rpm=1_000_000)
    await linked.fault("*", "/2/*", {"status": 503}, times=None)
    times: list[float] = []
    ends: dict[tuple[int, str | None], int] = {}

    async def call(n: int) -> None:
        name, body = STORM[n % len(STORM)]
        began = time.perf_counter()
        end = reason(await linked.client.post(API + name, json=body))
        ends[end] = ends.get(end, 0) + 1
        times.append(time.perf_counter() - began)

    before = len(await linked.calls("/2/"))
    for first in range(0, CALLS, CALLERS):
        await asyncio.gather(*(call(n) for n in range(first, first + CALLERS)))
    times.clear()
    for n in range(CALLS // 3):
        await call(n)
    asked = len(await linked.calls("/2/")) - before
    await linked.x.delete("/_sandbox/faults")
    linked.clock.advance(seconds=PROBE_INTERVAL_S)
    probes = [reason(await linked.call(name, body)) for name, body in STORM]
    p50, p99 = (sorted(times)[int(len(times) * share)] * 1000 for share in (0.5, 0.99))
    calls = sum(ends.values())
    record("X fails at everything", calls=calls, to_x=asked, refused_p50_ms=round(p50, 1), refused_p99_ms=round(p99, 1))
    assert asked <= 1.2 * calls
    assert {status for status, _ in ends} <= {502, 409}  # of likes and unlikes of one post, the later ones win
    assert [status for status, _ in probes] == [200, 200, 200, 200, 201]
