"""Columns of the journal's rows, and the refusal of a write whose row the store does not take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from birdwire.api.errors import GatewayError, Outcome
from birdwire.store.tables.journal import JournalRow, State, Why, journal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from birdwire.outcomes.entry import Entry

_UNRECORDED: dict[State, tuple[Outcome, str]] = {
    State.CONFIRMED: ("unknown", "X carried out the write, but the outcome could not be recorded"),
    State.REFUSED: ("refused", "X refused the write, but the outcome could not be recorded"),
    State.NOT_SENT: ("not_sent", "nothing was sent to X"),
    State.UNKNOWN: ("unknown", "X may have carried out the write, but the outcome could not be recorded"),
}
"""The states in which a call may end, each with the outcome and the words of its refusal if the store is down.

Without a record a confirmed write cannot be looked up later, so it is unknown to a caller that asks again.
"""


def new_row(entry: Entry, state: State, now: datetime) -> dict[str, Any]:
    """Return a new row's columns that have a value; the database fills in the others."""
    row = {
        "request_id": entry.request_id,
        "key_id": entry.key_id,
        "user_id": entry.user_id,
        "operation": entry.operation,
        "target": entry.target,
        "asked": entry.asked,
        "state": state,
        "created_at": now,
    }
    if entry.cost is not None:
        row["cost_microusd"] = entry.cost
    return row


def as_stored(row: Mapping[str, Any]) -> JournalRow:
    """Return a new row as the database stores it: with the columns that it does not name."""
    defaults: dict[str, Any] = dict.fromkeys(journal.c.keys()) | {"looks": 0, "reads": 0}
    return JournalRow(**(defaults | dict(row)))


def deleted(entry: Entry, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the id of the post that a deletion has deleted, as a column, or nothing."""
    return {"x_id": entry.target} if (values.get("data") or {}).get("deleted") else {}


def why_lost(operation: str, *, searchable: bool) -> Why:
    """Return why the outcome of a write is unknown when its answer has just been lost."""
    if searchable:
        return Why.LOOKING
    return Why.UPLOAD if operation == "upload_media" else Why.NOT_IN_TIMELINE


def unrecorded(state: State) -> GatewayError:
    """Return the refusal of a write whose state the store does not take."""
    outcome, half = _UNRECORDED[state]
    return GatewayError("storage_unavailable", half=half, outcome=outcome)
