"""The program `birdwire`: main() runs the command line, or the MCP bridge, which must start fast.

Operator commands work on the database of the settings, also while a gateway runs. Commands that act on X or look
something up are HTTP clients of a running gateway. Every command prints text for people or, with --json, one JSON
document, and exits with a code of `stop.ExitCode`.

Owns the command line. Must never need a secret in argv: secrets come from the environment, a file, stdin or a prompt.
Must never be imported by the gateway or the sandbox.

Read in this order:

1. `command_line`: the table of commands. A command's module is imported only when the command runs.
2. `output`, `stop`, `printable`: results, errors and exit codes.
3. `inputs`, `options`: settings, dev folder, gateway URL, API key, and the options that several commands have.
4. `commands`: one module for each command or group of commands.
5. `gateway_client`, `targets`, `waiting`: the HTTP client, how posts and users are named, and how a write is sent.
6. `mcp_bridge`, `mcp_clients`: MCP over stdio, and how programs with an agent are configured.
7. `database`, `new_keys`, `linking`, `links`: work on the database, beyond single commands.
8. `approval_desk`, `approval_view`, `approval_watch`, `terminal`: the writes that wait for a person.
9. `notify_view`: where notifications go, and why a delivery failed, in words.
10. `run_servers`: servers, signals and graceful shutdown, for dev, serve and sandbox.
"""

from __future__ import annotations

import sys
from pathlib import Path

from birdwire.runtime.private_files import keep_memory_private


def main() -> None:
    """Run the command line. The memory is kept private because each command holds a secret: an API or a vault key.

    The MCP bridge starts without the libraries of the command line, which take longer to import than it may take to
    start: an agent's program waits for it.
    """
    keep_memory_private()
    match sys.argv[1:]:
        case ["mcp"]:
            _bridge(None)
        case ["mcp", "--api-key-file", file]:
            _bridge(Path(file))
        case ["mcp", option] if option.startswith("--api-key-file="):
            _bridge(Path(option.partition("=")[2]))
        case _:
            from birdwire.cli.command_line import build  # noqa: PLC0415 - the bridge does without it

            build()(prog_name="birdwire")


def _bridge(file: Path | None) -> None:
    from birdwire.cli.mcp_bridge import bridge  # noqa: PLC0415 - other commands do without it

    sys.exit(bridge(file))
