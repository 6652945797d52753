"""`birdwire keys`: API keys, on the database, beside a running gateway. A key's secret is shown once."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import timedelta
from ipaddress import ip_network
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from birdwire.cli import ACTIONS
from birdwire.cli.database import opened, operator
from birdwire.cli.inputs import ConfigOption, DataOption, read_settings
from birdwire.cli.output import ExitCode, JsonOption, Stop, family, saying
from birdwire.keys.registry import Keys
from birdwire.keys.rules import MAX_RPM, MAX_TEXT_LIMIT, TIERS, KeyRules
from birdwire.runtime.clock import Clock, rfc3339
from birdwire.store.database import file_of, place_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from datetime import datetime

    from birdwire.keys.registry import Key
    from birdwire.settings import Settings

Result = TypeVar("Result")
DAY_S = 86_400
MAX_LIFE_S = 100 * 366 * DAY_S

KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="As shown by `birdwire keys list`.")]

RpmOption = Annotated[
    int | None, typer.Option(min=1, max=MAX_RPM, metavar="N", help="Calls per minute, instead of the tier's.")
]
ExpiresOption = Annotated[
    int | None, typer.Option(min=1, max=MAX_LIFE_S, metavar="SECONDS", help="Seconds until the key expires.")
]
ActionsOption = Annotated[
    str | None,
    typer.Option(
        metavar="A,...",
        help="Actions the key may use, such as like,unlike,link. Default: all.",
    ),
]
IpsOption = Annotated[
    str | None,
    typer.Option(metavar="CIDR,...", help="Networks the key may be used from, such as 192.0.2.0/24. Default: any."),
]
ReturnToOption = Annotated[
    str | None, typer.Option(metavar="URL,...", help="Pages that may be named as return_to. Default: none.")
]
DailyOption = Annotated[
    int | None, typer.Option(min=1, max=MAX_RPM, metavar="N", help="Maximum number of writes per day (UTC).")
]
TextOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MAX_TEXT_LIMIT,
        metavar="N",
        help="Maximum length of a post. X allows Premium accounts more than 280.",
    ),
]

AccountOption = Annotated[
    str | None, typer.Option(metavar="USERNAME", help="X account the key may act as, such as @ada. Default: any.")
]

LIFTED = {
    "rpm": "rpm",
    "expires-in": "expires_at",
    "actions": "actions",
    "ips": "ips",
    "return-to": "return_to",
    "daily-writes": "daily_writes",
    "text-limit": "text_limit",
    "account": "account_username",
}
"""What `change --lift` removes: a rule as its option names it -> as `birdwire log --acts` does. Both are accepted."""

app = family()


@app.command()
def create(
    *,
    label: Annotated[str, typer.Option(metavar="TEXT", help="Whose key it is; the page after a link shows it.")],
    tier: Annotated[
        str, typer.Option(metavar="TIER", help=f"Tier of the key, which sets its calls per minute: {', '.join(TIERS)}.")
    ] = "free",
    rpm: RpmOption = None,
    expires_in: ExpiresOption = None,
    actions: ActionsOption = None,
    ips: IpsOption = None,
    return_to: ReturnToOption = None,
    daily_writes: DailyOption = None,
    text_limit: TextOption = None,
    account: AccountOption = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create an API key and show it, once.

    The key works immediately, also on a running gateway. Give it no more than its app needs: its rules hold even if
    somebody talks the app into something else.

    Example: birdwire keys create --label "My agent" --tier starter --actions like,post --daily-writes 50
    """
    with saying(as_json=as_json) as say:
        rules = KeyRules(**_rules(expires_in, actions, ips, return_to, daily_writes, text_limit, account))
        settings = read_settings(config, data)
        file = file_of(settings.database_url)
        new = file is not None and not file.exists()
        key, raw_key = _on(settings, lambda keys: keys.create(settings.mode, label, tier, rpm, rules=rules), new=True)
        say.result(_created(key, raw_key), raw_key)
        if not as_json:
            say.aside(f"{key.key_id}, {_terms(key)}. The key is not shown again.")
            made = "which was created just now. Only a gateway on this database accepts it" if new else ""
            say.aside(f"It is in the database {place_of(settings.database_url)}{made and f', {made}'}.")


