"""Encrypts the X tokens of a session for its row, key, issuer and account, and decrypts them again."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from birdwire.store.encryption.vault import Place, VaultError

if TYPE_CHECKING:
    from birdwire.runtime.clock import Clock
    from birdwire.store.encryption.vault import Vault
    from birdwire.store.tables.x_sessions import SessionRow
    from birdwire.x.client.auth_server import Tokens

Kind = Literal["access", "refresh"]


class Binding(NamedTuple):
    """What a pair of tokens is bound to, in addition to its generation and column.

    `user_id` is None until X has named the account; `rename` rebinds the pair in the transaction that stores the name.
    """

    session_id: str
    key_id: str
    issuer: str
    user_id: str | None = None


def binding_of(row: SessionRow) -> Binding:
    """Return what the pair in a row is bound to."""
    return Binding(row.session_id, row.key_id, row.issuer, row.user_id)


class SealedTokens:
    """Pairs of tokens, encrypted under the keys of one vault."""

    def __init__(self, vault: Vault, clock: Clock) -> None:
        self._vault = vault
        self._clock = clock

    def seal(self, binding: Binding, gen: int, tokens: Tokens) -> dict[str, Any]:
        """Return the columns of a new pair."""
        refresh = tokens.refresh_token
        return {
            "gen": gen,
            "access_ct": self._vault.seal(tokens.access_token, _place(binding, "access", gen)),
            "refresh_ct": None if refresh is None else self._vault.seal(refresh, _place(binding, "refresh", gen)),
            "expires_at": self._clock.now() + timedelta(seconds=tokens.expires_in_s),
        }

    def open(self, row: SessionRow, kind: Kind) -> str:
        """Return one token of a row that has it.

        Raises:
            DamagedError: it was changed or moved.
            VaultError: its vault key is missing.
        """
        blob = row.access_ct if kind == "access" else row.refresh_ct
        return self._vault.open(blob or b"", _place(binding_of(row), kind, row.gen))

    def rename(self, row: SessionRow, user_id: str | None) -> dict[str, Any]:
        """Return the columns of a row's pair, encrypted for another account.

        A token that cannot be decrypted stays as it is: it opens under no account.
        """
        named = binding_of(row)._replace(user_id=user_id)
        columns: dict[str, Any] = {"user_id": user_id, "access_ct": row.access_ct, "refresh_ct": row.refresh_ct}
        kinds: tuple[Kind, ...] = ("access", "refresh") if row.refresh_ct is not None else ("access",)
        for kind in kinds:
            with contextlib.suppress(VaultError):
                columns[f"{kind}_ct"] = self._vault.seal(self.open(row, kind), _place(named, kind, row.gen))
        return columns


def _place(binding: Binding, kind: Kind, gen: int) -> Place:
    bound = (binding.key_id, binding.issuer, binding.user_id or "")
    return Place("x_sessions", binding.session_id, f"{kind}_ct", gen, bound)
