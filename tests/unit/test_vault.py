"""Secrets at rest: what is sealed opens in its own place, with its own key, unchanged; and nowhere else."""

from __future__ import annotations

import base64
import os
import stat
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birdwire.store.encryption.key_files import create_key_file, decode_key, read_key_file
from birdwire.store.encryption.vault import KEY_BYTES, Place, Vault, VaultError

if TYPE_CHECKING:
    from pathlib import Path

KEY = bytes(range(KEY_BYTES))
PLACE = Place("x_sessions", "xs_1", "access_ct", 3)
SECRET = "a-secret-of-x"


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=5_000))
def test_what_is_sealed_opens_again(secret: str) -> None:
    """Any text, also the empty one."""
    vault = Vault(KEY)
    assert vault.open(vault.seal(secret, PLACE), PLACE) == secret


@pytest.mark.trust("G16")
def test_every_single_bit_matters() -> None:
    """A flip anywhere is found out, and the error quotes nothing."""
    vault = Vault(KEY)
    blob = vault.seal(SECRET, PLACE)
    for at in range(len(blob) * 8):
        damaged = bytearray(blob)
        damaged[at // 8] ^= 1 << at % 8
        with pytest.raises(VaultError) as caught:
            vault.open(bytes(damaged), PLACE)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize("length", range(0, 50, 7))
def test_a_cut_value_is_damaged(length: int) -> None:
    """However much of it is left."""
    vault = Vault(KEY)
    with pytest.raises(VaultError):
        vault.open(vault.seal(SECRET, PLACE)[:length], PLACE)


@pytest.mark.parametrize(
    "elsewhere",
    [
        PLACE._replace(table="revocations"),
        PLACE._replace(row="xs_2"),
        PLACE._replace(column="refresh_ct"),
        PLACE._replace(gen=2),
        Place("x_sessions", "xs_1\x1faccess_ct", "", 3),
    ],
)
@pytest.mark.trust("T7")
def test_a_value_opens_in_its_own_place_only(elsewhere: Place) -> None:
    """Swapped rows and columns, and an older generation, are found out."""
    vault = Vault(KEY)
    with pytest.raises(VaultError, match="changed or moved"):
        vault.open(vault.seal(SECRET, PLACE), elsewhere)


def test_another_key_is_distinguished_from_damage() -> None:
    """The operator must know which of the two it is."""
    blob = Vault(KEY).seal(SECRET, PLACE)
    with pytest.raises(VaultError, match="a different vault key"):
        Vault(os.urandom(KEY_BYTES)).open(blob, PLACE)


def test_no_two_seals_are_alike() -> None:
    """A fresh nonce each time, and no secret in the open."""
    vault = Vault(KEY)
    blobs = {vault.seal(SECRET, PLACE) for _ in range(2_000)}
    assert len({blob[9:21] for blob in blobs}) == 2_000
    assert not any(SECRET.encode() in blob for blob in blobs)


def test_a_derived_key_follows_from_key_and_purpose_alone() -> None:
    """The same on every start, another for every purpose and key, never the key itself."""
    assert Vault(KEY).derive("dev") == Vault(KEY).derive("dev")
    others = {Vault(KEY).derive("x"), Vault(bytes(KEY_BYTES)).derive("dev"), Vault(KEY).derive("dev"), KEY}
    assert len(others) == 4


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_a_key_has_32_bytes(length: int) -> None:
    """Nothing is padded or cut."""
    with pytest.raises(VaultError, match=f"has {length}"):
        Vault(bytes(length))


@pytest.mark.parametrize(
    "form",
    [
        base64.b64encode(b"\xfb\xff" * 16).decode(),
        base64.urlsafe_b64encode(b"\xfb\xff" * 16).decode(),
        base64.b64encode(b"\xfb\xff" * 16).decode().rstrip("="),
        "\n " + base64.b64encode(b"\xfb\xff" * 16).decode() + "\r\n",
    ],
)
def test_a_key_is_read_from_base64_of_either_alphabet(form: str) -> None:
    """Padded or not, with a newline or not."""
    assert decode_key(form) == b"\xfb\xff" * 16


@pytest.mark.parametrize(
    "text",
    ["", "short", "é" * 43, "a b" * 15, base64.b64encode(bytes(31)).decode(), base64.b64encode(bytes(33)).decode()],
)
def test_a_malformed_vault_key_is_refused_without_quoting_it(text: str) -> None:
    """It may be nearly one."""
    with pytest.raises(VaultError) as caught:
        decode_key(text)
    assert not text or text not in str(caught.value)


def test_a_key_file_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    """0600 whatever the umask; a second try leaves the first key alone."""
    path = tmp_path / "vault.key"
    old = os.umask(0)
    try:
        key = create_key_file(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_key_file(path) == key
    with pytest.raises(VaultError, match="cannot be created"):
        create_key_file(path)
    assert read_key_file(path) == key


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o644, 0o666])
def test_a_key_file_that_everybody_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    """With the command that mends it."""
    path = tmp_path / "vault.key"
    create_key_file(path)
    path.chmod(mode)
    with pytest.raises(VaultError, match="chmod 600"):
        read_key_file(path)


def test_a_key_file_that_is_not_a_file_is_refused(tmp_path: Path) -> None:
    """Missing, a folder, or bytes that are not text."""
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\xff\xfe\x00")
    garbage.chmod(0o600)
    for path in (tmp_path / "none", tmp_path, garbage):
        with pytest.raises(VaultError):
            read_key_file(path)
