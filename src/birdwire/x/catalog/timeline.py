"""A post as it was asked for, and as X's timeline shows it: whether the two are one. Pure; asks X nothing."""

from __future__ import annotations

import html
import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

from pydantic import Field

from birdwire.x.catalog.post import PostTwitter, made_at
from birdwire.x.catalog.unicode_nfc import compose
from birdwire.x.client.requests import ID_PATTERN, XData, XRequest

if TYPE_CHECKING:
    from birdwire.api.body import Body

ENDPOINT = "GET /2/users/{id}/tweets"
_FIELDS = "created_at,entities,referenced_tweets,edit_history_tweet_ids,note_tweet"
_ELSEWHERE = ("nullcast", "community_id", "for_super_followers_only")
_MENTIONS = re.compile(r"(?:@[A-Za-z0-9_]{1,15}\s+)+")
_PROTOCOL = re.compile(r"https?://", re.IGNORECASE)
_LINK_END = re.compile(r"/(?=\s|$)")
_OWN_MEDIUM = re.compile(r"https?://(?:x|twitter)\.com/[^/]+/status/[0-9]+/(?:photo|video)/[0-9]+")
_STATUS = re.compile(r"https?://(?:x|twitter)\.com/[^/]+(?:/web)?/status/([0-9]+)(?:[/?].*)?")


class Sought(NamedTuple):
    """How a post is told among others: its normalised text, and the posts that it answers, quotes or replaces."""

    text: str
    reply: str | None
    quote: str | None
    edit: str | None

    @classmethod
    def read(cls, words: str) -> Sought:
        """From what `sought` wrote."""
        return cls(*json.loads(words))

    def is_like(self, post: TimelinePost) -> bool:
        """Whether a post of the timeline is the one."""
        if self.edit is not None:  # it answers and quotes what its first version did
            return self.edit in post.history[:-1] and self.text == post.plain(reply=False, quote=None)
        replies, quotes = post.references("replied_to"), post.references("quoted")
        same = self.reply in replies if self.reply else not replies
        same = same and (self.quote in quotes if self.quote else True)  # a link to a post in the text quotes it, too
        return same and self.text == post.plain(reply=self.reply is not None, quote=self.quote)


class TimelinePost(XData):
    """A post of a timeline, read leniently."""

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
        """The ids of its versions, oldest first."""
        return self.edit_history_tweet_ids or self.edit_history_post_ids

    @property
    def at(self) -> datetime:
        """When X made it, by X's clock: as X says it, else as its id does."""
        try:
            at = datetime.fromisoformat(self.created_at or "")
        except ValueError:
            return made_at(self.id)
        return at if at.tzinfo else at.replace(tzinfo=UTC)

    def references(self, kind: str) -> list[str]:
        """The ids of the posts that it answers (replied_to) or quotes (quoted)."""
        every = (*self.referenced_tweets, *self.referenced_posts)
        return [str(one.get("id")) for one in every if one.get("type") == kind]

    def plain(self, *, reply: bool, quote: str | None) -> str:
        """Its text, normalised: X's short links as they were before, those that X itself added left out."""
        note = self.note_tweet or self.note_post  # a long text is cut in `text`
        text, entities = _unescaped(str(note.get("text", self.text))), note.get("entities", self.entities)
        urls = entities.get("urls") if isinstance(entities, dict) else None
        for entry in urls if isinstance(urls, list) else []:
            if isinstance(entry, dict) and isinstance(entry.get("url"), str):
                text = text.replace(entry["url"], _original(entry, quote), 1)
        return normal(text, reply=reply)


class TimelinePage(XData):
    """One page of users/{id}/tweets."""

    data: list[TimelinePost] = Field(default_factory=list)
    meta: dict[str, Any] = Field(default_factory=dict)

    @property
    def next_token(self) -> str | None:
        """Where the next page begins, if there is one."""
        token = self.meta.get("next_token")
        return token if isinstance(token, str) and re.fullmatch(r"[A-Za-z0-9._~=-]{1,500}", token) else None


def sought(body: Body) -> str | None:
    """How a post will be told in its account's timeline, as text to be sealed; None for what does not appear there."""
    if not isinstance(body, PostTwitter) or any(getattr(body, name) for name in _ELSEWHERE):
        return None
    reply = body.reply.in_reply_to_tweet_id if body.reply else None
    edit = body.edit_options.previous_post_id if body.edit_options else None
    text = normal(body.text or "", reply=reply is not None and edit is None)
    return json.dumps(Sought(text, _plain_id(reply), _plain_id(body.quote_tweet_id), _plain_id(edit)))


def normal(text: str, *, reply: bool = False) -> str:
    """A text for comparing: NFC, entities undone, blanks and links told alike, a reply's first mentions dropped."""
    text = " ".join(compose(_unescaped(text)).split())
    text = _LINK_END.sub("", _PROTOCOL.sub("", text))
    return _MENTIONS.sub("", f"{text} ", count=1).strip() if reply and text.startswith("@") else text


def request(user_id: str, since: datetime, until: datetime | None, page: str | None) -> XRequest:
    """The call for a page of an account's posts between two moments of X's clock, newest first."""
    query = {"max_results": "100", "tweet.fields": _FIELDS, "start_time": _time(since)}
    if until is not None:
        query["end_time"] = _time(until)
    if page is not None:
        query["pagination_token"] = page
    return XRequest("GET", f"/2/users/{user_id}/tweets?{urlencode(query, safe=',:')}", endpoint=ENDPOINT)


def _unescaped(text: str) -> str:
    """Return `text` without character references; as it is if it has one with more digits than Python reads."""
    try:
        return html.unescape(text)
    except ValueError:
        return text


def _time(at: datetime) -> str:
    """X's parameter: whole seconds, UTC."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _original(entry: dict[str, Any], quote: str | None) -> str:
    """What stood in a short link's place; nothing for a medium of the post itself, and for the post it quotes."""
    expanded = entry.get("expanded_url")
    if not isinstance(expanded, str):
        return str(entry["url"])
    if "media_key" in entry or _OWN_MEDIUM.fullmatch(expanded):
        return ""
    status = _STATUS.fullmatch(expanded)
    return "" if status and quote is not None and _plain_id(status[1]) == quote else expanded


def _plain_id(post_id: str | None) -> str | None:
    """An id without leading zeros, which X leaves out."""
    return None if post_id is None else str(int(post_id))
