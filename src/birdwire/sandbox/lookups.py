"""What X tells about people and posts. Reads only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from birdwire.sandbox.api import Call, Endpoint
from birdwire.sandbox.refusals import Answer

if TYPE_CHECKING:
    from birdwire.sandbox.platform import Platform
    from birdwire.sandbox.world import User


def me(_platform: Platform, call: Call) -> Answer:
    """GET /2/users/me."""
    return Answer(200, {"data": _user(call.viewer)})


def _user(user: User) -> dict[str, Any]:
    return {"id": user.id, "name": user.name, "username": user.username}


ENDPOINTS = (Endpoint("GET", "/2/users/me", "tweet.read users.read", me, 75),)
