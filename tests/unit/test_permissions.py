"""What a key may do, as a person reads it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from birdwire.keys import ACTIONS, LINK, UNLINK, KeyRules
from birdwire.permissions import WORDS, may

END = datetime(2027, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("rules", "scopes", "words"),
    [
        (
            KeyRules(),
            None,
            "like, follow, post, delete posts, repost, bookmark, look up users, read posts and search for users",
        ),
        (
            KeyRules(actions=("like_twitter", "post_twitter"), daily_writes=50, expires_at=END),
            None,
            "like and post, up to 50 writes a day, until 1 March 2027",
        ),
        (
            KeyRules(actions=("unlike_twitter", "upload_media"), daily_writes=1),
            None,
            "unlike and upload media, up to 1 write a day",
        ),
        (KeyRules(actions=("unlike_twitter", "like_twitter")), None, "like"),
        (
            KeyRules(),
            {"users.read", "tweet.read", "like.write"},
            "like, look up users, read posts and search for users",
        ),
        (KeyRules(actions=("post_twitter",)), {"users.read", "tweet.read"}, "do nothing on X"),
        (KeyRules(actions=(LINK,)), None, "do nothing on X"),
    ],
)
def test_the_rules_are_one_sentence(rules: KeyRules, scopes: set[str] | None, words: str) -> None:
    """After "may": the actions, the daily cap, the last day."""
    assert may(rules, scopes) == words


def test_every_action_on_x_has_words() -> None:
    """A new operation or look-up has to be described to an account's owner, too."""
    assert {*WORDS, LINK, UNLINK} == set(ACTIONS)
