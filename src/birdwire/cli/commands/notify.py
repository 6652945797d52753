"""`birdwire notify`: sets where notifications go, tests it, and shows how deliveries go."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack, asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar
from urllib.parse import urlsplit

import typer

from birdwire.cli import notify_view
from birdwire.cli.database import opened, operator, refusals
from birdwire.cli.inputs import again, read_secret_line, read_settings
from birdwire.cli.notify_view import NONE, SET, Standing
from birdwire.cli.options import ConfigOption, DataOption, JsonOption
from birdwire.cli.output import Output, family, saying
from birdwire.cli.stop import ExitCode, Stop
from birdwire.gateway.notifications.destination import Destinations, NoDestinationError
from birdwire.runtime.addresses import is_any, is_loopback
from birdwire.runtime.clock import Clock, rfc3339
from birdwire.runtime.outbound import ForbiddenURLError, read_url
from birdwire.startup import open_vault
from birdwire.store.encryption.key_rotation import KeyRotation
from birdwire.store.tables import destinations as store
from birdwire.store.tables import outbox, processes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from birdwire.settings import Settings
    from birdwire.store.database import Database
    from birdwire.store.tables.destinations import DestinationRow, Kind
    from birdwire.store.tables.outbox import OutboxRow

Result = TypeVar("Result")
DAY_S = 86_400
TEST_S = 40.0
"""How long `test` waits: another gateway may have to take over first (20 seconds), and a try takes at most 15."""

POLL_S = 0.1
QUIET_S = 1.0

EXPECTED: dict[str, Kind] = {
    "ntfy.sh": "ntfy",
    "hooks.slack.com": "slack",
    "discord.com": "slack",
    "discordapp.com": "slack",
}
"""The kinds of well-known hosts."""

app = family()


@app.command("set")
def set_(
    url: Annotated[
        str,
        typer.Argument(metavar="URL", help="https URL of the receiver; - reads it from stdin, or asks at a terminal."),
    ],
    *,
    kind: Annotated[
        Literal["standard", "ntfy", "slack"],
        typer.Option(
            metavar="KIND",
            help="What the receiver takes: standard (JSON with a signature, for programs), ntfy, or slack (also for "
            "Mattermost and Discord).",
        ),
    ] = "standard",
    with_link: Annotated[
        bool, typer.Option("--with-link", help="Add a signed link, which decides, to each request for an approval.")
    ] = False,
    with_text: Annotated[
        bool, typer.Option("--with-text", help="Add the text of the post that waits for an approval.")
    ] = False,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set where notifications go, in place of an earlier destination.

    Birdwire then reports there what needs you: a write that waits, an account that must be linked again, a budget that
    is used up. A notification has no text of a post and no link unless you add them. The URL is stored encrypted, and
    never shown again. For kind standard, the command prints the secret that signs each message, once.

    Example: birdwire notify set - --kind ntfy
    """
    with saying(as_json=as_json) as say, refusals():
        settings = read_settings(config, data)
        given = read_secret_line("URL: ", "URL") if url == "-" else url
        host = _allowed(given, settings)
        before, secret, now = asyncio.run(_set(settings, given, kind, with_link=with_link, with_text=with_text))
        signs = kind == "standard"
        document = notify_view.document(now) | {"secret": secret if signs else None}
        if signs:
            say.result(document, secret)
            say.aside(f"Notifications go to {host}. The secret signs each message. It will not be shown again.")
        else:
            say.result(document, f"Notifications go to {host}.")
            say.aside(f"A destination of kind {kind} does not check signatures, so there is no secret.")
        for remark in _remarks(before, now, settings, again(config, data), is_shown=url != "-"):
            say.aside(remark)


