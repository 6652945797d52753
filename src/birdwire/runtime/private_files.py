"""Keeps secrets to this process: files that hold one must be private, and no memory is written to the disk."""

from __future__ import annotations

import ctypes
import os
import resource
import shlex
import stat
import sys
from pathlib import Path

_SET_DUMPABLE = 4  # prctl(2)
_MOST_LINKS = 40  # as Linux itself follows


def fault(path: Path, what: str) -> str | None:
    """Return why a file may not hold a secret, with the command that fixes it; None if it may, or is not a file.

    Its owner must be this process's user or root. Others must have no right to it, and its group at most that to read.
    No folder on the way, symbolic links included, may be open to everyone unless it is sticky, as /tmp is.

    Raises:
        OSError: it is not there, or cannot be looked at.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        return None
    name = shlex.quote(str(path))
    if found.st_uid not in (0, os.geteuid()):
        return f"The {what} {path} belongs to another user; run: chown {os.geteuid()} {name}"
    if found.st_mode & stat.S_IRWXO:
        mine = "" if found.st_uid == os.geteuid() else f"chown {os.geteuid()} {name} && "  # else it could not be read
        return f"The {what} {path} is open to every user; run: {mine}chmod 600 {name}"
    if found.st_mode & stat.S_IWGRP:
        return f"The {what} {path} can be changed by its group; run: chmod g-w {name}"
    for folder in _folders(path):
        mode = folder.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return (
                f"Every user can replace {what[0].lower()}{what[1:]} {path}; run: chmod o-w {shlex.quote(str(folder))}"
            )
    return None


def _folders(path: Path) -> dict[Path, None]:
    """Return every folder in which a name on the way to a file is looked up, in that order."""
    found: dict[Path, None] = {}
    names, at, links = list(path.absolute().parts[:0:-1]), Path("/"), 0
    while names:
        found[at] = None
        name = names.pop()
        if name == "..":
            at = at.parent
            continue
        step = at / name
        if not step.is_symlink():
            at = step
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(f"{path} leads through too many links")
        target = step.readlink()
        names += target.parts[:0:-1] if target.is_absolute() else target.parts[::-1]
        at = Path("/") if target.is_absolute() else at
    return found


def keep_memory_private() -> None:
    """Let no core dump of this process be written, and no other process of its user read its memory (on Linux)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DUMPABLE, 0, 0, 0, 0)
