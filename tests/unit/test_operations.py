"""Rows of OPERATIONS as requests to X."""

from __future__ import annotations

from dataclasses import replace

import pytest

from birdwire.api.models import Body, Empty
from birdwire.x.catalog.operations import OPERATIONS, Operation, TweetTarget, UserTarget
from birdwire.x.catalog.post import Poll, PostTwitter
from birdwire.x.client.requests import XData, XRequest

BODY = TweetTarget(tweet_id="7")


class Hidden(XData):
    """X's answer to a hidden reply."""

    hidden: bool


class Optional(Body):
    """A body with a field that the caller may leave out."""

    tweet_id: str
    note: str = "none"


def test_an_operation_can_be_a_put_with_a_constant_body() -> None:
    """The path takes the caller's fields, and the body is X's own."""
    hide = Operation(
        name="hide_reply",
        summary="Hide a reply",
        method="PUT",
        path="/2/tweets/{tweet_id}/hidden",
        json={"hidden": True},
        body=TweetTarget,
        answer=Hidden,
        scopes=("tweet.moderate.write",),
        target="tweet_id",
    )
    assert hide.upstream("1", BODY) == XRequest(
        "PUT", "/2/tweets/7/hidden", {"hidden": True}, endpoint="PUT /2/tweets/{tweet_id}/hidden", repeatable=True
    )


def test_a_post_carries_the_callers_fields_and_a_delete_carries_none() -> None:
    """Neither has a constant body."""
    rows = {row.name: row for row in OPERATIONS}
    assert rows["like_twitter"].upstream("1", BODY).json == {"tweet_id": "7"}
    assert rows["unlike_twitter"].upstream("1", BODY).json is None


@pytest.mark.parametrize(
    "body",
    [
        BODY,
        UserTarget(target_user_id="7"),
        Empty(),
        PostTwitter(text="a"),
        PostTwitter(text="a", poll=Poll(options=["b", "c"], duration_minutes=5)),
        Optional(tweet_id="7"),
        Optional(tweet_id="7", note="n"),
    ],
    ids=repr,
)
def test_what_is_sent_is_what_the_caller_set(body: Body) -> None:
    """No default, at any depth; and what is sent is no longer the body's own."""
    row = replace(next(row for row in OPERATIONS if row.name == "post_twitter"), body=type(body))
    sent = row.upstream("1", body).json
    assert sent == body.model_dump(exclude_unset=True)
    assert sent is not vars(body)
