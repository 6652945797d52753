"""`birdwire log`: writes of all keys, for the operator. `birdwire explain`: the outcome of one, for its caller."""

from __future__ import annotations

import asyncio
import json
import re
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from birdwire.api.paths import API
from birdwire.cli import times
from birdwire.cli.command_line import ACTIONS
from birdwire.cli.database import opened
from birdwire.cli.explained import explained
from birdwire.cli.gateway_client import GatewayClient
from birdwire.cli.inputs import gateway_url, read_key, read_settings
from birdwire.cli.options import ConfigOption, DataOption, JsonOption, KeyFileOption
from birdwire.cli.output import Output, family, saying
from birdwire.cli.printable import printable
from birdwire.cli.stop import ExitCode, Stop
from birdwire.outcomes.acts import document as act_document
from birdwire.outcomes.report import report
from birdwire.store.tables import acts as store_acts
from birdwire.store.tables import journal as store
from birdwire.store.tables.journal import STATES, JournalRow

if TYPE_CHECKING:
    from datetime import datetime

    from birdwire.settings import Settings

MOST = 10_000
WIDTH = 80
COLUMNS = ("created_at", "request_id", "key_id", "operation", "about", "state", "status", "reason", "cost_usd")

_REQUEST_ID = re.compile(r"req_[0-9A-Za-z]{1,40}")

app = family()


@app.command()
def log(
    *,
    key: Annotated[str | None, typer.Option(metavar="KEY_ID", help="Filter by API key.")] = None,
    operation: Annotated[
        str | None, typer.Option(metavar="NAME", help="Filter by operation, such as like or post.")
    ] = None,
    state: Annotated[str | None, typer.Option(metavar="STATE", help=f"Filter by state: {', '.join(STATES)}.")] = None,
    acts: Annotated[
        bool,
        typer.Option(
            "--acts", help="List changes to keys, links, policies, pauses and the database instead of writes."
        ),
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            help="List only what is newer than this age (90s, 15m, 24h, 7d) or time (2026-09-22T10:00Z).",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST, metavar="N", help="Maximum number of rows.")] = 50,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """List recent writes to X and their outcomes, newest first.

    Reads the database, so it lists the writes of every key, whether or not the gateway is running. It does not show the
    texts of posts, which are encrypted: the caller can request those that X stored, and `birdwire approvals` shows what
    waits for a person. Costs are estimates from X's price list.
    Attempts that a policy, a pause or a rule of the key refused are listed for 7 days, with the state `not_sent`.

    With --acts, the command lists changes to API keys, links, policies, pauses and the database instead: what was
    changed, and who changed it (an OS user, a key over HTTP, an account's owner on a link page, or Birdwire itself).
    --key, --since and --limit apply to both lists.

    Example: birdwire log --state unknown --since 24h
    """
    with saying(as_json=as_json) as say:
        equal = {"key_id": key, "operation": _operation(operation), "state": _state(state)}
        settings, at = read_settings(config, data), times.since(since) if since else None
        if acts:
            if operation or state:
                raise Stop(
                    ExitCode.USAGE,
                    "--operation and --state do not apply to --acts.",
                    "Leave them out. To filter acts, use --key, --since and --limit.",
                )
            _list_acts(say, asyncio.run(_acts(settings, key, at, limit)), narrowed=bool(key or since))
            return
        wanted = {name: value for name, value in equal.items() if value}
        rows = [shown(row) for row in asyncio.run(_rows(settings, wanted, at, limit))]
        none = "No writes match these filters." if wanted or since else "There are no writes yet."
        # Most rows stand for one call, so the number is shown only if one does not.
        columns = COLUMNS if all(row["times"] == 1 for row in rows) else (*COLUMNS, "times")
        say.table({"requests": rows}, [worded(row) for row in rows], columns, none)


