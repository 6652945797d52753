"""`birdwire approvals`: shows the writes that wait for a person, and decides on them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from birdwire.api.paths import APPROVE
from birdwire.cli import approval_view, terminal
from birdwire.cli.approval_desk import MOST, at_desk
from birdwire.cli.approval_watch import watch_lines, watch_terminal
from birdwire.cli.inputs import read_settings, read_stdin
from birdwire.cli.options import ConfigOption, DataOption, JsonOption
from birdwire.cli.output import Output, family, saying
from birdwire.cli.stop import ExitCode, Stop
from birdwire.runtime.clock import rfc3339

if TYPE_CHECKING:
    from birdwire.cli.approval_desk import Desk
    from birdwire.cli.approval_view import Asked

RequestArgument = Annotated[
    str,
    typer.Argument(
        metavar="REQUEST_ID", help="ID of the request, from `birdwire approvals list`, or its last 6 characters."
    ),
]
PayloadOption = Annotated[
    str | None,
    typer.Option(
        "--payload",
        metavar="HASH",
        help="Decide only on the payload with this hash, as `list` and `show` print it.",
    ),
]

app = family()


@app.command("list")
def list_(
    *,
    key: Annotated[str | None, typer.Option(metavar="KEY_ID", help="List only what this API key asked for.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST, metavar="N", help="Maximum number of requests.")] = 200,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the writes that wait for a person, or to be sent after an approval.

    The one that expires first comes first. With --json, each has all that would be published, and `waiting` is the
    number of writes that wait for a decision, also of those that are not listed.

    Example: birdwire approvals list
    """
    with saying(as_json=as_json) as say, at_desk(read_settings(config, data)) as desk:
        found = desk.waiting(limit, key)
        if as_json:
            listed = [approval_view.document(one) for one in found]
            say.result({"approvals": listed, "waiting": desk.count(key)})
            return
        now = desk.now()
        rows = [approval_view.table_row(one, now) for one in found]
        say.table({}, rows, approval_view.COLUMNS, "Nothing waits for a decision.")
        if rows:
            say.aside("To see and decide one, run: birdwire approvals show REQUEST_ID")
        if len(found) == limit:
            say.aside(f"Only {limit} are listed. {desk.count(key)} wait for a decision in all.")


@app.command()
def show(
    request_id: RequestArgument, *, config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False
) -> None:
    """Show all that a write would publish, why a person is asked, and until when.

    A code point that cannot be seen, or that changes the direction of a text, is shown as a marker such as U+202E
    between angle quotes. A line that begins with a colon continues the line above it.

    Example: birdwire approvals show req_01K...
    """
    with saying(as_json=as_json) as say, at_desk(read_settings(config, data)) as desk:
        asked = desk.find(request_id)
        _show(say, desk, asked)
        if asked.is_open and not as_json:
            name = asked.request_id
            say.aside(f"To decide, run: birdwire approvals approve {name}, or deny, edit, link or cancel")


