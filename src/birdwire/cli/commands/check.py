"""`birdwire check`: reports whether the gateway can start, and which settings are valid but unwise."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

import typer

from birdwire import __version__
from birdwire.cli import notify_view
from birdwire.cli.database import opened, operator, refusals
from birdwire.cli.inputs import load_settings, settings_file
from birdwire.cli.options import ConfigOption, JsonOption
from birdwire.cli.output import family, meaning, saying
from birdwire.cli.printable import printable
from birdwire.cli.stop import ExitCode, Stop
from birdwire.gateway.guardrails.policy import GATEWAY_SCOPE, may_ask
from birdwire.gateway.guardrails.registry import Policies, read
from birdwire.keys.redis_connection import RedisConnection, Script
from birdwire.runtime import private_files
from birdwire.runtime.addresses import is_any, is_loopback
from birdwire.runtime.clock import Clock, rfc3339
from birdwire.runtime.interpreter import interpreter
from birdwire.settings import PREFIX, Settings, SettingsError, listed
from birdwire.startup import open_vault
from birdwire.store.database import file_of, place_of
from birdwire.store.encryption.key_rotation import KeyRotation
from birdwire.store.encryption.vault import VaultError
from birdwire.store.tables import approvals, destinations
from birdwire.x.catalog.operations import OPERATIONS
from birdwire.x.client.auth_server import AuthServer, Meaning, TokenError
from birdwire.x.client.pool import ConnectionPool
from birdwire.x.limits.capabilities import Capabilities

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from birdwire.store.encryption.vault import Vault
    from birdwire.store.tables.destinations import DestinationRow
    from birdwire.store.tables.pauses import PauseRow
    from birdwire.store.tables.policies import PolicyRow
    from birdwire.x.limits.capabilities import Capability

MADE_UP = "birdwire-check-made-up-refresh-token"
"""A token that does not exist. X rejects the token itself only if it accepts the client ID and secret."""

_FIELDS = (f"{PREFIX}{name.upper()}: {field.description}" for name, field in Settings.model_fields.items())
SETTINGS = "\n\n".join(
    ("Settings (environment variables; in a TOML file, use lower case without BIRDWIRE_):", *_FIELDS)
)

app = family()


@app.command(epilog=SETTINGS)
def check(
    *,
    live: Annotated[
        bool,
        typer.Option(
            "--live", help="Also ask X whether it accepts the client ID and secret, and show what X recently allowed."
        ),
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the settings, the vault key and the database, and report every problem.

    Exits with 2 if there is a problem, and with 0 otherwise. A problem prevents the gateway from starting or from
    acting on X. A note is only a warning, for example about a Redis server that does not respond. The command changes
    nothing and shows no secrets. It also names the build of Python that runs it, and that build's speed.

    With --live, the command also sends one request to X's token endpoint, with the client ID, the client secret and an
    invalid refresh token, and shows which operations X recently allowed or refused. In that case, it
    also reports a problem if X is unreachable or rejects the client.

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
        python = interpreter()
        document = _document(found, known) | {"python": asdict(python)}
        lines = [f"{one.level}: {one.text}" for one in found if one.level != "problem"]
        lines += [str(python), *_told(known or ())]
        if broken:
            say.lines(*lines)
            headline = "Ready to start, but not to act on X:" if startable else "Not ready to start:"
            message = "\n- ".join((headline, *(one.text for one in broken)))
            raise Stop(ExitCode.USAGE, message, document=document)
        say.result(document, *lines)


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding of a check: a problem prevents the gateway's work, a note does not. `fix` is the next step."""

    level: Literal["ok", "note", "problem"]
    message: str
    fix: str = ""

    @property
    def text(self) -> str:
        """Return the finding and its next step as sentences."""
        return f"{self.message} {self.fix}".strip()


