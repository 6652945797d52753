"""Composition root: create_app() builds every part and lists the routes; nothing else constructs."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from birdwire import __version__
from birdwire.accounts.bodies import AuthTwitter, Confirm
from birdwire.accounts.callbacks import Callbacks
from birdwire.accounts.client import AccountClients, RetryBudget
from birdwire.accounts.endpoints import LinkEndpoints
from birdwire.accounts.linking import AuthorizationRequests, Linked, Linking
from birdwire.accounts.links import Links
from birdwire.accounts.pages import Pages
from birdwire.accounts.refresh import Refresher
from birdwire.accounts.sessions import Sessions
from birdwire.api import relay_dialect
from birdwire.api.body import Body, Empty
from birdwire.api.errors import GatewayError
from birdwire.api.forms import FILE_FIELDS
from birdwire.edge import asgi, server
from birdwire.edge.asgi import Route
from birdwire.edge.connections import EdgeLimits
from birdwire.edge.fast_path import FastPathProtocol
from birdwire.gateway.concurrency import ConcurrencyLimiter
from birdwire.gateway.pipeline import Pipeline, Takes
from birdwire.gateway.refusal_details import RefusalDetails
from birdwire.gateway.upload_limits import UploadLimits
from birdwire.keys.cache import KeyCache
from birdwire.keys.guess_limit import GuessLimiter
from birdwire.keys.rate_limit import LocalRateLimit
from birdwire.keys.redis_rate_limit import SharedRateLimit
from birdwire.keys.registry import Keys
from birdwire.keys.rules import LINK, UNLINK
from birdwire.outcomes.acts import ActLog
from birdwire.outcomes.idempotency import Idempotency
from birdwire.outcomes.journal import Journal
from birdwire.outcomes.leases import RENEW_EVERY_S, ProcessLeases
from birdwire.outcomes.reconciler import Reconciler
from birdwire.outcomes.report import OutcomeReports
from birdwire.runtime.background import BackgroundTasks
from birdwire.runtime.clock import Clock
from birdwire.runtime.failpoints import Failpoints
from birdwire.runtime.file_limits import ConnectionBudget, open_files
from birdwire.runtime.health import Health
from birdwire.runtime.telemetry import Telemetry
from birdwire.settings import listed
from birdwire.store.database import Database, StoreError
from birdwire.store.encryption.key_files import decode_key, read_key_file
from birdwire.store.encryption.key_rotation import KeyRotation
from birdwire.store.encryption.vault import Vault, VaultError
from birdwire.store.schema import StorageDownError
from birdwire.surfaces.site.documents import DOCUMENTS
from birdwire.surfaces.site.handler import Site
from birdwire.x.catalog.lookups import LOOKUPS, LookupRunner
from birdwire.x.catalog.operations import OPERATIONS, UPLOAD_SCOPES
from birdwire.x.catalog.prices import Prices
from birdwire.x.client.api import X
from birdwire.x.client.auth_server import AuthServer
from birdwire.x.client.pool import ConnectionPool
from birdwire.x.limits.capabilities import Capabilities
from birdwire.x.limits.circuit_breaker import CircuitBreaker
from birdwire.x.limits.rate_windows import SYNC_INTERVAL_S, RateWindows
from birdwire.x.limits.write_order import WriteOrder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    import uvicorn
    from starlette.applications import Starlette

    from birdwire.edge.fast_path import FastHandler
    from birdwire.gateway.pipeline import Work
    from birdwire.keys.rate_limit import RateLimit
    from birdwire.runtime.metrics import Metrics
    from birdwire.settings import Settings
    from birdwire.store.encryption.key_rotation import Progress
    from birdwire.x.catalog.operations import Operation

API = "/apis/v1/twitter"
SWEEP_EVERY_S = 5.0
METRICS_CONNECTIONS = 5
POOL_WAIT_S = 10.0
"""How long a call waits for a connection to X: as long as it may wait for its turn."""
REFUSED_CONNECTIONS = 100
RESERVED_CALLS = 20
"""Calls at once for status and revocation, whatever else goes on."""

TOKEN_CONNECTIONS = 60
"""Connections to X for renewals, links and revocations, so that a burst of calls cannot starve them.

