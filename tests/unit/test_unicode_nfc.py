"""Normal form C in linear time: equal to Unicode's for what people write, bounded for every code point."""

from __future__ import annotations

from unicodedata import combining, decomposition, normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdwire.x.catalog.unicode_nfc import MARKS_MAX, compatible, compose, fold, pieces

EVERY = [chr(number) for number in range(0x30000)]  # nothing beyond decomposes
MARKED = [char for char in EVERY if any(map(combining, normalize("NFD", char)))]
LONG = {
    "kana with a sound mark": "か\u3099",
    "kana with a sound mark, composed": "が",
    "a letter with three marks": "\u03b1\u0313\u0301\u0345",
    "marks in the wrong order": "e\u0301\u0323",
    "a vowel sign of three parts": "\u0dd9\u0dcf\u0dca",
    "hangul with a tone mark": "\u1112\u1161\u11ab\u302e",
    "hangul syllables": "한\u302e",
    "hebrew points": "\u05e9\u05bc\u05c1\u05b8",
}


def marks(text: str) -> int:
    """Count the combining marks of a text that is decomposed."""
    return sum(map(bool, map(combining, text)))


def test_no_piece_of_any_repeated_character_has_more_marks_than_the_bound() -> None:
    """Holds for each of the 1,900 characters whose decomposition has a mark, alone and after a letter."""
    assert len(MARKED) > 1_900
    times = MARKS_MAX + 1
    for char in MARKED:
        found = list(pieces(char * times + f"a{char}" * times))
        assert max(map(marks, found)) <= MARKS_MAX, hex(ord(char))
        alone = normalize("NFD", char)
        assert "".join(found) == alone * times + f"a{alone}" * times, hex(ord(char))


@pytest.mark.parametrize("unit", LONG.values(), ids=LONG)
def test_a_long_text_is_composed_as_unicode_composes_it(unit: str) -> None:
    """Pieces end where nothing composes, however many marks the text has in all."""
    text = unit * 3 * MARKS_MAX
    assert len(list(pieces(text))) >= 3
    assert compose(text) == normalize("NFC", text)


@given(st.text())
def test_any_text_is_composed_as_unicode_composes_it(text: str) -> None:
    """Texts without a run of marks over the bound."""
    assert compose(text) == normalize("NFC", text)


@given(st.text(st.sampled_from([*MARKED, *"aが한\u1112\u1161\u11ab\u0dd9\u0dcf\u09c7\u09be"]), max_size=60))
def test_a_text_full_of_marks_is_composed_as_unicode_composes_it(text: str) -> None:
    """At most 60 characters of three marks each, so within the bound; and the same many times, parted by letters."""
    assert compose(text) == normalize("NFC", text)
    assert compose(f"{text}x" * 20) == normalize("NFC", f"{text}x" * 20)


def test_no_letter_composes_with_a_mark_before_it() -> None:
    """Pieces rely on that property of Unicode: no character is composed of one with marks and then a letter."""
    for char in EVERY:
        parts = [chr(int(part, 16)) for part in decomposition(char).split() if "<" not in part]
        if len(parts) == 2 and not combining(parts[1]) and normalize("NFC", "".join(parts)) == char:
            assert not any(map(combining, normalize("NFD", parts[0]))), hex(ord(char))


@given(st.text())
def test_any_text_has_the_compatibility_form_of_unicode(text: str) -> None:
    """Short and long texts, without a run of marks over the bound."""
    assert compatible(text) == normalize("NFKC", text)
    assert compatible(f"{text}x" * 100) == normalize("NFKC", f"{text}x" * 100)


def test_a_run_of_marks_over_the_bound_is_cut_into_pieces_in_each_form() -> None:
    """Otherwise the time would be quadratic in the length of the run."""
    for form in ("NFD", "NFKD"):
        found = list(pieces("a" + "\u0301\u0323" * 20 * MARKS_MAX, form))
        assert max(map(marks, found)) == MARKS_MAX
        assert "".join(found) == "a" + "\u0301\u0323" * 20 * MARKS_MAX


FOLDED = {
    "case": ("GiveAway", "giveaway"),
    "sharp s": ("STRAẞE straße", "strasse strasse"),
    "full-width letters": ("\uff27\uff29\uff36\uff25", "give"),
    "letters of mathematics": ("\U0001d420\U0001d422\U0001d42f\U0001d41e", "give"),
    "circled letters": ("\u24d6\u24d8\u24e5\u24d4", "give"),
    "ligatures": ("o\ufb00er", "offer"),
    "accents, composed and not": ("\u00e9e\u0301\u1ec7", "eee"),
    "struck-through letters": ("f\u0336r\u0336e\u0336e\u0336", "free"),
    "soft hyphens": ("give\u00adaway", "giveaway"),
    "zero-width characters": ("g\u200bi\u200cv\u200de\u2060\ufeff", "give"),
    "variation selectors": ("g\ufe0fi\ufe00\U000e0100", "gi"),
    "controls of direction": ("\u202egive\u202c\u2066\u2069\u200f\u061c", "give"),
    "tags": ("give\U000e0067\U000e007f", "give"),
    "a combining grapheme joiner": ("gi\u034fve", "give"),
    "an emoji of several": ("\U0001f468\u200d\U0001f469", "\U0001f468\U0001f469"),
    "kana with a sound mark": ("か\u3099", "が"),
    "half-width kana": ("\uff76\uff9e", "ガ"),
    "hangul letters": ("\u1112\u1161\u11ab", "한"),
    "hangul fillers": ("a\u3164b\uffa0c", "abc"),
    "spaces of any width": ("a\u00a0b\u3000c", "a b c"),
    "ascii": ("ABC def", "abc def"),
}


@pytest.mark.parametrize(("text", "folded"), FOLDED.values(), ids=FOLDED)
def test_a_text_is_folded_to_what_readers_see_as_the_same(text: str, folded: str) -> None:
    """Folding again changes nothing."""
    assert fold(text) == folded
    assert fold(folded) == folded


@given(st.text())
def test_a_folded_text_is_unchanged_by_folding_and_by_case(text: str) -> None:
    """Otherwise a word of a policy could differ from the same word in a text."""
    assert fold(fold(text)) == fold(text)
    assert fold(text.casefold()) == fold(text)
