"""Composition root of the sandbox: builds every part and lists every route. No other module constructs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Route

from birdwire.sandbox.api import engagement, lookups, media, posts
from birdwire.sandbox.api.dispatcher import routes
from birdwire.sandbox.control.endpoints import Control
from birdwire.sandbox.control.faults import Faults
from birdwire.sandbox.control.traffic import Calls, Traffic
from birdwire.sandbox.oauth.clients import Client, Clients
from birdwire.sandbox.oauth.consent import Consent
from birdwire.sandbox.oauth.token_endpoint import TokenServer
from birdwire.sandbox.pages import Pages
from birdwire.sandbox.state.seed import OTHER_USERNAME, VISIBLE_POST_ID
from birdwire.sandbox.state.simulator import Simulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from starlette.requests import Request

__all__ = ["Client", "Clients", "create_sandbox"]

ENDPOINTS = (*lookups.ENDPOINTS, *engagement.ENDPOINTS, *posts.ENDPOINTS, *media.ENDPOINTS)


def create_sandbox(
    *,
    clients: Clients | None = None,
    redirect_uris: Sequence[str] = (),
    world_path: Path | None = None,
    app_name: str = "Birdwire (local)",
) -> Starlette:
    """Return the sandbox as an ASGI app; `app.state.clients` contains its credentials.

    Without `clients`, the credentials are those of the stored world, or random. Without `redirect_uris`, every
    loopback URI counts as registered. `world_path` is the file that keeps the world across restarts.
    """
    platform = Simulator(clients=clients, redirect_uris=redirect_uris, world_path=world_path, app_name=app_name)
    pages, faults, calls = Pages(), Faults(), Calls(platform)
    consent = Consent(platform, pages)
    endpoints = routes(platform, ENDPOINTS)
    control = Control(platform, consent, faults, calls, ENDPOINTS)

    async def about(_request: Request) -> Response:
        world = platform.world
        return pages.page(
            "about.html",
            users=list(world.users.values()),
            counts={user_id: len(world.posts_of(user_id)) for user_id in world.users},
            post_id=VISIBLE_POST_ID,
            post_author=OTHER_USERNAME,
            endpoints=[(row.method, row.path) for row in ENDPOINTS],
            controls=control.CALLS,
        )

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        # An unwritable world must fail before the first call.
        platform.save()
        yield
        platform.save()

    app = Starlette(
        routes=[
            Route("/", about, methods=["GET"]),
            *consent.routes(),
            *TokenServer(platform).routes(),
            *control.routes(),
            *endpoints,
        ],
        middleware=[Middleware(Traffic, platform=platform, endpoints=endpoints, faults=faults, calls=calls)],
        exception_handlers={404: _no_endpoint, 405: _no_endpoint},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.clients = platform.clients
    return app


async def _no_endpoint(_request: Request, _error: Exception) -> Response:
    """Return X's answer for an unknown endpoint: 404, without body and rate limits."""
    return Response(status_code=404)