More than the renewals that run concurrently: a link and a revocation always find one.
"""
TIDY_EVERY_S = 60.0
ACTS_EVERY_S = 1.0


class Part(Protocol):
    """A part that runs until it is closed."""

    async def close(self) -> None:
        """Let what is under way end."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """The running parts that a command line or a test may ask for; `app` is what a server serves."""

    app: Starlette
    metrics_app: Starlette
    routes: list[Route]
    keys: Keys
    links: Links
    sessions: Sessions
    clients: AccountClients
    order: WriteOrder
    health: Health
    room: ConnectionBudget
    reconciler: Reconciler
    telemetry: Telemetry
    settings: Settings

    def server(self, *, lane: bool = True, **overrides: Any) -> uvicorn.Config:
        """How to serve it: behind the edge, with each route's own bounds; `overrides` are uvicorn's own options.

        Without the `lane` the app answers everything: slower, and the same to the byte.
        """
        settings = self.settings
        limits = EdgeLimits(
            head_s=settings.request_deadline_s,
            body_s=settings.request_deadline_s,
            body_bytes=settings.max_body_bytes,
            bodies={route.path: route.limit for route in self.routes},
            files={route.path: route.files for route in self.routes if route.files is not None},
            connections=self.room.callers,
            connections_refused=self.room.refused,
            connections_each=settings.max_connections_each,
            reserved=frozenset(route.path for route in self.routes if route.reserved),
            trusted_proxies=listed(settings.trusted_proxies),
            hosts=frozenset(host.lower() for host in listed(settings.hosts)),
        )
        return server.config(
            self.app,
            limits=limits,
            telemetry=self.telemetry,
            protocol=self.protocol() if lane else None,
            draining=self.health.draining,
            **overrides,
        )

    def metrics_server(self, **overrides: Any) -> uvicorn.Config:
        """How to serve the metrics on a port of their own."""
        return server.config(
            self.metrics_app, limits=EdgeLimits(connections=METRICS_CONNECTIONS, connections_refused=1), **overrides
        )

    def protocol(self) -> Callable[..., FastPathProtocol]:
        """The edge's protocol with every POST in the lane."""
        handlers: dict[bytes, FastHandler] = {
            route.path.encode(): partial(asgi.attend, route.handle, self.telemetry)
            for route in self.routes
            if route.method == "POST"
        }
        return partial(FastPathProtocol, handlers)


def open_vault(settings: Settings) -> Vault:
    """The vault with the configured keys.

    Raises:
        VaultError: there is no key, or one cannot be used.
    """
    others = [read_key_file(Path(name)) for name in listed(settings.vault_other_key_files)]
    if settings.vault_key is not None:
        return Vault(decode_key(settings.vault_key.get_secret_value()), *others)
    if settings.vault_key_file is not None:
        return Vault(read_key_file(settings.vault_key_file), *others)
    raise VaultError(
        "No vault key is set. Create one with `birdwire vault create FILE` and set BIRDWIRE_VAULT_KEY_FILE."
    )


async def prepare(
    database: Database,
    vault: Vault,
    clock: Clock,
    *,
    upgrade: bool,
    failpoints: Failpoints | None = None,
    progress: Progress | None = None,
) -> None:
    """Make the database ready, and see that every vault key is here that sealed something in it.

    The first start on a database of an older version reseals its pairs, and calls `progress` with how many values are
    resealed so far and how many of them could not be opened.

    Raises:
        StoreError: the database cannot be used.
        VaultError: another vault key sealed it, or one is missing.
    """
    await database.prepare(upgrade=upgrade)
    keyring = KeyRotation(database, vault, clock, failpoints)
    await keyring.enlist()
    await keyring.bind(progress)


