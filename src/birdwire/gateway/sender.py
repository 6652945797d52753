"""A write on its way to X, and OperationSender, which sends it in the order of its account's calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from birdwire.api.errors import GatewayError
from birdwire.outcomes.approval_payload import Payload
from birdwire.x.catalog import media
from birdwire.x.client.requests import Reading

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from birdwire.accounts.retrying_client import AccountClient
    from birdwire.accounts.sessions import XSession
    from birdwire.api.forms import Part
    from birdwire.api.models import Body
    from birdwire.gateway.guardrails.spending import Judged
    from birdwire.gateway.refusal_details import RefusalDetails
    from birdwire.keys.context import CallContext
    from birdwire.outcomes.approval_records import Waiting
    from birdwire.outcomes.entry import Entry
    from birdwire.outcomes.journal import Journal, Record
    from birdwire.runtime.failpoints import Failpoints
    from birdwire.x.catalog.media import Attached
    from birdwire.x.catalog.operations import Operation
    from birdwire.x.limits.capabilities import Capabilities
    from birdwire.x.limits.write_order import WriteOrder


@dataclass(slots=True)
class Write:
    """The state of one write: its input, and the results of its steps so far. Once `opened`, every end is recorded.

    `judged` is what holds for the key, if anything does, and what its policies make of the write. `attached` are the
    files of a post, once X has them.
    """

    is_approved: ClassVar[bool] = False

    context: CallContext
    operation: Operation
    fields: Mapping[str, Any]
    files: Sequence[Part]
    opened: bool = False
    judged: Judged | None = None
    attached: Sequence[Attached] = ()
    body: Body = field(init=False)
    session: XSession = field(init=False)
    client: AccountClient = field(init=False)
    entry: Entry = field(init=False)
    record: Record = field(init=False)
    data: dict[str, Any] = field(init=False)


@dataclass(slots=True)
class ApprovedWrite(Write):
    """A write that waited for a person, and what was approved.

    `resumed`: a process that has died had started it, so X may have carried it out, and billed it, before. `put_back`:
    this process had started it, and it waits again.
    """

    is_approved: ClassVar[bool] = True
    waiting: Waiting = field(kw_only=True)
    resumed: bool = field(default=False, kw_only=True)
    put_back: bool = field(default=False, kw_only=True)


def capability_of(operation: Operation, body: Body) -> str:
    """Return the name under which it is recorded whether X allows this to the app."""
    quotes = operation.enterprise == "quote" and operation.needs_enterprise(body)
    return f"{operation.name} (quote)" if quotes else operation.name


def payload_of(write: Write, user_id: str) -> Payload:
    """Return what a write of an account asks for; its files have no media ids yet.

    Raises:
        GatewayError: a file is of no kind that X accepts.
    """
    files = [
        {"sha256": file.digest.hex(), "size": file.size, "type": media.kind_of(file).media_type} for file in write.files
    ]
    return Payload(write.operation.name, user_id, write.fields, files)


def known_payload(write: Write, user_id: str) -> Payload | None:
    """Return what a write asks for; None if it has a file of no kind that X accepts."""
    try:
        return payload_of(write, user_id)
    except GatewayError:
        return None


class OperationSender:
    """Sends the request of a write, which is its last step."""

    def __init__(
        self,
        order: WriteOrder,
        journal: Journal,
        capabilities: Capabilities,
        refusals: RefusalDetails,
        failpoints: Failpoints,
    ) -> None:
        self._order = order
        self._journal = journal
        self._capabilities = capabilities
        self._refusals = refusals
        self._failpoints = failpoints

    @property
    def capabilities(self) -> Capabilities:
        """The record of what X allows to this app."""
        return self._capabilities

    async def send(self, write: Write) -> None:
        """Send the operation when its ticket is first, and record whether X allows the operation to this app.

        Raises:
            GatewayError: X's refusal, or why X could not be asked.
        """
        operation, client = write.operation, write.client
        enterprise, name = operation.needs_enterprise(write.body), operation.name
        if operation.enterprise == "quote":
            name = capability_of(operation, write.body)
        reading = Reading(
            operation.answer,
            enterprise=enterprise,
            recently_allowed=enterprise and await self._capabilities.recently_allowed(name),
            about=operation.about,
            already=operation.already,
            expect=operation.expect,
            usual=operation.usual_reply,
        )
        order, account = self._order, client.user_id
        asked_later = partial(self._journal.asked_later, write.entry, operation.opposite)
        ticket = order.join(account, operation, write.entry.target, asked_later)
        try:
            asking = client.ask(operation.upstream(account, write.body), reading, ticket)
            if write.is_approved:
                asking = self._failpoints.during("approved_after_send", asking)
            elif not operation.repeatable:
                asking = self._failpoints.during("post_after_send", asking)
            write.data = await asking
        except GatewayError as error:
            await self._capabilities.record(name, error.reason, write.entry.key_id)
            raise await self._refusals.explain(error, write.body, account) from None
        finally:
            order.leave(ticket)
        await self._capabilities.record(name, None, write.entry.key_id)
