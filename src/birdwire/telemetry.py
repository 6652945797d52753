"""One canonical log line for each request, as JSON, and one for each event. Never a header, a body or a query."""

from __future__ import annotations

import re
import traceback
from typing import TYPE_CHECKING, Any, Literal, TextIO

from birdwire.call import encode
from birdwire.clock import rfc3339
from birdwire.errors import excerpt

if TYPE_CHECKING:
    from birdwire.call import Call
    from birdwire.clock import Clock

Level = Literal["debug", "info", "warning", "error"]

_RANKS: dict[Level, int] = {"debug": 0, "info": 1, "warning": 2, "error": 3}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Telemetry:
    """Writes lines to a stream; a line that cannot be written is dropped and counted, never a request."""

    def __init__(self, stream: TextIO, clock: Clock, level: Level = "info") -> None:
        self._stream: TextIO | None = stream
        self._clock = clock
        self._rank = _RANKS[level]
        self.dropped = 0

    def request(self, call: Call, status: int, seconds: float) -> None:
        """A request was answered."""
        theirs = call.header("x-request-id") or ""
        fields = {
            "request_id": call.request_id,
            "caller_request_id": theirs if _REQUEST_ID.fullmatch(theirs) else None,
            "method": excerpt(call.method, 10),
            "path": excerpt(call.path, 100),
            "status": status,
            "ms": round(seconds * 1000, 1),
            **call.note,
        }
        self._write("info", "request", {name: value for name, value in fields.items() if value is not None})

    def event(self, level: Level, name: str, **fields: Any) -> None:
        """Something worth a line of its own."""
        self._write(level, name, fields)

    def crash(self, request_id: str, error: BaseException) -> None:
        """A bug: its type and the places it passed, but not its text, which may quote a secret."""
        frames = [
            f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)
        ]
        self._write("error", "crash", {"request_id": request_id, "exception": type(error).__name__, "at": frames[-12:]})

    def _write(self, level: Level, name: str, fields: dict[str, Any]) -> None:
        if _RANKS[level] < self._rank or self._stream is None:
            return
        line = encode({"time": rfc3339(self._clock.now()), "level": level, "event": name, **fields})
        try:
            self._stream.write(line.decode() + "\n")
            self._stream.flush()
        except OSError:
            self.dropped += 1  # a full pipe or disk: the line is lost, the request is not
        except ValueError:
            self._stream = None  # it was closed