@dataclass(frozen=True, slots=True)
class Check:
    """One check. It is skipped while a setting that it `needs` is invalid."""

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
    """Return the valid settings, the names of the invalid ones, and the findings."""
    found: list[Finding] = []
    try:
        settings: Settings | None = load_settings(config)
        wrong: frozenset[str] = frozenset()
    except SettingsError as error:
        settings, wrong = error.rest, error.wrong
        found = [Finding("problem", problem) for problem in error.problems]
    file = settings_file(config)
    if file is not None:
        # An unreadable file is already among the findings.
        with contextlib.suppress(OSError):
            fault = private_files.fault(file, "config file")
            # The fault is already a problem if the file contains a secret; otherwise it is only worth a note.
            if fault is not None and f"{fault}." not in [one.message for one in found]:
                found.append(Finding("note", f"{fault}."))
    return settings, wrong, found


def _public_callback(settings: Settings) -> Iterator[Finding]:
    if settings.public_url:
        yield from _callback(settings)


def _own_callback(settings: Settings) -> Iterator[Finding]:
    if not settings.public_url:
        yield from _callback(settings)


def _callback(settings: Settings) -> Iterator[Finding]:
    yield Finding("ok", f"The callback URL to register with X is {settings.redirect_uri}")
    host = urlsplit(settings.base_url).hostname or ""
    if settings.issuer == "x" and (is_loopback(host) or is_any(host)):
        yield Finding(
            "note",
            f"Only a browser on this machine can complete a link, because the callback URL is on {host}.",
            "Set BIRDWIRE_PUBLIC_URL to the URL at which the accounts' owners reach this gateway.",
        )


def _listener(settings: Settings) -> Iterator[Finding]:
    if not is_loopback(settings.host):
        yield Finding(
            "note",
            f"Birdwire listens on {settings.host} over plain HTTP, so the network can read API keys.",
            f"Allow only the proxy that terminates TLS to reach port {settings.port}, or set BIRDWIRE_HOST to "
            "127.0.0.1.",
        )


def _proxies(settings: Settings) -> Iterator[Finding]:
    if settings.public_url.startswith("https:") and not settings.trusted_proxies:
        yield Finding(
            "note",
            "The public URL is https, but no proxy is trusted. Every caller appears to have the proxy's address, so "
            "one caller's invalid keys slow down all callers.",
            "Set BIRDWIRE_TRUSTED_PROXIES to the address of the proxy that terminates TLS.",
        )

    if any(ipaddress.ip_network(network).prefixlen == 0 for network in listed(settings.trusted_proxies)):
        yield Finding(
            "note",
            "Every address is trusted as a proxy. A caller can claim any address in X-Forwarded-For, and so use a key "
            "from outside its --ips.",
            "Set BIRDWIRE_TRUSTED_PROXIES to the address of the proxy that terminates TLS.",
        )


def _metrics(settings: Settings) -> Iterator[Finding]:
    if settings.metrics_port is not None and settings.metrics_token is None and not is_loopback(settings.metrics_host):
        yield Finding(
            "note",
            f"The metrics on {settings.metrics_host} port {settings.metrics_port} can be read without a token.",
            "Set BIRDWIRE_METRICS_TOKEN, or allow only Prometheus to reach that port.",
        )


def _client(settings: Settings) -> Iterator[Finding]:
    if not settings.x_client_id:
        yield Finding("problem", "BIRDWIRE_X_CLIENT_ID is not set.", "Set it to the OAuth 2.0 client ID of your X app.")
        return
    kind = "a public client (no secret)" if settings.x_client_secret is None else "a confidential client"
    yield Finding("ok", f"The X app is {kind}")


def _vault(settings: Settings) -> Iterator[Finding]:
    open_vault(settings)
    yield Finding("ok", "The vault key is readable")


def _database(settings: Settings) -> Iterator[Finding]:
    path = file_of(settings.database_url)
    if path is None or path.exists():
        vault = None
        # The check _vault reports this error.
        with contextlib.suppress(VaultError):
            vault = open_vault(settings)
        asyncio.run(_open(settings, vault))
        whose = "this version" if vault is None else "this version and this vault key"
        yield Finding("ok", f"The database {place_of(settings.database_url)} matches {whose}")
    elif path.parent.is_dir():
        yield Finding("ok", f"The database {path} will be created at the first start")
    else:
        yield Finding(
            "problem",
            f"The folder of the database {path} does not exist.",
            "Create the folder, or correct BIRDWIRE_DATABASE_URL.",
        )


