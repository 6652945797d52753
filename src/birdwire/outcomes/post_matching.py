"""Decides whether a post in an account's timeline is one that was asked for. Sends nothing to X."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from birdwire.x.catalog.post import PostTwitter
from birdwire.x.catalog.unicode_nfc import compose

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from birdwire.api.models import Body
    from birdwire.store.tables.journal import JournalRow
    from birdwire.x.catalog.timeline import TimelinePost

_NOT_IN_TIMELINE = ("nullcast", "community_id", "for_super_followers_only")
"""Fields of a post that keep it out of its account's timeline."""

_MENTIONS = re.compile(r"(?:@[A-Za-z0-9_]{1,15}\s+)+")
_PROTOCOL = re.compile(r"https?://", re.IGNORECASE)
_LINK_END = re.compile(r"/(?=\s|$)")
_OWN_MEDIUM = re.compile(r"https?://(?:x|twitter)\.com/[^/]+/status/[0-9]+/(?:photo|video)/[0-9]+")
_STATUS = re.compile(r"https?://(?:x|twitter)\.com/[^/]+(?:/web)?/status/([0-9]+)(?:[/?].*)?")


class Signature(NamedTuple):
    """What identifies a post: its normalized text, and the posts that it replies to, quotes or replaces."""

    text: str
    reply: str | None
    quote: str | None
    edit: str | None

    @classmethod
    def decode(cls, text: str) -> Signature:
        """Return the signature that `signature_of` encoded."""
        return cls(*json.loads(text))

    def matches(self, post: TimelinePost) -> bool:
        """Return whether a post of the timeline has this signature."""
        # An edit keeps the reply and the quote of the first version, so they need not be compared.
        if self.edit is not None:
            return self.edit in post.history[:-1] and self.text == _text_of(post, reply=False, quote=None)
        replies, quotes = post.references("replied_to"), post.references("quoted")
        same = self.reply in replies if self.reply else not replies
        # A link to a post in the text quotes that post, too: an unexpected quote does not count as a difference.
        same = same and (self.quote in quotes if self.quote else True)
        return same and self.text == _text_of(post, reply=self.reply is not None, quote=self.quote)


@dataclass(frozen=True, slots=True)
class LostPost:
    """A post whose answer was lost: its row, its signature, and when X created it, if X did, by X's clock."""

    row: JournalRow
    signature: Signature
    since: datetime
    until: datetime


def match(lost: Sequence[LostPost], posts: Sequence[TimelinePost]) -> dict[str, TimelinePost | None]:
    """Return the timeline's post for each lost one, by request id: None if several match, no entry if none does.

    Posts with the same signature are assigned in the order of time, if there are as many of them as lost rows.
    """
    candidates = {
        one.row.request_id: [
            post for post in posts if one.since <= post.at <= one.until and one.signature.matches(post)
        ]
        for one in lost
    }
    verdicts: dict[str, TimelinePost | None] = {}
    for signature in dict.fromkeys(one.signature for one in lost):
        rows = [one.row for one in lost if one.signature == signature and candidates[one.row.request_id]]
        rows.sort(key=lambda row: row.start)
        theirs = {post.id: post for row in rows for post in candidates[row.request_id]}
        ordered = sorted(theirs.values(), key=lambda post: int(post.id))
        for place, row in enumerate(rows):
            certain = len(ordered) == len(rows) and ordered[place] in candidates[row.request_id]
            verdicts[row.request_id] = ordered[place] if certain else None
    return verdicts


def signature_of(body: Body) -> str | None:
    """Return the encoded signature of a post, to be encrypted; None for what does not appear in its timeline."""
    if not isinstance(body, PostTwitter) or any(getattr(body, name) for name in _NOT_IN_TIMELINE):
        return None
    reply = body.reply.in_reply_to_tweet_id if body.reply else None
    edit = body.edit_options.previous_post_id if body.edit_options else None
    text = normalized(body.text or "", reply=reply is not None and edit is None)
    return json.dumps(Signature(text, _canonical_id(reply), _canonical_id(body.quote_tweet_id), _canonical_id(edit)))


def normalized(text: str, *, reply: bool = False) -> str:
    """Return a text for comparison: NFC, without character references, a reply's leading mentions, and protocols."""
    text = " ".join(compose(_unescaped(text)).split())
    text = _LINK_END.sub("", _PROTOCOL.sub("", text))
    return _MENTIONS.sub("", f"{text} ", count=1).strip() if reply and text.startswith("@") else text


def _text_of(post: TimelinePost, *, reply: bool, quote: str | None) -> str:
    """Return a post's normalized text: X's short links become the original ones, and links that X added are removed."""
    # X truncates a long text in `text`; the note holds all of it.
    note = post.note_tweet or post.note_post
    text, entities = _unescaped(str(note.get("text", post.text))), note.get("entities", post.entities)
    urls = entities.get("urls") if isinstance(entities, dict) else None
    for entry in urls if isinstance(urls, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("url"), str):
            text = text.replace(entry["url"], _original(entry, quote), 1)
    return normalized(text, reply=reply)


def _unescaped(text: str) -> str:
    """Return `text` without character references, or unchanged if one has more digits than Python reads."""
    try:
        return html.unescape(text)
    except ValueError:
        return text


def _original(entry: dict[str, Any], quote: str | None) -> str:
    """Return the link that X shortened; an empty text for the post's own media and for the post that it quotes."""
    expanded = entry.get("expanded_url")
    if not isinstance(expanded, str):
        return str(entry["url"])
    if "media_key" in entry or _OWN_MEDIUM.fullmatch(expanded):
        return ""
    status = _STATUS.fullmatch(expanded)
    return "" if status and quote is not None and _canonical_id(status[1]) == quote else expanded


def _canonical_id(post_id: str | None) -> str | None:
    """Return an id without leading zeros, as X writes it."""
    return None if post_id is None else str(int(post_id))
