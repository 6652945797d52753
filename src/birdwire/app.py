"""Composition root: create_app() builds every part; nothing else constructs."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from birdwire.accounts.callbacks import Callbacks
from birdwire.accounts.endpoints import LinkEndpoints
from birdwire.accounts.linking import AuthorizationRequests, Linked, Linking
from birdwire.accounts.links import Links
from birdwire.accounts.pages import Pages
from birdwire.accounts.refresh import Refresher
from birdwire.accounts.retrying_client import AccountClients, RetryBudget
from birdwire.accounts.sessions import Sessions
from birdwire.edge import asgi, server
from birdwire.edge.connections import EdgeLimits
from birdwire.edge.fast_path import FastPathProtocol
from birdwire.gateway.admission import Admission
from birdwire.gateway.approval_waits import ApprovalWaits
from birdwire.gateway.approved_writes import ROUND_EVERY_S, ApprovedWrites
from birdwire.gateway.cancellations import Cancellations
from birdwire.gateway.capacity import Capacity
from birdwire.gateway.concurrency import ConcurrencyLimiter
from birdwire.gateway.guardrails.approvals import Approvals
from birdwire.gateway.guardrails.budget_reports import BudgetReports
from birdwire.gateway.guardrails.guards import Guards
from birdwire.gateway.guardrails.preview import Preview
from birdwire.gateway.guardrails.signed_links import SignedLinks
from birdwire.gateway.guardrails.spending import Spending
from birdwire.gateway.guardrails.status import GuardStatus
from birdwire.gateway.guardrails.trips import Trips
from birdwire.gateway.lookups import Lookups
from birdwire.gateway.notifications import deliveries
from birdwire.gateway.notifications.deliveries import Deliveries
from birdwire.gateway.notifications.destination import Destinations
from birdwire.gateway.notifications.extras import Extras
from birdwire.gateway.pipeline import Pipeline
from birdwire.gateway.refusal_details import RefusalDetails
from birdwire.gateway.sender import OperationSender
from birdwire.gateway.upload_limits import UploadLimits
from birdwire.gateway.uploader import MediaUploader
from birdwire.gateway.writes import Writes
from birdwire.keys.cache import KeyCache
from birdwire.keys.guess_limit import GuessLimiter
from birdwire.keys.redis_rate_limit import rate_limit_of
from birdwire.keys.registry import Keys
from birdwire.outcomes.acts import ActLog
from birdwire.outcomes.approval_records import ApprovalRecords
from birdwire.outcomes.attempts import Attempts
from birdwire.outcomes.idempotency import Idempotency
from birdwire.outcomes.journal import Journal
from birdwire.outcomes.process_leases import RENEW_EVERY_S, ProcessLeases
from birdwire.outcomes.reconciler import Reconciler
from birdwire.outcomes.report import OutcomeReports
from birdwire.routes import Handlers, edge_limits, metrics_route, routes
from birdwire.runtime.background import BackgroundTasks
from birdwire.runtime.clock import Clock
from birdwire.runtime.failpoints import Failpoints
from birdwire.runtime.health import Health
from birdwire.runtime.outbound import Outbound
from birdwire.runtime.telemetry import Telemetry
from birdwire.startup import check_storage, connection_budget, log_reseal, open_vault, prepare
from birdwire.store.database import Database
from birdwire.store.encryption.text_marks import TextMarks
from birdwire.store.schema import StorageDownError
from birdwire.surfaces.approve.pages import ApprovePages
from birdwire.surfaces.mcp.endpoint import McpEndpoint
from birdwire.surfaces.notifications.messages import word
from birdwire.surfaces.site.handler import Site
from birdwire.x.catalog.lookups import LookupRunner
from birdwire.x.catalog.prices import Prices
from birdwire.x.client.api import X
from birdwire.x.client.auth_server import AuthServer
from birdwire.x.client.pool_to_x import pool_to_x, watch_pools
from birdwire.x.limits.capabilities import Capabilities
from birdwire.x.limits.circuit_breaker import CircuitBreaker
from birdwire.x.limits.rate_windows import SYNC_INTERVAL_S, RateWindows
from birdwire.x.limits.write_order import WriteOrder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    import uvicorn
    from starlette.applications import Starlette

    from birdwire.edge.asgi import Route
    from birdwire.keys.rate_limit import RateLimit
    from birdwire.runtime.file_limits import ConnectionBudget
    from birdwire.runtime.metrics import Metrics
    from birdwire.settings import Settings
    from birdwire.store.encryption.vault import Vault
    from birdwire.x.client.pool import ConnectionPool

SWEEP_EVERY_S = 5.0
METRICS_CONNECTIONS = 5
RESERVED_CALLS = 20
"""Concurrent calls for status and revocation, in addition to all other calls."""
TIDY_EVERY_S = 60.0
ACTS_EVERY_S = 1.0


class Part(Protocol):
    """A part that runs until it is closed."""

    async def close(self) -> None:
        """Finish the work in progress, then stop."""


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
    connections: ConnectionBudget
    leases: ProcessLeases
    reconciler: Reconciler
    waits: ApprovalWaits
    telemetry: Telemetry
    settings: Settings

    def server(self, *, fast_path: bool = True, **overrides: Any) -> uvicorn.Config:
        """Return how to serve it: behind the edge, with each route's bounds; `overrides` are uvicorn's own options.

        Without the `fast_path` the app answers everything: slower, and the same to the byte.
        """
        limits = edge_limits(self.settings, self.routes, self.connections)
        return server.config(
            self.app,
            limits=limits,
            telemetry=self.telemetry,
            protocol=self.protocol() if fast_path else None,
            draining=self.health.draining,
            **overrides,
        )

    def metrics_server(self, **overrides: Any) -> uvicorn.Config:
        """Return how to serve the metrics on a port of their own."""
        return server.config(
            self.metrics_app, limits=EdgeLimits(connections=METRICS_CONNECTIONS, connections_refused=1), **overrides
        )

    def protocol(self) -> Callable[..., FastPathProtocol]:
        """Return the edge's protocol, with every POST to a fixed path on the fast path."""
        handlers = {
            route.path: route.handle for route in self.routes if route.method == "POST" and "{" not in route.path
        }
        return partial(FastPathProtocol, handlers, self.telemetry)


