"""The destination of notifications as commands show it: its state, and in words why a delivery failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from birdwire.cli.printable import printable
from birdwire.runtime.clock import rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from birdwire.store.tables.destinations import DestinationRow

NONE: Final = "No notifications are set."
SET: Final = "To set where they go, run: birdwire notify set URL"

KINDS: Final[Mapping[str, str]] = {
    "standard": "standard (signed JSON)",
    "ntfy": "ntfy",
    "slack": "slack (also for Mattermost and Discord)",
}
"""The kinds of destinations, in words."""

_SET_AGAIN: Final = "Set the right URL with `birdwire notify set`."
_FAILURES: Final[Mapping[str, tuple[str, str]]] = {
    "forbidden_address": (
        "{host} is not a public address, so nothing was sent to it",
        "To allow an address of your own network, set BIRDWIRE_OUTBOUND_ALLOW to it and restart the gateway.",
    ),
    "not_resolved": ("{host} has no address", "Check the host in the URL, and the DNS of the gateway's machine."),
    "unreachable": (
        "{host} accepts no connection",
        "Check that the receiver runs, and that no firewall blocks the gateway's machine.",
    ),
    "tls": (
        "no TLS connection to {host} could be made",
        "Check the receiver's certificate. If a private authority issued it, set SSL_CERT_FILE for the gateway.",
    ),
    "timeout": ("{host} did not answer in time", "The receiver should answer first, and work on the message later."),
    "cut": ("{host} closed the connection without an answer", "Check the log of the receiver."),
    "malformed": ("{host} does not answer in HTTP/1.1", f"Check the port. {_SET_AGAIN}"),
    "unreadable": ("the URL cannot be decrypted", f"Its vault key may be missing. {_SET_AGAIN}"),
    "crash": (
        "the message could not be worded",
        "This is a bug: the event `crash` in the gateway's log shows where it occurred.",
    ),
}
"""What happened, and what to do, by the class of a failure."""

_STATUSES: Final[Mapping[int, str]] = {
    401: f"The receiver refused the credentials. {_SET_AGAIN}",
    403: f"The receiver refused the credentials. {_SET_AGAIN}",
    404: f"The receiver does not know the path of the URL. {_SET_AGAIN}",
    410: f"The receiver wants no further messages, so Birdwire has switched notifications off. {_SET_AGAIN}",
    413: "The message is too large for the receiver.",
    429: "The receiver limits how many messages it accepts. Birdwire waits as long as it asks.",
}


@dataclass(frozen=True, slots=True)
class Standing:
    """How notifications stand: the destination, what waits for it, and whether its sender is alive."""

    row: DestinationRow | None
    waiting: int
    oldest_at: datetime | None
    is_sending: bool
    is_served: bool


def failure(host: str, error: str | None, status: int | None) -> tuple[str, str]:
    """Return in words why a delivery failed, and what to do."""
    host = printable(host, 260)
    if error is not None and error in _FAILURES:
        happened, fix = _FAILURES[error]
        return happened.format(host=host), fix
    if status is None:
        return f"the delivery failed ({printable(error, 40)})", "The gateway's log has the event `notification_failed`."
    if 300 <= status < 400:
        return f"{host} answered with HTTP {status}", f"Birdwire follows no redirects. {_SET_AGAIN}"
    return f"{host} answered with HTTP {status}", _STATUSES.get(status, "Check the log of the receiver.")


def switched_off(row: DestinationRow) -> str:
    """Return in words why Birdwire switched a destination off."""
    if row.off_why == "410":
        return "it answered with HTTP 410"
    return "no delivery has succeeded for five days"


def failing_since(row: DestinationRow) -> datetime | None:
    """Return since when events do not reach a destination; None if they do, although a test may have failed."""
    return row.tried_at if row.error == "unreadable" else row.failing_since


def document(standing: Standing) -> dict[str, Any]:
    """Return how notifications stand, for programs."""
    row = standing.row
    if row is None:
        return {"destination": None, "waiting": 0, "oldest_at": None, "sender": None}
    names = ("host", "kind", "with_link", "with_text", "set_by", "off_why", "status", "error")
    times = ("set_at", "secret_at", "old_secret_until", "off_at", "failing_since", "tried_at", "delivered_at")
    shown = {name: getattr(row, name) for name in names} | {name: _time(getattr(row, name)) for name in times}
    return {
        "destination": {"state": "on" if row.off_at is None else "off"} | shown,
        "waiting": standing.waiting,
        "oldest_at": _time(standing.oldest_at),
        "sender": row.sender if standing.is_sending else None,
    }


def lines(standing: Standing, now: datetime) -> Iterator[str]:
    """Yield how notifications stand, for people."""
    row = standing.row
    if row is None:
        yield NONE
        return
    yield f"Notifications go to {printable(row.host, 260)}."
    for name, value in _facts(row, standing, now):
        yield f"  {name:<11}{value}"


def _facts(row: DestinationRow, standing: Standing, now: datetime) -> Iterator[tuple[str, str]]:
    off = row.off_at is not None
    yield "State", f"off since {_time(row.off_at)}: {switched_off(row)}" if off else "on"
    yield "Kind", KINDS.get(row.kind, row.kind)
    yield "Contains", ", ".join(contents(row))
    yield "Set", f"{_time(row.set_at)} by {printable(row.set_by, 100)}"
    yield "Delivered", _time(row.delivered_at) or "nothing yet"
    if row.error is not None:
        happened, fix = failure(row.host, row.error, row.status)
        since = failing_since(row)
        name, at = ("Last try", _time(row.tried_at)) if since is None else ("Failing", f"since {_time(since)}")
        yield name, f"{at}: {happened}. {fix}"
    elif row.status is not None:
        yield "Last try", f"{_time(row.tried_at)}: HTTP {row.status}"
    oldest = "" if standing.oldest_at is None else f", the oldest since {_time(standing.oldest_at)}"
    yield "Waiting", f"{standing.waiting:,}{oldest}"
    if row.kind == "standard":
        until = row.old_secret_until
        both = "" if until is None or until <= now else f"; the old one signs too until {_time(until)}"
        yield "Secret", f"since {_time(row.secret_at)}{both}"
    if not standing.is_sending:
        none = "none: no gateway is running on this database"
        yield "Sender", "none yet: a gateway takes over within seconds" if standing.is_served else none


def contents(row: DestinationRow) -> Iterator[str]:
    """Yield what notifications to a destination contain."""
    yield "facts"
    if row.with_text:
        yield "texts of posts that wait"
    if row.with_link:
        yield "links that decide"


def _time(at: datetime | None) -> str | None:
    return None if at is None else rfc3339(at)
