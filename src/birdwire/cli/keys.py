"""`birdwire keys`: API keys, on the database, beside a running gateway. A key's secret is shown once."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from birdwire.cli.database import opened
from birdwire.cli.say import JsonOption, family, saying
from birdwire.cli.sources import ConfigOption, DataOption, read_settings
from birdwire.clock import Clock, rfc3339
from birdwire.keys import MAX_RPM, TIERS, Keys

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from birdwire.keys import Key
    from birdwire.settings import Settings

Result = TypeVar("Result")
DAY_S = 86_400

KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="As `birdwire keys list` shows it.")]

app = family()


@app.command()
def create(
    *,
    label: Annotated[str, typer.Option(metavar="TEXT", help="Whose key it is; the page after a link shows it.")],
    tier: Annotated[str, typer.Option(metavar="TIER", help=f"Calls a minute: {', '.join(TIERS)}.")] = "free",
    rpm: Annotated[
        int | None, typer.Option(min=1, max=MAX_RPM, metavar="N", help="Its own limit, in place of the tier's.")
    ] = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create an API key and show it, once.

    The key works at once, also on a gateway that runs already.

    Example: birdwire keys create --label "My agent" --tier starter
    """
    with saying(as_json=as_json) as say:
        settings = read_settings(config, data)
        key, raw_key = _on(
            settings, lambda keys: keys.create("test" if settings.issuer == "sandbox" else "live", label, tier, rpm)
        )
        say.result(_created(key, raw_key), raw_key)
        if not as_json:
            say.aside(f"{key.key_id}, {key.rpm} calls a minute. The key is not shown again.")


@app.command("list")
def list_(*, config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """List every key: label, limits, its last four characters, and whether it was revoked. Never a key itself."""
    with saying(as_json=as_json) as say:
        found = _on(read_settings(config, data), lambda keys: keys.list())
        rows = [
            {
                "key_id": key.key_id,
                "label": key.label,
                "mode": key.mode,
                "tier": key.tier,
                "rpm": key.rpm,
                "hint": hint,
                "created_at": rfc3339(key.created_at),
                "revoked_at": None if key.revoked_at is None else rfc3339(key.revoked_at),
            }
            for key, hint in found
        ]
        columns = ("key_id", "label", "mode", "tier", "rpm", "hint", "created_at", "revoked_at")
        say.table({"keys": rows}, columns, "There are no keys yet: birdwire keys create --label LABEL")


@app.command()
def rotate(
    key_id: KeyId,
    *,
    overlap: Annotated[
        int, typer.Option(min=0, max=DAY_S, metavar="SECONDS", help="How long the old key still works; 0 ends it now.")
    ] = DAY_S,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a key a new secret and show it, once. The linked X account, limits and history stay.

    The old key works on for a day, so that nothing breaks meanwhile; if it leaked, use --overlap 0.

    Example: birdwire keys rotate key_01K... --overlap 0
    """
    with saying(as_json=as_json) as say:
        settings = read_settings(config, data)
        key, raw_key = _on(settings, lambda keys: keys.rotate(key_id, timedelta(seconds=overlap)))
        say.result(_created(key, raw_key) | {"old_key_works_s": overlap}, raw_key)
        if not as_json:
            say.aside(f"The old key works for another {overlap} seconds." if overlap else "The old key works no more.")


@app.command()
def revoke(key_id: KeyId, *, config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """End a key at once, for good. A running gateway revokes its X session within seconds.

    Example: birdwire keys revoke key_01K...
    """
    with saying(as_json=as_json) as say:
        key = _on(read_settings(config, data), lambda keys: keys.revoke(key_id))
        revoked_at = rfc3339(key.revoked_at or Clock().now())
        say.result({"key_id": key.key_id, "label": key.label, "revoked_at": revoked_at}, f"{key.key_id} is revoked.")


def _on(settings: Settings, work: Callable[[Keys], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        async with opened(settings) as database:
            return await work(Keys(database, Clock()))

    return asyncio.run(run())


def _created(key: Key, raw_key: str) -> dict[str, object]:
    return {"key_id": key.key_id, "api_key": raw_key, "label": key.label, "tier": key.tier, "rpm": key.rpm}
