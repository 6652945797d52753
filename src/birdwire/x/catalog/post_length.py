"""The weighted length of a post's text, counted as X counts it; it never alters a text.

The rules are those of twitter-text 3.1 with its configuration v3 (developer docs, "Counting characters"):

- the text is counted in Unicode normal form C;
- a link counts 23, however long it is;
- an emoji counts 2, however many code points it is made of;
- a code point in `_LIGHT` counts 1, any other 2.

A link is found as twitter-text finds it: with or without a protocol, its top-level domain in `top_level_domains.txt`
or in punycode, its path and query as far as they go without the punctuation that ends a sentence, parentheses if
balanced. It may not follow an ASCII letter or digit, @, $ or #, and without a protocol not - _ . or / either. Without
a protocol only the ASCII and accented Latin part of a host is a link, and a query counts as text unless there is a
path before it. A link is at most 4,096 UTF-16 code units long, each label of its host at most 63 bytes in punycode.

Where it cannot be known what X does, the count errs low, and X decides:

- a sequence that UTS #51 allows is one emoji, though X's fonts may not know it (or not yet);
- a host under a top-level domain that is younger than twitter-text 3.1 counts as a link or as text, whichever is less;
- mentions that X itself puts at the start of a reply are free there; here they count if the text has them.

Time is linear in the text's length: patterns are possessive, what follows a dot is looked up once, and composition is
bounded.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

from birdwire.x.catalog.unicode_nfc import compose

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT: Final = 280
"""The weighted length that a post of a plain account may have."""

_LINK_WEIGHT = 23
_LINK_MAX = 4096
_LABEL_MAX = 63
_SLUG_MAX = 40
# In code points: four elements of 7 and the three joiners between them. No character decomposes into as many.
_LONGEST_EMOJI = 31
_YOUNG = "+"

# Bodies of character classes, as twitter-text defines them.
_LIGHT = r"\u0000-\u10FF\u2000-\u200D\u2010-\u201F\u2032-\u2037"
_LATIN = (
    r"\u00C0-\u00D6\u00D8-\u00F6\u00F8-\u024F\u0253\u0254\u0256\u0257\u0259\u025B\u0263\u0268\u026F\u0272\u0289\u028B"
    r"\u02BB\u0300-\u036F\u1E00-\u1EFF"
)
_CYRILLIC = r"\u0400-\u04FF"
_SPACE = r"\u0009-\u000D\u0020\u0085\u00A0\u1680\u180E\u2000-\u200A\u2028\u2029\u202F\u205F\u3000"
_DIRECTION = r"\u202A-\u202E\u061C\u200E\u200F\u2066-\u2069"
_INVALID = r"\uFFFE\uFEFF\uFFFF"
_PATH_END = rf"A-Za-z0-9+\-=_#/{_CYRILLIC}{_LATIN}"
_PATH_INNER = r"!*';:,.$%\[\]\u2013~@|&"
_QUERY_END = r"A-Za-z0-9\-_&=#/"
_QUERY_INNER = r"!?*'@();:+$%\[\].,~|"

_PATH_CHAR = rf"[{_PATH_END}{_PATH_INNER}]"
_PARENTHESES = rf"\((?:{_PATH_CHAR}++(?:\({_PATH_CHAR}++\){_PATH_CHAR}*+)?|\({_PATH_CHAR}++\){_PATH_CHAR}*+)\)"
_PATH = rf"/(?:[{_PATH_INNER}]*+(?:[{_PATH_END}]++|{_PARENTHESES}))*+"
_QUERY = rf"\?(?:[{_QUERY_INNER}]*+[{_QUERY_END}]++)++"

_SPACES = re.compile(rf"[{_SPACE}]++")
_HEAVY = re.compile(rf"[^{_LIGHT}]++")
_RUN = re.compile(rf"[^!'#%&()*+,\\/:;<=>?@\[\]^{{|}}~${_SPACE}{_INVALID}{_DIRECTION}]++")
_START = re.compile(rf"(?<![A-Za-z0-9@\uFF20$#\uFF03{_INVALID}])[^-_.]")
_PROTOCOL = re.compile(rf"(?<![A-Za-z0-9@\uFF20$#\uFF03{_INVALID}])[Hh][Tt][Tt][Pp][Ss]?://")
_TAIL = re.compile(rf"(?::[0-9]++)?+(?P<path>{_PATH})?+(?:{_QUERY})?+")
_SHORT_LINK = re.compile(rf"[Hh][Tt][Tt][Pp][Ss]?://[Tt]\.[Cc][Oo]/(?P<slug>[A-Za-z0-9]++)(?:{_QUERY})?+")
_LABELS = re.compile(rf"(?:[-A-Za-z0-9{_LATIN}]++\.)++")
_GOES_ON = re.compile(r"[0-9A-Za-z@+-]")
_LETTERS = re.compile(r"[A-Za-z]++(?![0-9@+-])")
_PUNYCODE = re.compile(r"[Xx][Nn]--[-0-9A-Za-z]++")
_DOT_AND_LETTER = re.compile(r"\.[A-Za-z]")
_FULL_STOPS = re.compile(r"[.\u3002\uFF0E\uFF61]")

# UTS #51, "EBNF and Regex", for what can look like an emoji, less what no emoji has: more than four elements joined,
# and tags on anything but the flag of a country that X draws.
_PICTURE = (
    r"\u00A9\u00AE\u203C\u2049\u2122\u2139\u2194-\u2199\u21A9\u21AA\u231A\u231B\u2328\u23CF\u23E9-\u23F3\u23F8-\u23FA"
    r"\u24C2\u25AA\u25AB\u25B6\u25C0\u25FB-\u25FE\u2600-\u2604\u260E\u2611\u2614\u2615\u2618\u261D\u2620\u2622\u2623"
    r"\u2626\u262A\u262E\u262F\u2638-\u263A\u2640\u2642\u2648-\u2653\u265F\u2660\u2663\u2665\u2666\u2668\u267B\u267E"
    r"\u267F\u2692-\u2697\u2699\u269B\u269C\u26A0\u26A1\u26A7\u26AA\u26AB\u26B0\u26B1\u26BD\u26BE\u26C4\u26C5\u26C8"
    r"\u26CE\u26CF\u26D1\u26D3\u26D4\u26E9\u26EA\u26F0-\u26F5\u26F7-\u26FA\u26FD\u2702\u2705\u2708-\u270D\u270F\u2712"
    r"\u2714\u2716\u271D\u2721\u2728\u2733\u2734\u2744\u2747\u274C\u274E\u2753-\u2755\u2757\u2763\u2764\u2795-\u2797"
    r"\u27A1\u27B0\u27BF\u2934\u2935\u2B05-\u2B07\u2B1B\u2B1C\u2B50\u2B55\u3030\u303D\u3297\u3299"
    r"\U0001F000-\U0001F1E5\U0001F200-\U0001F3FA\U0001F400-\U0001FAFF"
)
_TAGGED = "|".join("\U0001f3f4" + "".join(chr(0xE0000 + ord(c)) for c in tag) for tag in ("gbeng", "gbsct", "gbwls"))
_ELEMENT = rf"(?:(?:{_TAGGED})\U000E007F|[{_PICTURE}](?:\uFE0F|[\U0001F3FB-\U0001F3FF])?+)"
_EMOJI = re.compile(
    rf"{_ELEMENT}(?:\u200D{_ELEMENT}){{1,3}}+|[\u00A9\u00AE]\uFE0F|(?![\u00A9\u00AE]){_ELEMENT}"
    r"|[0-9#*]\uFE0F?+\u20E3|[\U0001F1E6-\U0001F1FF]{2}"
)


class _Domains(NamedTuple):
    """Top-level domains in lower case: all, those that X may not know yet, and the lengths of those not in ASCII."""

    all: frozenset[str]
    young: frozenset[str]
    lengths: tuple[int, ...]


class _Link(NamedTuple):
    """A link's place in the text, as a slice; `sure` is False if X may take it for plain text."""

    start: int
    end: int
    sure: bool


