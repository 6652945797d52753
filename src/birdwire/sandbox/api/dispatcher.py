"""Processes every API call in the same order: token, rate limits, billing, scopes, ids, body, then the handler."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route

from birdwire.sandbox.api.errors import Answer, Refusal, invalid
from birdwire.sandbox.state.rate_limits import DAY_S, QUARTER_S, Reading, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from starlette.requests import Request

    from birdwire.sandbox.state.simulator import Simulator
    from birdwire.sandbox.state.world import Grant, User

ID = re.compile(r"[0-9]{1,19}", re.ASCII)
USERNAME = re.compile(r"[A-Za-z0-9_]{1,15}", re.ASCII)
JSON_BYTES = 1024 * 1024
# Key in a request's ASGI scope: the id of the refusal that a fault requests for it.
FAULT = "birdwire.sandbox.fault"
BILLS = {"spend_cap": "spend-cap", "usage_cap": "usage-capped", "user_not_enrolled": "user-not-enrolled"}


@dataclass(frozen=True)
class Call:
    """One admitted call. `viewer` is the user who calls; `body` is the JSON object or the form, {} without a body."""

    viewer: User
    ids: Mapping[str, str]
    query: Mapping[str, str]
    body: Mapping[str, Any]


@dataclass(frozen=True)
class Endpoint:
    """One row of X's API.

    `own` names the path parameter that must be the caller's id. `body` lists the members that a JSON body may have
    (None: the body is ignored). `per_15m`, `per_24h` and `app_per_24h` are numbers or names of switches.
    """

    method: str
    path: str
    scopes: str
    handle: Callable[[Simulator, Call], Answer]
    per_15m: int | str
    per_24h: int | str | None = None
    app_per_24h: int | str | None = None
    own: str | None = None
    body: frozenset[str] | None = None
    # Generation 2.166 accepts unknown members in this body.
    lenient: bool = False
    read: Callable[[Request], Any] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Return the endpoint's name in the switch `limits`."""
        return f"{self.method} {self.path}"

    def windows(self, platform: Simulator, user_id: str) -> list[Window]:
        """Return the rate limits that apply to a call of this user."""

        def number(limit: int | str) -> int:
            return limit if isinstance(limit, int) else getattr(platform.config, limit)

        quarter = platform.config.limits.get(self.name, number(self.per_15m))
        windows = [Window((self.name, user_id, "15m"), quarter, QUARTER_S, "x-rate-limit")]
        if self.per_24h is not None:
            key = (self.name, user_id, "24h")
            windows.append(Window(key, number(self.per_24h), DAY_S, "x-user-limit-24hour"))
        if self.app_per_24h is not None:
            windows.append(Window((self.name, "24h"), number(self.app_per_24h), DAY_S, "x-app-limit-24hour"))
        return windows


