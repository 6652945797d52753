"""`birdwire keys`: manages API keys in the database, also while a gateway runs. Shows a key's secret only once."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import timedelta
from ipaddress import ip_network
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from birdwire.cli.command_line import ACTIONS
from birdwire.cli.database import opened, operator
from birdwire.cli.inputs import read_settings
from birdwire.cli.new_keys import LIFTED, check_preset, create_key
from birdwire.cli.options import AccountOption, ConfigOption, DataOption, JsonOption
from birdwire.cli.output import family, saying
from birdwire.cli.stop import ExitCode, Stop
from birdwire.gateway.guardrails.presets import PRESETS
from birdwire.gateway.guardrails.registry import Policies
from birdwire.keys.registry import Keys
from birdwire.keys.rules import MAX_RPM, MAX_TEXT_LIMIT, TIERS, KeyRules
from birdwire.runtime.clock import Clock, rfc3339

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from datetime import datetime

    from birdwire.keys.registry import Key
    from birdwire.settings import Settings
    from birdwire.store.tables.policies import PolicyRow

Result = TypeVar("Result")
DAY_S = 86_400
MAX_LIFE_S = 100 * 366 * DAY_S

KeyId = Annotated[str, typer.Argument(metavar="KEY_ID", help="ID of the key, from `birdwire keys list`.")]

RpmOption = Annotated[
    int | None,
    typer.Option(min=1, max=MAX_RPM, metavar="N", help="Calls per minute. Without this rule, the tier sets them."),
]
ExpiresOption = Annotated[
    int | None,
    typer.Option(
        min=1, max=MAX_LIFE_S, metavar="SECONDS", help="Seconds until the key expires. Without this rule: never."
    ),
]
ActionsOption = Annotated[
    str | None,
    typer.Option(
        metavar="A,...",
        help="Actions the key may use, such as like,unlike,link. Without this rule: all.",
    ),
]
IpsOption = Annotated[
    str | None,
    typer.Option(
        metavar="CIDR,...", help="IP networks the key may be used from, such as 192.0.2.0/24. Without this rule: any."
    ),
]
ReturnToOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL,...",
        help="Pages that may open after somebody approves a link of this key (return_to). Without this rule: none.",
    ),
]
DailyOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MAX_RPM,
        metavar="N",
        help="Maximum number of writes to X per day (UTC). Without this rule: no limit.",
    ),
]
TextOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MAX_TEXT_LIMIT,
        metavar="N",
        help="Maximum length of a post; raise it for X Premium accounts. Without this rule: 280.",
    ),
]

app = family()


@app.command()
def create(
    *,
    label: Annotated[
        str, typer.Option(metavar="TEXT", help="Name of the app or person that uses the key. Shown on link pages.")
    ],
    tier: Annotated[
        str, typer.Option(metavar="TIER", help=f"Tier, which sets the calls per minute: {', '.join(TIERS)}.")
    ] = "free",
    rpm: RpmOption = None,
    expires_in: ExpiresOption = None,
    actions: ActionsOption = None,
    ips: IpsOption = None,
    return_to: ReturnToOption = None,
    daily_writes: DailyOption = None,
    text_limit: TextOption = None,
    account: AccountOption = None,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"Copy the rules of a preset into the key's policy: {', '.join(PRESETS)}."),
    ] = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create an API key and print it. The key is shown only once.

    A running gateway accepts the key immediately. Allow only what the app needs: the gateway enforces these rules even
    if someone tricks the app or agent into trying something else. For an agent, start from a preset; `birdwire policy
    set` changes its rules later.

    Example: birdwire keys create --label "My agent" --tier starter --actions like,post --daily-writes 50
    """
    with saying(as_json=as_json) as say:
        given = _rules(expires_in, actions, ips, return_to, daily_writes, text_limit, account)
        check_preset(preset, given)
        settings = read_settings(config, data)
        made = create_key(settings, label, tier, rpm, rules=KeyRules(**given), preset=preset)
        key, raw_key = made.key, made.raw_key
        say.result(_created(key, raw_key) | ({} if preset is None else {"preset": preset}), raw_key)
        if not as_json:
            say.aside(f"{key.key_id}: {_terms(key)}. The key will not be shown again.")
            if preset is not None:
                say.aside(f"The preset {preset} applies. {PRESETS[preset].sentence}")
            say.aside(made.stored)


