"""Capacity: how many calls and uploads this process serves concurrently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from birdwire.gateway.concurrency import ConcurrencyLimiter
    from birdwire.gateway.upload_limits import UploadLimits
    from birdwire.runtime.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Capacity:
    """The limits of ordinary calls, of calls to reserved routes, and of uploads."""

    calls: ConcurrencyLimiter
    reserved: ConcurrencyLimiter
    uploads: UploadLimits

    def watch(self, metrics: Metrics) -> None:
        """Have the metrics read the limits."""
        limiters, uploads = {"calls": self.calls, "reserved": self.reserved}, self.uploads
        metrics.watch("birdwire_calls_running", lambda: {(name,): one.running for name, one in limiters.items()})
        metrics.watch("birdwire_calls_queued", lambda: {(name,): one.queued for name, one in limiters.items()})
        metrics.watch("birdwire_uploads_running", lambda: uploads.running)
        metrics.watch("birdwire_uploads_bytes", lambda: uploads.bytes)
