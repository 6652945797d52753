"""The units that start and end a write: its charges are made when it starts, given back or corrected when it ends.

Confirmed or found: everything stays. Refused, not sent or not found: all goes back, but for what X may have billed for
an attempt whose outcome is unknown. Unknown: everything stays, until the reconciler decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from birdwire.store.database import Part
from birdwire.store.tables import approvals, usage
from birdwire.store.tables import journal as store
from birdwire.store.tables.journal import NOT_APPLIED, JournalRow, State

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from birdwire.store.tables.usage import Charge

CLAIMS = 2
"""How many parts of `claiming` precede the charges."""


def starting(
    row: Mapping[str, Any], charges: Sequence[Charge], shadow_charges: Sequence[Charge], news: Sequence[Part] = ()
) -> list[Part]:
    """Return the parts that make a write's charges and add its row, which then states all of them and their sum.

    `news` are the parts that report what the charges reach.
    """
    spent = usage.encode((*charges, *shadow_charges))
    cost = row.get("cost_microusd") or usage.usd_in(spent)
    added = {**row, "spent": spent} | ({"cost_microusd": cost} if cost else {})
    return [*usage.charging(charges, row["request_id"]), Part(store.ADD, added), *news]


def claiming(
    row: Mapping[str, Any],
    payload_sha256: str,
    check_at: datetime | None,
    charges: Sequence[Charge],
    shadow_charges: Sequence[Charge],
    news: Sequence[Part] = (),
) -> list[Part]:
    """Return the parts that start an approved write, whose row exists, and make its charges. `news` report of them.

    The first CLAIMS parts fail if another process started it, if it no longer waits as it was judged, or if its time is
    over at `row["started_at"]`. `check_at` is when a gateway checks whether the process of a write that may be repeated
    is alive.
    """
    request_id, spent = row["request_id"], usage.encode((*charges, *shadow_charges))
    cost = row.get("cost_microusd") or usage.usd_in(spent) or None
    values = {**row, "spent": spent or None, "cost_microusd": cost}
    claim = {"of": request_id, "of_sha256": payload_sha256, "of_now": row["started_at"], "new_due_at": check_at}
    return [
        Part(approvals.START, approvals.starting(request_id, values), required=True),
        Part(approvals.CLAIM, claim, required=True),
        *usage.charging(charges, request_id),
        *news,
    ]


def putting_back(row: Mapping[str, Any], charges: Sequence[Charge], due_at: datetime) -> list[Part]:
    """Return the parts that make a started write wait again, as approved, and give all its charges back."""
    request_id = row["request_id"]
    values = {"decision": row.get("decision"), "cost_microusd": row.get("cost_microusd")}
    undone = approvals.starting(request_id, values) | {"of_owner": row["owner"]}
    return [
        Part(approvals.PUT_BACK, undone, required=True),
        Part(approvals.WAKE, {"of": request_id, "new_due_at": due_at}),
        *usage.giving_back(usage.encode(charges), request_id),
    ]


def ending(
    row: Mapping[str, Any], outcome: State, charges: Sequence[Charge], cost: int | None, billed_extra: int
) -> list[Part]:
    """Return the parts that record a write's outcome and correct its charges; none if all its charges stay.

    `row` holds the parameters of SETTLE, or those of SETTLE_OWN. The first part fails if the row was settled before, or
    if another process has taken the write over. `cost` is the price, and `billed_extra` is how many attempts had an
    unknown outcome, so that X may have billed them.
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
    settle = approvals.SETTLE_OWN_CHARGED if "of_owner" in row else store.SETTLE_CHARGED
    return [Part(settle, settled, required=True), *change]


def judged(row: JournalRow, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Part]]:
    """Return what the reconciler changes in a row, and the parts that give its charges back with that verdict."""
    if values.get("state") != State.NOT_FOUND or not row.spent:
        return dict(values), []
    return {**values, "spent": None}, usage.giving_back(row.spent, row.request_id)
