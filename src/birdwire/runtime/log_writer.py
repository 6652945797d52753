"""Buffers log lines for one iteration of the event loop and writes them without ever blocking on the reader."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import stat
from typing import TextIO

MAX_BUFFER_BYTES = 1 << 20
"""Maximum size of the buffer; lines beyond it are dropped and counted."""

RETRY_S = 0.1
"""Seconds until a blocked stream is tried again."""

_FILE_CHUNK_BYTES = 1 << 16
# Also matches a key that an excerpt has truncated.
_API_KEY = re.compile(r"(bw_(?:live|test)_)[0-9A-Za-z]+")


class LogWriter:
    """Writes lines to one stream. A stopped reader, a full disk or a closed pipe costs lines, never a request.

    It writes to a pipe only when poll(2) reports room, and at most PIPE_BUF bytes: POSIX guarantees that such a write
    does not block. The descriptor stays in blocking mode: a terminal shares its flags with the shell.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._fd, self._chunk_bytes = _descriptor(stream)
        self._poll = select.poll()
        if self._fd is not None:
            self._poll.register(self._fd, select.POLLOUT)
        self._lines: list[str] = []
        self._buffer = b""
        self._size = 0
        self._torn = False
        self._scheduled: asyncio.Handle | None = None
        self.dropped = 0

    def add(self, line: str) -> None:
        """Buffer a line, which ends in a newline; API keys in it are masked."""
        # A caller may have sent a key as a path or a request id.
        if "bw_" in line:
            line = _API_KEY.sub(r"\1***", line)
        if self._size + len(self._buffer) > MAX_BUFFER_BYTES:
            self.dropped += 1
            return
        self._lines.append(line)
        self._size += len(line)
        if self._scheduled is None:
            try:
                self._scheduled = asyncio.get_running_loop().call_soon(self.flush)
            except RuntimeError:
                # No event loop is running.
                self.flush()

    def flush(self) -> None:
        """Write what the stream accepts now, and retry the rest later."""
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        self._buffer += "".join(self._lines).encode("utf-8", "replace")
        self._lines, self._size = [], 0
        try:
            if self._fd is not None:
                self._write(self._fd)
            else:
                self._stream.write(self._buffer.decode())
                self._stream.flush()
                self._buffer = b""
        except (OSError, ValueError):
            # The reader or the stream is closed, or the disk is full.
            self.dropped += self._buffer.count(b"\n")
            self._buffer = b"\n" if self._torn else b""
        if self._buffer:
            # Without a running event loop, the next line retries.
            with contextlib.suppress(RuntimeError):
                self._scheduled = asyncio.get_running_loop().call_later(RETRY_S, self.flush)

    def _write(self, fd: int) -> None:
        while self._buffer and self._poll.poll(0):
            written = os.write(fd, self._buffer[: self._chunk_bytes])
            self._torn = self._buffer[written - 1 : written] != b"\n"
            self._buffer = self._buffer[written:]


def _descriptor(stream: TextIO) -> tuple[int | None, int]:
    """Return the stream's file descriptor, if it has one, and the maximum bytes of one write."""
    try:
        fd = stream.fileno()
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
    except (OSError, ValueError):
        return None, 0
    return fd, _FILE_CHUNK_BYTES if regular else select.PIPE_BUF
