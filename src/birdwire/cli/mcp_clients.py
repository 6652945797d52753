"""Programs with an agent that speaks MCP, and how each of them is configured for a gateway, without the key itself."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

SERVER: Final = "birdwire"
"""The name of the gateway among a program's MCP servers."""

VARIABLE: Final = "BIRDWIRE_API_KEY"
KEY_FILE: Final = ".birdwire-api-key"
"""The environment variable with the key, and the file in the home folder from which a shell sets it."""


class McpClient(NamedTuple):
    """A program. `form` is what `setup` returns: a command to run, or a config to paste.

    `place` states what to do with it, and `start` how the program gets the key. A program that `asks` for the key keeps
    it itself; the others read the environment variable.
    """

    title: str
    form: str
    setup: Callable[[str], Any]
    place: str
    start: str
    asks: bool = False


def _claude_code(url: str) -> str:
    # In single quotes, the shell leaves the variable to Claude Code, which replaces it when it connects.
    server = {"type": "http", "url": url, "headers": {"Authorization": f"Bearer ${{{VARIABLE}}}"}}
    return f"claude mcp add-json {SERVER} {shlex.quote(_json(server))}"


def _cursor(url: str) -> dict[str, Any]:
    server = {"url": url, "headers": {"Authorization": f"Bearer ${{env:{VARIABLE}}}"}}
    return {"mcpServers": {SERVER: server}}


def _vscode(url: str) -> dict[str, Any]:
    key = "birdwire-key"
    asked = {"type": "promptString", "id": key, "description": "Birdwire API key", "password": True}
    server = {"type": "http", "url": url, "headers": {"Authorization": f"Bearer ${{input:{key}}}"}}
    return {"inputs": [asked], "servers": {SERVER: server}}


def _codex(url: str) -> str:
    # Codex accepts a bearer token only by the name of a variable. A basic string of TOML is written as JSON writes it.
    return f"[mcp_servers.{SERVER}]\nurl = {json.dumps(url)}\nbearer_token_env_var = {json.dumps(VARIABLE)}\n"


CLIENTS: Final = {
    "claude-code": McpClient(
        "Claude Code",
        "command",
        _claude_code,
        "Run this command in the project's folder. With `--scope user` after `add-json`, it applies to all of them:",
        "Start Claude Code from a shell that has the variable, and enter /mcp: it must list birdwire as connected.",
    ),
    "cursor": McpClient(
        "Cursor",
        "config",
        _cursor,
        "Put this into .cursor/mcp.json in the project's folder, or into ~/.cursor/mcp.json for all your projects:",
        "Start Cursor from a shell that has the variable, with `cursor .`: if started from the desktop, it has none.",
    ),
    "vscode": McpClient(
        "VS Code",
        "config",
        _vscode,
        "Put this into .vscode/mcp.json in the project's folder, or into what `MCP: Open User Configuration` opens:",
        "Choose Start above the server's name. VS Code asks for the key once, and keeps it in its secret storage.",
        asks=True,
    ),
    "codex": McpClient(
        "Codex",
        "config",
        _codex,
        "Add this to ~/.codex/config.toml:",
        "Start Codex from a shell that has the variable, and enter /mcp: it must list birdwire.",
    ),
}
"""The programs by the name that `birdwire mcp setup` takes."""


_SAVED: Final = (
    "",
    "   To keep it out of the shell's history, run the first command, paste the key, and press Enter and Ctrl-D. The",
    "   second one sets the variable; add it to your shell's profile, too.",
    "",
    f"       (umask 077 && cat > ~/{KEY_FILE})",
    f'       export {VARIABLE}="$(cat ~/{KEY_FILE})"',
)
"""How a person keeps the key and sets the variable."""


def setup_document(name: str, key_id: str, raw_key: str, url: str) -> dict[str, Any]:
    """Return a program's setup for other programs."""
    client = CLIENTS[name]
    return {"key_id": key_id, "api_key": raw_key, "client": name, client.form: client.setup(url)}


def setup_lines(name: str, raw_key: str, url: str, link: str, approvals: str) -> list[str]:
    """Return a program's setup as numbered steps. `link` and `approvals` are the commands that the last ones name."""
    client = CLIENTS[name]
    setup = client.setup(url)
    shown = json.dumps(setup, indent=2) if isinstance(setup, dict) else setup
    saved = () if client.asks else _SAVED
    return [
        "1. Save the key. It is shown only once:",
        "",
        f"       {raw_key}",
        *saved,
        "",
        f"2. {client.place}",
        "",
        *(f"       {line}" for line in shown.splitlines()),
        "",
        f"3. {client.start}",
        "",
        "4. Link the X account that the agent acts for:",
        "",
        f"       {link}",
        "",
        '5. Ask the agent: "Which X account can you act for, and what are you allowed to do there?"',
        f"   To see the writes that wait for your approval, run: {approvals}",
    ]


def other_lines(url: str) -> list[str]:
    """Return how programs are set up, without a key: those by name, and any other over stdio."""
    # Many programs pass on few variables of their environment, so the bridge reads the key from a file.
    arguments = ["mcp", "--api-key-file", str(Path.home() / KEY_FILE)]
    server = {"command": "birdwire", "args": arguments, "env": {"BIRDWIRE_URL": url.removesuffix("/mcp")}}
    return [
        "Create a key for one of these programs and show how to configure it:",
        "",
        *(f"    birdwire mcp setup {name:<12} {client.title}" for name, client in CLIENTS.items()),
        "",
        "For a program that starts MCP servers itself, create a key with `birdwire keys create --label TEXT --preset",
        f"poster`, save it in a file that only you can read, such as ~/{KEY_FILE}, and add this server:",
        "",
        f"    {json.dumps({'mcpServers': {SERVER: server}})}",
        "",
        f"For a program that sends HTTP headers, the URL is {url} and the header is `Authorization: Bearer <the key>`.",
    ]


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
