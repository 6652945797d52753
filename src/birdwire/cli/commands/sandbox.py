"""`birdwire sandbox` and `birdwire sandbox proxy`: the sandbox alone, and a line that misbehaves, until a signal."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - Typer reads it
from typing import Annotated
from urllib.parse import urlsplit

import typer

from birdwire.cli import run_servers
from birdwire.cli.output import ExitCode, JsonOption, Stop, family, printable, saying
from birdwire.sandbox.app import create_sandbox
from birdwire.sandbox.control.tcp_proxy import create_proxy

HOST = "127.0.0.1"

app = family(no_args_is_help=False)


@app.callback(invoke_without_command=True)
def sandbox(
    context: typer.Context,
    *,
    port: Annotated[
        int, typer.Option(min=0, max=65_535, metavar="N", help="Port to listen on; 0 takes any free one.")
    ] = 8701,
    redirect_uri: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A callback registered for the app; repeatable. Default: any on loopback."),
    ] = None,
    world: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File that keeps the sandbox's state across restarts.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Start the sandbox alone.

    It answers as X does: consent page, tokens, likes, limits, and errors on demand. On loopback only.

    With --json: one line with sandbox, client_id, client_secret and public_client_id, once it answers.

    Example: birdwire sandbox --redirect-uri http://127.0.0.1:8700/apis/v1/twitter/oauth_callback
    """
    with saying(as_json=as_json) as say:
        if context.invoked_subcommand is not None:
            _refuse_options(context)
            return
        try:
            sandbox_app = create_sandbox(redirect_uris=redirect_uri or (), world_path=world)
        except (ValueError, OSError) as error:
            raise Stop(ExitCode.USAGE, f"The sandbox cannot start: {error}.") from None
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
                f"The sandbox answers at {listener.url}. A gateway reaches it with:\n",
                f"export BIRDWIRE_X_API_URL={listener.url}",
                f"export BIRDWIRE_X_AUTHORIZE_URL={listener.url}/i/oauth2/authorize",
                f"export BIRDWIRE_X_CLIENT_ID={clients.client_id}",
                f"export BIRDWIRE_X_CLIENT_SECRET={clients.client_secret}",
            )

        run_servers.run(run_servers.serve([(run_servers.sandbox_config(sandbox_app), listener)], ready))


@app.command()
def proxy(
    *,
    to: Annotated[str, typer.Option(metavar="ADDRESS", help="Where it connects to: HOST:PORT, or a URL with both.")],
    port: Annotated[
        int, typer.Option(min=0, max=65_535, metavar="N", help="Port to listen on; 0 takes any free one.")
    ] = 8702,
    control_port: Annotated[
        int, typer.Option(min=0, max=65_535, metavar="N", help="Port of the control URL; 0 takes any free one.")
    ] = 8703,
    as_json: JsonOption = False,
) -> None:
    """Start a TCP proxy that misbehaves on demand: slow, cut, silent, gone.

    Put it in front of the sandbox, a database or a cache to see how the gateway copes. On loopback only. Control it
    through its control URL: GET /proxy shows the faults in force, POST /proxy sets them, DELETE /proxy ends them.

    - Slow, both ways: `{"direction": "both", "latency_s": 2}`
    - A trickle: `{"bandwidth_bps": 100}`
    - The request is carried out, the answer lost: `{"drop": "after_apply"}`
    - Gone: `{"down": true}`

    With --json: one line with proxy (HOST:PORT), control and to, once it is ready.

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
                f"{HOST}:{line.port} forwards everything to {to}. Lose every answer, check, and end the fault:\n",
                f"""curl {orders} -H 'Content-Type: application/json' -d '{{"drop": "after_apply"}}'""",
                f"curl {orders}",
                f"curl {orders} -X DELETE",
            )

        served = run_servers.sandbox_config(create_proxy(line.socket, target))
        run_servers.run(run_servers.serve([(served, control)], ready))


def _address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT` or a URL."""
    try:
        parts = urlsplit(text if "://" in text else f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port or "@" in parts.netloc or parts.path.strip("/") or parts.query or parts.fragment:
        raise Stop(
            ExitCode.USAGE, f"{printable(text, 60)!r} is not a host with a port.", "Use one such as --to 127.0.0.1:8701"
        )
    return host, port


def _refuse_options(context: typer.Context) -> None:
    """Refuse options of the sandbox where it is not the sandbox that starts."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            option = "--json" if name == "as_json" else f"--{name.replace('_', '-')}"
            message = f"{option} comes before {context.invoked_subcommand}, which would not see it."
            raise Stop(ExitCode.USAGE, message, f"Put it after: birdwire sandbox {context.invoked_subcommand} {option}")
