"""Describes what a key may do on X in one sentence, for people who do not know what an API key is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from birdwire.x.catalog.lookups import LOOKUPS
from birdwire.x.catalog.operations import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from birdwire.keys.rules import KeyRules

PHRASES = {
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
"""Each operation and lookup, as it reads after "may"."""

IMPLIED = {row.name: row.opposite for row in OPERATIONS if row.name.startswith("un")} | {"upload_media": "post_twitter"}
"""Actions that are left out where the action that implies them is listed."""

SCOPES = {row.name: row.scopes for row in OPERATIONS} | {row.name: row.scopes for row in LOOKUPS}
"""The OAuth scopes that each operation and lookup needs."""

_WRITES = frozenset(row.name for row in OPERATIONS)


def describe(rules: KeyRules, reads: Collection[str], scopes: Collection[str] | None = None) -> str:
    """Return what a key may do on X, such as `like posts and post, up to 50 actions a day, until 1 March 2027`.

    `reads` are the lookups that this gateway offers. `scopes` are those that the account's owner granted, if they are
    known: an action that needs another scope is left out. Returns an empty text if no action is left.
    """
    actions = [
        name
        for name in PHRASES
        if rules.allow(name)
        and (name in _WRITES or name in reads)
        and (scopes is None or all(scope in scopes for scope in SCOPES[name]))
    ]
    if not actions:
        return ""
    parts = [_joined([PHRASES[name] for name in actions if IMPLIED.get(name) not in actions])]
    if rules.daily_writes is not None and not _WRITES.isdisjoint(actions):
        parts.append(f"up to {rules.daily_writes} action{'' if rules.daily_writes == 1 else 's'} a day")
    if rules.expires_at is not None:
        parts.append(f"until {rules.expires_at.day} {rules.expires_at:%B %Y}")
    return ", ".join(parts)


def _joined(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
