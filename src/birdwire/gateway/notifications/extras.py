"""Extras: the text and the signed link that a destination gets with a request for approval, if the operator wants that.

They are made before the first try and stored encrypted, so that every try of an event sends the same.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from birdwire.api.errors import GatewayError
from birdwire.api.paths import APPROVE
from birdwire.store.encryption.vault import Place, VaultError
from birdwire.store.tables import outbox
from birdwire.store.tables.acts import NOTIFICATION
from birdwire.store.tables.journal import State

if TYPE_CHECKING:
    from datetime import datetime

    from birdwire.outcomes.approval_records import ApprovalRecords, Waiting
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database
    from birdwire.store.encryption.vault import Vault
    from birdwire.store.tables.acts import Actor
    from birdwire.store.tables.destinations import DestinationRow
    from birdwire.store.tables.outbox import OutboxRow

MakeLink = Callable[[str, "Actor"], Awaitable[tuple[str, "datetime"]]]
"""Makes a signed link for a request and returns its token: `Approvals.make_link`."""


class NotYetError(Exception):
    """Raised when an event cannot be sent now, but later: nothing is wrong with it or its destination."""


class OutdatedError(Exception):
    """Raised when a person need not hear of an event any more."""


@dataclass(frozen=True, slots=True)
class Extra:
    """What a destination gets in addition to the facts of an event."""

    text: str | None = field(default=None, repr=False)
    review_url: str | None = field(default=None, repr=False)


NOTHING: Final = Extra()


class Extras:
    """The extras of one database. `address` returns the URL of this gateway without a path, once it is known."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        records: ApprovalRecords,
        make_link: MakeLink,
        address: Callable[[], str | None],
        clock: Clock,
    ) -> None:
        self._database = database
        self._vault = vault
        self._records = records
        self._make_link = make_link
        self._address = address
        self._clock = clock

    async def of(self, row: OutboxRow, to: DestinationRow) -> Extra:
        """Return what a destination gets with an event, as its options state now.

        Raises:
            OutdatedError: a message to a person would ask for a decision that is no longer to be made.
            NotYetError: this gateway's address is not known yet, or another process is about to send the event.
            StorageDownError: the database does not answer.
        """
        for_a_program = to.kind == "standard"
        if row.type != "approval.requested" or (for_a_program and not (to.with_link or to.with_text)):
            return NOTHING
        made = self._open(row)
        if made is None or not for_a_program:
            waiting = await self._waiting(str(row.data["request_id"]))
            if waiting is None and not for_a_program:
                raise OutdatedError
            if made is None and waiting is not None and (to.with_link or to.with_text):
                made = await self._make(row, to, waiting)
        if made is None:
            return NOTHING
        return Extra(made.text if to.with_text else None, made.review_url if to.with_link else None)

    async def _waiting(self, request_id: str) -> Waiting | None:
        """Return a request if it waits for a decision."""
        found = await self._records.find(request_id)
        if found is None or found.entry.state is not State.AWAITING_APPROVAL:
            return None
        return found if self._clock.now() < found.row.expires_at else None

    async def _make(self, row: OutboxRow, to: DestinationRow, waiting: Waiting) -> Extra:
        """Make the extras of an event, and store them before anything is sent."""
        text = waiting.payload.fields.get("text") if to.with_text and waiting.payload is not None else None
        extra = Extra(text, await self._link(waiting.row.request_id) if to.with_link else None)
        stored = json.dumps({"text": extra.text, "review_url": extra.review_url})
        sealed = self._vault.seal_bytes(stored.encode(), _place(row))
        async with self._database.write() as connection:
            if not await outbox.add_extra(connection, row.event_id, row.tries, sealed):
                raise NotYetError
        return extra

    async def _link(self, request_id: str) -> str:
        address = self._address()
        if address is None:
            raise NotYetError
        try:
            token, _ = await self._make_link(request_id, NOTIFICATION)
        except GatewayError:
            # Somebody decided meanwhile. The next try finds that out.
            raise NotYetError from None
        return _in_ascii(address.rstrip("/")) + APPROVE.format(token=token)

    def _open(self, row: OutboxRow) -> Extra | None:
        """Return the stored extras; None if there are none, or if they cannot be decrypted."""
        if row.extra_ct is None:
            return None
        try:
            return Extra(**json.loads(self._vault.open_bytes(row.extra_ct, _place(row))))
        except VaultError:
            # The facts are worth more than the extras. A second link is not made.
            return NOTHING


def _in_ascii(address: str) -> str:
    """Return an address that fits into a header field: its host in punycode if it has other characters."""
    if address.isascii():
        return address
    scheme, _, host = address.partition("://")
    return f"{scheme}://{host.encode('idna').decode('ascii')}"


def _place(row: OutboxRow) -> Place:
    return Place("outbox", f"{row.event_id}/{row.destination_id}", "extra_ct")
