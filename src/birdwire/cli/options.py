"""Options and arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document to stdout and human-readable text to stderr.")
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML settings file. Environment variables take precedence."),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Use the database and vault key in this data folder of `birdwire dev`, not the settings.",
    ),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        metavar="FILE",
        help="File with the API key. Default: the key in BIRDWIRE_API_KEY, or a prompt.",
    ),
]
ScopeArgument = Annotated[
    str, typer.Argument(metavar="SCOPE", help="KEY_ID, @handle of a linked account, or `gateway` for everything.")
]
AccountOption = Annotated[
    str | None,
    typer.Option(metavar="USERNAME", help="X account the key may act as, such as @ada. Without this rule: any."),
]
