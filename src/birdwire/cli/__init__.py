"""The command line: which commands there are, and main(). A family's module is loaded only when it is used."""

from __future__ import annotations

import importlib
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup
from typer.main import get_command

from birdwire import __version__
from birdwire.cli.output import ExitCode, Output, Stop, family
from birdwire.runtime.private_files import keep_memory_private
from birdwire.x.catalog.operations import OPERATIONS, Operation

OFFERED = tuple(row for row in OPERATIONS if list(row.body.model_fields) == [row.target])
"""Operations whose body is one id: each is a command."""

RUN, OPERATE, ACT, LOOK = "Run", "Operate", "Act on X", "Look up"


_UsageError: Any = typer.BadParameter.__base__  # which Typer itself does not export
_AS_JSON = "birdwire.as_json"


class Row(NamedTuple):
    """A command: its name, the module that holds it, where and how the list of commands shows it."""

    name: str
    module: str
    panel: str
    summary: str


def name_of(operation: Operation) -> str:
    """The command of an operation."""
    return operation.name.removesuffix("_twitter").removesuffix("_media").replace("_", "-")


ACTIONS = {name: row.name for row in OPERATIONS for name in (name_of(row), row.name.removesuffix("_twitter"))}
"""Short names of actions: those of the commands, and like for like_twitter."""

COMMANDS = (
    Row("dev", "dev", RUN, "Start a gateway and a sandbox on this machine, to build and test against."),
    Row("serve", "serve", RUN, "Start the gateway."),
    Row("sandbox", "sandbox", RUN, "Start the sandbox alone."),
    Row("check", "check", OPERATE, "Report everything that is wrong with settings, vault key and database."),
    Row("migrate", "migrate", OPERATE, "Bring the database up to this version."),
    Row("keys", "keys", OPERATE, "Create, list, rotate and revoke API keys."),
    Row("vault", "vault", OPERATE, "Create, rotate and inspect the vault keys that encrypt X's tokens at rest."),
    Row("backup", "backup", OPERATE, "Copy the database into one file, while the gateway runs."),
    Row(
        "restore",
        "backup",
        OPERATE,
        "Replace the database with a backup, and mark its links: X may have renewed their tokens since.",
    ),
    Row("log", "log", OPERATE, "List recent writes to X, newest first, with their outcomes."),
    Row("accounts", "accounts", ACT, "Link X accounts to API keys, and see what is linked."),
    *(
        Row(name_of(operation), "act" if operation in OFFERED else "post", ACT, f"{operation.summary}.")
        for operation in OPERATIONS
    ),
    Row("user", "lookups", LOOK, "Look up a user by name."),
    Row("posts", "lookups", LOOK, "Read a user's newest posts."),
    Row("search", "lookups", LOOK, "Search for users."),
    Row("limits", "limits", LOOK, "Show the key's own allowance, and X's rate limits, as X last reported them."),
    Row("explain", "log", LOOK, "Show what became of a write by this API key, and what to do about it."),
)


class Commands(TyperGroup):
    """The commands by name. The list shows rows of COMMANDS; the command itself is loaded when it is called."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the options before the command, and see whether a program is to read what comes."""
        ctx.meta[_AS_JSON] = "--json" in args
        return super().parse_args(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        """The options before the command."""
        return _without_types(super().get_params(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Name, command and the arguments left for it."""
        name, listed, rest = super().resolve_command(ctx, args)
        if listed is None:
            return name, None, rest
        command = load(str(name))
        _tidy(command, ctx)
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; one that cannot be understood is refused in JSON, too, if that was asked for."""
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            if ctx.meta[_AS_JSON]:
                where: Any = error.ctx or ctx
                stop = Stop(ExitCode.USAGE, error.format_message(), f"See `{where.command_path} --help`.")
                Output(as_json=True).result(stop.document)
            raise


def load(name: str) -> Any:
    """The command of a row of COMMANDS."""
    row = next(row for row in COMMANDS if row.name == name)
    family: Any = get_command(importlib.import_module(f"birdwire.cli.commands.{row.module}").app)
    command = getattr(family, "commands", {}).get(name, family)
    command.help = command.help or row.summary
    return command


def _tidy(command: Any, parent: Any) -> None:
    """Take from the help of a command, and of those below it, what says nothing."""
    context = typer.Context(command, parent=parent, info_name=command.name)
    _without_types(command.get_params(context))
    for below in getattr(command, "commands", {}).values():
        _tidy(below, context)


def _without_types(params: list[Any]) -> list[Any]:
    """The options, of which a flag does not seem to take a value: the help would call its type <bool>."""
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params


def build() -> typer.Typer:
    """The whole command line."""
    app = family(
        cls=Commands,
        help="A self-hosted gateway through which an app or an AI agent acts on X, with one API key.",
        epilog="Begin with: birdwire dev\n\nActing and looking up asks the gateway at BIRDWIRE_URL, by default"
        " http://127.0.0.1:8700, with the API key in BIRDWIRE_API_KEY.",
        add_completion=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for row in COMMANDS:
        app.command(row.name, help=row.summary, rich_help_panel=row.panel)(_listed)
    return app


def main() -> None:
    """Run the command line. Each command holds a secret: an API key, or the vault's."""
    keep_memory_private()
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
