"""`birdwire recent`: lists what was published recently, and has it deleted, after a pause."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from birdwire.cli import terminal, times
from birdwire.cli.approval_desk import at_desk
from birdwire.cli.commands.log import MOST, shown
from birdwire.cli.database import opened, operator
from birdwire.cli.inputs import read_settings
from birdwire.cli.options import ConfigOption, DataOption, JsonOption, ScopeArgument
from birdwire.cli.output import Output, family, saying
from birdwire.cli.stop import ExitCode, Stop
from birdwire.gateway.guardrails.policy import ACCOUNT_PREFIX, GATEWAY_SCOPE
from birdwire.gateway.guardrails.registry import Policies
from birdwire.runtime.clock import Clock
from birdwire.store.tables import journal
from birdwire.store.tables.journal import APPLIED, PENDING, STATES, State
from birdwire.x.catalog.operations import OPERATIONS_BY_NAME, TweetTarget
from birdwire.x.catalog.prices import Prices, usd

if TYPE_CHECKING:
    from datetime import datetime

    from birdwire.cli.approval_desk import Desk
    from birdwire.settings import Settings
    from birdwire.store.tables.journal import JournalRow

PUBLISHES = ("post_twitter",)
COLUMNS = ("created_at", "request_id", "key_id", "user_id", "about", "delete_cost_usd")
ORDERED_COLUMNS = ("post_id", "request_id", "state", "reason")

PATIENCE_S = 660.0
"""How long the command waits for the deletions: an order that cannot be carried out expires after 10 minutes."""

POLL_S = 0.5

app = family()


@app.command()
def recent(
    scope: ScopeArgument,
    *,
    since: Annotated[
        str, typer.Option(metavar="WHEN", help="List what was published since this age (1h, 2d) or time.")
    ],
    limit: Annotated[int, typer.Option(min=1, max=MOST, metavar="N", help="Maximum number of posts.")] = 200,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete the listed posts, after a question. A running gateway sends it.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --delete: do not ask.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="With --delete: wait until the posts are deleted, or cannot be.")
    ] = True,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the posts that a key, an account or the whole gateway published recently, and delete them with --delete.

    The newest is first. Posts that were deleted through this gateway are not listed. ABOUT is the post's ID; X bills
    each deletion.

    With --delete, the command shows the posts and the total price, and asks. Then it orders each deletion on the
    record, and a running gateway sends it, also during a pause: no rule of the key and no policy holds it, but it
    counts towards the budgets. An order that cannot be carried out within 10 minutes expires. The exit code is 0 if
    every post was deleted, 3 if one was not, 7 if the outcome of one is unknown, and 8 if the gateway still has to
    send one.

    Example: birdwire recent gateway --since 1h --delete
    """
    with saying(as_json=as_json) as say:
        settings = read_settings(config, data)
        rows = asyncio.run(_rows(settings, scope, times.since(since), limit))
        cost = _deletion_usd()
        documents = [shown(row) | {"delete_cost_usd": cost} for row in rows]
        result: dict[str, Any] = {"requests": documents}
        if not delete:
            say.table(result, documents, COLUMNS, "Nothing was published in this time.")
            return
        if not as_json:
            say.table(result, documents, COLUMNS, "Nothing was published in this time, so there is nothing to delete.")
        ordered = _delete(say, settings, rows, cost, ask=not yes, wait=wait) if rows else []
        if rows:
            say.table(result | {"ordered": ordered}, ordered, ORDERED_COLUMNS, "")
        elif as_json:
            say.result(result | {"ordered": []})
        code = _exit_code(ordered)
        if code:
            raise typer.Exit(int(code))


def _delete(
    say: Output, settings: Settings, rows: list[JournalRow], cost: float | None, *, ask: bool, wait: bool
) -> list[dict[str, Any]]:
    """Order the deletion of posts, and return what became of each.

    Raises:
        Stop: a person did not agree, or cannot be asked.
    """
    price = "an unknown price" if cost is None else f"${cost * len(rows):.3f}, by X's price list"
    many = f"{len(rows)} post{'s' * (len(rows) != 1)}"
    with at_desk(settings, seals=True) as desk:
        runs = desk.is_served()
        if not runs:
            say.question(
                "No gateway is running on this database. The posts are deleted only if one starts within 10 minutes."
            )
        if ask:
            _agree(say, f"Delete {many} for {price}?")
        posts = {desk.order_deletion(row): str(row.x_id) for row in rows}
        say.question(f"Ordered the deletion of {many}.")
        states = _ends(say, desk, posts) if wait and runs else desk.states(list(posts))
    return [_ordered(request_id, post_id, states.get(request_id)) for request_id, post_id in posts.items()]


def _agree(say: Output, question: str) -> None:
    """Ask a person.

    Raises:
        Stop: nobody can be asked, or the answer is not yes.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Stop(ExitCode.USAGE, "Without a terminal, --delete requires --yes. Nothing was deleted.", "Add --yes.")
    say.question("A deletion cannot be undone.")
    if terminal.ask_line(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise Stop(ExitCode.REFUSED, "Nothing was deleted.")


def _ends(say: Output, desk: Desk, posts: dict[str, str]) -> dict[str, JournalRow]:
    """Wait until no order is open any more, or the time is over; return the rows of the orders."""
    deadline = time.monotonic() + PATIENCE_S
    with say.waiting(f"Deleting {len(posts)} posts. Ctrl-C stops the waiting, not the deletions"):
        try:
            states = desk.states(list(posts))
            while (
                pending := [name for name, row in states.items() if row.state in PENDING]
            ) and deadline > time.monotonic():
                time.sleep(POLL_S)
                states |= desk.states(pending)
        except KeyboardInterrupt:
            states = desk.states(list(posts))
    return states


def _ordered(request_id: str, post_id: str, row: JournalRow | None) -> dict[str, Any]:
    state, reason = (None, None) if row is None else (row.state, row.reason)
    return {"request_id": request_id, "post_id": post_id, "state": state, "reason": reason}


def _exit_code(ordered: list[dict[str, Any]]) -> ExitCode:
    """Return the exit code of the worst outcome: not deleted, then unknown, then not sent yet."""
    states = {one["state"] for one in ordered}
    if states <= APPLIED:
        return ExitCode.OK
    if any(state not in STATES or STATES[state].final for state in states - APPLIED):
        return ExitCode.REFUSED
    return ExitCode.UNKNOWN if State.UNKNOWN in states else ExitCode.AWAITING


def _deletion_usd() -> float | None:
    """Return what X bills for deleting a post, by its price list."""
    operation = OPERATIONS_BY_NAME[journal.DELETION]
    return usd(Prices.load().of(operation, TweetTarget(tweet_id="1")))


async def _rows(settings: Settings, name: str, since: datetime, limit: int) -> list[JournalRow]:
    async with opened(settings) as database:
        scope = await Policies(database, Clock(), operator()).scope_of(name)
        only = {} if scope == GATEWAY_SCOPE else {"key_id": scope}
        if scope.startswith(ACCOUNT_PREFIX):
            only = {"user_id": scope.removeprefix(ACCOUNT_PREFIX)}
        async with database.read() as connection:
            return await journal.recent(connection, since, PUBLISHES, limit, **only)
