"""What a payload asks for, as a person reads it: every member that is set, by a table of labels, and its links."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unicodedata import name as unicode_name

from birdwire.api.messages import encode
from birdwire.x.catalog.post_length import links_of
from birdwire.x.catalog.visible_text import LinkHost, hosts, runs

if TYPE_CHECKING:
    from birdwire.outcomes.approval_payload import Payload

_ID = re.compile(r"[0-9]{1,19}")
_WEB = ("https://", "http://")
_MIB = 1 << 20
_KINDS = {"image/gif": "GIF", "image": "image", "video": "video"}


@dataclass(frozen=True, slots=True)
class Value:
    """A value in words, and where to look at it."""

    text: str
    href: str | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the payload: its label, its values, and its name in the request."""

    label: str
    values: tuple[Value, ...]
    name: str


@dataclass(frozen=True, slots=True)
class Marker:
    """A code point that a text shows as a marker, its name in Unicode, and how often the text has it."""

    code: str
    name: str
    times: int


@dataclass(frozen=True, slots=True)
class Picture:
    """An image that the page shows: its number, and its size in words."""

    number: int
    size: str


def members(payload: Payload) -> list[Member]:
    """Return every member that is set, in the order of the table, but for the text and the media, shown apart."""
    found = []
    for name, value in _leaves(payload.fields):
        if name in _APART:
            continue
        label, words = _LABELS.get(name, (name, _plain))
        values = value if isinstance(value, list) else [value]
        found.append(Member(label, tuple(map(words, values)), name))
    return sorted(found, key=lambda member: _ORDER.get(member.name, len(_ORDER)))


def text_of(payload: Payload) -> str | None:
    """Return the post's text; None if the payload has none."""
    text = payload.fields.get("text")
    return text if isinstance(text, str) else None


def links(payload: Payload) -> list[LinkHost]:
    """Return every link that X may show, with its host; the host is empty where it is not known."""
    texts = [text_of(payload) or "", *_options(payload)]
    found = [link for text in texts for link in links_of(text)]
    others = [payload.fields.get(name) for name in ("card_uri", "direct_message_deep_link")]
    found += [link for link in others if isinstance(link, str)]
    # Only X knows where a card without a URL leads.
    return [
        one if one.link not in others or one.link.lower().startswith(_WEB) else LinkHost(one.link, "", differs=True)
        for one in hosts(found)
    ]


def markers(payload: Payload) -> list[Marker]:
    """Return what the text and the options of the poll show as markers, in the order of their first use."""
    times: dict[str, int] = {}
    for text in (text_of(payload) or "", *_options(payload)):
        for run, is_marker in runs(text):
            if is_marker:
                times[run] = times.get(run, 0) + 1
    return [
        Marker(code, unicode_name(chr(int(code.removeprefix("U+"), base=16)), "").lower(), many)
        for code, many in times.items()
    ]


def pictures(payload: Payload, kept: frozenset[int]) -> list[Picture]:
    """Return the images that can be shown."""
    return [Picture(number, _size(file)) for number, file in enumerate(payload.media) if number in kept]


def media_not_shown(payload: Payload, kept: frozenset[int]) -> list[str]:
    """Return a description of each file that the post would have and the page does not show."""
    media = payload.fields.get("media")
    ids = media.get("media_ids") if isinstance(media, dict) else None
    given = ids if isinstance(ids, list) else [] if ids is None else [ids]
    known = {one["media_id"] for one in payload.uploads}
    return [
        *(_described(file) for number, file in enumerate(payload.media) if number not in kept),
        *(f"1 file that was uploaded earlier, media ID {one}" for one in given if str(one) not in known),
    ]


def _described(file: Mapping[str, Any]) -> str:
    earlier = f", uploaded earlier, media ID {file['media_id']}" if "media_id" in file else ""
    return f"1 {_kind(file)}, {_size(file)}{earlier}"


