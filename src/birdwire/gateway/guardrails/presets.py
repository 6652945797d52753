"""Presets: named policies for common agents, copied into a key when it is created."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from birdwire.keys.rules import LINK
from birdwire.x.catalog.lookups import LOOKUPS

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Preset:
    """A policy by name. `key_rules` are rules of the key itself (KeyRules), by their names."""

    name: str
    sentence: str
    rules: Mapping[str, Any] = field(default_factory=dict)
    key_rules: Mapping[str, Any] = field(default_factory=dict)


_NO_REPEAT: Final = {"days": 30, "across": "account"}

_ALL: Final = (
    Preset(
        "read_only",
        "The key may look up users and posts, and link its account, but not write.",
        key_rules={"actions": (*(row.name for row in LOOKUPS), LINK)},
    ),
    Preset("propose", "Every write needs a person's approval.", {"approve": "*"}),
    Preset(
        "poster",
        "The key may post 3 times an hour and 12 times a day, delete its own posts, and spend $1 a day; likes, "
        "follows, replies, quotes, links and more than one mention need approval.",
        {
            "approve": ["like_twitter", "follow_twitter"],
            "caps": {"post_twitter": "3/h 12/d"},
            "kinds": {"reply": "approve", "quote": "approve"},
            "delete": "own",
            "links": "approve",
            "mentions": {"max": 1, "else": "approve"},
            "duplicate_text": _NO_REPEAT,
            "budget": {"day_usd": 1, "unpriced": "approve"},
        },
    ),
    Preset(
        "trusted",
        "The key may do everything, but not repeat a text within 30 days, or spend more than $5 a day.",
        {"duplicate_text": _NO_REPEAT, "budget": {"day_usd": 5, "unpriced": 0.2}},
    ),
)

PRESETS: Final = {preset.name: preset for preset in _ALL}
"""Each preset by its name."""