@app.command()
def explain(
    request_id: Annotated[
        str, typer.Argument(metavar="REQUEST_ID", help="ID of the call, from its X-Request-Id header: req_...")
    ],
    *,
    api_key_file: KeyFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the outcome of a write that this API key made, and what to do next.

    Birdwire keeps the outcomes of writes in the database, and for 7 days the calls that a policy, a pause or a rule of
    the key refused. Any other refusal of its own is remembered only by the process that refused the call, and only for
    a short time.

    Example: birdwire explain req_01K...
    """
    with saying(as_json=as_json) as say:
        if not _REQUEST_ID.fullmatch(request_id):
            raise Stop(
                ExitCode.USAGE,
                f"{printable(request_id, 60)!r} is not a valid request ID.",
                "Copy the ID from the response's X-Request-Id header; it looks like req_01K...",
            )
        gateway = GatewayClient(gateway_url(), read_key(api_key_file))
        try:
            document = gateway.ask("GET", f"{API}/requests/{request_id}")
        except Stop as stop:
            raise (_unknown(stop) if stop.reason == "request_not_found" else stop) from None
        say.result(document, *explained(document))


def _unknown(stop: Stop) -> Stop:
    """Return the refusal of an unknown id, with what a person can still do."""
    fix = (
        "Check the ID, and that BIRDWIRE_API_KEY is the key that made the request. Birdwire does not record lookups "
        "that X refused. It keeps most of its own refusals only for a short time, on the replica that answered: the "
        "operator can find them in the gateway's log by this ID."
    )
    return Stop(stop.code, stop.message, fix, request_id=stop.request_id, document=stop.document)


async def _rows(settings: Settings, equal: dict[str, str], since: datetime | None, limit: int) -> list[JournalRow]:
    async with opened(settings) as database, database.read() as connection:
        return await store.listed(connection, equal, since, limit)


async def _acts(settings: Settings, key_id: str | None, since: datetime | None, limit: int) -> list[dict[str, Any]]:
    async with opened(settings) as database, database.read() as connection:
        return [act_document(row) for row in await store_acts.listed(connection, key_id, since, limit)]


def _list_acts(say: Output, rows: list[dict[str, Any]], *, narrowed: bool) -> None:
    """Print each act with who did it, and below it the subject and the changed fields."""
    lines = []
    for row in rows:
        by = "the key itself" if row["who"] == row["subject"] else row["who"]
        fields = dict.fromkeys((*(row["before"] or ()), *(row["after"] or ())))
        changes = [f"{name}: {change(row, name)}" for name in fields]
        lines += _wrapped(f"{row['at']}  {row['act']}, by {by} ({row['via']})", "")
        lines += _wrapped("; ".join((row["subject"], *changes)), "  ")
    none = "No acts match these filters." if narrowed else "There are no acts yet."
    say.result({"acts": rows}, *(lines or [none]))


def change(row: dict[str, Any], name: str) -> str:
    """Return a field's old and new value, such as `free -> starter`; a field that the act removed becomes `none`."""
    values = [fields[name] for fields in (row["before"], row["after"]) if fields is not None and name in fields]
    if name not in (row["after"] or ()):
        values.append(None)
    return " -> ".join(map(_word, values))


def _word(value: object) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    return "none" if value in (None, []) else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(printable(text, 4_000), WIDTH, initial_indent=indent, subsequent_indent="    ")


def shown(row: JournalRow) -> dict[str, Any]:
    """Return a row for the operator, without its encrypted fields. `times`: how many refused attempts it counts."""
    document = report(row)
    more = {"key_id": row.key_id, "user_id": row.user_id, "about": row.target or row.x_id, "times": row.times or 1}
    return {"request_id": document.pop("request_id"), **more, **document}


def worded(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its cost as people read it."""
    return row if row["cost_usd"] is None else row | {"cost_usd": f"{row['cost_usd']:.3f}"}


def _operation(name: str | None) -> str | None:
    if name is None:
        return None
    found: str = ACTIONS.get(name, name)
    if found not in ACTIONS.values():
        message = f"{printable(name, 60)!r} is not a valid operation."
        raise Stop(ExitCode.USAGE, message, f"Use one of: {', '.join(ACTIONS)}")
    return found


def _state(name: str | None) -> str | None:
    if name is not None and name not in STATES:
        message = f"{printable(name, 60)!r} is not a valid state."
        raise Stop(ExitCode.USAGE, message, f"Use one of: {', '.join(STATES)}")
    return name
