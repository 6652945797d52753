"""Structured log lines in JSON: one for each request, one for each event. Never logs a header, body or query."""

from __future__ import annotations

import re
import traceback
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring as quoted
from typing import TYPE_CHECKING, Any, Literal, TextIO

from birdwire.api.errors import excerpt
from birdwire.api.messages import encode
from birdwire.api.paths import APPROVE, without_token
from birdwire.runtime.clock import rfc3339
from birdwire.runtime.log_writer import LogWriter
from birdwire.runtime.metrics import Metrics

if TYPE_CHECKING:
    from birdwire.api.messages import Call
    from birdwire.runtime.clock import Clock

Level = Literal["debug", "info", "warning", "error"]

_RANKS: dict[Level, int] = {"debug": 0, "info": 1, "warning": 2, "error": 3}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_CLASSES = ("0xx", "1xx", "2xx", "3xx", "4xx", "5xx")


# Callers use few paths, and sanitising one takes as long as formatting the rest of its line.
@lru_cache(256)
def _safe(sent: str, length: int) -> str:
    return excerpt(sent, length)


@lru_cache(256)
def _safe_path(sent: str) -> str:
    """Return a path for the log: the route of a signed link in place of its token."""
    return APPROVE.join(excerpt(part, 100) for part in without_token(sent))


class Telemetry:
    """Writes log lines to a stream and counts metrics. A line that cannot be written is lost; a request never is."""

    def __init__(self, stream: TextIO, clock: Clock, level: Level = "info") -> None:
        self._log = LogWriter(stream)
        self._clock = clock
        self._rank = _RANKS[level]
        self._second = -1
        self._time = ""
        self.metrics = Metrics()
        self.metrics.watch("birdwire_log_lines_dropped_total", lambda: self._log.dropped)

    def request(self, call: Call, status: int, seconds: float) -> None:
        """Log and count an answered request."""
        note = call.note
        operation = note.get("operation", "other")
        self.metrics.add("birdwire_requests_total", operation, _CLASSES[status // 100], note.get("reason", ""))
        self.metrics.time("birdwire_request_seconds", seconds, operation)
        if status >= 500:
            self.metrics.add("birdwire_server_errors_total", note.get("reason", ""))
        if self._rank > _RANKS["info"]:
            return
        # Formatted by hand: building a dictionary and encoding it takes four times as long.
        sent = call.header("x-request-id")
        caller = f',"caller_request_id":"{sent}"' if sent and _REQUEST_ID.fullmatch(sent) else ""
        line = (
            f'{{"time":"{self._now()}","level":"info","event":"request","request_id":"{call.request_id}"{caller},'
            f'"method":"{_safe(call.method, 10)}","path":"{_safe_path(call.path)}","status":{status},'
            f'"ms":{seconds * 1000:.1f}'
        )
        for name, value in note.items():
            line += f',"{name}":{quoted(value) if isinstance(value, str) else encode(value).decode()}'
        self._log.add(line + "}\n")

    def event(self, level: Level, name: str, **fields: Any) -> None:
        """Log an event with its fields."""
        if _RANKS[level] < self._rank:
            return
        line = encode({"time": self._now(), "level": level, "event": name, **fields})
        self._log.add(line.decode() + "\n")

    def cut_off(self, call: Call) -> None:
        """Log a request that was cancelled before its response: its outcome at X is unknown."""
        known = {name: call.note[name] for name in ("operation", "key_id") if name in call.note}
        self.event("info", "cut_off", request_id=call.request_id, **known, outcome="unknown")

    def crash(self, request_id: str, error: BaseException) -> None:
        """Log a bug: the exception's type and frames, but not its text, which may quote a secret."""
        frames = [
            f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)
        ]
        self.event("error", "crash", request_id=request_id, exception=type(error).__name__, at=frames[-12:])

    def flush(self) -> None:
        """Write the buffered lines, as far as the stream accepts them."""
        self._log.flush()

    def _now(self) -> str:
        second = int(self._clock.unix_s())
        # Formatting a time takes longer than the rest of a line.
        if second != self._second:
            self._second, self._time = second, rfc3339(datetime.fromtimestamp(second, UTC))
        return self._time
