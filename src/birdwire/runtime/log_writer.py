"""Log lines on their way out: gathered for one turn of the loop, written without ever waiting for who reads them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import stat
from typing import TextIO

MOST_BYTES = 1 << 20
"""What waits for a reader at most; lines beyond it are dropped and counted."""

AGAIN_S = 0.1  # until a reader that stopped is tried again

_FILE_PIECE = 1 << 16
_API_KEY = re.compile(r"(bw_(?:live|test)_)[0-9A-Za-z]+")  # also one that an excerpt has cut


class LogWriter:
    """Lines for one stream. A stopped reader, a full disk or a closed pipe costs lines, never a request.

    To a pipe it writes only when the kernel says that PIPE_BUF bytes have room, and never more (POSIX: such a write
    does not block). Its flags stay as they are: a terminal's are the shell's, too.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._fd, self._piece = _descriptor(stream)
        self._poll = select.poll()
        if self._fd is not None:
            self._poll.register(self._fd, select.POLLOUT)
        self._lines: list[str] = []
        self._rest = b""
        self._size = 0
        self._torn = False
        self._due: asyncio.Handle | None = None
        self.dropped = 0

    def add(self, line: str) -> None:
        """Write a line, which ends in a newline, with the others of this turn; API keys in it are masked."""
        if "bw_" in line:  # a caller may have put a key where a path or a request id belongs
            line = _API_KEY.sub(r"\1***", line)
        if self._size + len(self._rest) > MOST_BYTES:
            self.dropped += 1
            return
        self._lines.append(line)
        self._size += len(line)
        if self._due is None:
            try:
                self._due = asyncio.get_running_loop().call_soon(self.flush)
            except RuntimeError:  # no loop runs: nothing to gather
                self.flush()

    def flush(self) -> None:
        """Write what can be written now; come back later for the rest."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        self._rest += "".join(self._lines).encode("utf-8", "replace")
        self._lines, self._size = [], 0
        try:
            if self._fd is not None:
                self._write(self._fd)
            else:
                self._stream.write(self._rest.decode())
                self._stream.flush()
                self._rest = b""
        except (OSError, ValueError):  # nobody reads, the disk is full, the stream is closed
            self.dropped += self._rest.count(b"\n")
            self._rest = b"\n" if self._torn else b""
        if self._rest:
            with contextlib.suppress(RuntimeError):  # no loop runs: the next line comes back
                self._due = asyncio.get_running_loop().call_later(AGAIN_S, self.flush)

    def _write(self, fd: int) -> None:
        while self._rest and self._poll.poll(0):
            written = os.write(fd, self._rest[: self._piece])
            self._torn = self._rest[written - 1 : written] != b"\n"
            self._rest = self._rest[written:]


def _descriptor(stream: TextIO) -> tuple[int | None, int]:
    """The stream's file descriptor, if it has one, and how much may be written to it at once."""
    try:
        fd = stream.fileno()
        regular = stat.S_ISREG(os.fstat(fd).st_mode)
    except (OSError, ValueError):
        return None, 0
    return fd, _FILE_PIECE if regular else select.PIPE_BUF
