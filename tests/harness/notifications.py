"""What each event of a notification can contain, as docs/notifications.md lists it."""

from __future__ import annotations

from typing import Any

KEY = {"key_id": "key_01KBPOSTER", "label": "poster"}
ACCOUNT = {"user_id": "2244994945", "username": "ada"}
CALL = {"request_id": "req_01KBWAITS", "operation": "post_twitter", "account": ACCOUNT, "key": KEY}
BUDGET = {"scope": "key_01KBPOSTER", "name": "poster", "unit": "day", "window": "2026-11-28", "limit_usd": 5.0}
MONTH = {"scope": "gateway", "name": "the gateway", "unit": "month", "window": "2026-11"}
ASKED = CALL | {
    "approve_by": "operator",
    "payload_sha256": "0" * 64,
    "cost_usd": 0.015,
    "expires_at": "2026-11-28T14:05:00Z",
}

FACTS: dict[tuple[str, object], dict[str, Any]] = {
    ("approval.requested", None): ASKED,
    ("approval.decided", "approved"): CALL | {"decision": "approved", "decided_by": "grace"},
    ("approval.decided", "denied"): CALL | {"decision": "denied", "decided_by": "grace"},
    ("approval.decided", "cancelled"): CALL | {"decision": "cancelled", "decided_by": "key_01KBPOSTER"},
    ("approval.decided", "expired"): CALL | {"decision": "expired", "decided_by": None},
    ("request.settled", "found"): CALL | {"outcome": "found", "post_id": "1346889436626259968"},
    ("request.settled", "not_found"): CALL | {"outcome": "not_found", "post_id": None},
    ("account.linked", None): {"key": KEY, "account": ACCOUNT},
    ("account.needs_relink", None): {"key": KEY, "account": ACCOUNT, "reason": "refused"},
    ("account.recovered", None): {"key": KEY, "account": ACCOUNT},
    ("account.undone", None): {"key": KEY, "account": ACCOUNT},
    ("budget.reached", 80): BUDGET | {"percent": 80},
    ("budget.reached", 100): BUDGET | {"percent": 100} | MONTH,
    ("paused", None): {
        "scope": "gateway",
        "name": "the gateway",
        "why": "The agent was tricked.",
        "until": "2026-11-29T08:00:00Z",
        "by": "grace",
    },
    ("resumed", None): {"scope": "account:2244994945", "name": "@ada", "by": "grace"},
    ("x.changed", False): {"operation": "like_twitter", "allowed": False, "reason": "x_tier_lacks_action"},
    ("x.changed", True): {"operation": "like_twitter", "allowed": True, "reason": None},
    ("notification.test", None): {},
}
"""The data of an event, by its type and by what distinguishes events of the type."""
