"""The choice of the Python that the benchmark measures, and the hint of make setup."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from bench import install, interpreters
from birdwire.runtime.interpreter import Interpreter

ROOT = Path(__file__).parents[2]
OTHER = "/opt/other/bin/python3.11"


def build(million_steps_s: float) -> Interpreter:
    """Return a build that is this fast."""
    return Interpreter("CPython", "3.11.2", "the distribution", "GCC 12.2.0", (), million_steps_s)


def program(path: Path, script: str) -> str:
    """Write a shell script in an interpreter's place."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_an_interpreter_is_refused_with_the_reason(tmp_path: Path) -> None:
    """Too old, without its venv module, or not there."""
    assert interpreters.probe(sys.executable) == (os.path.realpath(sys.executable), "")
    old = program(tmp_path / "old", "echo /usr/bin/python3.10 3 10")
    assert interpreters.probe(old) == ("", f"{old} is Python 3.10")
    bare = program(tmp_path / "bare", "exit 1")
    assert interpreters.probe(bare) == ("", f"{bare} cannot create virtual environments")
    assert interpreters.probe(str(tmp_path / "none")) == ("", f"{tmp_path}/none does not run")


def test_the_distribution_s_interpreter_takes_precedence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Unless it cannot be used, or --python names another; that one must be usable."""
    own = os.path.realpath(sys.executable)
    newer = program(tmp_path / "newer", "echo /usr/bin/python3.12 3 12")
    monkeypatch.setattr(interpreters, "DISTRIBUTION", newer)
    assert interpreters.choose(None) == ("/usr/bin/python3.12", f"{newer}, as an operator is advised to use")
    assert interpreters.choose(sys.executable) == (own, "named by --python")
    old = program(tmp_path / "old", "echo /usr/bin/python3.10 3 10")
    with pytest.raises(SystemExit, match=r"--python: .*/old is Python 3\.10\. Name a Python 3\.11 or later"):
        interpreters.choose(old)
    monkeypatch.setattr(interpreters, "DISTRIBUTION", old)
    assert interpreters.choose(None) == (own, f"that of .venv, because {old} is Python 3.10")


def test_a_program_continues_on_the_chosen_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With its arguments; it is told which interpreter it started on."""
    started: list[Any] = []
    monkeypatch.setattr(interpreters, "choose", lambda _: (OTHER, "why"))
    monkeypatch.setattr(install, "gateway", lambda path: tmp_path / path.lstrip("/"))

    def execve(*given: Any) -> NoReturn:
        started.append(given)
        raise SystemExit

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(sys, "argv", ["bench/growth.py", "--only", "rows"])
    with pytest.raises(SystemExit):
        interpreters.enter("bench.growth", None)
    ((python, argv, environment),) = started
    assert (python, argv[1:]) == (tmp_path / "opt/other/bin/python3.11", ["-m", "bench.growth", "--only", "rows"])
    assert environment[interpreters.STARTED_ON] == sys.executable


def test_a_program_stays_where_it_is_if_the_chosen_interpreter_is_no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """Being the same, or without Birdwire on it: the report states the reason."""
    monkeypatch.setattr(interpreters, "choose", lambda _: (os.path.realpath(sys.executable), "named by --python"))
    assert interpreters.enter("bench", None)["why"] == "named by --python"
    monkeypatch.setattr(interpreters, "choose", lambda _: (OTHER, "why"))
    monkeypatch.setattr(install, "gateway", lambda _: None)
    found = interpreters.enter("bench", None)
    assert found["why"] == f"that of .venv, because Birdwire could not be installed on {OTHER}"
    assert "started_on" not in found
    monkeypatch.setenv(interpreters.STARTED_ON, sys.executable)
    assert interpreters.enter("bench", None)["started_on"]["version"] == found["measured"]["version"]


def test_an_environment_is_made_once_for_each_interpreter_and_lock(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And again if its installation did not finish."""
    works, ran = True, []
    monkeypatch.setattr(install, "GATEWAY", tmp_path / "environment")

    def run(_: str, argv: list[str]) -> bool:
        ran.append(argv)
        install.GATEWAY.mkdir(exist_ok=True)
        return works or "venv" in argv

    monkeypatch.setattr(install, "_run", run)
    python = tmp_path / "environment" / "bin" / "python"
    assert install.gateway(OTHER) == python
    assert [argv[0] for argv in ran] == [OTHER, str(python), str(python)]
    assert ["--require-hashes" in argv for argv in ran] == [False, True, False]
    assert "--no-deps" in ran[2]
    install.gateway(OTHER)
    assert len(ran) == 3
    works = False
    assert install.gateway(sys.executable) is None
    assert len(ran) == 5


HINT = (
    "Hint: this Python runs 1.29 million steps/s, /usr/bin/python3 runs 1.62. To use that one: "
    "make clean && make PYTHON=/usr/bin/python3 setup"
)


@pytest.mark.parametrize(("own", "other", "hint"), [(1.29, 1.62, HINT), (1.5, 1.6, ""), (1.6, 1.3, "")])
def test_a_hint_names_an_interpreter_that_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, own: float, other: float, hint: str
) -> None:
    """And the command that uses it. Nothing is chosen for the operator."""
    monkeypatch.setattr(interpreters, "probe", lambda _: (OTHER, ""))
    monkeypatch.setattr(interpreters, "calibrated", lambda python, _: build(other if python == OTHER else own))
    assert interpreters.hint() == hint
    monkeypatch.setattr(interpreters, "probe", lambda _: (os.path.realpath(sys.executable), ""))
    assert interpreters.hint() == ""
    monkeypatch.setattr(interpreters, "probe", lambda _: ("", "it does not run"))
    assert interpreters.hint() == ""


def test_the_hint_never_fails_and_needs_nothing_installed() -> None:
    """It runs in a new environment, before the dependencies."""
    argv = [sys.executable, "-S", "-m", "bench.interpreters"]
    environment = {"PYTHONPATH": f"{ROOT / 'src'}", "PATH": os.environ["PATH"]}
    done = subprocess.run(argv, check=False, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60)  # noqa: S603 - this Python
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_setup_gives_its_hint_only_when_it_creates_the_environment(tmp_path: Path) -> None:
    """A later setup is silent."""

    def steps() -> str:
        argv = ["make", "--dry-run", "setup", f"VENV={tmp_path}/venv", f"PYTHON={sys.executable}"]
        return subprocess.run(argv, check=True, capture_output=True, text=True, cwd=ROOT, timeout=60).stdout  # noqa: S603 - our own Makefile

    assert steps().count("-m bench.interpreters") == 1
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").touch()
    assert "-m bench.interpreters" not in steps()


def test_a_calibration_is_read_from_the_interpreter_itself() -> None:
    """As its program prints it."""
    assert interpreters.calibrated(sys.executable, 0.01).version == platform.python_version()