class ApiDispatcher:
    """Serves one endpoint: admits the call, runs its handler, and adds the rate limit headers to the answer."""

    def __init__(self, platform: Simulator, endpoint: Endpoint) -> None:
        self._platform, self._endpoint = platform, endpoint

    async def answer(self, request: Request) -> Response:
        """Process one request."""
        readings: list[Reading] = []
        try:
            answer = await self._answer(request, readings)
        except Refusal as refusal:
            answer = refusal.answer
        return dressed(self._platform, answer, () if answer.body is None else readings)

    async def _answer(self, request: Request, readings: list[Reading]) -> Answer:
        platform, endpoint = self._platform, self._endpoint
        token = _bearer(request)
        grant = platform.grants.access(token)
        free = self._count(grant, readings)
        if FAULT in request.scope:
            raise Refusal(platform.catalogue.answer(request.scope[FAULT], platform.clock.epoch_s()))
        if grant is None:
            is_app = platform.grants.is_app_token(token)
            raise platform.catalogue.refusal("app-only-token" if is_app else "unauthorized")
        viewer = platform.world.users[grant.user_id]
        request.scope["birdwire.sandbox.call"]["user_id"] = viewer.id
        self._bill()
        if not free:
            raise platform.catalogue.refusal("rate-limited")
        if viewer.suspended:
            raise platform.catalogue.refusal("suspended-user")
        if not set(endpoint.scopes.split()) <= set(grant.scopes):
            raise platform.catalogue.refusal("missing-scope")
        body = await self._body(request)
        ids = request.path_params
        self._check_ids(ids, viewer)
        answer = endpoint.handle(platform, Call(viewer, ids, dict(request.query_params), body))
        if endpoint.method != "GET":
            platform.changed()
        return answer

    def _count(self, grant: Grant | None, readings: list[Reading]) -> bool:
        """Count the call in its windows if none is used up. Without a valid token, the windows read as unused."""
        platform, now_s = self._platform, self._platform.clock.epoch_s()
        windows = self._endpoint.windows(platform, grant.user_id if grant else "")
        if grant is None:
            readings.extend(Reading(window, window.limit, now_s + window.length_s) for window in windows)
            return True
        free, taken = platform.limits.take(windows, now_s)
        readings.extend(taken)
        return free

    def _bill(self) -> None:
        """Refuse the call for billing reasons, as X does: before rate limits, and without changing their headers."""
        config = self._platform.config
        if config.billing == "credits_depleted":
            raise self._platform.catalogue.refusal(config.credits_form)
        if config.billing != "ok":
            raise self._platform.catalogue.refusal(BILLS[config.billing])

    def _check_ids(self, ids: Mapping[str, str], viewer: User) -> None:
        for name, value in ids.items():
            pattern = USERNAME if name == "username" else ID
            if not pattern.fullmatch(value):
                raise invalid(
                    f"The `{name}` query parameter value [{value[:100]}] does not match ^{pattern.pattern}$",
                    **{name: value},
                )
        own = self._endpoint.own
        if own is not None and ids[own] != viewer.id:
            sentence = "must be the same as the authenticating user"
            raise invalid(f"The `{own}` query parameter value [{ids[own]}] {sentence} [{viewer.id}]", **{own: ids[own]})

    async def _body(self, request: Request) -> Mapping[str, Any]:
        endpoint = self._endpoint
        if endpoint.read is not None:
            body: Mapping[str, Any] = await endpoint.read(request)
        elif endpoint.body is not None:
            body = await read_json(request)
        else:
            return {}
        known = endpoint.body or frozenset()
        unknown = sorted(set(body) - known)
        if unknown and not (endpoint.lenient and self._platform.config.generation == "2.166"):
            raise invalid(f"The request body field [{unknown[0][:100]}] is not one of [{','.join(sorted(known))}]")
        return body


def _bearer(request: Request) -> str:
    """Return the bearer token, or "" without one."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def routes(platform: Simulator, endpoints: Sequence[Endpoint]) -> list[Route]:
    """Return Starlette's routes for these rows."""
    return [Route(row.path, ApiDispatcher(platform, row).answer, methods=[row.method]) for row in endpoints]


def dressed(platform: Simulator, answer: Answer, readings: Sequence[Reading] = ()) -> Response:
    """Return the answer as a response. Its own headers take precedence over the windows' headers."""
    headers: dict[str, str] = {}
    for reading in readings:
        headers |= reading.headers()
    headers |= answer.headers
    response = Response(answer.encoded(platform.config.generation), answer.status, headers)
    if answer.content_type is not None:
        response.headers["content-type"] = answer.content_type
    return response


async def read_bounded(request: Request, limit: int) -> bytes:
    """Return the request's body; answer with X's 413 if it exceeds `limit` bytes."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                problem = {
                    "title": "Payload Too Large",
                    "type": "about:blank",
                    "status": 413,
                    "detail": "Payload Too Large",
                }
                raise Refusal(Answer(413, problem, {"connection": "close"}))
    except ClientDisconnect:
        return b""
    return bytes(body)


async def read_json(request: Request) -> dict[str, Any]:
    """Return the request's JSON object."""
    return parse_json(await read_bounded(request, JSON_BYTES))


def parse_json(raw: bytes) -> dict[str, Any]:
    """Parse a JSON object; answer with X's 400 if the bytes are not one."""
    try:
        return json_object(raw)
    except ValueError as error:
        raise invalid(f"The request body is {error}") from None


def json_object(raw: bytes) -> dict[str, Any]:
    """Parse a JSON object; raise ValueError for anything else, including NaN and unpaired surrogates."""
    try:
        body = json.loads(raw, parse_constant=_no_constant)
        # A body that cannot be encoded again, such as an unpaired surrogate, is refused.
        json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise ValueError("not valid JSON") from None
    if not isinstance(body, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - the bytes are wrong, not an argument's type
    return body


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def required_id(call: Call, name: str) -> str:
    """Return an id from the body; answer with X's 400 if it does not match X's pattern."""
    value = call.body.get(name)
    if not isinstance(value, str) or not ID.fullmatch(value):
        shown = value if isinstance(value, str) else json.dumps(value)
        if value is None:
            raise invalid(f"The `{name}` field can not be empty")
        raise invalid(
            f"The `{name}` query parameter value [{shown[:100]}] does not match ^[0-9]{{1,19}}$", **{name: shown}
        )
    return value
