"""The world in a file: what outlives a restart, and what never gets in."""

from __future__ import annotations

import ast
import asyncio
import stat
from importlib.resources import files
from typing import TYPE_CHECKING

import httpx2
import pytest

from birdwire.sandbox.app import create_sandbox
from birdwire.sandbox.state.seed import VISIBLE_POST_ID

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from starlette.applications import Starlette

    from sandbox.conftest import SandboxClient

LIKES = "/2/users/2244994945/likes"


@pytest.fixture
def start(tmp_path: Path, sandbox_client: Callable[[Starlette], SandboxClient]) -> Callable[[], SandboxClient]:
    """Start a sandbox on one and the same file, again and again."""
    return lambda: sandbox_client(create_sandbox(world_path=tmp_path / "deep" / "world.json"))


async def stop(x: SandboxClient) -> None:
    """End a sandbox as a server does: its lifespan runs to the end."""
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> dict[str, str]:
        return messages.pop(0)

    async def send(_message: object) -> None:
        pass

    await x.app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)


async def test_tokens_are_on_the_disk_before_they_are_answered(start: Callable[[], SandboxClient]) -> None:
    """Killed right after the answer, the next sandbox knows the pair."""
    tokens = await start().link()
    after = start()
    assert (await after.call(tokens["access_token"], "GET", "/2/users/me")).status_code == 200
    assert (await after.refresh(tokens["refresh_token"])).status_code == 200
    assert (await start().refresh(tokens["refresh_token"])).status_code == 400


async def test_many_concurrent_tokens_are_all_on_the_disk(start: Callable[[], SandboxClient]) -> None:
    """However many answers share one write."""
    before = start()
    links = await asyncio.gather(*(before.link() for _ in range(20)))
    renewed = await asyncio.gather(*(before.refresh(link["refresh_token"]) for link in links))
    after = start()
    answers = await asyncio.gather(*(after.refresh(answer.json()["refresh_token"]) for answer in renewed))
    assert [answer.status_code for answer in answers] == [200] * 20


async def test_a_clean_end_keeps_everything(start: Callable[[], SandboxClient]) -> None:
    """Likes, planted people, the clock, the app's credentials."""
    before = start()
    token = (await before.link())["access_token"]
    await before.call(token, "POST", LIKES, json={"tweet_id": VISIBLE_POST_ID})
    await before.control("seed", users=[{"username": "eve", "blocks": ["ada"]}])
    await before.control("clock", advance_s=3600)
    state, clients = await before.state(), before.clients
    await stop(before)
    after = start()
    assert await after.state() == state
    assert after.clients == clients
    await after.control("clock", advance_s=3601)
    assert (await after.call(token, "GET", "/2/users/me")).status_code == 401


async def test_the_file_is_private_and_holds_no_token(start: Callable[[], SandboxClient], tmp_path: Path) -> None:
    """0600, digests only, and no partially written file next to it."""
    tokens = await start().link()
    file = tmp_path / "deep" / "world.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    assert tokens["access_token"] not in text
    assert tokens["refresh_token"] not in text
    assert [one.name for one in file.parent.iterdir()] == ["world.json"]


async def test_a_broken_file_is_refused_by_name(tmp_path: Path) -> None:
    """Never silently started over."""
    file = tmp_path / "world.json"
    file.write_text("{")
    with pytest.raises(ValueError, match=r"world\.json is not a valid sandbox state file"):
        create_sandbox(world_path=file)


async def test_two_sandboxes_know_nothing_of_each_other() -> None:
    """No state is shared but what stands in a file."""
    first, second = create_sandbox(), create_sandbox()
    assert first.state.clients != second.state.clients
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(second), base_url="http://127.0.0.1") as http:
        assert (await http.get("/_sandbox/calls")).json() == {"calls": []}


def test_it_knows_nothing_of_the_gateway() -> None:
    """No module here imports one of Birdwire's from elsewhere."""
    for module in files("birdwire.sandbox").iterdir():
        if not module.name.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(module.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert not name.startswith("birdwire") or name.startswith("birdwire.sandbox"), (module.name, name)


def test_a_secret_does_not_show() -> None:
    """Neither in the clients' repr nor elsewhere in it."""
    clients = create_sandbox().state.clients
    assert clients.client_secret not in repr(clients)
    assert clients.client_id in repr(clients)
