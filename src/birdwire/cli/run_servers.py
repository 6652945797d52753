"""Runs the gateway's and the sandbox's servers on bound sockets in one event loop, until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import uvicorn
from uvicorn.loops.auto import auto_loop_factory

from birdwire.cli.stop import ExitCode, Stop
from birdwire.edge.protocol import EdgeProtocol
from birdwire.runtime.file_limits import raise_limit

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator
    from pathlib import Path

    from starlette.types import ASGIApp

    from birdwire.app import Gateway

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_BACKLOG = 2_048
_OBJECTS_A_LOOK = 20_000
_LOCK_TRIES = 10

DRAIN_S = 25
"""How long running calls may take to finish after the server stops accepting new ones."""

CUT_OFF_S = 5.0
"""How long aborted calls may take to clean up."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Graceful shutdown of the first server: it calls `begin`, then serves for another `notice_s`.

    In that time the load balancer sees the failing readiness check, and each connection closes with its next response.
    """

    begin: Callable[[], None]
    notice_s: float


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket and its URL."""

    socket: socket.socket
    url: str

    @property
    def port(self) -> int:
        """Return the port, also if any free one was requested."""
        return int(self.socket.getsockname()[1])


class _Server(uvicorn.Server):
    """A server that leaves signals to its caller, so that several stop in order, and reports when it is up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()
        self._ending = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start accepting connections."""
        await super().startup(sockets)
        self.up.set()

    def drain(self) -> None:
        """Close each connection after its next response."""
        for connection in self.server_state.connections:
            if isinstance(connection, EdgeProtocol):
                connection.drain()

    def hurry(self) -> None:
        """Stop without waiting for running calls. A server whose shutdown has not started yet continues to serve."""
        self.force_exit = True
        if self._ending:
            self._cut_off()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down. A forced shutdown aborts calls but still runs the app's lifespan shutdown, which uvicorn skips."""
        self._ending = True
        if self.force_exit:
            self._cut_off()
        await super().shutdown(sockets)
        if self.force_exit:
            self._cut_off()
            if self.server_state.tasks:
                await asyncio.wait(self.server_state.tasks, timeout=CUT_OFF_S)
            await self.lifespan.shutdown()

    def _cut_off(self) -> None:
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        for task in self.server_state.tasks:
            task.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture no signals."""
        yield


class _NotCutOff(logging.Filter):
    """Drops uvicorn's reports of aborted calls: a server that shuts down aborts them on purpose."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep every other record."""
        return record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError)


def listen(host: str, port: int, option: str) -> Listener:
    """Listen on a port; 0 selects any free one.

    Raises:
        Stop: the port is unavailable; `option` is the setting to change.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        taken = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = f"Port {port} on {host} is in use by another program."
            fix = f"Stop that program, or choose another port: {option} {port + 10}, or {option} 0 for any free one."
        else:
            message = f"Cannot listen on {host} port {port}: {error.strerror or type(error).__name__}."
            fix = "Choose another address or port."
        raise Stop(ExitCode.USAGE, message, fix) from None
    shown = f"[{host}]" if ":" in host else host
    return Listener(taken, f"http://{shown}:{taken.getsockname()[1]}")


def alone(path: Path, message: str, fix: str) -> IO[bytes]:
    """Lock a file until it is closed or the process ends, even by a crash.

    Raises:
        Stop: another process holds the lock (`message`, `fix`), or the file cannot be created.
    """
    for _ in range(_LOCK_TRIES):
        try:
            # The mode is 0600 because a user who can open the file can lock it, and so prevent the gateway's start.
            lock = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb")
        except OSError as error:
            raise Stop(ExitCode.USAGE, f"{path} cannot be written: {error.strerror}.") from None
        try:
            if sys.platform != "win32":
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # If a restore replaced the file between the two calls above, this lock protects the old file.
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
        except OSError:
            lock.close()
            break
        lock.close()
    raise Stop(ExitCode.USAGE, message, fix)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine on the fastest available event loop, with the maximum number of open files."""
    raise_limit()
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        runner.run(main)
    # The work is finished: another signal must not change the exit code.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


async def serve(
    pairs: list[tuple[uvicorn.Config, Listener]], ready: Callable[[], Awaitable[None]], drain: Drain | None = None
) -> None:
    """Serve until SIGINT, SIGTERM or the exit of a server; `ready` runs once all servers accept connections.

    The servers stop in order, so that the first can still use the second. A second signal aborts running calls, but
    still waits for a token renewal, because the old refresh token is already spent.
    """
    loop, stop, hurry = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    servers = [_Server(config) for config, _ in pairs]

    def on_signal() -> None:
        if stop.is_set():
            hurry.set()
            for server in servers:
                server.hurry()
        stop.set()

    # The handlers stay installed for as long as the loop runs.
    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal)
    uvicorns, cut_off = logging.getLogger("uvicorn.error"), _NotCutOff()
    uvicorns.addFilter(cut_off)
    running = [
        asyncio.create_task(server.serve([listener.socket]))
        for server, (_, listener) in zip(servers, pairs, strict=True)
    ]
    stopped: asyncio.Future[Any] = asyncio.create_task(stop.wait())
    answering: asyncio.Future[Any] = asyncio.gather(*(server.up.wait() for server in servers))
    try:
        await asyncio.wait([stopped, answering, *running], return_when=asyncio.FIRST_COMPLETED)
        if answering.done() and not stop.is_set():
            _leave_what_stays()
            await ready()
            await asyncio.wait([stopped, *running], return_when=asyncio.FIRST_COMPLETED)
        if drain is not None and stop.is_set():
            drain.begin()
            servers[0].drain()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(hurry.wait(), drain.notice_s)
    finally:
        stopped.cancel()
        answering.cancel()
        for server, task in zip(servers, running, strict=True):
            server.should_exit = True
            await task
        uvicorns.removeFilter(cut_off)


def _leave_what_stays() -> None:
    """Exclude the existing, long-lived objects from garbage collection, and make collections rarer.

    A like creates a few hundred objects and no cycles. A collection after every 700 objects took 3 % of its CPU time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_A_LOOK)


def gateway_config(gateway: Gateway) -> uvicorn.Config:
    """Return the server configuration of the gateway."""
    return gateway.server(timeout_graceful_shutdown=DRAIN_S)


def sandbox_config(app: ASGIApp) -> uvicorn.Config:
    """Return the server configuration of the sandbox."""
    from birdwire.sandbox import server as sandbox_server  # noqa: PLC0415 - a gateway that serves has no sandbox

    return sandbox_server.config(app, timeout_graceful_shutdown=DRAIN_S)