@app.command("test")
def deliver_test(*, config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Have the running gateway deliver a test message, and show what became of it.

    It is tried once. If Birdwire had switched notifications off, a delivery switches them on again.

    Example: birdwire notify test
    """
    with saying(as_json=as_json) as say, refusals():
        settings = read_settings(config, data)
        row, ended, seconds = asyncio.run(_test(settings, say, again(config, data)))
        result = {name: getattr(ended, name) for name in ("event_id", "outcome", "status", "error")}
        if ended.outcome == "delivered":
            result["seconds"] = round(seconds, 1)
            lines = [f"{row.host} accepted the test with HTTP {ended.status} after {seconds:.1f} seconds."]
            lines += [] if row.off_at is None else ["Notifications are on again."]
            say.result(result, *lines)
            return
        happened, fix = notify_view.failure(row.host, ended.error, ended.status)
        message = f"The test was not delivered: {happened}."
        error = {"code": "upstream", "message": message, "fix": fix}
        raise Stop(ExitCode.UPSTREAM, message, fix, document={"error": error, "test": result})


@app.command()
def show(*, config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Show where notifications go, how the last deliveries went, and what waits.

    Of the URL, only the host is shown.

    Example: birdwire notify show
    """
    with saying(as_json=as_json) as say, refusals():
        standing = asyncio.run(_show(read_settings(config, data)))
        say.result(notify_view.document(standing), *notify_view.lines(standing, Clock().now()))
        if standing.row is None:
            say.aside(f"{SET}{again(config, data)}")
        elif standing.row.off_at is not None:
            say.aside(f"After the receiver is back, switch them on with: birdwire notify test{again(config, data)}")


@app.command()
def off(*, config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Stop notifications: delete the URL, its secrets, and what waits to be delivered.

    Example: birdwire notify off
    """
    with saying(as_json=as_json) as say, refusals():
        row, dropped = asyncio.run(_off(read_settings(config, data)))
        if row is None:
            say.result({"host": None, "dropped": 0}, NONE)
            return
        waited = "Nothing waited." if not dropped else f"{_events(dropped)} that waited will not be delivered."
        say.result({"host": row.host, "dropped": dropped}, f"Notifications to {row.host} are off. {waited}")


@app.command()
def rotate(
    *,
    overlap: Annotated[
        int,
        typer.Option(
            min=0, max=DAY_S, metavar="SECONDS", help="How long the old secret signs, too; 0 ends it immediately."
        ),
    ] = DAY_S,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace the secret that signs notifications, and print the new one. It is shown only once.

    For a day, each message has two signatures, of the new and the old secret, so that you can replace the secret in the
    receiver without missing one. If the old secret has leaked, use --overlap 0.

    Example: birdwire notify rotate
    """
    with saying(as_json=as_json) as say, refusals():
        settings, options = read_settings(config, data), again(config, data)
        secret, until = asyncio.run(_rotate(settings, timedelta(seconds=overlap), options))
        say.result({"secret": secret, "old_secret_signs_s": overlap}, secret)
        both = f"The old secret signs, too, until {until}."
        say.aside(f"It will not be shown again. {both if overlap else 'The old secret no longer signs.'}")


def _allowed(url: str, settings: Settings) -> str:
    """Return the host of a URL.

    Raises:
        Stop: nothing may be sent to the URL.
    """
    try:
        return read_url(url, settings.outbound_rules).host
    except ForbiddenURLError as error:
        message, _, fix = str(error).partition(". ")
        raise Stop(ExitCode.USAGE, f"{message.rstrip('.')}.", fix) from None


def _remarks(before: Standing, now: Standing, settings: Settings, options: str, *, is_shown: bool) -> list[str]:
    """Return what the operator should know about a new destination."""
    row = now.row
    if row is None:
        return []
    remarks = []
    expected = EXPECTED.get(row.host, row.kind)
    if expected != row.kind:
        remarks.append(f"{row.host} takes other messages: set it with --kind {expected}.")
    if is_shown and row.kind != "standard":
        remarks.append(
            "Anyone who has this URL can use it, and your shell's history may contain it. With - in its place, the "
            "command asks for it."
        )
    if row.with_link:
        remarks.append(f"Anyone who can read what {row.host} receives can decide about what waits.")
        remarks += _about_links(settings)
    if row.with_text:
        remarks.append(f"{row.host} can read the texts of posts before they are published.")
    if before.row is not None:
        waiting = f" {_events(before.waiting)} that waited for it will go to {row.host}." if before.waiting else ""
        remarks.append(f"It replaces the earlier destination, {before.row.host}.{waiting}")
    first = "To test it," if now.is_served else "No gateway is running on this database. Start it, then"
    remarks.append(f"{first} run: birdwire notify test{options}")
    return remarks


def _about_links(settings: Settings) -> list[str]:
    """Return why links cannot be opened on another device. A public URL is https, as the settings require."""
    host = urlsplit(settings.base_url).hostname or ""
    if not (is_loopback(host) or is_any(host)):
        return []
    fix = "Set BIRDWIRE_PUBLIC_URL to the gateway's https URL."
    return [f"The links lead to {host}, which only this machine can open. {fix}"]


def _events(count: int) -> str:
    return "1 event" if count == 1 else f"{count:,} events"


@asynccontextmanager
async def _desk(settings: Settings, *, seals: bool = False) -> AsyncIterator[tuple[Database, Destinations]]:
    """Open the database and its destination. `seals`: the command encrypts something."""
    async with opened(settings) as database:
        vault, clock = open_vault(settings), Clock()
        keys = KeyRotation(database, vault, clock, by=operator())
        await (keys.enlist(starting=False) if seals else keys.check())
        yield database, Destinations(database, vault, clock, settings.outbound_rules)


async def _standing(database: Database) -> Standing:
    now = Clock().now()
    async with database.read() as connection:
        row = await store.get(connection)
        waiting, oldest_at = await outbox.pending(connection)
        sends = row is not None and row.sender is not None and await processes.alive(connection, row.sender, now)
        return Standing(row, waiting, oldest_at, is_sending=sends, is_served=await processes.any_alive(connection, now))


async def _set(
    settings: Settings, url: str, kind: Kind, *, with_link: bool, with_text: bool
) -> tuple[Standing, str, Standing]:
    """Set the destination; return how notifications stood before, the secret, and how they stand now."""
    async with _desk(settings, seals=True) as (database, destinations):
        before = await _standing(database)
        secret = await destinations.set(url, kind, operator(), with_link=with_link, with_text=with_text)
        return before, secret, await _standing(database)


async def _show(settings: Settings) -> Standing:
    async with opened(settings) as database:
        return await _standing(database)


async def _off(settings: Settings) -> tuple[DestinationRow | None, int]:
    """Delete the destination; return it, and how many events waited for it."""
    async with _desk(settings) as (database, destinations):
        standing = await _standing(database)
        was_on = await destinations.off(operator())
        return (standing.row, standing.waiting) if was_on else (None, 0)


async def _rotate(settings: Settings, overlap: timedelta, options: str) -> tuple[str, str]:
    """Replace the secret; return the new one, and until when the old one signs."""
    async with _desk(settings, seals=True) as (database, destinations):
        row = (await _standing(database)).row
        if row is not None and row.kind != "standard":
            message = f"A destination of kind {row.kind} does not check signatures, so {row.host} has no secret."
            raise Stop(ExitCode.REFUSED, message, "If the URL has leaked, replace it there, and set the new one.")
        secret = await _of_destination(lambda: destinations.rotate(operator(), overlap), options)
        return secret, rfc3339(Clock().now() + overlap)


async def _test(settings: Settings, say: Output, options: str) -> tuple[DestinationRow, OutboxRow, float]:
    """Have the gateway send a test; return the destination as it was, what became of the test, and after how long."""
    async with _desk(settings) as (database, destinations):
        standing = await _standing(database)
        if standing.row is not None and not standing.is_served:
            raise Stop(
                ExitCode.REFUSED,
                "No gateway is running on this database, so nothing was sent.",
                "Start the gateway, then run this command again.",
            )
        event_id = await _of_destination(destinations.test, options)
        started = time.monotonic()
        ended = await _ended(database, event_id, say)
        if standing.row is None or ended is None:
            raise Stop(ExitCode.REFUSED, "The destination was changed during the test.", "Run the command again.")
        return standing.row, ended, time.monotonic() - started


async def _ended(database: Database, event_id: str, say: Output) -> OutboxRow | None:
    """Wait until an event was delivered or given up; return it, or None if it was deleted.

    Raises:
        Stop: the gateway has not sent it in time.
    """
    deadline, quiet_until = time.monotonic() + TEST_S, time.monotonic() + QUIET_S
    with ExitStack() as stack:
        is_shown = False
        while time.monotonic() < deadline:
            async with database.read() as connection:
                row = await outbox.get(connection, event_id)
            if row is None or row.outcome is not None:
                return row
            if not is_shown and time.monotonic() > quiet_until:
                stack.enter_context(say.waiting("Waiting for the gateway to deliver the test"))
                is_shown = True
            await asyncio.sleep(POLL_S)
    raise Stop(
        ExitCode.UPSTREAM,
        f"The gateway has not delivered the test within {TEST_S:.0f} seconds.",
        "See `birdwire notify show`, and the event `notification_failed` in the gateway's log.",
    )


async def _of_destination(work: Callable[[], Awaitable[Result]], options: str) -> Result:
    """Do something with the destination. `options` are those by which `set` works on the same database.

    Raises:
        Stop: there is none.
    """
    try:
        return await work()
    except NoDestinationError:
        raise Stop(ExitCode.REFUSED, NONE, f"{SET}{options}") from None
