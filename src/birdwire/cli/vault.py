"""`birdwire vault`: the key that seals X's tokens at rest."""

from __future__ import annotations

import shlex
from pathlib import Path  # noqa: TC003 - Typer reads it
from typing import Annotated

import typer

from birdwire.cli.say import ExitCode, JsonOption, Stop, family, saying
from birdwire.vault import Vault, VaultError, create_key_file

app = family()


@app.callback()
def vault() -> None:
    """Make the key that seals X's tokens at rest."""
    # Without a callback, Typer makes a lone command the family itself.


@app.command()
def create(
    file: Annotated[Path, typer.Argument(help="Where to keep the key; must not exist yet.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Make a new vault key in a file that only you can read.

    Without this key the database's X tokens are lost: keep a copy, but not beside the database's backups.

    Example: birdwire vault create /etc/birdwire/vault.key
    """
    with saying(as_json=as_json) as say:
        try:
            key_id = Vault(create_key_file(file)).key_id
        except VaultError as error:
            raise Stop(ExitCode.USAGE, str(error), "Choose another file; a key is never overwritten.") from None
        say.result(
            {"file": str(file.resolve()), "vault_key_id": key_id},
            f"The vault key is in {file}. Use it with:",
            f"export BIRDWIRE_VAULT_KEY_FILE={shlex.quote(str(file.resolve()))}",
        )
