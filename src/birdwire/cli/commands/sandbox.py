"""`birdwire sandbox` and `birdwire sandbox proxy`: run only the sandbox, or a fault-injecting TCP proxy."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - Typer reads it
from typing import Annotated
from urllib.parse import urlsplit

import typer

from birdwire.cli import run_servers
from birdwire.cli.options import JsonOption
from birdwire.cli.output import family, saying
from birdwire.cli.printable import printable
from birdwire.cli.stop import ExitCode, Stop
from birdwire.sandbox.app import create_sandbox
from birdwire.sandbox.control.tcp_proxy import create_proxy

HOST = "127.0.0.1"

app = family(no_args_is_help=False)


@app.callback(invoke_without_command=True)
def sandbox(
    context: typer.Context,
    *,
    port: Annotated[
        int, typer.Option(min=0, max=65_535, metavar="N", help="Port to listen on; 0 selects any free port.")
    ] = 8701,
    redirect_uri: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="Allowed callback URL of the app; repeatable. Default: any loopback URL."),
    ] = None,
    world: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File that keeps the sandbox's state. Default: memory only.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Start only the sandbox, a local stand-in for X's API.

    The sandbox behaves like X, with a consent page, tokens, posts, likes and rate limits, and it can produce errors on
    demand. It listens on loopback only. `birdwire dev` starts a gateway and a sandbox together.

    With --json, the command prints one line once the sandbox is ready, with the fields sandbox, client_id,
    client_secret and public_client_id.

    Example: birdwire sandbox --redirect-uri http://127.0.0.1:8700/apis/v1/twitter/oauth_callback
    """
    with saying(as_json=as_json) as say:
        if context.invoked_subcommand is not None:
            _refuse_options(context)
            return
        try:
            sandbox_app = create_sandbox(redirect_uris=redirect_uri or (), world_path=world)
        except (ValueError, OSError) as error:
            raise Stop(ExitCode.USAGE, f"Cannot start the sandbox: {error}.") from None
        listener = run_servers.listen(HOST, port, "--port")
        clients = sandbox_app.state.clients

        async def ready() -> None:
            document = {
                "sandbox": listener.url,
                "client_id": clients.client_id,
                "client_secret": clients.client_secret,
                "public_client_id": clients.public_client_id,
            }
            say.result(
                document,
                f"The sandbox is ready at {listener.url}. To use it, start a gateway with these settings:\n",
                f"export BIRDWIRE_X_API_URL={listener.url}",
                f"export BIRDWIRE_X_AUTHORIZE_URL={listener.url}/i/oauth2/authorize",
                f"export BIRDWIRE_X_CLIENT_ID={clients.client_id}",
                f"export BIRDWIRE_X_CLIENT_SECRET={clients.client_secret}",
            )

        run_servers.run(run_servers.serve([(run_servers.sandbox_config(sandbox_app), listener)], ready))


@app.command()
def proxy(
    *,
    to: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Server to forward to: HOST:PORT, or a URL with host and port.")
    ],
    port: Annotated[
        int, typer.Option(min=0, max=65_535, metavar="N", help="Port to listen on; 0 selects any free port.")
    ] = 8702,
    control_port: Annotated[
        int, typer.Option(min=0, max=65_535, metavar="N", help="Port of the control URL; 0 selects any free port.")
    ] = 8703,
    as_json: JsonOption = False,
) -> None:
    """Start a TCP proxy that injects network faults on demand.

    Put the proxy in front of the sandbox, a database or Redis to see how the gateway handles faults. The proxy listens
    on loopback only. Control it through its control URL: GET /proxy shows the active faults, POST /proxy sets them,
    DELETE /proxy removes them. Examples for POST:

    - Delay both directions: `{"direction": "both", "latency_s": 2}`
    - Limit the bandwidth: `{"bandwidth_bps": 100}`
    - Forward the request but lose the response: `{"drop": "after_apply"}`
    - Refuse all connections: `{"down": true}`

    With --json, the command prints one line once the proxy is ready, with the fields `to`, `proxy` (HOST:PORT) and
    `control`.

    Example: birdwire sandbox proxy --to 127.0.0.1:8701
    """
    with saying(as_json=as_json) as say:
        target = _address(to)
        line, control = (
            run_servers.listen(HOST, port, "--port"),
            run_servers.listen(HOST, control_port, "--control-port"),
        )
        orders = f"{control.url}/proxy"

        async def ready() -> None:
            say.result(
                {"proxy": f"{HOST}:{line.port}", "control": orders, "to": to},
                f"{HOST}:{line.port} forwards to {to}. The commands below lose all answers, show the fault, end it:\n",
                f"""curl {orders} -H 'Content-Type: application/json' -d '{{"drop": "after_apply"}}'""",
                f"curl {orders}",
                f"curl {orders} -X DELETE",
            )

        served = run_servers.sandbox_config(create_proxy(line.socket, target))
        run_servers.run(run_servers.serve([(served, control)], ready))


def _address(text: str) -> tuple[str, int]:
    """Return host and port of `HOST:PORT` or a URL."""
    try:
        parts = urlsplit(text if "://" in text else f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or "@" in parts.netloc or parts.path.strip("/") or parts.query or parts.fragment:
        raise Stop(
            ExitCode.USAGE,
            f"{printable(text, 60)!r} is not a valid address.",
            "Use host and port, such as --to 127.0.0.1:8701",
        )
    return host, port


def _refuse_options(context: typer.Context) -> None:
    """Refuse options of the sandbox before a subcommand, which would ignore them."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            option = "--json" if name == "as_json" else f"--{name.replace('_', '-')}"
            message = f"{option} must come after {context.invoked_subcommand}, not before it."
            raise Stop(ExitCode.USAGE, message, f"Use: birdwire sandbox {context.invoked_subcommand} {option}")
