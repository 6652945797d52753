"""The name and the speed of the Python in use."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from birdwire.runtime import interpreter


def test_any_python_can_run_it_as_a_program() -> None:
    """Before Birdwire and its dependencies are installed: isolated, and without site-packages."""
    argv = [sys.executable, "-I", "-S", interpreter.__file__, "0.01"]
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30)  # noqa: S603 - this Python
    found = json.loads(done.stdout)
    assert interpreter.Interpreter(**found).version == platform.python_version()
    assert found["million_steps_s"] > 0


@pytest.mark.parametrize(
    ("prefix", "origin"),
    [
        ("/usr", "the distribution"),
        ("/usr/local", "/usr/local"),
        ("/home/ada/.pyenv/versions/3.12.1", "pyenv"),
        ("/opt/miniconda3/envs/bird", "conda"),
        ("/home/ada/.local/share/uv/python/cpython-3.12.1", "uv"),
        ("/home/luv/python", "elsewhere"),
    ],
)
def test_the_origin_names_no_user_s_folder(prefix: str, origin: str) -> None:
    """Reports are published."""
    assert interpreter.origin(Path(prefix)) == origin


def test_optimizations_are_those_that_the_build_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is inferred: a build may be optimized and not record it."""

    def recorded(arguments: str | None) -> interpreter.Interpreter:
        monkeypatch.setattr(sysconfig, "get_config_var", lambda _: arguments)
        return interpreter.interpreter(0)

    assert recorded("'--enable-optimizations' '--with-lto=thin'").optimizations == ("PGO", "LTO")
    assert recorded("'--enable-shared'").optimizations == recorded(None).optimizations == ()
    assert ", PGO, LTO): " in str(recorded("--enable-optimizations --with-lto"))


def test_the_calibration_takes_the_best_slice_within_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """In CPU time: other processes delay a slice or prolong it, but they do not prolong the whole."""
    cpu_s, wall_s, costs = 0.0, 0.0, [0.02, 0.005, 0.02, 0.001]

    def run() -> None:
        nonlocal cpu_s, wall_s
        cost = costs.pop(0)
        cpu_s, wall_s = cpu_s + cost, wall_s + 10 * cost

    monkeypatch.setattr(interpreter, "run_slice", run)
    monkeypatch.setattr(time, "thread_time", lambda: cpu_s)
    monkeypatch.setattr(time, "monotonic", lambda: wall_s)
    assert interpreter.interpreter(0.3).million_steps_s == pytest.approx(interpreter.SLICE_STEPS / 0.005 / 1e6)
    assert costs == [0.001]
