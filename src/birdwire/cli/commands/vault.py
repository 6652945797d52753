"""`birdwire vault`: creates, inspects and rotates the vault keys that encrypt X tokens at rest."""

from __future__ import annotations

import asyncio
import shlex
import time
from pathlib import Path  # noqa: TC003 - Typer reads it
from typing import TYPE_CHECKING, Annotated

import typer

from birdwire.cli.database import held, opened, operator, refusals
from birdwire.cli.inputs import read_settings
from birdwire.cli.options import ConfigOption, DataOption, JsonOption
from birdwire.cli.output import Output, family, saying
from birdwire.cli.stop import ExitCode, Stop
from birdwire.runtime.clock import Clock
from birdwire.runtime.failpoints import Failpoints
from birdwire.startup import open_vault
from birdwire.store.database import file_of
from birdwire.store.encryption.key_files import create_key_file
from birdwire.store.encryption.key_rotation import KeyRotation
from birdwire.store.encryption.vault import Vault, VaultError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from birdwire.settings import Settings
    from birdwire.store.encryption.key_rotation import Count

SAY_EVERY_S = 1.0
ROUNDS = 5
"""Maximum number of passes. Each pass re-encrypts what a running gateway wrote during the previous one."""

app = family()


@app.command()
def create(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write the key to. It must not exist yet.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Create a vault key in a file that only you can read.

    If you lose this key, the X tokens in the database are lost. Keep a copy of it, separate from the backups of the
    database.

    Example: birdwire vault create /etc/birdwire/vault.key
    """
    with saying(as_json=as_json) as say:
        if not file.parent.is_dir():
            raise Stop(
                ExitCode.USAGE,
                f"The folder {file.parent} does not exist.",
                f"To create it, run: mkdir -m 700 -p {shlex.quote(str(file.parent))}",
            )
        try:
            key_id = Vault(create_key_file(file)).key_id
        except VaultError as error:
            raise Stop(
                ExitCode.USAGE, str(error), "Choose another file. Birdwire never overwrites a vault key."
            ) from None
        say.result(
            {"file": str(file.resolve()), "vault_key_id": key_id},
            f"Wrote a new vault key to {file}. To use it, run:",
            f"export BIRDWIRE_VAULT_KEY_FILE={shlex.quote(str(file.resolve()))}",
        )


@app.command()
def status(*, config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Show how many values in the database each vault key encrypts.

    In the output, SEALS is yes for the key that encrypts new values, and GIVEN is yes for each key that the settings
    contain.

    Example: birdwire vault status --config /etc/birdwire/birdwire.toml
    """
    with saying(as_json=as_json) as say, refusals():
        settings = read_settings(config, data)
        counts = asyncio.run(_counts(settings, open_vault(settings)))
        rows = [
            {"vault_key_id": one.key_id, "values": one.values, "seals": one.seals, "given": one.here} for one in counts
        ]
        say.table({"vault_keys": rows}, rows, ("vault_key_id", "values", "seals", "given"), "")


@app.command()
def rotate(*, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Re-encrypt every value in the database with the current vault key.

    First, create the new key with `birdwire vault create`. Set BIRDWIRE_VAULT_KEY_FILE to the new key and
    BIRDWIRE_VAULT_OTHER_KEY_FILES to the old one, and restart the gateway. Then run this command while the gateway
    runs. Keep the old key until the command reports that it is no longer used. You can interrupt the command and run
    it again.

    Example: birdwire vault rotate --config /etc/birdwire/birdwire.toml
    """
    with saying(as_json=as_json) as say, refusals():
        settings = read_settings(config)
        vault = open_vault(settings)
        retired, left, unreadable = asyncio.run(_rotate(settings, vault, say))
        document = {"vault_key_id": vault.key_id, "retired": retired, "left": left, "unreadable": unreadable}
        if left or unreadable:
            raise Stop(
                ExitCode.REFUSED,
                f"{left:,} values are still encrypted with another vault key. {unreadable:,} of them cannot be"
                " decrypted: their key is not in the settings, or they are damaged. Keep every old key.",
                "Run this command again. `birdwire vault status` shows which keys encrypt the remaining values.",
                document=document,
            )
        say.result(
            document,
            f"Every value is encrypted with the vault key {vault.key_id}.",
            *(f"The vault key {key_id} is no longer used by this database." for key_id in retired),
            "Remove BIRDWIRE_VAULT_OTHER_KEY_FILES from the settings. Keep the old key for as long as you keep"
            " backups that need it.",
        )


async def _counts(settings: Settings, vault: Vault) -> list[Count]:
    async with opened(settings) as database:
        return await KeyRotation(database, vault, Clock()).counts()


def _unserved(settings: Settings) -> AbstractContextManager[None]:
    """Lock the database against gateways that do not know this vault key and could not decrypt its values.

    Raises:
        Stop: such a gateway may be running.
    """
    message = "The gateway that uses this database does not know this vault key yet."
    fix = "Restart the gateway with this key and the old one, then run this command again."
    file = file_of(settings.database_url)
    if file is None:
        raise Stop(ExitCode.USAGE, message, fix)
    return held(file, message, fix)


async def _rotate(settings: Settings, vault: Vault, say: Output) -> tuple[list[str], int, int]:
    """Return the retired keys, how many values use other keys, and how many of these cannot be decrypted."""
    async with opened(settings) as database:
        known = await KeyRotation(database, vault, Clock()).known()
    if not known:
        with _unserved(settings):
            async with opened(settings) as database:
                await KeyRotation(database, vault, Clock(), by=operator()).enlist()
    async with opened(settings) as database:
        keyring = KeyRotation(database, vault, Clock(), Failpoints(settings.failpoints), by=operator())
        # If no gateway of this version has used the database yet, its values are still in the older form.
        await keyring.bind()
        counts = await keyring.counts()
        total = sum(one.values for one in counts if not one.seals)
        said_at = time.monotonic()

        def progress(done: int) -> None:
            nonlocal said_at
            if time.monotonic() - said_at >= SAY_EVERY_S:
                said_at = time.monotonic()
                say.aside(f"{done:,} of {total:,} values re-encrypted")

        for _ in range(ROUNDS):
            unreadable = await keyring.reseal(progress)
            left = sum(one.values for one in await keyring.counts() if not one.seals)
            if left <= unreadable:
                break
        return await keyring.retire(), left, unreadable
