"""The command line: which commands there are, and main(). A family's module is loaded only when it is used."""

from __future__ import annotations

import importlib
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup
from typer.main import get_command

from birdwire import __version__
from birdwire.cli import act

RUN, OPERATE, ACT = "Run", "Operate", "Act on X"


class Row(NamedTuple):
    """A command: its name, the module that holds it, where and how the list of commands shows it."""

    name: str
    module: str
    panel: str
    summary: str


COMMANDS = (
    Row("dev", "dev", RUN, "Start a gateway and a local X on this machine, to build and test against."),
    Row("serve", "serve", RUN, "Start the gateway."),
    Row("sandbox", "serve", RUN, "Start the local X alone."),
    Row("keys", "keys", OPERATE, "Create, list, rotate and revoke API keys."),
    Row("vault", "vault", OPERATE, "Make the key that seals X's tokens at rest."),
    *(Row(act.name_of(operation), "act", ACT, f"{operation.summary}.") for operation in act.OFFERED),
)


class Commands(TyperGroup):
    """The commands by name. The list shows rows of COMMANDS; the command itself is loaded when it is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Name, command and the arguments left for it."""
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed and load(str(name)), rest


def load(name: str) -> Any:
    """The command of a row of COMMANDS."""
    row = next(row for row in COMMANDS if row.name == name)
    found: Any = get_command(importlib.import_module(f"birdwire.cli.{row.module}").app)
    return getattr(found, "commands", {}).get(name, found)


def build() -> typer.Typer:
    """The whole command line."""
    app = typer.Typer(
        name="birdwire",
        cls=Commands,
        help="A self-hosted gateway through which an app or an AI agent acts on X, with one API key.",
        epilog="Begin with: birdwire dev",
        no_args_is_help=True,
        pretty_exceptions_enable=False,  # they print local variables, and so secrets
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for row in COMMANDS:
        app.command(row.name, help=row.summary, rich_help_panel=row.panel)(_listed)
    return app


def main() -> None:
    """Run the command line."""
    build()(prog_name="birdwire")


def _listed() -> None:
    """Stand for a command in the list."""


def _version(asked: bool) -> None:  # noqa: FBT001 - Typer calls it so
    if asked:
        typer.echo(f"birdwire {__version__}")
        raise typer.Exit


def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Take the options before the command."""
    del version
