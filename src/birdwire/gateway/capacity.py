"""Capacity: how many calls and uploads this process serves concurrently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from birdwire.gateway.concurrency import ConcurrencyLimiter
    from birdwire.gateway.upload_limits import UploadLimits


@dataclass(frozen=True, slots=True)
class Capacity:
    """The limits of ordinary calls, of calls to reserved routes, and of uploads."""

    calls: ConcurrencyLimiter
    reserved: ConcurrencyLimiter
    uploads: UploadLimits
