"""`birdwire log`: every key's writes, for the operator. `birdwire explain`: the outcome of one, for its caller."""

from __future__ import annotations

import asyncio
import re
import textwrap
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from birdwire.accounts.acts import told as told_act
from birdwire.api.paths import API
from birdwire.cli import ACTIONS
from birdwire.cli.database import opened
from birdwire.cli.gateway_client import GatewayClient
from birdwire.cli.inputs import ConfigOption, DataOption, KeyFileOption, gateway_url, read_key, read_settings
from birdwire.cli.output import ExitCode, JsonOption, Output, Stop, family, meaning, printable, remedy, saying
from birdwire.outcomes.journal import State, told
from birdwire.runtime.clock import Clock
from birdwire.store.tables import acts as store_acts
from birdwire.store.tables import journal as store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import RowMapping

    from birdwire.settings import Settings

STATES = get_args(State)
MOST = 10_000
WIDTH = 80
COLUMNS = ("created_at", "request_id", "key_id", "operation", "about", "state", "status", "reason", "cost_usd")

MEANINGS: dict[str, tuple[str, str]] = {
    "started": ("The call is running, or its process has just died.", "Ask again in half a minute."),
    "confirmed": ("X confirmed it.", ""),
    "refused": ("X refused it. Nothing was changed.", ""),
    "not_sent": ("Nothing was sent to X.", "You can send it again."),
    "unknown": ("X's answer was lost. X may have done it.", ""),
    "found": ("X's answer was lost, but X did it: the post is in the account's timeline.", "Do not send it again."),
    "not_found": (
        "X's answer was lost, and X did not do it: the post is not in the account's timeline.",
        "You can send it again, with a new Idempotency-Key.",
    ),
}
SAID = "The response to the call said what to correct; docs/errors.md lists every reason."
"""The advice for a refusal whose own fix is not known here."""
WHYS: dict[str, tuple[str, str]] = {
    "looking": (
        "Birdwire is looking for it in the account's timeline.",
        "Ask again in a minute; do not send it again.",
    ),
    "no_read": (
        "Birdwire could not read the account's timeline yet.",
        "Look at the account on x.com, or ask again later.",
    ),
    "several_match": ("Several posts could be this one.", "Look at the account on x.com."),
    "too_many_posts": (
        "The account has posted too much since then for Birdwire to read.",
        "Look at the account on x.com.",
    ),
    "not_linked": ("The account is no longer linked, so Birdwire cannot look.", "Look at the account on x.com."),
    "not_in_timeline": (
        "Such a post does not appear in timelines, so Birdwire cannot look.",
        "Look at x.com before you send it again.",
    ),
    "upload": ("X deletes an upload that no post uses.", "Upload it again."),
}

_AGO = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_REQUEST_ID = re.compile(r"req_[0-9A-Za-z]{1,40}")

app = family()


