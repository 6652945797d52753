"""Pauses: which of them hold now, how a paused call is refused, and the pauses that Birdwire itself makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from birdwire.api.errors import GatewayError
from birdwire.keys.cache import ACCOUNT, GATEWAY
from birdwire.runtime.clock import rfc3339
from birdwire.store.tables import acts, pauses

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.store.tables.pauses import PauseRow

OWNER: Final = "owner"
"""The author of an account owner's pause, which the operator cannot lift."""


def in_force(rows: Iterable[PauseRow], now: datetime) -> list[PauseRow]:
    """Return the pauses that have not ended: the operator's first, then the owner's; of each, the widest first."""
    holding = [row for row in rows if row.until is None or row.until > now]
    return sorted(holding, key=lambda row: (row.author == OWNER, *_width(row.scope)))


def refusal(row: PauseRow) -> GatewayError:
    """Return the refusal of a call that a pause holds."""
    return GatewayError(
        "paused_by_owner" if row.author == OWNER else "paused",
        what=name_of(row.scope),
        scope=row.scope,
        since=rfc3339(row.since),
        why=row.why.rstrip(" ."),
    )


def name_of(scope: str) -> str:
    """Return a scope as a sentence names it."""
    if scope == GATEWAY:
        return "the gateway"
    return f"the account {scope.removeprefix(ACCOUNT)}" if scope.startswith(ACCOUNT) else scope


def document(row: PauseRow) -> dict[str, str | None]:
    """Return a pause as answers and acts describe it."""
    until = None if row.until is None else rfc3339(row.until)
    return {"scope": row.scope, "by": row.by, "since": rfc3339(row.since), "until": until, "why": row.why}


async def pause(connection: AsyncConnection, by: acts.Actor, row: PauseRow) -> None:
    """Store a pause in the caller's transaction, with its act; it replaces its author's earlier pause of the scope.

    The act announces the scope, so every gateway knows of the pause when the transaction is committed.
    """
    before = next((old for old in await pauses.of(connection, [row.scope]) if old.author == row.author), None)
    await pauses.put(connection, row)
    was = None if before is None else _recorded(before)
    await acts.append(connection, row.since, by, "paused", row.scope, before=was, after=_recorded(row))


def _width(scope: str) -> tuple[int, str]:
    """Return a key by which wider scopes are sorted before narrower ones."""
    return (0 if scope == GATEWAY else 1 if scope.startswith(ACCOUNT) else 2), scope


def _recorded(row: PauseRow) -> dict[str, object]:
    return {"since": row.since, "until": row.until, "why": row.why}
