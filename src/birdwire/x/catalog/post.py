"""The body of post_twitter, with X's rules for a post. Sends nothing, and never alters a text."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from birdwire.api.models import Body
from birdwire.x.catalog.post_length import LIMIT, least_length, weighted_length
from birdwire.x.client.requests import ID_PATTERN

_EPOCH = datetime.fromtimestamp(1_288_834_974_657 / 1000, UTC)
"""The moment from which X counts the milliseconds in its ids."""

Id = Annotated[str, Field(pattern=ID_PATTERN)]
Audience = Literal["following", "mentionedUsers", "subscribers", "verified"]

_AUDIENCE = '"following", "mentionedUsers", "subscribers" or "verified"'
_ID = 'a string of 1 to 19 digits, such as "1346889436626259968"'
_MAX_EXACT_EXCESS = 1_000
"""The weighted length over the limit up to which a text is measured exactly."""

_CONTROL_CHARACTER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

_EXCLUSIVE = ("media", "poll", "quote_tweet_id", "card_uri")


class Reply(Body):
    """The post to reply to, and its mentions."""

    in_reply_to_tweet_id: Id = Field(description=f"the id of the post to reply to, {_ID}")
    auto_populate_reply_metadata: bool | None = Field(None, description="true or false; X accepts it and ignores it")
    exclude_reply_user_ids: list[Id] | None = Field(
        None, max_length=10, description="ids of users to exclude from the reply's mentions, at most 10"
    )


class Media(Body):
    """Uploaded media to attach."""

    media_ids: list[Id] = Field(min_length=1, max_length=4, description="1 to 4 media ids, as returned by upload_media")
    tagged_user_ids: list[Id] | None = Field(None, max_length=10, description="ids of users to tag, at most 10")


class Poll(Body):
    """A poll."""

    options: list[Annotated[str, Field(min_length=1, max_length=25)]] = Field(
        min_length=2, max_length=4, description="2 to 4 options of 1 to 25 characters"
    )
    duration_minutes: int = Field(ge=5, le=10_080, description="a whole number of minutes from 5 to 10080")
    reply_settings: Audience | None = Field(None, description=f"who may reply: {_AUDIENCE}")

    @field_validator("duration_minutes", mode="before")
    @classmethod
    def _whole_number(cls, value: object) -> object:
        """Accept 60.0 as 60: in JSON Schema both are the same integer."""
        return int(value) if isinstance(value, float) and value.is_integer() else value


class Geo(Body):
    """A place."""

    place_id: str | None = Field(None, min_length=1, max_length=100, description="X's place id")

    @model_validator(mode="after")
    def _has_id(self) -> Self:
        """Refuse a place without its id, as X does; the published schema does not require it."""
        if self.place_id is None:
            raise PydanticCustomError("place_id_missing", "missing", {"wanted": "X's place id, or omit geo"})
        return self


class EditOptions(Body):
    """The post to edit."""

    previous_post_id: Id = Field(description=f"the id of the post to edit, {_ID}")


class PostTwitter(Body):
    """A new post, or an edit of one."""

    text: str | None = Field(None, description="the post's text, at most 280 weighted characters")
    reply: Reply | None = Field(None, description='an object such as {"in_reply_to_tweet_id": "…"}')
    quote_tweet_id: Id | None = Field(None, description=f"the id of the post to quote, {_ID}")
    media: Media | None = Field(None, description='an object such as {"media_ids": ["…"]}')
    poll: Poll | None = Field(None, description='an object such as {"options": ["Yes", "No"], "duration_minutes": 60}')
    card_uri: str | None = Field(None, min_length=1, max_length=2_000, description="the URI of a card")
    direct_message_deep_link: str | None = Field(
        None, min_length=1, max_length=2_000, description="a link that opens a direct message"
    )
    geo: Geo | None = Field(None, description='an object such as {"place_id": "…"}')
    reply_settings: Audience | None = Field(None, description=f"who may reply: {_AUDIENCE}")
    for_super_followers_only: bool | None = Field(
        None, description="true or false; true shows it only to super followers"
    )
    nullcast: bool | None = Field(None, description="true or false; true keeps it out of timelines")
    paid_partnership: bool | None = Field(None, description="true or false; true marks a paid partnership")
    made_with_ai: bool | None = Field(None, description="true or false; true marks AI-generated media")
    community_id: Id | None = Field(None, description=f"the id of a community, {_ID}")
    share_with_followers: bool | None = Field(
        None, description="true or false; true also shows a community post to followers"
    )
    edit_options: EditOptions | None = Field(None, description='an object such as {"previous_post_id": "…"}')

    @field_validator("text")
    @classmethod
    def _plain(cls, text: str) -> str:
        if _CONTROL_CHARACTER.search(text):
            raise PydanticCustomError("control_character", "control character")
        return text

    @model_validator(mode="after")
    def _fits_together(self, info: ValidationInfo) -> Self:
        given = [name for name in _EXCLUSIVE if getattr(self, name) is not None]
        if self.card_uri is not None and self.direct_message_deep_link is not None:
            given = ["card_uri", "direct_message_deep_link"]
        if len(given) > 1:
            raise PydanticCustomError("mutually_exclusive", "exclusive", {"fields": " and ".join(given)})
        if self.text is None and not given:
            raise PydanticCustomError("text_missing", "missing", {})
        if self.text is not None and not self.text.strip() and not given:
            raise PydanticCustomError("text_empty", "empty", {})
        limit = (info.context or {}).get("text_limit") or LIMIT
        # The lower bound is never more than the number of code points.
        if self.text is not None and len(self.text) > limit and (least := least_length(self.text)) > limit:
            raise _too_long(f"at least {least}", limit)
        enough = limit + _MAX_EXACT_EXCESS
        if self.text is not None and (length := weighted_length(self.text, enough)) > limit:
            raise _too_long(str(length) if length <= enough else f"at least {length}", limit)
        return self


def _too_long(length: str, limit: int) -> PydanticCustomError:
    return PydanticCustomError("text_too_long", "too long", {"length": length, "limit": limit})


def made_at(post_id: str) -> datetime:
    """Return when X created a post, by X's clock, from the post's id."""
    return _EPOCH + timedelta(milliseconds=int(post_id) >> 22)
