"""API keys: mint, find, rotate, revoke; tiers and limits. A secret is shown once and kept only as its SHA-256."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from ulid import ULID

from birdwire.errors import GatewayError
from birdwire.store import keys as store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.call import Call
    from birdwire.clock import Clock
    from birdwire.store.db import Database

Mode = Literal["live", "test"]

TIERS: dict[str, int | None] = {"free": 60, "starter": 600, "growth": 3_000, "enterprise": None}
"""Calls a minute; an enterprise key says its own."""

MAX_RPM = 1_000_000
MAX_OVERLAP = timedelta(hours=24)
MAX_LABEL = 100

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_CHARS, _SUM_CHARS = 43, 6  # 62^43 > 2^256, 62^6 > 2^32
_FORM = re.compile(r"bw_(live|test)_[0-9A-Za-z]{49}")
_KEY_LIKE = frozenset({"api_key", "apikey", "key", "token", "access_token", "aisa_api_key", "authorization"})


class KeyRuleError(Exception):
    """What was asked of a key is not possible. The text says why."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key as the gateway knows it; never its secret. `rpm` is what holds, from the tier or the key's own."""

    key_id: str
    mode: Mode
    label: str
    tier: str
    rpm: int
    created_at: datetime
    revoked_at: datetime | None


def mint(mode: Mode, entropy: bytes | None = None) -> str:
    """A new secret: `bw_live_` or `bw_test_`, 256 random bits in base62, a checksum against typos."""
    body = f"bw_{mode}_{_base62(int.from_bytes(entropy or secrets.token_bytes(32)), _SECRET_CHARS)}"
    return body + _checksum(body)


def raw_key_of(call: Call) -> str:
    """The API key that a call carries in its Authorization header (RFC 6750 §2.1).

    Raises:
        GatewayError: key_missing, key_in_query, key_malformed, duplicate_header.
    """
    names = {part.partition("=")[0].lower() for part in call.query.split("&")} if call.query else set()
    if names & _KEY_LIKE:
        raise GatewayError("key_in_query")
    headers = call.header_values("authorization")
    if len(headers) > 1:
        raise GatewayError("duplicate_header", field="Authorization")
    scheme, _, raw_key = (headers[0] if headers else "").strip(" \t").partition(" ")
    raw_key = raw_key.strip(" \t")
    if not scheme or (scheme.lower() == "bearer" and not raw_key):
        raise GatewayError("key_missing")
    if scheme.lower() != "bearer" or not _FORM.fullmatch(raw_key):
        raise GatewayError("key_malformed")
    if not hmac.compare_digest(_checksum(raw_key[:-_SUM_CHARS]), raw_key[-_SUM_CHARS:]):
        raise GatewayError("key_malformed")
    return raw_key


