"""`birdwire serve`: the gateway, until a signal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from birdwire.app import create_app
from birdwire.cli import run_servers
from birdwire.cli.database import alone, refusals
from birdwire.cli.inputs import ConfigOption, read_settings
from birdwire.cli.output import ExitCode, JsonOption, Output, Stop, family, saying
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
        str | None, typer.Option(metavar="ADDRESS", help="Address to listen on; overrides the settings.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65_535, metavar="N", help="Port to listen on; overrides the settings. 0 takes any free one."
        ),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start the gateway.

    Settings come from the environment and from a TOML file; `birdwire check --help` lists them. Logs go to stderr,
    one JSON object a line. SIGTERM and Ctrl-C let running calls end first.

    With --json: one line with gateway, and metrics if they have a port, once it answers.

    Example: birdwire serve --config /etc/birdwire/birdwire.toml
    """
    with saying(as_json=as_json) as say, refusals():
        settings = read_settings(config, host=host, port=None if port is None else str(port))
        if not settings.x_client_id:
            raise Stop(
                ExitCode.USAGE,
                "BIRDWIRE_X_CLIENT_ID is not set: X must know which app asks.",
                "Set it to the OAuth 2.0 client id of your X app. To try Birdwire without one: birdwire dev",
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
        lines = [f"Birdwire answers at {listener.url}", f"Its callback is {settings.redirect_uri}"]
        say.result(document, *lines, *([f"Its metrics are at {document['metrics']}"] if metrics else []))

    async def run() -> None:
        await _check_database(settings, say)
        gateway = create_app(settings, alone=settings.database_url.startswith("sqlite:"))
        pairs = [(run_servers.gateway_config(gateway), listener)]
        if metrics is not None:
            pairs.append((gateway.metrics_server(), metrics))
        await run_servers.serve(pairs, ready, run_servers.Drain(gateway.health.drain, settings.drain_notice_s))

    run_servers.run(run())


async def _check_database(settings: Settings, say: Output) -> None:
    """Refuse before anything is answered, in one sentence, what the gateway's own start would refuse."""
    database, said_at = Database(settings.database_url), time.monotonic()

    def progress(values: int, unreadable: int) -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= SAY_EVERY_S:
            said_at = time.monotonic()
            say.aside(f"Resealing X tokens for this version: {values:,} done, {unreadable:,} cannot be opened")

    try:
        failpoints = Failpoints(settings.failpoints)
        await prepare(database, open_vault(settings), Clock(), upgrade=False, failpoints=failpoints, progress=progress)
    finally:
        await database.close()
