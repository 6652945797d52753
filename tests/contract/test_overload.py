"""Overload: rejections are fast and state when to retry, and essential calls are still served."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from birdwire.accounts.refresh import MAX_CONCURRENT
from birdwire.sandbox.app import create_sandbox
from birdwire.sandbox.server import config as sandbox_config
from birdwire.settings import Settings
from birdwire.startup import TOKEN_CONNECTIONS
from harness.gateway import API, RunningGateway, gateway, serving
from harness.raw_http import RawRequest, exchange

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

LIKE = b"POST /2/users/"
EXCHANGE = b"POST /2/oauth2/token"


class Turnstile:
    """What stands before X and lets likes through when it is open."""

    def __init__(self, x_url: str) -> None:
        self._x = urlsplit(x_url)
        self._writers: set[asyncio.StreamWriter] = set()
        self.open = asyncio.Event()
        self._seen = {LIKE: asyncio.Semaphore(0), EXCHANGE: asyncio.Semaphore(0)}
        self.url = ""

    async def seen(self, kind: bytes, times: int) -> None:
        """Wait until this many more have arrived."""
        async with asyncio.timeout(20):
            for _ in range(times):
                await self._seen[kind].acquire()

    @contextlib.asynccontextmanager
    async def standing(self) -> AsyncIterator[Turnstile]:
        """Stand there."""
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            self.open.set()
            server.close()
            for writer in self._writers:
                writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        x_reader, x_writer = await asyncio.open_connection(self._x.hostname, self._x.port)
        self._writers |= {writer, x_writer}
        await asyncio.gather(self._pipe(reader, x_writer), self._pipe(x_reader, writer))

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                for kind in self._seen:
                    if data.startswith(kind):
                        self._seen[kind].release()
                if data.startswith(LIKE):
                    await self.open.wait()
                writer.write(data)
            writer.close()


@contextlib.asynccontextmanager
async def behind(directory: Path, held: int, **options: Any) -> AsyncIterator[tuple[RunningGateway, Turnstile]]:
    """Start a linked gateway with this many likes held on their way to X; all are answered in the end."""
    async with contextlib.AsyncExitStack() as stack:
        sandbox = create_sandbox()
        x_url = await stack.enter_async_context(serving(sandbox_config(sandbox, log_level="error")))
        turnstile = await stack.enter_async_context(Turnstile(x_url).standing())
        running = await stack.enter_async_context(gateway(directory, sandbox, turnstile.url, stack, **options))
        await another_key(running)
        await running.link("ada")
        await turnstile.seen(EXCHANGE, 1)
        likes = [asyncio.create_task(running.like(str(number))) for number in range(held)]
        await turnstile.seen(LIKE, held)
        yield running, turnstile
        turnstile.open.set()
        assert {answer.status_code for answer in await asyncio.gather(*likes)} <= {403, 404}


async def another_key(running: RunningGateway) -> None:
    """Have the client call with a new key."""
    _, raw_key = await running.gateway.keys.create("test", "test key", "growth", None)
    running.client.headers["authorization"] = f"Bearer {raw_key}"


def counted(running: RunningGateway, name: str) -> dict[tuple[str, ...], float]:
    """Return a metric's values by its labels."""
    samples = [sample for family in running.gateway.telemetry.metrics.collect() for sample in family.samples]
    return {tuple(sample.labels.values()): sample.value for sample in samples if sample.name == f"birdwire_{name}"}


async def queued(running: RunningGateway, number: int) -> None:
    """Wait until this many calls are queued."""
    async with asyncio.timeout(20):
        while counted(running, "calls_queued")["calls",] != number:  # noqa: ASYNC110 - it happens in the gateway
            await asyncio.sleep(0)