@dataclass(frozen=True, slots=True)
class _Shared:
    """What most parts of a gateway share."""

    settings: Settings
    clock: Clock
    telemetry: Telemetry
    failpoints: Failpoints
    vault: Vault
    database: Database
    connections: ConnectionBudget
    cache: KeyCache
    guesses: GuessLimiter
    keys: Keys
    destinations: Destinations


@dataclass(frozen=True, slots=True)
class _ToX:
    """What sends requests to X, and what X allows."""

    pools: Mapping[str, ConnectionPool]
    x: X
    authserver: AuthServer
    windows: RateWindows
    order: WriteOrder
    capabilities: Capabilities


@dataclass(frozen=True, slots=True)
class _Outcomes:
    """What records the outcome of each write."""

    leases: ProcessLeases
    journal: Journal
    records: ApprovalRecords
    idempotency: Idempotency
    attempts: Attempts


@dataclass(frozen=True, slots=True)
class _Accounts:
    """What links accounts and calls X for them."""

    links: Links
    sessions: Sessions
    clients: AccountClients
    callbacks: Callbacks[Linked]
    linking: Linking
    guards: Guards
    spending: Spending
    status: GuardStatus
    endpoints: LinkEndpoints


@dataclass(frozen=True, slots=True)
class _Writing:
    """What performs writes, and makes some of them wait for a person."""

    admission: Admission
    approvals: Approvals
    writes: Writes
    waits: ApprovalWaits
    approved: ApprovedWrites


