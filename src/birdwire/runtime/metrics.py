"""Metrics: one table of names, and their text format for Prometheus. No label identifies a user or a key."""

from __future__ import annotations

import hmac
import platform
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest

from birdwire import __version__
from birdwire.api.errors import PROBLEMS, SEND_REASONS, GatewayError
from birdwire.api.messages import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from birdwire.api.messages import Call

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The text exposition format of Prometheus."""

MAX_SERIES = 1_000
"""Maximum series of one metric; further label values count as `other`."""

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0)

Labels = tuple[str, ...]

Source = Callable[[], float | Mapping[Labels, float]]
"""Returns the current value when it is scraped: one number, or one for each combination of label values."""


@dataclass(frozen=True, slots=True)
class Row:
    """One metric. `labels` describes the values of each label; a `watched` one is read from its owner when scraped.

    `starts` are the values of its one label whose series exist, at 0, from the start. Alerts need that: Prometheus sees
    no increase where a series begins with its first event. `buckets` are the upper bounds of a histogram.
    """

    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: Mapping[str, str] = field(default_factory=dict)
    watched: bool = False
    starts: tuple[str, ...] = ()
    buckets: tuple[float, ...] = BUCKETS


_OPERATION = (
    "the call's name; `other` for pages, documents, health checks, and requests refused before the call was known"
)
_ENDPOINT = "method and path at X, with `:id` in place of IDs and names"
_SERVER_ERRORS = tuple(reason for reason, problem in PROBLEMS.items() if problem.status >= 500)
_REPLIES = ("2xx", "3xx", "4xx", "5xx", "401", "429")
_RENEWALS = ("success", "late", "refused", "held", "not_sent", "lost_reply", "x_5xx", "operator_fault", "wait_timeout", "persist_failure")  # fmt: skip

_ENDS = ("sent", "refused", "not_sent", "unknown", "denied", "expired", "stale", "cancelled")
_NEWS_ENDS = ("delivered", "failed", "given_up", "outdated", "dropped")
_DECIDED_WITHIN = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0, 7_200.0, 21_600.0, 86_400.0)

METRICS: dict[str, Row] = {
    "birdwire_requests_total": Row("counter", "Requests answered.", {"operation": _OPERATION, "status": "`2xx` to `5xx`", "reason": "the reason of the refusal (see errors.md), or empty"}),
    "birdwire_server_errors_total": Row("counter", "Requests answered with 5xx.", {"reason": "the reason (see errors.md)"}, starts=_SERVER_ERRORS),
    "birdwire_request_seconds": Row("histogram", "Seconds from a request's headers to its response.", {"operation": _OPERATION}),
    "birdwire_x_calls_total": Row("counter", "Calls to X.", {"endpoint": _ENDPOINT, "outcome": "`2xx` to `5xx`, with `401` and `429` counted separately, or why Birdwire has no usable response: `unreachable`, `tls`, `busy` (no connection became free), `timeout`, `cut` (the connection closed too early), `malformed`"}),
    "birdwire_x_outcomes_total": Row("counter", "Calls to X, over all endpoints.", {"outcome": "as above"}, starts=(*_REPLIES, *SEND_REASONS)),
    "birdwire_x_call_seconds": Row("histogram", "Seconds until X responded.", {"endpoint": _ENDPOINT}),
    "birdwire_x_retries_total": Row("counter", "Calls to X that were retries.", watched=True),
    "birdwire_x_spared_total": Row("counter", "Calls that Birdwire did not send to X because it expected them to fail.", {"why": "`window`: X's limit is used up; `breaker`: the circuit breaker of the endpoint is open"}, watched=True),
    "birdwire_x_breakers_open": Row("gauge", "Circuit breakers that are open for all accounts.", watched=True),
    "birdwire_x_connections": Row("gauge", "Connections to X.", {"pool": "`calls`, or `tokens` for renewals, links and revocations", "state": "`idle` or `busy`"}, watched=True),
    "birdwire_x_connections_opened_total": Row("counter", "Connections to X opened.", {"pool": "as above"}, watched=True),
    "birdwire_refreshes_total": Row("counter", "Renewals of X tokens.", {"outcome": "`success`, `late` (another process stored newer tokens first), `refused`, `held` (X neither renewed nor refused, for example with 429), `not_sent`, `lost_reply`, `wait_timeout`, `persist_failure`, `x_5xx`, `operator_fault`"}, starts=_RENEWALS),
    "birdwire_links_total": Row("counter", "Links by outcome. The process that records the outcome counts it.", {"outcome": "`linked`, `undone` (by the account's owner), `denied`, `mismatch` (another account approved), `unlinked` (by the key's holder, or because the key was revoked), `expired` (the approval or the confirmation came too late, or the key expired)"}, watched=True),
    "birdwire_calls_running": Row("gauge", "Calls in progress.", {"lane": "`calls`, or `reserved` for status and revocation"}, watched=True),
    "birdwire_calls_queued": Row("gauge", "Calls waiting for a slot.", {"lane": "as above"}, watched=True),
    "birdwire_calls_shed_total": Row("counter", "Calls refused because too many were in progress.", {"why": "`full` (no free slot), `late` (waited too long) or `uploads` (no free upload slot or not enough space): the gateway is at capacity; `key`: the key's own limit"}, starts=("full", "late", "uploads", "key")),
    "birdwire_uploads_running": Row("gauge", "Uploads in progress.", watched=True),
    "birdwire_uploads_bytes": Row("gauge", "Bytes that uploads in progress hold in memory and in temporary files.", watched=True),
    "birdwire_writes_total": Row("counter", "Writes to X, by the outcome that was reported to the caller.", {"outcome": "`confirmed`, `refused`, `not_sent` or `unknown`"}, watched=True),
    "birdwire_lost_posts_total": Row("counter", "Lost posts whose reconciliation has finished.", {"state": "`found`, `not_found`, or `unknown` after a day without a verdict"}, starts=("found", "not_found", "unknown")),
    "birdwire_journal_waiting": Row("gauge", "Journal rows waiting in memory for the database.", watched=True),
    "birdwire_journal_refused_total": Row("counter", "Journal rows that the database refused; each was logged and dropped from the queue.", watched=True),
    "birdwire_approvals_waiting": Row("gauge", "Calls that wait for a person's decision, as counted in the last 5 seconds; the same at every gateway of a database.", watched=True),
    "birdwire_approvals_total": Row("counter", "Calls that waited for a person, by how they ended. One gateway of a database counts each.", {"outcome": "`sent` (X carried it out), `refused` (by X), `not_sent`, `unknown`, `denied`, `expired` (nobody decided, or it could not be sent in time), `stale` (something had changed since a person was asked), `cancelled` (by its caller)"}, starts=_ENDS),
    "birdwire_approval_seconds": Row("histogram", "Seconds from a call to a person's decision on it.", {"verdict": "`approved` or `denied`"}, buckets=_DECIDED_WITHIN),
    "birdwire_approval_waits": Row("gauge", "Callers that are held until a person has decided (`Prefer: wait`).", watched=True),
    "birdwire_notifications_total": Row("counter", "Tries to deliver an event, by outcome, and events that were not tried again.", {"outcome": "`delivered`, `failed` (it is tried again), `given_up` (after the last try), `outdated` (a person need not hear of it any more), `dropped` (the destination was switched off)"}, starts=_NEWS_ENDS),
    "birdwire_notifications_waiting": Row("gauge", "Events that wait for the destination, as counted in the last 5 seconds by the gateway that sends them; 0 at the others. At 20,000, no further events are written; at 15,000, none of approvals.", watched=True),
    "birdwire_notifications_off": Row("gauge", "1 while the destination is switched off because it failed for five days, or answered 410.", watched=True),
    "birdwire_limits_degraded_total": Row("counter", "Calls counted locally because the shared counters did not respond in time.", watched=True),
    "birdwire_replicas": Row("gauge", "Gateways that share the counters, as last reported by Redis; 1 without Redis.", watched=True),
    "birdwire_connections": Row("gauge", "Connections from callers.", watched=True),
    "birdwire_log_lines_dropped_total": Row("counter", "Log lines dropped because they could not be written to stderr in time.", watched=True),
    "birdwire_loop_lag_seconds": Row("gauge", "The longest stall of the event loop in the last 15 seconds.", watched=True),
    "birdwire_draining": Row("gauge", "1 while the process shuts down.", watched=True),
    "birdwire_build_info": Row("gauge", "Always 1.", {"version": "the version of Birdwire", "python": "the version of Python"}, watched=True),
}  # fmt: skip
"""Every metric. Prometheus's standard process metrics (`process_*`) are exported as well."""


