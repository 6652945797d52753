"""Runs Node programs with the npm packages that `make setup-dev` installs in tests/node from its lock.

A script of a test lives in tests/node, where Node finds the packages. Without them a test is skipped with the next step
named, and in CI it fails. Nothing here installs anything: the tests send no traffic beyond loopback.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "node"
PACKAGES = FOLDER / "node_modules"
LIMIT_S = 50.0
"""Just under the time that pytest gives a test, so that the program's own output is seen."""

_QUIET = {"NO_COLOR": "1", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true", "REDOCLY_TELEMETRY": "off"}


def require_node() -> str:
    """Return Node's path, or skip the test: it cannot run without Node and the packages."""
    node = shutil.which("node")
    if node is not None and (PACKAGES / ".package-lock.json").exists():
        return node
    missing = "Node is missing" if node is None else "the npm packages of tests/node are missing"
    step = "On Debian and Ubuntu: sudo apt-get install nodejs npm, then make setup-dev"
    if os.environ.get("CI"):
        pytest.fail(f"{missing}, and CI must run these tests. {step}")
    pytest.skip(f"NOT RUN: {missing}. {step}")


Ended = subprocess.CompletedProcess[str]


def run(script: Path, *arguments: str, limit_s: float = LIMIT_S, **environment: str) -> Ended:
    """Run a script in tests/node to its end and return its status and output; these variables join the environment."""
    return subprocess.run(  # noqa: S603 - our own scripts and the lock's
        [require_node(), str(script), *arguments],
        cwd=FOLDER,
        env=os.environ | _QUIET | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=limit_s,
    )