def create_app(
    settings: Settings,
    *,
    clock: Clock | None = None,
    log: TextIO = sys.stderr,
    upgrade: bool = False,
    alone: bool = False,
) -> Gateway:
    """Build the gateway. Nothing is opened before the app starts. `alone`: no other gateway uses its database.

    Raises:
        VaultError: the vault key is missing or cannot be used.
    """
    shared = _build_shared(settings, clock or Clock(), log)
    database, telemetry = shared.database, shared.telemetry
    to_x, outcomes = _build_to_x(shared), _build_outcomes(shared)
    accounts, act_log = _build_accounts(shared, to_x), ActLog(database, shared.cache, telemetry)
    sessions = accounts.sessions
    rate_limit, capacity = rate_limit_of(settings, shared.clock, telemetry), _capacity(settings, telemetry.metrics)
    writing = _build_writing(shared, to_x, outcomes, accounts, rate_limit)
    notifications, outbound = _build_notifications(shared, outcomes, writing.approvals)
    sending = (writing.waits, writing.approved, notifications)
    drains = (part.drain for part in (sessions, *sending))
    health = Health(telemetry, partial(check_storage, database, sessions), *drains)
    handlers = _build_handlers(shared, to_x, outcomes, accounts, writing, capacity, health)
    journal, leases = outcomes.journal, outcomes.leases
    clients, on_read = accounts.clients, accounts.spending.add_search
    reconciler = Reconciler(database, journal, leases, sessions, to_x.x, clients, shared.clock, telemetry, on_read)
    rounds = (writing.approved, reconciler, notifications)
    background = _build_background(shared, to_x, outcomes, accounts.links, rounds, health, act_log)
    recording = (journal, outcomes.attempts, act_log, leases)
    work = (background, *sending, shared.guesses, accounts.callbacks, sessions, accounts.links, *recording)
    closing: tuple[Part, ...] = (*work, outbound, *to_x.pools.values(), rate_limit, to_x.windows, database)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        progress, failpoints = partial(log_reseal, telemetry), shared.failpoints
        await prepare(database, shared.vault, shared.clock, upgrade=upgrade, failpoints=failpoints, progress=progress)
        await act_log.start()
        await leases.start(alone=alone)
        await reconciler.recover()
        await rate_limit.start()
        await to_x.windows.sync()
        background.start()
        try:
            yield
        finally:
            for part in closing:
                await part.close()
            telemetry.flush()

    _watch(telemetry.metrics, to_x.pools, capacity, rate_limit, journal)
    every = routes(handlers, settings)
    # A request for the metrics is not traffic.
    quiet = Telemetry(log, shared.clock, "warning")
    return Gateway(
        app=asgi.create(every, lifespan=lifespan, telemetry=telemetry),
        metrics_app=asgi.create([metrics_route(telemetry.metrics, settings)], telemetry=quiet),
        routes=every,
        keys=shared.keys,
        links=accounts.links,
        sessions=sessions,
        clients=accounts.clients,
        order=to_x.order,
        health=health,
        connections=shared.connections,
        leases=leases,
        reconciler=reconciler,
        waits=writing.waits,
        telemetry=telemetry,
        settings=settings,
    )


def _build_shared(settings: Settings, clock: Clock, log: TextIO) -> _Shared:
    telemetry, failpoints = Telemetry(log, clock, settings.log_level), Failpoints(settings.failpoints)
    vault, database = open_vault(settings), Database(settings.database_url)
    cache, guesses = KeyCache(database, clock), GuessLimiter(clock)
    return _Shared(
        settings,
        clock,
        telemetry,
        failpoints,
        vault,
        database,
        connection_budget(settings, telemetry),
        cache,
        guesses,
        Keys(database, clock, cache, guesses),
        Destinations(database, vault, clock, settings.outbound_rules),
    )


def _build_to_x(shared: _Shared) -> _ToX:
    settings, clock, database = shared.settings, shared.clock, shared.database
    budget = shared.connections
    pools = {"calls": pool_to_x(settings, budget.calls), "tokens": pool_to_x(settings, budget.tokens)}
    return _ToX(
        pools,
        X(pools["calls"], clock, shared.telemetry.metrics),
        AuthServer(settings, pools["tokens"]),
        RateWindows(database, clock, settings.x_client_id),
        WriteOrder(),
        Capabilities(database, clock, settings.x_client_id),
    )


