"""Rows of x_sessions, as tests of one part make them."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from birdwire.store.tables.x_sessions import LinkState, RefreshState, SessionRow

NOW = datetime(2026, 4, 18, 7, tzinfo=UTC)

_REQUIRED: dict[str, Any] = {
    "session_id": "xs_1",
    "key_id": "key_1",
    "issuer": "x",
    "state": LinkState.ACTIVE,
    "gen": 1,
    "access_ct": b"",
    "expires_at": NOW,
    "refresh_state": RefreshState.IDLE,
    "tries": 0,
    "scopes": "",
    "created_at": NOW,
}


def session_row(**columns: Any) -> SessionRow:
    """Return a row with these columns; what else it must have is filled in, and all the rest is null."""
    nulls = dict.fromkeys(column.name for column in fields(SessionRow))
    return SessionRow(**{**nulls, **_REQUIRED, **columns})
