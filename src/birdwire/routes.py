"""The route table: every path and method that the gateway answers, and what each takes and requires."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from birdwire.accounts.bodies import AuthTwitter, Confirm
from birdwire.api import relay_dialect
from birdwire.api.forms import FILE_FIELDS
from birdwire.api.models import Body, Empty
from birdwire.api.paths import API, APPROVE, APPROVE_MEDIA, AUTH_UNDO, DRY_RUN, MCP, OAUTH_CALLBACK
from birdwire.edge.asgi import Route
from birdwire.edge.connections import EdgeLimits
from birdwire.keys.context import CallContext, KeyedRoute, RouteRules, Work
from birdwire.keys.rules import LINK, UNLINK
from birdwire.settings import listed
from birdwire.surfaces.mcp.endpoint import MAX_MESSAGE
from birdwire.surfaces.site.documents import DOCUMENTS
from birdwire.x.catalog.lookups import LOOKUPS, Lookup
from birdwire.x.catalog.operations import OPERATIONS, UPLOAD_SCOPES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from birdwire.accounts.endpoints import LinkEndpoints
    from birdwire.accounts.pages import Pages
    from birdwire.api.messages import Answer, Call
    from birdwire.edge.asgi import Handler
    from birdwire.outcomes.report import OutcomeReports
    from birdwire.runtime.file_limits import ConnectionBudget
    from birdwire.runtime.health import Health
    from birdwire.runtime.metrics import Metrics
    from birdwire.settings import Settings
    from birdwire.surfaces.approve.pages import ApprovePages
    from birdwire.surfaces.mcp.endpoint import McpEndpoint
    from birdwire.x.catalog.operations import Operation


@dataclass(frozen=True, slots=True)
class Handlers:
    """The parts that answer calls.

    `run` frames the work of every call with a key; `write` and `look_up` are that work for a row of OPERATIONS or
    LOOKUPS, and `preview` is that of a dry run. `document` answers for every path of DOCUMENTS. `mcp` returns the
    endpoint of agents, whose tools are calls of the others, by name.
    """

    run: Callable[[RouteRules, Work, Call], Awaitable[Answer]]
    write: Callable[[Operation, CallContext], Awaitable[Answer]]
    preview: Callable[[Operation, CallContext], Awaitable[Answer]]
    look_up: Callable[[Lookup, CallContext], Awaitable[Answer]]
    cancel: Work
    links: LinkEndpoints
    outcomes: OutcomeReports
    pages: Pages
    approve: ApprovePages
    mcp: Callable[[Mapping[str, KeyedRoute]], McpEndpoint]
    document: Handler
    health: Health
    metrics: Metrics


def routes(parts: Handlers, settings: Settings) -> list[Route]:
    """Return every route of a gateway with these settings."""
    calls = [*_operations(parts, settings), *_lookups(parts, settings), *_links(parts, settings)]
    keyed = [_route(parts, settings, call) for call in calls]
    if settings.relay_dialect:
        keyed = [replace(route, path=path) for route in keyed for path in relay_dialect.aliases(route.path)]
    pages, approve, document, health = parts.pages, parts.approve, parts.document, parts.health
    mcp = parts.mcp({call.rules.name: call for call in calls})
    return [
        *keyed,
        Route("POST", MCP, mcp.answer, MAX_MESSAGE, settings.request_deadline_s),
        Route("GET", OAUTH_CALLBACK, pages.callback, head=pages.callback_head),
        Route("POST", AUTH_UNDO, pages.undo, otherwise=pages.undo_opened),
        Route("GET", APPROVE, approve.show, head=approve.head),
        Route("POST", APPROVE, approve.decide),
        Route("GET", APPROVE_MEDIA, approve.image, head=approve.image),
        *(Route("GET", path, document, head=document) for path in DOCUMENTS),
        Route("GET", "/livez", health.live, head=health.live, reserved=True),
        Route("GET", "/readyz", health.ready, head=health.ready, reserved=True),
        *([metrics_route(parts.metrics, settings)] if settings.metrics_inside else []),
    ]


def edge_limits(settings: Settings, routes: Sequence[Route], connections: ConnectionBudget) -> EdgeLimits:
    """Return the bounds of the edge that serves these routes."""
    return EdgeLimits(
        head_s=settings.request_deadline_s,
        body_s=settings.request_deadline_s,
        body_bytes=settings.max_body_bytes,
        bodies={route.path: route.limit for route in routes},
        files={route.path: route.files for route in routes if route.files is not None},
        connections=connections.callers,
        connections_refused=connections.refused,
        connections_each=settings.max_connections_each,
        reserved=frozenset(route.path for route in routes if route.reserved),
        trusted_proxies=listed(settings.trusted_proxies),
        hosts=frozenset(host.lower() for host in listed(settings.hosts)),
    )


def metrics_route(metrics: Metrics, settings: Settings) -> Route:
    """Return the route of the metrics, which may have a port of their own."""
    token = settings.metrics_token.get_secret_value() if settings.metrics_token else None
    return Route("GET", "/metrics", partial(metrics.answer, token))


def _route(parts: Handlers, settings: Settings, call: KeyedRoute) -> Route:
    """Return the route of a call with a key."""
    rules = replace(call.rules, relay=settings.relay_dialect)
    return Route(
        call.method,
        f"{API}/{call.path}",
        partial(parts.run, rules, call.work),
        limit=rules.max_bytes,
        deadline_s=settings.request_deadline_s,
        files=(rules.max_file_bytes, settings.upload_deadline_s) if rules.max_file_bytes else None,
        reserved=rules.reserved,
    )


def _operations(parts: Handlers, settings: Settings) -> Iterator[KeyedRoute]:
    """Yield two calls for each row of OPERATIONS: one that carries it out, and one that returns what it would do."""
    for operation in OPERATIONS:
        rules = RouteRules(
            operation.name,
            operation.body,
            max_bytes=settings.max_body_bytes if operation.repeatable else settings.max_post_bytes,
            file_names=FILE_FIELDS if operation.takes_file else (),
            repeatable=operation.repeatable,
            action=operation.name,
        )
        if operation.takes_file or (settings.relay_dialect and "media" in operation.body.model_fields):
            scopes = tuple(dict.fromkeys((*operation.scopes, *UPLOAD_SCOPES)))
            rules = replace(rules, max_file_bytes=settings.max_upload_bytes, file_scopes=scopes)
        yield KeyedRoute("POST", rules.name, rules, partial(parts.write, operation))
        # Every key may ask what it may do. Nothing is sent, so the call is as safe to repeat as a lookup.
        name = f"{DRY_RUN}/{operation.name}"
        dry = replace(rules, name=name, repeatable=True, action="", file_scopes=(), unnamed=True)
        yield KeyedRoute("POST", name, dry, partial(parts.preview, operation))


def _lookups(parts: Handlers, settings: Settings) -> Iterator[KeyedRoute]:
    """Yield a call for each row of LOOKUPS that the operator offers."""
    for lookup in LOOKUPS:
        if lookup.name in settings.offered_reads:
            rules = RouteRules(lookup.name, lookup.query, query=True, action=lookup.name, pausable=True)
            yield KeyedRoute("GET", lookup.name, rules, partial(parts.look_up, lookup))


def _links(parts: Handlers, settings: Settings) -> Iterator[KeyedRoute]:
    """Yield the calls that manage a key's link and show the key's own state."""
    table: tuple[tuple[str, str, Work, type[Body], str], ...] = (
        ("POST", "auth_twitter", parts.links.auth_twitter, AuthTwitter, LINK),
        ("POST", "unlink_twitter", parts.links.unlink, Empty, UNLINK),
        ("GET", "auth/status", parts.links.status, Empty, ""),
        ("POST", "auth/confirm", parts.links.confirm, Confirm, LINK),
        ("GET", "requests/{request_id}", parts.outcomes.request, Empty, ""),
        ("POST", "requests/{request_id}/cancel", parts.cancel, Empty, ""),
    )
    for method, path, work, model, action in table:
        rules = RouteRules(
            path.replace("/{request_id}", ""),
            model,
            max_bytes=settings.max_body_bytes,
            reserved=path in ("unlink_twitter", "auth/status"),
            action=action,
            pausable=action == LINK,
            about_request=path.endswith("/cancel"),
        )
        yield KeyedRoute(method, path, rules, work)
