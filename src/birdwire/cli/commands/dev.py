"""`birdwire dev`: a gateway and a sandbox in one process, on loopback, with their files in one folder. No settings."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from birdwire.api.errors import GatewayError
from birdwire.api.paths import API
from birdwire.app import create_app
from birdwire.cli import run_servers
from birdwire.cli.database import held, operator, refusals
from birdwire.cli.gateway_client import GatewayClient
from birdwire.cli.inputs import DATABASE, DEFAULT_FOLDER, DEFAULT_URL, VAULT_KEY, WORLD
from birdwire.cli.options import JsonOption
from birdwire.cli.output import Output, family, saying
from birdwire.cli.printable import printable
from birdwire.cli.stop import ExitCode, Stop
from birdwire.keys.registry import Keys
from birdwire.keys.rules import MAX_RPM
from birdwire.keys.secrets import mint
from birdwire.runtime.clock import Clock
from birdwire.sandbox.app import create_sandbox
from birdwire.sandbox.state.seed import OTHER_USER_ID, OTHER_USERNAME, PEOPLE, VISIBLE_POST_ID
from birdwire.settings import Settings
from birdwire.startup import prepare
from birdwire.store.database import Database
from birdwire.store.encryption.key_files import create_key_file, read_key_file
from birdwire.store.encryption.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.applications import Starlette

app = family()

HOST = "127.0.0.1"
TIER = "starter"


@dataclass(frozen=True, slots=True)
class Folder:
    """Folder of a dev gateway. It keeps all state, so that the next start continues with it."""

    path: Path

    @property
    def database_url(self) -> str:
        """Return the URL of the folder's database."""
        return f"sqlite:///{self.path / DATABASE}"

    @contextlib.contextmanager
    def held(self) -> Iterator[Vault]:
        """Create the folder (0700) if it does not exist, lock it, and open its vault.

        Raises:
            Stop: the folder is unusable, or another process uses it.
        """
        try:
            if not self.path.exists():
                self.path.mkdir(mode=0o700, parents=True)
                (self.path / ".gitignore").write_text("*\n", "utf-8")
        except OSError as error:
            raise Stop(ExitCode.USAGE, f"Cannot use the folder {self.path}: {error.strerror}.") from None
        with held(
            self.path / DATABASE,
            f"Another `birdwire dev` or `birdwire serve` is using {self.path}.",
            "Use that gateway, stop it, or choose another folder with --data DIR.",
        ):
            key_file = self.path / VAULT_KEY
            yield Vault(read_key_file(key_file) if key_file.exists() else create_key_file(key_file))


@dataclass(frozen=True, slots=True)
class Ready:
    """What a dev gateway prints once it is ready."""

    gateway: str
    sandbox: str
    api_key: str
    unlinked_key: str
    linked: dict[str, Any] | None
    auth_url: str | None
    folder: Path

    def document(self) -> dict[str, Any]:
        """Return the JSON document for programs."""
        return {
            "gateway": self.gateway,
            "sandbox": self.sandbox,
            "api_key": self.api_key,
            "unlinked_key": self.unlinked_key,
            "linked": self.linked,
            "tweet_id": VISIBLE_POST_ID,
            "user_id": OTHER_USER_ID,
            "username": OTHER_USERNAME,
        }

    def text(self) -> Iterator[str | Text]:
        """Yield the text for people. The curl command works when pasted."""
        yield Text("\nBirdwire is running with a sandbox in place of X. Nothing leaves this machine.\n", style="bold")
        yield f"  Gateway   {self.gateway}"
        yield f"  Sandbox   {self.sandbox}"
        yield f"  API key   {self.api_key}"
        if self.auth_url is not None:
            yield Text(
                "\n1. Open this page, choose ada and click Authorize app (valid once, for 10 minutes):\n",
                style="bold",
            )
            yield Text(f"{self.auth_url}", style="cyan")
            yield Text("\n2. Like a post:\n", style="bold")
        else:
            username = (self.linked or {}).get("username")
            yield Text(f"\nThe key acts as the sandbox's user @{username}. Like a post:\n", style="bold")
        yield (
            f"curl {self.gateway}{API}/like_twitter \\\n"
            f"  -H 'Authorization: Bearer {self.api_key}' \\\n"
            f"  -H 'Content-Type: application/json' \\\n"
            f"""  -d '{{"tweet_id": "{VISIBLE_POST_ID}"}}'"""
        )
        command = _command()
        yield Text("\nOr use the command line in another terminal:\n", style="bold")
        if self.gateway != DEFAULT_URL:
            yield f"export BIRDWIRE_URL={self.gateway}"
        yield f"export BIRDWIRE_API_KEY={self.api_key}"
        yield f"{command} like {VISIBLE_POST_ID}"
        yield f"{command} post 'Hello from Birdwire'"
        yield Text("\nOr connect an agent, such as Claude Code, Cursor, VS Code or Codex, over MCP:\n", style="bold")
        yield f"{command} mcp setup claude-code --data {shlex.quote(str(self.folder))}"
        yield Text(
            "\nMake the sandbox refuse likes, as X does without Enterprise access (to undo, set tier to enterprise):\n",
            style="bold",
        )
        yield (
            f"curl {self.sandbox}/_sandbox/config -H 'Content-Type: application/json' "
            """-d '{"tier": "self_serve_2026_04", "tier_refusal": "client-not-enrolled"}'"""
        )
        yield Text(f"\nAll state is kept in {self.folder}. Press Ctrl-C to stop.\n", style="dim")


