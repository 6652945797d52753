"""OPERATIONS: one row for each thing that an app may do on X. Everything that lists operations reads this table."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from birdwire.api.messages import encode
from birdwire.api.models import Body, Empty
from birdwire.x.catalog.post import Id, PostTwitter
from birdwire.x.client.requests import ID_PATTERN, XData, XRequest

if TYPE_CHECKING:
    from collections.abc import Mapping


class TweetTarget(Body):
    """The post to act on."""

    tweet_id: Id = Field(
        description='the post\'s id, a string of 1 to 19 digits, such as "1346889436626259968"',
        examples=["1346889436626259968"],
    )


class UserTarget(Body):
    """The user to act on."""

    target_user_id: Id = Field(
        description='the user\'s id, a string of 1 to 19 digits, such as "2244994945"', examples=["2244994945"]
    )


class Liked(XData):
    """The result of a like or an unlike."""

    liked: bool = Field(description="whether the linked account now likes the post")


class Followed(XData):
    """The result of a follow."""

    following: bool = Field(description="whether the linked account now follows the user")
    pending_follow: bool = Field(default=False, description="whether a protected user has yet to accept the request")


class Unfollowed(XData):
    """The result of an unfollow."""

    following: bool = Field(description="always false: the linked account no longer follows the user")


class Retweeted(XData):
    """The result of a repost, or of undoing one."""

    retweeted: bool = Field(description="whether the linked account has reposted the post")


class Bookmarked(XData):
    """The result of a bookmark, or of removing one."""

    bookmarked: bool = Field(description="whether the linked account has bookmarked the post")


class Deleted(XData):
    """The result of a deletion."""

    deleted: bool = Field(description="whether the post has been deleted")


class Posted(XData):
    """The result of a post or an edit."""

    id: str = Field(pattern=ID_PATTERN, description="the id of the new post; an edit also has a new id")
    text: str = Field(description="the text as X stored it")


class Uploaded(XData):
    """An uploaded media file, ready to be attached to a post."""

    media_id: str = Field(description="the id for media.media_ids")
    media_key: str = Field(description="X's media key")
    expires_at: str = Field(description="when X deletes it if no post uses it: RFC 3339, UTC")


@dataclass(frozen=True)
class Operation:
    """One thing an app may do on X.

    `path` is X's, with {user_id} for the acting account and the body's fields by name. A POST or PUT carries the fields
    that are set, or `json` if X expects a constant body. `target` names the field that identifies what is acted on, or
    the answer's member that does. `repeatable`: a second send does no harm. `opposite` names the operation that undoes
    it. `enterprise` marks what X removed from its self-serve access level: always, or only if the post quotes.
    `already` maps an old code of X (its v1.1 list) to the answer it amounts to. `takes_file`: the body is multipart.
    `tool` names the MCP tool for it; two opposites share one, which undoes by the second. `shown` are the fields of the
    body that the tool describes to a model, if those are not all.
    """

    name: str
    summary: str
    method: Literal["POST", "PUT", "DELETE"]
    path: str
    body: type[Body]
    answer: type[XData]
    scopes: tuple[str, ...]
    target: str
    json: dict[str, Any] | None = None
    expect: dict[str, Any] = field(default_factory=dict)
    about: Literal["tweet", "user"] = "tweet"
    repeatable: bool = True
    opposite: str = ""
    enterprise: Literal["", "always", "quote"] = ""
    status: int = 200
    already: dict[int, dict[str, Any]] = field(default_factory=dict)
    takes_file: bool = False
    tool: str = ""
    shown: tuple[str, ...] = ()

    def upstream(self, user_id: str, body: Body) -> XRequest:
        """Return the request to X that carries the operation out for an account."""
        # The dump of a body whose fields are all plain and required is what the body itself holds.
        sent = dict(vars(body)) if self._is_plain else body.model_dump(exclude_unset=True)
        path = self.path.replace("{user_id}", user_id)
        if "{" in path:
            path = path.format(**sent)
        json = self.json if self.method == "DELETE" or self.json is not None else sent
        return XRequest(self.method, path, json, endpoint=self.endpoint, repeatable=self.repeatable)

    @cached_property
    def endpoint(self) -> str:
        """X's name for the endpoint: its method and its path without ids."""
        return f"{self.method} {self.path}"

    @cached_property
    def usual_reply(self) -> bytes:
        """The body of X's reply if the result is what was asked for; empty if that differs from call to call."""
        return encode({"data": self.expect}) if self.expect else b""

    @cached_property
    def _is_plain(self) -> bool:
        return all(one.is_required() and one.annotation is str for one in self.body.model_fields.values())

    def needs_enterprise(self, body: Body) -> bool:
        """Return whether X withholds this call from its self-serve access level."""
        return self.enterprise == "always" or (self.enterprise == "quote" and "quote_tweet_id" in body.model_fields_set)


