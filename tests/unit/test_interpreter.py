"""The name and the speed of the Python in use."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

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
    """A slice that another process delayed does not count, and a loaded machine does not prolong the whole."""
    delays = iter([0.02, 0.0, 0.02] + [0.02] * 1_000)
    slice_once = interpreter.run_slice

    def delayed(*_: Any) -> None:
        slice_once()
        ends_at = time.thread_time() + next(delays)
        while time.thread_time() < ends_at:
            pass

    alone = interpreter.interpreter(0.05).million_steps_s
    monkeypatch.setattr(interpreter, "run_slice", delayed)
    began = time.monotonic()
    assert interpreter.interpreter(0.1).million_steps_s > alone / 2
    assert time.monotonic() - began < 5
