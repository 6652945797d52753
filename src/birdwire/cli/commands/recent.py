"""`birdwire recent`: lists what was published recently, to review it after a pause."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from birdwire.cli import times
from birdwire.cli.commands.log import MOST, shown
from birdwire.cli.database import opened, operator
from birdwire.cli.inputs import ConfigOption, DataOption, ScopeArgument, read_settings
from birdwire.cli.output import JsonOption, family, saying
from birdwire.gateway.guardrails.policy import ACCOUNT_PREFIX, GATEWAY_SCOPE
from birdwire.gateway.guardrails.registry import Policies
from birdwire.runtime.clock import Clock
from birdwire.store.tables import journal
from birdwire.x.catalog.operations import OPERATIONS, TweetTarget
from birdwire.x.catalog.prices import Prices

if TYPE_CHECKING:
    from datetime import datetime

    from birdwire.settings import Settings
    from birdwire.store.tables.journal import JournalRow

PUBLISHES = ("post_twitter",)
COLUMNS = ("created_at", "request_id", "key_id", "user_id", "about", "delete_cost_usd")

app = family()


@app.command()
def recent(
    scope: ScopeArgument,
    *,
    since: Annotated[
        str, typer.Option(metavar="WHEN", help="List what was published since this age (1h, 2d) or time.")
    ],
    limit: Annotated[int, typer.Option(min=1, max=MOST, metavar="N", help="Maximum number of posts.")] = 200,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the posts that a key, an account or the whole gateway published recently.

    The newest is first. Posts that were deleted through this gateway are not listed. ABOUT is the post's ID for
    `birdwire delete`; X bills each deletion.

    Example: birdwire recent gateway --since 1h
    """
    with saying(as_json=as_json) as say:
        rows = asyncio.run(_rows(read_settings(config, data), scope, times.since(since), limit))
        cost = _deletion_usd()
        documents = [shown(row) | {"delete_cost_usd": cost} for row in rows]
        say.table({"requests": documents}, documents, COLUMNS, "Nothing was published in this time.")


def _deletion_usd() -> float | None:
    """Return what X bills for deleting a post, by its price list."""
    operation = next(row for row in OPERATIONS if row.name == "delete_twitter")
    price = Prices.load().of(operation, TweetTarget(tweet_id="1"))
    return None if price is None else price / 1_000_000


async def _rows(settings: Settings, name: str, since: datetime, limit: int) -> list[JournalRow]:
    async with opened(settings) as database:
        scope = await Policies(database, Clock(), operator()).scope_of(name)
        only = {} if scope == GATEWAY_SCOPE else {"key_id": scope}
        if scope.startswith(ACCOUNT_PREFIX):
            only = {"user_id": scope.removeprefix(ACCOUNT_PREFIX)}
        async with database.read() as connection:
            return await journal.recent(connection, since, PUBLISHES, limit, **only)
