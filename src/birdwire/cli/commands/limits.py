"""`birdwire limits`: shows what remains of an API key's rate limit and of X's rate limits for its account."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from birdwire.api.paths import API
from birdwire.cli.gateway_client import GatewayClient
from birdwire.cli.inputs import gateway_url, read_key
from birdwire.cli.options import JsonOption, KeyFileOption
from birdwire.cli.output import family, saying
from birdwire.runtime.clock import rfc3339

if TYPE_CHECKING:
    from collections.abc import Mapping
    from email.message import Message

OURS = ("X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")
COLUMNS = ("operation", "window", "limit", "remaining", "resetAt")

app = family()


@app.command()
def limits(*, api_key_file: KeyFileOption = None, as_json: JsonOption = False) -> None:
    """Show the API key's rate limit, and X's rate limits as X last reported them.

    The first row is the key's own limit at Birdwire. The other rows are X's limits for the linked account; showing
    them does not call X.

    Example: birdwire limits
    """
    with saying(as_json=as_json) as say:
        status, headers = GatewayClient(gateway_url(), read_key(api_key_file)).look(f"{API}/auth/status")
        windows = status.get("limits")
        allowance = _allowance(headers)
        rows = [_row("any call", "60s", allowance), *_rows(windows)]
        say.table({"allowance": allowance, "limits": windows}, rows, COLUMNS, "")
        if len(rows) == 1 and not as_json:
            linked = status.get("linked")
            why = "Birdwire has not called X recently" if linked else "no X account is linked to this key"
            say.aside(f"X's rate limits are unknown: {why}.")


def _allowance(headers: Message) -> dict[str, Any]:
    """Return the key's rate limit from the response's headers; null where a header is missing."""
    limit, remaining, reset = (int(text) if (text := headers.get(name) or "").isdecimal() else None for name in OURS)
    reset_at = None if reset is None else rfc3339(datetime.fromtimestamp(reset, UTC))
    return {"limit": limit, "remaining": remaining, "reset_at": reset_at}


def _rows(windows: object) -> list[dict[str, Any]]:
    return [
        _row(operation, name, window)
        for operation, known in (sorted(windows.items()) if isinstance(windows, dict) else ())
        if isinstance(known, dict)
        for name, window in sorted(known.items())
        if isinstance(window, dict)
    ]


def _row(operation: str, name: str, window: Mapping[str, Any]) -> dict[str, Any]:
    of = {"operation": operation, "window": name, "resetAt": window.get("reset_at")}
    return of | {member: window.get(member) for member in ("limit", "remaining")}
