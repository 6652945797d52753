"""Files that hold a secret: which are private, wherever links lead; and memory that no core dump shows."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from birdwire.runtime import private_files

if TYPE_CHECKING:
    from pathlib import Path

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A private file in a folder of its own."""
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o755)
    found = folder / "secret"
    found.touch(mode=0o600)
    return found


@pytest.mark.trust("F12")
@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440, 0o640, 0o700])
def test_a_file_of_ones_own_is_private(file: Path, mode: int) -> None:
    """Its group may read it, as where Kubernetes mounts a secret for a pod's group."""
    file.chmod(mode)
    assert private_files.fault(file, "key file") is None


@pytest.mark.trust("F12")
@pytest.mark.parametrize(
    ("mode", "fix"),
    [(0o604, "chmod 600"), (0o602, "chmod 600"), (0o601, "chmod 600"), (0o620, "chmod g-w"), (0o660, "chmod g-w")],
)
def test_a_file_that_others_may_use_is_not(file: Path, mode: int, fix: str) -> None:
    """The sentence ends with the command that fixes it."""
    file.chmod(mode)
    assert (private_files.fault(file, "key file") or "").endswith(f"run: {fix} {file}")


@AS_ROOT
def test_a_file_of_roots_is_opened_to_the_process_before_it_is_closed_to_others(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the fix would keep the gateway itself out."""
    file.chmod(0o644)
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    os.chown(file, 0, 0)
    assert (private_files.fault(file, "key file") or "").endswith(f"run: chown 12345 {file} && chmod 600 {file}")


@AS_ROOT
def test_a_file_of_another_user_is_not(file: Path) -> None:
    """Its owner could change it at any time."""
    os.chown(file, 12_345, 0)
    assert (private_files.fault(file, "key file") or "").endswith(f"run: chown 0 {file}")


@pytest.mark.parametrize(("mode", "is_private"), [(0o777, False), (0o757, False), (0o1777, True), (0o775, True)])
def test_a_folder_that_everyone_may_write_to_must_be_sticky(file: Path, mode: int, *, is_private: bool) -> None:
    """Or the file could be replaced."""
    file.parent.chmod(mode)
    fault = private_files.fault(file, "key file")
    assert (fault is None) is is_private
    assert is_private or str(fault).endswith(f"run: chmod o-w {file.parent}")


def test_a_secret_that_kubernetes_mounts_is_private(tmp_path: Path) -> None:
    """The folder is sticky and open to all; the file is behind two links, and its group may read it."""
    mount = tmp_path / "mount"
    version = mount / "..2026_11_27"
    version.mkdir(parents=True)
    mount.chmod(0o3777)
    version.chmod(0o2755)
    (version / "vault.key").touch()
    (version / "vault.key").chmod(0o440)
    (mount / "..data").symlink_to(version.name)
    (mount / "vault.key").symlink_to("..data/vault.key")
    assert private_files.fault(mount / "vault.key", "key file") is None


@pytest.mark.parametrize("absolute", [True, False])
def test_every_link_on_the_way_is_followed(file: Path, tmp_path: Path, *, absolute: bool) -> None:
    """A folder in the middle that everyone may write to decides what the path names."""
    middle = tmp_path / "middle"
    middle.mkdir()
    (middle / "link").symlink_to(file if absolute else f"../{file.parent.name}/{file.name}")
    (tmp_path / "first").symlink_to(middle / "link" if absolute else "middle/../middle/link")
    assert private_files.fault(tmp_path / "first", "key file") is None
    middle.chmod(0o777)
    assert (private_files.fault(tmp_path / "first", "key file") or "").endswith(f"run: chmod o-w {middle}")


def test_a_path_that_is_not_a_file_needs_no_protection(tmp_path: Path) -> None:
    """A pipe with settings in it, or a folder, which its reader refuses."""
    os.mkfifo(tmp_path / "pipe", 0o666)
    assert private_files.fault(tmp_path / "pipe", "config file") is None
    with pytest.raises(FileNotFoundError):
        private_files.fault(tmp_path / "none", "config file")


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_the_memory_of_a_command_is_in_no_core_dump() -> None:
    """Neither by the limit of its size, nor by what Linux may write at all."""
    code = (
        "import ctypes, resource; from birdwire import cli; from birdwire.cli import command_line;"
        "command_line.build = lambda: lambda **_: None; cli.main();"
        "print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603 - our own words
    assert done.stdout == "(0, 0) 0\n"
