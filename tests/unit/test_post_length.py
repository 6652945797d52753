"""The weighted length of a post's text: X's published rules, its public conformance cases, and hostile texts."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from birdwire.x.catalog import post_length
from birdwire.x.catalog.post import PostTwitter
from birdwire.x.catalog.post_length import LIMIT, has_link, least_length, weighted_length

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

FAMILY = "\N{MAN}\u200d\N{WOMAN}\u200d\N{GIRL}\u200d\N{BOY}"
ENGLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"
KANA = "あいうえおかきくけこ"

PLAIN = {
    "nothing": ("", 0),
    "letters": ("I am a post", 11),
    "accents composed": ("A\u0301B", 2),
    "a presentation form that composition takes apart": ("A\ufb2c", 4),
    "han": ("故人西辞黄鹤楼\uff0c", 16),
    "han behind letters": ("the故人", 7),
    "hangul syllables put together from letters": ("\u1112\u1161\u11ab", 2),
    "hangul letters at the edge of the light range": ("\u10ff\u1100", 3),
    "spaces and joiners": ("\u2000\u200a\u200b\u200c\u200d", 5),
    "line and paragraph separators": ("\u2028\u2029", 4),
    "dashes and quotes": (
        "\u2010\u2011\u2012\u2013\u2014\u2015\u2016\u2017\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f",
        16,
    ),
    "bullets and dots": ("•…", 4),
    "primes": ("\u2032\u2033\u2034\u2035\u2036\u2037", 6),
    "characters that X refuses": ("ABC\u202a\uffffABC\ufffe", 12),
    "a lone surrogate": ("\ud83d", 2),
    "letters outside the basic plane": ("\U0001d5fc\U0001d601", 4),
}

EMOJI = {
    "one": ("😷", 2),
    "one in the basic plane": ("☺", 2),
    "one with a presentation selector": ("☺\ufe0f", 2),
    "one with a text selector": ("☺\ufe0e", 4),
    "a family": (FAMILY, 2),
    "families at the limit": (FAMILY * 140, LIMIT),
    "a mix": (f"H🐱☺{FAMILY}", 7),
    "a family not joined": ("👨👩👧👦", 8),
    "skin tones": ("🙋🏽👨\u200d🎤", 4),
    "a kiss with two skin tones": ("👩🏻\u200d❤\ufe0f\u200d💋\u200d👩🏿", 2),
    "a gendered sign": ("⛹🏽\u200d♀\ufe0f", 2),
    "more than any emoji joins": ("🐱\u200d🐱\u200d🐱\u200d🐱\u200d🐱", 5),
    "a keycap": ("#\ufe0f\u20e3", 2),
    "a digit with a selector only": ("1\ufe0f", 3),
    "a country's flag": ("🇯🇵", 2),
    "half a flag": ("🇯", 2),
    "two flags and a half": ("🇯🇵🇯🇵🇯", 6),
    "a flag with tags": (ENGLAND, 2),
    "tags on no such flag": (ENGLAND.replace("\U000e0065", "\U000e0061"), 14),
    "Unicode 9": ("🤠; 💃; 💃🏾", 10),
    "Unicode 10": (f"🤪; 🧕; 🧕🏾; {ENGLAND}", 14),
    "Unicode 13, joined in the basic plane": ("🐈\u200d⬛", 2),
    "Unicode 15.1": ("🐦\u200d🔥", 2),
    "copyright as text": ("©", 1),
    "copyright as emoji": ("©\ufe0f", 2),
    "an arrow that is no emoji": ("→\ufe0f", 4),
    "a selector alone": ("\ufe0f", 2),
}

# Each text, with the links in it marked «so».
LINKS = {
    "a protocol": "Hi «http://test.co»",
    "long path": "«https://www.example.com/" + "a" * 300 + "»",
    "no protocol": "see «example.com» or «www.example.com/a?b=c&d=e#f»",
    "protocol and host in capitals": "«HTTPS://www.ExaMPLE.COM/index.html»",
    "a country's domain without a path": "«foo.co.jp», «t.co», «example.de»",
    "a country's domain in its own script": "\u2066\u202a«http://foobar.پاکستان/»\u202c\u2069",
    "a domain of several characters in Unicode": "«http://example.みんな»の",
    "the longer of two that start alike": "«http://example.嘉里大酒店» «http://example.嘉里»の http://example.嘉里x",
    "punycode": "«xn--bcher-kva.xn--p1ai»",
    "a port": "«http://example.com:8080/a»",
    "a port but no protocol and no path": "«example.com»:8080",
    "a query but no path": "«http://example.com?a=b» «example.com»?a=b",
    "underscores in a subdomain": "«http://test_underscore.example.com»",
    "underscores in a subdomain without a protocol": "foo_«bar.example.com»",
    "a snowman": "«http://☃.net/» ☃.net",
    "cyrillic path": "«http://example.com/Русские_слова»",
    "the stop of a sentence": "«http://example.com/a». «example.com».",
    "other punctuation behind it": "«example.com/a», «example.com/b»! («example.com/c») «example.com/d»?",
    "balanced parentheses": "«http://example.com/a_(b)» («http://example.com/a_(b_(c))»)",
    "parentheses too deep": "«http://example.com/a»(b(c(d)))",
    "open parentheses": "«http://example.com/a»(b",
    "an at sign in a path": "«http://example.com/@user/a»",
    "a query's ending": "«http://example.com/?a=b&c=»!",
    "a hyphen at the end": "«https://www.example.com/playlist?list=PL0Z-»",
    "japanese around it": "これは«http://example.com»です。",
    "a host goes on over an ideographic full stop": "«http://example.com。です。example.com»は",
    "a han path is text": "«http://example.com/»日本",
    "a short link with more": "«http://t.co/abc»/def «http://t.co/abc?a=b»",
    "a short link too long": "http://t.co/" + "a" * 41,
    "a short link as long as may be": "«http://t.co/" + "a" * 40 + "»",
    "mail": "me@example.com",
    "a wide at sign is part of a host": "a\uff20«example.com»",
    "signs that precede no link": "#example.com $example.com @example.com",
    "signs that precede none without a protocol": "-example.com _example.com .example.com /example.com",
    "the same with a protocol": "-«http://example.com» /«http://example.com»",
    "letters before the protocol": "ahttp://example.com",
    "another protocol": "ftp://example.com",
    "no such top-level domain": "end.Then http://example.invalid/a foo.txt",
    "a longer name than the domain's": "example.comx http://example.com1",
    "a host that goes on in another script": "«example.com»です",
    "a host that ends where letters stop": "«http://example.com»_foo",
    "hyphens at a label's edge": "http://example-.com http://-example.com http://www.example-.com",
    "underscores before the top-level domain": "http://foo_bar.com",
    "empty labels": "a..com ..com .com",
    "no host": "http:// https://. http://com",
    "two in a row": "«http://a.com» «http://b.com»,«c.com»",
    "one within another": "«http://a.com/http://b.com»",
    "a label of 63": "«" + "a" * 63 + ".com»",
    "a label of 64": "a" * 64 + ".com",
    "a label of 63 in punycode": f"«http://{KANA * 5}あい.com»",
    "a label of 64 in punycode": f"http://{KANA * 5}あいう.com",
    "a link of 4,088, with 8 for the protocol": "«https://a.co/" + "a" * 4075 + "»",
    "a link of 4,089": "https://a.co/" + "a" * 4076,
    "a link that an emoji precedes": "😀«a.co»",
}


@pytest.mark.parametrize(("text", "weight"), PLAIN.values(), ids=PLAIN)
def test_a_plain_text_counts_by_its_code_points(text: str, weight: int) -> None:
    """Light code points count 1, others 2, in normal form C."""
    assert weighted_length(text) == weight


@pytest.mark.parametrize(("text", "weight"), EMOJI.values(), ids=EMOJI)
def test_an_emoji_counts_two_whatever_it_is_made_of(text: str, weight: int) -> None:
    """Joined, toned, tagged or a flag, one emoji is one."""
    assert weighted_length(text) == weight


@pytest.mark.parametrize("marked", LINKS.values(), ids=LINKS)
def test_a_link_counts_23_and_anything_else_counts_as_text(marked: str) -> None:
    """The links are those marked, and each counts the same."""
    first, *rest = marked.split("«")
    behind = [part.split("»")[1] for part in rest]
    plain = first + "".join(behind)
    expected = 23 * len(rest) + sum(1 if char < "\u1100" else 2 for char in plain)
    assert weighted_length(marked.replace("«", "").replace("»", "")) == expected


@pytest.mark.parametrize(
    ("text", "weight"),
    [("a.web", 5), ("web.kids/" + "a" * 40, 23), ("http://music.music/", 19), ("https://example.spa/" + "a" * 40, 23)],
)
def test_a_link_with_a_new_domain_counts_the_lesser_length(text: str, weight: int) -> None:
    """Under a top-level domain younger than X's list, no text is refused that X may take."""
    assert weighted_length(text) == weight