def _leaves(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each member that is not an object, by its path. A list is one member, an empty object too."""
    for name, inner in value.items():
        path = f"{above}{name}"
        if isinstance(inner, Mapping) and inner:
            yield from _leaves(inner, f"{path}.")
        else:
            yield path, inner


def _options(payload: Payload) -> Sequence[str]:
    poll = payload.fields.get("poll")
    options = poll.get("options") if isinstance(poll, dict) else None
    return [one for one in options if isinstance(one, str)] if isinstance(options, list) else []


def _plain(value: object) -> Value:
    if isinstance(value, bool):
        return Value("yes" if value else "no")
    return Value(value if isinstance(value, str) else encode(value).decode())


def _post(value: object) -> Value:
    text = _plain(value).text
    return Value(text, f"https://x.com/i/status/{text}" if _ID.fullmatch(text) else None)


def _user(value: object) -> Value:
    text = _plain(value).text
    return Value(text, f"https://x.com/i/user/{text}" if _ID.fullmatch(text) else None)


def _community(value: object) -> Value:
    text = _plain(value).text
    return Value(text, f"https://x.com/i/communities/{text}" if _ID.fullmatch(text) else None)


def _audience(value: object) -> Value:
    text = _plain(value).text
    return Value(_AUDIENCES.get(text, text))


def _minutes(value: object) -> Value:
    """Return a number of minutes as days, hours and minutes."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return _plain(value)
    hours, minutes = divmod(value, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "day"), (hours, "hour"), (minutes, "minute")]
    return Value(", ".join(f"{many} {unit}{'s' * (many != 1)}" for many, unit in parts if many) or "0 minutes")


def _kind(file: Mapping[str, Any]) -> str:
    media_type = str(file.get("type", ""))
    return _KINDS.get(media_type) or _KINDS.get(media_type.partition("/")[0]) or f"file ({media_type or 'no type'})"


def _size(file: Mapping[str, Any]) -> str:
    size = int(file.get("size", 0))
    if size >= _MIB:
        return f"{size / _MIB:.1f} MiB".replace(".0 ", " ")
    return f"{size / 1024:.0f} KiB" if size >= 1024 else f"{size} bytes"


_AUDIENCES = {
    "following": "only accounts that the author follows",
    "mentionedUsers": "only accounts that the post mentions",
    "subscribers": "only subscribers",
    "verified": "only verified accounts",
}
_APART = frozenset({"text", "media.media_ids"})
_LABELS: dict[str, tuple[str, Callable[[object], Value]]] = {
    "tweet_id": ("Post", _post),
    "target_user_id": ("User", _user),
    "reply.in_reply_to_tweet_id": ("In reply to", _post),
    "reply.auto_populate_reply_metadata": ("Fill in mentions (X ignores it)", _plain),
    "reply.exclude_reply_user_ids": ("Not mentioned in the reply", _user),
    "quote_tweet_id": ("Quotes", _post),
    "media.tagged_user_ids": ("Tagged in the media", _user),
    "poll.options": ("Poll", _plain),
    "poll.duration_minutes": ("The poll is open for", _minutes),
    "poll.reply_settings": ("Who can reply to the poll", _audience),
    "card_uri": ("Card", _plain),
    "direct_message_deep_link": ("Opens a direct message", _plain),
    "geo.place_id": ("Place", _plain),
    "reply_settings": ("Who can reply", _audience),
    "for_super_followers_only": ("Only for super followers", _plain),
    "nullcast": ("Kept out of timelines (nullcast)", _plain),
    "paid_partnership": ("Marked as a paid partnership", _plain),
    "made_with_ai": ("Marked as made with AI", _plain),
    "community_id": ("Community", _community),
    "share_with_followers": ("Also shown to followers", _plain),
    "edit_options.previous_post_id": ("Replaces the post", _post),
}
"""The label of each member, and what turns a value into words. One that is not listed is shown by its own name."""
_ORDER = {name: number for number, name in enumerate(_LABELS)}