@app.command()
def approve(
    request_id: RequestArgument,
    *,
    payload: PayloadOption = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Approve a write. A running gateway sends it within a second, after it has checked everything again.

    At a terminal, the command shows the write and asks. Without a terminal, --payload is required: it names the payload
    that was shown, so that nothing else is approved.

    Example: birdwire approvals approve req_01K... --payload 6a3f...
    """
    with saying(as_json=as_json) as say, at_desk(read_settings(config, data)) as desk:
        asked = desk.find(request_id)
        if payload is None:
            _check_terminal(asked)
            say.question(*approval_view.lines(asked, desk.now()))
            _confirm("Publish this?" if asked.text is not None else "Do this?")
        approval_view.check_readable(asked)
        row = desk.approve(asked.request_id, payload or asked.payload_sha256)
        result = {"request_id": row.request_id, "state": "approved"}
        until = approval_view.when(row.expires_at, desk.now())
        if not desk.is_served():
            then = f"No gateway is running on this database: it is sent if one starts before {until}."
        else:
            then = f"The gateway sends it now. If X is unavailable, it tries again until {until}."
        say.result(result, f"{row.request_id} is approved. {then}")


@app.command()
def deny(
    request_id: RequestArgument,
    *,
    note: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Reason, which the caller gets. At most 500 characters.")
    ] = None,
    payload: PayloadOption = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Deny a write. For 24 hours, the same call by the same key is refused without asking again.

    Example: birdwire approvals deny req_01K... --note "Not on a Sunday"
    """
    with saying(as_json=as_json) as say, at_desk(read_settings(config, data)) as desk:
        row = desk.deny(desk.find(request_id).request_id, note, payload)
        say.result({"request_id": row.request_id, "state": "denied"}, f"{row.request_id} is denied. Nothing was sent.")


@app.command()
def edit(
    request_id: RequestArgument,
    *,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="New text of the post; - reads it from stdin, without the final line break. Default: open an editor.",
        ),
    ] = None,
    payload: PayloadOption = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change the text of a post that waits. It is checked and priced again, and goes on waiting.

    The post gets a new payload hash, which the next decision must name. Without --text, the command opens the editor of
    VISUAL or EDITOR at a terminal.

    Example: birdwire approvals edit req_01K... --text "Good morning"
    """
    with saying(as_json=as_json) as say, at_desk(read_settings(config, data), seals=True) as desk:
        asked = desk.find(request_id)
        if text is None and not terminal.is_terminal():
            raise Stop(ExitCode.USAGE, "Without a terminal, the new text is required.", "Use --text TEXT, or --text -.")
        if text is None:
            text = terminal.edit_text(asked.text or "")
            if text == asked.text:
                raise Stop(ExitCode.REFUSED, "The text is the same as before. Nothing was changed.")
        elif text == "-":
            text = read_stdin()
        row = desk.edit(asked.request_id, text, payload or asked.payload_sha256)
        changed = desk.find(asked.request_id)
        names = ("request_id", "state", "payload_sha256", "edited_from", "text", "cost_usd", "findings", "expires_at")
        document = approval_view.document(changed)
        say.result({name: document[name] for name in names}, *approval_view.lines(changed, desk.now()))
        if not as_json:
            say.aside(f"Changed. It still waits for a decision: birdwire approvals approve {row.request_id}")


@app.command()
def cancel(
    request_id: RequestArgument, *, config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False
) -> None:
    """Cancel a write that was not sent yet, also one that was approved. Unlike a denial, it can be asked for again.

    Example: birdwire approvals cancel req_01K...
    """
    with saying(as_json=as_json) as say, at_desk(read_settings(config, data)) as desk:
        row = desk.cancel(desk.find(request_id).request_id)
        say.result(
            {"request_id": row.request_id, "state": "cancelled"}, f"{row.request_id} is cancelled. Nothing was sent."
        )


@app.command()
def link(
    request_id: RequestArgument, *, config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False
) -> None:
    """Make a link to a page on which one person can decide on a write, once.

    The page needs no sign-in: anyone who has the link can decide. Send it only to the person who is to decide, and
    never to the agent whose write it is. It ends with the request.

    Example: birdwire approvals link req_01K...
    """
    settings = read_settings(config, data)
    with saying(as_json=as_json) as say, at_desk(settings) as desk:
        asked = desk.find(request_id)
        base = settings.public_url or desk.address()
        if not base:
            raise Stop(
                ExitCode.REFUSED,
                "No gateway is running on this database, so the address of the page is not known.",
                "Start the gateway, or set BIRDWIRE_PUBLIC_URL.",
            )
        token, expires_at = desk.make_link(asked.request_id)
        url = base.rstrip("/") + APPROVE.format(token=token)
        document = {"request_id": asked.request_id, "url": url, "expires_at": rfc3339(expires_at)}
        say.result(document, url)
        say.aside(f"Anyone who has this link can decide, once, until {approval_view.when(expires_at, desk.now())}")
        if not desk.is_served():
            say.aside("No gateway is running on this database, so the page cannot be opened yet.")


@app.command()
def watch(
    *,
    key: Annotated[str | None, typer.Option(metavar="KEY_ID", help="Show only what this API key asks for.")] = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line for each request, and whenever one changes.")
    ] = False,
) -> None:
    """Show the writes that wait for a person as they come, and decide on them.

    At a terminal, single keys decide on the write that is shown: a approves it, e edits its text, d denies it, s skips
    it, q quits. Without a terminal, or with --json, the command prints one JSON object a line until it is stopped: for
    each request that waits, and again whenever its state or its payload changes.

    Example: birdwire approvals watch
    """
    with saying(as_json=as_json) as say, at_desk(read_settings(config, data), seals=True) as desk:
        if as_json or not terminal.is_terminal():
            watch_lines(desk, key)
        else:
            watch_terminal(say, desk, key)


def _show(say: Output, desk: Desk, asked: Asked) -> None:
    if say.as_json:
        say.result(approval_view.document(asked))
    else:
        say.lines(*approval_view.lines(asked, desk.now()))


def _check_terminal(asked: Asked) -> None:
    """Check that a person can answer.

    Raises:
        Stop: nobody can, and the payload was not named.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Stop(
            ExitCode.USAGE,
            "Without a terminal, --payload is required: the hash of the payload that was shown.",
            f"Read the request with `birdwire approvals show {asked.request_id}`, and name the payload that it prints.",
        )


def _confirm(question: str) -> None:
    """Ask a person.

    Raises:
        Stop: the answer is not yes.
    """
    if terminal.ask_line(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise Stop(ExitCode.REFUSED, "Nothing was decided. The request goes on waiting.")
