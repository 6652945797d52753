"""Shared limits with a slow, unavailable, recovered or faulty Redis: calls are answered within the replica's share."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import socket
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from birdwire.keys.redis_rate_limit import SharedRateLimit
from birdwire.runtime.telemetry import Telemetry
from birdwire.sandbox.control.tcp_proxy import TcpProxy, Toxics
from harness.gateway import API, MovableClock, RunningGateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from birdwire.keys.rate_limit import RateLimit
    from harness.engines import Redis

PATIENT_S = 20.0
DEGRADED = "x-ratelimit-degraded"


@contextlib.asynccontextmanager
async def shared(url: str, log: io.StringIO | None = None, **options: Any) -> AsyncIterator[SharedRateLimit]:
    """A replica's limits."""
    clock = MovableClock()
    limits = SharedRateLimit(url, clock, Telemetry(log or io.StringIO(), clock), **options)
    await limits.start()
    try:
        yield limits
    finally:
        await limits.close()


@contextlib.asynccontextmanager
async def proxied(redis: Redis) -> AsyncIterator[tuple[TcpProxy, str]]:
    """A line to Redis that can be made to suffer, and the URL through it."""
    listener = socket.create_server(("127.0.0.1", 0))
    proxy = TcpProxy(listener, ("127.0.0.1", redis.port))
    await proxy.open()
    try:
        yield proxy, f"redis://127.0.0.1:{proxy.port}/0"
    finally:
        await proxy.close()


