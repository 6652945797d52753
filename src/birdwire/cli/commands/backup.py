"""`birdwire backup` and `birdwire restore`: copy the database to a file while it is in use, and restore it."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from birdwire.cli.database import alone, operator, refusals, there
from birdwire.cli.inputs import read_settings
from birdwire.cli.options import ConfigOption, DataOption, JsonOption
from birdwire.cli.output import family, saying
from birdwire.cli.stop import ExitCode, Stop
from birdwire.runtime.clock import Clock, rfc3339
from birdwire.startup import open_vault
from birdwire.store import backup as copies
from birdwire.store.database import SQLITE, Database, file_of
from birdwire.store.encryption.key_rotation import KeyRotation
from birdwire.store.tables import acts

if TYPE_CHECKING:
    from birdwire.settings import Settings
    from birdwire.store.encryption.vault import Vault

_USAGE = (
    "Caps and budgets continue from the backup's figures: what was published and spent after the backup does not "
    "count. Before you start the gateway, pause it: birdwire pause gateway --why restored"
)

app = family()


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write. It must not exist yet.")],
    *,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Back up the database to a file while the gateway runs.

    The backup is useless without the vault key. Keep a copy of the vault key, too, but in a different place.

    This command is for SQLite. For PostgreSQL, use pg_dump.

    Example: birdwire backup --config /etc/birdwire/birdwire.toml /backup/birdwire.db
    """
    with saying(as_json=as_json) as say, refusals():
        database, at = file_of(read_settings(config, data).database_url), Clock().now()
        if database is None:
            raise Stop(
                ExitCode.USAGE,
                "This command does not back up PostgreSQL databases.",
                "Use pg_dump --format=custom --file=FILE DATABASE. After pg_restore, run: birdwire restore --mark",
            )
        there(database)
        if file.exists():
            raise Stop(
                ExitCode.USAGE, f"{file} already exists.", "Choose another file. Birdwire never overwrites a backup."
            )
        size = copies.take(database, file, at)
        document = {"file": str(file.resolve()), "bytes": size, "snapshot_at": rfc3339(at)}
        say.result(document, f"Backed up the database as of {rfc3339(at)} to {file} ({size:,} bytes).")


@app.command()
def restore(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="Backup made with `birdwire backup`.")] = None,
    *,
    mark: Annotated[
        bool, typer.Option("--mark", help="Only mark the links, without restoring a file. Use it after pg_restore.")
    ] = False,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Restore the database from a backup, and mark its links for verification.

    Stop the gateway first. The replaced database is kept in the same folder.

    The tokens in a backup are invalid if Birdwire has renewed them since. Birdwire verifies each marked link at its
    next token renewal. If X rejects the tokens, the account must be linked again.

    Example: birdwire restore --config /etc/birdwire/birdwire.toml /backup/birdwire.db
    """
    with saying(as_json=as_json) as say, refusals():
        if (file is None) is not mark:
            raise Stop(ExitCode.USAGE, "Use either FILE, the backup to restore, or --mark.")
        settings, began_at = read_settings(config, data), time.monotonic()
        vault = open_vault(settings)
        target = file_of(settings.database_url)
        if target is not None:
            # The file itself must be replaced, not a symbolic link to it.
            target = Path(os.path.realpath(target))
        if file is not None and target is None:
            raise Stop(
                ExitCode.USAGE,
                "This command does not restore PostgreSQL databases.",
                "Use pg_restore --clean --if-exists --dbname=DATABASE FILE, then run: birdwire restore --mark",
            )
        with alone(settings, to_serve=False):
            if file is None or target is None:
                kept, marked = None, asyncio.run(_mark(settings, vault, upgrade=False))
            else:
                kept, marked = _put_back(file, target, settings, vault)
        document = {
            "sessions": marked.sessions,
            "snapshot_at": rfc3339(marked.snapshot_at) if marked.snapshot_at else None,
            "policies": marked.policies,
            "approvals": marked.approvals,
            "replaced": str(kept) if kept else None,
            "seconds": round(time.monotonic() - began_at, 1),
        }
        say.result(
            document,
            f"The database has the state of {document['snapshot_at'] or 'its backup'}. "
            f"Links to verify at their next token renewal: {marked.sessions:,}.",
            *([f"The replaced database is kept in {kept}."] if kept else []),
            *([_USAGE] if marked.policies else []),
            *([_ended(marked.approvals)] if marked.approvals else []),
            "API keys that were revoked after the backup are valid again. Revoke them before you start the gateway.",
        )


def _ended(number: int) -> str:
    return (
        f"Writes that waited for a person's approval in the backup: {number:,}. They may have been sent after it, so "
        "Birdwire has ended them (restored_backup) and never sends them."
    )


def _put_back(file: Path, target: Path, settings: Settings, vault: Vault) -> tuple[Path | None, copies.Marked]:
    """Check and mark a copy of the backup, then replace the database with it; return where the old one is kept."""
    new = copies.stage(file, target)
    try:
        copy = settings.model_copy(update={"database_url": f"{SQLITE}{new}"})
        # A backup of an older version has an older schema.
        marked = asyncio.run(_mark(copy, vault, upgrade=True))
        return copies.switch(new, target), marked
    finally:
        copies.discard(new)


async def _mark(settings: Settings, vault: Vault, *, upgrade: bool) -> copies.Marked:
    database = Database(settings.database_url)
    try:
        await database.prepare(upgrade=upgrade)
        await KeyRotation(database, vault, Clock()).check()
        async with database.write() as connection:
            if others := await copies.count_gateways(connection):
                raise Stop(
                    ExitCode.USAGE,
                    f"Gateways are connected to this database ({others} connections).",
                    "Stop all of them first.",
                )
            now = Clock().now()
            marked = await copies.mark_restored(connection, now)
            restored = {"snapshot_at": marked.snapshot_at, "links": marked.sessions}
            await acts.append(connection, now, operator(), "database.restored", acts.DATABASE, after=restored)
            return marked
    finally:
        await database.close()
