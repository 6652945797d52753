"""Reports a write's outcome to its caller: GET requests/{request_id}, and the same document for the operator."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from birdwire.api.body import check
from birdwire.api.errors import GatewayError
from birdwire.api.messages import Answer
from birdwire.api.models import Empty
from birdwire.keys.context import Pending
from birdwire.runtime.clock import rfc3339
from birdwire.store.tables.journal import APPLIED, NOT_APPLIED, PENDING, STATES, JournalRow, State
from birdwire.x.catalog.prices import usd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from birdwire.keys.context import CallContext
    from birdwire.outcomes.approval_records import ApprovalRecords, Waiting
    from birdwire.outcomes.journal import Journal


_NOT_BILLED = {State.NOT_SENT} | {state for state, meaning in STATES.items() if meaning.asked and meaning.final}
"""Nothing was sent, so X bills nothing."""


class OutcomeReports:
    """The endpoint that reports the outcome of a key's writes, and of its calls that were refused in this process."""

    def __init__(self, journal: Journal, records: ApprovalRecords) -> None:
        self._journal = journal
        self._records = records

    async def request(self, context: CallContext) -> Answer:
        """Answer GET requests/{request_id}.

        Raises:
            GatewayError: request_not_found: it is unknown, or another key's.
        """
        check(context.parsed.fields, Empty)
        key_id, request_id = context.key.key_id, context.call.path.rsplit("/", 1)[-1]
        answer, waiting = await self._answer(key_id, request_id)
        if waiting is not None and waiting.entry.state in PENDING:
            context.pending = Pending(request_id, partial(self._answer_again, key_id, request_id))
        return answer

    async def _answer_again(self, key_id: str, request_id: str) -> Answer:
        return (await self._answer(key_id, request_id))[0]

    async def _answer(self, key_id: str, request_id: str) -> tuple[Answer, Waiting | None]:
        """Return the report of a write, and its approval if a person was asked about it."""
        waiting = await self._records.find(request_id)
        row = await self._journal.find(request_id) if waiting is None else waiting.entry
        if row is None or row.key_id != key_id:
            row = self._journal.rejections.find(key_id, request_id)
        if row is None:
            raise GatewayError("request_not_found")
        return Answer.of(report(row, None if waiting is None else self._records.document(waiting))), waiting


def report(row: JournalRow, approval: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a row as its caller may read it; what is not known is null.

    `approval` is what a person decided about it, as `ApprovalRecords.document` returns it.
    """
    cost = _cost_microusd(row)
    return {
        "request_id": row.request_id,
        "operation": row.operation,
        "state": row.state,
        "status": row.status,
        "reason": row.reason,
        "data": row.data,
        "created_at": rfc3339(row.created_at),
        "started_at": None if row.started_at is None else rfc3339(row.started_at),
        "settled_at": None if row.settled_at is None else rfc3339(row.settled_at),
        "why": row.why,
        "cost_usd": usd(cost),
        "approval": approval,
    }


def _cost_microusd(row: JournalRow) -> int | None:
    """Return what X bills: the listed price of what it did, nothing for what was not sent, None if it is not known."""
    # What remains of the charges of a write that X did not do: earlier attempts that X may have billed.
    if row.state in APPLIED or (row.spent and row.state in NOT_APPLIED):
        return row.cost_microusd
    return 0 if row.state in _NOT_BILLED else None


__all__ = ["STATES", "OutcomeReports", "State", "report"]