def _build_outcomes(shared: _Shared) -> _Outcomes:
    database, vault, clock = shared.database, shared.vault, shared.clock
    leases = ProcessLeases(database, clock)
    journal = Journal(database, vault, leases, clock, shared.telemetry)
    records = ApprovalRecords(database, vault, journal.find, clock)
    idempotency = Idempotency(database, vault, journal, leases, records, clock)
    return _Outcomes(leases, journal, records, idempotency, Attempts(database, clock))


def _build_accounts(shared: _Shared, to_x: _ToX) -> _Accounts:
    settings, database, vault, clock = shared.settings, shared.database, shared.vault, shared.clock
    telemetry, failpoints = shared.telemetry, shared.failpoints
    confirm = settings.link_mode == "confirm"
    cache, guesses, authserver = shared.cache, shared.guesses, to_x.authserver
    links = Links(database, vault, authserver, cache, guesses, clock, telemetry, settings.issuer, confirm=confirm)
    refresher = Refresher(
        database, links.tokens, authserver, links.revocations, links.require_relink, clock, telemetry, failpoints
    )
    guards, marks = Guards(database, links, cache, Trips(database, clock).after), TextMarks(database, vault, clock)
    reports = BudgetReports(database, clock, lambda: shared.destinations.on)
    spending = Spending(database, guards.of, marks, Prices.load(), clock, reports)
    sessions = Sessions(links, refresher, cache, clock, to_x.x.me, spending.add_naming)
    requests = AuthorizationRequests(settings, database, vault, clock)
    callbacks = Callbacks[Linked](database, guesses, clock)
    linking = Linking(settings, requests, callbacks, authserver, links, sessions, shared.keys, clock, failpoints)
    status = GuardStatus(database, guards.of, clock)
    endpoints = LinkEndpoints(requests, linking, links, to_x.capabilities, to_x.windows, clock, status.describe)
    breaker = CircuitBreaker(clock, telemetry)
    clients = AccountClients(sessions, to_x.x, to_x.windows, breaker, RetryBudget(), clock, settings.x_deadline_s)
    clients.watch(telemetry.metrics)
    return _Accounts(links, sessions, clients, callbacks, linking, guards, spending, status, endpoints)


def _build_writing(
    shared: _Shared, to_x: _ToX, outcomes: _Outcomes, accounts: _Accounts, rate_limit: RateLimit
) -> _Writing:
    settings, clock, failpoints = shared.settings, shared.clock, shared.failpoints
    database, telemetry, sessions = shared.database, shared.telemetry, accounts.sessions
    journal, idempotency, records = outcomes.journal, outcomes.idempotency, outcomes.records
    admission = Admission(shared.keys, shared.cache, sessions, accounts.guards, rate_limit, clock, settings.mode)
    uploader = MediaUploader(clock, settings.upload_deadline_s)
    refusals = RefusalDetails(journal, to_x.x, clock)
    sender = OperationSender(to_x.order, journal, to_x.capabilities, refusals, failpoints)
    approvals = Approvals(database, records, accounts.spending, telemetry, clock, settings.approval_ttl_s)
    clients = accounts.clients
    writes = Writes(admission, clients, journal, idempotency, approvals, uploader, sender, failpoints, telemetry)
    waits, send = ApprovalWaits(database, records.answer, telemetry), writes.perform_approved
    approved = ApprovedWrites(database, records, admission, send, waits, outcomes.leases, clock, telemetry)
    return _Writing(admission, approvals, writes, waits, approved)


def _build_notifications(shared: _Shared, outcomes: _Outcomes, approvals: Approvals) -> tuple[Deliveries, Outbound]:
    settings, database, clock, leases = shared.settings, shared.database, shared.clock, outcomes.leases
    outbound = Outbound(settings.outbound_rules, clock=clock)
    extras = Extras(
        database,
        shared.vault,
        outcomes.records,
        approvals.make_link,
        lambda: settings.public_url or leases.address,
        clock,
    )
    to, cache, telemetry = shared.destinations, shared.cache, shared.telemetry
    return Deliveries(database, to, extras, outbound, word, leases, cache, clock, telemetry), outbound