@app.command()
def log(
    *,
    key: Annotated[str | None, typer.Option(metavar="KEY_ID", help="Show one API key's writes.")] = None,
    operation: Annotated[
        str | None, typer.Option(metavar="NAME", help="Show one operation, such as like or post.")
    ] = None,
    state: Annotated[str | None, typer.Option(metavar="STATE", help=f"Filter by state: {', '.join(STATES)}.")] = None,
    acts: Annotated[bool, typer.Option("--acts", help="List changes of keys and links, and who made them.")] = False,
    since: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Show writes since then: 90s, 15m, 24h, 7d, or a time: 2026-09-22T10:00Z."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST, metavar="N", help="Maximum number of rows.")] = 50,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """List recent writes to X, newest first, with their outcomes.

    Reads the database, so it shows the calls of every key, and works while the gateway runs. Texts of posts are not
    shown: they are encrypted, and only their caller can ask for them. Costs are estimates from X's price list.

    With --acts, list each change of an API key, a link or the database: who made it (an OS user, a key over HTTP, an
    account's owner on a page, or birdwire itself), and what was changed. --key, --since and --limit narrow both lists.

    Example: birdwire log --state unknown --since 24h
    """
    with saying(as_json=as_json) as say:
        equal = {"key_id": key, "operation": _operation(operation), "state": _state(state)}
        settings, at = read_settings(config, data), _at(since)
        if acts:
            if operation or state:
                raise Stop(ExitCode.USAGE, "--operation and --state are not about acts.", "Leave them out with --acts.")
            _list_acts(say, asyncio.run(_acts(settings, key, at, limit)), narrowed=bool(key or since))
            return
        wanted = {name: value for name, value in equal.items() if value}
        rows = [_shown(row) for row in asyncio.run(_rows(settings, wanted, at, limit))]
        none = "No write matches." if wanted or since else "There are no writes yet."
        shown = [row | {"cost_usd": f"{row['cost_usd']:.3f}"} if row["cost_usd"] is not None else row for row in rows]
        say.table({"requests": rows}, shown, COLUMNS, none)


@app.command()
def explain(
    request_id: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="The X-Request-Id of the call: req_...")],
    *,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what became of a write by this API key, and what to do about it.

    A call that Birdwire refused itself is known to the process that refused it, for a while.

    Example: birdwire explain req_01K...
    """
    with saying(as_json=as_json) as say:
        if not _REQUEST_ID.fullmatch(request_id):
            raise Stop(
                ExitCode.USAGE, f"{printable(request_id, 60)!r} is not a request id.", "Use one such as req_01K..."
            )
        gateway = GatewayClient(gateway_url(), read_key(api_key_file))
        try:
            document = gateway.ask("GET", f"{API}/requests/{request_id}")
        except Stop as stop:
            raise (_unknown(stop) if stop.reason == "request_not_found" else stop) from None
        say.result(document, *_explained(document))


def _unknown(stop: Stop) -> Stop:
    """The refusal of an id that this gateway does not know, with what a person may still do."""
    fix = (
        "Check the id, and that BIRDWIRE_API_KEY is the key that made the request. Look-ups that X refused are not "
        "recorded. If Birdwire refused it a while ago, or another replica did, the operator finds the refusal in the "
        "gateway's log under this id."
    )
    return Stop(stop.code, stop.message, fix, request_id=stop.request_id, document=stop.document)


def _explained(document: dict[str, Any]) -> list[str]:
    """The outcome in a few sentences: what was asked, what became of it, why, what to do."""
    state, why = str(document.get("state")), str(document.get("why"))
    happened, advice = MEANINGS.get(state, (f"It is {printable(state, 60)}.", ""))
    lines = [
        f"{printable(document.get('operation'), 60)}, asked at {printable(document.get('created_at'), 40)}",
        happened,
    ]
    if state == "unknown" and why in WHYS:
        lines.append(WHYS[why][0])
        advice = WHYS[why][1]
    elif document.get("reason") and state != "not_found":
        lines.append(meaning(document["reason"]))
        advice = (remedy(document["reason"]) or SAID) if state == "not_sent" else advice
    found = document.get("data")
    if isinstance(found, dict):
        lines += [f"{printable(name, 40)}: {printable(value)}" for name, value in found.items()]
    if isinstance(document.get("cost_usd"), float) and document["cost_usd"]:
        lines.append(f"X bills about {document['cost_usd']:.3f} US dollars for it.")
    return [*lines, advice] if advice else lines


async def _rows(settings: Settings, equal: dict[str, str], since: datetime | None, limit: int) -> Sequence[RowMapping]:
    async with opened(settings) as database, database.read() as connection:
        return await store.listed(connection, equal, since, limit)


async def _acts(settings: Settings, key_id: str | None, since: datetime | None, limit: int) -> list[dict[str, Any]]:
    async with opened(settings) as database, database.read() as connection:
        return [told_act(row) for row in await store_acts.listed(connection, key_id, since, limit)]


def _list_acts(say: Output, rows: list[dict[str, Any]], *, narrowed: bool) -> None:
    """Show who did what, and below each act its subject and what became of which field."""
    lines = []
    for row in rows:
        by = "the key itself" if row["who"] == row["subject"] else row["who"]
        fields = dict.fromkeys((*(row["before"] or ()), *(row["after"] or ())))
        changes = [f"{name}: {change(row, name)}" for name in fields]
        lines += _wrapped(f"{row['at']}  {row['act']}, by {by} ({row['via']})", "")
        lines += _wrapped("; ".join((row["subject"], *changes)), "  ")
    say.result({"acts": rows}, *(lines or ["No act matches." if narrowed else "There are no acts yet."]))


def change(row: dict[str, Any], name: str) -> str:
    """Return what a field was, and what it is: a field that an act only took away is none now."""
    values = [fields[name] for fields in (row["before"], row["after"]) if fields is not None and name in fields]
    if name not in (row["after"] or ()):
        values.append(None)
    words = [", ".join(map(str, value)) if isinstance(value, list) else str(value) for value in values]
    return " -> ".join("none" if value in (None, []) else word for word, value in zip(words, values, strict=True))


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(printable(text, 4_000), WIDTH, initial_indent=indent, subsequent_indent="    ")


def _shown(row: RowMapping) -> dict[str, Any]:
    """A row as the operator sees it: nothing of it is sealed."""
    document = told(row)
    more = {"key_id": row["key_id"], "user_id": row["user_id"], "about": row["target"] or row["x_id"]}
    return {"request_id": document.pop("request_id"), **more, **document}


def _operation(name: str | None) -> str | None:
    if name is None:
        return None
    found: str = ACTIONS.get(name, name)
    if found not in ACTIONS.values():
        raise Stop(ExitCode.USAGE, f"There is no operation {printable(name, 60)!r}.", f"One of: {', '.join(ACTIONS)}")
    return found


def _state(name: str | None) -> str | None:
    if name is not None and name not in STATES:
        raise Stop(ExitCode.USAGE, f"There is no state {printable(name, 60)!r}.", f"One of: {', '.join(STATES)}")
    return name


def _at(text: str | None) -> datetime | None:
    """A moment, or how long ago it was."""
    if text is None:
        return None
    ago = _AGO.fullmatch(text)
    try:
        if ago:
            return Clock().now() - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        at = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise Stop(
            ExitCode.USAGE, f"{printable(text, 60)!r} is not a time.", "Use 24h, 7d or 2026-09-22T10:00Z."
        ) from None
    return at.astimezone()
