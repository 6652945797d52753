"""Words in texts: whole words, phrases, scripts without spaces, and the disguises that are found or documented."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdwire.gateway.guardrails import word_matching
from birdwire.gateway.guardrails.word_matching import ALIKE, ReadText, WordList, has_content
from birdwire.x.catalog.unicode_nfc import fold


def found(words: list[str], *texts: str) -> str | None:
    """Return the word of a list that texts contain."""
    return WordList.of(words).find(map(ReadText.of, texts))


PRESENT: dict[str, tuple[str, str]] = {
    "alone": ("giveaway", "giveaway"),
    "between words": ("giveaway", "a giveaway today"),
    "in capitals": ("giveaway", "GIVEAWAY"),
    "a word in capitals": ("GiveAway", "giveaway"),
    "with punctuation": ("giveaway", "(giveaway!)"),
    "with underscores": ("giveaway", "_giveaway_"),
    "as a hashtag": ("giveaway", "#GiveAway"),
    "a hashtag": ("#ad", "an #ad"),
    "an apostrophe": ("don't", "I DON'T know"),
    "a hyphen": ("give-away", "give away"),
    "a phrase": ("free money", "it is free money"),
    "a phrase over lines": ("free money", "FREE\n  MONEY"),
    "a phrase with punctuation": ("free money", "free, money"),
    "a phrase after its first word": ("free money", "free free money"),
    "digits": ("100", "over 100 people"),
    "an address": ("evil.com", "go to EVIL.com/now"),
    # Forms of the same letter.
    "full-width": ("giveaway", "\uff27\uff29\uff36\uff25\uff21\uff37\uff21\uff39"),
    "mathematics": ("giveaway", "".join(chr(0x1D400 + ord(c) - 65) for c in "GIVEAWAY")),
    "script": ("free", "\U0001d4ef\U0001d4fb\U0001d4ee\U0001d4ee"),
    "monospace": ("free", "".join(chr(0x1D68A + ord(c) - 97) for c in "free")),
    "circles": ("free", "\u24d5\u24e1\u24d4\u24d4"),
    "black circles": ("free", "".join(chr(0x1F150 + ord(c) - 97) for c in "free")),
    "squares": ("free", "".join(chr(0x1F130 + ord(c) - 97) for c in "free")),
    "black squares": ("free", "".join(chr(0x1F170 + ord(c) - 97) for c in "free")),
    "small capitals": ("giveaway", "\u0262\u026a\u1d20\u1d07\u1d00\u1d21\u1d00\u028f"),
    "superscripts": ("free", "\u1da0\u02b3\u1d49\u1d49"),
    "a ligature": ("offer", "o\ufb00er"),
    # Invisible and combining code points.
    "zero-width spaces": ("giveaway", "g\u200bi\u200bv\u200be\u200ba\u200bw\u200ba\u200by"),
    "zero-width joiners": ("giveaway", "give\u200daway\u200c"),
    "a soft hyphen": ("giveaway", "give\u00adaway"),
    "a word joiner": ("giveaway", "give\u2060away"),
    "a byte order mark": ("giveaway", "\ufeffgiveaway"),
    "variation selectors": ("giveaway", "g\ufe0fi\ufe0fveaway"),
    "tags": ("giveaway", "giveaway\U000e0067\U000e007f"),
    "struck through": ("giveaway", "".join(c + "\u0336" for c in "giveaway")),
    "underlined": ("giveaway", "".join(c + "\u0332" for c in "giveaway")),
    "accents": ("giveaway", "g\u00edve\u00e1w\u00e4y"),
    "accents in the word": ("caf\u00e9", "cafe"),
    "zalgo": ("free", "f" + "\u0301\u0323" * 200 + "ree"),
    "isolates": ("giveaway", "\u2066giveaway\u2069"),
    "an override": ("giveaway", "\u202eyawaevig\u202c"),
    "an override of a phrase": ("free money", "\u202eyenom eerf"),
    "an override and look-alikes": ("giveaway", "\u202ey\u0430waevig"),
    # Look-alikes.
    "Cyrillic": ("price", "\u0440ri\u0441\u0435"),
    "Cyrillic capitals": ("boom", "\u0412\u041e\u041e\u041c"),
    "Greek": ("price", "\u03c1ric\u03b5"),
    "Greek capitals": ("BOOK", "\u0392\u039f\u039f\u039a"),
    "Greek of mathematics": ("vip", "\U0001d6ceip"),
    "Latin in Cyrillic": ("\u0441\u043a\u0438\u0434\u043a\u0430", "c\u043a\u0438\u0434\u043aa"),
    "Latin for Cyrillic": ("\u0441\u043e\u0440", "COP"),
    "Latin in a Cyrillic phrase": (
        "\u0431\u0435\u0437 \u0434\u0435\u043d\u0435\u0433",
        "\u0431e\u0437 \u0434e\u043de\u0433",
    ),
    "Latin in Greek": ("\u03b4\u03c9\u03c1\u03bf", "\u03b4\u03c9po"),
    "a dotless i": ("giveaway", "g\u0131veaway"),
    # Other scripts.
    "Chinese": ("抽奖", "今天有抽奖活动"),
    "Japanese": ("プレゼント", "プレゼント企画"),
    "half-width kana": ("プレゼント", "\uff8c\uff9f\uff9a\uff7e\uff9e\uff9d\uff84"),
    "Thai": ("ฟรี", "แจกฟรีวันนี้"),
    "Korean": ("무료", "무료 나눔"),
    "Russian": ("бесплатно", "Сегодня БЕСПЛАТНО!"),
    "Greek words": ("\u03bd\u03ad\u03b1", "\u039d\u0395\u0391 \u03c4\u03ce\u03c1\u03b1"),
    "Arabic": ("مجانا", "مجانا اليوم"),
    "an emoji": ("💰", "get💰now"),
    "an emoji with a selector": ("\u2764\ufe0f", "I \u2764 it"),
    "an emoji of several": ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469\u200d\U0001f467"),
    "an emoji with a skin tone": ("👍", "ok 👍🏽"),
    "signs": ("$$$", "make $$$ now"),
}


@pytest.mark.parametrize("name", PRESENT)
def test_a_word_is_found(name: str) -> None:
    """It is reported as the operator wrote it."""
    word, text = PRESENT[name]
    assert found([word], text) == word
    assert found(["nothing", "no thing", "無", word], "other", text) == word


ABSENT: dict[str, tuple[str, str]] = {
    "a part of a word": ("giveaway", "giveaways"),
    "the end of a word": ("way", "giveaway"),
    "a part with digits": ("free", "free4all"),
    "two words for one": ("giveaway", "give away"),
    "one word for two": ("give away", "giveaway"),
    "a phrase with a word between": ("free money", "free the money"),
    "a phrase at the end": ("free money", "free"),
    "an order of words": ("free money", "money free"),
    "backwards without an override": ("giveaway", "yawaevig"),
    "nothing": ("giveaway", ""),
    "Korean as a part": ("무료", "무료로"),
    # Documented as not covered.
    "digits for letters": ("giveaway", "g1veaway"),
    "dots between letters": ("giveaway", "g.i.v.e.a.w.a.y"),
    "spaces between letters": ("giveaway", "g i v e a w a y"),
    "regional indicators": ("free", "\U0001f1eb\U0001f1f7\U0001f1ea\U0001f1ea"),
}


@pytest.mark.parametrize("name", ABSENT)
def test_a_word_is_not_found(name: str) -> None:
    """Also what the module documents as not covered."""
    word, text = ABSENT[name]
    assert found([word], text) is None


def test_what_is_not_covered_is_documented() -> None:
    """Each disguise that passes is named."""
    text = " ".join(str(word_matching.__doc__).split())
    for name in ("not a promise", "digits for letters", "spaces or punctuation between letters", "regional indicators"):
        assert name in text


def test_the_first_word_of_a_text_is_reported() -> None:
    """Whole words are looked for before phrases, then what is found anywhere."""
    words = ["free money", "beta", "alpha", "💰"]
    assert found(words, "💰 free money alpha beta") == "alpha"
    assert found(words, "💰 free money") == "free money"
    assert found(words, "💰") == "💰"
    assert found(words, "no", "beta") == "beta"
    assert found(["free money", "free lunch"], "a free lunch") == "free lunch"
    assert found(["Beta", "BETA"], "beta") == "Beta"


def test_look_alikes_map_to_latin_letters_and_leave_latin_ones() -> None:
    """No letter of ASCII is changed, and a text in another script is still found as itself."""
    assert set(ALIKE.values()) <= set("abcdefghijklmnopqrstuvwxyz")
    assert min(ALIKE) > 0x7F
    assert len(ALIKE) > 100
    assert set("aceopx") <= {ALIKE[ord(char)] for char in "\u0430\u0441\u0435\u043e\u0440\u0445"}


@given(st.text(min_size=1, max_size=20), st.sampled_from(["", "\u200b", "\u00ad", "\ufe0f", "\u0301", "\u202e"]))
def test_any_word_is_found_alone_and_between_words_with_invisible_code_points(word: str, unseen: str) -> None:
    """Also in capitals: whatever a word consists of, it is equal to itself."""
    if not has_content(word):
        assert not fold(word).strip()
        return
    assert found([word], word) == word
    assert found([word], f"left {unseen}{word}{unseen} right") == word
    assert found([word], f"left {word.casefold()} right") == word


def test_a_word_without_content_is_one_that_nobody_sees() -> None:
    """Signs are seen."""
    assert [has_content(word) for word in ("", " ", "\u200b", "\u0301", "\u3164", "a", "$", "💰")] == [
        *[False] * 5,
        *[True] * 3,
    ]