def create_app(
    settings: Settings,
    *,
    clock: Clock | None = None,
    log: TextIO = sys.stderr,
    upgrade: bool = False,
    alone: bool = False,
) -> Gateway:
    """Build the gateway. Nothing is opened before the app starts. `alone`: no other gateway is on its database.

    Raises:
        VaultError: the vault key is missing or cannot be used.
    """
    clock = clock or Clock()
    telemetry, failpoints = Telemetry(log, clock, settings.log_level), Failpoints(settings.failpoints)
    vault, database = open_vault(settings), Database(settings.database_url)
    room = found_room(settings, telemetry)
    upstreams = {"calls": to_x(settings, room.calls), "tokens": to_x(settings, room.tokens)}
    authserver, x = AuthServer(settings, upstreams["tokens"]), X(upstreams["calls"], clock, telemetry.metrics)
    recall, presence, lookups = KeyCache(database, clock), ProcessLeases(database, clock), GuessLimiter(clock)
    keys = Keys(database, clock, recall, lookups)
    journal = Journal(database, vault, presence, clock, telemetry)
    once = Idempotency(database, vault, journal, presence, clock)
    capabilities = Capabilities(database, clock, settings.x_client_id)
    confirm = settings.link_mode == "confirm"
    links = Links(database, vault, authserver, recall, lookups, clock, telemetry, settings.issuer, confirm=confirm)
    refresher = Refresher(
        database, links.tokens, authserver, links.revocations, links.require_relink, clock, telemetry, failpoints
    )
    sessions = Sessions(links, refresher, recall, clock, x.me)
    log_of_acts = ActLog(database, recall, telemetry)
    health = Health(telemetry, partial(check_storage, database, sessions), sessions.drain)
    ledger = RateWindows(database, clock, settings.x_client_id)
    requests, callbacks = (
        AuthorizationRequests(settings, database, vault, clock),
        Callbacks[Linked](database, lookups, clock),
    )
    linking = Linking(settings, requests, callbacks, authserver, links, sessions, keys, clock, failpoints)
    oauth = LinkEndpoints(requests, linking, links, capabilities, ledger, clock)
    limits = allowances(settings, clock, telemetry)
    breaker, order = CircuitBreaker(clock, telemetry), WriteOrder()
    clients = AccountClients(sessions, x, ledger, breaker, RetryBudget(), clock, settings.x_deadline_s)
    reconciler = Reconciler(database, journal, presence, sessions, x, clients, clock, telemetry)
    lanes, uploads = concurrency(settings, telemetry.metrics)
    gate = Pipeline(
        keys,
        limits,
        sessions,
        recall,
        clients,
        ledger,
        order,
        LookupRunner(clock),
        capabilities,
        journal,
        once,
        Prices.load(),
        RefusalDetails(journal, x, clock),
        lanes["calls"],
        lanes["reserved"],
        uploads,
        clock,
        settings.mode,
        settings.request_deadline_s,
        settings.upload_deadline_s,
        telemetry,
        failpoints,
        relay=settings.relay_dialect,
    )

    chores = BackgroundTasks(
        telemetry,
        ("sweep", SWEEP_EVERY_S, links.sweep),
        ("health", 0.0, health.beat),
        ("presence", RENEW_EVERY_S, presence.renew),
        ("journal", 1.0, journal.flush),
        ("reconcile", 1.0, reconciler.round),
        ("ledger", SYNC_INTERVAL_S, ledger.sync),
        ("idempotency", TIDY_EVERY_S, once.tidy),
        ("acts", ACTS_EVERY_S, log_of_acts.round),
        ("purge", TIDY_EVERY_S, partial(journal.purge, timedelta(days=settings.journal_days))),
        expected=StorageDownError,
    )

    work: tuple[Part, ...] = (chores, lookups, callbacks, sessions, links, journal, log_of_acts, presence)
    closing = (*work, *upstreams.values(), limits, ledger, database)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        progress = partial(resealed, telemetry)
        await prepare(database, vault, clock, upgrade=upgrade, failpoints=failpoints, progress=progress)
        await log_of_acts.start()
        await presence.start(alone=alone)
        await reconciler.recover()
        await limits.start()
        await ledger.sync()
        chores.start()
        try:
            yield
        finally:
            for part in closing:
                await part.close()
            telemetry.flush()

    watch(telemetry.metrics, upstreams, lanes, uploads, limits, journal)
    clients.watch(telemetry.metrics)
    every = routes(gate, oauth, journal, Pages(linking, settings.base_url), health, telemetry.metrics, settings)
    app = asgi.create(every, lifespan=lifespan, telemetry=telemetry)
    quiet = Telemetry(log, clock, "warning")  # a look at the metrics is no traffic
    metrics_app = asgi.create([metrics_route(telemetry.metrics, settings)], telemetry=quiet)
    return Gateway(
        app,
        metrics_app,
        every,
        keys,
        links,
        sessions,
        clients,
        order,
        health,
        room,
        reconciler,
        telemetry,
        settings,
    )


