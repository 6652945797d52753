"""Where Alembic meets the connection it is given; it never opens one."""

from __future__ import annotations

from alembic import context

from birdwire.store import (
    acts,
    capabilities,
    changes,
    facts,
    idempotency,
    journal,
    keys,
    ledger,
    lookings,
    presence,
    sessions,
    snapshots,
    states,
    vault_keys,
)
from birdwire.store.schema import metadata

TABLES = (
    acts.acts,
    capabilities.capabilities,
    capabilities.refusals_met,
    changes.changes,
    facts.store_facts,
    idempotency.idempotency,
    journal.journal,
    keys.api_keys,
    ledger.x_windows,
    lookings.lookings,
    presence.processes,
    sessions.x_sessions,
    snapshots.restores,
    states.link_states,
    vault_keys.vault_keys,
)

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    user_module_prefix="",
)
with context.begin_transaction():
    context.run_migrations()