class Metrics:
    """Counts the metrics of one gateway, in its own registry. Must be used from one thread.

    Counts are plain numbers in dictionaries until they are scraped: 0.2 microseconds each, a third of the cost of the
    library's own counters.
    """

    def __init__(self, max_series: int = MAX_SERIES) -> None:
        self._max_series = max_series
        self._counts: dict[str, dict[Labels, float]] = {
            name: {(value,): 0.0 for value in METRICS[name].starts} for name in _names("counter")
        }
        self._times: dict[str, dict[Labels, list[float]]] = {name: {} for name in _names("histogram")}
        self._sources: dict[str, Source] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        build = (__version__, platform.python_version())
        self.watch("birdwire_build_info", lambda: {build: 1.0})

    def add(self, name: str, *labels: str, times: int = 1) -> None:
        """Add one, or `times`, to the series with these label values."""
        series = self._counts[name]
        if labels not in series and len(series) >= self._max_series:
            labels = ("other",) * len(labels)
        series[labels] = series.get(labels, 0.0) + times

    def time(self, name: str, seconds: float, *labels: str) -> None:
        """Add one observation, in seconds, to a histogram with the usual BUCKETS."""
        times = self._times[name].get(labels) or self._series(name, labels)
        times[bisect_left(BUCKETS, seconds)] += 1.0
        times[-1] += seconds

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Add one observation to a histogram with buckets of its own."""
        counts = self._times[name].get(labels) or self._series(name, labels)
        counts[bisect_left(METRICS[name].buckets, value)] += 1.0
        counts[-1] += value

    def _series(self, name: str, labels: Labels) -> list[float]:
        series = self._times[name]
        if len(series) >= self._max_series:
            labels = ("other",) * len(labels)
        return series.setdefault(labels, [0.0] * (len(METRICS[name].buckets) + 2))

    def watch(self, name: str, source: Source) -> None:
        """Register the source of a watched metric."""
        if not METRICS[name].watched:
            raise ValueError(f"{name} is counted, not watched")
        self._sources[name] = source

    async def answer(self, token: str | None, call: Call) -> Answer:
        """Return all metrics in the text format; requires the token if one is configured.

        Raises:
            GatewayError: metrics_token_wrong.
        """
        sent = call.header("authorization") or ""
        if token is not None and not hmac.compare_digest(sent.encode(), f"Bearer {token}".encode()):
            raise GatewayError("metrics_token_wrong")
        return Answer(200, (("content-type", CONTENT_TYPE),), generate_latest(self._registry))

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families, as prometheus-client's registry asks for them."""
        for name, row in METRICS.items():
            if row.kind == "histogram":
                yield self._histogram(name, row)
                continue
            value: float | Mapping[Labels, float] = self._sources[name]() if name in self._sources else {}
            series = value if isinstance(value, Mapping) else {(): value}
            kind = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
            family = kind(name, row.meaning, labels=tuple(row.labels))
            for labels, count in (series if row.watched else self._counts[name]).items():
                family.add_metric(labels, count)
            yield family

    def _histogram(self, name: str, row: Row) -> HistogramMetricFamily:
        family = HistogramMetricFamily(name, row.meaning, labels=tuple(row.labels))
        for labels, (*counts, total) in self._times[name].items():
            bounds = [*map(str, row.buckets), "+Inf"]
            family.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
        return family


def _names(kind: str) -> list[str]:
    return [name for name, row in METRICS.items() if row.kind == kind and not row.watched]
