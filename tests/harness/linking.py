"""The steps of a link, as a browser and a test perform them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit

from harness.gateway import API

if TYPE_CHECKING:
    import httpx2

    from harness.gateway import RunningGateway

HTML = {"accept": "text/html,application/xhtml+xml,*/*"}
JSON = {"accept": "application/json"}
EXCHANGE = {"grant_type": "authorization_code"}


def query_of(url: str) -> dict[str, str]:
    """Return a URL's parameters, each of which must occur once."""
    pairs = parse_qsl(urlsplit(url).query, strict_parsing=True, keep_blank_values=True)
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def changed(url: str, **parameters: str | None) -> str:
    """Return the URL with parameters replaced, added, or removed (None)."""
    query = {**query_of(url), **parameters}
    return f"{url.partition('?')[0]}?{urlencode({name: value for name, value in query.items() if value is not None})}"


async def begin(running: RunningGateway, **body: object) -> str:
    """Start a link and return its auth_url."""
    return str((await running.call("auth_twitter", body or None)).raise_for_status().json()["auth_url"])


async def open_callback(running: RunningGateway, url: str, **headers: str) -> httpx2.Response:
    """Open the callback without a key, as JSON."""
    return await running.bare.get(url, headers={**JSON, **headers})


def reason_of(answer: httpx2.Response) -> str:
    """Return the reason of a refusal."""
    return str(answer.json()["error"]["reason"])


def undo_token(page: httpx2.Response) -> str:
    """Return the one-time token in the page's form."""
    found = re.search(r'name="undo_token" value="([A-Za-z0-9_-]{43})"', page.text)
    assert found is not None
    return found.group(1)


async def press_undo(running: RunningGateway, page: httpx2.Response) -> httpx2.Response:
    """Submit the page's undo form, as a browser without scripts and cookies would."""
    return await running.bare.post(API + "auth/undo", data={"undo_token": undo_token(page)}, headers=HTML)


async def exchanges(running: RunningGateway) -> int:
    """Return how often a code was presented to X."""
    return len(await running.calls("/2/oauth2/token", **EXCHANGE))


async def revoked(running: RunningGateway) -> list[int]:
    """Return the statuses with which X answered revocations."""
    return [call["status"] for call in await running.calls("/2/oauth2/revoke")]


async def other_key(running: RunningGateway, label: str = "other key") -> dict[str, str]:
    """Create another key and return its Authorization header."""
    _, raw_key = await running.gateway.keys.create("test", label, "growth")
    return {"authorization": f"Bearer {raw_key}"}
