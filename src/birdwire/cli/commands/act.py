"""`birdwire like` and similar commands: one for each row of OPERATIONS that takes a single post or user."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from birdwire.cli.command_line import OFFERED, name_of
from birdwire.cli.dry_run import DryRunOption, ask, finish, id_of
from birdwire.cli.gateway_client import GatewayClient, data_of
from birdwire.cli.inputs import DEFAULT_URL, gateway_url, read_key
from birdwire.cli.options import JsonOption, KeyFileOption
from birdwire.cli.output import family, saying
from birdwire.cli.printable import printable
from birdwire.cli.targets import POST, USER
from birdwire.cli.waiting import WaitOption, patience_s, send

if TYPE_CHECKING:
    from collections.abc import Callable

    from birdwire.x.catalog.operations import Operation


def _outcome(shown: str, document: dict[str, Any]) -> str:
    """Describe the outcome, such as `1346889436626259968: liked`, or `no longer liked` if the values are false."""
    data = {name: value for name, value in data_of(document).items() if value is not None}
    words = [name for name, value in data.items() if value] or [f"no longer {name}" for name in data]
    return printable(f"{shown}: {', '.join(words).replace('_', ' ')}")


def _command(operation: Operation) -> Callable[..., None]:
    kind = POST if operation.about == "tweet" else USER

    def act(
        target: str,
        *,
        wait: WaitOption = None,
        dry_run: DryRunOption = False,
        api_key_file: KeyFileOption = None,
        as_json: JsonOption = False,
    ) -> None:
        with saying(as_json=as_json) as say:
            named = kind.named(target)
            tried, wait_s = id_of(named) if dry_run else "", patience_s(wait)
            gateway = GatewayClient(gateway_url(), read_key(api_key_file))
            if dry_run:
                finish(say, ask(gateway, operation.name, {operation.target: tried}))
            item_id = named.find(gateway)
            document = send(say, gateway, operation.name, {operation.target: item_id}, wait_s=wait_s)
            say.result(document, _outcome(named.shown(item_id), document))

    act.__annotations__["target"] = kind.argument
    act.__doc__ = f"""{operation.summary}.

    Birdwire acts as the X account that is linked to the API key. The command calls the gateway at BIRDWIRE_URL
    (default: {DEFAULT_URL}). Exit code 8 means that a person must approve the call first (--wait).

    Example: birdwire {name_of(operation)} {kind.example}
    """
    return act


app = family()
for _operation in OFFERED:
    app.command(name_of(_operation))(_command(_operation))
