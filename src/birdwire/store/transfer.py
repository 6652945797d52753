"""From a file to a server: everything that one database holds, copied into another one that is empty."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import func, insert, select

from birdwire.store import backup
from birdwire.store.schema import StoreError
from birdwire.store.tables import (
    acts,
    api_keys,
    capabilities,
    idempotency,
    journal,
    link_states,
    rate_windows,
    reconciliations,
    store_facts,
    x_sessions,
)
from birdwire.store.tables import vault_keys as vault

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Table
    from sqlalchemy.ext.asyncio import AsyncConnection

AT_ONCE = 500
TABLES = (
    api_keys.api_keys,
    api_keys.api_secrets,
    api_keys.daily_writes,
    vault.vault_keys,
    link_states.link_states,
    x_sessions.x_sessions,
    x_sessions.revocations,
    journal.journal,
    idempotency.idempotency,
    reconciliations.lookings,
    rate_windows.x_windows,
    capabilities.capabilities,
    capabilities.refusals_met,
    backup.restores,
    store_facts.store_facts,
    acts.acts,
)
"""What is copied, a table after those that it refers to. Not here: which processes run, and what was announced."""


async def move(source: AsyncConnection, target: AsyncConnection, progress: Callable[[int], None]) -> int:
    """Copy every row, in the target's transaction; how many. Both have this version's schema; nobody uses either.

    Sealed values stay as they are: the vault binds them to their row, not to the database that it is in.

    Raises:
        StoreError: the target is not empty.
    """
    for table in TABLES:
        if (await target.execute(select(*table.primary_key.columns).limit(1))).first() is not None:
            raise StoreError("The database of the settings is not empty; nothing was changed.")
    moved = 0
    for table in TABLES:
        query = select(table).order_by(*table.primary_key.columns)
        async with source.stream(query) as result:
            async for rows in result.mappings().partitions(AT_ONCE):
                await target.execute(insert(table), [dict(row) for row in rows])
                moved += len(rows)
                progress(moved)
        await _go_on_numbering(target, table)
    return moved


async def _go_on_numbering(target: AsyncConnection, table: Table) -> None:
    """Let the server number the table's next row after those that were copied with their numbers."""
    number = table.autoincrement_column
    if number is not None and target.dialect.name != "sqlite":
        sequence = func.pg_get_serial_sequence(table.name, number.name)
        await target.execute(select(func.setval(sequence, select(func.max(number)).scalar_subquery())))
