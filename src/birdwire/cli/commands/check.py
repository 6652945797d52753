"""`birdwire check`: whether the gateway can start, and which of its settings are legal but unwise."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

import typer

from birdwire import __version__
from birdwire.cli.database import opened, refusals
from birdwire.cli.inputs import ConfigOption, load_settings, settings_file
from birdwire.cli.output import ExitCode, JsonOption, Stop, family, meaning, saying
from birdwire.keys.redis_connection import RedisConnection, Script
from birdwire.runtime import private_files
from birdwire.runtime.addresses import is_any, is_loopback
from birdwire.runtime.clock import Clock, rfc3339
from birdwire.settings import PREFIX, Settings, SettingsError, listed
from birdwire.startup import open_vault
from birdwire.store.database import file_of, place_of
from birdwire.store.encryption.key_rotation import KeyRotation
from birdwire.store.encryption.vault import VaultError
from birdwire.x.client.auth_server import AuthServer, Meaning, TokenError
from birdwire.x.client.pool import ConnectionPool
from birdwire.x.limits.capabilities import Capabilities

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from birdwire.store.encryption.vault import Vault
    from birdwire.x.limits.capabilities import Capability

MADE_UP = "birdwire-check-made-up-refresh-token"
"""X refuses it, but only to a client whose id and secret it accepts."""

_FIELDS = (f"{PREFIX}{name.upper()}: {field.description}" for name, field in Settings.model_fields.items())
SETTINGS = "\n\n".join(("Settings, in the environment or, in lower case without BIRDWIRE_, in a TOML file:", *_FIELDS))

app = family()


@app.command(epilog=SETTINGS)
def check(
    *,
    live: Annotated[
        bool,
        typer.Option(
            "--live", help="Also ask X whether it accepts the client id and secret, and show what it allowed."
        ),
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Report everything that is wrong with settings, vault key and database.

    Exits 2 if there is a problem, else 0. With a problem the gateway cannot start. A note names what is legal but
    unwise, such as a Redis that does not answer: a gateway starts without it. The command changes nothing and shows no
    secret.

    With --live it also sends X's token endpoint one request, with the client id, the secret and a made-up refresh
    token, and shows from the database which operations X recently allowed or refused. If X cannot be reached or does
    not accept the client, that is a problem, too: the gateway starts, but cannot act at X.

    Example: birdwire check --config /etc/birdwire/birdwire.toml --live
    """
    with saying(as_json=as_json) as say:
        settings, wrong, found = _settings(config)
        known = None
        if settings is not None:
            found += _findings(settings, wrong, CHECKS)
        startable = not _problems(found)
        if settings is not None:
            found += _findings(settings, wrong, LIVE_CHECKS if live else ())
            known = _record(settings) if live and "database_url" not in wrong else None
        broken = _problems(found)
        document = _document(found, known)
        lines = [f"{one.level}: {one.text}" for one in found if one.level != "problem"] + list(_told(known or ()))
        if broken:
            say.lines(*lines)
            headline = "Ready to start, but not to act at X:" if startable else "Not ready to start:"
            message = "\n- ".join((headline, *(one.text for one in broken)))
            raise Stop(ExitCode.USAGE, message, document=document)
        say.result(document, *lines)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: a problem keeps the gateway from its work, a note does not. `fix` is the next step."""

    level: Literal["ok", "note", "problem"]
    message: str
    fix: str = ""

    @property
    def text(self) -> str:
        """The finding and its next step as sentences."""
        return f"{self.message} {self.fix}".strip()


@dataclass(frozen=True, slots=True)
class Check:
    """One check, left out while a setting that it `needs` is wrong."""

    look: Callable[[Settings], Iterator[Finding]]
    needs: tuple[str, ...]


def _findings(settings: Settings, wrong: frozenset[str], checks: tuple[Check, ...]) -> Iterator[Finding]:
    for row in checks:
        if wrong.intersection(row.needs):
            continue
        try:
            with refusals():
                yield from list(row.look(settings))
        except Stop as stop:
            yield Finding("problem", stop.message, stop.fix)


def _problems(found: list[Finding]) -> list[Finding]:
    return [one for one in found if one.level == "problem"]


def _settings(config: Path | None) -> tuple[Settings | None, frozenset[str], list[Finding]]:
    """Return the settings, as far as they can be used, the names of the wrong ones, and what was found."""
    found: list[Finding] = []
    try:
        settings: Settings | None = load_settings(config)
        wrong: frozenset[str] = frozenset()
    except SettingsError as error:
        settings, wrong = error.rest, error.wrong
        found = [Finding("problem", problem) for problem in error.problems]
    file = settings_file(config)
    if file is not None:
        with contextlib.suppress(OSError):  # then it could not be read, which was found above
            fault = private_files.fault(file, "config file")
            if fault is not None and f"{fault}." not in [one.message for one in found]:  # no secret is in it
                found.append(Finding("note", f"{fault}."))
    return settings, wrong, found


def _public_callback(settings: Settings) -> Iterator[Finding]:
    if settings.public_url:
        yield from _callback(settings)


def _own_callback(settings: Settings) -> Iterator[Finding]:
    if not settings.public_url:
        yield from _callback(settings)


def _callback(settings: Settings) -> Iterator[Finding]:
    yield Finding("ok", f"The callback to register at X is {settings.redirect_uri}")
    host = urlsplit(settings.base_url).hostname or ""
    if settings.issuer == "x" and (is_loopback(host) or is_any(host)):
        yield Finding(
            "note",
            f"Only a browser on this machine can finish a link: the callback is on {host}.",
            "Set BIRDWIRE_PUBLIC_URL to the address at which the accounts' owners reach this gateway.",
        )


def _listener(settings: Settings) -> Iterator[Finding]:
    if not is_loopback(settings.host):
        yield Finding(
            "note",
            f"Birdwire listens on {settings.host} in plain HTTP, in which API keys can be read on the way.",
            f"Let only the proxy that terminates TLS reach port {settings.port}, or set BIRDWIRE_HOST to 127.0.0.1.",
        )


def _proxies(settings: Settings) -> Iterator[Finding]:
    if settings.public_url.startswith("https:") and not settings.trusted_proxies:
        yield Finding(
            "note",
            "The public URL is https, and no proxy is trusted: every caller seems to have the proxy's address, so that "
            "one caller's invalid keys slow down all others.",
            "Set BIRDWIRE_TRUSTED_PROXIES to the address of the proxy that terminates TLS.",
        )

    if any(ipaddress.ip_network(network).prefixlen == 0 for network in listed(settings.trusted_proxies)):
        yield Finding(
            "note",
            "Every address is trusted as a proxy: a caller can claim any address in X-Forwarded-For, and so use a key "
            "from outside its --ips.",
            "Set BIRDWIRE_TRUSTED_PROXIES to the address of the proxy that terminates TLS.",
        )


def _metrics(settings: Settings) -> Iterator[Finding]:
    if settings.metrics_port is not None and settings.metrics_token is None and not is_loopback(settings.metrics_host):
        yield Finding(
            "note",
            f"The metrics on {settings.metrics_host}, port {settings.metrics_port}, can be read without a token.",
            "Set BIRDWIRE_METRICS_TOKEN, or let only Prometheus reach that port.",
        )


def _client(settings: Settings) -> Iterator[Finding]:
    if not settings.x_client_id:
        yield Finding("problem", "BIRDWIRE_X_CLIENT_ID is not set.", "Set it to the OAuth 2.0 client id of your X app.")
        return
    kind = "a public client (no secret)" if settings.x_client_secret is None else "a confidential client"
    yield Finding("ok", f"The X app is used as {kind}")


def _vault(settings: Settings) -> Iterator[Finding]:
    open_vault(settings)
    yield Finding("ok", "The vault key can be read")


def _database(settings: Settings) -> Iterator[Finding]:
    path = file_of(settings.database_url)
    if path is None or path.exists():
        vault = None
        with contextlib.suppress(VaultError):  # which _vault reports
            vault = open_vault(settings)
        asyncio.run(_open(settings, vault))
        whose = "of this version" if vault is None else "of this version and vault key"
        yield Finding("ok", f"The database {place_of(settings.database_url)} is {whose}")
    elif path.parent.is_dir():
        yield Finding("ok", f"The database {path} will be made by the first start")
    else:
        yield Finding(
            "problem",
            f"The folder of the database {path} does not exist.",
            "Make the folder, or correct BIRDWIRE_DATABASE_URL.",
        )


def _redis(settings: Settings) -> Iterator[Finding]:
    if settings.redis_url is None:
        return
    why = asyncio.run(_counters(settings.redis_url.get_secret_value()))
    if why:
        yield Finding(
            "note",
            f"Redis does not answer ({why}); until it does, each gateway enforces its share of the limits by itself.",
            "Check BIRDWIRE_REDIS_URL and the server.",
        )
    else:
        yield Finding("ok", "Redis answers")


def _x(settings: Settings) -> Iterator[Finding]:
    """Tell wrong credentials from an X that cannot be reached, by what X says to a made-up refresh token."""
    error = asyncio.run(_refused(settings))
    if error is not None and error.upstream is None:
        yield Finding(
            "problem",
            f"{settings.x_api_url} cannot be reached: {meaning(error.reason)}",
            "Check the network, BIRDWIRE_X_API_URL and BIRDWIRE_X_PROXY.",
        )
        return
    upstream = (error and error.upstream) or {"status": 200}
    said = f"HTTP {upstream['status']} {upstream.get('type', '')}".rstrip()
    yield Finding("ok", f"X can be reached at {settings.x_api_url}")
    if error is not None and error.meaning is Meaning.REFUSED:
        yield Finding("ok", "X accepts the client id and secret")
    elif error is not None and error.meaning is Meaning.OPERATOR:
        if settings.x_client_id:  # else _client has said what is wrong
            yield Finding(
                "problem",
                f"X does not accept the client id and secret ({said}).",
                "Copy both again from X's developer console (OAuth 2.0 keys). A confidential client (web app, bot) "
                "needs its secret, a public one (native or single-page app) must have none.",
            )
    else:
        yield Finding(
            "note",
            f"X's answer ({said}) does not tell whether it accepts the client id and secret.",
            "Try again later, and check that BIRDWIRE_X_API_URL is X's API.",
        )


CHECKS = (
    Check(_public_callback, ("public_url", "x_api_url")),
    Check(_own_callback, ("public_url", "host", "port", "x_api_url")),
    Check(_listener, ("host", "port")),
    Check(_proxies, ("public_url", "trusted_proxies")),
    Check(_metrics, ("metrics_host", "metrics_port", "metrics_token")),
    Check(_client, ("x_client_id", "x_client_secret")),
    Check(_vault, ("vault_key", "vault_key_file", "vault_other_key_files")),
    Check(_database, ("database_url",)),
    Check(_redis, ("redis_url",)),
)
"""What a start needs, and what is unwise, in the order in which it is shown."""

LIVE_CHECKS = (Check(_x, ("x_api_url", "x_proxy", "x_client_id", "x_client_secret")),)
"""What a call to X needs; these ask X."""


def _document(found: list[Finding], known: list[Capability] | None) -> dict[str, Any]:
    levels = {"problems": "problem", "notes": "note", "passed": "ok"}
    document: dict[str, Any] = {"ok": all(one.level != "problem" for one in found)}
    document |= {name: [one.text for one in found if one.level == level] for name, level in levels.items()}
    if known is not None:
        names = ("operation", "allowed", "allowed_at", "refused_at", "reason")
        document["capabilities"] = [{name: _plain(getattr(one, name)) for name in names} for one in known]
    return document


def _told(known: Iterable[Capability]) -> Iterator[str]:
    """What X recently said of each operation, for people."""
    for one in known:
        if one.allowed:
            yield f"X allowed {one.operation}, last {_plain(one.allowed_at)}"
        else:
            yield f"X refused {one.operation}, last {_plain(one.refused_at)}: {meaning(one.reason)}"


def _plain(value: object) -> object:
    return rfc3339(value) if isinstance(value, datetime) else value


async def _open(settings: Settings, vault: Vault | None) -> None:
    async with opened(settings) as database:
        if vault is not None:
            await KeyRotation(database, vault, Clock()).check()


def _record(settings: Settings) -> list[Capability] | None:
    """Return what X recently said of each operation; None if the database cannot be read, which _database reports."""
    path = file_of(settings.database_url)
    if path is None or path.exists():
        with contextlib.suppress(Stop):
            return asyncio.run(_known(settings))
    return None


async def _known(settings: Settings) -> list[Capability]:
    async with opened(settings) as database:
        return await Capabilities(database, Clock(), settings.x_client_id).all()


async def _counters(url: str) -> str:
    """Why Redis does not run a script for us; empty if it does."""
    told: list[str] = []

    async def probe() -> None:
        await redis.run(Script("return 1"), "birdwire:check")

    redis = RedisConnection(url, probe, lambda up, why: told.append("" if up else why))
    await redis.start()
    await redis.close()
    return told[0] if told else "late"


async def _refused(settings: Settings) -> TokenError | None:
    """What X's token endpoint says to a made-up refresh token; None if it answers with tokens, which X does not."""
    proxy = settings.x_proxy.get_secret_value() if settings.x_proxy else None
    upstream = ConnectionPool(settings.x_api_url, proxy=proxy, user_agent=f"birdwire/{__version__}")
    try:
        await AuthServer(settings, upstream).refresh(MADE_UP)
    except TokenError as error:
        return error
    finally:
        await upstream.close()
    return None
