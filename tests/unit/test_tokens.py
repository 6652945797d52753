"""A pair of X tokens opens in its own row alone: not for another key, issuer, account, generation or column."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from birdwire.accounts.tokens import SealedTokens, binding_of
from birdwire.runtime.clock import Clock
from birdwire.store.encryption.vault import DamagedError, Place, Vault, VaultError
from birdwire.x.client.auth_server import Tokens
from harness.session_rows import session_row

if TYPE_CHECKING:
    from birdwire.accounts.tokens import Kind
    from birdwire.store.tables.x_sessions import SessionRow

VAULT = Vault(os.urandom(32))
PAIRS = SealedTokens(VAULT, Clock())
OWNER = {"session_id": "xs_1", "key_id": "key_1", "issuer": "x", "user_id": "12"}
TOKENS = Tokens("the access token", "the refresh token", 7_200, None)


KINDS: tuple[Kind, ...] = ("access", "refresh")


def sealed(**owner: Any) -> SessionRow:
    """A row with a pair of generation 3."""
    row = session_row(**OWNER | owner)
    return replace(row, **PAIRS.seal(binding_of(row), 3, TOKENS))


@pytest.mark.parametrize("user_id", ["12", None])
def test_a_pair_opens_where_it_was_sealed(user_id: str | None) -> None:
    """Named or not yet."""
    row = sealed(user_id=user_id)
    assert (PAIRS.open(row, "access"), PAIRS.open(row, "refresh")) == ("the access token", "the refresh token")


@pytest.mark.trust("G16")
@pytest.mark.parametrize(
    "moved",
    [
        {"session_id": "xs_2"},
        {"key_id": "key_2"},
        {"issuer": "sandbox"},
        {"user_id": "13"},
        {"user_id": None},
        {"gen": 4},
        {"key_id": "key_1\x1fx", "issuer": "12", "user_id": None},
        {"issuer": "x\x1f12", "user_id": None},
    ],
)
def test_a_moved_pair_does_not_open(moved: dict[str, Any]) -> None:
    """Whichever column of the row was changed beneath it."""
    row = replace(sealed(), **moved)
    for kind in KINDS:
        with pytest.raises(DamagedError):
            PAIRS.open(row, kind)


def test_the_two_tokens_of_a_pair_cannot_change_places() -> None:
    """Or a refresh token would be sent as an access token."""
    row = sealed()
    row = replace(row, access_ct=row.refresh_ct or b"", refresh_ct=row.access_ct)
    for kind in KINDS:
        with pytest.raises(DamagedError):
            PAIRS.open(row, kind)


def test_a_pair_without_an_account_is_resealed_for_the_one_that_x_named() -> None:
    """Afterwards it opens as that account's alone."""
    row = sealed(user_id=None)
    named = replace(row, **PAIRS.rename(row, "12"))
    assert (PAIRS.open(named, "access"), PAIRS.open(named, "refresh")) == ("the access token", "the refresh token")
    with pytest.raises(DamagedError):
        PAIRS.open(replace(named, user_id=None), "access")


def test_a_damaged_token_stays_damaged_under_a_name() -> None:
    """The other one opens, and nothing is raised."""
    row = sealed(user_id=None)
    assert row.refresh_ct is not None
    row = replace(row, refresh_ct=row.refresh_ct[:-1] + bytes([row.refresh_ct[-1] ^ 1]))
    named = replace(row, **PAIRS.rename(row, "12"))
    assert PAIRS.open(named, "access") == "the access token"
    with pytest.raises(VaultError):
        PAIRS.open(named, "refresh")


def test_a_pair_of_form_1_does_not_open() -> None:
    """It is bound to its row alone; only the first start on an older version's database reads it."""
    row = replace(sealed(), access_ct=VAULT.seal("the access token", Place("x_sessions", "xs_1", "access_ct", 3)))
    with pytest.raises(DamagedError):
        PAIRS.open(row, "access")
