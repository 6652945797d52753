"""A pair of X tokens in a session's row: sealed for this row, its key, issuer and account, and opened again."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from birdwire.store.encryption.vault import Place, VaultError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import RowMapping

    from birdwire.runtime.clock import Clock
    from birdwire.store.encryption.vault import Vault
    from birdwire.x.client.auth_server import Tokens

Kind = Literal["access", "refresh"]
_KINDS: tuple[Kind, ...] = ("access", "refresh")


class SealedTokens:
    """Pairs under the keys of one vault.

    A `row` is one of x_sessions. Its session_id, key_id, issuer and user_id bind the pair, beside the generation and
    the column. user_id is None until X has named the account: naming it needs `rename`, in the same transaction.
    """

    def __init__(self, vault: Vault, clock: Clock) -> None:
        self._vault = vault
        self._clock = clock

    def seal(self, row: RowMapping | Mapping[str, Any], gen: int, tokens: Tokens) -> dict[str, Any]:
        """Return the columns of a new pair for a row."""
        refresh = tokens.refresh_token
        return {
            "gen": gen,
            "access_ct": self._vault.seal(tokens.access_token, _place(row, "access", gen)),
            "refresh_ct": None if refresh is None else self._vault.seal(refresh, _place(row, "refresh", gen)),
            "expires_at": self._clock.now() + timedelta(seconds=tokens.expires_in_s),
        }

    def open(self, row: RowMapping | Mapping[str, Any], kind: Kind) -> str:
        """Return one token of a row that has it.

        Raises:
            DamagedError: it was changed or moved.
            VaultError: its vault key is not here.
        """
        return self._vault.open(row[f"{kind}_ct"], _place(row, kind, row["gen"]))

    def rename(self, row: RowMapping | Mapping[str, Any], user_id: str) -> dict[str, Any]:
        """Return the columns of a row's pair, sealed for another account. A token that does not open stays as it is."""
        named = {**row, "user_id": user_id}
        for kind in _KINDS:
            if row[f"{kind}_ct"] is not None:
                with contextlib.suppress(VaultError):  # damaged: it opens under no account
                    named[f"{kind}_ct"] = self._vault.seal(self.open(row, kind), _place(named, kind, row["gen"]))
        return {name: named[name] for name in ("user_id", "access_ct", "refresh_ct")}


def _place(row: RowMapping | Mapping[str, Any], kind: Kind, gen: int) -> Place:
    bound = (row["key_id"], row["issuer"], row["user_id"] or "")
    return Place("x_sessions", row["session_id"], f"{kind}_ct", gen, bound)
