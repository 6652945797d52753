"""`birdwire accounts`: link an X account to an API key over HTTP, see it, unlink it; and the operator's list of all."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from birdwire.cli.gateway import API, Gateway
from birdwire.cli.say import ExitCode, JsonOption, Say, Stop, family, meaning, printable, saying
from birdwire.cli.sources import ConfigOption, DataOption, KeyFileOption, gateway_url, read_key, read_settings

if TYPE_CHECKING:
    from birdwire.settings import Settings

WAIT_S = 600.0
ASK_EVERY_S = 2.0  # well inside the lowest tier's 60 calls a minute

app = family()


@app.command()
def link(
    *,
    expect: Annotated[
        str | None, typer.Option(metavar="USERNAME", help="The X account that must approve; any other is refused.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until the account is linked, 10 minutes.")
    ] = True,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Link an X account to the API key: prints a page to open and waits until its owner has approved.

    The page is good once, for 10 minutes. With --json: what `accounts status` says at the end, or with --no-wait
    the page as auth_url.

    Example: birdwire accounts link --expect ada
    """
    with saying(as_json=as_json) as say:
        gateway = Gateway(gateway_url(), read_key(api_key_file))
        before = _status(gateway)
        body = {} if expect is None else {"expected_username": expect}
        begun = gateway.ask("POST", f"{API}/auth_twitter", body)
        page = printable(begun.get("auth_url"), 4_000)
        if not wait:
            say.result(begun, page)
            return
        say.lines("Open this page and allow access:\n", page, "")
        after = _wait(say, gateway, before)
        say.result(after, _told(after))


@app.command()
def status(*, api_key_file: KeyFileOption = None, as_json: JsonOption = False) -> None:
    """Say which X account the API key acts as, and what X lately let the gateway's X app do. Never a token.

    Example: birdwire accounts status
    """
    with saying(as_json=as_json) as say:
        found = _status(Gateway(gateway_url(), read_key(api_key_file)))
        say.result(found, _told(found), *_session(found), *_record(found))


@app.command()
def unlink(*, api_key_file: KeyFileOption = None, as_json: JsonOption = False) -> None:
    """Take the X account off the API key: gone here at once, and its tokens revoked at X.

    Example: birdwire accounts unlink
    """
    with saying(as_json=as_json) as say:
        gateway = Gateway(gateway_url(), read_key(api_key_file))
        say.result(gateway.ask("POST", f"{API}/unlink_twitter"), "No X account is linked to this key any more.")


@app.command("list")
def list_(*, config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """List every linked account, from the database. For the operator; never a token.

    Example: birdwire accounts list --data .birdwire
    """
    with saying(as_json=as_json) as say:
        rows = asyncio.run(_linked(read_settings(config, data)))
        columns = ("label", "key_id", "username", "state", "why", "access_expires_at", "refreshed_at", "linked_at")
        say.table({"accounts": rows}, rows, columns, "No account is linked yet.")


def _status(gateway: Gateway) -> dict[str, Any]:
    return gateway.ask("GET", f"{API}/auth/status")


def _wait(say: Say, gateway: Gateway, before: dict[str, Any]) -> dict[str, Any]:
    """The status once it tells of another link than before."""
    ends_at = time.monotonic() + WAIT_S
    with say.waiting("Waiting for approval; Ctrl-C waits no longer, and the page stays good."):
        while time.monotonic() < ends_at:
            try:
                now = _status(gateway)
            except Stop as stop:
                if stop.code not in (ExitCode.LIMIT, ExitCode.UPSTREAM, ExitCode.UNKNOWN):
                    raise
            else:
                if now.get("state") == "active" and now.get("linked_at") != before.get("linked_at"):
                    return now
            time.sleep(ASK_EVERY_S)
    raise Stop(ExitCode.REFUSED, "Nobody approved within 10 minutes.", "Begin again: birdwire accounts link")


def _told(status: dict[str, Any]) -> str:
    if not status.get("linked"):
        return "No X account is linked to this key. Link one with: birdwire accounts link"
    name = f"@{status['username']}" if status.get("username") else "an account that X has not named yet"
    state = "" if status.get("state") == "active" else f", but it is {status.get('state')}"
    return printable(f"This key acts as {name}{state}.")


WHYS = {
    "refused": "X refused to renew it: the app was removed at X, or X ended it.",
    "refresh_lost_reply": "X's answer to a renewal was lost on the way, and the new tokens with it.",
    "no_refresh_token": "It ran out, and X had given nothing to renew it with.",
    "damaged": "Its token was changed in the database.",
    "restored": "It came from a backup; the next renewal will show whether X still accepts it.",
    "restored_backup": "It came from a backup, and X had renewed it since.",
}
"""What auth/status says as `why`, for people."""


def _session(status: dict[str, Any]) -> list[str]:
    """How X's access stands."""
    if not status.get("linked"):
        return []
    lines = [
        f"Tokens of generation {status.get('generation')}, good until {status.get('access_expires_at')}.",
        f"Renewed {status.get('refreshed_at') or 'not yet'}; next {status.get('next_refresh_at') or 'never'}.",
    ]
    if status.get("why"):
        lines.append(WHYS.get(str(status["why"]), str(status["why"])))
    return [printable(line) for line in lines]


def _record(status: dict[str, Any]) -> list[str]:
    """What X lately said of each operation."""
    known = status.get("capabilities")
    lines = [
        f"X allows {name}." if found.get("allowed") else f"X refuses {name}: {meaning(found.get('reason'))}"
        for name, found in (known.items() if isinstance(known, dict) else ())
        if isinstance(found, dict)
    ]
    return [printable(line) for line in lines]


async def _linked(settings: Settings) -> list[dict[str, Any]]:
    # Loaded here since only this command of the family works on the database.
    from birdwire.cli.database import opened  # noqa: PLC0415 - see above
    from birdwire.clock import Clock, rfc3339  # noqa: PLC0415 - see above
    from birdwire.keys import Keys  # noqa: PLC0415 - see above
    from birdwire.sessions import expired  # noqa: PLC0415 - see above
    from birdwire.store import sessions  # noqa: PLC0415 - see above

    clock = Clock()
    async with opened(settings) as database:
        labels = {key.key_id: key.label for key, _ in await Keys(database, clock).list()}
        async with database.read() as connection:
            rows = await sessions.list_all(connection)
    return [
        {
            "key_id": row["key_id"],
            "label": labels.get(row["key_id"]),
            "user_id": row["user_id"],
            "username": row["username"],
            "state": "needs_relink" if row["state"] == "active" and expired(row, clock.now()) else row["state"],
            "why": row["why"],
            "generation": row["gen"],
            "access_expires_at": rfc3339(row["expires_at"]),
            "refreshed_at": rfc3339(row["refreshed_at"]) if row["refreshed_at"] else None,
            "linked_at": rfc3339(row["linked_at"]) if row["linked_at"] else None,
        }
        for row in rows
    ]
