"""The sandbox's control API under /_sandbox: inspect, change and break it. From this machine only; X has none of it."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from birdwire.sandbox.api.dispatcher import json_object, read_bounded
from birdwire.sandbox.api.errors import Refusal
from birdwire.sandbox.oauth.clients import is_loopback
from birdwire.sandbox.oauth.consent import PATH, AskError, Consent
from birdwire.sandbox.state.fixtures import Plan

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from starlette.requests import Request

    from birdwire.sandbox.api.dispatcher import Endpoint
    from birdwire.sandbox.control.faults import Faults
    from birdwire.sandbox.control.traffic import Calls
    from birdwire.sandbox.state.simulator import Simulator

# A fault may contain an answer of several megabytes.
BODY_BYTES = 8 * 1024 * 1024
NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)


class ControlError(Exception):
    """Refusal of a control call: an HTTP status and a message."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Control:
    """The control calls. CALLS describes them for people."""

    CALLS = (
        ("GET", "/_sandbox/state", "Show the users, posts, likes, follows, reposts and bookmarks"),
        ("GET", "/_sandbox/calls", "Show the recorded calls after number ?since=N"),
        (
            "POST",
            "/_sandbox/reset",
            "Restore the seed, the default switches and the real time; delete the grants only if grants is false",
        ),
        ("POST", "/_sandbox/seed", "Restore the seed, or add and change the users and posts in the body"),
        ("POST", "/_sandbox/clock", "Move the clock forward by advance_s seconds; a negative number moves it back"),
        ("GET", "/_sandbox/config", "Show every switch and its value"),
        ("POST", "/_sandbox/config", "Set switches"),
        ("GET", "/_sandbox/faults", "Show the pending faults"),
        ("POST", "/_sandbox/faults", "Add a fault"),
        ("DELETE", "/_sandbox/faults", "Delete all faults"),
        ("POST", "/_sandbox/consent", "Approve or deny a request as the consent page does, from a script"),
        ("POST", "/_sandbox/users/{id}/revoke_app", "Remove the app from a user's connected apps"),
    )

    def __init__(
        self, platform: Simulator, consent: Consent, faults: Faults, calls: Calls, endpoints: Sequence[Endpoint]
    ) -> None:
        self._platform, self._consent, self._faults, self._calls = platform, consent, faults, calls
        self._endpoints = [endpoint.name for endpoint in endpoints]

    def routes(self) -> list[Route]:
        """Return the routes of the control calls."""
        handlers = (
            self._state,
            self._list_calls,
            self._reset,
            self._seed,
            self._clock,
            self._read_config,
            self._write_config,
            self._list_faults,
            self._add_fault,
            self._clear_faults,
            self._decide,
            self._revoke_app,
        )
        rows = zip(self.CALLS, handlers, strict=True)
        return [Route(path, guarded(handle), methods=[method]) for (method, path, _), handle in rows]

    async def _state(self, _request: Request) -> Any:
        return _state(self._platform)

    async def _list_calls(self, request: Request) -> Any:
        since = request.query_params.get("since", "0")
        if not NUMBER.fullmatch(since):
            raise ControlError("since must be a whole number")
        return {"calls": self._calls.since(int(since))}

    async def _reset(self, request: Request) -> Any:
        body = await _body(request, {"grants": bool}, optional=True)
        self._platform.reset(keep_grants=body.get("grants", True))
        self._faults.clear()
        self._calls.clear()
        return _state(self._platform)

    async def _seed(self, request: Request) -> Any:
        raw = await read_object(request, optional=True)
        try:
            Plan.read(raw).plant(self._platform.world, self._platform.clock.now())
        except ValueError as error:
            raise ControlError(str(error)) from None
        self._platform.changed()
        return _state(self._platform)

    async def _clock(self, request: Request) -> Any:
        body = await _body(request, {"advance_s": float})
        if "advance_s" not in body:
            raise ControlError("advance_s is missing")
        try:
            self._platform.advance(body["advance_s"])
        except (ValueError, OverflowError):
            raise ControlError("advance_s: the clock can move by at most ten years") from None
        return {"now": self._platform.clock.now().isoformat(), "offset_s": self._platform.clock.offset_s}

    async def _read_config(self, _request: Request) -> Any:
        return self._platform.config.model_dump()

    async def _write_config(self, request: Request) -> Any:
        try:
            config = self._platform.config.changed(await read_object(request))
        except ValueError as error:
            raise ControlError(str(error)) from None
        for name in config.limits:
            if name not in self._endpoints:
                raise ControlError(f"limits: unknown name {name!r}; the known names are {', '.join(self._endpoints)}")
        self._platform.config = config
        return self._platform.config.model_dump()

    async def _list_faults(self, _request: Request) -> Any:
        return {"faults": self._faults.listed()}

    async def _add_fault(self, request: Request) -> Any:
        raw = await read_object(request)
        wanted = raw["do"].get("error") if isinstance(raw.get("do"), dict) else None
        if isinstance(wanted, str) and wanted not in self._platform.catalogue:
            raise ControlError(f"do.error must be one of {', '.join(self._platform.catalogue.ids())}")
        try:
            self._faults.add(raw)
        except ValueError as error:
            raise ControlError(str(error)) from None
        return {"faults": self._faults.listed()}

    async def _clear_faults(self, _request: Request) -> Any:
        return {"deleted": self._faults.clear()}

    async def _decide(self, request: Request) -> Any:
        body = await _body(request, {"auth_url": str, "username": str, "action": str, "scopes": list})
        absent = [name for name in ("auth_url", "username", "action") if name not in body]
        if absent:
            raise ControlError(f"{absent[0]} is missing")
        if body["action"] not in {"allow", "deny"}:
            raise ControlError("action must be allow or deny")
        user = self._platform.world.user_named(body["username"])
        if user is None:
            raise ControlError("username: there is no user with this name")
        try:
            url = urlsplit(body["auth_url"])
            if url.path != PATH:
                raise ControlError(f"auth_url: the path must be {PATH}")
            ask = self._consent.ask(url.query)
        except ValueError as error:
            known = isinstance(error, AskError)
            raise ControlError(f"auth_url: {error if known else 'not a valid URL'}") from None
        scopes = body.get("scopes", list(ask.scopes))
        stray = [scope for scope in scopes if scope not in ask.scopes]
        if stray or not scopes:
            raise ControlError("scopes must contain at least one of the requested scopes, and no others")
        return {"redirect_to": self._consent.answer(ask, user, allow=body["action"] == "allow", scopes=scopes)}

    async def _revoke_app(self, request: Request) -> Any:
        await _body(request, {}, optional=True)
        user_id = request.path_params["id"]
        if user_id not in self._platform.world.users:
            raise ControlError("there is no user with this id", 404)
        ended = self._platform.grants.remove_app(user_id)
        await self._platform.saved()
        return {"revoked": ended}