async def check_storage(database: Database, sessions: Sessions) -> None:
    """Raise storage_unavailable unless calls can be stored.

    While new tokens of X wait to be stored, nothing may start here that could produce more of them.
    """
    try:
        if sessions.unsaved:
            raise StorageDownError("UnsavedPair")
        await database.probe()
    except StorageDownError:
        raise GatewayError("storage_unavailable", half="nothing was changed") from None


def resealed(telemetry: Telemetry, values: int, unreadable: int) -> None:
    """Log how far the first start of this version on a database is."""
    telemetry.event("info", "pairs_resealed", values=values, unreadable=unreadable)


def found_room(settings: Settings, telemetry: Telemetry) -> ConnectionBudget:
    """The connections that there may be, by the settings and by what the system lets this process open."""
    wanted = ConnectionBudget(settings.max_connections, REFUSED_CONNECTIONS, settings.x_connections, TOKEN_CONNECTIONS)
    room = wanted.within(open_files())
    if room != wanted:
        telemetry.event("warning", "few_open_files", limit=open_files(), **asdict(room))
    return room


def allowances(settings: Settings, clock: Clock, telemetry: Telemetry) -> RateLimit:
    """Where calls are counted."""
    if settings.redis_url is None:
        return LocalRateLimit(clock)
    return SharedRateLimit(settings.redis_url.get_secret_value(), clock, telemetry)


def concurrency(settings: Settings, metrics: Metrics) -> tuple[dict[str, ConcurrencyLimiter], UploadLimits]:
    """Build the limits of concurrent calls, for each lane, and of uploads."""
    crowd = partial(
        ConcurrencyLimiter,
        queued=settings.max_calls_queued,
        each=settings.max_calls_each,
        each_queued=settings.max_calls_each_queued,
        metrics=metrics,
    )
    uploads = UploadLimits(
        most=settings.max_uploads,
        each=settings.max_uploads_each,
        most_bytes=settings.max_spooled_bytes,
        metrics=metrics,
    )
    return {"calls": crowd(most=settings.max_calls), "reserved": crowd(most=RESERVED_CALLS)}, uploads


def to_x(settings: Settings, connections: int) -> ConnectionPool:
    """A pool of connections to X."""
    return ConnectionPool(
        settings.x_api_url,
        connections=connections,
        pool_wait_s=POOL_WAIT_S,
        proxy=settings.x_proxy.get_secret_value() if settings.x_proxy else None,
        user_agent=f"birdwire/{__version__}",
    )


def watch(
    metrics: Metrics,
    upstreams: Mapping[str, ConnectionPool],
    lanes: Mapping[str, ConcurrencyLimiter],
    uploads: UploadLimits,
    limits: RateLimit,
    journal: Journal,
) -> None:
    """Have the metrics ask the parts that know."""

    def connections() -> Iterator[tuple[tuple[str, ...], float]]:
        for pool, upstream in upstreams.items():
            stats = upstream.stats()
            yield (pool, "idle"), stats.idle
            yield (pool, "busy"), stats.open - stats.idle

    metrics.watch("birdwire_calls_running", lambda: {(lane,): crowd.running for lane, crowd in lanes.items()})
    metrics.watch("birdwire_calls_queued", lambda: {(lane,): crowd.queued for lane, crowd in lanes.items()})
    metrics.watch("birdwire_uploads_running", lambda: uploads.running)
    metrics.watch("birdwire_uploads_bytes", lambda: uploads.bytes)
    metrics.watch("birdwire_journal_waiting", lambda: journal.waiting)
    metrics.watch("birdwire_journal_refused_total", lambda: journal.refused)
    metrics.watch("birdwire_writes_total", lambda: {(outcome,): times for outcome, times in journal.ended.items()})
    metrics.watch("birdwire_limits_degraded_total", lambda: limits.degraded)
    metrics.watch("birdwire_replicas", lambda: limits.replicas)
    metrics.watch("birdwire_x_connections", lambda: dict(connections()))
    metrics.watch(
        "birdwire_x_connections_opened_total",
        lambda: {(pool,): upstream.stats().opened for pool, upstream in upstreams.items()},
    )


