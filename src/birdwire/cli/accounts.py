"""`birdwire accounts`: link an X account to an API key, see it, unlink it; and the operator's list of all."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from birdwire.cli.gateway import API, Gateway
from birdwire.cli.say import ExitCode, JsonOption, Say, Stop, family, meaning, printable, saying
from birdwire.cli.sources import ConfigOption, DataOption, KeyFileOption, gateway_url, read_key, read_settings

if TYPE_CHECKING:
    from birdwire.cli.linking import Linking
    from birdwire.settings import Settings

WAIT_S = 600.0
ASK_EVERY_S = 2.0  # well inside the lowest tier's 60 calls a minute

app = family()


@app.command()
def link(
    key_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[KEY_ID]", help="Key to link, for the operator. Default: the key in BIRDWIRE_API_KEY, over HTTP."
        ),
    ] = None,
    *,
    expect: Annotated[
        str | None, typer.Option(metavar="USERNAME", help="X account that must approve; any other is refused.")
    ] = None,
    scopes: Annotated[
        str | None, typer.Option(metavar="SCOPE,...", help="X scopes to ask for. Default: all that the key can use.")
    ] = None,
    return_to: Annotated[
        str | None, typer.Option(metavar="URL", help="Page that follows the link; the key must allow it.")
    ] = None,
    wait: Annotated[
        bool | None,
        typer.Option("--wait/--no-wait", help="Wait up to 10 minutes for the approval. Default: yes, without --json."),
    ] = None,
    config: ConfigOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Link an X account to a key: print a page to open, and wait until the account's owner has approved.

    With KEY_ID, work on the database with the gateway's settings (public_url, database_url, vault key, x_client_id),
    for any key and without its secret. Without KEY_ID, ask the gateway with the API key, which must be allowed to
    `link`. The page works once, for 10 minutes.

    With --json, print auth_url, state and expires_at and do not wait; with --wait, print the linked account instead.

    Example: birdwire accounts link key_01K... --expect ada
    """
    asked = {
        "expected_username": expect,
        "scopes": None if scopes is None else [scope.strip() for scope in scopes.split(",")],
        "return_to": return_to,
    }
    body = {name: value for name, value in asked.items() if value is not None}
    waits = not as_json if wait is None else wait
    with saying(as_json=as_json) as say:
        if (config if key_id is None else api_key_file) is not None:
            why = "--config needs a KEY_ID." if key_id is None else "--api-key-file and a KEY_ID exclude each other."
            raise Stop(ExitCode.USAGE, why, "See `birdwire accounts link --help`.")
        if key_id is None:
            asyncio.run(_link(say, _OverHttp(Gateway(gateway_url(), read_key(api_key_file))), body, waits=waits))
        else:
            asyncio.run(_link_key(say, read_settings(config), key_id, body, waits=waits))


@app.command()
def status(*, api_key_file: KeyFileOption = None, as_json: JsonOption = False) -> None:
    """Show which X account the API key acts as, and what X recently let the gateway's X app do. Never a token.

    Example: birdwire accounts status
    """
    with saying(as_json=as_json) as say:
        found = _status(Gateway(gateway_url(), read_key(api_key_file)))
        say.result(found, _told(found), *_session(found), *_record(found))


@app.command()
def unlink(*, api_key_file: KeyFileOption = None, as_json: JsonOption = False) -> None:
    """Unlink the X account from the API key: delete its tokens here, and revoke them at X.

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


class _OverHttp:
    """The API key's link, asked of the gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._before: dict[str, Any] = {}

    async def start(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer of auth_twitter."""
        self._before = _status(self._gateway)
        return self._gateway.ask("POST", f"{API}/auth_twitter", body)

    async def linked(self) -> dict[str, Any] | None:
        """Return the key's status once it reports another link than before."""
        try:
            now = _status(self._gateway)
        except Stop as stop:
            if stop.code not in (ExitCode.LIMIT, ExitCode.UPSTREAM, ExitCode.UNKNOWN):
                raise
            return None
        other = now.get("linked_at") != self._before.get("linked_at")
        return now if now.get("state") == "active" and other else None


async def _link_key(say: Say, settings: Settings, key_id: str, body: dict[str, Any], *, waits: bool) -> None:
    from birdwire.cli.linking import linking  # noqa: PLC0415 - as in _linked

    async with linking(settings, key_id) as link:
        await _link(say, link, body, waits=waits)


async def _link(say: Say, link: _OverHttp | Linking, body: dict[str, Any], *, waits: bool) -> None:
    """Start a link, show its page, and wait for the approval if asked to.

    Raises:
        Stop: the link was refused, or nobody approved it in time.
    """
    begun = await link.start(body)
    page = printable(begun.get("auth_url"), 4_000)
    if not waits:
        say.result(begun, page)
        return
    say.lines("Open this page and allow access:\n", page, "")
    ends_at = time.monotonic() + WAIT_S
    with say.waiting("Waiting for approval. Ctrl-C stops waiting; the page stays valid."):
        while (after := await link.linked()) is None:
            if time.monotonic() > ends_at:
                raise Stop(ExitCode.REFUSED, "Nobody approved within 10 minutes.", "Run the command again.")
            await asyncio.sleep(ASK_EVERY_S)
    say.result(after, _told(after))


def _told(status: dict[str, Any]) -> str:
    if not status.get("linked"):
        return "No X account is linked to this key. Link one with: birdwire accounts link"
    name = f"@{status['username']}" if status.get("username") else "an account that X has not named yet"
    if status.get("state") == "needs_relink":
        return printable(f"{name} must be linked again: {_why(status)}")
    if status.get("state") == "pending":
        return printable(f"The link to {name} is not active yet.")
    return printable(f"This key acts as {name}.")


WHYS = {
    "refused": "X refused to renew the access.",
    "refresh_lost_reply": "X's answer to a renewal was lost, and the new tokens with it.",
    "no_refresh_token": "the access expired, and X had given no refresh token.",
    "damaged": "the stored token was changed in the database.",
    "restored": "the link came from a backup; the next renewal will show whether X still accepts it.",
    "restored_backup": "the link came from a backup, and X had renewed the access since.",
}
"""What auth/status returns as `why`, for people; reads on after a colon."""


def _why(status: dict[str, Any]) -> str:
    why = str(status.get("why"))
    return WHYS.get(why, f"{why}.")


def _session(status: dict[str, Any]) -> list[str]:
    """Until when X's access lasts, and when it is renewed; why, where `_told` does not have it."""
    if not status.get("linked"):
        return []
    last, planned = status.get("refreshed_at"), status.get("next_refresh_at")
    renewed = f"Renewed at {last}" if last else "Not renewed yet"
    renewal = f"the next renewal is due at {planned}" if planned else "no renewal is planned"
    lines = [
        f"X's access token is valid until {status.get('access_expires_at')} (generation {status.get('generation')}).",
        f"{renewed}; {renewal}.",
    ]
    if status.get("why") and status.get("state") != "needs_relink":
        why = _why(status)
        lines.append(f"{why[:1].upper()}{why[1:]}")
    return [printable(line) for line in lines]


def _record(status: dict[str, Any]) -> list[str]:
    """What X recently answered to each operation."""
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
