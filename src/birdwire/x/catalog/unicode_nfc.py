"""Unicode normal form C in linear time; differs from `unicodedata` only where over 256 marks follow each other.

Ordering the combining marks after a letter takes time quadratic in their number, so a text is normalised in pieces
with a bounded number of marks each. What counts is the decomposition of a character: some that are not marks
themselves (U+0F73) consist of marks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from unicodedata import combining, normalize

if TYPE_CHECKING:
    from collections.abc import Iterator

MARKS_MAX: Final = 256
"""The maximum number of combining marks in one piece."""


def compose(text: str) -> str:
    """Return `text` in normal form C. Takes any string, lone surrogates included."""
    return text if text.isascii() else "".join(normalize("NFC", piece) for piece in pieces(text))


def pieces(text: str) -> Iterator[str]:
    """Yield the canonical decomposition of `text`, its marks not yet ordered, with at most MARKS_MAX marks in a piece.

    A piece ends between a mark and a letter, which never compose; within a run of marks if it is longer than that.
    """
    plain = text.translate({ord(char): normalize("NFD", char) for char in set(text)})
    marks = set(filter(combining, set(plain)))
    # `before` and `after` count the marks of the piece on each side of `border`.
    start = border = before = after = 0
    for at, char in enumerate(plain if marks else ""):
        if char in marks:
            after += 1
            if before + after > MARKS_MAX:
                end = border if before else at
                yield plain[start:end]
                start, before, after = end, 0, after if before else 1
        elif after:
            border, before, after = at, before + after, 0
    yield plain[start:]
