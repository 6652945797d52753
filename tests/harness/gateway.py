"""A gateway and a sandbox, each on a real socket in the test's event loop."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import socket
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx2
import uvicorn
from pydantic import SecretStr

from birdwire.app import Gateway, create_app
from birdwire.runtime.clock import Clock
from birdwire.sandbox.app import create_sandbox
from birdwire.sandbox.server import config as sandbox_config
from birdwire.sandbox.state import seed
from birdwire.settings import Settings
from birdwire.store.encryption.key_files import create_key_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path


API = "/apis/v1/twitter/"
POST = seed.VISIBLE_POST_ID
GRACE = seed.OTHER_USER_ID
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


CONNECTIONS = httpx2.Limits(max_connections=500, keepalive_expiry=1)
"""A client closes an idle connection well before the server does (5 s), so that no call meets a closing one."""


class MovableClock(Clock):
    """The real time plus an offset that a test sets."""

    def __init__(self) -> None:
        self.added = timedelta()
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    def unix_s(self) -> float:
        """Return the current time plus the offset."""
        return super().unix_s() + self.added.total_seconds()

    def adjusted(self, at: datetime) -> datetime:
        """Return a time plus the offset."""
        return at + self.added

    def monotonic(self) -> float:
        """Return the monotonic time plus the offset."""
        return super().monotonic() + self.added.total_seconds()

    async def pause(self, longest_s: float) -> None:
        """Advance by the whole pause without waiting, and run `meanwhile`."""
        self.advance(seconds=longest_s)
        await (self.meanwhile or _nothing)()

    def advance(self, **by: float) -> None:
        """Advance by the arguments of a timedelta."""
        self.added += timedelta(**by)


async def _nothing() -> None:
    await asyncio.sleep(0)


@dataclass
class RunningGateway:
    """A running gateway and its sandbox. `client` sends the key, `bare` sends none, `x` calls the sandbox."""

    directory: Path
    settings: Settings
    gateway: Gateway
    sandbox: Any
    clock: MovableClock
    log: io.StringIO
    client: httpx2.AsyncClient
    bare: httpx2.AsyncClient
    x: httpx2.AsyncClient
    key_id: str = ""
    raw_key: str = ""
    secrets: list[str] = field(default_factory=list)

    @classmethod
    @contextlib.asynccontextmanager
    async def built(
        cls, directory: Path, *, rpm: int | None = None, public: bool = False, **options: Any
    ) -> AsyncIterator[RunningGateway]:
        """Start both, create a key, and stop both at the end. `public`: the gateway is a public client of X."""
        async with contextlib.AsyncExitStack() as stack:
            sandbox = create_sandbox()
            x_url = await stack.enter_async_context(serving(sandbox_config(sandbox, log_level="error")))
            async with gateway(directory, sandbox, x_url, stack, public=public, **options) as running:
                key, running.raw_key = await running.gateway.keys.create("test", "test key", "growth", rpm)
                running.key_id = key.key_id
                running.client.headers["authorization"] = f"Bearer {running.raw_key}"
                yield running

    async def call(self, name: str, body: object = None, **options: Any) -> httpx2.Response:
        """POST to an endpoint of the API, with a JSON body if one is given."""
        if body is not None:
            options["json"] = body
        return await self.client.post(API + name, **options)

    async def like(self, tweet_id: str = POST) -> httpx2.Response:
        """Like a post."""
        return await self.call("like_twitter", {"tweet_id": tweet_id})

    async def status(self) -> dict[str, Any]:
        """Return the answer of auth/status."""
        return dict((await self.client.get(API + "auth/status")).json())

    async def consent(self, username: str, action: str = "allow", body: object = None, **more: Any) -> str:
        """Start a link, decide on X's page, and return the URL that X redirects to."""
        auth_url = (await self.call("auth_twitter", body)).raise_for_status().json()["auth_url"]
        decision = {"auth_url": auth_url, "username": username, "action": action, **more}
        answer = (await self.x.post("/_sandbox/consent", json=decision)).raise_for_status()
        return str(answer.json()["redirect_to"])

    async def link(self, username: str = "ada", body: object = None, **more: Any) -> httpx2.Response:
        """Link an account to the key and return the callback's answer."""
        return await self.bare.get(await self.consent(username, body=body, **more), headers={"accept": "text/html"})

    async def calls(self, path: str = "", **like: str) -> list[dict[str, Any]]:
        """Return the calls that X received at a path with these members."""
        calls = (await self.x.get("/_sandbox/calls")).json()["calls"]
        return [call for call in calls if call["path"].startswith(path) and like.items() <= call.items()]

    async def state(self) -> dict[str, Any]:
        """Return the sandbox's state."""
        return dict((await self.x.get("/_sandbox/state")).json())

    async def post_of(self, post_id: str) -> dict[str, Any]:
        """Return a post as the sandbox stores it."""
        return dict(next(post for post in (await self.state())["posts"] if post["id"] == post_id))

    async def fault(self, method: str, path: str, do: dict[str, Any], times: int | None = 1) -> None:
        """Add a fault to an endpoint of the sandbox."""
        body = {"match": {"method": method, "path": path}, "times": times, "do": do}
        (await self.x.post("/_sandbox/faults", json=body)).raise_for_status()

    async def configure(self, **options: Any) -> None:
        """Change the sandbox's configuration."""
        (await self.x.post("/_sandbox/config", json=options)).raise_for_status()

    async def advance_x(self, seconds: float) -> None:
        """Advance the sandbox's clock."""
        (await self.x.post("/_sandbox/clock", json={"advance_s": seconds})).raise_for_status()


