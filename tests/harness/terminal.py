"""A command at a terminal of its own: what it shows, keys that a person presses, and the terminal's settings."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import subprocess
import sys
import termios
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

WAIT_S = 30.0
# A shell that opens the terminal without owning one makes it its controlling terminal, so that Ctrl-C is a signal.
SHELL = ("/bin/sh", "-c", 'exec "$@" <"$TERMINAL_OF_TEST" >"$TERMINAL_OF_TEST" 2>&1', "sh")


@dataclass
class Terminal:
    """One command and its terminal. `shown` is all that the command has written."""

    process: subprocess.Popen[bytes]
    keyboard: int
    screen: int
    settings: list[Any]
    shown: str = ""
    _bytes: bytearray = field(default_factory=bytearray)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _read_to: int = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, *words: str, env: Mapping[str, str], columns: int = 120) -> AsyncIterator[Terminal]:
        """Run a command of Birdwire's at a new terminal, and kill it at the end if it still runs."""
        keyboard, screen = pty.openpty()
        termios.tcsetwinsize(screen, (40, columns))
        settings = termios.tcgetattr(screen)
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - the test ends it, and it is our own program
            [*SHELL, sys.executable, "-m", "birdwire.cli", *words],
            env={**env, "TERMINAL_OF_TEST": os.ttyname(screen), "TERM": "xterm", "NO_COLOR": "1"},
            start_new_session=True,
        )
        made = cls(process, keyboard, screen, settings)
        loop = asyncio.get_running_loop()
        loop.add_reader(keyboard, made._receive)
        try:
            yield made
        finally:
            if process.poll() is None:
                process.kill()
            await asyncio.to_thread(process.wait, WAIT_S)
            loop.remove_reader(keyboard)
            os.close(keyboard)
            os.close(screen)

    async def until(self, words: str) -> str:
        """Wait until the command has written these words; return all that it has written since the last time."""
        try:
            async with asyncio.timeout(WAIT_S):
                while (found := self.shown.find(words, self._read_to)) < 0:
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"{words!r} is not in:\n{self.shown[self._read_to :]}") from None
        start, self._read_to = self._read_to, found + len(words)
        return self.shown[start : self._read_to]

    def press(self, keys: str) -> None:
        """Press keys, all in one burst."""
        os.write(self.keyboard, keys.encode())

    async def ended(self) -> int:
        """Wait for the end of the command; return its exit code."""
        return await asyncio.to_thread(self.process.wait, WAIT_S)

    @property
    def is_restored(self) -> bool:
        """Return whether the terminal has the settings that it had before the command."""
        return bool(termios.tcgetattr(self.screen) == self.settings)

    def _receive(self) -> None:
        self._bytes += os.read(self.keyboard, 65_536)
        self.shown = self._bytes.decode("utf-8", "replace").replace("\r\n", "\n")
        self._news.set()
