"""An account's timeline as X returns it: the call for a page, and its posts, read leniently."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from pydantic import Field

from birdwire.x.catalog.post import made_at
from birdwire.x.client.requests import ID_PATTERN, XData, XRequest

ENDPOINT = "GET /2/users/{id}/tweets"
_FIELDS = "created_at,entities,referenced_tweets,edit_history_tweet_ids,note_tweet"


class TimelinePost(XData):
    """A post of a timeline."""

    id: str = Field(pattern=ID_PATTERN)
    text: str = ""
    created_at: str | None = None
    entities: dict[str, Any] = Field(default_factory=dict)
    referenced_tweets: list[dict[str, Any]] = Field(default_factory=list)
    referenced_posts: list[dict[str, Any]] = Field(default_factory=list)
    edit_history_tweet_ids: list[str] = Field(default_factory=list)
    edit_history_post_ids: list[str] = Field(default_factory=list)
    note_tweet: dict[str, Any] = Field(default_factory=dict)
    note_post: dict[str, Any] = Field(default_factory=dict)

    @property
    def history(self) -> list[str]:
        """Return the ids of the post's versions, oldest first."""
        return self.edit_history_tweet_ids or self.edit_history_post_ids

    @property
    def at(self) -> datetime:
        """Return when X created the post, by X's clock: as X states it, otherwise as the id encodes it."""
        try:
            at = datetime.fromisoformat(self.created_at or "")
        except ValueError:
            return made_at(self.id)
        return at if at.tzinfo else at.replace(tzinfo=UTC)

    def references(self, kind: str) -> list[str]:
        """Return the ids of the posts that this one replies to (replied_to) or quotes (quoted)."""
        every = (*self.referenced_tweets, *self.referenced_posts)
        return [str(one.get("id")) for one in every if one.get("type") == kind]


class TimelinePage(XData):
    """One page of users/{id}/tweets."""

    data: list[TimelinePost] = Field(default_factory=list)
    meta: dict[str, Any] = Field(default_factory=dict)

    @property
    def next_token(self) -> str | None:
        """Return the token of the next page, if there is one."""
        token = self.meta.get("next_token")
        return token if isinstance(token, str) and re.fullmatch(r"[A-Za-z0-9._~=-]{1,500}", token) else None


def request(user_id: str, since: datetime, until: datetime | None, page: str | None) -> XRequest:
    """Return the call for a page of an account's posts between two moments of X's clock, newest first."""
    query = {"max_results": "100", "tweet.fields": _FIELDS, "start_time": _time(since)}
    if until is not None:
        query["end_time"] = _time(until)
    if page is not None:
        query["pagination_token"] = page
    return XRequest("GET", f"/2/users/{user_id}/tweets?{urlencode(query, safe=',:')}", endpoint=ENDPOINT)


def _time(at: datetime) -> str:
    """Return a moment as X's parameters take it: whole seconds, UTC."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
