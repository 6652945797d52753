"""Many sessions that expire together, many callers, several replicas: one refresh for each, and no caller notices."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import os
import secrets
import signal
import socket
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import httpx2
import pytest
from sqlalchemy import insert

from birdwire.accounts.tokens import Binding, SealedTokens
from birdwire.keys.secrets import mint
from birdwire.runtime.clock import Clock
from birdwire.store.database import Database
from birdwire.store.encryption.key_files import read_key_file
from birdwire.store.encryption.vault import Vault
from birdwire.store.tables.api_keys import api_keys, api_secrets
from birdwire.store.tables.x_sessions import x_sessions
from birdwire.x.client.auth_server import DEFAULT_SCOPES, Tokens
from harness.fault_scale import record, scaled
from harness.gateway import API, POST
from harness.linking import query_of
from harness.processes import TOKEN, Deployment, GatewayProcess, deploy

if TYPE_CHECKING:
    from pathlib import Path

    from harness.engines import Postgres, Redis

SESSIONS = scaled("SESSIONS", 30, 1_000)
CALLERS = scaled("CALLERS", 5, 20)
REPLICAS = scaled("REPLICAS", 2, 3)
FREEZE_S = scaled("FREEZE_S", 1, 60)
AT_ONCE = scaled("AT_ONCE", 30, 150)
"""Concurrent calls over all replicas, below their own caps."""

pytestmark = pytest.mark.timeout(120 + FREEZE_S + SESSIONS * CALLERS)


async def approved(deployment: Deployment) -> Tokens:
    """A pair that X gives for an approval, without a gateway."""
    verifier = secrets.token_urlsafe(32)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    clients, redirect_uri = deployment.sandbox.state.clients, "http://127.0.0.1:9/callback"
    asked = {
        "response_type": "code",
        "client_id": clients.client_id,
        "redirect_uri": redirect_uri,
        "scope": " ".join(DEFAULT_SCOPES),
        "state": "state",
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    decision = {
        "auth_url": f"{deployment.x_url}/i/oauth2/authorize?{urlencode(asked)}",
        "username": "ada",
        "action": "allow",
    }
    answer = (await deployment.x.post("/_sandbox/consent", json=decision)).raise_for_status().json()
    form = {
        "grant_type": "authorization_code",
        "code": query_of(answer["redirect_to"])["code"],
        "redirect_uri": redirect_uri,
        "code_verifier": verifier,
    }
    told = await deployment.x.post(TOKEN, data=form, auth=(clients.client_id, clients.client_secret))
    pair = told.raise_for_status().json()
    return Tokens(pair["access_token"], pair["refresh_token"], pair["expires_in"], tuple(pair["scope"].split()))


async def populate(deployment: Deployment, number: int, left: timedelta) -> list[str]:
    """Create linked keys whose access tokens expire in this time by the gateways' clocks; return the raw keys."""
    vault, now = Vault(read_key_file(deployment.directory / "vault.key")), Clock().now()
    pairs, raw_keys = SealedTokens(vault, Clock()), [mint("test", os.urandom(32)) for _ in range(number)]
    rows: list[list[dict[str, object]]] = [[], [], []]
    for index, raw_key in enumerate(raw_keys):
        key_id, session_id = f"key_{index:026}", f"xs_{index:026}"
        key: dict[str, object] = {
            "key_id": key_id,
            "mode": "test",
            "label": "one of many",
            "tier": "custom",
            "rpm": 1_000_000,
        }
        secret: dict[str, object] = {
            "secret_hash": hashlib.sha256(raw_key.encode()).digest(),
            "key_id": key_id,
            "hint": raw_key[-4:],
        }
        session: dict[str, object] = {
            "session_id": session_id,
            "key_id": key_id,
            "issuer": "sandbox",
            "state": "active",
            "user_id": "2244994945",
            "scopes": " ".join(DEFAULT_SCOPES),
            "username": "ada",
            "linked_at": now,
        }
        binding = Binding(session_id, key_id, "sandbox", "2244994945")
        session |= pairs.seal(binding, 1, await approved(deployment)) | {"expires_at": now + left}
        for row, many in zip((key, secret, session), rows, strict=True):
            many.append({**row, "created_at": now - timedelta(hours=1)})
    database = Database(deployment.database_url)
    try:
        async with database.write() as connection:
            for table, many in zip((api_keys, api_secrets, x_sessions), rows, strict=True):
                await connection.execute(insert(table), many)
    finally:
        await database.close()
    return raw_keys


def flush(redis: Redis) -> None:
    """Empty it."""
    with socket.create_connection(("127.0.0.1", redis.port)) as line:
        line.sendall(b"FLUSHALL\r\n")
        assert line.recv(64).startswith(b"+OK")


