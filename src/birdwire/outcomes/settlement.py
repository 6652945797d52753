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
    from collections.abc import Mapping, Sequence

    from birdwire.store.tables.usage import Charge


def starting(row: Mapping[str, Any], charges: Sequence[Charge], shadow_charges: Sequence[Charge]) -> list[Part]:
    """Return the parts that make a write's charges and add its row, which then states all of them and their sum."""
    spent = usage.encode((*charges, *shadow_charges))
    cost = row.get("cost_microusd") or usage.usd_in(spent)
    added = {**row, "spent": spent} | ({"cost_microusd": cost} if cost else {})
    return [*usage.charging(charges, row["request_id"]), Part(store.ADD, added)]


def ending(
    row: Mapping[str, Any], outcome: State, charges: Sequence[Charge], cost: int | None, billed_extra: int
) -> list[Part]:
    """Return the parts that record a write's outcome and correct its charges; none if all its charges stay.

    `row` holds the parameters of SETTLE. The first part fails if the row was settled before. `cost` is the price,
    and `billed_extra` is how many attempts had an unknown outcome, so that X may have billed them.
    """
    counts = outcome in NOT_APPLIED
    if not charges or (not counts and billed_extra <= (outcome is State.UNKNOWN)):
        return []
    billed = billed_extra + 1 if outcome is State.CONFIRMED else billed_extra
    spent = usage.encode(charges)
    cost = usage.usd_in(spent) or cost
    settled = {
        **row,
        "new_spent": usage.left(spent, billed=billed, counts=counts) or None,
        "new_cost_microusd": cost and cost * max(1, billed),
    }
    change = usage.giving_back(spent, row["of"], billed=billed, counts=counts)
    return [Part(store.SETTLE_CHARGED, settled, required=True), *change]


def judged(row: JournalRow, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Part]]:
    """Return what the reconciler changes in a row, and the parts that give its charges back with that verdict."""
    if values.get("state") != State.NOT_FOUND or not row.spent:
        return dict(values), []
    return {**values, "spent": None}, usage.giving_back(row.spent, row.request_id)
