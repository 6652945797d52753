"""Preview: what a call would do, seen through the same steps as the call itself, without any effect.

It reads the key, its link, its policies and what was counted. It sends nothing to X, renews no token, and changes no
row.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal

from birdwire.api.errors import GatewayError, describe
from birdwire.api.messages import Answer
from birdwire.gateway.guardrails import policy as rules
from birdwire.gateway.guardrails.proposal import propose
from birdwire.gateway.sender import Write, capability_of, known_payload
from birdwire.x.catalog import media
from birdwire.x.catalog.post import PostTwitter
from birdwire.x.catalog.post_length import LIMIT
from birdwire.x.catalog.prices import UNBILLED, usd

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from birdwire.gateway.guardrails.spending import Judged
    from birdwire.gateway.guardrails.status import GuardStatus
    from birdwire.keys.context import CallContext
    from birdwire.x.catalog.operations import Operation
    from birdwire.x.catalog.prices import Prices
    from birdwire.x.limits.capabilities import Capabilities, Capability
    from birdwire.x.limits.rate_windows import RateWindows

Verdict = Literal["allow", "require_approval", "deny"]

WARNINGS = {
    "upload": "X's price list has no price for an upload; a budget counts it as 0.",
    "unpriced": "X's price list has no price for this call.",
    "refused": "X recently refused this operation to the gateway's X app: {reason}.",
    "files": "The files would be uploaded to X before the post, so its media ids are not known yet.",
}


Look = Callable[[Write], Awaitable[list[GatewayError]]]
"""Looks at each step of a write, and returns the refusals: `Writes.preview`."""


class Preview:
    """Answers dry runs."""

    def __init__(
        self, look: Look, status: GuardStatus, prices: Prices, capabilities: Capabilities, windows: RateWindows
    ) -> None:
        self._look = look
        self._status = status
        self._prices = prices
        self._capabilities = capabilities
        self._windows = windows

    async def answer(self, operation: Operation, context: CallContext) -> Answer:
        """Return what a call with this body would do."""
        write = Write(context, operation, context.parsed.fields, context.parsed.files)
        return Answer.of({"would": await self.would(write)})

    async def would(self, write: Write) -> dict[str, Any]:
        """Return what a write would do. What cannot be known is null.

        Raises:
            StorageDownError: the database does not answer.
        """
        refusals = await self._look(write)
        judged, body, session = write.judged, getattr(write, "body", None), getattr(write, "session", None)
        cost = None if body is None else self._prices.reserved(write.operation, body)
        if judged is not None and body is not None:
            cost = judged.price
        capability = await self._capability(write)
        return {
            "outcome": _outcome(refusals, judged),
            "operation": write.operation.name,
            "account": None if session is None else {"user_id": session.user_id, "username": session.username},
            "refusals": [refusal_document(error) for error in refusals],
            "findings": [] if judged is None else [finding.document() for finding in judged.decision.findings],
            "payload_sha256": None if body is None or session is None else _digest(write, session.user_id),
            "approve_by": None if judged is None else rules.approve_by(judged.guard.policies),
            "text": _text(write),
            "cost_usd": usd(cost),
            "listed_on": self._prices.listed_on,
            "budget": await self._status.budget(None if judged is None else judged.guard),
            "x": {
                "windows": None if session is None else self._windows.report(session.user_id).get(write.operation.name),
                "capability": capability and {"allowed": capability.allowed, "reason": _why(capability)},
            },
            "request": None if body is None or session is None else _request(write, session.user_id),
            "warnings": list(_warnings(write, cost, capability)),
        }

    async def _capability(self, write: Write) -> Capability | None:
        """Return whether X recently allowed the app this, as far as the key's holder may know."""
        body = getattr(write, "body", None)
        name = write.operation.name if body is None else capability_of(write.operation, body)
        known = await self._capabilities.visible_to(write.context.key.key_id)
        return next((one for one in known if one.operation == name), None)


def _outcome(refusals: Sequence[GatewayError], judged: Judged | None) -> Verdict:
    """Return what the refusals amount to. A call that only a person can let pass is not denied."""
    if refusals:
        return "deny"
    return "require_approval" if judged is not None and judged.asks else "allow"


def refusal_document(error: GatewayError) -> dict[str, Any]:
    """Return a refusal as a dry run lists it."""
    message, fix = describe(error)
    problem = error.problem
    return {
        "reason": error.reason,
        "status": problem.status,
        "message": message,
        "fix": fix,
        "whose": problem.whose,
        "retryable": problem.retryable,
    }


def _digest(write: Write, user_id: str) -> str | None:
    payload = known_payload(write, user_id)
    return None if payload is None else payload.sha256


def _text(write: Write) -> dict[str, Any] | None:
    """Return how X sees the text of a post."""
    body = getattr(write, "body", None)
    if not isinstance(body, PostTwitter) or body.text is None:
        return None
    proposal = propose(write.operation, None, body, None) if write.judged is None else write.judged.proposal
    return {
        "weight": proposal.weight,
        "limit": write.context.key.rules.text_limit or LIMIT,
        "links": list(proposal.links),
        "mentions": list(proposal.mentions),
    }


def _request(write: Write, user_id: str) -> dict[str, Any]:
    """Return the request that X would get; with files, it depends on the ids that X gives them."""
    if write.operation.takes_file:
        method, _, path = media.ENDPOINTS[0].partition(" ")
        return {"method": method, "path": path, "json": None}
    asked = write.operation.upstream(user_id, write.body)
    return {"method": asked.method, "path": asked.path, "json": None if write.files else asked.json}


def _why(capability: Capability) -> str | None:
    return None if capability.allowed else capability.reason


def _warnings(write: Write, cost: int | None, capability: Capability | None) -> Iterator[str]:
    if write.operation.name in UNBILLED:
        yield WARNINGS["upload"]
    elif cost is None and hasattr(write, "body"):
        yield WARNINGS["unpriced"]
    if write.files and not write.operation.takes_file:
        yield WARNINGS["files"]
    if capability is not None and not capability.allowed and capability.refused_at is not None:
        yield WARNINGS["refused"].format(reason=capability.reason or "the operator knows why")
