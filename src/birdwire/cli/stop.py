"""How a command fails: its exit code, the cause and the next step. Imports nothing that starts slowly."""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """Exit codes of a command."""

    OK = 0
    USAGE = 2
    REFUSED = 3
    AUTH = 4
    LIMIT = 5
    UPSTREAM = 6
    UNKNOWN = 7
    AWAITING = 8


class Stop(Exception):  # noqa: N818 - it ends a command, for whatever reason
    """Ends a command that failed: the exit code, the cause, and the next step.

    `document` is the JSON document of the gateway's refusal and `reason` its reason. Without a refusal, the document
    is built from the other parts.
    """

    def __init__(
        self,
        code: ExitCode,
        message: str,
        fix: str = "",
        *,
        request_id: str = "",
        document: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fix = fix
        self.request_id = request_id
        error = (document or {}).get("error")
        self.reason = str(error.get("reason", "")) if isinstance(error, dict) else ""
        self.document = document or {"error": {"code": code.name.lower(), "message": message, "fix": fix}}