@app.command()
def change(
    key_id: KeyId,
    *,
    label: Annotated[str | None, typer.Option(metavar="TEXT", help="Whose key it is.")] = None,
    tier: Annotated[
        str | None,
        typer.Option(metavar="TIER", help=f"Tier of the key, which sets its calls per minute: {', '.join(TIERS)}."),
    ] = None,
    rpm: RpmOption = None,
    expires_in: ExpiresOption = None,
    actions: ActionsOption = None,
    ips: IpsOption = None,
    return_to: ReturnToOption = None,
    daily_writes: DailyOption = None,
    text_limit: TextOption = None,
    account: AccountOption = None,
    lift: Annotated[str | None, typer.Option(metavar="RULE,...", help=f"Rules to remove: {', '.join(LIFTED)}.")] = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change the rules that are named. Other rules, the key itself, its link and its history stay.

    The change applies from the next call on; with several replicas, everywhere within a second.

    Example: birdwire keys change key_01K... --actions like,unlike --lift daily-writes
    """
    with saying(as_json=as_json) as say:
        named = {"label": label, "tier": tier, "rpm": rpm}
        changes: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
        changes |= _rules(expires_in, actions, ips, return_to, daily_writes, text_limit, account)
        for name in _listed("--lift", lift):
            column = LIFTED.get(name, name)
            known = column in LIFTED.values()
            if not known or column in changes:
                why = "is both set and lifted" if known else f"is not one of {', '.join(LIFTED)}"
                raise Stop(ExitCode.USAGE, f"--lift {name}: it {why}.")
            changes[column] = None
        if not changes:
            raise Stop(ExitCode.USAGE, "There is nothing to change.", "Name a rule to change; see --help.")
        key = _on(read_settings(config, data), lambda keys: keys.change(key_id, **changes))
        say.result(_row(key), f"{key.key_id}: {_terms(key)}.")


@app.command("list")
def list_(*, config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """List every key: label, limits, rules, last four characters, and whether it was revoked. Never a key itself."""
    with saying(as_json=as_json) as say:
        found = _on(read_settings(config, data), lambda keys: keys.list())
        rows = [
            _row(key) | {"hint": hint, "created_at": rfc3339(key.created_at), "revoked_at": _time(key.revoked_at)}
            for key, hint in found
        ]
        told = [row | {"rules": "; ".join(_told(key.rules)) or None} for row, (key, _) in zip(rows, found, strict=True)]
        columns = ("key_id", "label", "mode", "tier", "rpm", "hint", "created_at", "revoked_at", "rules")
        say.table({"keys": rows}, told, columns, "There are no keys yet: birdwire keys create --label LABEL")


@app.command()
def rotate(
    key_id: KeyId,
    *,
    overlap: Annotated[
        int,
        typer.Option(
            min=0, max=DAY_S, metavar="SECONDS", help="How long the old key still works; 0 revokes it immediately."
        ),
    ] = DAY_S,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a key a new secret and show it, once. The linked X account, limits and history stay.

    The old key keeps working for a day, so that nothing breaks meanwhile; if it leaked, use --overlap 0.

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
    """Revoke a key immediately and for good. A running gateway revokes its X session within seconds.

    Example: birdwire keys revoke key_01K...
    """
    with saying(as_json=as_json) as say:
        key = _on(read_settings(config, data), lambda keys: keys.revoke(key_id))
        revoked_at = rfc3339(key.revoked_at or Clock().now())
        say.result({"key_id": key.key_id, "label": key.label, "revoked_at": revoked_at}, f"{key.key_id} is revoked.")


def _on(settings: Settings, work: Callable[[Keys], Awaitable[Result]], *, new: bool = False) -> Result:
    async def run() -> Result:
        async with opened(settings, new=new) as database:
            return await work(Keys(database, Clock(), by=operator()))

    return asyncio.run(run())


def _created(key: Key, raw_key: str) -> dict[str, object]:
    return {"key_id": key.key_id, "api_key": raw_key, "label": key.label, "tier": key.tier, "rpm": key.rpm}


def _row(key: Key) -> dict[str, object]:
    """A key for programs, without anything secret."""
    rules = asdict(key.rules) | {"expires_at": _time(key.rules.expires_at)}
    names = ("key_id", "label", "mode", "tier", "rpm")
    return {name: getattr(key, name) for name in names} | {"rules": rules}


def _terms(key: Key) -> str:
    """A key's limit and rules in a few words."""
    return "; ".join([f"{key.rpm} calls a minute", *_told(key.rules)])


def _rules(
    expires_in: int | None,
    actions: str | None,
    ips: str | None,
    return_to: str | None,
    daily_writes: int | None,
    text_limit: int | None,
    account: str | None,
) -> dict[str, Any]:
    """The rules that were named, as KeyRules has them."""
    named = {
        "expires_at": None if expires_in is None else Clock().now() + timedelta(seconds=expires_in),
        "actions": tuple(ACTIONS.get(name, name) for name in _listed("--actions", actions)),
        "ips": tuple(_network(item) for item in _listed("--ips", ips)),
        "return_to": _listed("--return-to", return_to),
        "daily_writes": daily_writes,
        "text_limit": text_limit,
        "account_username": None if account is None else account.removeprefix("@"),
    }
    return {name: value for name, value in named.items() if value not in (None, ())}


def _listed(option: str, text: str | None) -> tuple[str, ...]:
    """The items of a list, none if the option is absent. An empty one is refused: no rule would mean no bound."""
    if text is None:
        return ()
    items = tuple(item.strip() for item in text.split(","))
    if not all(items):
        raise Stop(ExitCode.USAGE, f"{option} has an empty item.", f"Name one or more, or leave {option} out.")
    return items


def _network(text: str) -> str:
    """Return a network without the bits of a host in it, such as 127.0.0.0/8 for 127.0.0.1/8; all else as it is."""
    try:
        return str(ip_network(text, strict=False)) if "/" in text else text
    except ValueError:  # which the rules refuse
        return text


def _told(rules: KeyRules) -> Iterator[str]:
    """What holds for a key, a few words each."""
    if rules.expires_at is not None:
        yield f"until {_time(rules.expires_at)}"
    if rules.actions:
        yield f"only {', '.join(rules.actions)}"
    if rules.ips:
        yield f"from {', '.join(rules.ips)}"
    if rules.daily_writes is not None:
        yield f"{rules.daily_writes} writes a day"
    if rules.text_limit is not None:
        yield f"posts of {rules.text_limit}"
    if rules.return_to:
        yield f"returns to {', '.join(rules.return_to)}"
    if rules.account_username is not None:
        yield f"as @{rules.account_username} only"


def _time(at: datetime | None) -> str | None:
    return None if at is None else rfc3339(at)