def test_links_and_text_share_the_length_of_a_post() -> None:
    """Ten links and their spaces leave 40; 285 letters with a link are over by what the link weighs."""
    assert weighted_length("https://www.example.com/aloha " * 10) == 240
    assert weighted_length("x" * 257 + " http://www.example.com/jack") == LIMIT + 1


@given(st.text())
def test_every_text_has_a_length_and_none_weighs_more_than_it_could(text: str) -> None:
    """Nothing raises; the length is bound by 2 for a code point of the composed text and 23 for a link of 4 or more."""
    assert 0 <= weighted_length(text) <= 23 * 3 * max(len(text), 1)


@given(st.text(alphabet="abc 日é\u0301☺"), st.text(alphabet="xyz 本à☺"))
def test_texts_without_links_add_up(left: str, right: str) -> None:
    """A line break parts two texts: the whole weighs both and 1."""
    assert weighted_length(f"{left}\n{right}") == weighted_length(left) + 1 + weighted_length(right)


@given(
    st.text(st.characters(max_codepoint=127))
    | st.lists(st.sampled_from([*"a0 .-/@", "co", "xn--p1ai", "a.co", "http://", "é", "日"]), max_size=9).map("".join),
    st.sampled_from([0, 5, 1_000]),
)
@example("a.co", 1_000)
@example("Ends. http://a.xn--p1ai", 1_000)
@example("日", 1_000)
def test_a_plain_text_is_measured_as_any_other(text: str, most: int) -> None:
    """Most posts need no search for links: they have the same length, and are billed the same, without it."""
    quick = (weighted_length(text), weighted_length(text, most), has_link(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(post_length, "_is_plain", lambda _: False)
        assert (weighted_length(text), weighted_length(text, most), has_link(text)) == quick


HOSTILE = [
    "a",
    ".",
    "-",
    "a.",
    "a_",
    "_a.",
    "é.",
    "a.co",
    "a.co ",
    "a.co_",
    "-a.co-.",
    "a.co/(",
    "a.co/((",
    "(a",
    "a.co?,",
    "@a.co/",
    "a.com。",
    "の.com",
    "http://",
    "a.xn--",
    "1\ufe0f",
    "👨\u200d",
    "🇦",
    "\u0301\u0316",
    "\u0f73",
    "https://a.co/" + "a" * 60 + " ",
]


def called(do: Callable[[], object]) -> Counter[str]:
    """Count the functions, in Python or in C, that are called, by the name of the one in Python."""
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, _arg: object) -> None:
        if event in ("call", "c_call"):
            calls[frame.f_code.co_name] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        do()
    finally:
        sys.setprofile(before)
    return calls


def steps(text: str) -> int:
    """Count the functions that are called to weigh a text."""
    return called(lambda: weighted_length(text)).total()


@pytest.mark.parametrize("part", HOSTILE)
def test_twice_the_text_takes_twice_the_steps(part: str) -> None:
    """No text makes the count look at the same place again and again."""
    weighted_length(part)
    assert steps(part * 2000) <= 2.1 * steps(part * 1000) + 100


@pytest.mark.parametrize(
    "text",
    [
        "a" + "\u0301\u0316" * 300_000,
        "\u0f73" * 300_000,
        "a.co/" + "!" * 600_000,
        "a.co/(" + "!" * 600_000,
        "a.co/" + "(" * 600_000,
        "a.co/?" + "," * 600_000,
        "a_" * 300_000 + ".com",
        "日" * 600_000 + ".com",
        "h" * 600_000 + "http://",
        "1\ufe0f" * 300_000,
    ],
    ids=[
        "marks",
        "hidden marks",
        "path",
        "parenthesis",
        "parentheses",
        "query",
        "underscores",
        "labels",
        "protocol",
        "keycaps",
    ],
)
def test_a_pattern_that_went_back_over_its_text_would_run_into_the_time_limit(text: str) -> None:
    """Ten times what a request may carry: done in a moment if linear, in minutes if quadratic."""
    assert weighted_length(text) > LIMIT


@given(
    st.lists(st.sampled_from([*HOSTILE, ENGLAND, FAMILY, "\u1f82", "\u03b1\u0313\u0300\u0345", " ", "日"]), max_size=60)
)
def test_the_lower_bound_of_a_length_is_one(parts: list[str]) -> None:
    """Whatever a text is made of; the emoji with the most code points reaches the bound."""
    text = "".join(parts)
    assert least_length(text) <= weighted_length(text)


def test_the_longest_emoji_reaches_the_lower_bound() -> None:
    """Four flags with tags, joined, are 31 code points that weigh 2."""
    text = "\u200d".join([ENGLAND] * 4) * 10
    assert least_length(text) == weighted_length(text) == 20


@pytest.mark.parametrize("place", ["{}b", "a{}b", "a{}"])
def test_a_text_has_no_control_characters_except_tabs_and_line_breaks(place: str) -> None:
    """Those of ASCII: X refuses them. The rest of Unicode is left to X."""
    refused = []
    for code in [*range(0x300), 0x2028, 0xD800, 0xFFFF, 0x10FFFF]:
        try:
            PostTwitter.model_validate({"text": place.format(chr(code))}, strict=False)
        except ValidationError as error:
            refused.append((code, error.errors()[0]["type"]))
    wanted = [code for code in (*range(0x20), 0x7F) if code not in (0x09, 0x0A, 0x0D)]
    assert [code for code, kind in refused if kind == "control_character"] == wanted


@pytest.mark.parametrize("char", ["a", "日", "\u0301", "\u0f73", "\u0344"])
def test_a_text_that_is_too_long_by_far_is_refused_before_it_is_composed(char: str) -> None:
    """The refusal gives the lower bound as such."""
    refused: list[ValidationError] = []

    def post() -> None:
        try:
            PostTwitter.model_validate({"text": char * 20_000})
        except ValidationError as error:
            refused.append(error)

    calls = called(post)
    assert not {"compose", "pieces"} & set(calls)
    assert [(error["type"], error["ctx"]["length"]) for error in refused[0].errors()] == [
        ("text_too_long", "at least 1290")
    ]


@pytest.mark.parametrize("text", ["ü.de,", "a.co ", "фо.рф ", "http://ф.рф ", "$A.", "ф.ф,"])
def test_a_text_that_is_too_long_by_far_is_not_weighed_to_its_end(text: str) -> None:
    """Each link costs some time. What comes back is over the limit, and not over the weight of the whole text."""
    most = LIMIT + 1_000
    least = weighted_length(text * 8_000, most)
    assert most < least <= weighted_length(text * 8_000)
    assert least < most + 100


@given(st.text(alphabet="ab .,/ф日é\u0f73#$@:htpcode", max_size=400), st.integers(0, 200))
def test_a_text_within_the_limit_is_weighed_exactly(text: str, most: int) -> None:
    """A bound changes the result only of what is over it, and keeps it over it."""
    length, bounded = weighted_length(text), weighted_length(text, most)
    assert bounded == length if length <= most else most < bounded <= length
