"""`birdwire check`: whether the gateway can start."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from birdwire import __version__
from birdwire.app import open_vault
from birdwire.capabilities import Capabilities
from birdwire.cli.database import opened, refusals
from birdwire.cli.say import ExitCode, JsonOption, Stop, family, meaning, saying
from birdwire.cli.sources import ConfigOption, read_settings
from birdwire.clock import Clock, rfc3339
from birdwire.keyring import Keyring
from birdwire.redis import Redis, Script
from birdwire.settings import PREFIX, Settings
from birdwire.store.db import file_of, place_of
from birdwire.upstream import Request, SendFailed, Upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from birdwire.capabilities import Capability
    from birdwire.vault import Vault

Found = TypeVar("Found")
LIVE_DEADLINE_S = 10.0

_FIELDS = (f"{PREFIX}{name.upper()}: {field.description}" for name, field in Settings.model_fields.items())
SETTINGS = "\n\n".join(("Settings, in the environment or, in lower case without BIRDWIRE_, in a TOML file:", *_FIELDS))

app = family()


@app.command(epilog=SETTINGS)
def check(
    *,
    live: Annotated[
        bool, typer.Option("--live", help="Also see whether X can be reached from here, and what it lately allowed.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say everything that is wrong with settings, vault key and database.

    Exits 0 if the gateway can start, 2 if not. Changes nothing, shows no secret, and leaves X alone without --live,
    which sends X's API one request without a token, and tells from the database which operations X lately allowed or
    refused. A Redis that does not answer is a note: a gateway starts without it.

    Example: birdwire check --config /etc/birdwire/birdwire.toml --live
    """
    with saying(as_json=as_json) as say:
        checks = _Checks()
        settings = checks.settings(config)
        if settings is not None:
            checks.client(settings)
            vault = checks.vault(settings)
            checks.database(settings, vault)
            checks.redis(settings)
            if live:
                checks.live(settings)
        if checks.wrong:
            message = "\n- ".join(("Not ready to start:", *checks.wrong))
            raise Stop(ExitCode.USAGE, message, document=checks.document())
        say.result(checks.document(), *(f"ok: {note}" for note in checks.notes), *checks.record())


class _Checks:
    """What was found out, in the order of a start: `wrong` keeps the gateway from it, `notes` do not."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.notes: list[str] = []
        self.known: list[Capability] | None = None  # what X lately said, if that was asked for

    def document(self) -> dict[str, Any]:
        """For programs."""
        found = {"ok": not self.wrong, "problems": self.wrong, "notes": self.notes}
        if self.known is None:
            return found
        names = ("operation", "allowed", "allowed_at", "refused_at", "reason")
        return found | {"capabilities": [{name: _plain(getattr(one, name)) for name in names} for one in self.known]}

    def record(self) -> Iterator[str]:
        """What X lately said of each operation, for people."""
        for one in self.known or ():
            if one.allowed:
                yield f"X allowed {one.operation}, last {_plain(one.allowed_at)}"
            else:
                yield f"X refused {one.operation}, last {_plain(one.refused_at)}: {meaning(one.reason)}"

    def settings(self, config: Path | None) -> Settings | None:
        """Whether they can be read."""
        try:
            settings = read_settings(config)
        except Stop as stop:
            self.wrong += stop.message.split("\n- ")[1:]
            return None
        self.notes.append(f"the callback to register at X is {settings.redirect_uri}")
        return settings

    def client(self, settings: Settings) -> None:
        """Whether X can know the app."""
        if not settings.x_client_id:
            self.wrong.append("BIRDWIRE_X_CLIENT_ID is not set: it is the OAuth 2.0 client id of your X app.")
        kind = "a public client (no secret)" if settings.x_client_secret is None else "a confidential client"
        self.notes.append(f"the X app is asked as {kind}")

    def vault(self, settings: Settings) -> Vault | None:
        """Whether there is a usable key."""
        return self._try(lambda: open_vault(settings), "the vault key can be read")

    def database(self, settings: Settings, vault: Vault | None) -> None:
        """Whether it is there, ours, of this version, and of this vault key."""
        path = file_of(settings.database_url)
        if path is None or path.exists():
            opens = f"the database {place_of(settings.database_url)} is of this version and vault key"
            self._try(lambda: asyncio.run(_open(settings, vault)), opens)
        elif path.parent.is_dir():
            self.notes.append(f"the database {path} will be made by the first start")
        else:
            self.wrong.append(f"The folder of the database {path} does not exist.")

    def redis(self, settings: Settings) -> None:
        """Whether there are shared counters that answer; a gateway starts without."""
        if settings.redis_url is not None:
            why = asyncio.run(_counters(settings.redis_url.get_secret_value()))
            self.notes.append(
                f"Redis does not answer ({why}): a gateway would count calls by itself" if why else "Redis answers"
            )

    def live(self, settings: Settings) -> None:
        """Whether X's API answers anything at all, and what it lately let the X app do."""
        status = self._try(lambda: asyncio.run(_reach(settings)))
        if status is not None:
            self.notes.append(f"GET {settings.x_api_url}/ without a token was answered with HTTP {status}: X is there")
        path = file_of(settings.database_url)
        if path is None or path.exists():
            self.known = self._try(lambda: asyncio.run(_known(settings)))

    def _try(self, look: Callable[[], Found], note: str = "") -> Found | None:
        try:
            with refusals():
                found = look()
        except Stop as stop:
            if stop.message not in self.wrong:
                self.wrong.append(stop.message)
            return None
        if note:
            self.notes.append(note)
        return found


async def _open(settings: Settings, vault: Vault | None) -> None:
    async with opened(settings) as database:
        if vault is not None:
            await Keyring(database, vault, Clock()).check()


async def _known(settings: Settings) -> list[Capability]:
    async with opened(settings) as database:
        return await Capabilities(database, Clock(), settings.x_client_id).all()


async def _counters(url: str) -> str:
    """Why Redis does not run a script for us; empty if it does."""
    told: list[str] = []

    async def probe() -> None:
        await redis.run(Script("return 1"), "birdwire:check")

    redis = Redis(url, probe, lambda up, why: told.append("" if up else why))
    await redis.start()
    await redis.close()
    return told[0] if told else "late"


async def _reach(settings: Settings) -> int:
    """The status that X's API answers with."""
    proxy = settings.x_proxy.get_secret_value() if settings.x_proxy else None
    upstream = Upstream(settings.x_api_url, proxy=proxy, user_agent=f"birdwire/{__version__}")
    try:
        return (await upstream.send(Request("GET", "/"), deadline_s=LIVE_DEADLINE_S)).status
    except SendFailed as error:
        raise Stop(ExitCode.UPSTREAM, f"{settings.x_api_url} cannot be reached: {error.cause}.") from None
    finally:
        await upstream.close()


def _plain(value: object) -> object:
    return rfc3339(value) if isinstance(value, datetime) else value
