"""A sandbox in the test's own process, and one behind a real loopback socket."""

from __future__ import annotations

import socket
import threading
from base64 import urlsafe_b64encode
from contextlib import AsyncExitStack
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx2
import pytest
import uvicorn

from birdwire.sandbox.app import Clients, create_sandbox
from birdwire.sandbox.server import config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from starlette.applications import Starlette

CLIENTS = Clients("confidential", "a-secret", "public")
REDIRECT_URI = "http://127.0.0.1:9/callback"
VERIFIER = "v" * 43
SCOPES = "tweet.read users.read tweet.write like.write follows.write bookmark.write media.write offline.access"


@dataclass
class SandboxClient:
    """A client of a sandbox, with what most tests do in one call."""

    app: Starlette
    http: httpx2.AsyncClient

    @property
    def clients(self) -> Clients:
        """The sandbox's own credentials."""
        clients: Clients = self.app.state.clients
        return clients

    def authorize_url(self, **changes: str | None) -> str:
        """A good authorize URL, with parameters changed or (None) left out."""
        challenge = urlsafe_b64encode(sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
        query: dict[str, str | None] = {
            "response_type": "code",
            "client_id": self.clients.client_id,
            "redirect_uri": REDIRECT_URI,
            "scope": SCOPES,
            "state": "a-state",
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        kept = {name: value for name, value in (query | changes).items() if value is not None}
        return f"/i/oauth2/authorize?{urlencode(kept)}"

    async def control(self, path: str, **body: Any) -> Any:
        """What a control call answers; it must be accepted."""
        answer = await self.http.post(f"/_sandbox/{path}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def state(self) -> Any:
        """The state of the world."""
        return (await self.http.get("/_sandbox/state")).json()

    async def code(self, username: str = "ada", **changes: str | None) -> str:
        """An authorization code that `username` allowed."""
        url = self.authorize_url(**changes)
        answer = await self.control("consent", auth_url=url, username=username, action="allow")
        return dict(parse_qsl(urlsplit(str(answer["redirect_to"])).query))["code"]

    async def token(self, **form: str) -> httpx2.Response:
        """A call of the token endpoint as the confidential client."""
        return await self.http.post(
            "/2/oauth2/token", data=form, auth=(self.clients.client_id, self.clients.client_secret)
        )

    async def exchange(self, code: str, /, **changes: str) -> httpx2.Response:
        """The exchange of a code."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": REDIRECT_URI,
            "code_verifier": VERIFIER,
        }
        return await self.token(**(form | changes))

    async def refresh(self, refresh_token: str) -> httpx2.Response:
        """A refresh."""
        return await self.token(grant_type="refresh_token", refresh_token=refresh_token)

    async def link(self, username: str = "ada", **changes: str | None) -> dict[str, Any]:
        """The token answer for a fresh grant of `username`."""
        answer = await self.exchange(await self.code(username, **changes))
        assert answer.status_code == 200, answer.text
        tokens: dict[str, Any] = answer.json()
        return tokens

    async def call(self, token: str, method: str, path: str, **more: Any) -> httpx2.Response:
        """A call of the API under a token."""
        return await self.http.request(method, path, headers={"authorization": f"Bearer {token}"}, **more)


@pytest.fixture
async def sandbox_client() -> AsyncIterator[Callable[[Starlette], SandboxClient]]:
    """Makes clients of sandboxes in this process, and closes them."""
    async with AsyncExitStack() as stack:

        def make(app: Starlette) -> SandboxClient:
            http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1")
            stack.push_async_callback(http.aclose)
            return SandboxClient(app, http)

        yield make


@pytest.fixture
async def x(sandbox_client: Callable[[Starlette], SandboxClient]) -> SandboxClient:
    """A fresh sandbox in this process."""
    return sandbox_client(create_sandbox(clients=CLIENTS))


@pytest.fixture
def served() -> Iterator[str]:
    """The base URL of a fresh sandbox behind a real socket, which listens before this returns."""
    yield from serve(create_sandbox(clients=CLIENTS))


def serve(app: Starlette) -> Iterator[str]:
    """Run the app under uvicorn in a thread until the generator is closed."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(config(app))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        listener.close()
        assert not thread.is_alive()
