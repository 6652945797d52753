"""When a post of a timeline is the one that was asked for, and what a call costs by X's list."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from birdwire.outcomes.post_matching import LostPost, Signature, match, signature_of
from birdwire.x.catalog.operations import OPERATIONS
from birdwire.x.catalog.post import PostTwitter
from birdwire.x.catalog.prices import Prices
from birdwire.x.catalog.timeline import TimelinePost, request

if TYPE_CHECKING:
    from collections.abc import Sequence

NOW = datetime(2026, 9, 22, 12, tzinfo=UTC)
REPLY = {"reply": {"in_reply_to_tweet_id": "7"}}
EDIT = {"edit_options": {"previous_post_id": "98"}}


def asked(text: str | None = None, **more: Any) -> Signature:
    """How a requested post is recognised."""
    words = signature_of(PostTwitter.model_validate(({"text": text} if text is not None else {}) | more))
    assert words is not None
    return Signature.decode(words)


def shown(text: str, *, post_id: str = "99", **more: Any) -> TimelinePost:
    """A post of X's timeline."""
    return TimelinePost.model_validate({"id": post_id, "text": text} | more)


def link(short: str, long: str, **more: Any) -> dict[str, Any]:
    """Entities with one short link."""
    return {"entities": {"urls": [{"url": short, "expanded_url": long, **more}]}}


def refers(kind: str, post_id: str, name: str = "referenced_tweets") -> dict[str, Any]:
    """A reference to another post."""
    return {name: [{"type": kind, "id": post_id}]}


T = "https://t.co/1"
MEDIUM = "https://x.com/ada/status/99/photo/1"
QUOTED = "https://twitter.com/grace/status/7"

SAME: list[tuple[str, Signature, TimelinePost]] = [
    ("plain", asked("hello"), shown("hello")),
    ("entities", asked("a & b < c"), shown("a &amp; b &lt; c")),
    ("an entity that was meant", asked("&amp;"), shown("&amp;amp;")),
    ("normal form", asked("cafe\u0301"), shown("caf\u00e9")),
    ("blanks", asked("  a  b\n"), shown("a b")),
    ("a link", asked("https://a.example/x?y=1&z=2"), shown(T, **link(T, "https://a.example/x?y=1&z=2"))),
    ("a link without protocol", asked("see a.example"), shown(f"see {T}", **link(T, "http://a.example/"))),
    ("a medium of its own", asked("look"), shown(f"look {T}", **link(T, MEDIUM))),
    ("a medium by its key", asked("look"), shown(f"look {T}", **link(T, "https://x.com/a", media_key="3_1"))),
    ("nothing but a medium", asked(media={"media_ids": ["1"]}), shown(T, **link(T, MEDIUM))),
    ("a quote", asked("yes", quote_tweet_id="7"), shown(f"yes {T}", **link(T, QUOTED), **refers("quoted", "7"))),
    ("a quote, newer name", asked("y", quote_tweet_id="07"), shown("y", **refers("quoted", "7", "referenced_posts"))),
    ("a link to a post", asked(f"yes {QUOTED}"), shown(f"yes {T}", **link(T, QUOTED), **refers("quoted", "7"))),
    ("a reply", asked("no", **REPLY), shown("no", **refers("replied_to", "7"))),
    ("a reply with X's mentions", asked("no", **REPLY), shown("@grace @pat no", **refers("replied_to", "7"))),
    ("a reply with its own", asked("@grace no", **REPLY), shown("@grace no", **refers("replied_to", "7"))),
    ("an edit", asked("b", **EDIT), shown("b", edit_history_tweet_ids=["98", "99"])),
    ("a long text", asked("long " * 50), shown("long l…", note_tweet={"text": "long " * 50})),
]  # fmt: skip

OTHER: list[tuple[str, Signature, TimelinePost]] = [
    ("other words", asked("hello"), shown("hullo")),
    ("other case", asked("hello"), shown("Hello")),
    ("another link", asked("https://a.example"), shown(T, **link(T, "https://b.example"))),
    ("a reply instead", asked("no"), shown("no", **refers("replied_to", "7"))),
    ("a reply to another", asked("no", **REPLY), shown("no", **refers("replied_to", "8"))),
    ("no reply", asked("no", **REPLY), shown("no")),
    ("no quote", asked("yes", quote_tweet_id="7"), shown("yes")),
    ("a mention that was meant", asked("@grace no"), shown("no")),
    ("the version before", asked("b", **EDIT), shown("b", edit_history_tweet_ids=["98"])),
    ("an edit of another", asked("b", **EDIT), shown("b", edit_history_tweet_ids=["97", "99"])),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "post"), [row[1:] for row in SAME], ids=[row[0] for row in SAME])
def test_a_post_is_known_however_x_writes_it(wanted: Signature, post: TimelinePost) -> None:
    """What X itself changes makes no other post."""
    assert wanted.matches(post)


@pytest.mark.parametrize(("wanted", "post"), [row[1:] for row in OTHER], ids=[row[0] for row in OTHER])
def test_another_post_is_another(wanted: Signature, post: TimelinePost) -> None:
    """Other words, other targets."""
    assert not wanted.matches(post)


