"""`birdwire accounts`: link, show, confirm and unlink the X account of an API key; list all linked accounts."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qs, urlsplit

import typer

from birdwire.api.paths import API
from birdwire.cli.gateway_client import GatewayClient
from birdwire.cli.inputs import gateway_url, read_key, read_settings
from birdwire.cli.options import ConfigOption, DataOption, JsonOption, KeyFileOption
from birdwire.cli.output import Output, family, meaning, saying
from birdwire.cli.printable import printable
from birdwire.cli.stop import ExitCode, Stop

if TYPE_CHECKING:
    from birdwire.cli.linking import Linking
    from birdwire.settings import Settings

WAIT_S = 600.0
# The interval stays well below the 60 calls per minute of the lowest tier.
ASK_EVERY_S = 2.0

app = family()


@app.command()
def link(
    key_id: Annotated[
        str | None,
        typer.Argument(
            metavar="KEY_ID",
            help="For operators: ID of the key to link. Default: link the key in BIRDWIRE_API_KEY, over HTTP.",
        ),
    ] = None,
    *,
    expect: Annotated[
        str | None, typer.Option(metavar="USERNAME", help="X account that must approve. Birdwire refuses any other.")
    ] = None,
    scopes: Annotated[
        str | None, typer.Option(metavar="SCOPE,...", help="X scopes to request. Default: all that the key can use.")
    ] = None,
    return_to: Annotated[
        str | None, typer.Option(metavar="URL", help="Page to open after the approval. The key must allow it.")
    ] = None,
    wait: Annotated[
        bool | None,
        typer.Option(
            "--wait/--no-wait", help="Wait up to 10 minutes for the approval. Default: wait, except with --json."
        ),
    ] = None,
    config: ConfigOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Link an X account to an API key.

    Prints the URL of X's consent page and waits until the account's owner has approved there. The URL is valid for 10
    minutes and works once.

    Without KEY_ID, the command calls the gateway with the API key, whose actions must include `link`. With KEY_ID, it
    works directly on the database: it needs the gateway's settings (public_url, database_url, vault key, x_client_id)
    and links any key without knowing its secret.

    With --json, the command prints auth_url, state and expires_at and does not wait. With --json --wait, it waits and
    prints the linked account instead.

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
        _check_place("link", key_id, config, api_key_file)
        if key_id is None:
            asyncio.run(_link(say, _OverHttp(GatewayClient(gateway_url(), read_key(api_key_file))), body, waits=waits))
        else:
            asyncio.run(_link_key(say, read_settings(config), key_id, body, waits=waits))


@app.command()
def status(*, api_key_file: KeyFileOption = None, as_json: JsonOption = False) -> None:
    """Show the X account that the API key acts as.

    Also shows which operations X recently allowed or refused. Never shows a token.

    Example: birdwire accounts status
    """
    with saying(as_json=as_json) as say:
        found = _status(GatewayClient(gateway_url(), read_key(api_key_file)))
        say.result(found, _told(found), *_session(found), *_record(found))


@app.command()
def confirm(
    which: Annotated[
        str,
        typer.Argument(
            metavar="KEY_ID|@USERNAME",
            help="For operators: ID of the key with the link. Otherwise: @username of the account that approved it.",
        ),
    ],
    *,
    expect: Annotated[
        str | None,
        typer.Option(
            metavar="USERNAME", help="X account that you expect to have approved the link. Required with KEY_ID."
        ),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(
            metavar="STATE",
            help="The state or auth_url in the output of `birdwire accounts link`. Required with @USERNAME.",
        ),
    ] = None,
    config: ConfigOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Confirm a link that an account's owner has approved (needed if the setting link_mode is `confirm`).

    With @USERNAME and --state, the command calls the gateway with the API key. With KEY_ID and --expect, the operator
    confirms directly on the database, with the gateway's settings. `birdwire accounts list` shows which account
    approved.

    Example: birdwire accounts confirm key_01K... --expect ada
    """
    with saying(as_json=as_json) as say:
        username = which.removeprefix("@") if which.startswith("@") else None
        _check_place("confirm", which if username is None else None, config, api_key_file)
        if username is None and state is not None:
            raise Stop(ExitCode.USAGE, "--state requires @USERNAME.", "With KEY_ID, use --expect USERNAME instead.")
        if username is not None and (state is None or expect is not None):
            raise Stop(
                ExitCode.USAGE,
                "@USERNAME requires --state and excludes --expect.",
                "Use the state that `birdwire accounts link` printed. The operator can confirm with KEY_ID instead.",
            )
        if username is None:
            from birdwire.cli import links  # noqa: PLC0415 - as in _linked

            found = asyncio.run(links.confirm(read_settings(config), which, expect and expect.removeprefix("@")))
        else:
            gateway = GatewayClient(gateway_url(), read_key(api_key_file))
            body = {"state": _state_in(state or ""), "username": username}
            found = gateway.ask("POST", f"{API}/auth/confirm", body)
        say.result(found, _told(found))