def guarded(handle: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    """Wrap a control call as a Starlette endpoint: it admits this machine only, and returns JSON."""

    async def guarded(request: Request) -> Response:
        try:
            _admit(request)
            body, status = await handle(request), 200
        except ControlError as error:
            body, status = {"error": str(error)}, error.status
        except Refusal:
            body, status = {"error": f"the body must not exceed {BODY_BYTES} bytes"}, 413
        return JSONResponse(body, status, {"cache-control": "no-store"})

    return guarded


def _admit(request: Request) -> None:
    """Refuse other machines, foreign host names (DNS rebinding), and web pages of other origins."""
    peer = request.client.host if request.client else ""
    host = request.headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    if not is_loopback(peer) or not is_loopback(name):
        raise ControlError("control calls must come from this machine and use a loopback host name", 403)
    origin = request.headers.get("origin")
    if origin is not None and origin != f"{request.url.scheme}://{host}":
        raise ControlError("control calls from web pages of other origins are refused", 403)


async def read_object(request: Request, *, optional: bool = False) -> dict[str, Any]:
    """Return the body, a JSON object. If it is optional, an empty body is {}."""
    raw = await read_bounded(request, BODY_BYTES)
    if optional and not raw:
        return {}
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ControlError("Content-Type must be application/json", 415)
    try:
        return json_object(raw)
    except ValueError as error:
        raise ControlError(f"the body is {error}") from None


async def _body(request: Request, members: dict[str, type], *, optional: bool = False) -> dict[str, Any]:
    """Return the body; refuse unknown members and wrong types."""
    body = await read_object(request, optional=optional)
    for name, value in body.items():
        if name not in members:
            raise ControlError(f"unknown member {name[:100]!r}")
        kind = members[name]
        right = isinstance(value, kind)
        if kind is float:
            right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if kind is list:
            right = isinstance(value, list) and all(isinstance(entry, str) for entry in value)
        if not right:
            raise ControlError(f"{name} has the wrong type")
    return body


def _state(platform: Simulator) -> dict[str, Any]:
    """Return the public part of the world."""
    world = platform.world
    users = [
        {
            "id": user.id,
            "username": user.username,
            "name": user.name,
            "protected": user.protected,
            "suspended": user.suspended,
        }
        for user in world.users.values()
    ]
    posts = []
    for post in world.posts.values():
        row: dict[str, Any] = {"id": post.id, "text": post.text, "author_id": post.author_id, "deleted": post.deleted}
        for name in ("in_reply_to_tweet_id", "quote_tweet_id", "media_ids", "poll", "previous_post_id"):
            if value := getattr(post, name):
                row[name] = value
        posts.append(row)
    follows = [
        {"source_user_id": source, "target_user_id": target} | ({"pending": True} if pending else {})
        for source, targets in world.follows.items()
        for target, pending in targets.items()
    ]
    return {
        "users": users,
        "posts": posts,
        "likes": [{"user_id": user, "tweet_id": post} for user, post in sorted(world.likes)],
        "follows": follows,
        "retweets": [{"user_id": user, "tweet_id": post} for user, mine in world.retweets.items() for post in mine],
        "bookmarks": [{"user_id": user, "tweet_id": post} for user, post in sorted(world.bookmarks)],
    }
