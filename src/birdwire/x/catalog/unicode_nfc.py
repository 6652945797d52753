"""Unicode normal forms in linear time; they differ from `unicodedata` only where over 256 marks follow each other.

Ordering the combining marks after a letter takes time quadratic in their number, so a text is normalised in pieces
with a bounded number of marks each. What counts is the decomposition of a character: some that are not marks
themselves (U+0F73) consist of marks.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal
from unicodedata import combining, normalize

if TYPE_CHECKING:
    from collections.abc import Iterator

MARKS_MAX: Final = 256
"""The maximum number of combining marks in one piece."""

# An ordinary post is not cut into pieces, which takes longer than ordering its marks: no character has more than three.
_SHORT: Final = 300

# Default_Ignorable_Code_Point of Unicode 15: soft hyphen, zero-width characters and joiners, fillers, controls of
# direction, variation selectors, tags. And the marks that attach to any letter, which are not part of an alphabet.
_UNSEEN: Final = re.compile(
    r"[\u00AD\u034F\u061C\u115F\u1160\u17B4\u17B5\u180B-\u180F\u200B-\u200F\u202A-\u202E\u2060-\u206F\u3164"
    r"\uFE00-\uFE0F\uFEFF\uFFA0\uFFF0-\uFFF8\U0001BCA0-\U0001BCA3\U0001D173-\U0001D17A\U000E0000-\U000E0FFF"
    r"\u0300-\u036F\u0483-\u0489\u1AB0-\u1AFF\u1DC0-\u1DFF\u20D0-\u20FF\uFE20-\uFE2F]"
)


def compose(text: str) -> str:
    """Return `text` in normal form C. Takes any string, lone surrogates included."""
    if text.isascii():
        return text
    if len(text) <= _SHORT:
        return normalize("NFC", text)
    return "".join(normalize("NFC", piece) for piece in pieces(text))


def compatible(text: str) -> str:
    """Return `text` in normal form KC: full-width letters, ligatures and letters of mathematics become plain ones."""
    if text.isascii():
        return text
    if len(text) <= _SHORT:
        return normalize("NFKC", text)
    return "".join(normalize("NFC", piece) for piece in pieces(text, "NFKD"))


def fold(text: str) -> str:
    """Return `text` for comparing: in normal form KC, case folded, without accents and invisible code points.

    A text that is folded already is unchanged.
    """
    if text.isascii():
        return text.lower()
    return " ".join(map(_folded_part, text.split(" ")))


def _folded_part(text: str) -> str:
    """Return a part of a text between spaces, folded. Most parts of most texts are ASCII."""
    return text.lower() if text.isascii() else compose("".join(map(_folded, text)))


@lru_cache(maxsize=4096)
def _folded(char: str) -> str:
    """Return what a code point contributes to a folded text; "" if a reader does not see it."""
    return _UNSEEN.sub("", normalize("NFKD", normalize("NFKD", char).casefold()))


def pieces(text: str, form: Literal["NFD", "NFKD"] = "NFD") -> Iterator[str]:
    """Yield the decomposition of `text`, its marks not yet ordered, with at most MARKS_MAX marks in a piece.

    A piece ends between a mark and a letter, which never compose; within a run of marks if it is longer than that.
    """
    plain = text.translate({ord(char): normalize(form, char) for char in set(text)})
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
