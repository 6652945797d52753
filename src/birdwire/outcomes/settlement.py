"""The charges of a guarded write in its units: made when it starts, given back or corrected when it ends.

Confirmed or found: everything stays. Refused, not sent or not found: all goes back, but for what X may have billed for
an attempt whose outcome is unknown. Unknown: everything stays, until the reconciler decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from birdwire.store.database import Part
from birdwire.store.tables import journal as store
from birdwire.store.tables import usage
from birdwire.store.tables.journal import NOT_APPLIED, JournalRow, State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from birdwire.outcomes.entry import Entry


def starting(entry: Entry, row: Mapping[str, Any]) -> list[Part]:
    """Return the parts that make a write's charges and add its row, which then states them."""
    spent = _spent(entry)
    cost = entry.cost if entry.cost is not None else usage.usd_in(spent) or None
    added = {**row, "spent": spent} | ({} if cost is None else {"cost_microusd": cost})
    return [*usage.charging(entry.charges, entry.request_id), Part(store.ADD, added)]


def ending(entry: Entry, outcome: State, row: Mapping[str, Any], billed_extra: int) -> list[Part]:
    """Return the parts that record a write's outcome and correct its charges; none if all its charges stay.

    `row` holds the parameters of SETTLE. The first part fails if the row was settled before. `billed_extra` is how many
    attempts had an unknown outcome, so that X may have billed them.
    """
    counts = outcome in NOT_APPLIED
    if not counts and billed_extra <= (outcome is State.UNKNOWN):
        return []
    spent = _spent(entry)
    if not spent:
        return []
    billed = billed_extra + 1 if outcome is State.CONFIRMED else billed_extra
    if outcome is State.UNKNOWN:
        billed = max(1, billed)
    price = usage.usd_in(spent)
    back, cost = price * (1 - billed), price or entry.cost
    settled = {
        **row,
        "new_spent": usage.left(spent, usd=back, counts=counts) or None,
        "new_cost_microusd": cost and cost * max(1, billed),
    }
    change = usage.giving_back(spent, entry.request_id, usd=back, counts=counts)
    return [Part(store.SETTLE_CHARGED, settled, required=True), *change]


def judged(row: JournalRow, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Part]]:
    """Return what the reconciler changes in a row, and the parts that give its charges back with that verdict."""
    if values.get("state") != State.NOT_FOUND or not row.spent:
        return dict(values), []
    return {**values, "spent": None}, usage.giving_back(row.spent, row.request_id)


def _spent(entry: Entry) -> usage.Spent:
    return usage.encode((*entry.charges, *entry.shadow_charges))
