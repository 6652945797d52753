"""What must be right before a gateway or a command works on a database: its vault keys, its schema, its storage."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from birdwire.api.errors import GatewayError
from birdwire.runtime.file_limits import ConnectionBudget, open_files
from birdwire.settings import listed
from birdwire.store.encryption.key_files import decode_key, read_key_file
from birdwire.store.encryption.key_rotation import KeyRotation, Progress
from birdwire.store.encryption.vault import Vault, VaultError
from birdwire.store.schema import StorageDownError

if TYPE_CHECKING:
    from birdwire.accounts.sessions import Sessions
    from birdwire.runtime.clock import Clock
    from birdwire.runtime.failpoints import Failpoints
    from birdwire.runtime.telemetry import Telemetry
    from birdwire.settings import Settings
    from birdwire.store.database import Database

REFUSED_CONNECTIONS = 100

TOKEN_CONNECTIONS = 60
"""Connections to X for renewals, links and revocations, so that a burst of calls cannot starve them.

There are more of them than concurrent renewals, so that a link or a revocation always gets one.
"""


def open_vault(settings: Settings) -> Vault:
    """Return the vault with the configured keys.

    Raises:
        VaultError: no key is configured, or one cannot be used.
    """
    others = [read_key_file(Path(name)) for name in listed(settings.vault_other_key_files)]
    if settings.vault_key is not None:
        return Vault(decode_key(settings.vault_key.get_secret_value()), *others)
    if settings.vault_key_file is not None:
        return Vault(read_key_file(settings.vault_key_file), *others)
    raise VaultError(
        "No vault key is set. Create one with `birdwire vault create FILE` and set BIRDWIRE_VAULT_KEY_FILE."
    )


async def prepare(
    database: Database,
    vault: Vault,
    clock: Clock,
    *,
    upgrade: bool,
    failpoints: Failpoints | None = None,
    progress: Progress | None = None,
) -> None:
    """Prepare the database, and check that every vault key that sealed something in it is configured.

    The first start of this version on an older database reseals its token pairs, and calls `progress` with the number
    of values resealed so far and the number of those that could not be opened.

    Raises:
        StoreError: the database cannot be used.
        VaultError: another vault key sealed it, or one is missing.
    """
    await database.prepare(upgrade=upgrade)
    keyring = KeyRotation(database, vault, clock, failpoints)
    await keyring.enlist()
    await keyring.bind(progress)


async def check_storage(database: Database, sessions: Sessions) -> None:
    """Raise storage_unavailable unless calls can be stored.

    While new tokens of X wait to be stored, no call may start that could produce more of them.
    """
    try:
        if sessions.unsaved:
            raise StorageDownError("UnsavedPair")
        await database.probe()
    except StorageDownError:
        raise GatewayError("storage_unavailable", half="nothing was changed") from None


def log_reseal(telemetry: Telemetry, values: int, unreadable: int) -> None:
    """Log the progress of the first start of this version on a database."""
    telemetry.event("info", "pairs_resealed", values=values, unreadable=unreadable)


def connection_budget(settings: Settings, telemetry: Telemetry) -> ConnectionBudget:
    """Return the connections that the settings allow, as far as the system lets this process open them."""
    wanted = ConnectionBudget(settings.max_connections, REFUSED_CONNECTIONS, settings.x_connections, TOKEN_CONNECTIONS)
    budget = wanted.within(open_files())
    if budget != wanted:
        telemetry.event("warning", "few_open_files", limit=open_files(), **asdict(budget))
    return budget