@app.command()
def change(
    key_id: KeyId,
    *,
    label: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Name of the app or person that uses the key.")
    ] = None,
    tier: Annotated[
        str | None,
        typer.Option(metavar="TIER", help=f"Tier, which sets the calls per minute: {', '.join(TIERS)}."),
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
    """Change the label, tier or rules of a key.

    If you omit a rule's option, the rule stays unchanged; --lift removes rules. The key's secret, its link and its
    history stay unchanged, too. The change applies to the next call; with several replicas, it applies on all of them
    within a second.

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
                why = "is also set by another option" if known else f"is not one of {', '.join(LIFTED)}"
                raise Stop(ExitCode.USAGE, f"--lift: {name} {why}.")
            changes[column] = None
        if not changes:
            raise Stop(
                ExitCode.USAGE,
                "There is nothing to change.",
                "Set at least one option; see `birdwire keys change --help`.",
            )
        key = _on(read_settings(config, data), lambda keys: keys.change(key_id, **changes))
        say.result(_row(key), f"{key.key_id}: {_terms(key)}.")


@app.command("list")
def list_(*, config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """List all keys with their labels, limits and rules.

    Shows the last four characters of each key, never the whole key. Revoked keys are listed, too.

    Example: birdwire keys list
    """
    with saying(as_json=as_json) as say:
        found, policies = asyncio.run(_all(read_settings(config, data)))
        rows = [
            _row(key)
            | {"hint": hint, "created_at": rfc3339(key.created_at), "revoked_at": _time(key.revoked_at)}
            | _named(policies.get(key.key_id))
            for key, hint in found
        ]
        shown = [
            row | {"rules": "; ".join(_told(key.rules)) or None} for row, (key, _) in zip(rows, found, strict=True)
        ]
        columns = ("key_id", "label", "mode", "tier", "rpm", "hint", "created_at", "revoked_at")
        none = "There are no keys yet. To create one, run: birdwire keys create --label TEXT"
        say.table({"keys": rows}, shown, (*columns, "preset", "enforcement", "rules"), none)


@app.command()
def rotate(
    key_id: KeyId,
    *,
    overlap: Annotated[
        int,
        typer.Option(
            min=0, max=DAY_S, metavar="SECONDS", help="How long the old key remains valid; 0 revokes it immediately."
        ),
    ] = DAY_S,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace a key's secret and print the new key. The new key is shown only once.

    The linked X account, the rules and the history remain. The old key remains valid for a day, so that you can
    replace it without downtime. If the old key has leaked, use --overlap 0.

    Example: birdwire keys rotate key_01K... --overlap 0
    """
    with saying(as_json=as_json) as say:
        settings = read_settings(config, data)
        key, raw_key = _on(settings, lambda keys: keys.rotate(key_id, timedelta(seconds=overlap)))
        say.result(_created(key, raw_key) | {"old_key_works_s": overlap}, raw_key)
        if not as_json:
            valid = f"The old key remains valid for {overlap} seconds."
            say.aside(valid if overlap else "The old key has been revoked.")


@app.command()
def revoke(key_id: KeyId, *, config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False) -> None:
    """Revoke a key immediately and permanently.

    A running gateway also revokes the tokens of the key's X account within seconds.

    Example: birdwire keys revoke key_01K...
    """
    with saying(as_json=as_json) as say:
        key = _on(read_settings(config, data), lambda keys: keys.revoke(key_id))
        revoked_at = rfc3339(key.revoked_at or Clock().now())
        text = f"{key.key_id} has been revoked."
        say.result({"key_id": key.key_id, "label": key.label, "revoked_at": revoked_at}, text)


def _on(settings: Settings, work: Callable[[Keys], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        async with opened(settings) as database:
            return await work(Keys(database, Clock(), by=operator()))

    return asyncio.run(run())


async def _all(settings: Settings) -> tuple[list[tuple[Key, str]], dict[str, PolicyRow]]:
    async with opened(settings) as database:
        keys = await Keys(database, Clock()).list()
        return keys, await Policies(database, Clock(), operator()).all()


def _named(policy: PolicyRow | None) -> dict[str, object]:
    """Return the preset and the enforcement of a key's own policy."""
    return {"preset": policy and policy.preset, "enforcement": policy and policy.enforcement}


def _created(key: Key, raw_key: str) -> dict[str, object]:
    return {"key_id": key.key_id, "api_key": raw_key, "label": key.label, "tier": key.tier, "rpm": key.rpm}


def _row(key: Key) -> dict[str, object]:
    """Return a key's public data for programs."""
    rules = asdict(key.rules) | {"expires_at": _time(key.rules.expires_at)}
    names = ("key_id", "label", "mode", "tier", "rpm")
    return {name: getattr(key, name) for name in names} | {"rules": rules}


def _terms(key: Key) -> str:
    """Summarize a key's rate limit and rules."""
    return "; ".join([f"{key.rpm} calls per minute", *_told(key.rules)])


def _rules(
    expires_in: int | None,
    actions: str | None,
    ips: str | None,
    return_to: str | None,
    daily_writes: int | None,
    text_limit: int | None,
    account: str | None,
) -> dict[str, Any]:
    """Return the given rules as fields of KeyRules."""
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
    """Split an option's list. An empty item is refused, because an empty rule would mean no restriction."""
    if text is None:
        return ()
    items = tuple(item.strip() for item in text.split(","))
    if not all(items):
        raise Stop(
            ExitCode.USAGE, f"{option} contains an empty item.", f"List one or more values, or leave {option} out."
        )
    return items


def _network(text: str) -> str:
    """Return a network without host bits, such as 127.0.0.0/8 for 127.0.0.1/8; any other text unchanged."""
    try:
        return str(ip_network(text, strict=False)) if "/" in text else text
    # The key's rules report the error.
    except ValueError:
        return text


def _told(rules: KeyRules) -> Iterator[str]:
    """Describe each rule of a key in a few words."""
    if rules.expires_at is not None:
        yield f"until {_time(rules.expires_at)}"
    if rules.actions:
        yield f"only {', '.join(rules.actions)}"
    if rules.ips:
        yield f"from {', '.join(rules.ips)}"
    if rules.daily_writes is not None:
        yield f"{rules.daily_writes} writes per day"
    if rules.text_limit is not None:
        yield f"posts of at most {rules.text_limit} characters"
    if rules.return_to:
        yield f"returns to {', '.join(rules.return_to)}"
    if rules.account_username is not None:
        yield f"as @{rules.account_username} only"


def _time(at: datetime | None) -> str | None:
    return None if at is None else rfc3339(at)