class Keys:
    """The keys of one database. Reads it on every call, so that a revocation holds from the next call on."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def find(self, raw_key: str, serves: Mode) -> Key:
        """The live key behind a secret.

        Raises:
            GatewayError: key_unknown, key_revoked, mode_mismatch.
        """
        secret_hash = _hash(raw_key)
        async with self._database.read() as connection:
            row = await store.find(connection, secret_hash)
        if row is None or not hmac.compare_digest(row["secret_hash"], secret_hash):
            raise GatewayError("key_unknown")
        if row["revoked_at"] is not None or (row["dies_at"] is not None and row["dies_at"] <= self._clock.now()):
            raise GatewayError("key_revoked")
        if row["mode"] != serves:
            raise GatewayError("mode_mismatch", given=f"bw_{row['mode']}_", serves=f"bw_{serves}_ keys")
        return _key(row)

    async def create(
        self, mode: Mode, label: str, tier: str = "free", rpm: int | None = None, secret: str | None = None
    ) -> tuple[Key, str]:
        """A new key and its secret, which nobody can see again. A given `secret` (dev derives its own) is created once.

        Raises:
            KeyRuleError: the label, tier or limit cannot be.
        """
        _check(label, tier, rpm)
        raw_key = secret or mint(mode)
        now = self._clock.now()
        async with self._database.write() as connection:
            found = await store.find(connection, _hash(raw_key))
            if found is not None:
                return _key(found), raw_key
            row = {
                "key_id": f"key_{ULID()}",
                "mode": mode,
                "label": label,
                "tier": tier,
                "rpm": rpm,
                "created_at": now,
                "revoked_at": None,
            }
            await store.add(connection, row)
            await store.add_secret(connection, _secret(raw_key, str(row["key_id"]), now))
        return _key(row), raw_key

    async def set_rpm(self, key_id: str, rpm: int | None) -> None:
        """Lower or raise one key's limit; None goes back to its tier's.

        Raises:
            KeyRuleError: no such key, or the limit cannot be.
        """
        async with self._database.write() as connection:
            key = await self._get(connection, key_id)
            _check(key.label, key.tier, rpm)
            await store.set_rpm(connection, key_id, rpm)

    async def list(self) -> list[tuple[Key, str]]:
        """Every key, oldest first, each with the last four characters of its newest secret."""
        async with self._database.read() as connection:
            rows = await store.list_all(connection)
            return [(_key(row), (await store.secrets_of(connection, row["key_id"]))[0]["hint"]) for row in rows]

    async def rotate(self, key_id: str, overlap: timedelta) -> tuple[Key, str]:
        """A new secret for the same key; links, limits and history stay. The old one lives on for `overlap`.

        Raises:
            KeyRuleError: no such key, it is revoked, or the overlap is too long.
        """
        if not timedelta(0) <= overlap <= MAX_OVERLAP:
            raise KeyRuleError("The overlap must be between 0 and 24 hours.")
        now = self._clock.now()
        async with self._database.write() as connection:
            key = await self._get(connection, key_id)
            if key.revoked_at is not None:
                raise KeyRuleError(f"{key_id} is revoked; create a new key.")
            newest, *older = await store.secrets_of(connection, key_id)
            for secret in older:  # at most two secrets of a key live at once
                await store.let_secret_die(connection, secret["secret_hash"], _earlier(secret["dies_at"], now))
            await store.let_secret_die(connection, newest["secret_hash"], now + overlap)
            raw_key = mint(key.mode)
            await store.add_secret(connection, _secret(raw_key, key_id, now))
        return key, raw_key

    async def revoke(self, key_id: str) -> Key:
        """End a key at once; revoking twice changes nothing. A running gateway revokes its X session soon after.

        Raises:
            KeyRuleError: no such key.
        """
        async with self._database.write() as connection:
            await self._get(connection, key_id)
            await store.revoke(connection, key_id, self._clock.now())
            return await self._get(connection, key_id)

    async def get(self, key_id: str) -> Key:
        """One key.

        Raises:
            KeyRuleError: no such key.
        """
        async with self._database.read() as connection:
            return await self._get(connection, key_id)

    async def _get(self, connection: AsyncConnection, key_id: str) -> Key:
        row = await store.get(connection, key_id)
        if row is None:
            raise KeyRuleError(f"There is no key {key_id}; see `birdwire keys list`.")
        return _key(row)


def _check(label: str, tier: str, rpm: int | None) -> None:
    if not 0 < len(label) <= MAX_LABEL or not label.isprintable():
        raise KeyRuleError(f"A label is 1 to {MAX_LABEL} printable characters.")
    if tier not in TIERS:
        raise KeyRuleError(f"There is no tier {tier}; there are: {', '.join(TIERS)}.")
    if rpm is None and TIERS[tier] is None:
        raise KeyRuleError("An enterprise key needs its own limit (--rpm).")
    if rpm is not None and not 1 <= rpm <= MAX_RPM:
        raise KeyRuleError(f"The limit must be between 1 and {MAX_RPM} calls a minute.")


def _key(row: RowMapping | Mapping[str, object]) -> Key:
    values = {name: row[name] for name in ("key_id", "mode", "label", "tier", "created_at", "revoked_at")}
    return Key(rpm=row["rpm"] or TIERS[str(row["tier"])], **values)  # type: ignore[arg-type]


def _secret(raw_key: str, key_id: str, now: datetime) -> dict[str, object]:
    return {"secret_hash": _hash(raw_key), "key_id": key_id, "hint": raw_key[-4:], "created_at": now, "dies_at": None}


def _hash(raw_key: str) -> bytes:
    """SHA-256 is enough: the key has 256 random bits, so there is nothing to guess."""
    return hashlib.sha256(raw_key.encode()).digest()


def _earlier(dies_at: datetime | None, now: datetime) -> datetime:
    return now if dies_at is None else min(dies_at, now)


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _SUM_CHARS)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
