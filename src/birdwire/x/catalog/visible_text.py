"""A text as it is shown to a person who decides on it: what cannot be seen in it becomes a marker such as U+202E.

A marker stands for one code point that a reader does not see, or that changes how the rest reads: controls (except the
line feed), format characters such as joiners and controls of direction, everything else that Unicode lets a font
ignore, white space other than the ordinary space, blank symbols, unassigned and private code points, lone surrogates,
combining marks that follow no letter, and piles of marks that would cover other lines. Emoji that are joined
from several show their joiners: what is shown is what is posted, code point by code point.

Letters of any script are shown as they are. Right-to-left letters reorder what surrounds them, so a page isolates the
text from the rest of the page, and a terminal prints it on lines of its own.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple
from unicodedata import category, combining

from birdwire.x.catalog.link_hosts import ascii_host, host_of

if TYPE_CHECKING:
    from collections.abc import Iterable

MARKS_MAX: Final = 4
"""Maximum number of combining marks that are shown on one letter. Pointed and accented Hebrew has as many."""

# str.isprintable covers controls, format characters, spaces, and what is unassigned, private or half of a pair. These
# are printable by their category, but a font draws nothing: what else is Default_Ignorable_Code_Point in Unicode 15
# (the grapheme joiner, fillers, inherent vowels, variation selectors), blank symbols, and the object replacement
# character.
_BLANK: Final = re.compile(
    r"[\u034F\u115F\u1160\u17B4\u17B5\u180B-\u180F\u2065\u2800\u3164\uFE00-\uFE0F\uFFA0\uFFF0-\uFFF8\uFFFC"
    r"\U00013441\U00013442\U00016FE4\U0001D159\U000E0000-\U000E0FFF]"
)
_LINK_START: Final = re.compile(r"https?://", re.IGNORECASE)
_HOST_ENDS: Final = ("", "/", "?", "#", ":")
_OPEN, _CLOSE = "\u2039", "\u203a"


class LinkHost(NamedTuple):
    """A link and the host to which it leads, in punycode; empty if no browser resolves it.

    `differs`: the link does not show that host as it is, such as one with letters that look like others, or with a name
    before an @.
    """

    link: str
    host: str
    differs: bool


def runs(text: str) -> list[tuple[str, bool]]:
    """Split a text into runs: what is shown as it is (False), and markers such as U+202E, one for a code point (True).

    The shown runs and the code points of the markers, in their order, are the text.
    """
    if text.isascii() and text.isprintable():
        return [(text, False)] if text else []
    found: list[tuple[str, bool]] = []
    start = marks = 0
    is_based = False
    for at, char in enumerate(text):
        kind = _kind(char)
        if kind == "mark":
            marks += bool(combining(char)) or category(char) == "Me"
            is_hidden = not is_based or marks > MARKS_MAX
        else:
            marks, is_based, is_hidden = 0, kind == "base", kind == "hidden"
        if is_hidden:
            if start < at:
                found.append((text[start:at], False))
            found.append((f"U+{ord(char):04X}", True))
            start, is_based = at + 1, False
    if start < len(text):
        found.append((text[start:], False))
    return found


def marked(text: str) -> str:
    """Return a text for a terminal, with each marker between angle quotes. Different texts have different results."""
    return "".join(
        f"{_OPEN}{run}{_CLOSE}" if is_marker else run.replace(f"{_OPEN}U+", f"{_OPEN}U+2039{_CLOSE}U+")
        for run, is_marker in runs(text)
    )


def hosts(links: Iterable[str]) -> list[LinkHost]:
    """Return each link, once, with the host to which it leads."""
    return [_host(link) for link in dict.fromkeys(links)]


def _host(link: str) -> LinkHost:
    host = ascii_host(host_of(link))
    written = _LINK_START.sub("", link, count=1).lower()
    shows_it = written.startswith(host) and written[len(host) : len(host) + 1] in _HOST_ENDS
    return LinkHost(link, host, differs=not (host and shows_it))


@lru_cache(maxsize=4096)
def _kind(char: str) -> str:
    """Return what a code point is: `hidden`, a `mark`, a `space` that takes no mark, or a `base`."""
    if char in " \n":
        return "space"
    if not char.isprintable() or _BLANK.match(char):
        return "hidden"
    return "mark" if category(char)[0] == "M" else "base"
