"""Claims of approved writes: which process sends one, how it makes it wait again, and how another one takes it over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from birdwire.api.errors import GatewayError
from birdwire.outcomes import settlement
from birdwire.outcomes.process_leases import LEASE
from birdwire.store.database import Part, StorageDownError
from birdwire.store.tables import approvals, usage
from birdwire.store.tables import journal as rows
from birdwire.store.tables.journal import State
from birdwire.x.catalog.operations import OPERATIONS_BY_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from typing import Any

    from birdwire.outcomes.entry import Approved, Entry
    from birdwire.outcomes.process_leases import ProcessLeases
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database


class ClaimLostError(Exception):
    """Raised when this process does not send an approved write: another one does, or the write no longer waits.

    Nothing was written, and nothing is to be recorded.
    """


class Claims:
    """The approved writes of one database that this process sends.

    A started write that is safe to repeat has no due_at in the journal: the gateways check by its approval whether its
    process is alive. A post has one, and the reconciler searches for it.
    """

    def __init__(self, database: Database, leases: ProcessLeases, clock: Clock) -> None:
        self._database = database
        self._leases = leases
        self._clock = clock

    async def start(self, entry: Entry, approved: Approved, row: dict[str, Any]) -> int | None:
        """Start a write and make its charges, as one unit; `row` has the columns of a row that is created now.

        Returns None, or the index of the part of `usage.charging` that does not pass.

        Raises:
            ClaimLostError: another process started it, or it no longer waits as it was judged.
            StorageDownError: nothing was written.
        """
        row["started_at"], check_at = row["created_at"], None
        if OPERATIONS_BY_NAME[entry.operation].repeatable:
            row["due_at"], check_at = None, row["due_at"]
        sha256 = approved.payload_sha256
        parts = settlement.claiming(row, sha256, check_at, entry.charges, entry.shadow_charges, entry.news)
        missed = await self._database.append_all(parts)
        if missed is not None and missed < settlement.CLAIMS:
            raise ClaimLostError
        return None if missed is None else missed - settlement.CLAIMS

    async def put_back(self, entry: Entry, due_at: datetime) -> None:
        """Make a started write wait again, as approved, until a gateway tries again at `due_at`. Its charges go back.

        Raises:
            ClaimLostError: another process has taken it over, or its outcome is recorded.
            GatewayError: storage_unavailable.
        """
        row: dict[str, Any] = {"request_id": entry.request_id, "owner": self._leases.me}
        row |= {"decision": entry.decision, "cost_microusd": entry.cost}
        await self._write(settlement.putting_back(row, (*entry.charges, *entry.shadow_charges), due_at))

    async def take_over(self, entry: Entry, owner: str | None, spent: Sequence[Sequence[Any]] | None) -> None:
        """Become the owner of a write that is safe to repeat and that a dead process had started and charged.

        Raises:
            ClaimLostError: another process was faster, or its outcome is recorded.
            GatewayError: storage_unavailable.
        """
        taken = {"of": entry.request_id, "of_owner": owner, "new_owner": self._leases.me}
        woken = {"of": entry.request_id, "new_due_at": self._clock.now() + LEASE}
        await self._write([Part(approvals.TAKE_OVER, taken, required=True), Part(approvals.WAKE, woken)])
        entry.charges, entry.shadow_charges = usage.decode(spent or ()), ()

    async def _write(self, parts: Sequence[Part]) -> None:
        try:
            missed = await self._database.append_all(parts)
        except StorageDownError:
            raise _down() from None
        if missed is not None:
            raise ClaimLostError

    async def check(self, entry: Entry) -> None:
        """Check that a started write is still this process's own, and that its time is not over.

        This process may have been suspended since, so that another one has counted it as dead.

        Raises:
            ClaimLostError: it is not its own.
            GatewayError: approval_expired; storage_unavailable: it cannot be checked, so nothing may be sent.
        """
        if not self._leases.certain:
            try:
                async with self._database.read() as connection:
                    row = await rows.get(connection, entry.request_id)
            except StorageDownError:
                raise _down() from None
            if row is None or row.state is not State.STARTED or row.owner != self._leases.me:
                raise ClaimLostError
        if entry.approved is not None and entry.approved.expires_at <= self._clock.now():
            raise GatewayError("approval_expired", detail="it was approved, but could not be sent in time")


def closing(entry: Entry, ended_at: datetime, refusal_ct: bytes | None) -> Sequence[Part]:
    """Return the parts that end a write's approval; none if nobody was asked about it."""
    if entry.approved is None:
        return ()
    return approvals.closing(entry.request_id, ended_at, refusal_ct=refusal_ct)


def _down() -> GatewayError:
    return GatewayError("storage_unavailable", half="nothing was sent to X")
