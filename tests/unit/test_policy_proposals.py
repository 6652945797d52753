"""Proposals: the links, mentions, kinds and texts of a call, and what is kept of them for later."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdwire.gateway.guardrails.proposal import (
    KINDS,
    MAX_HOSTS_KEPT,
    Proposal,
    comparable_text,
    features_of,
    proposal_of_features,
    propose,
    propose_lookup,
)
from birdwire.x.catalog.link_hosts import UNKNOWN_HOST, ascii_host, host_of
from birdwire.x.catalog.operations import OPERATIONS
from birdwire.x.catalog.post import PostTwitter
from birdwire.x.catalog.post_length import has_link, links_of

OPERATION = {row.name: row for row in OPERATIONS}
ID = "1346889436626259968"


def proposal(text: str | None = None, **members: Any) -> Proposal:
    """Return the proposal of a post."""
    body = PostTwitter.model_validate({**({} if text is None else {"text": text}), **members})
    return propose(OPERATION["post_twitter"], "1", body, 15_000)


LINKS: dict[str, tuple[str, list[str]]] = {
    "none": ("Good morning", []),
    "one": ("See https://example.org/a?b#c.", ["example.org"]),
    "a bare host": ("See example.org, please", ["example.org"]),
    "a bare host with a path": ("example.org/a(b)", ["example.org"]),
    "two, and one twice": ("a.com b.com https://a.com/x", ["a.com", "b.com"]),
    "without spaces": ("(https://a.com)https://b.com", ["a.com", "b.com"]),
    "capitals": ("HTTPS://Example.ORG", ["example.org"]),
    "a port": ("https://example.org:8443/a", ["example.org"]),
    "a subdomain": ("https://a.b.example.org", ["a.b.example.org"]),
    "full-width letters": ("https://\uff45\uff56\uff49\uff4c.com", ["evil.com"]),
    "an ideographic full stop": ("https://example.org\u3002evil.com/", ["example.org.evil.com"]),
    "a full-width full stop": ("https://example.org\uff0eevil.com/", ["example.org.evil.com"]),
    "a full-width slash": ("https://evil.com\uff0f.example.org/", [UNKNOWN_HOST]),
    "a letter that contains a slash": ("https://evil.c\u2100.example.org/", [UNKNOWN_HOST]),
    "a full-width at sign": ("https://example.org\uff20evil.com/", [UNKNOWN_HOST]),
    "a ligature": ("https://o\ufb00er.com", ["offer.com"]),
    "punycode": ("https://xn--bcher-kva.example.com", ["b\u00fccher.example.com"]),
    "punycode without a protocol": ("xn--bcher-kva.com", ["b\u00fccher.com"]),
    "bad punycode": ("https://xn--\u00fc.com", ["xn--\u00fc.com"]),
    "punycode of a surrogate": ("https://xn--a-rc4g.com", ["xn--a-rc4g.com"]),
    "Unicode": ("https://b\u00fccher.com", ["b\u00fccher.com"]),
    "decomposed": ("https://bu\u0308cher.com", ["b\u00fccher.com"]),
    "Cyrillic": (
        "https://\u043f\u0440\u0438\u043c\u0435\u0440.\u0440\u0444/",
        ["\u043f\u0440\u0438\u043c\u0435\u0440.\u0440\u0444"],
    ),
    "a look-alike is another host": ("https://ex\u0430mple.org", ["ex\u0430mple.org"]),
    "a sharp s is not two": ("https://stra\u00dfe.com", ["stra\u00dfe.com"]),
    "a zero-width character": ("https://exam\u200bple.org", ["exam\u200bple.org"]),
    "an address of mail": ("ada@example.org", []),
    "a version": ("Version 1.2.3 of file.txt", []),
    "a country after a full stop": ("Bread and butter.No", ["butter.no"]),
    "brackets": ("evil[.]com", []),
    "behind an override": ("\u202ehttps://evil.com", ["evil.com"]),
}


@pytest.mark.parametrize("name", LINKS)
def test_the_hosts_of_a_text(name: str) -> None:
    """As the one table of links finds them, which also prices a post."""
    text, hosts = LINKS[name]
    assert list(proposal(text).links) == hosts
    assert bool(hosts) == has_link(text) == bool(links_of(text))


def test_the_hosts_outside_a_text() -> None:
    """Cards, direct messages, quotes and polls."""
    assert proposal("a", card_uri="https://Evil.com/card").links == ("evil.com",)
    assert proposal("a", card_uri="HTTP://evil.com").links == ("evil.com",)
    assert proposal("a", card_uri="card://1346889436626259968").links == (UNKNOWN_HOST,)
    assert proposal("a", card_uri="tombstone://evil.com").links == (UNKNOWN_HOST,)
    assert proposal("a", direct_message_deep_link="https://x.com/messages/compose").links == ("x.com",)
    assert proposal("a.com", quote_tweet_id=ID).links == ("a.com", "x.com")
    assert proposal("a", poll={"options": ["b.com", "c"], "duration_minutes": 5}).links == ("b.com",)


@pytest.mark.parametrize(
    ("link", "host"),
    [
        ("https://a.com", "a.com"),
        ("https://u:p@a.com/", "a.com"),
        ("https://a.org:x@b.org/c", "b.org"),
        ("https://a.com\\@b.com", "a.com"),
        ("https://a.com?@b.com", "a.com"),
        ("//a.com/x", "a.com"),
        ("a.com:80", "a.com"),
        ("https://a.com./", "a.com"),
        ("https:///x", UNKNOWN_HOST),
        ("https://example.org\t.evil.com", UNKNOWN_HOST),
        ("https://[::1]/", UNKNOWN_HOST),
        ("", UNKNOWN_HOST),
    ],
)
def test_the_host_of_a_link_is_the_browsers(link: str, host: str) -> None:
    """A backslash ends it, as in a browser."""
    assert host_of(link) == host


def test_a_host_is_shown_in_ascii() -> None:
    """So that look-alikes differ in a message."""
    assert ascii_host("b\u00fccher.com") == "xn--bcher-kva.com"
    assert ascii_host("ex\u0430mple.org") == "xn--exmple-4nf.org"
    assert ascii_host("example.org") == "example.org"


MENTIONS: dict[str, tuple[str, list[str]]] = {
    "none": ("Good morning", []),
    "one": ("@ada", ["ada"]),
    "in a sentence": ("Thanks, @ada!", ["ada"]),
    "two": ("@ada and @bob", ["ada", "bob"]),
    "one twice": ("@ada @ADA", ["ada"]),
    "full-width": ("Thanks \uff20ada", ["ada"]),
    "behind brackets": ("(@ada)[@bob]", ["ada", "bob"]),
    "behind a letter that is not ASCII": ("caf\u00e9@ada", ["ada"]),
    "behind RT": ("RT@ada and rt:@bob", ["ada", "bob"]),
    "an address": ("a@b", []),
    "behind digits": ("1@ada", []),
    "behind an underscore": ("_@ada", []),
    "behind a sign": ("!@ada #@bob", []),
    "two signs": ("@@ada", []),
    "no name": ("@ ada @", []),
    "a zero-width space in between": ("@\u200bada", []),
    "of 20 letters": ("@" + "a" * 25, ["a" * 20]),
    "followed by another": ("@ada@bob", ["ada"]),
    "of a list": ("@ada/friends", ["ada"]),
}


@pytest.mark.parametrize("name", MENTIONS)
def test_the_mentions_of_a_text(name: str) -> None:
    """Names in lower case, once."""
    text, names = MENTIONS[name]
    assert list(proposal(text).mentions) == names


def test_mentions_count_polls_and_tags() -> None:
    """A tag notifies its user as a mention does."""
    poll = {"options": ["@ada", "@bob"], "duration_minutes": 5}
    assert proposal("@ada", poll=poll).mentions == ("ada", "bob")
    assert proposal("@ada", media={"media_ids": [ID], "tagged_user_ids": ["1", "2"]}).mentions == ("ada", "1", "2")


def test_the_kinds_of_a_post() -> None:
    """Each member by itself, and all that can be together."""
    members: dict[str, dict[str, Any]] = {
        "reply": {"reply": {"in_reply_to_tweet_id": ID}},
        "quote": {"quote_tweet_id": ID},
        "poll": {"poll": {"options": ["a", "b"], "duration_minutes": 5}},
        "media": {"media": {"media_ids": [ID]}},
        "edit": {"edit_options": {"previous_post_id": ID}},
        "community": {"community_id": ID},
        "paid_partnership": {"paid_partnership": True},
        "nullcast": {"nullcast": True},
    }
    assert tuple(members) == KINDS
    for kind, member in members.items():
        assert proposal("a", **member).kinds == {kind}
    assert proposal("a", paid_partnership=False, nullcast=False, made_with_ai=True).kinds == frozenset()
    together = {
        name: value for kind in members if kind not in {"quote", "poll"} for name, value in members[kind].items()
    }
    assert proposal("a", **together).kinds == set(KINDS) - {"quote", "poll"}


@pytest.mark.parametrize(
    ("text", "quotes"),
    [
        (f"https://x.com/ada/status/{ID}", True),
        (f"x.com/i/web/status/{ID}", True),
        (f"HTTPS://WWW.Twitter.com/ada/Statuses/{ID}?s=20", True),
        (f"https://mobile.twitter.com/ada/status/{ID}/photo/1", True),
        (f"https://x.com/ada/%73tatus/{ID}", True),
        ("https://x.com/ada", False),
        (f"https://example.org/ada/status/{ID}", False),
        (f"https://notx.com/ada/status/{ID}", False),
        (f"https://x.com.evil.com/ada/status/{ID}", False),
    ],
)
def test_a_link_to_a_post_is_a_quote(text: str, quotes: bool) -> None:  # noqa: FBT001 - a column of the table
    """X shows it as one."""
    assert proposal(text).kinds == ({"quote"} if quotes else set())


def test_what_else_a_proposal_holds() -> None:
    """Texts with the options of a poll, the weight of the text, the target, the price; and none of it in its repr."""
    poll = {"options": ["secret", "b"], "duration_minutes": 5}
    asked = proposal("secret https://example.org", poll=poll)
    assert asked.texts == ("secret https://example.org", "secret", "b")
    assert (asked.weight, asked.price, asked.target, asked.is_write) == (30, 15_000, None, True)
    assert "secret" not in repr(asked)
    assert proposal(media={"media_ids": [ID]}).weight is None
    like = OPERATION["like_twitter"]
    asked = propose(like, "1", like.body.model_validate({"tweet_id": ID}), None)
    assert asked == Proposal("like_twitter", "1", target=ID)
    upload = OPERATION["upload_media"]
    assert propose(upload, None, upload.body(), 0) == Proposal("upload_media", None, price=0)
    assert propose_lookup("user/info", "1", 10_000) == Proposal("user/info", "1", price=10_000, is_write=False)


def test_texts_that_readers_take_for_the_same_are_compared_as_one() -> None:
    """A post without a text has nothing to compare."""
    same = [
        "Good  morning",
        "good morning",
        " GOOD\nmorning ",
        "g\u200bood morning",
        "\uff47ood m\u00f6rning",
        "g\u043eod m\u043erning",
    ]
    assert {comparable_text(proposal(text)) for text in same} == {"good morning"}
    assert comparable_text(proposal("good morning!")) == "good morning!"
    poll = {"options": ["a", "b"], "duration_minutes": 5}
    assert comparable_text(proposal("Which?", poll=poll)) == "which?"
    assert comparable_text(proposal(poll=poll)) is None
    assert comparable_text(proposal("", media={"media_ids": [ID]})) is None
    assert comparable_text(proposal("\u200b", media={"media_ids": [ID]})) is None
    assert comparable_text(Proposal("like_twitter", "1")) is None


def test_the_features_of_a_post_give_its_proposal_again() -> None:
    """With its text as X stored it: escaped."""
    asked = proposal("@ada a &lt; b &amp; example.org", reply={"in_reply_to_tweet_id": ID}, nullcast=True)
    features = json.loads(json.dumps(features_of(asked)))
    assert features == {"weight": 43, "kinds": ["nullcast", "reply"], "hosts": ["example.org"], "mentions": 1}
    again = proposal_of_features("post_twitter", "1", features, "@ada a &amp;lt; b &amp;amp; https://t.co/a", 10_000)
    assert again is not None
    assert (again.kinds, again.links, again.weight, again.price) == (asked.kinds, asked.links, 43, 10_000)
    assert len(again.mentions) == 1
    assert again.texts == ("@ada a &lt; b &amp; https://t.co/a",)


def test_an_earlier_call_without_what_a_rule_asks_cannot_be_judged() -> None:
    """Another operation needs no features, and a post without a text needs none."""
    good = {"weight": 5, "kinds": [], "hosts": [], "mentions": 0}
    assert proposal_of_features("like_twitter", "1", None, None, 5) == Proposal("like_twitter", "1", price=5)
    assert proposal_of_features("post_twitter", "1", good, "hello", 5) is not None
    assert proposal_of_features("post_twitter", "1", good, None, 5) is None
    for weight in (None, 0):
        asked = proposal_of_features("post_twitter", "1", {**good, "weight": weight}, None, 5)
        assert asked is not None
        assert asked.texts == ()
    bad: object
    for bad in (None, [], {}, {**good, "weight": "5"}, {**good, "hosts": "a"}, {**good, "kinds": None}, {"weight": 5}):
        assert proposal_of_features("post_twitter", "1", bad, "hello", 5) is None


def test_only_some_hosts_of_a_post_are_kept() -> None:
    """The rest counts as one that cannot be known, so that no rule passes what it was not shown."""
    hosts = tuple(f"h{n}.com" for n in range(MAX_HOSTS_KEPT + 1))
    kept = features_of(Proposal("post_twitter", "1", links=hosts))["hosts"]
    assert kept == [*hosts[: MAX_HOSTS_KEPT - 1], UNKNOWN_HOST]
    assert features_of(Proposal("post_twitter", "1", links=hosts[:-1]))["hosts"] == list(hosts[:-1])


@given(st.text(max_size=60))
def test_any_text_has_a_host_for_each_link_and_fits_into_features(text: str) -> None:
    """Whatever is in it, nothing fails."""
    found = links_of(text)
    assert bool(found) == has_link(text)
    assert all(host_of(link) for link in found)
    assert all(ascii_host(host_of(link)).isascii() for link in found)
