"""`birdwire migrate`: upgrades the database for a new version, and moves from SQLite to PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path  # noqa: TC003 - Typer reads it
from typing import TYPE_CHECKING, Annotated

import typer

from birdwire import __version__
from birdwire.cli.database import alone, opened, operator, refusals
from birdwire.cli.inputs import read_settings
from birdwire.cli.options import ConfigOption, JsonOption
from birdwire.cli.output import Output, family, saying
from birdwire.cli.stop import ExitCode, Stop
from birdwire.runtime.clock import Clock
from birdwire.runtime.failpoints import Failpoints
from birdwire.startup import open_vault
from birdwire.store import backup, transfer
from birdwire.store.database import SQLITE, Database, StoreError, file_of
from birdwire.store.encryption.key_rotation import KeyRotation
from birdwire.store.tables import acts

if TYPE_CHECKING:
    from birdwire.settings import Settings

SAY_EVERY_S = 1.0
MOVED = ".moved"

app = family()


@app.command()
def migrate(
    *,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Also move all data from this SQLite database.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upgrade the database to this version of Birdwire.

    Stop the gateway and make a backup first.

    With --from, the command also moves all data from an SQLite database to the PostgreSQL database in the settings.
    The PostgreSQL database must be empty. API keys remain valid and accounts remain linked. The command then renames
    the SQLite file, so that no gateway uses it again: two gateways with copies of the same tokens would invalidate
    each other's tokens.

    Example: birdwire migrate --config /etc/birdwire/birdwire.toml
    """
    with saying(as_json=as_json) as say, refusals():
        settings = read_settings(config)
        if source is None:
            asyncio.run(_migrate(settings))
            say.result({"database": "up to date", "version": __version__}, "The database is up to date.")
            return
        if not source.is_file():
            raise Stop(ExitCode.USAGE, f"{source} does not exist.", "Check the path given with --from.")
        if file_of(settings.database_url) is not None:
            raise Stop(
                ExitCode.USAGE,
                "The database in the settings is an SQLite file, too.",
                "Set BIRDWIRE_DATABASE_URL to a PostgreSQL database.",
            )
        left = settings.model_copy(update={"database_url": f"{SQLITE}{source}"})
        with alone(left, to_serve=False):
            asyncio.run(_migrate(settings))
            moved = asyncio.run(_move(left, settings, say))
            kept = source.rename(source.with_name(source.name + MOVED))
        say.result(
            {"rows": moved, "kept": str(kept)},
            f"Moved {moved:,} rows to PostgreSQL. The old database is kept in {kept}.",
        )


async def _check_unserved(database: Database) -> None:
    """Check that no gateway of an earlier version is connected: it would end each link whose tokens are re-encrypted.

    Raises:
        Stop: a gateway is connected, and the schema must change.
    """
    async with database.read() as connection:
        others = await backup.count_gateways(connection)
    if not others:
        return
    try:
        # If the schema is current, the gateways may stay connected.
        await database.prepare(upgrade=False)
    except StoreError:
        raise Stop(
            ExitCode.USAGE,
            f"Gateways are connected to this database ({others} connections).",
            "Stop all of them first.",
        ) from None


async def _migrate(settings: Settings) -> None:
    database, failpoints = Database(settings.database_url), Failpoints(settings.failpoints)
    try:
        if file_of(settings.database_url) is None:
            await _check_unserved(database)
        await database.prepare(upgrade=True, migrated=partial(failpoints.reach_now, "migration"))
    finally:
        await database.close()


async def _move(source: Settings, target: Settings, say: Output) -> int:
    """Move all rows and return how many. The vault key must decrypt them, or the move would lose every link."""
    said_at = time.monotonic()

    def progress(moved: int) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= SAY_EVERY_S:
            said_at = time.monotonic()
            say.aside(f"{moved:,} rows moved")

    async with opened(source) as old, opened(target) as new:
        await KeyRotation(old, open_vault(target), Clock()).check()
        async with old.read() as reading, new.write() as writing:
            moved = await transfer.copy_rows(reading, writing, progress)
            await acts.append(
                writing, Clock().now(), operator(), "database.moved", acts.DATABASE, after={"rows": moved}
            )
            return moved
