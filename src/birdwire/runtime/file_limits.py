"""How many connections fit into the files that this process may have open: each is one (RLIMIT_NOFILE)."""

from __future__ import annotations

import sys
from dataclasses import dataclass

if sys.platform != "win32":
    import resource

OWN_FILES = 40
"""The database with its readers, the log, the event loop, listening sockets; measured: 24 idle, 36 at work."""

_UNLIMITED = 1 << 20


@dataclass(frozen=True, slots=True)
class ConnectionBudget:
    """Connections at most: of callers, of those `refused` with a word, to X for calls and for tokens."""

    callers: int
    refused: int
    calls: int
    tokens: int

    def within(self, open_files: int) -> ConnectionBudget:
        """As much of it as fits: what is too little is shared out, and nothing is left without any."""
        left = max(8, open_files - OWN_FILES)
        return ConnectionBudget(
            callers=min(self.callers, left // 2),
            refused=min(self.refused, left // 8),
            calls=min(self.calls, left // 4),
            tokens=min(self.tokens, left // 8),
        )


def open_files() -> int:
    """How many files this process may have open."""
    if sys.platform == "win32":
        return _UNLIMITED
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _UNLIMITED if soft == resource.RLIM_INFINITY else soft


def take_all() -> None:
    """Raise the limit as far as the system lets us: the usual 1,024 is there for programs that use select(2)."""
    if sys.platform != "win32":
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _UNLIMITED if hard == resource.RLIM_INFINITY else min(hard, _UNLIMITED)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
