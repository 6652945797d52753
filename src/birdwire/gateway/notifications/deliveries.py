"""Deliveries: sends each event of the outbox to the destination, from one gateway process of a database at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from birdwire.gateway.notifications.destination import Destinations
    from birdwire.gateway.notifications.extras import Extras
    from birdwire.gateway.notifications.news import Word
    from birdwire.keys.cache import KeyCache
    from birdwire.outcomes.process_leases import ProcessLeases
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.outbound import Outbound
    from birdwire.runtime.telemetry import Telemetry
    from birdwire.store.database import Database

ROUND_EVERY_S: Final = 0.5


class Deliveries:
    """The deliveries of one database, as one of its gateway processes makes them."""

    def __init__(
        self,
        database: Database,
        destinations: Destinations,
        extras: Extras,
        outbound: Outbound,
        word: Word,
        leases: ProcessLeases,
        cache: KeyCache,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._database = database
        self._destinations = destinations
        self._extras = extras
        self._outbound = outbound
        self._word = word
        self._leases = leases
        self._cache = cache
        self._clock = clock
        self._telemetry = telemetry

    async def round(self) -> None:
        """Send what is due; due every ROUND_EVERY_S."""

    def drain(self) -> None:
        """Start no further sends: the process is shutting down, and another one goes on."""

    async def close(self) -> None:
        """Wait for what is being sent."""
