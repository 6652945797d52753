"""Writes that wait for a person, inside a transaction: their locks, the checks before a decision, their end, events."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

from birdwire.api.errors import GatewayError
from birdwire.runtime.clock import rfc3339
from birdwire.store.tables import acts, api_keys, journal, outbox
from birdwire.store.tables import approvals as store
from birdwire.store.tables.journal import WAITING, State
from birdwire.x.catalog.prices import usd

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.store.tables.acts import Actor
    from birdwire.store.tables.approvals import ApprovalRow
    from birdwire.store.tables.journal import JournalRow

MAX_WAITING: Final = 20
"""How many writes of one key may wait for a decision."""

Ending = Literal["approved", "denied", "cancelled", "expired"]
"""How a request for an approval ends."""

DECISIONS: Final[Mapping[acts.Act, Ending]] = {
    "approval.approved": "approved",
    "approval.denied": "denied",
    "approval.cancelled": "cancelled",
}
"""The acts that decide on a write."""

DENIED_FOR: Final = timedelta(hours=24)
"""For how long the same call by the same key is refused without asking again."""


async def identical(connection: AsyncConnection, key_id: str, sha256: str, now: datetime) -> str | None:
    """Return the request of a key that waits with the same payload, if there is one.

    Raises:
        GatewayError: approval_denied: a person denied that payload within DENIED_FOR.
    """
    for row, state in await store.same_payload(connection, key_id, sha256):
        if state in WAITING and row.expires_at > now:
            return row.request_id
        if state is State.DENIED and row.decided_at is not None and row.decided_at > now - DENIED_FOR:
            raise GatewayError("approval_denied", note="" if row.note is None else f": {row.note}")
    return None


async def check_room(connection: AsyncConnection, key_id: str) -> None:
    """Check that one more write of a key may wait.

    Raises:
        GatewayError: approvals_full.
    """
    if await store.count_waiting(connection, key_id) >= MAX_WAITING:
        raise GatewayError("approvals_full", limit=MAX_WAITING)


async def hold(
    connection: AsyncConnection, request_id: str, key_id: str | None = None
) -> tuple[ApprovalRow, JournalRow]:
    """Lock a write that waits or waited, in the order of all locks: its key, the journal's row, the approval.

    Raises:
        GatewayError: request_not_found: it is unknown, or not of the key `key_id`.
    """
    known = await store.get(connection, request_id)
    if known is not None and key_id in (None, known.key_id):
        await api_keys.hold(connection, known.key_id)
        entry = await journal.hold(connection, request_id)
        row = await store.get(connection, request_id, hold=True)
        if entry is not None and row is not None:
            return row, entry
    raise GatewayError("request_not_found")


def check_waiting(row: ApprovalRow, entry: JournalRow, now: datetime, states: Collection[State]) -> None:
    """Check that a write is in one of these states, and that its time is not over.

    Raises:
        GatewayError: approval_not_waiting, approval_expired, restored_backup.
    """
    if entry.state is State.EXPIRED and entry.reason == "restored_backup":
        raise GatewayError("restored_backup")
    if entry.state is State.EXPIRED or (entry.state in states and row.expires_at <= now):
        raise GatewayError("approval_expired", detail=f"it ended at {rfc3339(row.expires_at)}")
    if entry.state not in states:
        raise GatewayError("approval_not_waiting", state=entry.state)


def check_shown(row: ApprovalRow, payload_sha256: str) -> None:
    """Check that the payload is the one that was shown to the person who decides.

    Raises:
        GatewayError: approval_stale.
    """
    if row.payload_sha256 != payload_sha256:
        detail = f"its payload is {row.payload_sha256} by now, and the decision was about another one"
        raise GatewayError("approval_stale", detail=detail)


async def use_link(
    connection: AsyncConnection, row: ApprovalRow, entry: JournalRow, token_hash: bytes | None, now: datetime
) -> None:
    """Record that a signed link decides, if one does.

    Raises:
        GatewayError: request_not_found: the link is for another request; approval_not_waiting: it has decided before.
    """
    if token_hash is None:
        return
    link = (await store.links(connection, [token_hash])).get(token_hash)
    if link is None or link.request_id != row.request_id:
        raise GatewayError("request_not_found")
    if not await store.use_link(connection, token_hash, now):
        raise GatewayError("approval_not_waiting", state=entry.state)


async def end(
    connection: AsyncConnection,
    request_id: str,
    before: State,
    now: datetime,
    state: State,
    refusal: GatewayError,
    *,
    refusal_ct: bytes | None = None,
    report_at: datetime | None = None,
) -> bool:
    """End a write that was never started, if its state is still `before`; return whether it was ended.

    `refusal_ct` is the encrypted body of its refusal; a gateway process reports the end at `report_at`.
    """
    values = {"state": state, "status": refusal.problem.status, "reason": refusal.reason, "settled_at": now}
    if not await journal.change(connection, request_id, values | {"due_at": None}, while_in=before):
        return False
    await store.close(connection, request_id, now, refusal_ct=refusal_ct, report_at=report_at)
    return True


async def record(
    connection: AsyncConnection,
    now: datetime,
    by: Actor,
    act: acts.Act,
    row: ApprovalRow,
    *,
    note: str | None = None,
    before: Mapping[str, object] | None = None,
) -> None:
    """Record an act on a write that waits, and the event of a decision. Its text is not part of it."""
    after: dict[str, object] = {"request_id": row.request_id, "payload_sha256": row.payload_sha256}
    if note is not None:
        after["note"] = note
    await acts.append(connection, now, by, act, row.key_id, before=before, after=after)
    if act in DECISIONS:
        await notify_decided(connection, now, row, DECISIONS[act], by.who)


async def notify_requested(connection: AsyncConnection, now: datetime, row: ApprovalRow) -> None:
    """Write the event that a write waits for a person."""
    about = {
        "approve_by": row.approve_by,
        "payload_sha256": row.payload_sha256,
        "cost_usd": usd(row.cost_microusd),
        "expires_at": rfc3339(row.expires_at),
    }
    await outbox.add(connection, "approval.requested", now, await _named(connection, row) | about)


async def notify_decided(
    connection: AsyncConnection, now: datetime, row: ApprovalRow, decision: Ending, who: str | None
) -> None:
    """Write the event that a write was decided on. The operator's order of a deletion asked nobody, so it has none."""
    if not row.ordered:
        about = {"decision": decision, "decided_by": who}
        await outbox.add(connection, "approval.decided", now, await _named(connection, row) | about)


async def _named(connection: AsyncConnection, row: ApprovalRow) -> dict[str, object]:
    """Return which write an event is about."""
    return {
        "request_id": row.request_id,
        "operation": row.operation,
        "account": {"user_id": row.user_id, "username": row.username},
        "key": await api_keys.named(connection, row.key_id),
    }


async def changed(connection: AsyncConnection, request_id: str) -> ApprovalRow:
    """Return an approval whose row is locked, as it is now.

    Raises:
        GatewayError: request_not_found.
    """
    row = await store.get(connection, request_id)
    if row is None:
        raise GatewayError("request_not_found")
    return row
