"""The command line: the table of commands, and how the command that is called is loaded. Only that one is imported."""

from __future__ import annotations

import importlib
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup
from typer.main import get_command

from birdwire import __version__
from birdwire.cli.output import Output, family
from birdwire.cli.stop import ExitCode, Stop
from birdwire.x.catalog.operations import OPERATIONS, Operation

OFFERED = tuple(row for row in OPERATIONS if list(row.body.model_fields) == [row.target])
"""Operations whose body is a single id. Each of them is a command."""

RUN, OPERATE, ACT, LOOK = "Run", "Operate", "Act on X", "Look up"


# Typer does not export its own UsageError.
_UsageError: Any = typer.BadParameter.__base__
_AS_JSON = "birdwire.as_json"


class Row(NamedTuple):
    """A command: its name, its module, and its panel and summary in the list of commands."""

    name: str
    module: str
    panel: str
    summary: str


def name_of(operation: Operation) -> str:
    """Return the name of an operation's command."""
    return operation.name.removesuffix("_twitter").removesuffix("_media").replace("_", "-")


ACTIONS = {name: row.name for row in OPERATIONS for name in (name_of(row), row.name.removesuffix("_twitter"))}
"""Short names of actions, such as `like` for `like_twitter`: those of the commands, and those without `_twitter`."""

COMMANDS = (
    Row("dev", "dev", RUN, "Start a gateway and a sandbox on this machine, for development and testing."),
    Row("serve", "serve", RUN, "Start the gateway."),
    Row("sandbox", "sandbox", RUN, "Start only the sandbox, a local stand-in for X's API."),
    Row("check", "check", OPERATE, "Check the settings, the vault key and the database, and report every problem."),
    Row("migrate", "migrate", OPERATE, "Upgrade the database to this version of Birdwire."),
    Row("keys", "keys", OPERATE, "Create, change, list, rotate and revoke API keys."),
    Row("mcp", "mcp", OPERATE, "Connect agents that speak MCP, and create their API keys."),
    Row("policy", "policy", OPERATE, "Show, set and rehearse what keys, accounts and the gateway may do and spend."),
    Row("approvals", "approvals", OPERATE, "Show the writes that wait for a person, and decide on them."),
    Row("notify", "notify", OPERATE, "Set where notifications go, test it, and see how deliveries go."),
    Row(
        "pause",
        "pause",
        OPERATE,
        "Stop the writes, uploads, lookups and new links of a key, an account or the whole gateway.",
    ),
    Row("resume", "pause", OPERATE, "End a pause."),
    Row("vault", "vault", OPERATE, "Create, rotate and inspect the vault keys that encrypt X tokens at rest."),
    Row("backup", "backup", OPERATE, "Back up the database to a file while the gateway runs."),
    Row(
        "restore",
        "backup",
        OPERATE,
        "Restore the database from a backup, and mark its links for verification.",
    ),
    Row("log", "log", OPERATE, "List recent writes to X and their outcomes, newest first."),
    Row(
        "recent",
        "recent",
        OPERATE,
        "List the posts that a key, an account or the whole gateway published recently, and delete them with --delete.",
    ),
    Row("cost", "cost", OPERATE, "Show the estimated cost of calls to X."),
    Row("accounts", "accounts", ACT, "Link X accounts to API keys, and manage the links."),
    *(
        Row(name_of(operation), "act" if operation in OFFERED else "post", ACT, f"{operation.summary}.")
        for operation in OPERATIONS
    ),
    Row("user", "lookups", LOOK, "Look up a user by name."),
    Row("posts", "lookups", LOOK, "Read a user's newest posts."),
    Row("search", "lookups", LOOK, "Search for users."),
    Row("limits", "limits", LOOK, "Show the API key's rate limit, and X's rate limits as X last reported them."),
    Row("explain", "log", LOOK, "Show the outcome of a write that this API key made, and what to do next."),
)


class Commands(TyperGroup):
    """The commands by name. The list shows the rows of COMMANDS; a command is loaded only when it is called."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options before the command, and record whether --json appears anywhere."""
        ctx.meta[_AS_JSON] = "--json" in args
        return super().parse_args(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options before the command."""
        return _without_types(super().get_params(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the name, the loaded command, and its arguments."""
        name, listed, rest = super().resolve_command(ctx, args)
        if listed is None:
            return name, None, rest
        command = load(str(name))
        _tidy(command, ctx)
        return name, command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command. With --json, a usage error is also printed as JSON."""
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            if ctx.meta[_AS_JSON]:
                where: Any = error.ctx or ctx
                stop = Stop(ExitCode.USAGE, error.format_message(), f"See `{where.command_path} --help`.")
                Output(as_json=True).result(stop.document)
            raise


def load(name: str) -> Any:
    """Load the command of a row of COMMANDS."""
    row = next(row for row in COMMANDS if row.name == name)
    family: Any = get_command(importlib.import_module(f"birdwire.cli.commands.{row.module}").app)
    command = getattr(family, "commands", {}).get(name, family)
    command.help = command.help or row.summary
    return command


def _tidy(command: Any, parent: Any) -> None:
    """Remove redundant types from the help of a command and its subcommands."""
    context = typer.Context(command, parent=parent, info_name=command.name)
    _without_types(command.get_params(context))
    for below in getattr(command, "commands", {}).values():
        _tidy(below, context)


def _without_types(params: list[Any]) -> list[Any]:
    """Return the options with each flag's metavar cleared. Otherwise the help shows <bool>, as if it took a value."""
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
    return params


def build() -> typer.Typer:
    """Build the whole command line."""
    app = family(
        cls=Commands,
        help="Birdwire is a self-hosted gateway through which an app or an AI agent acts on X with one API key.",
        epilog="To get started, run: birdwire dev\n\nThe commands that act on X or look something up call the gateway"
        " at BIRDWIRE_URL (default: http://127.0.0.1:8700) with the API key in BIRDWIRE_API_KEY.",
        add_completion=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for row in COMMANDS:
        app.command(row.name, help=row.summary, rich_help_panel=row.panel)(_listed)
    return app


def _listed() -> None:
    """Stand in for a command in the list of commands."""


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
    """Accept the options before the command."""
    del version
