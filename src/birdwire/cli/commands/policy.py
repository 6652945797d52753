"""`birdwire policy`: shows and sets what keys, accounts and the gateway may do, and rehearses it on past writes."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from birdwire.api.body import parse
from birdwire.api.errors import GatewayError, describe
from birdwire.cli import dry_run, times
from birdwire.cli.command_line import ACTIONS
from birdwire.cli.database import opened, operator, refusals
from birdwire.cli.inputs import read_settings
from birdwire.cli.options import ConfigOption, DataOption, JsonOption, ScopeArgument
from birdwire.cli.output import Output, family, saying
from birdwire.cli.printable import printable
from birdwire.cli.stop import ExitCode, Stop
from birdwire.gateway.guardrails.policy import PolicyError, sentences
from birdwire.gateway.guardrails.presets import PRESETS
from birdwire.gateway.guardrails.registry import Policies, Standing
from birdwire.gateway.guardrails.rehearsal import Rehearsal, Report
from birdwire.gateway.guardrails.rules import RULES, parse_shorthand
from birdwire.runtime.clock import Clock
from birdwire.startup import open_vault
from birdwire.store.encryption.vault import VaultError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from birdwire.settings import Settings

Result = TypeVar("Result")
MAX_JSON_BYTES = 65_536
DEFAULT_PERIOD = "7d"
REPLACE = "Upgrade Birdwire, or replace all its rules with `birdwire policy set SCOPE -`."

KeyArgument = Annotated[str, typer.Argument(metavar="KEY_ID", help="ID of the key, from `birdwire keys list`.")]
IfVersionOption = Annotated[
    int | None,
    typer.Option(
        "--if-version",
        min=0,
        metavar="N",
        help="Change the policy only if it still has this version; 0: it never had one.",
    ),
]
_WORDED = (f"- `{rule.name}`: {rule.sentence} Example: `{rule.shorthand}`. In JSON: `{rule.form}`." for rule in RULES)
RULES_HELP = "\n".join(("Rules:\n", *_WORDED))

app = family()


@app.command()
def show(
    scope: ScopeArgument, *, config: ConfigOption = None, data: DataOption = None, as_json: JsonOption = False
) -> None:
    """Show the rules of a key, an account or the gateway, and the rules that apply to it in addition.

    For a key, the rules of its account and of the gateway apply as well. The strictest finding wins.

    Example: birdwire policy show key_01K...
    """
    with saying(as_json=as_json) as say:

        async def work(registry: Policies) -> Standing:
            return await registry.show(await registry.scope_of(scope))

        _show(say, _on(read_settings(config, data), work))


@app.command("set", epilog=RULES_HELP)
def set_(
    scope: ScopeArgument,
    rules: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RULE=VALUE]...",
            help="Rules to set; an empty VALUE removes the rule. `-` reads all rules as a JSON object from stdin.",
        ),
    ] = None,
    *,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"Start from the rules of a preset: {', '.join(PRESETS)}."),
    ] = None,
    enforcement: Annotated[
        str | None,
        typer.Option(
            metavar="MODE", help="`enforce`, or `shadow`: record what the key's rules would refuse, and obey nothing."
        ),
    ] = None,
    if_version: IfVersionOption = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set rules of a key, an account or the gateway.

    The command changes only the rules that you name. With `-` or --preset, it replaces all rules of the policy; it
    never lifts rules of the key itself (`birdwire keys change --lift`). Running gateways obey the new rules with the
    next call, on all replicas within a second.

    - Members of a rule can be set one by one: `caps.post_twitter=3/h,12/d`, `words.deny=giveaway,airdrop`
    - Several values: `approve=post_twitter,delete_twitter`. They replace the earlier ones
    - All rules from a file: `birdwire policy set key_01K... - < rules.json`

    Example: birdwire policy set key_01K... caps.post_twitter=3/h,12/d links=approve budget.day_usd=2
    """
    with saying(as_json=as_json) as say:
        if not rules and preset is None and enforcement is None:
            raise Stop(ExitCode.USAGE, "There is nothing to set.", "See `birdwire policy set --help`.")
        replace = None
        if rules and "-" in rules:
            if len(rules) > 1 or preset is not None:
                raise Stop(ExitCode.USAGE, "`-` replaces all rules, so it excludes RULE=VALUE and --preset.")
            replace, rules = _stdin(), None
        with refusals():
            changes = [change for text in rules or () for change in parse_shorthand(text)]

        async def work(registry: Policies) -> Standing:
            return await registry.set(
                await registry.scope_of(scope),
                changes,
                replace=replace,
                preset=preset,
                enforcement=enforcement,
                if_version=if_version,
            )

        _show(say, _on(read_settings(config, data), work))