def weighted_length(text: str, enough: float = inf) -> int:
    """Return the weighted length of `text`; a post may have `LIMIT`. Any string has one, lone surrogates too.

    A text over `enough` is not read to its end, since each link costs some 40 microseconds: the result is then a lower
    bound greater than `enough`.
    """
    if len(text) <= enough and _is_plain(text):
        return len(text)
    text = compose(text)
    total = at = 0
    for found in _links(text):
        # Up to this position, there is no other link.
        if isinstance(found, int):
            if (least := total + _least(found - at)) > enough:
                return least
            continue
        total += _weight(text[at : found.start])
        total += _LINK_WEIGHT if found.sure else min(_LINK_WEIGHT, _weight(text[found.start : found.end]))
        at = found.end
        if total > enough:
            return total
    return total + _weight(text[at:])


def _least(code_points: int) -> int:
    """Return the minimum weight of a number of code points without a link."""
    return 2 * code_points // _LONGEST_EMOJI


def least_length(text: str) -> int:
    """Return a lower bound of `weighted_length`, from the length of the words that cannot hold a link."""
    return _least(sum(len(word) for word in _SPACES.split(text) if "." not in word))


def has_link(text: str) -> bool:
    """Return whether X may find a link in `text`."""
    return not _is_plain(text) and any(isinstance(found, _Link) for found in _links(compose(text)))


