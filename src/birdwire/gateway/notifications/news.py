"""News: an event as it is worded for a destination, and the message that results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from birdwire.store.tables.destinations import Kind

if TYPE_CHECKING:
    from datetime import datetime

    from birdwire.store.tables.outbox import EventType


@dataclass(frozen=True, slots=True)
class News:
    """An event that is to be delivered.

    `data` are its facts, as JSON. `text` is the post that waits for a decision, and `review_url` the signed link that
    decides on it: both are None unless the destination is to get them.
    """

    event_id: str
    type: EventType | Literal["notification.test"]
    at: datetime
    data: Mapping[str, Any]
    text: str | None = field(default=None, repr=False)
    review_url: str | None = field(default=None, repr=False)


class Message(NamedTuple):
    """The headers and the body of a request to a destination, without its signature."""

    headers: tuple[tuple[str, str], ...]
    body: bytes


Word = Callable[[Kind, News], Message]
"""Words an event for a kind of destination."""
