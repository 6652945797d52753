"""The pools of connections to X: how many connections each has, by the settings, and the metrics that read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from birdwire import __version__
from birdwire.x.client.pool import ConnectionPool, PoolLimits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from birdwire.runtime.metrics import Metrics
    from birdwire.settings import Settings

POOL_WAIT_S = 10.0
"""How long a call waits for a connection to X: as long as it may wait for a slot."""


def pool_to_x(settings: Settings, connections: int) -> ConnectionPool:
    """Return a pool of connections to X."""
    return ConnectionPool(
        settings.x_api_url,
        PoolLimits(connections=connections, pool_wait_s=POOL_WAIT_S),
        proxy=settings.x_proxy.get_secret_value() if settings.x_proxy else None,
        user_agent=f"birdwire/{__version__}",
    )


def watch_pools(metrics: Metrics, pools: Mapping[str, ConnectionPool]) -> None:
    """Have the metrics read the pools, by their names."""

    def connections() -> Iterator[tuple[tuple[str, ...], float]]:
        for name, pool in pools.items():
            stats = pool.stats()
            yield (name, "idle"), stats.idle
            yield (name, "busy"), stats.open - stats.idle

    metrics.watch("birdwire_x_connections", lambda: dict(connections()))
    metrics.watch(
        "birdwire_x_connections_opened_total", lambda: {(name,): pool.stats().opened for name, pool in pools.items()}
    )
