"""The states of a write, for packages that must not read the store."""

from __future__ import annotations

from birdwire.store.tables.journal import STATES, State

__all__ = ["STATES", "State"]
