"""Where Alembic meets the connection it is given; it never opens one."""

from __future__ import annotations

from alembic import context

from birdwire.store import backup
from birdwire.store.engines import change_feed
from birdwire.store.schema import metadata
from birdwire.store.tables import (
    acts,
    api_keys,
    capabilities,
    idempotency,
    journal,
    link_states,
    pauses,
    policies,
    processes,
    rate_windows,
    reconciliations,
    store_facts,
    text_mark_keys,
    usage,
    vault_keys,
    x_sessions,
)

TABLES = (
    acts.acts,
    capabilities.capabilities,
    capabilities.refusals_met,
    change_feed.changes,
    store_facts.store_facts,
    idempotency.idempotency,
    journal.journal,
    api_keys.api_keys,
    rate_windows.x_windows,
    reconciliations.lookings,
    processes.processes,
    x_sessions.x_sessions,
    backup.restores,
    link_states.link_states,
    vault_keys.vault_keys,
    policies.policies,
    pauses.pauses,
    usage.usage,
    usage.text_marks,
    text_mark_keys.text_mark_keys,
)

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    user_module_prefix="",
)
with context.begin_transaction():
    context.run_migrations()