def routes(
    gate: Pipeline,
    oauth: LinkEndpoints,
    journal: Journal,
    pages: Pages,
    health: Health,
    metrics: Metrics,
    settings: Settings,
) -> list[Route]:
    """Every path and method that is answered."""
    site = Site(settings)

    def operation_route(operation: Operation) -> Route:
        takes = Takes(
            operation.name,
            operation.body,
            limit=settings.max_body_bytes,
            file_names=FILE_FIELDS if operation.takes_file else (),
            action=operation.name,
        )
        if not operation.repeatable:
            takes = replace(takes, limit=settings.max_post_bytes, repeatable=False)
        if operation.takes_file or (settings.relay_dialect and "media" in operation.body.model_fields):
            scopes = tuple(dict.fromkeys((*operation.scopes, *UPLOAD_SCOPES)))
            takes = replace(takes, file_limit=settings.max_upload_bytes, file_scopes=scopes)
        files = (takes.file_limit, settings.upload_deadline_s) if takes.file_limit else None
        handle = partial(gate.serve, operation, takes)
        return Route("POST", f"{API}/{operation.name}", handle, takes.limit, settings.request_deadline_s, files)

    def key_route(method: str, name: str, work: Work, model: type[Body], action: str = "") -> Route:
        reserved = name in ("unlink_twitter", "auth/status")
        takes = Takes(name.partition("/{")[0], model, limit=settings.max_body_bytes, reserved=reserved, action=action)
        handle = partial(gate.answer, takes, work)
        limit, deadline_s = settings.max_body_bytes, settings.request_deadline_s
        return Route(method, f"{API}/{name}", handle, limit, deadline_s, reserved=reserved)

    own = [
        *(operation_route(operation) for operation in OPERATIONS),
        *(
            Route("GET", f"{API}/{row.name}", partial(gate.look, row))
            for row in LOOKUPS
            if row.name in settings.offered_reads
        ),
        key_route("POST", "auth_twitter", oauth.auth_twitter, AuthTwitter, LINK),
        key_route("POST", "unlink_twitter", oauth.unlink, Empty, UNLINK),
        key_route("GET", "auth/status", oauth.status, Empty),
        key_route("POST", "auth/confirm", oauth.confirm, Confirm, LINK),
        key_route("GET", "requests/{request_id}", OutcomeReports(journal).request, Empty),
    ]
    if settings.relay_dialect:
        own = [replace(route, path=path) for route in own for path in relay_dialect.aliases(route.path)]
    return [
        *own,
        Route("GET", f"{API}/oauth_callback", pages.callback, head=pages.callback_head),
        Route("POST", f"{API}/auth/undo", pages.undo, otherwise=pages.undo_opened),
        *(Route("GET", path, site.answer, head=site.answer) for path in DOCUMENTS),
        Route("GET", "/livez", health.live, head=health.live, reserved=True),
        Route("GET", "/readyz", health.ready, head=health.ready, reserved=True),
        *([metrics_route(metrics, settings)] if settings.metrics_inside else []),
    ]


def metrics_route(metrics: Metrics, settings: Settings) -> Route:
    """Where the metrics are read."""
    token = settings.metrics_token.get_secret_value() if settings.metrics_token else None
    return Route("GET", "/metrics", partial(metrics.answer, token))


__all__ = ["Gateway", "StoreError", "create_app", "open_vault", "prepare"]
