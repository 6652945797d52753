"""The database of the settings, for commands that work on it beside a running gateway; needs no vault key."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from birdwire.cli import run_servers
from birdwire.cli.inputs import os_user
from birdwire.cli.output import ExitCode, Stop
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
    """What keys, database and vault refuse, as the end of a command.

    Raises:
        Stop: in place of their own exceptions.
    """
    try:
        yield
    except (KeyRuleError, StoreError, VaultError) as error:
        raise Stop(ExitCode.USAGE, str(error)) from None
    except StorageDownError as error:
        raise Stop(
            ExitCode.UPSTREAM,
            f"The database does not answer ({error}).",
            "Check the disk, and which other programs use the database.",
        ) from None


def operator() -> Actor:
    """Return the person at the command line, as the record of acts names them."""
    return Actor(os_user(), "cli")


def there(file: Path) -> None:
    """Go on only if there is such a database file.

    Raises:
        Stop: there is none.
    """
    if not file.is_file() or not file.stat().st_size:  # an empty file is what a lock leaves where nothing was made
        raise Stop(
            ExitCode.USAGE,
            f"There is no database {file}.",
            "Name the settings with --config FILE, or the folder of `birdwire dev` with --data .birdwire",
        )


def lock_of(file: Path) -> Path:
    """The file beside a database file that is locked, too: gateways of earlier versions lock it alone."""
    return file.with_name(f"{file.name}.lock")


@contextmanager
def held(file: Path, message: str, fix: str) -> Iterator[None]:
    """Keep every other gateway off an SQLite file during the block, whatever path or link leads it there.

    The process must have no connection to the file when the block begins or ends: when it closes any descriptor of the
    file, the system drops the locks that SQLite holds on it.

    Raises:
        Stop: another process holds it (`message`, `fix`), or it cannot be made.
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
    """Keep every other gateway off an SQLite file during the block; PostgreSQL serves any number.

    Raises:
        Stop: another gateway serves it; or, if this process is not `to_serve` it, any gateway.
    """
    file = file_of(settings.database_url)
    if file is None:
        return nullcontext()
    if not to_serve:
        return held(file, f"A gateway serves the database {file}.", "Stop the gateway first.")
    return held(
        file,
        f"Another gateway serves the database {file}.",
        "Only one process can serve a database file: stop the other one, or give this one its own file.",
    )


@asynccontextmanager
async def opened(settings: Settings, *, new: bool = False) -> AsyncIterator[Database]:
    """The database, closed at the end. A file that is not there is made only where it may be `new`.

    Raises:
        Stop: it cannot be used, or there is none.
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
