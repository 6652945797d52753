"""How uvicorn serves an app behind the edge."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn

from birdwire.edge.connections import ConnectionLimits, EdgeLimits
from birdwire.edge.protocol import EdgeProtocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp

    from birdwire.runtime.telemetry import Telemetry


def config(
    app: ASGIApp,
    *,
    limits: EdgeLimits,
    telemetry: Telemetry | None = None,
    protocol: Callable[..., EdgeProtocol] | None = None,
    draining: Callable[[], bool] = bool,
    **overrides: Any,
) -> uvicorn.Config:
    """Return the configuration that serves `app`; `overrides` are uvicorn's own options.

    While `draining` returns true, each connection closes after its next response.

    Raises:
        ValueError: `uncapped` or `trusted_proxies` contains something that is not a network.
    """
    options: dict[str, Any] = {
        "http": partial(protocol or EdgeProtocol, ConnectionLimits(limits, telemetry, draining)),
        "ws": "none",
        "lifespan": "on",
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        "date_header": True,
        # The edge reads X-Forwarded-For itself, and trusts no proxy by default.
        "proxy_headers": False,
    }
    return uvicorn.Config(app, **(options | overrides))
