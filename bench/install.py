"""Brings what a run needs onto the machine: the peers' packages, pinned, and with root the programs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
VENV = HERE / ".venv"
GATEWAY = HERE / ".venv-gateway"
REQUIREMENTS = HERE / "requirements.txt"
PROGRAMS = {"wrk": "wrk", "nginx": "nginx", "haproxy": "haproxy", "caddy": "caddy", "node": "nodejs", "npm": "npm"}
"""Each program, and the Debian package that holds it."""

INSTALL_S = 900


def everything() -> None:
    """Install what is missing. What cannot be had is left out of the run, except wrk and nginx.

    Raises:
        RuntimeError: there is no wrk, or no nginx to stand in X's place.
    """
    programs()
    require("wrk", "nginx")
    _peers()
    _node()


def require(*programs: str) -> None:
    """Check that these programs are installed, each from the package of its name.

    Raises:
        RuntimeError: some are not; it states how to install them.
    """
    missing = " ".join(program for program in programs if shutil.which(program) is None)
    if missing:
        raise RuntimeError(f"The benchmark needs {missing}. On Debian and Ubuntu: sudo apt-get install {missing}")


def programs() -> None:
    """Install the programs that are missing, where that needs no more than root and apt-get."""
    packages = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if packages and os.geteuid() == 0 and shutil.which("apt-get"):
        _run("installing " + " ".join(packages), ["apt-get", "update", "-qq"])
        for package in packages:
            _run("", ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package])


def gateway(python: str) -> Path | None:
    """Install Birdwire for this interpreter, in an environment of its own; return that one's Python, or None."""
    requirements = [ROOT / "requirements" / "runtime.txt", ROOT / "pyproject.toml"]
    installed = _environment(
        f"Birdwire on {python}",
        python,
        GATEWAY,
        requirements,
        ["--require-hashes", "--requirement", str(requirements[0])],
        ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)],
    )
    return GATEWAY / "bin" / "python" if installed else None


def _peers() -> None:
    # The lock is whole. With --no-deps pip need not resolve it, where `pydantic[email]` would be none of its pins.
    what = ["--no-deps", "--require-hashes", "--requirement", str(REQUIREMENTS)]
    _environment("the Python peers", sys.executable, VENV, [REQUIREMENTS], what)


def _environment(words: str, python: str, folder: Path, inputs: list[Path], *installs: list[str]) -> bool:
    """Create a virtual environment, unless it was already made from these files for this interpreter."""
    wanted = hashlib.sha256(b"".join([os.path.realpath(python).encode(), *(file.read_bytes() for file in inputs)]))
    stamp = folder / ".installed"
    if stamp.exists() and stamp.read_text() == wanted.hexdigest():
        return True
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "-qq"]
    done = _run(f"installing {words}, pinned by hash", [python, "-m", "venv", "--clear", str(folder)])
    if done and all(_run("", [*pip, *what]) for what in installs):
        stamp.write_text(wanted.hexdigest())
        return True
    return False


def _node() -> None:
    peers = HERE / "peers"
    if shutil.which("npm") and not (peers / "node_modules" / ".package-lock.json").exists():
        _run("installing the Node peers, pinned by hash", ["npm", "ci", "--silent", "--prefix", str(peers)])


def _run(words: str, argv: list[str]) -> bool:
    """Run an installer; whether it worked. Its own words are shown if it did not."""
    if words:
        print(f"{words} ...", flush=True)
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=INSTALL_S)
    if done.returncode:
        print(f"{' '.join(argv)} failed:\n{(done.stderr or done.stdout)[-2000:]}", file=sys.stderr)
    return done.returncode == 0
