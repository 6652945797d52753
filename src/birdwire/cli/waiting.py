"""Writes that may wait for a person: sends one, waits for the decision if asked to, and prints what became of it."""

from __future__ import annotations

import importlib
import math
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from birdwire.api.errors import PROBLEMS
from birdwire.api.messages import ACCEPTED
from birdwire.api.paths import API
from birdwire.cli import times
from birdwire.cli.printable import printable
from birdwire.cli.stop import ExitCode, Stop

if TYPE_CHECKING:
    from birdwire.cli.gateway_client import GatewayClient
    from birdwire.cli.output import Output

WaitOption = Annotated[
    str | None,
    typer.Option(
        "--wait",
        metavar="DURATION",
        help="If a person must approve the call, wait up to this long (10s, 5m, 24h) until it is decided and done. "
        "Default: exit immediately, with code 8.",
    ),
]

LONGEST = timedelta(hours=24)
HELD_S = 30
"""How long the gateway holds a request at most until a person has decided (`Prefer: wait`)."""

PAUSE_S = 5.0
"""Time between two requests that the gateway did not hold."""

_PASSING = frozenset({ExitCode.UPSTREAM, ExitCode.LIMIT})


class Deadline:
    """When a command stops waiting for a person."""

    def __init__(self, wait_s: float) -> None:
        self._at = time.monotonic() + wait_s

    @property
    def left_s(self) -> float:
        """Return the seconds that are left; never below 0."""
        return max(0.0, self._at - time.monotonic())

    @property
    def held_s(self) -> int:
        """Return for how many seconds the next request may be held."""
        return min(HELD_S, math.ceil(self.left_s))


def patience_s(wait: str | None) -> float:
    """Return how many seconds a command waits for a person: none without --wait.

    Raises:
        Stop: the duration is not valid.
    """
    return 0.0 if wait is None else times.duration(wait, LONGEST).total_seconds()


def send(
    say: Output,
    gateway: GatewayClient,
    operation: str,
    body: dict[str, Any],
    *,
    wait_s: float,
    idempotency_key: str | None = None,
) -> dict[str, Any]:
    """Send a write, and return the response's document, also if a person approved it while the command waited.

    Raises:
        Stop: the write was refused, or its outcome is unknown, immediately or after a person was asked.
        typer.Exit: it still waits, which was printed.
    """
    deadline = Deadline(wait_s)
    # The gateway does not hold the call itself, so that the request to approve is shown before the waiting starts.
    reply = gateway.call("POST", f"{API}/{operation}", body, idempotency_key=idempotency_key)
    document = gateway.accepted(reply)
    if reply.status != ACCEPTED:
        return document
    approval = document.get("approval")
    request_id = approval.get("request_id") if isinstance(approval, dict) else None
    if not isinstance(approval, dict) or not isinstance(request_id, str):
        raise Stop(ExitCode.UPSTREAM, f"{gateway.url} answered with HTTP 202, but it does not state what waits.")
    if deadline.left_s:
        # Loaded before anything is shown: Ctrl-C during an import ends a program by the signal, even if it is caught.
        importlib.import_module("birdwire.store.tables.journal")
        until = (datetime.now().astimezone() + timedelta(seconds=deadline.left_s)).strftime("%H:%M:%S")
        try:
            say.aside(f"A person must approve it: birdwire approvals approve {printable(request_id, 60)}")
            say.aside(f"Waiting until {until}")
            with say.waiting("Waiting for a person to decide"):
                report = _decided(gateway, request_id, deadline)
        except KeyboardInterrupt:
            report = None
        if report is not None:
            return _answer(report)
    return _still_waiting(say, document, approval)


def _decided(gateway: GatewayClient, request_id: str, deadline: Deadline) -> dict[str, Any] | None:
    """Return the report of a request once its outcome is known; None if the time is over before.

    Raises:
        Stop: the gateway does not know the request, or refuses the key.
    """
    from birdwire.store.tables.journal import STATES, State  # noqa: PLC0415 - SQLAlchemy, which few calls need

    while deadline.left_s:
        started = time.monotonic()
        try:
            reply = gateway.call("GET", f"{API}/requests/{request_id}", wait_s=deadline.held_s)
            report = gateway.accepted(reply)
        except Stop as stop:
            # A gateway that restarts, or that is busy, does not change what waits.
            if stop.code not in _PASSING:
                raise
        else:
            state = str(report.get("state"))
            if state == State.UNKNOWN or (state in STATES and STATES[State(state)].final):
                return report
        if time.monotonic() - started < 1:
            time.sleep(min(PAUSE_S, deadline.left_s))
    return None


def _answer(report: dict[str, Any]) -> dict[str, Any]:
    """Return what the gateway would have answered without an approval.

    Raises:
        Stop: the write was not carried out, or its outcome is unknown.
    """
    from birdwire.cli.explained import outcome_of  # noqa: PLC0415 - as in _decided
    from birdwire.store.tables.journal import APPLIED, State  # noqa: PLC0415 - as in _decided

    state, request_id = str(report.get("state")), printable(report.get("request_id"), 60)
    if state in APPLIED:
        return {"data": report.get("data")}
    lines, fix = outcome_of(report)
    approval = report.get("approval")
    if isinstance(approval, dict) and approval.get("note"):
        lines.append(f"Note: {printable(approval['note'])}")
    code = ExitCode.UNKNOWN if state == State.UNKNOWN else ExitCode.REFUSED
    reason = report.get("reason")
    error: dict[str, Any] = {"code": "outcome_unknown" if code == ExitCode.UNKNOWN else state, "reason": reason}
    problem = PROBLEMS.get(str(reason))
    if problem is not None:
        error |= {"type": problem.type, "code": problem.code, "whose": problem.whose, "retryable": problem.retryable}
    error |= {"message": " ".join(lines), "fix": fix, "request_id": request_id}
    raise Stop(code, str(error["message"]), fix, request_id=request_id, document={"error": error})


def _still_waiting(say: Output, document: dict[str, Any], approval: dict[str, Any]) -> NoReturn:
    """Print that a write waits for a person, and end the command."""
    request_id = printable(approval.get("request_id"), 60)
    if approval.get("state") == "awaiting_approval":
        stands = f"Nothing was published. A person must approve it: birdwire approvals approve {request_id}"
    else:
        stands = f"A person approved {request_id}, and Birdwire is sending it."
    until = f"It waits until {printable(approval.get('expires_at'), 40)}."
    say.pending(document, stands, f"{until} To see what became of it, run: birdwire explain {request_id}")
    raise typer.Exit(int(ExitCode.AWAITING))