@app.command()
def unlink(
    key_id: Annotated[
        str | None,
        typer.Argument(
            metavar="KEY_ID",
            help="For operators: ID of the key to unlink. Default: unlink the key in BIRDWIRE_API_KEY, over HTTP.",
        ),
    ] = None,
    *,
    config: ConfigOption = None,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Unlink the X account from an API key.

    Birdwire deletes the account's tokens from the database and revokes them at X.

    Without KEY_ID, the command calls the gateway with the API key, whose actions must include `unlink`. With KEY_ID,
    it works directly on the database with the gateway's settings, and unlinks any key without knowing its secret.

    Example: birdwire accounts unlink
    """
    with saying(as_json=as_json) as say:
        _check_place("unlink", key_id, config, api_key_file)
        if key_id is None:
            gateway = GatewayClient(gateway_url(), read_key(api_key_file))
            say.result(gateway.ask("POST", f"{API}/unlink_twitter"), "The X account was unlinked from this key.")
            return
        from birdwire.cli import links  # noqa: PLC0415 - as in _linked

        ended = asyncio.run(links.unlink(read_settings(config), key_id))
        text = f"The X account was unlinked from {key_id}." if ended else f"No X account was linked to {key_id}."
        say.result({"data": {"linked": False}}, text)


@app.command("list")
def list_(*, config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """List all linked X accounts (for operators).

    Reads the database. Never shows a token.

    Example: birdwire accounts list --data .birdwire
    """
    with saying(as_json=as_json) as say:
        rows = asyncio.run(_linked(read_settings(config, data)))
        columns = ("label", "key_id", "username", "state", "why", "access_expires_at", "refreshed_at", "linked_at")
        say.table({"accounts": rows}, rows, columns, "No X account is linked yet.")


def _check_place(command: str, key_id: str | None, config: object, api_key_file: object) -> None:
    """Check the options: with a KEY_ID the command works on the database, without one over HTTP.

    Raises:
        Stop: an option does not apply.
    """
    if (config if key_id is None else api_key_file) is not None:
        why = "--config requires KEY_ID." if key_id is None else "--api-key-file and KEY_ID are mutually exclusive."
        raise Stop(ExitCode.USAGE, why, f"See `birdwire accounts {command} --help`.")


def _state_in(text: str) -> str:
    """Return a link's state, given as the state itself or as the auth_url that contains it."""
    return parse_qs(urlsplit(text).query).get("state", [text])[0]


def _status(gateway: GatewayClient) -> dict[str, Any]:
    return gateway.ask("GET", f"{API}/auth/status")


class _OverHttp:
    """Links the API key over HTTP."""

    def __init__(self, gateway: GatewayClient) -> None:
        self._gateway = gateway
        self._begun: dict[str, Any] = {}
        self._before: dict[str, Any] = {}

    @property
    def confirm(self) -> str:
        """Return the command that confirms the link."""
        return f"birdwire accounts confirm @USERNAME --state {printable(self._begun.get('state'))}"

    async def start(self, body: dict[str, Any]) -> dict[str, Any]:
        """Start the link and return the response of auth_twitter."""
        self._before = _status(self._gateway)
        self._begun = self._gateway.ask("POST", f"{API}/auth_twitter", body)
        return self._begun

    async def poll(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the link's attempt, if it is the key's latest, and the key's status, if the link changed it.

        Both are empty if the gateway is busy or unreachable, so that the caller polls again.
        """
        try:
            status = _status(self._gateway)
        except Stop as stop:
            if stop.code not in (ExitCode.LIMIT, ExitCode.UPSTREAM, ExitCode.UNKNOWN):
                raise
            return {}, {}
        last = status.get("last_attempt")
        mine = isinstance(last, dict) and last.get("expires_at") == self._begun.get("expires_at")
        other = status.get("linked_at") != self._before.get("linked_at") or status.get("state") == "pending"
        return last if mine and isinstance(last, dict) else {}, status if other else {}


async def _link_key(say: Output, settings: Settings, key_id: str, body: dict[str, Any], *, waits: bool) -> None:
    from birdwire.cli.linking import linking  # noqa: PLC0415 - as in _linked

    async with linking(settings, key_id) as link:
        await _link(say, link, body, waits=waits)


async def _link(say: Output, link: _OverHttp | Linking, body: dict[str, Any], *, waits: bool) -> None:
    """Start a link, print its auth_url, and wait for the approval if `waits`.

    Raises:
        Stop: the link was refused, or was not approved and confirmed in time.
    """
    started = await link.start(body)
    page = printable(started.get("auth_url"), 4_000)
    if not waits:
        say.result(started, page)
        return
    say.lines("Open this page in a browser and allow access:\n", page, "")
    ends_at, approved, reported = time.monotonic() + WAIT_S, False, False
    with say.waiting("Waiting for approval. Press Ctrl-C to stop waiting; the page remains valid."):
        while True:
            attempt, status = await link.poll()
            check_attempt(attempt)
            if status.get("state") == "active":
                break
            approved = approved or reported or attempt.get("outcome") == "approved"
            if not reported and (hint := _confirming(attempt, status, link.confirm)):
                say.lines(hint)
                reported = True
            if time.monotonic() > ends_at:
                raise Stop(ExitCode.REFUSED, *(_UNCONFIRMED if approved else _EXPIRED))
            await asyncio.sleep(ASK_EVERY_S)
    say.result(status, _told(status))


def _confirming(attempt: dict[str, Any], status: dict[str, Any], command: str) -> str | None:
    """Return how to confirm an approved link. While an older link is active, auth/status describes the older one."""
    if status.get("state") == "pending" and status.get("username"):
        name = printable(f"@{status['username']}")
        return f"{name} approved. To activate the link, run: {command.replace('@USERNAME', name)}"
    if not status and attempt.get("outcome") == "approved":
        return f"An account approved. If the gateway uses link mode confirm, run: {command}"
    return None


_AGAIN = "Run the command again to get a new page."
_EXPIRED = ("The link was not approved within 10 minutes.", _AGAIN)
_UNCONFIRMED = ("The approval was not confirmed within 10 minutes.", _AGAIN)
_ENDS = {
    "consent_denied": "The account's owner denied access on X's consent page. Nothing was linked.",
    "account_mismatch": "A different X account approved than the one that the key expects. Nothing was changed.",
    "x_scope_missing": "The account's owner did not approve users.read and tweet.read, so X does not name the account.",
}
"""Messages for a refused link, for reasons whose own message needs values or addresses the account's owner."""


def check_attempt(attempt: dict[str, Any]) -> None:
    """Check that an attempt to link may still succeed.

    Raises:
        Stop: the account's owner denied or undid it, it expired, or it failed.
    """
    outcome, reason = attempt.get("outcome"), attempt.get("reason")
    if outcome == "expired":
        raise Stop(ExitCode.REFUSED, *_EXPIRED)
    if outcome == "undone":
        raise Stop(ExitCode.REFUSED, "The account's owner undid the link.", "Ask the owner before you link it again.")
    if outcome == "refused":
        raise Stop(ExitCode.REFUSED, _ENDS.get(str(reason)) or meaning(reason), _AGAIN)


def _told(status: dict[str, Any]) -> str:
    if not status.get("linked"):
        why = f": {_why(status)}" if status.get("why") else "."
        return printable(f"No X account is linked to this key{why} To link one, run: birdwire accounts link")
    name = f"@{status['username']}" if status.get("username") else ""
    if status.get("state") == "needs_relink":
        return printable(f"{name or 'The account'} must be linked again: {_why(status)}")
    if status.get("state") == "pending" and not name:
        return "X has not named the linked account yet. Birdwire will ask X again on the key's next call."
    if status.get("state") == "pending":
        return printable(f"{name} approved. The link is waiting for confirmation: see `birdwire accounts confirm`.")
    return printable(f"This key acts as {name}.")


WHYS = {
    "refused": "X refused to renew the tokens.",
    "refresh_lost_reply": "X's response to a token renewal was lost, and the new tokens with it.",
    "no_refresh_token": "the access token expired, and X had not issued a refresh token.",
    "scope_missing": "X does not name the account until its owner approves users.read and tweet.read.",
    "damaged": "the stored tokens were modified in the database.",
    "restored": "the link was restored from a backup. The next token renewal will show whether X still accepts it.",
    "restored_backup": "the link was restored from a backup, and X had renewed its tokens since.",
    "undone_by_owner": "the account's owner undid the link. Ask the owner before you link it again.",
}
"""The values of `why` in auth/status as text for people. Each continues a sentence after a colon."""


def _why(status: dict[str, Any]) -> str:
    why = str(status.get("why"))
    return WHYS.get(why, f"{why}.")


def _session(status: dict[str, Any]) -> list[str]:
    """Describe when the access token expires and is renewed; also `why`, where `_told` does not show it."""
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
    """Describe which operations X recently allowed or refused."""
    known = status.get("capabilities")
    lines = [
        f"X allows {name}." if found.get("allowed") else f"X refuses {name}: {meaning(found.get('reason'))}"
        for name, found in (known.items() if isinstance(known, dict) else ())
        if isinstance(found, dict)
    ]
    return [printable(line) for line in lines]


async def _linked(settings: Settings) -> list[dict[str, Any]]:
    # These modules are imported here because only this subcommand works on the database.
    from birdwire.accounts.links import reported_state  # noqa: PLC0415 - see above
    from birdwire.cli.database import opened  # noqa: PLC0415 - see above
    from birdwire.keys.registry import Keys  # noqa: PLC0415 - see above
    from birdwire.runtime.clock import Clock, rfc3339  # noqa: PLC0415 - see above
    from birdwire.store.tables import x_sessions  # noqa: PLC0415 - see above

    clock = Clock()
    async with opened(settings) as database:
        labels = {key.key_id: key.label for key, _ in await Keys(database, clock).list()}
        async with database.read() as connection:
            rows = await x_sessions.list_all(connection)
    return [
        {
            "key_id": row.key_id,
            "label": labels.get(row.key_id),
            "user_id": row.user_id,
            "username": row.username,
            **dict(zip(("state", "why"), reported_state(row, clock.now()), strict=True)),
            "generation": row.gen,
            "access_expires_at": rfc3339(row.expires_at),
            "refreshed_at": rfc3339(row.refreshed_at) if row.refreshed_at else None,
            "linked_at": rfc3339(row.linked_at) if row.linked_at else None,
        }
        for row in rows
    ]
