"""What became of an auth_url: the refusal stored with its state, encoded, decoded, and reported."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from birdwire.api.errors import GatewayError
from birdwire.runtime.clock import rfc3339

if TYPE_CHECKING:
    from datetime import datetime

    from birdwire.store.tables.link_states import StateOutcome, StateRow

MAX_DURATION = timedelta(seconds=20)
"""A callback finishes within this time, or its process has died."""

_REPEATED = ("account_mismatch", "code_rejected", "consent_denied", "x_scope_missing")
"""Refusals of a callback that auth/confirm repeats: how the account's owner, or X, ended the link."""


def encode_undone(account: str) -> str:
    """Return the refusal to store with a state whose link the account's owner undid."""
    return json.dumps({"reason": "state_used", "undone": account})


def encode_refusal(error: GatewayError) -> str:
    """Return a refusal as it is stored with a state."""
    return json.dumps({"reason": error.reason, **error.values}, default=str)


def decode_refusal(refusal: str | None) -> dict[str, Any]:
    """Return a state's stored refusal: `reason` and its values; empty without one."""
    decoded: dict[str, Any] = json.loads(refusal) if refusal is not None else {}
    return decoded


def ending(outcome: StateOutcome) -> dict[str, Any]:
    """Return why the session that a state led to no longer exists: `undone` and by whom, or `ended` in another way.

    Empty if it exists, or never did.
    """
    if outcome.session is not None:
        return {}
    refusal = decode_refusal(outcome.state.refusal)
    if refusal or outcome.state.session_id is None:
        return {name: value for name, value in refusal.items() if name == "undone"}
    return {"ended": True}


def attempt(state: StateRow, at: datetime) -> dict[str, str | None]:
    """Return what became of an auth_url, as auth/status reports it."""
    refusal, reason = decode_refusal(state.refusal), None
    if "undone" in refusal:
        outcome = "undone"
    elif refusal or (state.taken_at is not None and state.session_id is None and over(state, at)):
        outcome, reason = "refused", refusal.get("reason", "state_used")
    elif state.session_id is not None:
        outcome = "approved"
    else:
        outcome = "open" if state.taken_at is not None or state.expires_at > at else "expired"
    return {"outcome": outcome, "reason": reason, "expires_at": rfc3339(state.expires_at)}


def unconfirmable(state: StateRow, at: datetime) -> GatewayError:
    """Return why a state has no link to confirm."""
    outcome, refusal = attempt(state, at)["outcome"], decode_refusal(state.refusal)
    if outcome == "open":
        return GatewayError(
            "x_link_pending",
            why="the account's owner has not approved it at X",
            remedy="Have the account's owner open the auth_url",
        )
    if refusal.get("reason") in _REPEATED:
        return GatewayError(**refusal)
    return GatewayError("state_used" if outcome in ("refused", "undone") else "state_expired")


def over(state: StateRow, at: datetime) -> bool:
    """Return whether the callback of a taken state has finished, or its process has died."""
    return state.ended_at is not None or (state.taken_at is not None and state.taken_at + MAX_DURATION <= at)
