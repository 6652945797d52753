"""How an event is worded: every event for every kind of destination, and what a hostile label or text cannot do."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any, cast, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birdwire.gateway.notifications.news import News
from birdwire.store.tables.destinations import Kind
from birdwire.store.tables.outbox import TEST, EventType
from birdwire.surfaces.notifications.messages import (
    NTFY_MAX_BYTES,
    SLACK_MAX_HEADER,
    SLACK_MAX_SECTION,
    SLACK_MAX_TEXT,
    fitted,
    word,
)
from birdwire.surfaces.notifications.wording import OPERATION_WORDS, VARIANTS, WORDS, worded
from birdwire.x.catalog.operations import OPERATIONS
from harness.notifications import ACCOUNT, ASKED, FACTS, KEY

AT = datetime(2026, 11, 28, 13, 5, 9, tzinfo=UTC)
KINDS = get_args(Kind)
TYPES = (*get_args(EventType), TEST)
LINK = "https://birdwire.example/approve/AbCdEf0123456789"
HOSTILE = (
    "<!channel> <@U123> <https://evil.example|x> @everyone @here @channel [safe](https://evil.example) ```\r\nTitle: no"
    " \u202egnp.exe\u200b & \x00\ud800 caf\u00e9 \U0001f426"
)


def news(event: tuple[str, object], text: str | None = None, link: str | None = None, **changes: Any) -> News:
    """Return an event with what happened."""
    return News("evt_01KB", cast("EventType", event[0]), AT, FACTS[event] | changes, text, link)


def headers(kind: str, one: News) -> dict[str, str]:
    """Return the headers of a message."""
    return dict(word(kind, one).headers)


def slack(one: News) -> dict[str, Any]:
    """Return the document for Slack."""
    found: dict[str, Any] = json.loads(word("slack", one).body)
    return found


def shown(document: dict[str, Any]) -> list[str]:
    """Return every text of a document for Slack that a chat may show."""
    blocks = [block["text"]["text"] for block in document["blocks"] if "text" in block]
    return [document["text"], *blocks]


def units(text: str) -> int:
    """Return the length of a text as JavaScript counts it."""
    return len(text.encode("utf-16-le")) // 2


def test_every_event_has_words_and_facts() -> None:
    """No type is forgotten, and no row is for nothing."""
    assert {event for event, _ in WORDS} == set(TYPES)
    assert WORDS.keys() == FACTS.keys()
    assert set(VARIANTS) < set(TYPES)
    assert OPERATION_WORDS.keys() == {operation.name for operation in OPERATIONS}


@pytest.mark.parametrize("event", FACTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_event_is_worded_for_every_kind(kind: str, event: tuple[str, object]) -> None:
    """With all of its sentences, as headers of ASCII and a body of UTF-8."""
    message = word(kind, news(event))
    assert message.body.decode()
    for name, value in message.headers:
        assert name.isascii(), name
        assert value.isascii(), value
        assert value.isprintable(), value
    said = worded(news(event))
    assert len(said.sentences) == len(WORDS[event].sentences)
    assert all(re.search(r"(\.|: birdwire [\w -]+|/status/\d+)$", sentence) for sentence in said.sentences)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("event", [*FACTS, ("later.event", None)])
def test_an_event_without_its_facts_is_worded_too(kind: str, event: tuple[str, object]) -> None:
    """A gateway of another version may have written it; what is not known is left out."""
    body = word(kind, News("evt_01KB", cast("EventType", event[0]), AT, {})).body.decode()
    assert "None" not in body
    assert "{" not in body or kind != "ntfy"


def test_a_program_gets_the_facts() -> None:
    """Type, time and data, in the form of Standard Webhooks; the text and the link only if they are to leave."""
    event = ("approval.requested", None)
    message = word("standard", news(event))
    assert message.headers == (("Content-Type", "application/json"),)
    document = {"type": "approval.requested", "timestamp": "2026-11-28T13:05:09Z", "data": ASKED}
    assert json.loads(message.body) == document
    full = json.loads(word("standard", news(event, HOSTILE, LINK)).body)
    assert full["data"] == ASKED | {"text": HOSTILE, "review_url": LINK}


READ: dict[tuple[str, object], tuple[str, str]] = {
    ("approval.requested", None): (
        "@ada: a post waits for you",
        (
            "The key “poster” asks to publish a post as @ada. It expires at 14:05 UTC. Price: $0.015.\n\n"
            "To decide, run: birdwire approvals show req_01KBWAITS"
        ),
    ),
    ("approval.decided", "denied"): (
        "@ada: a post was denied",
        "The key “poster” asked to publish a post as @ada. grace denied it. Nothing was sent to X.",
    ),
    ("request.settled", "found"): (
        "@ada: a lost post was published",
        (
            "X's response to a call of the key “poster” was lost. Birdwire has found the post in the timeline of @ada. "
            "https://x.com/ada/status/1346889436626259968"
        ),
    ),
    ("account.needs_relink", None): (
        "@ada must be linked again",
        (
            "The key “poster” can no longer act as @ada. Reason: refused. "
            "To link the account again, run: birdwire accounts link key_01KBPOSTER"
        ),
    ),
    ("budget.reached", 80): (
        "Key poster: 80 % of a budget is spent",
        "The key “poster” has spent 80 % of the budget of $5.00 for the day 2026-11-28 (UTC).",
    ),
    ("budget.reached", 100): (
        "The gateway: a budget is used up",
        (
            "The gateway has used up the budget of $5.00 for the month 2026-11 (UTC). "
            "Until the next month, Birdwire refuses the calls that it does not cover."
        ),
    ),
    ("paused", None): (
        "The gateway is paused",
        (
            "The gateway is paused. Reason: The agent was tricked. Paused by grace. "
            "The pause ends on 29 November 2026 at 08:00 UTC. To end the pause, run: birdwire resume gateway"
        ),
    ),
    ("x.changed", False): (
        "X no longer allows Birdwire to like a post",
        (
            "X has refused like_twitter. Reason: X does not offer this action at the access level of the gateway's X "
            "app (x_tier_lacks_action). For all that X allowed, run: birdwire check --live"
        ),
    ),
}
"""What a person reads on a phone."""


@pytest.mark.parametrize("event", READ)
def test_a_phone_shows_what_happened(event: tuple[str, object]) -> None:
    """In sentences."""
    message = word("ntfy", news(event))
    assert (dict(message.headers)["Title"], message.body.decode()) == READ[event]


def test_a_decision_by_the_link_of_a_message_is_somebody_s() -> None:
    """The record cannot name them."""
    said = worded(news(("approval.decided", "approved"), decided_by="notification"))
    assert said.sentences[1] == "Somebody with the link approved it, and Birdwire sends it now."


@pytest.mark.parametrize(
    ("scope", "name", "title", "sentence"),
    [
        ("account:2244994945", "@ada", "@ada", "@ada"),
        ("account:2244994945", "the account 2244994945", "An account", "The account 2244994945"),
        ("account:2244994945", "account:2244994945", "An account", "The account 2244994945"),
        ("account:2244994945", "", "An account", "The account 2244994945"),
        ("key_01KB", "poster", "Key poster", "The key “poster”"),
        ("key_01KB", "p" * 41, "A key", f"The key “{'p' * 41}”"),
        ("key_01KB", "key_01KB", "A key", "The key key_01KB"),
        ("key_01KB", "p\u00f6ster", "A key", "The key “p\u00f6ster”"),
        ("key_01KB", "", "A key", "The key key_01KB"),
        ("gateway", "the gateway", "The gateway", "The gateway"),
        ("later:1", "later", "Something", "The scope later:1"),
    ],
)
def test_a_scope_is_named_as_people_know_it(scope: str, name: str, title: str, sentence: str) -> None:
    """In the title in ASCII."""
    said = worded(news(("paused", None), scope=scope, name=name))
    assert (said.title, said.sentences[0]) == (f"{title} is paused", f"{sentence} is paused.")


def test_a_message_of_ntfy_has_the_headers_that_its_app_shows() -> None:
    """As ntfy documents them."""
    event = ("approval.requested", None)
    assert headers("ntfy", news(event, "Hello", LINK)) == {
        "Content-Type": "text/plain; charset=utf-8",
        "Title": "@ada: a post waits for you",
        "Priority": "4",
        "Tags": "bell",
        "Click": LINK,
    }
    body = word("ntfy", news(event, "Two birds\non a wire", LINK)).body.decode()
    assert body.endswith("Price: $0.015.\n\nTwo birds\non a wire\n\nTap to see all of it and decide.")
    assert "Click" not in headers("ntfy", news(event))
    assert {event for event, words in WORDS.items() if words.priority == 4} == {
        ("approval.requested", None),
        ("account.needs_relink", None),
        ("budget.reached", 100),
    }


def test_a_message_of_slack_has_blocks_and_all_of_it_as_a_text() -> None:
    """Mattermost and Discord show the text, with the link."""
    document = slack(news(("approval.requested", None), "Two birds on a wire", LINK))
    kinds = [block["type"] for block in document["blocks"]]
    assert kinds == ["header", "section", "section", "actions"]
    [button] = document["blocks"][3]["elements"]
    assert (button["type"], button["text"]["text"], button["url"]) == ("button", "Review", LINK)
    assert document["text"].replace("\u200b", "") == (
        "@ada: a post waits for you\n\n"
        "The key “poster” asks to publish a post as @ada. It expires at 14:05 UTC. Price: $0.015.\n\n"
        f"```\nTwo birds on a wire\n```\n\n{LINK}"
    )
    without = slack(news(("approval.requested", None)))
    assert [block["type"] for block in without["blocks"]] == ["header", "section"]
    assert "run: birdwire approvals show req_01KBWAITS" in without["text"]


@pytest.mark.parametrize("place", ["label", "text", "why", "name", "username"])
def test_nothing_hostile_mentions_links_hides_or_ends_a_header(place: str) -> None:
    """Wherever it comes from."""
    event: tuple[str, object] = ("paused", None) if place in {"why", "name"} else ("approval.requested", None)
    places: dict[str, dict[str, Any]] = {
        "label": {"key": KEY | {"label": HOSTILE}},
        "username": {"account": ACCOUNT | {"username": HOSTILE}},
        "why": {"why": HOSTILE},
        "name": {"name": HOSTILE, "scope": "key_01KBPOSTER"},
        "text": {},
    }
    one = news(event, HOSTILE if place == "text" else None, **places[place])
    for kind in KINDS:
        for name, value in word(kind, one).headers:
            assert value.isascii(), name
            assert value.isprintable(), name
    for text in (word("ntfy", one).body.decode(), *shown(slack(one))):
        assert not {"\u202e", "\x00", "\r"} & set(text)
    for text in shown(slack(one)):
        for mention in ("<!", "<@", "<http", "@everyone", "@here", "@channel", "](", "@ada"):
            assert mention not in text
        # The text of a post is in a code block, which it does not end.
        assert text.count("```") in {0, 1, 2}
    fallback = slack(one)["text"]
    assert "<" not in fallback
    assert ">" not in fallback


@pytest.mark.parametrize("char", ["a", "é", "\U0001f426", "\u200b", "<", "`", "&", "\n", "@"])
def test_a_text_of_25_000_characters_is_cut_to_what_the_receiver_accepts(char: str) -> None:
    """At a character's end, with the number of characters that are left out; a program gets all of it."""
    text = char * 25_000
    one = news(("approval.requested", None), text, LINK)
    assert json.loads(word("standard", one).body)["data"]["text"] == text
    body = word("ntfy", one).body
    assert NTFY_MAX_BYTES - 60 < len(body) <= NTFY_MAX_BYTES
    assert " more characters)" in body.decode()
    assert body.decode().endswith("Tap to see all of it and decide.")
    document = slack(one)
    fallback, header, *sections = shown(document)
    assert SLACK_MAX_TEXT - 60 < units(fallback) <= SLACK_MAX_TEXT
    assert fallback.endswith(LINK)
    assert units(header) <= SLACK_MAX_HEADER
    assert max(map(units, sections)) <= SLACK_MAX_SECTION


def test_long_names_do_not_crowd_out_the_rest() -> None:
    """A label, a reason."""
    one = news(("paused", None), why="w" * 9_000, name="n" * 9_000, scope="key_01KBPOSTER")
    body = word("ntfy", one).body.decode()
    assert len(body) < 1_000
    assert "birdwire resume key_01KBPOSTER" in body
    assert all(len(text) < 1_100 for text in shown(slack(one)))


@given(st.text(max_size=60), st.integers(20, 60))
def test_what_is_shown_and_what_is_left_out_is_the_text(text: str, room: int) -> None:
    """No character is counted twice, and none is lost."""
    found = fitted(text, room, str, len)
    if found == text:
        return
    kept, _, left = found.rpartition("… (")
    assert len(found) <= max(room, len(left) + 3)
    assert text.startswith(kept)
    assert len(kept) + int(left.removesuffix(" more characters)").replace(",", "")) == len(text)
