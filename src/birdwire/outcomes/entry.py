"""Entry: one write asked of X, as the journal records it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime

    from birdwire.store.engines.group_commit import Part
    from birdwire.store.tables.usage import Charge


@dataclass(frozen=True, slots=True)
class Approved:
    """A write that waited and may be sent now: the hash of what was approved, and until when it may be sent."""

    payload_sha256: str
    expires_at: datetime


@dataclass(slots=True)
class Entry:
    """One write asked of X: the key, the account, the operation, and what X bills for it, in millionths of a dollar.

    `signature` identifies a post in its account's timeline (see post_matching.py), for operations that must never be
    sent twice. Of a guarded write: `charges` are made when it starts, or it does not start. `shadow_charges` were made
    before, and the end of the write gives them back as it does the others. `decision` and `features` are what its
    policies decided, and what they judged of a post. `news` are the parts that report what the charges reach.
    """

    request_id: str
    key_id: str
    user_id: str
    operation: str
    target: str
    asked: bytes
    cost: int | None = None
    signature: str | None = field(default=None, repr=False)
    charges: tuple[Charge, ...] = ()
    shadow_charges: tuple[Charge, ...] = ()
    decision: dict[str, Any] | None = field(default=None, repr=False)
    features: dict[str, Any] | None = field(default=None, repr=False)
    approved: Approved | None = None
    news: tuple[Part, ...] = ()
