"""`birdwire mcp`: connects programs that speak MCP over stdio to a gateway, and sets up the most common ones."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from birdwire.cli.inputs import again, gateway_url, read_settings
from birdwire.cli.mcp_bridge import bridge
from birdwire.cli.mcp_clients import CLIENTS, VARIABLE, other_lines, setup_document, setup_lines
from birdwire.cli.new_keys import check_preset, create_key
from birdwire.cli.options import AccountOption, ConfigOption, DataOption, JsonOption, KeyFileOption
from birdwire.cli.output import family, saying
from birdwire.cli.stop import ExitCode, Stop
from birdwire.gateway.guardrails.presets import PRESETS
from birdwire.keys.rules import KeyRules

app = family(no_args_is_help=False)


@app.callback(invoke_without_command=True)
def mcp(context: typer.Context, *, api_key_file: KeyFileOption = None) -> None:
    """Connect agents that speak MCP, and create their API keys.

    To configure an agent's program, run: birdwire mcp setup

    Without a command, this is the bridge that a program starts if it speaks MCP over stdio. The bridge carries JSON-RPC
    messages, one a line, from stdin to the gateway at BIRDWIRE_URL, and the answers to stdout. Programs that speak HTTP
    need no bridge: they call the gateway's URL with the path /mcp.

    Example: birdwire mcp --api-key-file ~/.birdwire-api-key
    """
    if context.invoked_subcommand is None:
        raise typer.Exit(bridge(api_key_file))


@app.command()
def setup(
    client: Annotated[
        str | None, typer.Argument(metavar="PROGRAM", help=f"{', '.join(CLIENTS)}. Default: list them.")
    ] = None,
    *,
    preset: Annotated[
        str, typer.Option(metavar="NAME", help=f"Preset with the rules of the key: {', '.join(PRESETS)}.")
    ] = "poster",
    label: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Name of the agent, shown on link pages. Default: the program's name."),
    ] = None,
    account: AccountOption = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create an API key for an agent, and print how to configure its program.

    Edits no file. The key is shown only once; what is printed for the program's configuration refers to an environment
    variable or a prompt and contains no key.

    Example: birdwire mcp setup claude-code --account @ada
    """
    with saying(as_json=as_json) as say:
        if client is not None and client not in CLIENTS:
            raise Stop(ExitCode.USAGE, f"{client} is not one of {', '.join(CLIENTS)}.", "See `birdwire mcp setup`.")
        check_preset(preset, {})
        settings = read_settings(config, data)
        # The files of a dev folder do not contain the gateway's URL.
        url = f"{(gateway_url() if data is not None else settings.base_url).rstrip('/')}/mcp"
        if client is None:
            say.result({"clients": list(CLIENTS)}, *other_lines(url))
            return
        rules = KeyRules(account_username=None if account is None else account.removeprefix("@"))
        made = create_key(settings, CLIENTS[client].title if label is None else label, rules=rules, preset=preset)
        link = f"birdwire accounts link {made.key.key_id}{again(config, None)}"
        # In a dev folder, only the running gateway knows the sandbox. The shell may have the variable with another key.
        if data is not None:
            link = f"env -u {VARIABLE} birdwire accounts link" if CLIENTS[client].asks else "birdwire accounts link"
        steps = setup_lines(client, made.raw_key, url, link, f"birdwire approvals list{again(config, data)}")
        say.result(setup_document(client, made.key.key_id, made.raw_key, url), *steps)
        if not as_json:
            say.aside(f"{made.key.key_id} has the preset {preset}. {PRESETS[preset].sentence}")
            say.aside(made.stored)
        if find_spec("mcp") is None:
            say.aside(_NOT_INSTALLED)


_NOT_INSTALLED = (
    "The package that MCP needs is not installed here. If the gateway runs from this installation, install "
    "birdwire[mcp] (`make setup` does) and restart the gateway."
)
