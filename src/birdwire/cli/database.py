"""Opens the database of the settings for commands, also while a gateway runs; needs no vault key."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from birdwire.cli import run_servers
from birdwire.cli.inputs import os_user
from birdwire.cli.stop import ExitCode, Stop
from birdwire.gateway.guardrails.policy import PolicyError
from birdwire.keys.rules import KeyRuleError
from birdwire.store.database import Database, StorageDownError, StoreError, file_of
from birdwire.store.encryption.vault import VaultError
from birdwire.store.tables.acts import Actor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextlib import AbstractContextManager

    from birdwire.settings import Settings


@contextmanager
def refusals() -> Iterator[None]:
    """Translate the errors of keys, policies, database and vault into the end of a command.

    Raises:
        Stop: replaces their own exceptions.
    """
    try:
        yield
    except (KeyRuleError, PolicyError, StoreError, VaultError) as error:
        raise Stop(ExitCode.USAGE, str(error)) from None
    except StorageDownError as error:
        raise Stop(
            ExitCode.UPSTREAM,
            f"The database does not respond ({error}).",
            "Check the disk, and whether another program uses the database.",
        ) from None


def operator() -> Actor:
    """Return the person who runs the command, as the record of acts names them."""
    return Actor(os_user(), "cli")


def there(file: Path) -> None:
    """Check that a database file exists.

    Raises:
        Stop: it does not exist, or is empty.
    """
    # An empty file counts as missing, because taking the lock creates one.
    if not file.is_file() or not file.stat().st_size:
        raise Stop(
            ExitCode.USAGE,
            f"The database {file} does not exist.",
            "Use --config FILE for the gateway's settings, or --data .birdwire for the folder of `birdwire dev`.",
        )


def lock_of(file: Path) -> Path:
    """Return the lock file next to a database file, which gateways of earlier versions lock instead of the database."""
    return file.with_name(f"{file.name}.lock")


@contextmanager
def held(file: Path, message: str, fix: str) -> Iterator[None]:
    """Lock an SQLite file against every other gateway during the block, regardless of the path or link that it uses.

    The process must have no connection to the file when the block starts or ends: when it closes any descriptor of the
    file, the operating system drops the locks that SQLite holds on it.

    Raises:
        Stop: another process holds the lock (`message`, `fix`), or the lock file cannot be created.
    """
    named, file = file, Path(os.path.realpath(file))
    with ExitStack() as stack:
        for lock in dict.fromkeys(Path(os.path.realpath(lock_of(one))) for one in (named, file)):
            stack.enter_context(run_servers.alone(lock, message, fix))
        # On Linux, flock and SQLite's own fcntl locks ignore each other. On BSD and macOS they exclude each other.
        if sys.platform == "linux":
            stack.enter_context(run_servers.alone(file, message, fix))
        yield


def alone(settings: Settings, *, to_serve: bool = True) -> AbstractContextManager[object]:
    """Lock an SQLite file against every other gateway during the block; PostgreSQL supports several gateways.

    Raises:
        Stop: another gateway uses the file.
    """
    file = file_of(settings.database_url)
    if file is None:
        return nullcontext()
    if not to_serve:
        return held(file, f"A gateway is using the database {file}.", "Stop the gateway first.")
    return held(
        file,
        f"Another gateway is using the database {file}.",
        "Only one gateway can use a database file. Stop the other gateway, or set another BIRDWIRE_DATABASE_URL.",
    )


@asynccontextmanager
async def opened(settings: Settings, *, new: bool = False) -> AsyncIterator[Database]:
    """Open the database, and close it at the end. A missing file is created only with `new`.

    Raises:
        Stop: the database is unusable, or its file does not exist.
    """
    with refusals():
        file = file_of(settings.database_url)
        if file is not None and not new:
            there(file)
        database = Database(settings.database_url)
        try:
            await database.prepare(upgrade=False)
            yield database
        finally:
            await database.close()