@app.command()
def dev(
    *,
    port: Annotated[
        int, typer.Option(min=0, max=65_535, metavar="N", help="Port of the gateway; 0 selects any free port.")
    ] = 8700,
    sandbox_port: Annotated[
        int, typer.Option(min=0, max=65_535, metavar="N", help="Port of the sandbox; 0 selects any free port.")
    ] = 8701,
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for the database, the vault key and the sandbox's state.")
    ] = DEFAULT_FOLDER,
    rpm: Annotated[
        int | None, typer.Option(min=1, max=MAX_RPM, metavar="N", help="Calls per minute for each of the two keys.")
    ] = None,
    link: Annotated[
        str | None, typer.Option(metavar="USERNAME", help="Link this sandbox user at startup, such as ada.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log every request to stderr.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Start a gateway and a sandbox on this machine, for development and testing.

    Prints an API key, the URL of a page where you link an account, and a curl command that likes a post. You do not
    need an X account, an X app or a network connection. If you start it again in the same folder, the keys and the link
    are still there.

    With --json, the command prints one line once both servers are ready, with the fields gateway, sandbox, api_key,
    unlinked_key (a key without an account), linked, and example IDs.

    Example: birdwire dev --link ada
    """
    with saying(as_json=as_json) as say, refusals(), Folder(data).held() as vault:
        gateway = run_servers.listen(HOST, port, "--port")
        sandbox = run_servers.listen(HOST, sandbox_port, "--sandbox-port")
        run_servers.run(_serve(say, Folder(data), vault, (gateway, sandbox), _Wishes(rpm, link, verbose)))


@dataclass(frozen=True, slots=True)
class _Wishes:
    rpm: int | None
    link: str | None
    verbose: bool


async def _serve(
    say: Output,
    folder: Folder,
    vault: Vault,
    listeners: tuple[run_servers.Listener, run_servers.Listener],
    wishes: _Wishes,
) -> None:
    gateway, sandbox = listeners
    api_key, unlinked_key = await _keys(folder, vault, wishes.rpm)
    sandbox_app = _sandbox(folder)
    settings = Settings(
        public_url=gateway.url,
        database_url=folder.database_url,
        vault_key_file=folder.path / VAULT_KEY,
        x_client_id=sandbox_app.state.clients.client_id,
        x_client_secret=sandbox_app.state.clients.client_secret,
        x_api_url=sandbox.url,
        x_authorize_url=f"{sandbox.url}/i/oauth2/authorize",
        log_level="info" if wishes.verbose else "warning",
    )

    async def ready() -> None:
        linked, auth_url = await asyncio.to_thread(_link, GatewayClient(gateway.url, api_key), sandbox.url, wishes.link)
        offer = Ready(gateway.url, sandbox.url, api_key, unlinked_key, linked, auth_url, folder.path)
        say.result(offer.document(), *offer.text())

    built = create_app(settings, alone=True)
    built.leases.address = gateway.url
    pairs = [
        (run_servers.gateway_config(built), gateway),
        (run_servers.sandbox_config(sandbox_app), sandbox),
    ]
    # Callers that wait for a person are answered, so that Ctrl-C does not wait for them.
    await run_servers.serve(pairs, ready, run_servers.Drain(built.health.drain, 0))


def _command() -> str:
    """Return the command to run birdwire in this folder: its name if it is on PATH, else its path next to Python."""
    beside = Path(sys.executable).with_name("birdwire")
    if which("birdwire") is not None or not beside.is_file():
        return "birdwire"
    here = Path.cwd()
    return shlex.quote(str(beside.relative_to(here) if beside.is_relative_to(here) else beside))


def _sandbox(folder: Folder) -> Starlette:
    try:
        return create_sandbox(world_path=folder.path / WORLD)
    except ValueError as error:
        raise Stop(ExitCode.USAGE, f"{error}.") from None


async def _keys(folder: Folder, vault: Vault, rpm: int | None) -> tuple[str, str]:
    """Return the two keys. They are derived from the vault key, so every start prints the same keys."""
    database, clock = Database(folder.database_url), Clock()
    try:
        await prepare(database, vault, clock, upgrade=True)
        keys = Keys(database, clock, by=operator())
        return await _key(keys, vault, "dev", rpm), await _key(keys, vault, "dev, never linked", rpm)
    finally:
        await database.close()


async def _key(keys: Keys, vault: Vault, label: str, rpm: int | None) -> str:
    """Return the first key with this label that was not revoked or rotated."""
    for number in count():
        raw_key = mint("test", vault.derive(f"api key {label} {number}"))
        key, _ = await keys.create("test", label, TIER, secret=raw_key)
        try:
            await keys.find(raw_key, "test")
        except GatewayError:
            continue
        await keys.change(key.key_id, rpm=rpm)
        return raw_key
    raise AssertionError  # pragma: no cover - count() does not end


def _link(gateway: GatewayClient, sandbox_url: str, username: str | None) -> tuple[dict[str, Any] | None, str | None]:
    """Link `username` if given. Return the account that the key acts as, or else a page on which to link one."""
    linked = _linked(gateway)
    if username is None:
        return linked, None if linked else gateway.ask("POST", f"{API}/auth_twitter")["auth_url"]
    if not _is(linked, username):
        _consent(gateway, sandbox_url, username)
        linked = _linked(gateway)
    if not _is(linked, username):
        raise _unlinkable(username, "the gateway does not report it as linked")
    return linked, None


def _linked(gateway: GatewayClient) -> dict[str, Any] | None:
    status = gateway.ask("GET", f"{API}/auth/status")
    return {name: status[name] for name in ("user_id", "username")} if status["state"] == "active" else None


def _is(linked: dict[str, Any] | None, username: str) -> bool:
    return linked is not None and linked["username"].lower() == username.lower()


def _consent(gateway: GatewayClient, sandbox_url: str, username: str) -> None:
    """Approve in the sandbox, as a person does in the browser."""
    body = {"expected_username": username}
    auth_url = gateway.ask("POST", f"{API}/auth_twitter", body)["auth_url"]
    consent = {"auth_url": auth_url, "username": username, "action": "allow"}
    document = GatewayClient(sandbox_url).call("POST", "/_sandbox/consent", consent).document or {}
    if "redirect_to" not in document:
        raise _unlinkable(username, printable(document.get("error"), 200))
    gateway.call("GET", document["redirect_to"].removeprefix(gateway.url))


def _unlinkable(username: str, why: str) -> Stop:
    names = ", ".join(person.username for person in PEOPLE if not person.suspended)
    message = f"Cannot link {printable(username, 20)} in the sandbox: {why}."
    return Stop(ExitCode.REFUSED, message, f"Choose one of {names}.")
