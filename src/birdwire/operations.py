"""OPERATIONS: one row is one thing an app may do on X. Everything that lists operations reads this table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from birdwire.body import Body

ID_PATTERN = r"^[0-9]{1,19}$"
"""Ids of posts and users. pydantic's engine knows no trailing-newline exception, so this matches whole strings only."""

TweetId = Annotated[
    str,
    Field(pattern=ID_PATTERN, description='the post\'s id, a string of 1 to 19 digits, such as "1346889436626259968"'),
]


class TweetTarget(Body):
    """A call about one post."""

    tweet_id: TweetId


class XData(BaseModel):
    """The members of X's `data` that an answer passes on; X's other members are left out."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class Liked(XData):
    """What X says after a like or an unlike."""

    liked: bool = Field(description="whether the linked account likes the post now")


@dataclass(frozen=True, slots=True)
class XRequest:
    """A call to X's API: method, path below the base URL, JSON body or none."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    json: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing an app may do on X.

    `path` is X's, with {user_id} for the acting account and the body's fields by name; a POST carries the set fields.
    `target` names the field that says what is acted on. `enterprise` marks what X removed from its self-serve tiers.
    `already` maps an old code of X (X.md's v1.1 list) to the answer it amounts to.
    """

    name: str
    summary: str
    method: Literal["POST", "DELETE"]
    path: str
    body: type[Body]
    answer: type[XData]
    expect: dict[str, Any]
    scopes: tuple[str, ...]
    target: str
    repeatable: bool = True
    enterprise: bool = False
    status: int = 200
    already: dict[int, dict[str, Any]] = field(default_factory=dict)

    def upstream(self, user_id: str, body: Body) -> XRequest:
        """The call to X that does it."""
        sent = body.model_dump(exclude_unset=True)
        path = self.path.format(user_id=user_id, **sent)
        return XRequest(self.method, path, sent if self.method == "POST" else None)


LIKE_SCOPES = ("like.write", "tweet.read", "users.read")

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="like_twitter",
        summary="Like a post",
        method="POST",
        path="/2/users/{user_id}/likes",
        body=TweetTarget,
        answer=Liked,
        expect={"liked": True},
        scopes=LIKE_SCOPES,
        target="tweet_id",
        enterprise=True,
        already={139: {"liked": True}},
    ),
    Operation(
        name="unlike_twitter",
        summary="Take a like back",
        method="DELETE",
        path="/2/users/{user_id}/likes/{tweet_id}",
        body=TweetTarget,
        answer=Liked,
        expect={"liked": False},
        scopes=LIKE_SCOPES,
        target="tweet_id",
    ),
)