def _guardrails(settings: Settings) -> Iterator[Finding]:
    """Name policies that this version cannot read, pauses that have not ended, and how many writes wait."""
    path = file_of(settings.database_url)
    if path is not None and not path.exists():
        return
    try:
        unreadable, paused, waiting = asyncio.run(_standing(settings))
    except Stop:
        # The check _database reports this error.
        return
    for policy in unreadable:
        yield Finding(
            "note",
            f"The policy of {policy.scope} (version {policy.version}) cannot be read, so every write to which it "
            "applies is refused.",
            f"Upgrade Birdwire, or set the policy again: `birdwire policy set {policy.scope} - < rules.json`.",
        )
    for pause in paused:
        name = "The gateway" if pause.scope == GATEWAY_SCOPE else pause.scope
        until = "" if pause.until is None else f" until {rfc3339(pause.until)}"
        yield Finding(
            "note",
            f"{name} has been paused since {rfc3339(pause.since)}{until}: {printable(pause.why).rstrip(' .')}.",
            f"To end the pause, run: birdwire resume {pause.scope}",
        )
    if waiting:
        many = "1 write waits" if waiting == 1 else f"{waiting} writes wait"
        yield Finding("note", f"{many} for a person's decision.", "To see what waits, run: birdwire approvals list")


def _notifications(settings: Settings) -> Iterator[Finding]:
    """State where notifications go, why they do not arrive, and that nobody is notified of what waits."""
    path = file_of(settings.database_url)
    if path is not None and not path.exists():
        return
    try:
        row, asks = asyncio.run(_notified(settings))
    except Stop:
        # The check _database reports this error.
        return
    if row is None:
        if asks:
            message = "A policy makes writes wait for a person, and nobody is notified of them."
            yield Finding("note", message, notify_view.SET)
    elif row.off_at is not None:
        message = f"Birdwire has switched off notifications to {row.host}: {notify_view.switched_off(row)}."
        yield Finding("note", message, "Check the receiver, then run: birdwire notify test")
    elif (failing_since := notify_view.failing_since(row)) is not None:
        happened, fix = notify_view.failure(row.host, row.error, row.status)
        message = f"No notification has reached {row.host} since {rfc3339(failing_since)}: {happened}."
        yield Finding("note", message, fix)
    else:
        yield Finding("ok", f"Notifications go to {row.host}")


def _outbound(settings: Settings) -> Iterator[Finding]:
    if any(ipaddress.ip_network(network).prefixlen == 0 for network in listed(settings.outbound_allow)):
        yield Finding(
            "note",
            "Notifications may be sent to any address, also to the metadata service of a cloud.",
            "Set BIRDWIRE_OUTBOUND_ALLOW to the address of the receiver.",
        )


def _redis(settings: Settings) -> Iterator[Finding]:
    if settings.redis_url is None:
        return
    why = asyncio.run(_counters(settings.redis_url.get_secret_value()))
    if why:
        yield Finding(
            "note",
            f"Redis does not respond ({why}). Until it does, each gateway enforces its share of the rate limits.",
            "Check BIRDWIRE_REDIS_URL and the Redis server.",
        )
    else:
        yield Finding("ok", "Redis responds")


def _x(settings: Settings) -> Iterator[Finding]:
    """Distinguish wrong credentials from an unreachable X, by X's response to an invalid refresh token."""
    error = asyncio.run(_refused(settings))
    if error is not None and error.upstream is None:
        yield Finding(
            "problem",
            f"Cannot reach {settings.x_api_url}: {meaning(error.reason)}",
            "Check the network, BIRDWIRE_X_API_URL and BIRDWIRE_X_PROXY.",
        )
        return
    upstream = (error and error.upstream) or {"status": 200}
    said = f"HTTP {upstream['status']} {upstream.get('type', '')}".rstrip()
    yield Finding("ok", f"X is reachable at {settings.x_api_url}")
    if error is not None and error.meaning is Meaning.REFUSED:
        yield Finding("ok", "X accepts the client ID and secret")
    elif error is not None and error.meaning is Meaning.OPERATOR:
        # Without a client id, the check _client reports the problem.
        if settings.x_client_id:
            yield Finding(
                "problem",
                f"X rejects the client ID and secret ({said}).",
                "Copy both again from X's developer console (OAuth 2.0 keys). A confidential client (web app, bot) "
                "requires its secret; for a public client (native or single-page app), leave the secret out.",
            )
    else:
        yield Finding(
            "note",
            f"X's response ({said}) does not show whether X accepts the client ID and secret.",
            "Try again later, and check that BIRDWIRE_X_API_URL is the URL of X's API.",
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
    Check(_guardrails, ("database_url",)),
    Check(_notifications, ("database_url",)),
    Check(_outbound, ("outbound_allow",)),
    Check(_redis, ("redis_url",)),
)
"""Checks of what a start requires and of what is unwise, in the order in which they are shown."""

