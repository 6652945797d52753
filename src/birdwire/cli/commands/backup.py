"""`birdwire backup` and `birdwire restore`: the database as one file, taken while it serves, and put back."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from birdwire.cli.database import alone, operator, refusals, there
from birdwire.cli.inputs import ConfigOption, DataOption, read_settings
from birdwire.cli.output import ExitCode, JsonOption, Stop, family, saying
from birdwire.runtime.clock import Clock, rfc3339
from birdwire.startup import open_vault
from birdwire.store import backup as copies
from birdwire.store.database import SQLITE, Database, file_of
from birdwire.store.encryption.key_rotation import KeyRotation
from birdwire.store.tables import acts

if TYPE_CHECKING:
    from birdwire.settings import Settings
    from birdwire.store.encryption.vault import Vault

app = family()


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it; must not exist yet.")],
    *,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the database into one file, while the gateway runs.

    The backup is useless without the vault key: keep that elsewhere. For PostgreSQL, use its own tool, pg_dump.

    Example: birdwire backup --config /etc/birdwire/birdwire.toml /backup/birdwire.db
    """
    with saying(as_json=as_json) as say, refusals():
        database, at = file_of(read_settings(config, data).database_url), Clock().now()
        if database is None:
            raise Stop(
                ExitCode.USAGE,
                "Back up a PostgreSQL database with PostgreSQL's own tools.",
                "pg_dump --format=custom --file=FILE DATABASE; after pg_restore: birdwire restore --mark",
            )
        there(database)
        if file.exists():
            raise Stop(
                ExitCode.USAGE, f"{file} is there already.", "Choose another file; a backup is never overwritten."
            )
        size = copies.take(database, file, at)
        document = {"file": str(file.resolve()), "bytes": size, "snapshot_at": rfc3339(at)}
        say.result(document, f"The database as of {rfc3339(at)} is in {file}: {size:,} bytes.")


@app.command()
def restore(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="A backup that `birdwire backup` made.")] = None,
    *,
    mark: Annotated[
        bool, typer.Option("--mark", help="Restore no file: only mark the links, as after pg_restore.")
    ] = False,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace the database with a backup, and mark its links: X may have renewed their tokens since.

    Refused while a gateway runs. The replaced database is kept alongside. If X has renewed a link's tokens since the
    backup, the next renewal finds that out, and the account must be linked again.

    Example: birdwire restore --config /etc/birdwire/birdwire.toml /backup/birdwire.db
    """
    with saying(as_json=as_json) as say, refusals():
        if (file is None) is not mark:
            raise Stop(ExitCode.USAGE, "Name either the backup to restore or --mark.")
        settings, began_at = read_settings(config, data), time.monotonic()
        vault = open_vault(settings)
        target = file_of(settings.database_url)
        if target is not None:
            target = Path(os.path.realpath(target))  # the file itself is replaced, not a link to it
        if file is not None and target is None:
            raise Stop(
                ExitCode.USAGE,
                "Restore a PostgreSQL database with PostgreSQL's own tools.",
                "pg_restore --clean --if-exists --dbname=DATABASE FILE; then: birdwire restore --mark",
            )
        with alone(settings, to_serve=False):
            if file is None or target is None:
                kept, (sessions, snapshot_at) = None, asyncio.run(_mark(settings, vault, upgrade=False))
            else:
                kept, (sessions, snapshot_at) = _put_back(file, target, settings, vault)
        document = {
            "sessions": sessions,
            "snapshot_at": rfc3339(snapshot_at) if snapshot_at else None,
            "replaced": str(kept) if kept else None,
            "seconds": round(time.monotonic() - began_at, 1),
        }
        say.result(
            document,
            f"The database is as of {document['snapshot_at'] or 'its backup'}; {sessions:,} links will be checked at"
            " their next renewal.",
            *([f"The replaced database is kept in {kept}."] if kept else []),
            "Keys that were revoked after the backup are valid again: revoke them before you start the gateway.",
        )


def _put_back(file: Path, target: Path, settings: Settings, vault: Vault) -> tuple[Path | None, copies.Marked]:
    """Check and mark a copy of the backup, then let it take the database's place; where that one is kept."""
    new = copies.stage(file, target)
    try:
        copy = settings.model_copy(update={"database_url": f"{SQLITE}{new}"})
        marked = asyncio.run(_mark(copy, vault, upgrade=True))  # the backup may be an older version's
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
                raise Stop(ExitCode.USAGE, f"Gateways serve this database ({others} connections).", "Stop them first.")
            now = Clock().now()
            links, snapshot_at = await copies.mark_restored(connection, now)
            restored = {"snapshot_at": snapshot_at, "links": links}
            await acts.append(connection, now, operator(), "database.restored", acts.DATABASE, after=restored)
            return links, snapshot_at
    finally:
        await database.close()