class Storm:
    """Calls at several replicas, and what came of them."""

    def __init__(self, deployment: Deployment, replicas: list[GatewayProcess]) -> None:
        self.deployment = deployment
        self.replicas = replicas
        self.client = deployment.client
        self.answers: Counter[str] = Counter()
        self.refreshes: Counter[int | None] = Counter()
        self.posts = itertools.cycle([POST])
        self._seen = 0

    async def call(self, number: int, raw_key: str) -> None:
        """One like at one of the replicas."""
        at = self.replicas[number % len(self.replicas)]
        headers = {"authorization": f"Bearer {raw_key}"}
        answer = await self.client.post(
            f"{at.url}{API}like_twitter", json={"tweet_id": next(self.posts)}, headers=headers
        )
        self.answers["200" if answer.status_code == 200 else answer.json()["error"]["reason"]] += 1
        if sum(self.answers.values()) % 1_000 == 0:
            await self.count()

    async def count(self) -> None:
        """Look at what X was asked since: it keeps the last 10,000 calls only."""
        answer = await self.deployment.x.get("/_sandbox/calls", params={"since": self._seen})
        for call in answer.json()["calls"]:
            self._seen = max(self._seen, call["n"])
            if call["path"] == TOKEN and call.get("grant_type") == "refresh_token":
                self.refreshes[call["status"]] += 1

    async def rage(self, raw_keys: list[str]) -> None:
        """Run every key's callers, key by key, as many concurrently as the caps allow.

        All act as one account, whose likes of one post would run one after another: so each is of the next post.
        """
        state = (await self.deployment.x.get("/_sandbox/state")).json()
        hidden = {user["id"] for user in state["users"] if user["protected"] or user["suspended"]}
        seen = [post["id"] for post in state["posts"] if not post["deleted"] and post["author_id"] not in hidden]
        self.posts = itertools.cycle(seen)
        waiting = iter([(caller, raw_key) for raw_key in raw_keys for caller in range(CALLERS)])

        async def worker() -> None:
            for number, raw_key in waiting:
                await self.call(number, raw_key)

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
        await self.count()


@pytest.mark.trust("G1", "F36", "F37", "F19")
async def test_x_is_asked_once_for_each_session(tmp_path: Path, postgres: Postgres, redis: Redis) -> None:
    """All expire together while Redis is flushed. No used token is sent twice, and no caller sees an error."""
    async with deploy(tmp_path, postgres.database()) as deployment:
        settings = {"redis_url": redis.url, "max_calls_each": "100", "max_calls_queued": "500"}
        replicas = [await deployment.serve(**settings) for _ in range(REPLICAS)]
        raw_keys = await populate(deployment, SESSIONS, -timedelta(seconds=1))
        storm = Storm(deployment, replicas)
        raging = asyncio.create_task(storm.rage(raw_keys))
        async with asyncio.timeout(3_600):
            while sum(storm.answers.values()) < SESSIONS * CALLERS // 2:  # noqa: ASYNC110 - it happens elsewhere
                await asyncio.sleep(0)
        await asyncio.to_thread(flush, redis)
        await raging
        record(
            "sessions that end at once, PostgreSQL and Redis",
            sessions=SESSIONS,
            calls=SESSIONS * CALLERS,
            replicas=str(REPLICAS),
            refreshes=sum(storm.refreshes.values()),
            spent_tokens_presented=sum(storm.refreshes.values()) - storm.refreshes[200],
            caller_errors=sum(storm.answers.values()) - storm.answers["200"],
        )
        assert storm.answers == {"200": SESSIONS * CALLERS}
        assert storm.refreshes == {200: SESSIONS}


@pytest.mark.trust("G1", "F38")
async def test_a_frozen_replica_does_not_affect_the_others(tmp_path: Path, postgres: Postgres) -> None:
    """Stopped with its claims, in the early window: the others serve on; late, it writes its own or nothing."""
    async with deploy(tmp_path, postgres.database()) as deployment:
        frozen = await deployment.serve(failpoints="refresh_after_claim=delay(0.5)")
        others = [await deployment.serve() for _ in range(REPLICAS - 1)]
        raw_keys = await populate(deployment, 10, timedelta(minutes=10))
        first, rest = Storm(deployment, [frozen]), Storm(deployment, others)
        await asyncio.gather(*(first.call(0, raw_key) for raw_key in raw_keys))
        frozen.signal(signal.SIGSTOP)
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + FREEZE_S
        while loop.time() < ends_at:
            await asyncio.gather(*(rest.call(number, raw_key) for number, raw_key in enumerate(raw_keys)))
        frozen.signal(signal.SIGCONT)
        async with asyncio.timeout(60):
            while set(await generations(deployment)) != {2}:
                await asyncio.gather(*(rest.call(number, raw_key) for number, raw_key in enumerate(raw_keys)))
        async with httpx2.AsyncClient(timeout=60) as first.client:  # those from before have been idle too long
            await asyncio.gather(*(first.call(0, raw_key) for raw_key in raw_keys))
        await rest.count()
        record(
            "a replica stopped with ten claims, and let go",
            seconds=str(FREEZE_S),
            calls=sum(rest.answers.values()),
            caller_errors=sum(rest.answers.values()) - rest.answers["200"],
            refreshes=sum(rest.refreshes.values()),
            spent_tokens_presented=sum(rest.refreshes.values()) - rest.refreshes[200],
        )
        assert set(rest.answers) == set(first.answers) == {"200"}
        assert rest.refreshes == {200: 10}


async def generations(deployment: Deployment) -> list[int]:
    """Of every link."""
    database = Database(deployment.database_url)
    try:
        async with database.read() as connection:
            return list((await connection.execute(x_sessions.select().with_only_columns(x_sessions.c.gen))).scalars())
    finally:
        await database.close()