LIVE_CHECKS = (Check(_x, ("x_api_url", "x_proxy", "x_client_id", "x_client_secret")),)
"""Checks of what a call to X requires. They send a request to X."""


def _document(found: list[Finding], known: list[Capability] | None) -> dict[str, Any]:
    levels = {"problems": "problem", "notes": "note", "passed": "ok"}
    document: dict[str, Any] = {"ok": all(one.level != "problem" for one in found)}
    document |= {name: [one.text for one in found if one.level == level] for name, level in levels.items()}
    if known is not None:
        names = ("operation", "allowed", "allowed_at", "refused_at", "reason")
        document["capabilities"] = [{name: _plain(getattr(one, name)) for name in names} for one in known]
    return document


def _told(known: Iterable[Capability]) -> Iterator[str]:
    """Describe for people whether X recently allowed or refused each operation."""
    for one in known:
        if one.allowed:
            yield f"X allowed {one.operation}, most recently at {_plain(one.allowed_at)}"
        else:
            yield f"X refused {one.operation}, most recently at {_plain(one.refused_at)}: {meaning(one.reason)}"


def _plain(value: object) -> object:
    return rfc3339(value) if isinstance(value, datetime) else value


async def _open(settings: Settings, vault: Vault | None) -> None:
    async with opened(settings) as database:
        if vault is not None:
            await KeyRotation(database, vault, Clock()).check()


async def _standing(settings: Settings) -> tuple[list[PolicyRow], list[PauseRow], int]:
    async with opened(settings) as database:
        policies = Policies(database, Clock(), operator())
        async with database.read() as connection:
            waiting = await approvals.count_waiting(connection)
        return await policies.unreadable(), await policies.active_pauses(), waiting


async def _notified(settings: Settings) -> tuple[DestinationRow | None, bool]:
    """Return the destination of notifications, and whether a policy can make a write wait for a person."""
    async with opened(settings) as database:
        policies = Policies(database, Clock(), operator())
        unreadable = {row.scope for row in await policies.unreadable()}
        found = [read(row) for scope, row in (await policies.all()).items() if scope not in unreadable]
        async with database.read() as connection:
            row = await destinations.get(connection)
        return row, any(may_ask(found, operation.name) for operation in OPERATIONS)


def _record(settings: Settings) -> list[Capability] | None:
    """Return X's recent status of each operation; None if the database is unreadable, which _database reports."""
    path = file_of(settings.database_url)
    if path is None or path.exists():
        with contextlib.suppress(Stop):
            return asyncio.run(_known(settings))
    return None


async def _known(settings: Settings) -> list[Capability]:
    async with opened(settings) as database:
        return await Capabilities(database, Clock(), settings.x_client_id).all()


async def _counters(url: str) -> str:
    """Return why Redis cannot run a script; empty if it can."""
    outages: list[str] = []

    async def probe() -> None:
        await redis.run(Script("return 1"), "birdwire:check")

    redis = RedisConnection(url, probe, lambda up, why: outages.append("" if up else why))
    await redis.start()
    await redis.close()
    return outages[0] if outages else "late"


async def _refused(settings: Settings) -> TokenError | None:
    """Return the error of X's token endpoint for an invalid refresh token; None if it returns tokens."""
    proxy = settings.x_proxy.get_secret_value() if settings.x_proxy else None
    upstream = ConnectionPool(settings.x_api_url, proxy=proxy, user_agent=f"birdwire/{__version__}")
    try:
        await AuthServer(settings, upstream).refresh(MADE_UP)
    except TokenError as error:
        return error
    finally:
        await upstream.close()
    return None
