"""Pauses: which of them hold now, how a paused call is refused, and the pauses that Birdwire itself makes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from birdwire.api.errors import GatewayError
from birdwire.keys.cache import ACCOUNT, GATEWAY
from birdwire.runtime.clock import rfc3339
from birdwire.store.tables import acts, api_keys, outbox, pauses, x_sessions

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
    """Store a pause in the caller's transaction, with its act and event, in place of its author's earlier pause.

    The act announces the scope, so every gateway knows of the pause when the transaction is committed.
    """
    before = next((old for old in await pauses.of(connection, [row.scope]) if old.author == row.author), None)
    await pauses.put(connection, row)
    was = None if before is None else _recorded(before)
    await acts.append(connection, row.since, by, "paused", row.scope, before=was, after=_recorded(row))
    name, until = await named(connection, row.scope), None if row.until is None else rfc3339(row.until)
    data = {"scope": row.scope, "name": name, "why": row.why, "until": until, "by": row.by}
    await outbox.add(connection, "paused", row.since, data)


async def lift(connection: AsyncConnection, by: acts.Actor, scope: str, author: str, now: datetime) -> PauseRow | None:
    """Delete a pause in the caller's transaction, with its act and event; return it, or None if there was none."""
    lifted = await pauses.lift(connection, scope, author)
    if lifted is not None:
        await acts.append(connection, now, by, "resumed", scope, before=_recorded(lifted))
        data = {"scope": scope, "name": await named(connection, scope), "by": by.who}
        await outbox.add(connection, "resumed", now, data)
    return lifted


async def named(connection: AsyncConnection, scope: str) -> str:
    """Return a scope as a person knows it: the label of a key, the username of an account, or the gateway."""
    if scope == GATEWAY:
        return name_of(scope)
    if scope.startswith(ACCOUNT):
        username = (await x_sessions.named(connection, scope.removeprefix(ACCOUNT)))["username"]
        return name_of(scope) if username is None else f"@{username}"
    return (await api_keys.named(connection, scope))["label"]


def _width(scope: str) -> tuple[int, str]:
    """Return a key by which wider scopes are sorted before narrower ones."""
    return (0 if scope == GATEWAY else 1 if scope.startswith(ACCOUNT) else 2), scope


def _recorded(row: PauseRow) -> dict[str, object]:
    return {"since": row.since, "until": row.until, "why": row.why}
