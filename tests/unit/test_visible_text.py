"""A text as it is shown to a person who decides on it: nothing in it is hidden, and nothing is lost."""

from __future__ import annotations

import re
import sys
from itertools import groupby
from unicodedata import category

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdwire.x.catalog.post_length import links_of
from birdwire.x.catalog.visible_text import MARKS_MAX, LinkHost, hosts, marked, runs

EVERY = [chr(number) for number in range(sys.maxunicode + 1)]
IGNORABLE = [
    *(0x00AD, 0x034F, 0x061C, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), *range(0x200B, 0x2010)),
    *(*range(0x202A, 0x202F), *range(0x2060, 0x2070), 0x3164, *range(0xFE00, 0xFE10), 0xFEFF, 0xFFA0),
    *(*range(0xFFF0, 0xFFF9), *range(0x1BCA0, 0x1BCA4), *range(0x1D173, 0x1D17B), *range(0xE0000, 0xE1000)),
]
"""Default_Ignorable_Code_Point, as DerivedCoreProperties.txt of Unicode 15 lists it."""
BIDI = [0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
"""Bidi_Control, as PropList.txt lists it."""


def restored(shown: list[tuple[str, bool]]) -> str:
    """Return the text of its runs."""
    return "".join(chr(int(run.removeprefix("U+"), 16)) if is_marker else run for run, is_marker in shown)


def unmarked(text: str) -> str:
    """Return the text that was printed to a terminal."""
    return re.sub("\u2039U\\+([0-9A-F]{4,6})\u203a", lambda found: chr(int(found[1], 16)), text)


def hidden(text: str) -> list[str]:
    """Return the markers of a text."""
    return [run for run, is_marker in runs(text) if is_marker]


def test_the_runs_of_every_code_point_are_the_text() -> None:
    """Alone, and all in one text."""
    assert [char for char in EVERY if restored(runs(char)) != char] == []
    assert restored(runs("".join(EVERY))) == "".join(EVERY)


@given(st.text(st.characters(), max_size=80))
def test_the_runs_of_any_text_are_the_text(text: str) -> None:
    """With lone surrogates too; no two runs that are shown follow each other, and none is empty."""
    found = runs(text)
    assert restored(found) == text
    assert unmarked(marked(text)) == text
    assert all(run for run, _ in found)
    assert all(len(list(group)) == 1 for is_marker, group in groupby(found, key=lambda one: one[1]) if not is_marker)


@given(st.text(st.sampled_from("ae \n\u0301\u05b0\u20dd\u0c3e\u200b\u202e\u2039\u203aU+0123"), max_size=40))
def test_a_text_full_of_marks_and_markers_is_the_text(text: str) -> None:
    """Whatever stands next to what."""
    assert restored(runs(text)) == text
    assert unmarked(marked(text)) == text


def test_every_default_ignorable_and_bidi_control_has_a_marker() -> None:
    """Between letters, where a reader would not notice it."""
    shown = [f"U+{number:04X}" for number in {*IGNORABLE, *BIDI} if hidden(f"a{chr(number)}b") != [f"U+{number:04X}"]]
    assert shown == []


def test_what_is_shown_is_a_letter_a_mark_on_one_a_sign_or_a_line_feed() -> None:
    """By their general categories: no control, format character, space, private, unassigned or half code point."""
    shown = {char for char in EVERY if not hidden(f"a{char}")}
    assert {category(char)[0] for char in shown - {" ", "\n"}} == set("LMNPS")
    assert {category(char) for char in {*EVERY} - shown} >= {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}
    assert {"\t", "\r", "\x1b", "\x7f", "\x85", "\u00a0", "\u2028", "\u2800", "\u3000", "\ue000"}.isdisjoint(shown)
    assert {*"aZ9!~", "\u00e4", "\u05d0", "\u0627", "\u4e2d", "\uac00", "\U0001f600", "\u20ac"} <= shown


TEXTS: dict[str, tuple[str, str]] = {
    "empty": ("", ""),
    "ascii": ("Hello, world!", "Hello, world!"),
    "two lines": ("one\ntwo", "one\ntwo"),
    "a carriage return": ("one\rtwo", "one<U+000D>two"),
    "an override": ("pay \u202eevil\u202c now", "pay <U+202E>evil<U+202C> now"),
    "an escape sequence": ("\x1b[2Jgone", "<U+001B>[2Jgone"),
    "zero width": ("pass\u200bword", "pass<U+200B>word"),
    "tags": ("a\U000e0041\U000e007f", "a<U+E0041><U+E007F>"),
    "a family": ("\U0001f468\u200d\U0001f469", "\U0001f468<U+200D>\U0001f469"),
    "a heart": ("\u2764\ufe0f", "\u2764<U+FE0F>"),
    "a keycap": ("1\ufe0f\u20e3", "1<U+FE0F><U+20E3>"),
    "a skin tone": ("\U0001f44d\U0001f3fd", "\U0001f44d\U0001f3fd"),
    "an accent": ("e\u0301", "e\u0301"),
    "an accent alone": ("\u0301e", "<U+0301>e"),
    "an accent after a space": ("a \u0301", "a <U+0301>"),
    "an accent after a line feed": ("a\n\u0301", "a\n<U+0301>"),
    "an accent after a marker": ("a\u200b\u0301", "a<U+200B><U+0301>"),
    "as many accents as are shown": ("a" + "\u0301" * MARKS_MAX, "a" + "\u0301" * MARKS_MAX),
    "a pile of accents": (
        "a" + "\u0301" * (MARKS_MAX + 2) + "b\u0301",
        "a" + "\u0301" * MARKS_MAX + "<U+0301>" * 2 + "b\u0301",
    ),
    "pointed hebrew": ("\u05e9\u05bc\u05c1\u05b8\u0591", "\u05e9\u05bc\u05c1\u05b8\u0591"),
    "tamil": ("\u0b95\u0bcd\u0bb7\u0bca", "\u0b95\u0bcd\u0bb7\u0bca"),
    "burmese": ("\u1000\u103c\u103d\u103e\u102d\u1036\u1037", "\u1000\u103c\u103d\u103e\u102d\u1036\u1037"),
    "half a pair": ("a\ud83d", "a<U+D83D>"),
    "a marker in the text itself": ("\u2039U+202E\u203a", "<U+2039>U+202E\u203a"),
    "angle quotes": ("\u2039so\u203a", "\u2039so\u203a"),
    "a blank": ("a\u2800\u3164b", "a<U+2800><U+3164>b"),
}


@pytest.mark.parametrize(("text", "shown"), TEXTS.values(), ids=TEXTS)
def test_what_a_terminal_shows(text: str, shown: str) -> None:
    """Each marker is between angle quotes, and a text that looks like a marker differs from one."""
    assert marked(text) == shown.replace("<", "\u2039").replace(">", "\u203a")


def test_a_marker_is_one_code_point() -> None:
    """With at least four digits, and as many as it needs."""
    assert runs("a\u202e\u202eb\U000e0041") == [
        ("a", False),
        ("U+202E", True),
        ("U+202E", True),
        ("b", False),
        ("U+E0041", True),
    ]


HOSTS: dict[str, LinkHost] = {
    "as it is": LinkHost("https://example.org/a?b", "example.org", differs=False),
    "without a protocol": LinkHost("example.org", "example.org", differs=False),
    "capitals": LinkHost("HTTPS://Example.ORG/a", "example.org", differs=False),
    "a port": LinkHost("https://example.org:8443/", "example.org", differs=False),
    "an umlaut": LinkHost("https://b\u00fccher.com", "xn--bcher-kva.com", differs=True),
    "a look-alike": LinkHost("https://ex\u0430mple.org/login", "xn--exmple-4nf.org", differs=True),
    "in punycode": LinkHost("https://xn--exmple-4nf.org/", "xn--exmple-4nf.org", differs=False),
    "full width": LinkHost("https://\uff45xample.org/", "example.org", differs=True),
    "a name before it": LinkHost("https://example.org@evil.com/", "evil.com", differs=True),
    "a name and a password": LinkHost("https://example.org:443@evil.com/", "evil.com", differs=True),
    "a backslash": LinkHost("https://evil.com\\@example.org", "evil.com", differs=True),
    "a last dot": LinkHost("https://example.org./", "example.org", differs=True),
    "unknown": LinkHost("https:///", "", differs=True),
}


@pytest.mark.parametrize("shown", HOSTS.values(), ids=HOSTS)
def test_each_link_has_the_host_to_which_it_leads(shown: LinkHost) -> None:
    """In ASCII, as the DNS knows it."""
    assert hosts([shown.link]) == [shown]


def test_a_link_is_shown_once() -> None:
    """In the order of the text."""
    found = hosts(links_of("a.com, b.com/x and again a.com"))
    assert [one.link for one in found] == ["a.com", "b.com/x"]


@given(st.text(max_size=60))
def test_any_links_have_hosts_in_ascii(text: str) -> None:
    """Whatever is in the text."""
    assert all(one.host.isascii() for one in hosts(links_of(text)))