@pytest.mark.trust("G11")
async def test_the_eleventh_call_of_a_key_waits_and_is_served(tmp_path: Path) -> None:
    """Beyond those that may wait: 429, when to come back, the allowance. Other keys and revocation go on meanwhile."""
    async with behind(tmp_path, 10, max_calls_each=10, max_calls_each_queued=1) as (running, turnstile):
        eleventh = asyncio.create_task(running.like("11"))
        await queued(running, 1)
        answer = await running.like()
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["reason"], error["retryable"], error["whose"]) == (
            *(429, "rate_limit_exceeded", "concurrency_exceeded", True, "caller"),
        )
        assert "at most 11 may run or wait" in error["message"]
        assert answer.headers["retry-after"] == "1"
        assert "x-ratelimit-remaining" in answer.headers
        assert counted(running, "calls_shed_total") == {("full",): 0, ("late",): 0, ("uploads",): 0, ("key",): 1}
        assert (await running.status())["linked"] is True
        own = running.client.headers["authorization"]
        await another_key(running)
        assert (await running.like()).json()["error"]["reason"] == "x_not_linked"
        running.client.headers["authorization"] = own
        assert not eleventh.done()
        turnstile.open.set()
        assert (await eleventh).json()["error"]["reason"] == "tweet_not_found"
        assert (await running.call("unlink_twitter")).json() == {"data": {"linked": False}}


KEYS, CALLERS, LIKES = 8, 20, 5


async def test_keys_with_more_callers_than_may_run_are_all_served(tmp_path: Path) -> None:
    """By the default bounds: 8 starter keys, each with 20 callers, while X takes 300 ms for a like."""
    defaults = {name: Settings.model_fields[name].default for name in ("max_calls", "max_calls_each")}
    async with RunningGateway.built(tmp_path, **defaults) as running:
        await running.configure(likes_per_15m=1_000_000, likes_per_24h=1_000_000)
        posts = [{"author": "grace", "text": f"number {number}", "id": str(number)} for number in range(1, 161)]
        (await running.x.post("/_sandbox/seed", json={"posts": posts})).raise_for_status()
        raw_keys = []
        for _ in range(KEYS):
            _, raw_key = await running.gateway.keys.create("test", "test key", "starter", None)
            running.client.headers["authorization"] = f"Bearer {raw_key}"
            await running.link("ada")
            raw_keys.append(raw_key)
        await running.fault("POST", "/2/users/*/likes", {"delay_s": 0.3}, times=None)

        async def caller(number: int) -> list[int]:
            sent = RawRequest(json.dumps({"tweet_id": posts[number]["id"]}).encode())
            return [(await exchange(running, sent, raw_keys[number % KEYS])).status for _ in range(LIKES)]

        statuses = await asyncio.gather(*(caller(number) for number in range(KEYS * CALLERS)))
        assert not any(counted(running, "calls_shed_total").values())
    assert Counter(status for those in statuses for status in those) == {200: KEYS * CALLERS * LIKES}


async def test_no_key_is_looked_up_when_all_places_and_turns_are_taken(tmp_path: Path) -> None:
    """The refusal comes before the key is read, so it is cheap; health, status and revocation have their own lane."""
    async with behind(tmp_path, 2, max_calls=2, max_calls_queued=0) as (running, _):
        answer = await running.bare.post(API + "like_twitter", json={"tweet_id": "1"})
        assert (answer.status_code, answer.json()["error"]["reason"]) == (503, "overloaded")
        assert "x-ratelimit-limit" not in answer.headers
        assert (await running.bare.get("/readyz")).status_code == 200
        assert (await running.status())["linked"] is True
        assert (await running.call("unlink_twitter")).status_code == 200


async def test_calls_that_fill_the_way_to_x_do_not_keep_tokens_from_it(tmp_path: Path) -> None:
    """Links, renewals and revocations have connections of their own."""
    async with behind(tmp_path, 1, x_connections=1) as (running, turnstile):
        await another_key(running)
        linking = asyncio.create_task(running.link("grace"))  # the code is exchanged; then X is asked who this is
        await turnstile.seen(EXCHANGE, 1)
        turnstile.open.set()
        assert (await linking).status_code == 200


async def test_calls_wait_for_a_connection_to_x_as_long_as_for_their_turn(tmp_path: Path) -> None:
    """More may run than X has connections for: then a slow X makes calls slow, and refuses none."""
    async with behind(tmp_path, 1, x_connections=1) as (running, turnstile):
        second = asyncio.create_task(running.like("2"))
        done, _ = await asyncio.wait({second}, timeout=1.2)
        assert not done
        turnstile.open.set()
        assert (await second).json()["error"]["reason"] == "tweet_not_found"


def test_tokens_find_a_connection_alongside_all_renewals() -> None:
    """A link and a revocation wait for none of them."""
    assert TOKEN_CONNECTIONS > MAX_CONCURRENT
