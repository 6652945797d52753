"""What a key may do on X, in words for people who do not know what a key is: one sentence, drawn from its rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from birdwire.x.catalog.lookups import LOOKUPS
from birdwire.x.catalog.operations import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from birdwire.keys.registry import KeyRules

WORDS = {
    "like_twitter": "like posts",
    "unlike_twitter": "unlike posts",
    "follow_twitter": "follow accounts",
    "unfollow_twitter": "unfollow accounts",
    "post_twitter": "post",
    "delete_twitter": "delete posts",
    "retweet_twitter": "repost",
    "unretweet_twitter": "undo reposts",
    "bookmark_twitter": "bookmark posts",
    "unbookmark_twitter": "remove bookmarks",
    "upload_media": "upload media",
    "user/info": "look up users",
    "user/last_tweets": "read posts",
    "user/search": "search for users",
}
"""Each operation and look-up, after "may"."""

IMPLIED = {row.name: row.opposite for row in OPERATIONS if row.name.startswith("un")} | {"upload_media": "post_twitter"}
"""What goes without saying where the other action is named."""

SCOPES = {row.name: row.scopes for row in OPERATIONS} | {row.name: row.scopes for row in LOOKUPS}
"""What each operation and look-up needs the account's owner to allow."""

_WRITES = frozenset(row.name for row in OPERATIONS)


def may(rules: KeyRules, reads: Collection[str], scopes: Collection[str] | None = None) -> str:
    """Return what a key may do on X, such as `like posts and post, up to 50 actions a day, until 1 March 2027`.

    `reads` are the look-ups that this gateway offers. `scopes` are those that the account's owner granted, if they are
    known: what needs another one is left out. Empty if nothing is left.
    """
    actions = [
        name
        for name in WORDS
        if rules.allow(name)
        and (name in _WRITES or name in reads)
        and (scopes is None or all(scope in scopes for scope in SCOPES[name]))
    ]
    if not actions:
        return ""
    parts = [_listed([WORDS[name] for name in actions if IMPLIED.get(name) not in actions])]
    if rules.daily_writes is not None and not _WRITES.isdisjoint(actions):
        parts.append(f"up to {rules.daily_writes} action{'' if rules.daily_writes == 1 else 's'} a day")
    if rules.expires_at is not None:
        parts.append(f"until {rules.expires_at.day} {rules.expires_at:%B %Y}")
    return ", ".join(parts)


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
