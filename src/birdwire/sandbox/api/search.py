"""A subset of X's search language: words, phrases, and a few operators."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from birdwire.sandbox.state.world import Post, World

TERM = re.compile(r'-?(?:"[^"]*"|[^\s()"]+)')


def matches(world: World, post: Post, query: str) -> bool:
    """Return whether the post matches every term; a term with a leading minus must not match. OR is unsupported."""
    for term in TERM.findall(query):
        wanted = not term.startswith("-")
        if _fits(world, post, term.removeprefix("-")) is not wanted:
            return False
    return True


def _fits(world: World, post: Post, term: str) -> bool:
    operator, _, value = term.lower().partition(":")
    target = world.posts.get(post.in_reply_to_tweet_id or "")
    match operator:
        case "from":
            author = world.users[post.author_id]
            return value.removeprefix("@") in {author.username.lower(), author.id}
        case "to":
            asked = world.user_named(value.removeprefix("@"))
            return target is not None and asked is not None and target.author_id == asked.id
        case "is":
            return {"reply": target is not None, "quote": post.quote_tweet_id is not None}.get(value, False)
        case "has":
            return {"media": bool(post.media_ids), "mentions": bool(post.mentions)}.get(value, False)
        case _:
            return term.strip('"').lower() in post.text.lower()
