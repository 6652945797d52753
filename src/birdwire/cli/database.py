"""The database of the settings, for commands that work on it beside a running gateway; needs no vault key."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from birdwire.cli import servers
from birdwire.cli.say import ExitCode, Stop
from birdwire.keys import KeyRuleError
from birdwire.store.db import Database, StorageDownError, StoreError, file_of
from birdwire.vault import VaultError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

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
            ExitCode.UPSTREAM, f"The database does not answer ({error}).", "Check the disk, and who else uses it."
        ) from None


def there(file: Path) -> None:
    """Go on only if there is such a database file.

    Raises:
        Stop: there is none.
    """
    if not file.is_file():
        raise Stop(
            ExitCode.USAGE,
            f"There is no database {file}.",
            "Name its settings with --config FILE; what `birdwire dev` keeps is found with --data .birdwire",
        )


def lock_of(file: Path) -> Path:
    """The file whose lock says that a gateway serves a database file, be it `serve` or `dev`."""
    return file.with_name(f"{file.name}.lock")


def alone(settings: Settings) -> AbstractContextManager[object]:
    """Keep every other gateway off an SQLite file while the block goes on; PostgreSQL serves any number.

    Raises:
        Stop: another gateway serves it.
    """
    file = file_of(settings.database_url)
    if file is None:
        return nullcontext()
    return servers.alone(
        lock_of(file),
        f"Another gateway serves the database {file}.",
        "One process serves one database file: end the other, or give this one a file of its own.",
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
