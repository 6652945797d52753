"""What the page shows of a request: the question while it waits, and afterwards what became of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from birdwire.outcomes.states import STATES, State
from birdwire.runtime.clock import rfc3339
from birdwire.surfaces.approve import payload_view
from birdwire.x.catalog.operations import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from birdwire.gateway.guardrails.opened_link import Opened
    from birdwire.outcomes.approval_payload import Payload
    from birdwire.surfaces.approve.payload_view import Marker, Member, Picture
    from birdwire.x.catalog.visible_text import LinkHost

_SUMMARIES = {operation.name: operation.summary for operation in OPERATIONS}
_POSTING = "post_twitter"

_AGAIN = "The app that asked can ask again."
_ENDINGS = {
    State.AWAITING_APPROVAL: ("Expired", "Nobody decided in time. Nothing was sent to X.", _AGAIN),
    State.APPROVED: (
        "Approved",
        "Birdwire is sending it.",
        "If X cannot be reached, Birdwire keeps trying for 10 minutes.",
    ),
    State.STARTED: ("Approved", "Birdwire is sending it.", ""),
    State.UNKNOWN: ("Sent, outcome unknown", "", "Birdwire searches for it, and never sends a post twice."),
    State.EXPIRED: ("Expired", "", _AGAIN),
    State.CANCELLED: ("Cancelled", "The request was cancelled. Nothing was sent to X.", ""),
    State.REFUSED: ("X refused it", "", ""),
    State.NOT_SENT: ("Not sent", "", _AGAIN),
    State.NOT_FOUND: ("Not published", "", _AGAIN),
}
"""The title, the message and the advice for each state; an empty message: that of the refusal."""

REFRESH_S = ((10, 1), (60, 3), (700, 15))
"""How soon a page refreshes itself, in seconds, by the age of the decision; later it no longer does."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A time, for a machine and for a person, and how far away it is."""

    machine: str
    words: str
    distance: str


@dataclass(frozen=True, slots=True)
class Question:
    """A write that waits for a decision. `price` and `reasons` are in words."""

    does: str
    asks: str
    username: str
    user_id: str
    key_id: str
    label: str
    operation: str
    request_id: str
    payload_sha256: str
    text: str | None
    markers: Sequence[Marker]
    pictures: Sequence[Picture]
    not_shown: Sequence[str]
    members: Sequence[Member]
    links: Sequence[LinkHost]
    reasons: Sequence[str]
    price: str
    asked_at: Moment
    expires_at: Moment
    edited: bool


@dataclass(frozen=True, slots=True)
class Ending:
    """What became of a request, or how far it is. `refresh_s`: when the page looks again; None: it does not."""

    title: str
    message: str
    advice: str
    href: str | None = None
    refresh_s: int | None = None


_UNREADABLE = Ending(
    "It cannot be shown", "Birdwire cannot decrypt what was asked.", "The operator can run birdwire check."
)


def is_open(opened: Opened, now: datetime) -> bool:
    """Return whether the request of a link can still be decided."""
    waiting = opened.waiting
    return (
        waiting.entry.state == State.AWAITING_APPROVAL and waiting.payload is not None and now < waiting.row.expires_at
    )


def question(opened: Opened, payload: Payload, now: datetime) -> Question:
    """Return what a person has to know to decide."""
    row = opened.waiting.row
    does = _does(payload)
    return Question(
        does=does,
        asks=f"{does} as @{row.username}?",
        username=row.username,
        user_id=row.user_id,
        key_id=row.key_id,
        label=opened.label,
        operation=row.operation,
        request_id=row.request_id,
        payload_sha256=row.payload_sha256,
        text=payload_view.text_of(payload),
        markers=payload_view.markers(payload),
        pictures=payload_view.pictures(payload, opened.images),
        not_shown=payload_view.media_not_shown(payload, opened.images),
        members=payload_view.members(payload),
        links=payload_view.links(payload),
        reasons=[str(finding.get("message", finding.get("rule", ""))) for finding in payload.findings],
        price=_price(row.cost_microusd),
        asked_at=moment(opened.waiting.entry.created_at, now),
        expires_at=moment(row.expires_at, now),
        edited=row.edited_from is not None,
    )


def ending(opened: Opened, refusal: Mapping[str, object] | None, now: datetime) -> Ending:
    """Return what became of a request that cannot be decided any more. `refusal` is what its caller gets."""
    entry = opened.waiting.entry
    if STATES[entry.state].applied == "yes":
        return _applied(opened)
    if entry.state == State.DENIED:
        return _denied(opened, now)
    if entry.state == State.AWAITING_APPROVAL and now < opened.waiting.row.expires_at:
        return _UNREADABLE
    title, message, advice = _ENDINGS[entry.state]
    found = str((refusal or {}).get("message", ""))
    if entry.state == State.REFUSED:
        advice = str((refusal or {}).get("fix", ""))
    goes_on = entry.state in (State.APPROVED, State.STARTED, State.UNKNOWN)
    return Ending(title, message or found, advice, refresh_s=_refresh(opened, now) if goes_on else None)


def moment(at: datetime, now: datetime) -> Moment:
    """Return a time in words: in UTC, and as a distance from now."""
    minutes = round(abs((at - now).total_seconds()) / 60)
    many = f"{minutes} minute{'s' * (minutes != 1)}"
    if minutes >= 120:
        many = f"{minutes // 60} hours"
    distance = "now" if not minutes else f"in {many}" if at > now else f"{many} ago"
    return Moment(rfc3339(at), f"{at.day} {at:%B %Y, %H:%M} UTC", distance)


def _does(payload: Payload) -> str:
    """Return in words what the write does."""
    if payload.operation != _POSTING:
        # The page names the very post or user, and the account.
        summary = _SUMMARIES.get(payload.operation, payload.operation).replace(" of the linked account", "")
        return re.sub(r"\ba (post|user|repost)\b", r"this \1", summary)
    fields = payload.fields
    if fields.get("edit_options"):
        return "Publish this edit of a post"
    if fields.get("reply"):
        return "Publish this reply"
    return "Publish this quote post" if fields.get("quote_tweet_id") else "Publish this post"


def _applied(opened: Opened) -> Ending:
    """Return the end of a write that X carried out, with a link to the post if it made one."""
    row, entry = opened.waiting.row, opened.waiting.entry
    if row.operation != _POSTING:
        return Ending("Done", f"X carried it out: {_SUMMARIES.get(row.operation, row.operation).lower()}.", "")
    post_id = entry.x_id or (entry.data or {}).get("id")
    href = f"https://x.com/{row.username}/status/{post_id}" if post_id else None
    return Ending("Published", f"The post is on X, as @{row.username}.", "", href)


def _denied(opened: Opened, now: datetime) -> Ending:
    row = opened.waiting.row
    by = "" if row.decided_at is None else f" {row.decided_by} denied it on {moment(row.decided_at, now).words}."
    note = f"The note for the app that asked: {row.note}" if row.note else ""
    return Ending("Denied", f"Nothing was sent to X, and nothing will be.{by}", note)


def _refresh(opened: Opened, now: datetime) -> int | None:
    """Return how soon the page looks again."""
    decided_at = opened.waiting.row.decided_at
    age = 0.0 if decided_at is None else (now - decided_at).total_seconds()
    return next((every for until, every in REFRESH_S if age < until), None)


def _price(microusd: int | None) -> str:
    """Return a price in dollars, with at least two decimals."""
    if microusd is None:
        return "unknown"
    dollars, cents = f"{microusd / 1_000_000:.6f}".split(".")
    return f"${dollars}.{cents.rstrip('0').ljust(2, '0')}"
