"""Dry runs of writes: ask a gateway what a call would do, print the verdict, and exit with its code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from birdwire.api.paths import API
from birdwire.cli.printable import printable
from birdwire.cli.stop import ExitCode, Stop

if TYPE_CHECKING:
    from birdwire.cli.gateway_client import GatewayClient
    from birdwire.cli.output import Output
    from birdwire.cli.targets import Named

DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show what the call would do. Nothing is sent to X, and nothing is changed.")
]

EXITS = {"allow": ExitCode.OK, "deny": ExitCode.REFUSED, "require_approval": ExitCode.AWAITING}
_VERDICTS = {
    "allow": "Birdwire would send this call to X.",
    "deny": "Birdwire would refuse this call.",
    "require_approval": "A person would have to approve this call.",
}


def ask(gateway: GatewayClient, operation: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the gateway's verdict on an operation.

    Raises:
        Stop: the gateway refused to judge the call, or is unreachable.
    """
    return gateway.ask("POST", f"{API}/dry_run/{operation}", body)


def id_of(named: Named) -> str:
    """Return the id of a target. A dry run sends nothing to X, so it cannot look up a username.

    Raises:
        Stop: the target is a username.
    """
    if named.item_id is None:
        message = f"A dry run sends nothing to X, so it cannot look up the ID of @{named.username}."
        raise Stop(ExitCode.USAGE, message, "Use the user's ID instead.")
    return named.item_id


def finish(say: Output, document: dict[str, Any]) -> NoReturn:
    """Print a verdict and end the command with its exit code: 0 allow, 3 deny, 8 require_approval."""
    would = _object(document.get("would"))
    say.result(document, *lines(would))
    raise typer.Exit(int(EXITS.get(str(would.get("outcome")), ExitCode.UPSTREAM)))


def lines(would: dict[str, Any]) -> list[str]:
    """Describe a verdict for people: the outcome, each refusal and finding, the cost, and the warnings."""
    outcome = str(would.get("outcome"))
    found = [_VERDICTS.get(outcome, f"The outcome is {printable(outcome, 60)}.")]
    found += [f"- {_sentences(one, 'message', 'fix')}" for one in _objects(would.get("refusals"))]
    found += [f"- {_finding(one)}" for one in _objects(would.get("findings"))]
    if isinstance(cost := would.get("cost_usd"), int | float):
        found.append(f"Estimated cost at X: ${cost:.3f}, by X's list of {printable(would.get('listed_on'), 40)}.")
    elif outcome != "deny":
        found.append("X's price list has no price for this call.")
    warnings = would.get("warnings")
    found += [f"Note: {printable(one)}" for one in (warnings if isinstance(warnings, list) else ())]
    return found


def _finding(found: dict[str, Any]) -> str:
    """Describe a finding, such as `caps of key_01K..., version 3 (deny): ...`."""
    names = ("rule", "scope", "version", "outcome")
    rule, scope, version, outcome = (printable(found.get(name), 60) for name in names)
    return f"{rule} of {scope}, version {version} ({outcome}): {_sentences(found, 'message')}"


def _sentences(found: dict[str, Any], *names: str) -> str:
    return " ".join(printable(found[name]) for name in names if found.get(name))


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
