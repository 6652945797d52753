"""The words of an evaluation: what it knows besides the call, what a rule finds, and what all findings amount to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from birdwire.api.reason_type import Reason

Author = Literal["operator", "owner"]
"""Who set a policy: the operator, or the owner of the X account."""

Asking = Literal["deny", "require_approval"]
"""What a finding demands."""

UsageKey = tuple[str, str, str]
"""A counter: its scope, measure and window."""


class PolicyError(Exception):
    """A policy is not valid. The text names the rule and the cure, and is safe to show."""


@dataclass(frozen=True, slots=True)
class Context:
    """What an evaluation knows besides the call.

    `usage` holds the counters of `snapshot_keys`; without it, no counting rule is judged. `texts` holds when the same
    text was posted last, in UNIX milliseconds by scope. `own_post`: whether the journal shows that the key made the
    post to delete.
    """

    now: datetime
    usage: Mapping[UsageKey, int] | None = None
    texts: Mapping[str, int] = field(default_factory=dict)
    own_post: bool | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """What one rule of one policy has against a call. The message is for the caller, and quotes no text of a post."""

    rule: str
    outcome: Asking
    reason: Reason
    message: str
    scope: str
    version: int
    author: Author
    retry_after_s: int | None = None

    def document(self) -> dict[str, object]:
        """Return the finding as an error or a dry run shows it."""
        return {
            "rule": self.rule,
            "outcome": self.outcome,
            "reason": self.reason,
            "message": self.message,
            "scope": self.scope,
            "version": self.version,
        }


@dataclass(frozen=True, slots=True)
class Decision:
    """The strictest outcome, and all findings that led to it. `shadow` findings are recorded, and obeyed by nobody."""

    outcome: Literal["allow", "require_approval", "deny"]
    findings: tuple[Finding, ...] = ()
    shadow: tuple[Finding, ...] = ()


class Found(NamedTuple):
    """What a rule finds, before its policy signs it: `approve` or `deny`, the reason, and a message for the caller."""

    then: str
    reason: Reason
    message: str
    retry_after_s: int | None = None
