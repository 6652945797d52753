"""Users and posts in X's answers: only the requested fields, in the requested spelling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from birdwire.sandbox.api import post_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from birdwire.sandbox.state.simulator import Simulator
    from birdwire.sandbox.state.world import Post, User


EXPANDED = frozenset({"author_id", "referenced_posts"})


class Fields:
    """The fields that a query requests. Unknown fields and expansions are ignored silently, as X does.

    `newer` is true if the answer calls posts "posts" (2.167) and not "tweets": as the query does, else as the
    generation does.
    """

    def __init__(self, platform: Simulator, query: Mapping[str, str]) -> None:
        self.newer = "post.fields" in query or ("tweet.fields" not in query and platform.config.generation == "2.167")
        self.post = _names(query, "post.fields") | _names(query, "tweet.fields")
        self.user = _names(query, "user.fields")
        self.expansions = _names(query, "expansions")


def _names(query: Mapping[str, str], name: str) -> frozenset[str]:
    return frozenset(query.get(name, "").split(",")) - {""}


def user_object(platform: Simulator, user: User, fields: Fields) -> dict[str, Any]:
    """Return a user: id, name, username, and the requested fields."""
    world = platform.world
    answer: dict[str, Any] = {"id": user.id, "name": user.name, "username": user.username}
    following = [pending for pending in world.follows.get(user.id, {}).values() if not pending]
    followers = [mine for mine in world.follows.values() if mine.get(user.id) is False]
    more: dict[str, Any] = {
        "created_at": _time(user.created_at),
        "description": user.description,
        "protected": user.protected,
        "verified": user.verified,
        "public_metrics": {
            "followers_count": len(followers),
            "following_count": len(following),
            **dict.fromkeys(("tweet_count", "post_count"), len(world.posts_of(user.id))),
            "listed_count": 0,
            "like_count": sum(liker == user.id for liker, _ in world.likes),
        },
        "pinned_tweet_id": user.pinned_tweet_id,
        "pinned_post_id": user.pinned_tweet_id,
    }
    return answer | {name: value for name, value in more.items() if name in fields.user and value is not None}


def post_object(platform: Simulator, post: Post, fields: Fields) -> dict[str, Any]:
    """Return a post: id, text, edit history, and the requested fields."""
    world = platform.world
    history = "edit_history_post_ids" if fields.newer else "edit_history_tweet_ids"
    answer: dict[str, Any] = {"id": post.id, "text": post_text.displayed(post.text), history: post.edit_history}
    target = world.posts.get(post.in_reply_to_tweet_id or "")
    pairs = (("replied_to", post.in_reply_to_tweet_id), ("quoted", post.quote_tweet_id))
    referenced = [{"type": kind, "id": one} for kind, one in pairs if one]
    media_keys = [world.media[one].media_key for one in post.media_ids if one in world.media]
    more: dict[str, Any] = {
        "author_id": post.author_id,
        "created_at": _time(post.created_at),
        "conversation_id": _conversation(platform, post),
        "in_reply_to_user_id": target.author_id if target else None,
        "referenced_posts" if fields.newer else "referenced_tweets": referenced or None,
        "entities": post_text.entities(post.text) or None,
        "attachments": {"media_keys": media_keys} if media_keys else None,
        "reply_settings": post.reply_settings,
        "lang": "en",
        "public_metrics": _metrics(platform, post),
    }
    asked = fields.post | fields.expansions
    # In the newer generation these two are only expansions, not fields.
    if fields.newer:
        asked -= EXPANDED - fields.expansions
    return answer | {name: value for name, value in more.items() if name in asked and value is not None}


def _metrics(platform: Simulator, post: Post) -> dict[str, int]:
    """Return a post's counts. Counts that the generations name differently appear under both names."""
    world = platform.world
    live = [one for one in world.posts.values() if not one.deleted]
    return {
        **dict.fromkeys(("retweet_count", "repost_count"), sum(post.id in mine for mine in world.retweets.values())),
        "reply_count": sum(one.in_reply_to_tweet_id == post.id for one in live),
        "like_count": sum(liked == post.id for _, liked in world.likes),
        "quote_count": sum(one.quote_tweet_id == post.id for one in live),
        "bookmark_count": sum(kept == post.id for _, kept in world.bookmarks),
        "impression_count": 0,
    }


def _conversation(platform: Simulator, post: Post) -> str:
    """Return the id of the thread's first post. In a circular thread (from fixtures), the walk stops at its start."""
    seen = {post.id}
    while post.in_reply_to_tweet_id in platform.world.posts and post.in_reply_to_tweet_id not in seen:
        post = platform.world.posts[post.in_reply_to_tweet_id]
        seen.add(post.id)
    return post.in_reply_to_tweet_id or post.id


def _time(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