def links_of(text: str) -> tuple[str, ...]:
    """Return the links that X may find in `text`, in their order, as they are written."""
    if _is_plain(text):
        return ()
    text = compose(text)
    return tuple(text[found.start : found.end] for found in _links(text) if isinstance(found, _Link))


def _is_plain(text: str) -> bool:
    """Return whether every code point of `text` counts 1: it is ASCII, and no dot is followed by a top-level domain."""
    return text.isascii() and not _DOT_AND_LETTER.search(text)


def _weight(plain: str) -> int:
    """Return the weight of a text without links."""
    plain, emoji = _EMOJI.subn("", plain)
    return 2 * emoji + len(plain) + sum(len(heavy) for heavy in _HEAVY.findall(plain))


def _links(text: str) -> Iterator[_Link | int]:
    """Yield the links in `text`, left to right, without overlaps; and after each run the position searched so far.

    A match is not searched again, whether or not it is a link: the next link must follow a character that may precede
    one.
    """
    at = free = 0
    while run := _RUN.search(text, at):
        at = run.end()
        for low, high, host_end in _hosts(text, run) if "." in run[0] else ():
            protocol = _protocol(text, low, free) if low == run.start() and text[low] not in "-_" else ""
            begin = None if protocol else _START.search(text, max(low, free), high)
            if not (protocol or begin):
                continue
            host_start = begin.start() if begin else low
            tail = _TAIL.match(text, host_end)
            end = tail.end() if tail else host_end
            start = host_start - len(protocol)
            if not _fits(text[start:end], text[host_start:host_end], protocol):
                pass
            elif protocol:
                yield from _whole(text, start, host_end, end)
            elif start == 0 or text[start - 1] not in "-_./":
                yield from _latin(text, start, host_end, end if tail and tail["path"] else host_end)
            free = end + 1
            at = max(at, end)
        yield at


def _hosts(text: str, run: re.Match[str]) -> Iterator[tuple[int, int, int]]:
    """Yield (low, high, end) for each label of a run in which a host may start: from low, before high; it ends at end.

    A host consists of the labels up to a top-level domain. No label starts or ends with a hyphen or underscore, and the
    one before the top-level domain contains no underscore.
    """
    labels = run[0].split(".")
    starts = list(accumulate((len(label) + 1 for label in labels), initial=run.start()))
    found: list[tuple[int, int, int]] = []
    # For each label n, the end of the host that starts with it, complete; 0 if there is no such host.
    ends = [0] * (len(labels) + 1)
    for n in range(len(labels) - 2, -1, -1):
        domain_end = _domain_end(text, starts[n + 1])
        label, end = labels[n], ends[n + 1] or domain_end
        if not end or label[-1:] in {"", "-", "_"}:
            continue
        low = 0 if ends[n + 1] else label.rfind("_") + 1
        if low == 0 and label[0] not in "-_":
            ends[n] = end
        found.append((starts[n] + low, starts[n] + len(label), end))
    yield from reversed(found)


