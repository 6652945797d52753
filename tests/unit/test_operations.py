"""Rows of OPERATIONS as requests to X."""

from __future__ import annotations

from birdwire.x.catalog.operations import OPERATIONS, Operation, TweetTarget
from birdwire.x.client.requests import XData, XRequest

BODY = TweetTarget(tweet_id="7")


class Hidden(XData):
    """X's answer to a hidden reply."""

    hidden: bool


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
