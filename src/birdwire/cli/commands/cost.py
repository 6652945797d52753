"""`birdwire cost`: shows what calls to X have cost, by X's price list."""

from __future__ import annotations

import asyncio
import csv
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from birdwire.cli import times
from birdwire.cli.database import opened
from birdwire.cli.inputs import read_settings
from birdwire.cli.options import ConfigOption, DataOption, JsonOption
from birdwire.cli.output import family, saying
from birdwire.cli.stop import ExitCode, Stop
from birdwire.runtime.clock import rfc3339
from birdwire.store.tables import costs
from birdwire.x.catalog.prices import Prices, usd

if TYPE_CHECKING:
    from datetime import datetime

    from birdwire.settings import Settings
    from birdwire.store.tables.costs import CostRow

COLUMNS = ("by", "name", "writes", "reads", "used")


class By(StrEnum):
    """What costs are added up by."""

    KEY = "key"
    ACCOUNT = "account"
    OPERATION = "operation"
    DAY = "day"


app = family()


@app.command()
def cost(
    *,
    by: Annotated[By, typer.Option(help="Add up by API key, X account (user ID), operation or day (UTC).")] = By.KEY,
    since: Annotated[str, typer.Option(metavar="WHEN", help="Start at this age (30d, 24h) or time.")] = "30d",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the rows as CSV.")] = False,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the estimated cost of calls to X.

    The sums are in US dollars. They come from the journal and from X's price list, and X's own bill may differ. A write
    counts if X carried it out or may have. Lookups are counted, by whole days, only for keys to which a policy applies.
    Writes without a listed price count as 0.

    Example: birdwire cost --by operation --since 7d
    """
    with saying(as_json=as_json) as say:
        if as_csv and as_json:
            raise Stop(ExitCode.USAGE, "--csv and --json are mutually exclusive.", "Use one of them.")
        start = times.since(since)
        found = asyncio.run(_costs(read_settings(config, data), by, start))
        rows = [
            {"by": by.value, "name": row.name, "writes": row.writes, "reads": row.reads, "used": usd(row.microusd)}
            for row in found
        ]
        if as_csv:
            table = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
            return
        used = usd(sum(row.microusd for row in found))
        document = {"currency": "USD", "since": rfc3339(start), "used": used, "rows": rows}
        say.table(document, rows, COLUMNS, "There were no calls in this time.")
        if not as_json:
            say.aside(f"${used:.3f} since {rfc3339(start)}, by X's price list of {Prices.load().listed_on}.")


async def _costs(settings: Settings, by: By, since: datetime) -> list[CostRow]:
    async with opened(settings) as database, database.read() as connection:
        return await costs.rows(connection, by.value, since)