def _protocol(text: str, at: int, free: int) -> str:
    """Return the protocol that ends at `at` and starts at `free` or later; "" if there is none."""
    for length in (len("http://"), len("https://")):
        if at - length >= free and _PROTOCOL.fullmatch(text, at - length, at):
            return text[at - length : at]
    return ""


def _fits(link: str, host: str, protocol: str) -> bool:
    """Return whether X accepts a link of this length."""
    units = sum(1 + (char > "\uffff") for char in link)
    if units + len(protocol or "https://") > _LINK_MAX:
        return False
    return all(0 < _encoded_length(label) <= _LABEL_MAX for label in host.split("."))


def _encoded_length(label: str) -> int:
    """Return the length of a label in the DNS, in bytes; of a label that is too long by itself, a lower bound."""
    if label.isascii() or len(label) > _LABEL_MAX:
        return len(label)
    parts = _FULL_STOPS.split(label)
    return sum(len(p) if p.isascii() else len("xn--") + len(p.encode("punycode")) for p in parts) + len(parts) - 1


def _whole(text: str, start: int, host_end: int, end: int) -> Iterator[_Link]:
    """Yield a link with a protocol. A link of t.co ends with its slug or query, and is text if its slug is too long."""
    if short := _SHORT_LINK.match(text, start, end):
        if len(short["slug"]) > _SLUG_MAX:
            return
        end = short.end()
    yield _Link(start, end, sure=_sure(text[start:host_end]))


def _latin(text: str, start: int, host_end: int, end: int) -> Iterator[_Link]:
    """Yield the links without a protocol in the host at `start`; the last one includes the path, up to `end`."""
    host = text[start:host_end]
    last: _Link | None = None
    at = 0
    while labels := _LABELS.search(host, at):
        at = labels.end()
        dots = [n for n in range(labels.start(), labels.end()) if host[n] == "."]
        domain_end = next(filter(None, (_domain_end(host, dot + 1) for dot in reversed(dots))), 0)
        if not domain_end:
            continue
        if last:
            yield last
        at = domain_end
        name = host[labels.start() : domain_end]
        last = _Link(start + labels.start(), start + domain_end, sure=_sure(name))
    if last:
        yield last._replace(end=end if end > host_end else last.end)


def _domain_end(text: str, at: int) -> int:
    """Return the end of the top-level domain that starts at `at`; 0 if there is none."""
    domains = _domains()
    if letters := _LETTERS.match(text, at):
        return letters.end() if letters[0].lower() in domains.all else 0
    if punycode := _PUNYCODE.match(text, at):
        return punycode.end()
    if text[at : at + 1].isascii():
        return 0
    for length in domains.lengths:
        end = at + length
        if text[at:end].lower() in domains.all and end <= len(text) and not _GOES_ON.match(text, end):
            return end
    return 0


def _sure(host: str) -> bool:
    """Return whether X is known to link this host."""
    return host.rpartition(".")[2].lower() not in _domains().young


@cache
def _domains() -> _Domains:
    """Return the table of top-level domains, read once."""
    table = resources.files(__package__).joinpath("top_level_domains.txt").read_text(encoding="utf-8")
    names = [line for line in table.splitlines() if not line.startswith("#")]
    young = frozenset(name.removeprefix(_YOUNG) for name in names if name.startswith(_YOUNG))
    every = frozenset(name.removeprefix(_YOUNG) for name in names)
    lengths = {len(name) for name in every if not name.isascii()}
    return _Domains(every, young, tuple(sorted(lengths, reverse=True)))
