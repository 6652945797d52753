"""A pair of X tokens in a session's row: sealed for this row, column and generation alone, and opened again."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from birdwire.vault import Place

if TYPE_CHECKING:
    from sqlalchemy import RowMapping

    from birdwire.authserver import Tokens
    from birdwire.clock import Clock
    from birdwire.vault import Vault

Kind = Literal["access", "refresh"]


class Pairs:
    """Pairs under the keys of one vault."""

    def __init__(self, vault: Vault, clock: Clock) -> None:
        self._vault = vault
        self._clock = clock

    def seal(self, session_id: str, gen: int, tokens: Tokens) -> dict[str, Any]:
        """The columns of a new pair."""
        refresh = tokens.refresh_token
        return {
            "gen": gen,
            "access_ct": self._vault.seal(tokens.access_token, _place(session_id, "access", gen)),
            "refresh_ct": None if refresh is None else self._vault.seal(refresh, _place(session_id, "refresh", gen)),
            "expires_at": self._clock.now() + timedelta(seconds=tokens.expires_in_s),
        }

    def open(self, row: RowMapping, kind: Kind) -> str:
        """One token of a row that has it.

        Raises:
            DamagedError: it was changed or moved.
            VaultError: its vault key is not here.
        """
        return self._vault.open(row[f"{kind}_ct"], _place(row["session_id"], kind, row["gen"]))


def _place(session_id: str, kind: Kind, gen: int) -> Place:
    return Place("x_sessions", session_id, f"{kind}_ct", gen)
