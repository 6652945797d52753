"""Cancellations: a key's holder cancels a call that waits for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

from birdwire.accounts.linking import holder_of
from birdwire.api.body import check
from birdwire.api.errors import GatewayError
from birdwire.api.messages import Answer
from birdwire.api.models import Empty
from birdwire.outcomes.report import report

if TYPE_CHECKING:
    from birdwire.gateway.guardrails.approvals import Approvals
    from birdwire.keys.context import CallContext
    from birdwire.outcomes.approval_records import ApprovalRecords


class Cancellations:
    """The endpoint that cancels a request of the key that made it. A pause does not hold it."""

    def __init__(self, approvals: Approvals, records: ApprovalRecords) -> None:
        self._approvals = approvals
        self._records = records

    async def cancel(self, context: CallContext) -> Answer:
        """Answer POST requests/{request_id}/cancel: the report of the request, which will not be sent.

        Raises:
            GatewayError: request_not_found: it is unknown, or another key's; approval_not_waiting, approval_expired,
                restored_backup: it has ended, or is being sent.
        """
        check(context.parsed.fields, Empty)
        key, request_id = context.key, context.call.path.rsplit("/", 2)[-2]
        await self._approvals.cancel(request_id, holder_of(key), key_id=key.key_id)
        waiting = await self._records.find(request_id)
        if waiting is None:
            raise GatewayError("request_not_found")
        return Answer.of(report(waiting.entry, self._records.document(waiting)))