@app.command()
def unset(
    scope: ScopeArgument,
    rules: Annotated[
        list[str] | None, typer.Argument(metavar="[RULE]...", help="Names of rules to remove. Default: all.")
    ] = None,
    *,
    if_version: IfVersionOption = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove rules of a key, an account or the gateway.

    Earlier versions of the policy remain in the database, and `birdwire log --acts` lists the changes.

    Example: birdwire policy unset key_01K... quiet_hours
    """
    with saying(as_json=as_json) as say:

        async def work(registry: Policies) -> Standing:
            return await registry.unset(await registry.scope_of(scope), rules or (), if_version=if_version)

        _show(say, _on(read_settings(config, data), work))


@app.command("test")
def try_(
    key_id: KeyArgument,
    operation: Annotated[
        str, typer.Argument(metavar="OPERATION", help="Operation to try, such as post_twitter or like.")
    ],
    *,
    text: Annotated[str | None, typer.Option(metavar="TEXT", help="Text of the post.")] = None,
    body: Annotated[
        str | None, typer.Option(metavar="JSON", help="Fields of the call, as the API takes them; - reads stdin.")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="When the call would be made: a time of day on this machine (23:30), or a time "
            "(2026-09-22T10:00Z). Default: now.",
        ),
    ] = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what the rules of a key would decide about a call.

    Works on the database and needs no running gateway. Sends nothing, and counts nothing. The exit code is 0 if the
    call would be allowed, 3 if it would be refused, and 8 if a person would have to approve it. To try a call with all
    checks of a running gateway, use --dry-run of the command itself, such as `birdwire post --dry-run`.

    Example: birdwire policy test key_01K... post_twitter --text "Hello https://example.org" --at 23:30
    """
    with saying(as_json=as_json) as say:
        name = ACTIONS.get(operation, operation)
        if name not in ACTIONS.values():
            message = f"{printable(operation, 60)!r} is not a valid operation."
            raise Stop(ExitCode.USAGE, message, f"Use one of: {', '.join(dict.fromkeys(ACTIONS.values()))}")
        fields = {} if body is None else _stdin() if body == "-" else _parsed(body.encode("utf-8", "surrogatepass"))
        fields |= {} if text is None else {"text": text}
        moment = Clock().now() if at is None else times.at(at)
        settings = read_settings(config, data)
        would = _rehearse(settings, lambda rehearsal: rehearsal.test(key_id, name, fields, moment))
        dry_run.finish(say, {"would": would})


@app.command()
def report(
    key_id: KeyArgument,
    *,
    since: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Count what shadow mode found since this age (7d) or time. Default: 7d."),
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Evaluate the key's writes since this age or time against the rules."),
    ] = None,
    rules: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="With --replay: evaluate these rules of the key (JSON; - reads stdin)."),
    ] = None,
    config: ConfigOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count what the rules of a key found, or would have found.

    Without --replay, the command counts what was found while the key's policy was in shadow mode. With --replay, it
    evaluates the writes that the journal has of the key against the present rules, or against those in FILE, and
    simulates caps, gaps, budgets and repeated texts in the order of the writes. Texts are those that X stored.

    Example: birdwire policy report key_01K... --replay 7d --rules rules.json
    """
    with saying(as_json=as_json) as say:
        if replay is None and rules is not None:
            raise Stop(ExitCode.USAGE, "--rules requires --replay.", f"Add --replay {DEFAULT_PERIOD}.")
        if replay is not None and since is not None:
            raise Stop(ExitCode.USAGE, "--since and --replay are mutually exclusive.", "Use one of them.")
        proposed = None if rules is None else _stdin() if rules == "-" else _file(rules)
        start, settings = times.since(replay or since or DEFAULT_PERIOD), read_settings(config, data)

        async def work(rehearsal: Rehearsal) -> Report:
            if replay is None:
                return await rehearsal.report(key_id, start)
            return await rehearsal.replay(key_id, start, proposed)

        _report(say, _rehearse(settings, work), replayed=replay is not None)


def _show(say: Output, standing: Standing) -> None:
    """Print the policies that apply to a scope: the rules as JSON for programs, and as sentences for people."""
    document = standing.document()
    if standing.own is None:
        lines = [f"{standing.scope} has no rules of its own."]
    else:
        named = f", from the preset {standing.own.preset}" if standing.own.preset else ""
        lines = [f"{standing.scope}: version {standing.own.version}, {standing.own.enforcement}{named}"]
    names = ["rules"]
    # The rules of an account, or of the gateway, are its own.
    if standing.scope != "gateway":
        names += ["gateway_rules"] if standing.scope.startswith("account:") else ["account_rules", "gateway_rules"]
    for name in names:
        title = "" if name == "rules" else f"{name.removesuffix('_rules')} "
        lines += [f"  {title}{rule}: {json.dumps(value)}" for rule, value in document[name].items()]
    try:
        lines += [f"- {sentence}" for sentence in sentences(standing.read())]
    except PolicyError as error:
        lines += [
            str(error),
            f"Until it can be read, Birdwire refuses every write and lookup to which it applies. {REPLACE}",
        ]
    say.result(document, *(printable(line, 4_000) for line in lines))


def _report(say: Output, report: Report, *, replayed: bool) -> None:
    columns = ("rule", "outcome", "count", "examples")
    rows = [row | {"examples": ", ".join(row["examples"])} for row in report.document["rows"]]
    found = "would have found nothing" if replayed else "found nothing"
    say.table(report.document, rows, columns, f"The rules {found} in {report.writes} writes.")
    if not say.as_json:
        say.aside(f"{report.writes} writes since {report.document['since']}; {report.not_judged} could not be judged.")


def _stdin() -> dict[str, Any]:
    return _parsed(sys.stdin.buffer.read(MAX_JSON_BYTES + 1))


def _file(name: str) -> dict[str, Any]:
    try:
        with Path(name).open("rb") as file:
            return _parsed(file.read(MAX_JSON_BYTES + 1))
    except OSError as error:
        raise Stop(ExitCode.USAGE, f"Cannot read {printable(name, 200)}: {error.strerror}.") from None


def _parsed(raw: bytes) -> dict[str, Any]:
    """Parse a JSON object as strictly as the API does.

    Raises:
        Stop: it is too long, or is not such an object.
    """
    if len(raw) > MAX_JSON_BYTES:
        raise Stop(ExitCode.USAGE, f"The JSON is too long: at most {MAX_JSON_BYTES:,} bytes are allowed.")
    try:
        return parse(raw)
    except GatewayError as error:
        raise Stop(ExitCode.USAGE, describe(error)[0].replace("The body", "The input")) from None


def _on(settings: Settings, work: Callable[[Policies], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        async with opened(settings) as database:
            return await work(Policies(database, Clock(), operator()))

    return asyncio.run(run())


def _rehearse(settings: Settings, work: Callable[[Rehearsal], Awaitable[Result]]) -> Result:
    """Run a rehearsal on the database; without a vault key, texts that only it can decrypt are not judged."""
    try:
        vault = open_vault(settings)
    except VaultError:
        vault = None

    async def run() -> Result:
        async with opened(settings) as database:
            return await work(Rehearsal(database, vault))

    return asyncio.run(run())
