"""Text from another machine, as far as a terminal may show it."""

from __future__ import annotations


def printable(text: object, length: int = 500) -> str:
    """Return text from another machine as a single line without control characters."""
    line = "".join(char if char.isprintable() else " " for char in str(text)[: length + 1])
    return line if len(line) <= length else f"{line[:length]}..."
