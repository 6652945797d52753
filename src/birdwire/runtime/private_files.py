"""Checks that files with secrets are private, and keeps this process's memory off the disk."""

from __future__ import annotations

import ctypes
import os
import resource
import shlex
import stat
import sys
from pathlib import Path

_SET_DUMPABLE = 4
"""PR_SET_DUMPABLE of prctl(2)."""
_MAX_LINKS = 40
"""As many symbolic links as Linux itself follows."""


def fault(path: Path, what: str) -> str | None:
    """Return why a file must not hold a secret, with the command that fixes it; None if it may, or is not a file.

    The file must belong to this process's user or to root. Other users must have no access, and its group at most read
    access. No folder on its path, symbolic links included, may be writable by everyone unless it is sticky, as /tmp is.

    Raises:
        OSError: the file does not exist or cannot be inspected.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        return None
    name = shlex.quote(str(path))
    if found.st_uid not in (0, os.geteuid()):
        return f"The {what} {path} belongs to another user; run: chown {os.geteuid()} {name}"
    if found.st_mode & stat.S_IRWXO:
        # Without the chown, this process could no longer read the file.
        mine = "" if found.st_uid == os.geteuid() else f"chown {os.geteuid()} {name} && "
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
    """Return every folder in which a component of the path is resolved, in that order."""
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
        if links > _MAX_LINKS:
            raise OSError(f"{path} leads through too many links")
        target = step.readlink()
        names += target.parts[:0:-1] if target.is_absolute() else target.parts[::-1]
        at = Path("/") if target.is_absolute() else at
    return found


def keep_memory_private() -> None:
    """Disable core dumps and, on Linux, access to this process's memory by other processes of its user."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DUMPABLE, 0, 0, 0, 0)