def _build_handlers(
    shared: _Shared,
    to_x: _ToX,
    outcomes: _Outcomes,
    accounts: _Accounts,
    writing: _Writing,
    capacity: Capacity,
    health: Health,
) -> Handlers:
    settings, spending, records, writes = shared.settings, accounts.spending, outcomes.records, writing.writes
    pipeline = Pipeline(
        writing.admission,
        accounts.sessions,
        capacity,
        outcomes.idempotency,
        outcomes.journal.rejections,
        outcomes.attempts,
        writing.waits,
        keyless_body_s=settings.request_deadline_s,
    )
    signed_links = SignedLinks(shared.database, writing.approvals, records, shared.guesses, shared.failpoints)
    return Handlers(
        run=pipeline.run,
        write=writes.perform_call,
        preview=Preview(writes.preview, accounts.status, spending.prices, to_x.capabilities, to_x.windows).answer,
        look_up=Lookups(writing.admission, accounts.clients, spending, LookupRunner(shared.clock)).perform,
        cancel=Cancellations(writing.approvals, records).cancel,
        links=accounts.endpoints,
        outcomes=OutcomeReports(outcomes.journal, records),
        pages=Pages(accounts.linking, settings.base_url),
        approve=ApprovePages(signed_links, shared.clock, settings.base_url),
        mcp=partial(McpEndpoint, pipeline, accounts.sessions.ready, settings),
        document=Site(settings).answer,
        health=health,
        metrics=shared.telemetry.metrics,
    )


def _build_background(
    shared: _Shared,
    to_x: _ToX,
    outcomes: _Outcomes,
    links: Links,
    rounds: tuple[ApprovedWrites, Reconciler, Deliveries],
    health: Health,
    act_log: ActLog,
) -> BackgroundTasks:
    approved, reconciler, notifications = rounds
    journal, keep = outcomes.journal, timedelta(days=shared.settings.journal_days)
    return BackgroundTasks(
        shared.telemetry,
        ("sweep", SWEEP_EVERY_S, links.sweep),
        ("health", 0.0, health.beat),
        ("presence", RENEW_EVERY_S, outcomes.leases.renew),
        ("journal", 1.0, journal.flush),
        ("attempts", 1.0, outcomes.attempts.flush),
        ("approvals", ROUND_EVERY_S, approved.round),
        ("notifications", deliveries.ROUND_EVERY_S, notifications.round),
        ("reconcile", 1.0, reconciler.round),
        ("ledger", SYNC_INTERVAL_S, to_x.windows.sync),
        ("idempotency", TIDY_EVERY_S, outcomes.idempotency.tidy),
        ("acts", ACTS_EVERY_S, act_log.round),
        ("purge", TIDY_EVERY_S, partial(journal.purge, keep)),
        expected=StorageDownError,
    )


def _capacity(settings: Settings, metrics: Metrics) -> Capacity:
    limiter = partial(
        ConcurrencyLimiter,
        max_queued=settings.max_calls_queued,
        max_running_each=settings.max_calls_each,
        max_queued_each=settings.max_calls_each_queued,
        metrics=metrics,
    )
    uploads = UploadLimits(
        max_total=settings.max_uploads,
        max_each=settings.max_uploads_each,
        max_bytes=settings.max_spooled_bytes,
        metrics=metrics,
    )
    return Capacity(limiter(max_running=settings.max_calls), limiter(max_running=RESERVED_CALLS), uploads)


def _watch(
    metrics: Metrics,
    pools: Mapping[str, ConnectionPool],
    capacity: Capacity,
    rate_limit: RateLimit,
    journal: Journal,
) -> None:
    """Have the metrics read the parts that count."""
    capacity.watch(metrics)
    watch_pools(metrics, pools)
    metrics.watch("birdwire_journal_waiting", lambda: journal.waiting)
    metrics.watch("birdwire_journal_refused_total", lambda: journal.refused)
    metrics.watch("birdwire_writes_total", lambda: {(outcome,): times for outcome, times in journal.ended.items()})
    metrics.watch("birdwire_limits_degraded_total", lambda: rate_limit.degraded)
    metrics.watch("birdwire_replicas", lambda: rate_limit.replicas)
