"""The database of the settings, for commands that work on it beside a running gateway; needs no vault key."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from birdwire.cli.say import ExitCode, Stop
from birdwire.keys import KeyRuleError
from birdwire.store.db import Database, StorageDownError, StoreError
from birdwire.vault import VaultError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

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


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Database]:
    """The database, made if it is new, and closed at the end.

    Raises:
        Stop: it cannot be used.
    """
    with refusals():
        database = Database(settings.database_url)
        try:
            await database.prepare(upgrade=False)
            yield database
        finally:
            await database.close()
