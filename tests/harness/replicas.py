"""Several gateway processes on one PostgreSQL, one Redis and one sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2

from birdwire.keys.registry import Keys
from birdwire.runtime.clock import Clock
from birdwire.sandbox.app import create_sandbox
from birdwire.sandbox.server import config as sandbox_config
from birdwire.store.database import Database
from birdwire.store.encryption.key_files import create_key_file
from harness.gateway import API, CONNECTIONS, POST, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from harness.engines import Postgres, Redis

PROGRAM = Path(sys.executable).with_name("birdwire")
START_S = 60
END_S = 45
NOWHERE = "http://127.0.0.1:9"
"""The public URL, where nothing listens: a test sends each callback to the replica it chooses."""

METRICS_TOKEN = "cluster-metrics-token"
PLENTY = 1_000_000
UNLIKE = "DELETE /2/users/{id}/likes/{tweet_id}"
NO_LIMITS = {"likes_per_15m": PLENTY, "likes_per_24h": PLENTY, "limits": {"GET /2/users/me": PLENTY, UNLIKE: PLENTY}}


@dataclass
class Replica:
    """One `birdwire serve` process, which logs to a file."""

    process: asyncio.subprocess.Process
    url: str
    log: Path

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal unless the process has exited, wait for the exit, and return the exit code."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), END_S)


@dataclass
class Cluster:
    """The replicas and their clients. `keys` works on the database as the command line does."""

    folder: Path
    environment: dict[str, str]
    keys: Keys
    x: httpx2.AsyncClient
    client: httpx2.AsyncClient
    replicas: list[Replica] = field(default_factory=list)
    _callers: Iterator[int] = field(default_factory=itertools.count)

    @classmethod
    @contextlib.asynccontextmanager
    async def built(
        cls, folder: Path, postgres: Postgres, redis: Redis | None, replicas: int = 3, **settings: str
    ) -> AsyncIterator[Cluster]:
        """Migrate a new database, start the replicas, and stop them. `settings` are the gateways', in upper case."""
        async with contextlib.AsyncExitStack() as stack:
            sandbox = create_sandbox()
            x_url = await stack.enter_async_context(serving(sandbox_config(sandbox, log_level="error")))
            create_key_file(folder / "vault.key")
            given = {
                "DATABASE_URL": postgres.database(),
                "VAULT_KEY_FILE": str(folder / "vault.key"),
                "PUBLIC_URL": NOWHERE,
                "X_API_URL": x_url,
                "X_AUTHORIZE_URL": f"{x_url}/i/oauth2/authorize",
                "X_CLIENT_ID": sandbox.state.clients.client_id,
                "X_CLIENT_SECRET": sandbox.state.clients.client_secret,
                "TRUSTED_PROXIES": "127.0.0.1",
                "METRICS_TOKEN": METRICS_TOKEN,
                **({"REDIS_URL": redis.url} if redis else {}),
                **settings,
            }
            environment = {f"BIRDWIRE_{name}": value for name, value in given.items()}
            environment["PATH"] = os.environ.get("PATH", "")
            database = Database(given["DATABASE_URL"])
            stack.push_async_callback(database.close)
            await database.prepare(upgrade=True)
            x = await stack.enter_async_context(httpx2.AsyncClient(base_url=x_url, timeout=30, limits=CONNECTIONS))
            (await x.post("/_sandbox/config", json=NO_LIMITS)).raise_for_status()
            client = await stack.enter_async_context(httpx2.AsyncClient(timeout=30, limits=CONNECTIONS))
            cluster = cls(folder, environment, Keys(database, Clock()), x, client)
            stack.push_async_callback(cluster.close)
            cluster.replicas += await asyncio.gather(*(cluster.start(str(number)) for number in range(replicas)))
            yield cluster

    async def start(self, name: str, port: int = 0, **settings: str) -> Replica:
        """Start one more gateway, on a free port or the given one, and return once it answers."""
        log = self.folder / f"{name}.log"
        with log.open("ab") as stderr:
            process = await asyncio.create_subprocess_exec(
                *(PROGRAM, "serve", "--json", "--port", str(port)),
                env=self.environment | {f"BIRDWIRE_{name}": value for name, value in settings.items()},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
            )
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), START_S)
        assert line, log.read_text()
        return Replica(process, json.loads(line)["gateway"], log)

    async def close(self) -> None:
        """Kill every gateway."""
        await asyncio.gather(*(replica.end(signal.SIGKILL) for replica in self.replicas))

    async def key(self, rpm: int = 100_000) -> tuple[str, dict[str, str]]:
        """Create a key; return its id and a caller's headers: the key and a unique address."""
        key, raw_key = await self.keys.create("test", "test key", "growth", rpm)
        address = ip_address("10.0.0.0") + next(self._callers)
        return key.key_id, {"authorization": f"Bearer {raw_key}", "x-forwarded-for": str(address)}

    async def link(self, headers: dict[str, str], *, begin: int = 0, end: int = 0, username: str = "ada") -> None:
        """Link an account to a key, replacing any other; started at one replica, called back at another."""
        back = await self.consent(headers, begin=begin, username=username)
        answer = await self.client.get(f"{self.replicas[end].url}{back}")
        assert answer.status_code == 200, answer.text
        # Each link stands for a browser of its own: the undo cookies of hundreds would not fit into one head.
        self.client.cookies.clear()

    async def consent(self, headers: dict[str, str], *, begin: int = 0, username: str = "ada") -> str:
        """Start a link at one replica, approve it, and return the callback's path and query."""
        body = {"expected_username": username}
        started = await self.client.post(self.at(begin, "auth_twitter"), headers=headers, json=body)
        decision = {"auth_url": started.json()["auth_url"], "username": username, "action": "allow"}
        back = urlsplit((await self.x.post("/_sandbox/consent", json=decision)).json()["redirect_to"])
        return f"{back.path}?{back.query}"

    async def like(self, replica: int, headers: dict[str, str]) -> httpx2.Response:
        """Like a post through one replica."""
        return await self.client.post(self.at(replica, "like_twitter"), headers=headers, json={"tweet_id": POST})

    async def status(self, replica: int, headers: dict[str, str]) -> httpx2.Response:
        """Request auth/status from one replica."""
        return await self.client.get(self.at(replica, "auth/status"), headers=headers)

    async def ready(self, replica: int) -> httpx2.Response:
        """Request /readyz from one replica."""
        return await self.client.get(f"{self.replicas[replica].url}/readyz")

    async def metric(self, replica: int, name: str) -> float:
        """Return one replica's value of a metric without labels."""
        answer = await self.client.get(
            f"{self.replicas[replica].url}/metrics", headers={"authorization": f"Bearer {METRICS_TOKEN}"}
        )
        return next(float(line.split()[1]) for line in answer.text.splitlines() if line.startswith(f"{name} "))

    def at(self, replica: int, name: str) -> str:
        """Return the URL of an API endpoint at one replica."""
        return f"{self.replicas[replica].url}{API}{name}"

    def lines(self, replica: int) -> list[dict[str, Any]]:
        """Return the lines that a replica has logged."""
        return [json.loads(line) for line in self.replicas[replica].log.read_text().splitlines()]
