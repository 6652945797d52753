"""`birdwire serve`: runs the gateway until a signal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from birdwire.app import create_app
from birdwire.cli import run_servers
from birdwire.cli.database import alone, refusals
from birdwire.cli.inputs import read_settings
from birdwire.cli.options import ConfigOption, JsonOption
from birdwire.cli.output import Output, family, saying
from birdwire.cli.stop import ExitCode, Stop
from birdwire.runtime.clock import Clock
from birdwire.runtime.failpoints import Failpoints
from birdwire.startup import open_vault, prepare
from birdwire.store.database import Database

if TYPE_CHECKING:
    from birdwire.settings import Settings

SAY_EVERY_S = 1.0

app = family()


@app.command()
def serve(
    *,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Address to listen on. Overrides the settings.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65_535, metavar="N", help="Port to listen on; 0 selects any free port. Overrides the settings."
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start the gateway.

    Settings come from environment variables and from a TOML file. For a description of each setting, run `birdwire
    check --help`; to validate your settings, run `birdwire check`. Logs go to stderr, one JSON object per line. On
    SIGTERM or Ctrl-C, the gateway finishes running calls before it exits.

    With --json, the command prints one line once the gateway is ready, with a `gateway` field, and a `metrics` field
    if the metrics have their own port.

    Example: birdwire serve --config /etc/birdwire/birdwire.toml
    """
    with saying(as_json=as_json) as say, refusals():
        settings = read_settings(config, host=host, port=None if port is None else str(port))
        if not settings.x_client_id:
            raise Stop(
                ExitCode.USAGE,
                "BIRDWIRE_X_CLIENT_ID is not set.",
                "Set it to the OAuth 2.0 client ID of your X app. To try Birdwire without an X app, run: birdwire dev",
            )
        open_vault(settings)
        with alone(settings):
            listener = run_servers.listen(settings.host, settings.port, "--port")
            metrics = None
            if settings.metrics_port is not None:
                metrics = run_servers.listen(settings.metrics_host, settings.metrics_port, "BIRDWIRE_METRICS_PORT")
            _run(settings.model_copy(update={"port": listener.port}), listener, metrics, say)


def _run(settings: Settings, listener: run_servers.Listener, metrics: run_servers.Listener | None, say: Output) -> None:
    async def ready() -> None:
        document = {"gateway": listener.url} | ({"metrics": f"{metrics.url}/metrics"} if metrics else {})
        lines = [f"Birdwire is ready at {listener.url}", f"Callback URL: {settings.redirect_uri}"]
        say.result(document, *lines, *([f"Metrics: {document['metrics']}"] if metrics else []))

    async def run() -> None:
        await _check_database(settings, say)
        gateway = create_app(settings, alone=settings.database_url.startswith("sqlite:"))
        gateway.leases.address = settings.base_url
        pairs = [(run_servers.gateway_config(gateway), listener)]
        if metrics is not None:
            pairs.append((gateway.metrics_server(), metrics))
        await run_servers.serve(pairs, ready, run_servers.Drain(gateway.health.drain, settings.drain_notice_s))

    run_servers.run(run())


async def _check_database(settings: Settings, say: Output) -> None:
    """Check the database before the start, so that a problem ends the command with one sentence."""
    database, said_at = Database(settings.database_url), time.monotonic()

    def progress(values: int, unreadable: int) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= SAY_EVERY_S:
            said_at = time.monotonic()
            say.aside(f"Re-encrypting X tokens for this version: {values:,} done, {unreadable:,} cannot be decrypted")

    try:
        failpoints = Failpoints(settings.failpoints)
        await prepare(database, open_vault(settings), Clock(), upgrade=False, failpoints=failpoints, progress=progress)
    finally:
        await database.close()