_LIKE = ("like.write", "tweet.read", "users.read")
_FOLLOW = ("follows.write", "tweet.read", "users.read")
_WRITE = ("tweet.write", "tweet.read", "users.read")
_BOOKMARK = ("bookmark.write", "tweet.read", "users.read")
UPLOAD_SCOPES = ("media.write",)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="like_twitter",
        summary="Like a post",
        method="POST",
        path="/2/users/{user_id}/likes",
        body=TweetTarget,
        answer=Liked,
        scopes=_LIKE,
        target="tweet_id",
        opposite="unlike_twitter",
        expect={"liked": True},
        enterprise="always",
        already={139: {"liked": True}},
        tool="like_post",
    ),
    Operation(
        name="unlike_twitter",
        summary="Unlike a post",
        method="DELETE",
        path="/2/users/{user_id}/likes/{tweet_id}",
        body=TweetTarget,
        answer=Liked,
        scopes=_LIKE,
        target="tweet_id",
        opposite="like_twitter",
        expect={"liked": False},
        tool="like_post",
    ),
    Operation(
        name="follow_twitter",
        summary="Follow a user",
        method="POST",
        path="/2/users/{user_id}/following",
        body=UserTarget,
        answer=Followed,
        scopes=_FOLLOW,
        target="target_user_id",
        opposite="unfollow_twitter",
        about="user",
        enterprise="always",
        already={160: {"following": False, "pending_follow": True}},
        tool="follow_user",
    ),
    Operation(
        name="unfollow_twitter",
        summary="Unfollow a user",
        method="DELETE",
        path="/2/users/{user_id}/following/{target_user_id}",
        body=UserTarget,
        answer=Unfollowed,
        scopes=_FOLLOW,
        target="target_user_id",
        opposite="follow_twitter",
        expect={"following": False},
        about="user",
        tool="follow_user",
    ),
    Operation(
        name="post_twitter",
        summary="Publish, reply to, quote or edit a post",
        method="POST",
        path="/2/tweets",
        body=PostTwitter,
        answer=Posted,
        scopes=_WRITE,
        target="id",
        repeatable=False,
        enterprise="quote",
        status=201,
        tool="create_post",
        shown=(
            "text",
            "reply",
            "quote_tweet_id",
            "media",
            "poll",
            "reply_settings",
            "made_with_ai",
            "paid_partnership",
        ),
    ),
    Operation(
        name="delete_twitter",
        summary="Delete a post of the linked account",
        method="DELETE",
        path="/2/tweets/{tweet_id}",
        body=TweetTarget,
        answer=Deleted,
        scopes=_WRITE,
        target="tweet_id",
        expect={"deleted": True},
        tool="delete_post",
    ),
    Operation(
        name="retweet_twitter",
        summary="Repost a post",
        method="POST",
        path="/2/users/{user_id}/retweets",
        body=TweetTarget,
        answer=Retweeted,
        scopes=_WRITE,
        target="tweet_id",
        opposite="unretweet_twitter",
        expect={"retweeted": True},
        already={327: {"retweeted": True}},
        tool="repost",
    ),
    Operation(
        name="unretweet_twitter",
        summary="Undo a repost",
        method="DELETE",
        path="/2/users/{user_id}/retweets/{tweet_id}",
        body=TweetTarget,
        answer=Retweeted,
        scopes=_WRITE,
        target="tweet_id",
        opposite="retweet_twitter",
        expect={"retweeted": False},
        tool="repost",
    ),
    Operation(
        name="bookmark_twitter",
        summary="Bookmark a post",
        method="POST",
        path="/2/users/{user_id}/bookmarks",
        body=TweetTarget,
        answer=Bookmarked,
        scopes=_BOOKMARK,
        target="tweet_id",
        opposite="unbookmark_twitter",
        expect={"bookmarked": True},
        tool="bookmark_post",
    ),
    Operation(
        name="unbookmark_twitter",
        summary="Remove a bookmark",
        method="DELETE",
        path="/2/users/{user_id}/bookmarks/{tweet_id}",
        body=TweetTarget,
        answer=Bookmarked,
        scopes=_BOOKMARK,
        target="tweet_id",
        opposite="bookmark_twitter",
        expect={"bookmarked": False},
        tool="bookmark_post",
    ),
    Operation(
        name="upload_media",
        summary="Upload an image, GIF or video to attach to a post",
        method="POST",
        path="/2/media/upload",
        body=Empty,
        answer=Uploaded,
        scopes=UPLOAD_SCOPES,
        target="media_id",
        repeatable=False,
        takes_file=True,
    ),
)

OPERATIONS_BY_NAME: Mapping[str, Operation] = {row.name: row for row in OPERATIONS}
