"""What a key may do, as a person reads it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from birdwire.keys.permissions import PHRASES, describe
from birdwire.keys.rules import ACTIONS, LINK, UNLINK, KeyRules
from birdwire.settings import LOOK_UPS

READING = "look up users, read posts and search for users"
END = datetime(2027, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("rules", "scopes", "words"),
    [
        (
            KeyRules(),
            None,
            f"like posts, follow accounts, post, delete posts, repost, bookmark posts, {READING}",
        ),
        (
            KeyRules(actions=("like_twitter", "post_twitter"), daily_writes=50, expires_at=END),
            None,
            "like posts and post, up to 50 actions a day, until 1 March 2027",
        ),
        (
            KeyRules(actions=("unlike_twitter", "upload_media"), daily_writes=1),
            None,
            "unlike posts and upload media, up to 1 action a day",
        ),
        (KeyRules(actions=("unlike_twitter", "like_twitter")), None, "like posts"),
        (
            KeyRules(),
            {"users.read", "tweet.read", "like.write"},
            f"like posts, {READING}",
        ),
        (KeyRules(actions=("post_twitter",)), {"users.read", "tweet.read"}, ""),
        (KeyRules(actions=(LINK,), daily_writes=50, expires_at=END), None, ""),
        (KeyRules(actions=("user/info",), daily_writes=50), None, "look up users"),
    ],
)
def test_the_rules_are_one_sentence(rules: KeyRules, scopes: set[str] | None, words: str) -> None:
    """After "may": the actions, the daily cap, the last day."""
    assert describe(rules, LOOK_UPS, scopes) == words


def test_a_look_up_that_is_not_offered_is_left_out() -> None:
    """The operator's setting `reads` names those that are."""
    assert describe(KeyRules(actions=("user/info", "user/search")), ["user/search"]) == "search for users"


def test_every_action_on_x_has_a_description() -> None:
    """A new operation or look-up has to be described to an account's owner, too."""
    assert {*PHRASES, LINK, UNLINK} == set(ACTIONS)
