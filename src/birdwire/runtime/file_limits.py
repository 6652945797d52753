"""The open-file limit (RLIMIT_NOFILE), and the connections that fit into it: each connection is one open file."""

from __future__ import annotations

import sys
from dataclasses import dataclass

if sys.platform != "win32":
    import resource

OWN_FILES = 40
"""Files for the database, the log, the event loop and listening sockets; measured: 24 when idle, 36 under load."""

_UNLIMITED = 1 << 20


@dataclass(frozen=True, slots=True)
class ConnectionBudget:
    """Maximum connections: from callers, from callers that get 503, to X for calls, and to X for tokens."""

    callers: int
    refused: int
    calls: int
    tokens: int

    def within(self, open_files: int) -> ConnectionBudget:
        """Return the budget that fits into a limit of open files; each part keeps at least one."""
        left = max(8, open_files - OWN_FILES)
        return ConnectionBudget(
            callers=min(self.callers, left // 2),
            refused=min(self.refused, left // 8),
            calls=min(self.calls, left // 4),
            tokens=min(self.tokens, left // 8),
        )


def open_files() -> int:
    """Return how many files this process may open."""
    if sys.platform == "win32":
        return _UNLIMITED
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _UNLIMITED if soft == resource.RLIM_INFINITY else soft


def raise_limit() -> None:
    """Raise the soft limit to the hard limit: the usual 1,024 protects programs that use select(2)."""
    if sys.platform != "win32":
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        maximum = _UNLIMITED if hard == resource.RLIM_INFINITY else min(hard, _UNLIMITED)
        resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, hard))
