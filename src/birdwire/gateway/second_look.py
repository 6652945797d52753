"""The second look at an approved write: what must still hold before it is sent, and what its refusals then mean.

A refusal that passes leaves the write approved, to be tried again until its time is over. Any other one ends it: a
person approved the write as it was then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from birdwire.api.errors import GatewayError, describe
from birdwire.outcomes.approval_records import expired

if TYPE_CHECKING:
    from datetime import datetime

    from birdwire.outcomes.approval_payload import Payload
    from birdwire.outcomes.approval_records import Waiting

_PAUSED: Final = frozenset({"paused", "paused_by_owner"})
_QUOTA: Final = "quota_exceeded"
_FINAL: Final = frozenset({"approval_stale", "approval_expired", "superseded"})
"""The reasons that an approved write ends with as they are."""


def check_payload(waiting: Waiting, now: datetime) -> Payload:
    """Return what was approved, exactly as it was shown, while it may still be sent.

    Raises:
        GatewayError: approval_expired; approval_stale: the stored payload was changed, or X deletes one of its files.
    """
    row, payload = waiting.row, waiting.payload
    if row.expires_at <= now:
        raise expired(decided=True)
    if payload is None or payload.sha256 != row.payload_sha256:
        raise GatewayError("approval_stale", detail="the stored request is not the one that was approved")
    if (payload.operation, payload.user_id) != (row.operation, row.user_id):
        raise GatewayError("approval_stale", detail="the stored request belongs to another call")
    if row.media_until is not None and row.media_until <= now:
        raise GatewayError("approval_stale", detail="X deletes the uploaded files in less than five minutes")
    return payload


def check_price(waiting: Waiting, price: int | None) -> None:
    """Check that a write does not cost more than was approved; both prices are in millionths of a dollar.

    Raises:
        GatewayError: approval_stale.
    """
    approved = waiting.row.cost_microusd
    if approved is not None and price is not None and price > approved:
        raise GatewayError("approval_stale", detail="the call costs more than was approved")


def passes(error: GatewayError) -> bool:
    """Return whether a refusal passes by itself, so that the write stays approved.

    A quota is a rule that the operator set, or X's bill: it does not pass, though a caller could wait for its end.
    """
    unsent = error.problem.retryable and error.outcome != "unknown" and error.problem.code != _QUOTA
    return unsent or error.reason in _PAUSED


def stale(error: GatewayError) -> GatewayError:
    """Return the refusal with which an approved write ends that may no longer be sent."""
    if error.reason in _FINAL:
        return error
    message, _ = describe(error)
    return GatewayError("approval_stale", detail=message.rstrip("."), findings=error.findings)