@contextlib.asynccontextmanager
async def gateway(
    directory: Path,
    sandbox: Any,
    x_url: str,
    stack: contextlib.AsyncExitStack,
    *,
    public: bool = False,
    lane: bool = True,
    port: int = 0,
    **options: Any,
) -> AsyncIterator[RunningGateway]:
    """Start a gateway in a new or used directory for a running sandbox; without the `lane` the app serves alone.

    A gateway that restarts listens on the `port` that it had.
    """
    key_file = directory / "vault.key"
    if not key_file.exists():
        create_key_file(key_file)
    listener = bound(port)
    url = address(listener)
    clients = sandbox.state.clients
    given = {
        "public_url": url,
        "database_url": f"sqlite:///{directory / 'birdwire.db'}",
        "vault_key_file": key_file,
        "x_client_id": clients.public_client_id if public else clients.client_id,
        "x_client_secret": None if public else SecretStr(clients.client_secret),
        "x_api_url": x_url,
        "x_authorize_url": f"{x_url}/i/oauth2/authorize",
        # Concurrent calls in tests are not an overload unless a test sets lower limits.
        "max_calls": 1_000,
        "max_calls_each": 1_000,
    }
    settings = Settings.model_validate(given | options)
    clock, log = MovableClock(), io.StringIO()
    parts = create_app(settings, clock=clock, log=log)
    await stack.enter_async_context(serving(parts.server(fast_path=lane, log_level="error"), listener))
    client, bare, x = [
        await stack.enter_async_context(httpx2.AsyncClient(base_url=base, timeout=30, limits=CONNECTIONS))
        for base in (url, url, x_url)
    ]
    yield RunningGateway(directory, settings, parts, sandbox, clock, log, client, bare, x)


def free_port() -> int:
    """Return a loopback port on which nothing listens."""
    with bound() as listener:
        return int(listener.getsockname()[1])


def bound(port: int = 0) -> socket.socket:
    """Return a listening socket on a loopback port; 0: on a free one."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(1024)
    return listener


def address(listener: socket.socket) -> str:
    """Return the base URL of a listener."""
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.asynccontextmanager
async def serving(config: uvicorn.Config, listener: socket.socket | None = None) -> AsyncIterator[str]:
    """Serve in this event loop and yield the base URL."""
    listener = listener or bound()
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve([listener]))  # noqa: SLF001 - serve() would take the test runner's signals
    while not server.started:
        if task.done():
            raise RuntimeError("the app did not start") from task.exception()
        await asyncio.sleep(0)
    try:
        yield address(listener)
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, 30)
