"""X's reading of a post's text: weight, links, mentions, cashtags. An approximation, independent of Birdwire's own."""

from __future__ import annotations

import html
import re
from hashlib import sha256
from typing import Any

LONGEST = 280
LINK_WEIGHT = 23
# Code points that weigh 1; all others weigh 2 (X's page on counting characters).
LIGHT = ((0, 4351), (8192, 8205), (8208, 8223), (8242, 8247))

LINK = re.compile(r"https?://[^\s<>\"]+[^\s<>\".,:;!?()'\]]", re.IGNORECASE)
MENTION = re.compile(r"(?<![A-Za-z0-9_@])@([A-Za-z0-9_]{1,15})\b", re.ASCII)
CASHTAG = re.compile(r"(?<![A-Za-z0-9$])\$[A-Za-z]{1,6}(?:[._][A-Za-z]{1,2})?\b", re.ASCII)
_PICTURE = "[\u2190-\u21ff\u2300-\u27bf\u2b00-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
_ONE = f"{_PICTURE}\ufe0f?[\U0001f3fb-\U0001f3ff]?"
EMOJI = re.compile(f"[\U0001f1e6-\U0001f1ff]{{2}}|[0-9#*]\ufe0f?\u20e3|{_ONE}(?:\u200d{_ONE})*[\U000e0020-\U000e007f]*")


def weight(text: str) -> int:
    """Return the weighted length: a link counts 23, an emoji 2, a CJK character 2, most others 1."""
    links = LINK.findall(text)
    rest = LINK.sub("", text)
    emoji = EMOJI.findall(rest)
    rest = EMOJI.sub("", rest)
    light = sum(any(first <= ord(letter) <= last for first, last in LIGHT) for letter in rest)
    return LINK_WEIGHT * len(links) + 2 * len(emoji) + 2 * len(rest) - light


def mentions(text: str) -> set[str]:
    """Return the usernames that the text mentions, in lower case."""
    return {name.lower() for name in MENTION.findall(text)}


def cashtags(text: str) -> int:
    """Return the number of cashtags in the text."""
    return len(CASHTAG.findall(text))


def short_link(url: str) -> str:
    """Return X's short link for a URL, always the same for the same URL."""
    return f"https://t.co/{sha256(url.encode()).hexdigest()[:10]}"


def shortened(text: str) -> str:
    """Return the text with X's short links."""
    return LINK.sub(lambda match: short_link(match[0]), text)


def displayed(text: str) -> str:
    """Return the text as lookups show it: with short links, and `&`, `<`, `>` escaped."""
    return html.escape(shortened(text), quote=False)


def entities(text: str) -> dict[str, list[dict[str, Any]]]:
    """Return links and mentions with their positions in the displayed text."""
    shown = displayed(text)
    originals = {short_link(url): url for url in LINK.findall(text)}
    urls = [
        {
            "start": match.start(),
            "end": match.end(),
            "url": match[0],
            "expanded_url": originals.get(match[0], match[0]),
            "display_url": originals.get(match[0], match[0]).split("://", 1)[-1],
        }
        for match in LINK.finditer(shown)
    ]
    named = [{"start": match.start(), "end": match.end(), "username": match[1]} for match in MENTION.finditer(shown)]
    found = {"urls": urls, "mentions": named}
    return {name: entries for name, entries in found.items() if entries}