def lost(name: str, text: str, sent_s: float) -> LostPost:
    """A lost post, sent at a second, its answer missed one second later."""
    at = NOW + timedelta(seconds=sent_s)
    row: Any = SimpleNamespace(request_id=name, start=at, lost_at=at + timedelta(seconds=1))
    return LostPost(row, asked(text), at - timedelta(seconds=5), at + timedelta(seconds=61))


def made(post_id: str, text: str, at_s: float) -> TimelinePost:
    """A post that X made at a second."""
    return shown(text, post_id=post_id, created_at=(NOW + timedelta(seconds=at_s)).isoformat())


@pytest.mark.parametrize(
    ("rows", "posts", "verdicts"),
    [
        ([lost("a", "x", 0)], [made("1", "x", 0)], {"a": "1"}),
        ([lost("a", "x", 0)], [made("1", "y", 0)], {}),
        ([lost("a", "x", 0)], [made("1", "x", -6)], {}),
        ([lost("a", "x", 0)], [made("1", "x", 62)], {}),
        ([lost("a", "x", 0)], [made("1", "x", 0), made("2", "x", 1)], {"a": None}),
        ([lost("a", "x", 0), lost("b", "x", 2)], [made("1", "x", 1)], {"a": None, "b": None}),
        ([lost("b", "x", 2), lost("a", "x", 0)], [made("2", "x", 3), made("1", "x", 0)], {"a": "1", "b": "2"}),
        ([lost("a", "x", 0), lost("b", "x", 90)], [made("2", "x", 91)], {"b": "2"}),
        ([lost("a", "x", 0), lost("b", "y", 0)], [made("1", "y", 0), made("2", "x", 0)], {"a": "2", "b": "1"}),
    ],
)
def test_a_lost_post_is_matched_to_itself_or_to_none(
    rows: Sequence[LostPost], posts: Sequence[TimelinePost], verdicts: dict[str, str | None]
) -> None:
    """Where several could be the one, none is; as many as were lost go in the order of time."""
    found = match(rows, posts)
    assert {name: post and post.id for name, post in found.items()} == verdicts


@pytest.mark.parametrize("more", [{"nullcast": True}, {"community_id": "1"}, {"for_super_followers_only": True}])
def test_a_post_that_no_timeline_shows_is_not_searched_for(more: dict[str, Any]) -> None:
    """There would be nothing to find."""
    assert signature_of(PostTwitter.model_validate({"text": "x", **more})) is None


def test_a_post_without_a_time_is_as_old_as_its_id() -> None:
    """X's ids hold the time of their making, in milliseconds."""
    assert shown("x", post_id="1346889436626259968").at == datetime(2021, 1, 6, 18, 40, 40, 344000, UTC)


def test_the_call_for_a_page_names_its_moments_in_whole_seconds() -> None:
    """As X's parameters take them."""
    asked_for = request("1", NOW, NOW + timedelta(hours=1), "t")
    assert asked_for.path.startswith("/2/users/1/tweets?max_results=100&")
    assert "start_time=2026-09-22T12:00:00Z&end_time=2026-09-22T13:00:00Z&pagination_token=t" in asked_for.path


def test_every_operation_has_its_line_in_the_prices_as_the_readme_shows_them() -> None:
    """One list, in two places: they must not drift apart."""
    prices = Prices.load()
    readme = (Path(__file__).parent.parent.parent / "README.md").read_text()
    assert f"pay-per-use list of {prices.listed_on}" in readme
    rows = re.findall(r"^\| (`\w+_twitter`(?:, `\w+_twitter`)*) \|.*\| (0\.\d{3})[^|]*\|$", readme, re.MULTILINE)
    shown_prices = {name: round(float(price) * 1e6) for names, price in rows for name in re.findall(r"\w+", names)}
    assert shown_prices.pop("auth_twitter") == 10_000
    assert len(shown_prices) == len(OPERATIONS) - 1, "an upload has no price"
    for operation in OPERATIONS:
        body: Any = PostTwitter(text="x") if operation.body is PostTwitter else None
        assert prices.of(operation, body) == shown_prices.get(operation.name)


@pytest.mark.parametrize(
    ("body", "price"),
    [
        ({"text": "x"}, 15_000),
        ({"text": "see example.com"}, 200_000),
        ({"text": "see example.com", **REPLY}, 200_000),
        ({"text": "x", **REPLY}, 10_000),
        ({"text": "x", "quote_tweet_id": "7"}, None),
    ],
)
def test_a_post_costs_by_its_kind(body: dict[str, Any], price: int | None) -> None:
    """A link makes it dear; of quotes X's list says nothing."""
    posting = next(row for row in OPERATIONS if row.name == "post_twitter")
    assert Prices.load().of(posting, PostTwitter.model_validate(body)) == price


def test_a_character_reference_with_thousands_of_digits_is_text() -> None:
    """Python refuses to read such a number."""
    text = f"&#{'9' * 5_000};"
    assert Signature(text, None, None, None).matches(shown(text))
