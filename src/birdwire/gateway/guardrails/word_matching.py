"""Finds an operator's words in the texts of a post, also if they are disguised.

Words are compared in compatibility form, case folded, without accents and invisible code points, so full-width and
mathematical letters, soft hyphens, zero-width characters, variation selectors and struck-through letters make no
difference. A word is found as a whole word; punctuation separates words, and several words in a row are a phrase. A
word of a script that is written without spaces, such as Chinese or Thai, and a word without any letter or digit, such
as an emoji, are found anywhere.

Letters of Cyrillic, Greek and phonetic notation that look like Latin ones are compared as those too, by ALIKE, in the
words and in the text, and the text is read backwards too where it contains a right-to-left override. That helps, and is
not a promise: ALIKE is short. Not covered are digits for letters (`g1veaway`), spaces or punctuation between letters
(`g.i.v.e`), regional indicators, pictures, and synonyms.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from string import ascii_lowercase
from typing import TYPE_CHECKING, Final

from birdwire.x.catalog.unicode_nfc import compatible, fold

if TYPE_CHECKING:
    from collections.abc import Iterable

_ALIKE_BY_LETTER: Final = {
    "a": "0251 0391 03B1 0410 0430 1D00",
    "b": "0299 0392 03B2 0412 0432",
    "c": "03C2 0421 0441 1D04",
    "d": "0111 0501 1D05",
    "e": "0395 03B5 0415 0435 1D07",
    "f": "A730",
    "g": "0261 0262 050C",
    "h": "0127 029C 0397 041D 043D 04BA 04BB",
    "i": "0131 0269 026A 0399 03B9 0406 0456",
    "j": "0237 0408 0458 1D0A",
    "k": "039A 03BA 041A 043A 1D0B",
    "l": "0142 029F 04C0 04CF",
    "m": "039C 041C 043C 1D0D",
    "n": "0274 039D 03B7 043F",
    "o": "00F8 039F 03BF 03C3 041E 043E 1D0F",
    "p": "03A1 03C1 0420 0440 1D18",
    "q": "051A 051B",
    "r": "0280 0433",
    "s": "0405 0455 A731",
    "t": "0167 03A4 03C4 0422 0442 1D1B",
    "u": "03C5 1D1C",
    "v": "028B 03BD 0474 0475 1D20",
    "w": "03C9 051C 051D 1D21",
    "x": "03A7 03C7 0425 0445",
    "y": "028F 03A5 03B3 0423 0443 04AE 04AF",
    "z": "0396 0417 0437 1D22",
}
ALIKE: Final[dict[int, str]] = {
    **{int(code, 16): letter for letter, codes in _ALIKE_BY_LETTER.items() for code in codes.split()},
    # The white letters in black circles and squares.
    **{start + place: letter for start in (0x1F150, 0x1F170) for place, letter in enumerate(ascii_lowercase)},
}
"""Letters that look like a Latin one, and that letter."""

_WORD: Final = re.compile(r"[^\W_]+")
_UNSPACED: Final = re.compile(
    r"[\u0E00-\u0EFF\u1000-\u109F\u1780-\u17FF\u3040-\u30FF\u3400-\u9FFF\U00020000-\U0003FFFF]"
)
_OVERRIDE: Final = "\u202e"


@dataclass(frozen=True, slots=True)
class WordList:
    """A list of words, ready to be found: whole words, phrases, and what is found anywhere.

    Phrases are kept by their first word and their length, so that a thousand of them cost little more than one.
    `written` is each as the operator wrote it.
    """

    words: frozenset[str]
    phrases: dict[str, dict[int, set[tuple[str, ...]]]]
    anywhere: tuple[str, ...]
    written: dict[str, str]

    @classmethod
    def of(cls, written: Iterable[str]) -> WordList:
        """Return the list of words as an operator wrote them. Each has something to compare (`has_content`)."""
        words: set[str] = set()
        phrases: dict[str, dict[int, set[tuple[str, ...]]]] = {}
        anywhere: list[str] = []
        names: dict[str, str] = {}
        forms = {form: word for word in reversed(tuple(written)) for form in _forms(word)}
        for folded, word in reversed(forms.items()):
            parts = tuple(_WORD.findall(folded))
            is_spaced = bool(parts) and not _UNSPACED.search(folded)
            names.setdefault(" ".join(parts) if is_spaced else folded, word)
            if not is_spaced:
                anywhere.append(folded)
            elif len(parts) == 1:
                words.add(parts[0])
            else:
                phrases.setdefault(parts[0], {}).setdefault(len(parts), set()).add(parts)
        return cls(frozenset(words), phrases, tuple(anywhere), names)

    def find(self, texts: Iterable[ReadText]) -> str | None:
        """Return the first word of the list, as it was written, that one of the texts contains."""
        for text in texts:
            for tokens in text.readings:
                found = self._whole(tokens)
                if found is not None:
                    return self.written[found]
            for part in self.anywhere:
                if part in text.folded:
                    return self.written[part]
        return None

    def _whole(self, tokens: tuple[str, ...]) -> str | None:
        """Return the first word or phrase among the words of a text."""
        if not self.words.isdisjoint(tokens):
            return next(token for token in tokens if token in self.words)
        for at, token in enumerate(tokens if not self.phrases.keys().isdisjoint(tokens) else ()):
            for length, phrases in self.phrases.get(token, {}).items():
                if (phrase := tokens[at : at + length]) in phrases:
                    return " ".join(phrase)
        return None


@dataclass(frozen=True, slots=True)
class ReadText:
    """A text as it is compared: folded, and its words in each way in which a person may read them."""

    folded: str
    readings: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, text: str) -> ReadText:
        """Read a text."""
        forms = _forms(text)
        readings = [tuple(_WORD.findall(form)) for form in forms]
        if _OVERRIDE in text:
            readings += [tuple(token[::-1] for token in reversed(tokens)) for tokens in readings]
        return cls(forms[0], tuple(dict.fromkeys(readings)))


def _forms(text: str) -> tuple[str, ...]:
    """Return a text folded; if it is not ASCII, also with the Latin letters that it looks like."""
    folded = " ".join(fold(text).split())
    if text.isascii():
        return (folded,)
    parts = (part.lower() if part.isascii() else "".join(map(_latin, part)) for part in text.split())
    return folded, " ".join(" ".join(parts).split())


@lru_cache(maxsize=4096)
def _latin(char: str) -> str:
    """Return a code point folded, as the Latin letter that it looks like before or after that."""
    return fold(compatible(char).translate(ALIKE)).translate(ALIKE)


def has_content(word: str) -> bool:
    """Return whether a word has anything to compare: it does not consist of white space and invisible code points."""
    return bool(fold(word).split())
