"""The message of an event for each kind of destination: its headers and its body."""

from __future__ import annotations

import json
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, Final

from birdwire.gateway.notifications.news import Message
from birdwire.runtime.clock import rfc3339
from birdwire.surfaces.notifications.wording import worded
from birdwire.x.catalog.visible_text import marked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from birdwire.gateway.notifications.news import News
    from birdwire.surfaces.notifications.wording import Worded

NTFY_MAX_BYTES: Final = 4_096
"""ntfy turns a longer message into an attached file."""

SLACK_MAX_HEADER: Final = 150
SLACK_MAX_SECTION: Final = 3_000
SLACK_MAX_TEXT: Final = 2_000
"""What Discord accepts as a text; Slack and Mattermost accept more."""

_JSON: Final = ("Content-Type", "application/json")
_BREAK: Final = "\u200b"
"""A zero width space. After it, a chat no longer reads a mention or a link into what came from elsewhere."""


def word(kind: str, news: News) -> Message:
    """Return the message of an event for a kind of destination."""
    return _FORMS[kind](news)


def _standard(news: News) -> Message:
    """Return an event for programs: Standard Webhooks, without the signature."""
    data: dict[str, Any] = dict(news.data)
    if news.text is not None:
        data["text"] = news.text
    if news.review_url is not None:
        data["review_url"] = news.review_url
    document = {"type": news.type, "timestamp": rfc3339(news.at), "data": data}
    return Message((_JSON,), json.dumps(document).encode())


def _ntfy(news: News) -> Message:
    said = worded(news)
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Title", said.title),
        ("Priority", str(said.priority)),
        ("Tags", said.emoji),
    ]
    if news.review_url is not None:
        headers.append(("Click", news.review_url))
    next_step = _next_step(news, "Tap to see all of it and decide.")
    parts = [" ".join(said.sentences), "", next_step]
    if news.text is not None:
        room = NTFY_MAX_BYTES - _bytes("\n\n".join((parts[0], "", next_step)))
        parts[1] = fitted(news.text, room, marked, _bytes)
    body = "\n\n".join(part for part in parts if part)
    return Message(tuple(headers), body.encode())


def _slack(news: News) -> Message:
    said = worded(news)
    next_step = _next_step(news, "")
    sentences = " ".join(filter(None, (*said.sentences, next_step)))
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": _plain(_harmless(said.title)[:SLACK_MAX_HEADER])},
        {"type": "section", "text": _plain(fitted(sentences, SLACK_MAX_SECTION, _harmless, _units))},
    ]
    if news.text is not None:
        text = fitted(news.text, SLACK_MAX_SECTION, _shown, _units)
        blocks.append({"type": "section", "text": _plain(text or " ")})
    if news.review_url is not None:
        button = {"type": "button", "text": _plain("Review"), "url": news.review_url, "action_id": "review"}
        blocks.append({"type": "actions", "elements": [button | {"style": "primary"}]})
    document = {"text": _fallback(said, sentences, news), "blocks": blocks, "unfurl_links": False}
    return Message((_JSON,), json.dumps(document).encode())


def _fallback(said: Worded, sentences: str, news: News) -> str:
    """Return all of a message as one text, for a chat that does not know blocks."""
    parts = [_escaped(_harmless(said.title)), _escaped(_harmless(sentences)), "", news.review_url or ""]
    if news.text is not None:
        # No chat reads markup in a code block.
        room = SLACK_MAX_TEXT - _units("\n\n".join((parts[0], parts[1], "``````", parts[3])))
        parts[2] = f"```\n{fitted(news.text, room - 2, _as_code, _units)}\n```"
    return "\n\n".join(part for part in parts if part)


_FORMS: Final[Mapping[str, Callable[[News], Message]]] = {"standard": _standard, "ntfy": _ntfy, "slack": _slack}


def fitted(text: str, room: int, form: Callable[[str], str], size: Callable[[str], int]) -> str:
    """Return a text as `form` shows it, or as much of it as has at most `room` of `size`, and how much is left out."""
    if len(text) <= room and size(whole := form(text)) <= room:
        return whole
    left = f"… ({len(text):,} more characters)"
    # A character never has a size of less than 1.
    lengths = range(max(0, min(len(text), room) + 1))
    kept = bisect_right(lengths, room - size(left), key=lambda length: size(form(text[:length]))) - 1
    return f"{form(text[: max(0, kept)])}… ({len(text) - max(0, kept):,} more characters)"


def _next_step(news: News, with_link: str) -> str:
    """Return what the operator can do about an event that asks for a decision."""
    if news.type != "approval.requested":
        return ""
    request_id = str(news.data.get("request_id", ""))
    return with_link if news.review_url is not None else f"To decide, run: birdwire approvals show {request_id}"


def _plain(text: str) -> dict[str, Any]:
    return {"type": "plain_text", "text": text, "emoji": False}


def _harmless(text: str) -> str:
    """Return a text in which no chat reads a mention, a link with another text, or an image."""
    for char in ("@", "<", "]"):
        text = text.replace(char, f"{char}{_BREAK}")
    return text


def _shown(text: str) -> str:
    return _harmless(marked(text))


def _as_code(text: str) -> str:
    """Return a text for a code block, which it cannot end."""
    return _escaped(_shown(text).replace("`", f"`{_BREAK}"))


def _escaped(text: str) -> str:
    """Return a text without the characters that control how Slack formats it."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _bytes(text: str) -> int:
    return len(text.encode())


def _units(text: str) -> int:
    """Return the length of a text in UTF-16 code units, as JavaScript counts characters."""
    return len(text.encode("utf-16-le")) // 2
