"""The terminal of a command that a person works with: single keys, one line, or a text in an editor.

The terminal's own settings are restored at every end of the block, whatever ends it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import termios
import tty
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from birdwire.cli.inputs import editor
from birdwire.cli.printable import printable
from birdwire.cli.stop import ExitCode, Stop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

BURST: Final = 1_024
_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)


def is_terminal() -> bool:
    """Return whether a person can answer: both the input and the output of the command are a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


class Keys:
    """The keys that are pressed, one by one; a line or an editor takes the terminal over in between."""

    def __init__(self) -> None:
        self._input = sys.stdin.fileno()
        self._saved: list[Any] = []

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read single keys during the block. SIGTERM and SIGHUP end the command, as Ctrl-C does."""
        self._saved = termios.tcgetattr(self._input)
        before = {number: signal.signal(number, _end) for number in _ENDING}
        try:
            tty.setcbreak(self._input)
            yield
        finally:
            self._restore()
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def line_mode(self) -> Iterator[None]:
        """Return the terminal to its own settings during the block, for a prompt or an editor."""
        self._restore()
        try:
            yield
        finally:
            tty.setcbreak(self._input)

    def next(self, within_s: float) -> str:
        """Return the next key; "" if none is pressed in time.

        What comes in one burst is not a key that a person pressed: a pasted text, or an escape sequence. It is dropped.

        Raises:
            EOFError: the terminal is closed.
        """
        if not select.select([self._input], [], [], within_s)[0]:
            return ""
        burst = os.read(self._input, BURST)
        if not burst:
            raise EOFError
        return burst.decode("ascii", "replace") if len(burst) == 1 else ""

    def forget(self) -> None:
        """Drop the keys that were pressed so far."""
        termios.tcflush(self._input, termios.TCIFLUSH)

    def _restore(self) -> None:
        # The terminal may be closed already.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._input, termios.TCSAFLUSH, self._saved)


def ask_line(question: str) -> str:
    """Return the line that a person enters; "" at the end of the input."""
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline().rstrip("\n")


def edit_text(text: str) -> str:
    """Return a text after a person has changed it in an editor: VISUAL, EDITOR or vi.

    A line feed at the end, which editors add, is removed if the text had none.

    Raises:
        Stop: the editor cannot be started or fails, or the result is not UTF-8.
    """
    command = editor() or ["vi"]
    with tempfile.TemporaryDirectory(prefix="birdwire-") as folder:
        # The folder is private; an editor may write its own files next to the text.
        file = Path(folder) / "post.txt"
        file.write_bytes(text.encode("utf-8", "replace"))
        try:
            # The operator's own environment names the program.
            code = subprocess.run([*command, str(file)], check=False).returncode  # noqa: S603
            changed = file.read_bytes().decode("utf-8")
        except OSError as error:
            name = printable(command[0], 60)
            raise Stop(ExitCode.USAGE, f"Cannot start the editor {name}: {error.strerror}.", "Set EDITOR.") from None
        except UnicodeDecodeError:
            raise Stop(ExitCode.USAGE, "The text is not UTF-8. Nothing was changed.") from None
    if code:
        raise Stop(ExitCode.USAGE, f"The editor ended with code {code}. Nothing was changed.")
    return changed if text.endswith("\n") else changed.removesuffix("\n")


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    raise SystemExit(128 + number)
