"""Composition of the sandbox: builds every part, lists every route. Nothing else constructs."""

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
    """The sandbox as an ASGI app; `app.state.clients` holds its credentials.

    Without `clients` they are those of the stored world, or made at random. Without `redirect_uris` every loopback
    URI counts as registered. `world_path` is the file in which the world outlives a restart.
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
        platform.save()  # a world that cannot be written is found out before the first call
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
    """X's answer where it has no such endpoint: 404, no body, no limits."""
    return Response(status_code=404)
