"""The transfer of a whole database into an empty one, such as from an SQLite file to a PostgreSQL server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import func, insert, select

from birdwire.store import backup
from birdwire.store.schema import StoreError
from birdwire.store.tables import (
    acts,
    api_keys,
    approvals,
    capabilities,
    destinations,
    idempotency,
    journal,
    kept_images,
    link_states,
    outbox,
    pauses,
    policies,
    rate_windows,
    reconciliations,
    store_facts,
    text_mark_keys,
    usage,
    x_sessions,
)
from birdwire.store.tables import vault_keys as vault

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Table
    from sqlalchemy.ext.asyncio import AsyncConnection

BATCH_ROWS, LARGE_BATCH_ROWS = 500, 4
"""Rows copied at a time; of the tables whose rows may have some MiB, fewer."""

TABLES = (
    api_keys.api_keys,
    api_keys.api_secrets,
    api_keys.daily_writes,
    vault.vault_keys,
    link_states.link_states,
    x_sessions.x_sessions,
    x_sessions.revocations,
    journal.journal,
    approvals.approvals,
    approvals.approval_files,
    approvals.approval_links,
    kept_images.kept_images,
    idempotency.idempotency,
    reconciliations.lookings,
    rate_windows.x_windows,
    capabilities.capabilities,
    capabilities.refusals_met,
    backup.restores,
    store_facts.store_facts,
    acts.acts,
    policies.policies,
    pauses.pauses,
    usage.usage,
    usage.text_marks,
    text_mark_keys.text_mark_keys,
    destinations.destinations,
    outbox.outbox,
)
"""The tables to copy, each after those that it refers to. Excludes processes and the change feed."""

LARGE = (approvals.approval_files, kept_images.kept_images)
"""The tables whose rows may have some MiB."""


async def copy_rows(source: AsyncConnection, target: AsyncConnection, progress: Callable[[int], None]) -> int:
    """Copy every row in the target's transaction; return how many. Both databases have this version's schema.

    No process may use either. Sealed values are copied unchanged: the vault binds them to their row, not to a database.

    Raises:
        StoreError: the target is not empty.
    """
    for table in TABLES:
        if (await target.execute(select(*table.primary_key.columns).limit(1))).first() is not None:
            raise StoreError("The database in the settings is not empty. Nothing was changed.")
    moved = 0
    for table in TABLES:
        size = LARGE_BATCH_ROWS if table in LARGE else BATCH_ROWS
        query = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=size)
        async with source.stream(query) as result:
            async for rows in result.mappings().partitions(size):
                await target.execute(insert(table), [dict(row) for row in rows])
                moved += len(rows)
                progress(moved)
        await _advance_sequence(target, table)
    return moved


async def _advance_sequence(target: AsyncConnection, table: Table) -> None:
    """Advance the server's sequence past the numbers that were copied."""
    number = table.autoincrement_column
    if number is not None and target.dialect.name != "sqlite":
        sequence = func.pg_get_serial_sequence(table.name, number.name)
        await target.execute(select(func.setval(sequence, select(func.max(number)).scalar_subquery())))
