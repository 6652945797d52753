"""Real `birdwire serve` processes on one database with a sandbox, for tests that kill, freeze and restart them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2

from birdwire.keys.registry import Keys
from birdwire.runtime.clock import Clock
from birdwire.sandbox.app import create_sandbox
from birdwire.sandbox.server import config as sandbox_config
from birdwire.store.database import Database
from birdwire.store.encryption.key_files import create_key_file
from harness.gateway import API, CONNECTIONS, POST, bound, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

START_S = 60.0
TOKEN = "/2/oauth2/token"
REFRESH = "refresh_token"


def environment(**given: str) -> dict[str, str]:
    """Return an environment with these settings and none of this machine's own Birdwire settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BIRDWIRE_")}
    return kept | {f"BIRDWIRE_{name.upper()}": value for name, value in given.items()}


@dataclass
class GatewayProcess:
    """One gateway process and its log."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process."""
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for the process to exit and return its exit code."""
        return await asyncio.to_thread(self.process.wait, START_S)

    async def kill(self) -> None:
        """Kill the process, as a power cut would."""
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        await self.ended()


@dataclass
class Deployment:
    """A database, a vault key, a sandbox, and any number of gateways. `x` calls the sandbox."""

    directory: Path
    database_url: str
    sandbox: Any
    x_url: str
    x: httpx2.AsyncClient
    client: httpx2.AsyncClient
    served: list[GatewayProcess] = field(default_factory=list)
    raw_keys: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def settings(self) -> dict[str, str]:
        """The settings of every gateway and command of the deployment."""
        clients = self.sandbox.state.clients
        return {
            "database_url": self.database_url,
            "vault_key_file": str(self.directory / "vault.key"),
            "x_client_id": clients.client_id,
            "x_client_secret": clients.client_secret,
            "x_api_url": self.x_url,
            "x_authorize_url": f"{self.x_url}/i/oauth2/authorize",
        }

    async def serve(self, *launcher: str, **settings: str) -> GatewayProcess:
        """Start a gateway, through a launcher if one is given, and return once it answers. All share one public URL."""
        log = self.directory / f"serve-{len(self.served)}.log"
        # Only the first port must be known beforehand, for the public URL: another process may take one that was freed.
        port = 0
        if not self.port:
            with bound() as listener:
                self.port = port = listener.getsockname()[1]
        given = {"public_url": f"http://127.0.0.1:{self.port}"} | self.settings | settings
        with log.open("wb") as stderr:
            process = subprocess.Popen(  # noqa: ASYNC220, S603 - the test ends it, and it is our own program
                [*launcher, sys.executable, "-m", "birdwire.cli", "serve", "--json", "--port", str(port)],
                env=environment(**given),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )
        assert process.stdout is not None
        with process.stdout:
            line = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), START_S)
        if b'"gateway"' not in line:
            process.kill()
            await asyncio.to_thread(process.wait, START_S)
            raise ChildProcessError(line.decode() + log.read_text())
        started = GatewayProcess(process, str(json.loads(line)["gateway"]), log)
        self.served.append(started)
        return started

    async def key(self, label: str = "test", rpm: int = 1_000_000) -> str:
        """Create an API key in the database and return it."""
        database = Database(self.database_url)
        try:
            await database.prepare(upgrade=False)
            _, raw_key = await Keys(database, Clock()).create("test", label, "custom", rpm)
        finally:
            await database.close()
        self.raw_keys.append(raw_key)
        return raw_key

    async def call(self, at: GatewayProcess, name: str, body: object = None, **headers: str) -> httpx2.Response:
        """POST to an endpoint with the first key, or with another Authorization header."""
        given = {"authorization": f"Bearer {self.raw_keys[0]}", **headers}
        return await self.client.post(at.url + API + name, json=body or {}, headers=given)

    async def like(self, at: GatewayProcess) -> httpx2.Response:
        """Like a post with the first key."""
        return await self.call(at, "like_twitter", {"tweet_id": POST})

    async def status(self, at: GatewayProcess) -> dict[str, Any]:
        """Return the answer of auth/status to the first key."""
        headers = {"authorization": f"Bearer {self.raw_keys[0]}"}
        return dict((await self.client.get(f"{at.url}{API}auth/status", headers=headers)).json())

    async def consent(self, at: GatewayProcess, username: str = "ada", **headers: str) -> str:
        """Start a link, approve it, and return the callback URL at this gateway."""
        auth_url = (await self.call(at, "auth_twitter", **headers)).raise_for_status().json()["auth_url"]
        decision = {"auth_url": auth_url, "username": username, "action": "allow"}
        answer = (await self.x.post("/_sandbox/consent", json=decision)).raise_for_status()
        return at.url + "/" + str(answer.json()["redirect_to"]).split("/", 3)[3]

    async def link(self, at: GatewayProcess, username: str = "ada", **headers: str) -> None:
        """Link an account to the first key, or to another."""
        (await self.client.get(await self.consent(at, username, **headers))).raise_for_status()

    async def refreshes(self) -> list[dict[str, Any]]:
        """Return the refresh calls that X received."""
        calls = (await self.x.get("/_sandbox/calls")).json()["calls"]
        return [call for call in calls if call["path"] == TOKEN and call.get("grant_type") == REFRESH]

    async def expire(self) -> None:
        """Expire every access token at X; the gateways learn of it from the next 401."""
        (await self.x.post("/_sandbox/clock", json={"advance_s": 7_300})).raise_for_status()

    async def fault(self, path: str, do: dict[str, Any], times: int | None = 1) -> None:
        """Add a fault to an endpoint of the sandbox."""
        body = {"match": {"method": "POST", "path": path}, "times": times, "do": do}
        (await self.x.post("/_sandbox/faults", json=body)).raise_for_status()

    def expire_leases(self) -> None:
        """Move the start of running refreshes back by an hour, so that their leases have expired; SQLite only."""
        connection = sqlite3.connect(self.directory / "birdwire.db", timeout=30)
        with contextlib.closing(connection), connection:
            connection.execute("UPDATE x_sessions SET presented_at = presented_at - 3600000000")

    async def command(self, *words: str, **settings: str) -> tuple[int, Any]:
        """Run a command in a separate process; return its exit code (negative for a signal) and its JSON document."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "birdwire.cli",
            *words,
            "--json",
            env=environment(**(self.settings | settings)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, _ = await asyncio.wait_for(process.communicate(), START_S)
        code = process.returncode
        assert code is not None
        return code, json.loads(out) if out else None


@contextlib.asynccontextmanager
async def deploy(directory: Path, database_url: str | None = None) -> AsyncIterator[Deployment]:
    """Start a sandbox with one API key, and kill every started process at the end."""
    create_key_file(directory / "vault.key")
    sandbox = create_sandbox()
    url = database_url or f"sqlite:///{directory / 'birdwire.db'}"
    async with (
        serving(sandbox_config(sandbox, log_level="error")) as x_url,
        httpx2.AsyncClient(base_url=x_url, timeout=60, limits=CONNECTIONS) as x,
        httpx2.AsyncClient(timeout=60, limits=CONNECTIONS) as client,
    ):
        made = Deployment(directory, url, sandbox, x_url, x, client)
        await made.key()
        plenty = dict.fromkeys(("likes_per_15m", "likes_per_24h", "posts_per_15m", "posts_per_24h"), 1_000_000)
        (await x.post("/_sandbox/config", json=plenty)).raise_for_status()
        try:
            yield made
        finally:
            for one in made.served:
                await one.kill()
