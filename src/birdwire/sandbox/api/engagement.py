"""Likes, reposts, bookmarks, follows, and their removal. All are idempotent: a repeated call has the same answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from birdwire.sandbox.api.dispatcher import Call, Endpoint, required_id
from birdwire.sandbox.api.errors import Answer, Refusal, not_authorized, not_found

if TYPE_CHECKING:
    from birdwire.sandbox.state.simulator import Simulator
    from birdwire.sandbox.state.world import Post, User

LIKE = "tweet.read users.read like.write"
FOLLOW = "tweet.read users.read follows.write"
REPOST = "tweet.read tweet.write users.read"
BOOKMARK = "tweet.read users.read bookmark.write"


def refuse_by_tier(platform: Simulator, *, undoing: bool = False) -> None:
    """Refuse what only Enterprise access allows. Undoing is allowed unless a switch refuses it, too."""
    config = platform.config
    if config.tier == "enterprise" or (undoing and not config.tier_refuses_deletes):
        return
    raise switched_refusal(platform, config.tier_refusal)


def switched_refusal(platform: Simulator, name: str) -> Refusal:
    """Return the refusal that a switch names: an id of the catalogue, or `forbidden` for the plain 403."""
    return platform.catalogue.refusal("missing-scope" if name == "forbidden" else name)


def reachable_post(platform: Simulator, viewer: User, post_id: str) -> Post:
    """Return the post; raise X's 400 if it does not exist, or the refusal of the switch `invisible` if it is hidden."""
    post = platform.world.live_post(post_id)
    if post is None:
        raise platform.catalogue.refusal("like-tweet-gone")
    if not platform.world.may_see_user(viewer, platform.world.users[post.author_id]):
        match platform.config.invisible:
            case "not-authorized":
                raise Refusal(Answer(200, {"errors": [not_authorized("tweet", post_id, "id")]}))
            case "forbidden":
                raise platform.catalogue.refusal("missing-scope")
            case "cannot-be-found":
                raise platform.catalogue.refusal("like-tweet-gone")
    return post


def like(platform: Simulator, call: Call) -> Answer:
    """POST /2/users/{id}/likes."""
    post_id = required_id(call, "tweet_id")
    refuse_by_tier(platform)
    post = reachable_post(platform, call.viewer, post_id)
    platform.world.likes.add((call.viewer.id, post.id))
    return Answer(200, {"data": {"liked": True}})


def unlike(platform: Simulator, call: Call) -> Answer:
    """DELETE /2/users/{id}/likes/{tweet_id}."""
    refuse_by_tier(platform, undoing=True)
    post = reachable_post(platform, call.viewer, call.ids["tweet_id"])
    platform.world.likes.discard((call.viewer.id, post.id))
    return Answer(200, {"data": {"liked": False}})


def repost(platform: Simulator, call: Call) -> Answer:
    """POST /2/users/{id}/retweets."""
    post = reachable_post(platform, call.viewer, required_id(call, "tweet_id"))
    mine = platform.world.retweets.setdefault(call.viewer.id, {})
    rest_id = mine.setdefault(post.id, platform.world.new_id(platform.clock.now()))
    name = "id" if platform.config.generation == "2.166" else "rest_id"
    return Answer(200, {"data": {"retweeted": True, name: rest_id}})


def unrepost(platform: Simulator, call: Call) -> Answer:
    """DELETE /2/users/{id}/retweets/{source_tweet_id}."""
    post = reachable_post(platform, call.viewer, call.ids["source_tweet_id"])
    platform.world.retweets.get(call.viewer.id, {}).pop(post.id, None)
    return Answer(200, {"data": {"retweeted": False}})


def bookmark(platform: Simulator, call: Call) -> Answer:
    """POST /2/users/{id}/bookmarks."""
    post = reachable_post(platform, call.viewer, required_id(call, "tweet_id"))
    platform.world.bookmarks.add((call.viewer.id, post.id))
    return Answer(200, {"data": {"bookmarked": True}})


def unbookmark(platform: Simulator, call: Call) -> Answer:
    """DELETE /2/users/{id}/bookmarks/{tweet_id}."""
    post = reachable_post(platform, call.viewer, call.ids["tweet_id"])
    platform.world.bookmarks.discard((call.viewer.id, post.id))
    return Answer(200, {"data": {"bookmarked": False}})


def _target(platform: Simulator, user_id: str) -> User:
    user = platform.world.users.get(user_id)
    if user is None:
        raise Refusal(Answer(200, {"errors": [not_found("user", user_id, "target_user_id")]}))
    return user


def follow(platform: Simulator, call: Call) -> Answer:
    """POST /2/users/{id}/following. A follow of oneself, a suspended or a blocking user gets the plain 403."""
    target_id = required_id(call, "target_user_id")
    refuse_by_tier(platform)
    target = _target(platform, target_id)
    if target.id == call.viewer.id or target.suspended or call.viewer.id in target.blocks:
        raise platform.catalogue.refusal("missing-scope")
    mine = platform.world.follows.setdefault(call.viewer.id, {})
    pending = mine.setdefault(target.id, target.protected)
    return Answer(200, {"data": {"following": not pending, "pending_follow": pending}})


def unfollow(platform: Simulator, call: Call) -> Answer:
    """DELETE /2/users/{source_user_id}/following/{target_user_id}."""
    refuse_by_tier(platform, undoing=True)
    target = _target(platform, call.ids["target_user_id"])
    platform.world.follows.get(call.viewer.id, {}).pop(target.id, None)
    return Answer(200, {"data": {"following": False}})


TWEET_ID = frozenset({"tweet_id"})
LIKE_LIMITS = ("likes_per_15m", "likes_per_24h")

ENDPOINTS = (
    Endpoint("POST", "/2/users/{id}/likes", LIKE, like, *LIKE_LIMITS, own="id", body=TWEET_ID, lenient=True),
    Endpoint("DELETE", "/2/users/{id}/likes/{tweet_id}", LIKE, unlike, *LIKE_LIMITS, own="id"),
    Endpoint("POST", "/2/users/{id}/retweets", REPOST, repost, 50, own="id", body=TWEET_ID),
    Endpoint("DELETE", "/2/users/{id}/retweets/{source_tweet_id}", REPOST, unrepost, 50, own="id"),
    Endpoint(
        "POST",
        "/2/users/{id}/bookmarks",
        BOOKMARK,
        bookmark,
        50,
        own="id",
        body=TWEET_ID | {"folder_id"},
        lenient=True,
    ),
    Endpoint("DELETE", "/2/users/{id}/bookmarks/{tweet_id}", BOOKMARK, unbookmark, 50, own="id"),
    Endpoint(
        "POST",
        "/2/users/{id}/following",
        FOLLOW,
        follow,
        50,
        own="id",
        body=frozenset({"target_user_id"}),
        lenient=True,
    ),
    Endpoint(
        "DELETE",
        "/2/users/{source_user_id}/following/{target_user_id}",
        FOLLOW,
        unfollow,
        50,
        own="source_user_id",
    ),
)
