"""Inputs of a command from its environment: settings, a dev folder, the gateway's URL, an API key.

No other module of the command line reads the environment. A secret comes from the environment, a file or a prompt,
never from argv.
"""

from __future__ import annotations

import os
import pwd
import shlex
import sys
from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING

from birdwire.cli.stop import ExitCode, Stop

if TYPE_CHECKING:
    from collections.abc import Mapping

    from birdwire.settings import Settings

DEFAULT_URL = "http://127.0.0.1:8700"
DEFAULT_FOLDER = Path(".birdwire")
DATABASE, VAULT_KEY, WORLD = "birdwire.db", "vault.key", "sandbox.json"
"""Names of the files in a dev folder."""

_LONGEST_KEY_FILE = 4_096
_LONGEST_TEXT = 65_536
_LONGEST_LINE = 8_192


def read_settings(config: Path | None = None, data: Path | None = None, **changes: str | None) -> Settings:
    """Return the gateway's settings. `changes` take precedence over the environment, and a dev folder over both.

    Raises:
        Stop: the settings are invalid; it lists every problem.
    """
    from birdwire.settings import PREFIX, Settings, SettingsError  # noqa: PLC0415 - most commands need no settings

    if data is not None:
        database = data / DATABASE
        if not database.is_file():
            raise Stop(
                ExitCode.USAGE, f"{database} does not exist.", f"To create the folder, run: birdwire dev --data {data}"
            )
        return Settings(
            database_url=f"sqlite:///{database}", vault_key_file=data / VAULT_KEY, x_api_url="http://127.0.0.1"
        )
    given = {PREFIX + name.upper(): value for name, value in changes.items() if value is not None}
    try:
        return load_settings(config, given)
    except SettingsError as error:
        message = "\n- ".join(("The settings are invalid:", *error.problems))
        raise Stop(ExitCode.USAGE, message, "Run `birdwire check --help` for a description of each setting.") from None


def load_settings(config: Path | None = None, given: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of the file and the environment; `given` takes precedence over both.

    Raises:
        SettingsError: the settings are invalid; it lists every problem.
    """
    from birdwire.settings import Settings  # noqa: PLC0415 - as above

    return Settings.load({**os.environ, **(given or {})}, config)


def settings_file(config: Path | None = None) -> Path | None:
    """Return the path of the settings file: `config`, else the environment's; None without either."""
    from birdwire.settings import config_file  # noqa: PLC0415 - as above

    return config_file(os.environ, config)


def again(config: Path | None, data: Path | None) -> str:
    """Return the options by which a further command works on the same database, as a person enters them."""
    given = (("--config", config), ("--data", data))
    return "".join(f" {option} {shlex.quote(str(path))}" for option, path in given if path is not None)


def os_user() -> str:
    """Return the name of the OS user who runs the command, for the record of acts.

    The name comes from the process's real user id, because environment variables can be forged. For root, SUDO_UID is
    trusted: it names the user who called sudo.
    """
    user_id = os.getuid()
    if user_id == 0 and os.environ.get("SUDO_UID", "").isdecimal():
        user_id = int(os.environ["SUDO_UID"])
    try:
        return pwd.getpwuid(user_id).pw_name
    # In most containers the user id has no name.
    except (KeyError, OverflowError):
        return f"uid {user_id}"


def editor() -> list[str]:
    """Return the command of the editor that the person has chosen; empty if there is none."""
    named = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ""
    try:
        return shlex.split(named)
    except ValueError:
        return []


def gateway_url() -> str:
    """Return the URL of the gateway that a command calls."""
    return os.environ.get("BIRDWIRE_URL") or DEFAULT_URL


def read_key(file: Path | None) -> str:
    """Return the API key from the file, the environment or a prompt.

    Raises:
        Stop: there is no key, or it is malformed.
    """
    if file is not None:
        raw_key = _read_file(file)
    else:
        raw_key = os.environ.get("BIRDWIRE_API_KEY", "").strip()
        if not raw_key and sys.stdin.isatty():
            raw_key = getpass("API key: ").strip()
    if not raw_key:
        raise Stop(
            ExitCode.AUTH,
            "This command needs an API key.",
            "Set BIRDWIRE_API_KEY, or use --api-key-file FILE.",
        )
    if not raw_key.isascii() or not raw_key.isprintable() or " " in raw_key:
        raise Stop(
            ExitCode.AUTH,
            "That is not a valid API key.",
            "Copy the key again, without spaces, quotes or other characters around it.",
        )
    return raw_key


def read_stdin() -> str:
    """Return the text of a post from stdin, without the final line break.

    Raises:
        Stop: it is too long, or not UTF-8.
    """
    raw = sys.stdin.buffer.read(_LONGEST_TEXT + 1)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Stop(ExitCode.USAGE, "The text on stdin is not UTF-8.") from None
    if len(raw) > _LONGEST_TEXT:
        raise Stop(ExitCode.USAGE, f"The text on stdin is too long: at most {_LONGEST_TEXT:,} bytes are allowed.")
    return text.removesuffix("\n").removesuffix("\r")


def read_secret_line(prompt: str, name: str) -> str:
    """Return a line from stdin, such as a URL that is a secret; at a terminal, ask for it without showing it.

    Raises:
        Stop: there is no such line.
    """
    if sys.stdin.isatty():
        line = getpass(prompt).strip()
    else:
        raw = sys.stdin.buffer.readline(_LONGEST_LINE)
        line = raw.decode("utf-8", "replace").strip()
    if not line:
        raise Stop(ExitCode.USAGE, f"There is no {name} on stdin.", f"Write the {name} to stdin, as one line.")
    return line


def _read_file(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(_LONGEST_KEY_FILE).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Stop(ExitCode.USAGE, f"Cannot read the API key file {path}: {type(error).__name__}.") from None