@contextlib.asynccontextmanager
async def mad(
    answer: Callable[[bytes], bytes], tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers whatever it gets in its own way; its URL, and what it got."""
    got: list[bytes] = []
    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                got.append(data)
                writer.write(answer(data))
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        port = server.sockets[0].getsockname()[1]
        yield f"{'redis' if tls is None else 'rediss'}://127.0.0.1:{port}", got
    finally:
        server.close()
        await asyncio.gather(*filter(None, serving))


def certificate(directory: Path) -> Path:
    """Create a self-signed certificate for this machine, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = directory / "certificate.pem"
    path.write_bytes(made.public_bytes(Encoding.PEM) + private)
    return path


async def until(limits: RateLimit, *, local: bool, within_s: float = 20.0) -> None:
    """Wait until answers are of this kind."""
    async with asyncio.timeout(within_s):
        while (await limits.take("key_probe", 1_000_000)).local is not local:  # noqa: ASYNC110 - so a caller sees it
            await asyncio.sleep(0.001)


async def seen(condition: Callable[[], bool]) -> None:
    """Wait for a condition that another task fulfils."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.001)


async def granted(limits: RateLimit, times: int, rpm: int) -> int:
    """Make this many calls without the shared counters, and return how many are granted."""
    answers = [await limits.take("key_a", rpm) for _ in range(times)]
    assert all(answer.local for answer in answers)
    return sum(answer.granted for answer in answers)


@pytest.mark.trust("F18")
async def test_without_redis_each_replica_grants_its_share(redis: Redis) -> None:
    """The limit by the replicas last seen, rounded down; and within five seconds of its return all is exact again."""
    redis.ask("FLUSHALL")
    async with contextlib.AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(shared(redis.url)) for _ in range(3)]
        await seen(lambda: {one.replicas for one in replicas} == {3})
        redis.stop()
        try:
            for one in replicas:
                await until(one, local=True)
            assert [await granted(one, 50, 100) for one in replicas] == [33, 33, 33]
            assert [await granted(one, 5, 1) for one in replicas] == [0, 0, 0]  # of this key each granted 33 already
            assert all(one.degraded >= 55 for one in replicas)
            told = await replicas[0].take("key_a", 100)
            assert (told.granted, told.limit, told.remaining) == (False, 33, 0)
            assert (DEGRADED, "local") in told.headers()
            assert (await replicas[0].take("key_small", 2)).granted  # a share is never less than one
        finally:
            redis.start()
        for one in replicas:
            await until(one, local=False, within_s=5)


@pytest.mark.trust("F18")
async def test_calls_that_a_replica_granted_before_count_in_its_share(redis: Redis) -> None:
    """Or every loss of Redis would be a fresh minute."""
    redis.ask("FLUSHALL")
    async with shared(redis.url, budget_s=PATIENT_S) as limits:
        for _ in range(8):
            assert not (await limits.take("key_a", 10)).local
        redis.stop()
        try:
            await until(limits, local=True)
            assert await granted(limits, 5, 10) == 2
        finally:
            redis.start()


@pytest.mark.trust("F18")
async def test_a_replica_that_left_or_died_leaves_its_share(redis: Redis) -> None:
    """A replica that leaves is removed immediately, one that dies after ten seconds without a heartbeat."""
    redis.ask("FLUSHALL")
    async with shared(redis.url, budget_s=PATIENT_S) as stays:
        async with shared(redis.url, budget_s=PATIENT_S):
            assert redis.ask("ZCARD", "birdwire:replicas") == 2
        assert redis.ask("ZCARD", "birdwire:replicas") == 1
        now = int(redis.ask("TIME")[0])
        redis.ask("ZADD", "birdwire:replicas", now - 11, "dead", now - 1, "alive")
        await seen(lambda: stays.replicas == 2)
        assert redis.ask("ZSCORE", "birdwire:replicas", "dead") is None


@pytest.mark.trust("F19")
async def test_a_flushed_redis_starts_counting_again_from_zero(redis: Redis) -> None:
    """Scripts and counts are lost; only a caller that had used up its minute notices."""
    redis.ask("FLUSHALL")
    async with shared(redis.url, budget_s=PATIENT_S) as limits:
        assert [(await limits.take("key_a", 2)).granted for _ in range(3)] == [True, True, False]
        redis.ask("FLUSHALL")
        redis.ask("SCRIPT", "FLUSH")
        answers = [await limits.take("key_a", 2) for _ in range(3)]
        assert [(answer.granted, answer.local) for answer in answers] == [(True, False), (True, False), (False, False)]


@pytest.mark.trust("F20")
async def test_a_slow_redis_is_not_waited_for(redis: Redis) -> None:
    """The answer is there while its reply is still held back; the next ones do not even ask; then all is well again."""
    async with proxied(redis) as (proxy, url), shared(url) as limits:
        await until(limits, local=False)
        await proxy.set(Toxics(latency_s=2))
        before = proxy.carried["down"]
        answers = await asyncio.gather(*(limits.take("key_a", 1_000) for _ in range(20)))
        assert all(answer.local and answer.granted for answer in answers)
        assert proxy.carried["down"] == before
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        assert (await limits.take("key_a", 1_000)).local
        assert turns <= 1
        counting.cancel()
        await proxy.set(Toxics())
        await until(limits, local=False, within_s=5)


@pytest.mark.trust("F20")
async def test_a_line_that_went_dead_is_given_up_for_a_new_one(redis: Redis) -> None:
    """Half open: bytes vanish, and no end comes. A new connection is made, which works."""
    async with proxied(redis) as (proxy, url), shared(url) as limits:
        await until(limits, local=False)
        await proxy.set(Toxics(half_open=True, direction="both"))
        await until(limits, local=True)
        await seen(lambda: proxy.connections >= 2)
        await proxy.set(Toxics())
        await until(limits, local=False)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "garbage"),
        (b"\x00\xff\xfe\r\n", "garbage"),
        (b":1\r\n:1\r\n", "garbage"),
        (b"+OK\r\n", "garbage"),
        (b"*0\r\n", "garbage"),
        (b":0\r\n", "garbage"),
        (b"$-1\r\n", "garbage"),
        (b"$100000000\r\n" + b"x" * 200_000, "too much"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "LOADING"),
        (b"-READONLY You can't write against a read only replica.\r\n", "READONLY"),
        (b"-OOM command not allowed when used memory > 'maxmemory'.\r\n", "OOM"),
        (b"-MOVED 3999 127.0.0.1:6381\r\n", "MOVED"),
        (b"-NOSCRIPT No matching script. Please use EVAL.\r\n", "NOSCRIPT"),
        (b"-canary lower case\r\n", "ERR"),
    ],
)
async def test_a_server_that_talks_nonsense_is_not_believed(reply: bytes, why: str) -> None:
    """Calls are counted here; the log says what was wrong, in one word."""
    log = io.StringIO()
    async with mad(lambda _: reply) as (url, _), shared(url, log) as limits:
        assert await granted(limits, 4, 3) == 3
        await seen(lambda: f'"why":"{why}"' in log.getvalue())
        assert "canary" not in log.getvalue()


async def test_a_nonsensical_grant_is_not_believed() -> None:
    """The beat is answered well, the call is not."""

    def answer(data: bytes) -> bytes:
        return b":2\r\n" if b"birdwire:replicas" in data else b"*4\r\n:7\r\n:1\r\n:1\r\n:1\r\n"

    async with mad(answer) as (url, _), shared(url, budget_s=PATIENT_S) as limits:
        told = await limits.take("key_a", 10)
        assert (told.local, told.limit) == (True, 5)


async def test_an_unreachable_server_delays_no_caller() -> None:
    """A gateway starts without it, and counts alone."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    log = io.StringIO()
    async with shared(f"redis://user:canary@127.0.0.1:{port}/3", log) as limits:
        assert await granted(limits, 20, 10) == 10
        await seen(lambda: bool(log.getvalue()))
        told = json.loads(log.getvalue().splitlines()[0])
        assert (told["event"], told["why"]) == ("limits_local", "ConnectionRefusedError")
        assert "canary" not in log.getvalue() + repr(limits) + repr(vars(limits))


async def test_the_url_gives_user_password_and_database(redis: Redis) -> None:
    """Percent-encoded where they must be; a wrong password is said as such, and not repeated."""
    redis.ask("ACL", "SETUSER", "gate:way", "on", ">p:ss/word", "~*", "+@all")
    log = io.StringIO()
    try:
        url = f"redis://gate%3Away:p%3Ass%2Fword@127.0.0.1:{redis.port}/3"
        async with shared(url, budget_s=PATIENT_S) as limits:
            assert not (await limits.take("key_a", 10)).local
            assert "db3:keys=2" in redis.ask("INFO", "keyspace")
        async with shared(f"redis://gate%3Away:canary@127.0.0.1:{redis.port}/3", log) as limits:
            assert (await limits.take("key_a", 10)).local
        await seen(lambda: '"why":"WRONGPASS"' in log.getvalue())
        assert "canary" not in log.getvalue()
    finally:
        redis.ask("ACL", "DELUSER", "gate:way")


async def test_the_user_that_the_guide_makes_may_do_enough_and_no_more(redis: Redis) -> None:
    """Counting, heartbeats and leaving; no other command and no other key."""
    guide = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    (line,) = re.findall(r"^ +(ACL SETUSER gateway .+)$", guide, re.MULTILINE)
    redis.ask("FLUSHALL")
    redis.ask(*line.replace("PASSWORD", "word").split())
    log = io.StringIO()
    try:
        async with shared(f"redis://gateway:word@127.0.0.1:{redis.port}/2", log, budget_s=PATIENT_S) as limits:
            assert [(await limits.take("key_a", 1)).granted for _ in range(2)] == [True, False]
            assert limits.degraded == 0
            redis.ask("SCRIPT", "FLUSH")
            assert not (await limits.take("key_a", 1)).local
        assert "db2:keys=1," in redis.ask("INFO", "keyspace")  # the beat was taken back
        allowed = redis.ask("ACL", "GETUSER", "gateway")
        assert dict(zip(allowed[::2], allowed[1::2], strict=True))["keys"] == ["birdwire:*"]
    finally:
        redis.ask("ACL", "DELUSER", "gateway")


async def test_a_certificate_that_proves_nothing_gets_no_password(tmp_path: Path) -> None:
    """rediss:// verifies; not a byte is said to a stranger."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate(tmp_path))
    log = io.StringIO()
    async with mad(lambda _: b"+OK\r\n", tls) as (url, got), shared(url.replace("//", "//:canary@"), log) as limits:
        assert (await limits.take("key_a", 10)).local
        await seen(lambda: "SSLCertVerificationError" in log.getvalue())
        assert got == []


async def test_the_number_of_waiting_calls_is_bounded() -> None:
    """A flood at a server that does not answer is counted here, and nothing piles up."""

    def answer(data: bytes) -> bytes:
        return b":1\r\n" if b"birdwire:replicas" in data else b""

    async with mad(answer) as (url, _), shared(url) as limits:
        answers = await asyncio.gather(*(limits.take("key_a", 20_000) for _ in range(12_000)))
        assert all(answer.local and answer.granted for answer in answers)


async def test_a_cancelled_caller_does_not_shift_redis_replies(redis: Redis) -> None:
    """A caller's end leaves its reply unread, and everybody else's in place."""
    redis.ask("FLUSHALL")
    async with shared(redis.url, budget_s=PATIENT_S) as limits:
        await limits.take("key_a", 10)
        gone = asyncio.create_task(limits.take("key_a", 10))
        stays = asyncio.create_task(limits.take("key_b", 7))
        await asyncio.sleep(0)
        gone.cancel()
        assert ((await stays).limit, (await stays).remaining) == (7, 6)
        assert (await limits.take("key_a", 10)).remaining == 7


async def test_an_answer_says_that_it_was_counted_here(tmp_path: Path, redis: Redis) -> None:
    """Over HTTP: the header is on successes and refusals, and absent once Redis is back."""
    redis.ask("FLUSHALL")
    async with RunningGateway.built(tmp_path, rpm=4, redis_url=redis.url) as running:
        redis.stop()
        try:
            async with asyncio.timeout(20):
                while DEGRADED not in (await running.client.get(API + "auth/status")).headers:
                    pass
            statuses = [await running.client.get(API + "auth/status") for _ in range(5)]
            assert {answer.headers[DEGRADED] for answer in statuses} == {"local"}
            assert statuses[-1].status_code == 429
        finally:
            redis.start()
        async with asyncio.timeout(5):
            while DEGRADED in (await running.client.get(API + "auth/status")).headers:
                pass
