"""`birdwire pause` and `birdwire resume`: the kill switch for a key, an account or the whole gateway."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from birdwire.cli import times
from birdwire.cli.database import opened, operator
from birdwire.cli.inputs import read_settings
from birdwire.cli.options import ConfigOption, DataOption, JsonOption, ScopeArgument
from birdwire.cli.output import family, saying
from birdwire.cli.printable import printable
from birdwire.gateway.guardrails.pauses import document
from birdwire.gateway.guardrails.policy import GATEWAY_SCOPE
from birdwire.gateway.guardrails.registry import Policies
from birdwire.runtime.clock import Clock

if TYPE_CHECKING:
    from datetime import datetime

    from birdwire.settings import Settings
    from birdwire.store.tables.pauses import PauseRow

app = family()


@app.command()
def pause(
    scope: ScopeArgument,
    *,
    why: Annotated[str, typer.Option(metavar="TEXT", help="Reason, which refused callers and `auth/status` show.")],
    until: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            help="End of the pause: a delay (30m, 2d) or a time (2026-09-22T10:00Z). Default: until `birdwire resume`.",
        ),
    ] = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop the writes, uploads, lookups and new links of a key, an account or the whole gateway.

    Running gateways stop within a second, also calls that are waiting or about to be repeated. A call that X has
    already received cannot be stopped. `auth/status`, `requests/` and unlinking continue to work, and so do token
    renewals and the search for lost posts.

    `birdwire recent SCOPE --since 1h` lists what was published. `birdwire resume SCOPE` ends the pause.

    Example: birdwire pause gateway --why "The agent was tricked" --until 2h
    """
    with saying(as_json=as_json) as say:
        ends = None if until is None else times.until(until)
        row = asyncio.run(_pause(read_settings(config, data), scope, why, ends))
        paused = document(row)
        end = "" if paused["until"] is None else f" until {paused['until']}"
        say.result({"paused": paused}, printable(f"{_called(scope, row.scope)} is paused{end}: {row.why}", 700))


@app.command()
def resume(
    scope: ScopeArgument, *, config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False
) -> None:
    """End a pause.

    The command ends the pause of an operator, and one that a `trip` rule started. A pause that the account's owner
    started can only be ended by the owner.

    Example: birdwire resume gateway
    """
    with saying(as_json=as_json) as say:
        resumed, lifted, rest = asyncio.run(_resume(read_settings(config, data), scope))
        called = _called(scope, resumed)
        lines = [f"{called} is no longer paused." if lifted else f"{called} was not paused by an operator."]
        lines += [f"The account's owner has also paused it: {printable(row.why, 500)}" for row in rest]
        say.result({"resumed": {"scope": resumed}}, *lines)


def _called(name: str, scope: str) -> str:
    """Return a scope as it starts a sentence, by the name that the operator gave."""
    if scope == GATEWAY_SCOPE:
        return "The gateway"
    return scope if name == scope else f"{name} ({scope})"


async def _pause(settings: Settings, name: str, why: str, until: datetime | None) -> PauseRow:
    async with opened(settings) as database:
        registry = Policies(database, Clock(), operator())
        return await registry.pause(await registry.scope_of(name), why, until)


async def _resume(settings: Settings, name: str) -> tuple[str, Any, list[PauseRow]]:
    async with opened(settings) as database:
        registry = Policies(database, Clock(), operator())
        scope = await registry.scope_of(name)
        return scope, *await registry.resume(scope)
