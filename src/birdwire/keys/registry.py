"""API keys: mint, find, change, rotate, revoke; tiers and limits. A secret is shown once, and kept as its SHA-256."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, time, timedelta
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote, urlsplit

from ulid import ULID

from birdwire.api.errors import GatewayError
from birdwire.keys.cache import KeyCache
from birdwire.keys.guess_limit import GuessLimiter
from birdwire.runtime.addresses import is_loopback
from birdwire.runtime.clock import rfc3339
from birdwire.store.tables import acts, link_states, x_sessions
from birdwire.store.tables import api_keys as store
from birdwire.x.catalog.lookups import LOOKUPS
from birdwire.x.catalog.operations import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import RowMapping
    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.api.messages import Call
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database

Mode = Literal["live", "test"]

TIERS: dict[str, int | None] = {"free": 60, "starter": 600, "growth": 3_000, "enterprise": None, "custom": None}
"""Calls a minute; an enterprise or custom key says its own."""

MAX_RPM = 1_000_000
MAX_OVERLAP = timedelta(hours=24)
MAX_LABEL = 100
MAX_TEXT = 25_000
MOST_SECRETS = 40_000
OVER = datetime.fromtimestamp(0, UTC)
"""The end of a secret that is over at once: it stays over when the clock is put back."""

LINK, UNLINK = "link", "unlink"
"""The actions of managing a key's link: auth_twitter and auth/confirm, and unlink_twitter."""

ACTIONS = (*(row.name for row in OPERATIONS), *(row.name for row in LOOKUPS), LINK, UNLINK)
"""What `actions` may name. Reading the key's own state, auth/status and requests/{id}, is always allowed."""

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_CHARS, _SUM_CHARS = 43, 6  # 62^43 > 2^256, 62^6 > 2^32
KEY_FORM = re.compile(r"bw_(live|test)_[0-9A-Za-z]{49}")
"""What an API key looks like, wherever it stands in a text."""

_LENGTH = len("bw_live_") + _SECRET_CHARS + _SUM_CHARS
_USERNAME = re.compile(r"[A-Za-z0-9_]{1,15}")
_KEY_LIKE = frozenset({"api_key", "apikey", "key", "token", "access_token", "aisa_api_key", "authorization"})


class KeyRuleError(Exception):
    """What was asked of a key is not possible. The text says why."""


@dataclass(frozen=True, slots=True)
class KeyRules:
    """What a key may do. None or empty: no such rule.

    `actions` are names of ACTIONS; `ips` addresses or networks; `return_to` whole URLs; `daily_writes` counts by UTC
    day; `text_limit` is the weighted length of a post, which X raises for Premium accounts. `account_username` pins the
    key to one X account, without the @; from the first link on `account_user_id` identifies it, whatever its name is.
    """

    expires_at: datetime | None = None
    actions: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()
    return_to: tuple[str, ...] = ()
    daily_writes: int | None = None
    text_limit: int | None = None
    account_username: str | None = None
    account_user_id: str | None = None

    def check(self, now: datetime) -> None:
        """See that the rules can be kept.

        Raises:
            KeyRuleError: one cannot.
        """
        unknown = [name for name in self.actions if name not in ACTIONS]
        if unknown:
            raise KeyRuleError(f"Unknown action: {unknown[0]}. Actions: {', '.join(ACTIONS)}.")
        if self.expires_at is not None and self.expires_at <= now:
            raise KeyRuleError("The expiry time must be in the future.")
        for network in self.ips:
            try:
                ip_network(network, strict=False)
            except ValueError:
                raise KeyRuleError(f"{network} is not an IP address or a network such as 192.0.2.0/24.") from None
        for url in self.return_to:
            parts = urlsplit(url)
            safe = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
            if not (safe and parts.hostname and parts.username is None and url.isascii() and url.isprintable()):
                raise KeyRuleError(f"{url} is not an https URL.")
        if self.daily_writes is not None and not 1 <= self.daily_writes <= MAX_RPM:
            raise KeyRuleError(f"The daily cap must be between 1 and {MAX_RPM} writes.")
        if self.text_limit is not None and not 1 <= self.text_limit <= MAX_TEXT:
            raise KeyRuleError(f"The text limit must be between 1 and {MAX_TEXT}.")
        if self.account_username is not None and not _USERNAME.fullmatch(self.account_username):
            raise KeyRuleError(f"{self.account_username!r} is not an X username such as ada.")

    def allow(self, action: str) -> bool:
        """Whether the key may do this."""
        return not self.actions or action in self.actions

    def allow_address(self, peer: str) -> bool:
        """Whether the key may be used from an address."""
        if not self.ips:
            return True
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        return any(address in ip_network(network, strict=False) for network in self.ips)


NO_RULES = KeyRules()
"""A key that may do everything."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key as the gateway knows it; never its secret. `rpm` is what holds, from the tier or the key's own.

    A key that `Keys.find` returned also records the hash of the secret that found it, when that secret expires (None:
    it has not been rotated), and the turn of `Recall` in which it was read.
    """

    key_id: str
    mode: Mode
    label: str
    tier: str
    rpm: int
    created_at: datetime
    revoked_at: datetime | None
    rules: KeyRules = NO_RULES
    secret_hash: bytes = field(default=b"", repr=False, compare=False)
    dies_at: datetime | None = field(default=None, compare=False)
    turn: int = field(default=-1, compare=False)

    def check(self, now: datetime, serves: Mode) -> None:
        """Check that the key may be used now, at a gateway that serves keys of this mode.

        Raises:
            GatewayError: key_revoked, key_expired, mode_mismatch.
        """
        if self.revoked_at is not None or (self.dies_at is not None and self.dies_at <= now):
            raise GatewayError("key_revoked")
        if self.rules.expires_at is not None and self.rules.expires_at <= now:
            raise GatewayError("key_expired", expired=rfc3339(self.rules.expires_at))
        if self.mode != serves:
            raise GatewayError("mode_mismatch", given=f"bw_{self.mode}_", serves=f"bw_{serves}_ keys")


def mint(mode: Mode, entropy: bytes | None = None) -> str:
    """A new secret: `bw_live_` or `bw_test_`, 256 random bits in base62, a checksum against typos."""
    body = f"bw_{mode}_{_base62(int.from_bytes(entropy or secrets.token_bytes(32)), _SECRET_CHARS)}"
    return body + _checksum(body)


def raw_key_of(call: Call) -> str | None:
    """The API key that a call carries in its Authorization header (RFC 6750 §2.1), if any; `Keys.find` checks it.

    Raises:
        GatewayError: key_in_query, key_malformed, duplicate_header.
    """
    names = {part.partition("=")[0].lower() for part in call.query.split("&")} if call.query else set()
    if names & _KEY_LIKE or KEY_FORM.search(unquote(call.query)):  # a key under any name, and as a name
        raise GatewayError("key_in_query")
    headers = call.header_values("authorization")
    if len(headers) > 1:
        raise GatewayError("duplicate_header", field="Authorization")
    scheme, _, raw_key = (headers[0] if headers else "").strip(" \t").partition(" ")
    raw_key = raw_key.strip(" \t")
    if not scheme or (scheme.lower() == "bearer" and not raw_key):
        return None
    if scheme.lower() != "bearer":
        raise GatewayError("key_malformed")
    return raw_key


def check_form(raw_key: str) -> None:
    """See that a key is whole, without asking the database.

    Raises:
        GatewayError: key_malformed.
    """
    body, checksum = raw_key[:-_SUM_CHARS], raw_key[-_SUM_CHARS:]
    if not KEY_FORM.fullmatch(raw_key) or not hmac.compare_digest(_checksum(body), checksum):
        raise GatewayError("key_malformed")


class Keys:
    """The keys of one database. A revocation, by whomever, holds from the next call on. `by`: who changes keys here."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        recall: KeyCache | None = None,
        lookups: GuessLimiter | None = None,
        by: acts.Actor = acts.GATEWAY,
    ) -> None:
        self._database = database
        self._recall = recall or KeyCache(database, clock)
        self._lookups = lookups or GuessLimiter(clock)
        self._clock = clock
        self._by = by
        self._key_ids: dict[bytes, str] = {}  # by the hash of a secret: whose it is never changes

    async def find(self, raw_key: str, serves: Mode, peer: str = "") -> Key:
        """The live key behind a secret that a caller at the address `peer` sent.

        Raises:
            GatewayError: key_malformed (without a look-up), key_unknown, key_revoked, key_expired, mode_mismatch.
            GatewayError: auth_failures: key_unknown, from an address that sent too many such keys.
        """
        if len(raw_key) > _LENGTH or not raw_key.isascii():  # no key has a byte more, so none is hashed
            raise GatewayError("key_malformed")
        secret_hash, turn = _hash(raw_key), self._recall.catch_up()
        key: Key | None = self._recall.get(self._key_ids.get(secret_hash, ""), secret_hash)
        if key is None:
            check_form(raw_key)
            key = await self._read(secret_hash, turn, peer)
        key.check(self._clock.now(), serves)
        return key

    async def again(self, key: Key) -> Key:
        """Return a key that `find` returned as it is now, by the same secret. Costs nothing while it has not changed.

        Raises:
            GatewayError: key_unknown, key_revoked, key_expired.
        """
        turn = self._recall.catch_up()
        now: Key = self._recall.get(key.key_id, key.secret_hash) or await self._read(key.secret_hash, turn)
        now.check(self._clock.now(), now.mode)
        return now

    def remembers(self, key: Key) -> bool:
        """Return whether the cache still holds exactly this key, as of the last `Recall.catch_up`."""
        return self._recall.get(key.key_id, key.secret_hash) is key

    async def _read(self, secret_hash: bytes, turn: int, peer: str = "") -> Key:
        if secret_hash in self._key_ids:  # not a guess
            row = (await self._look_up([secret_hash])).get(secret_hash)
        else:
            row = await self._lookups.run(peer, self._look_up, secret_hash)
        if row is None or not hmac.compare_digest(row["secret_hash"], secret_hash):
            raise GatewayError("key_unknown")
        key = replace(_key(row), secret_hash=secret_hash, dies_at=row["dies_at"], turn=turn)
        if len(self._key_ids) >= MOST_SECRETS:
            del self._key_ids[next(iter(self._key_ids))]
        self._key_ids[secret_hash] = key.key_id
        self._recall.put(key.key_id, secret_hash, key, turn)
        return key

    async def _look_up(self, secret_hashes: Sequence[bytes]) -> Mapping[bytes, RowMapping]:
        async with self._database.read() as connection:
            return await store.find_all(connection, secret_hashes)

    async def create(
        self,
        mode: Mode,
        label: str,
        tier: str = "free",
        rpm: int | None = None,
        secret: str | None = None,
        rules: KeyRules = NO_RULES,
    ) -> tuple[Key, str]:
        """A new key and its secret, which nobody can see again. A given `secret` (dev derives its own) is created once.

        Raises:
            KeyRuleError: the label, tier, limit or a rule cannot be.
        """
        now = self._clock.now()
        _check(label, tier, rpm)
        rules.check(now)
        raw_key = secret or mint(mode)
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
                **{name: getattr(rules, name) for name in _RULE_COLUMNS},
                "created_at": now,
                "revoked_at": None,
            }
            await store.add(connection, row)
            await store.add_secret(connection, _secret(raw_key, str(row["key_id"]), now))
            given = {name: value for name in _SETTABLE if (value := _stored(row, name)) is not None}
            await acts.append(connection, now, self._by, "key.created", str(row["key_id"]), after=given)
        return _key(row), raw_key

    async def spend_write(self, key: Key) -> None:
        """Count one write of the day, if the key has a daily cap.

        Raises:
            GatewayError: daily_cap.
        """
        cap = key.rules.daily_writes
        if cap is None:
            return
        now = self._clock.now()
        async with self._database.write() as connection:
            if await store.spend_write(connection, key.key_id, now.date().isoformat(), cap):
                return
        tomorrow = datetime.combine(now.date() + timedelta(days=1), time(), UTC)
        raise GatewayError("daily_cap", retry_after_s=int((tomorrow - now).total_seconds()) + 1, limit=cap)

    async def change(self, key_id: str, **changes: Any) -> Key:
        """Give a key another `label`, `tier`, `rpm` (None: its tier's) or rule of KeyRules (None: no such rule).

        An `account_username` is identified by the key's link, if it has one. A key that loses the action LINK loses the
        links that it has started.

        Raises:
            KeyRuleError: no such key, it is revoked, it is linked to another account, or it cannot be so.
        """
        async with self._database.write() as connection:
            await store.hold(connection, key_id)
            await self._live(connection, key_id)
            before = dict(await store.get(connection, key_id) or {})
            if "account_username" in changes:
                user_id = await _identify(connection, before, changes["account_username"])
                changes["account_user_id"] = user_id
            row = {**before, **changes}
            _check(row["label"], row["tier"], row["rpm"])
            key = _key(row)
            key.rules.check(self._clock.now())
            await store.change(connection, key_id, changes)
            if "expires_at" in changes:
                await x_sessions.end_with_key(connection, key_id)
            if _key(before).rules.allow(LINK) and not key.rules.allow(LINK):  # what it has started ends, too
                await link_states.drop_open(connection, key_id)
                await x_sessions.end_pending(connection, key_id)
            others = [name for name in _SETTABLE if _stored(before, name) != _stored(row, name)]
            if others:
                was, new = ({name: _stored(one, name) for name in others} for one in (before, row))
                await acts.append(connection, self._clock.now(), self._by, "key.changed", key_id, before=was, after=new)
        return key

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
            await store.hold(connection, key_id)
            key = await self._live(connection, key_id)
            newest, *older = await store.secrets_of(connection, key_id)
            for secret in older:  # at most two secrets of a key live at once
                await store.let_secret_die(connection, secret["secret_hash"], OVER)
            dies_at = now + overlap if overlap else OVER
            await store.let_secret_die(connection, newest["secret_hash"], dies_at)
            raw_key = mint(key.mode)
            await store.add_secret(connection, _secret(raw_key, key_id, now))
            old, new = {"hint": newest["hint"]}, {"hint": raw_key[-4:], "old_until": now + overlap}
            await acts.append(connection, now, self._by, "key.rotated", key_id, before=old, after=new)
        return key, raw_key

    async def revoke(self, key_id: str) -> Key:
        """End a key at once; revoking twice changes nothing. A running gateway revokes its X session soon after.

        Raises:
            KeyRuleError: no such key.
        """
        async with self._database.write() as connection:
            now = self._clock.now()
            await self._get(connection, key_id)
            ended = await store.revoke(connection, key_id, now)
            await x_sessions.end_with_key(connection, key_id)
            if ended:
                await acts.append(connection, now, self._by, "key.revoked", key_id, after={"revoked_at": now})
            return await self._get(connection, key_id)

    async def get(self, key_id: str) -> Key:
        """One key.

        Raises:
            KeyRuleError: no such key.
        """
        async with self._database.read() as connection:
            return await self._get(connection, key_id)

    async def _live(self, connection: AsyncConnection, key_id: str) -> Key:
        key = await self._get(connection, key_id)
        if key.revoked_at is not None:
            raise KeyRuleError(f"{key_id} is revoked. Create a new key.")
        return key

    async def _get(self, connection: AsyncConnection, key_id: str) -> Key:
        row = await store.get(connection, key_id)
        if row is None:
            raise KeyRuleError(f"There is no key {key_id}; see `birdwire keys list`.")
        return _key(row)


async def _identify(connection: AsyncConnection, key: Mapping[str, Any], username: str | None) -> str | None:
    """Return the user id of the account that a key is to be pinned to; None if no link has shown it yet.

    Raises:
        KeyRuleError: the key is linked to another account.
    """
    if username is None:
        return None
    for account in await x_sessions.accounts_of(connection, key["key_id"]):
        if account["username"].lower() != username.lower():
            lift = " after `birdwire keys change --lift account`" if key["account_username"] else ""
            raise KeyRuleError(
                f"{key['key_id']} is linked to @{account['username']}. Unlink that account, or replace it{lift} with "
                f"`birdwire accounts link {key['key_id']} --expect @{username}`. Then pin the key."
            )
        return str(account["user_id"])
    same = (key["account_username"] or "").lower() == username.lower()
    return key["account_user_id"] if same else None


def _check(label: str, tier: str, rpm: int | None) -> None:
    if not 0 < len(label) <= MAX_LABEL or not label.isprintable():
        raise KeyRuleError(f"The label must be 1 to {MAX_LABEL} printable characters.")
    if tier not in TIERS:
        raise KeyRuleError(f"Unknown tier: {tier}. Tiers: {', '.join(TIERS)}.")
    if rpm is None and TIERS[tier] is None:
        raise KeyRuleError(f"A key of the tier {tier} requires its own limit (--rpm).")
    if rpm is not None and not 1 <= rpm <= MAX_RPM:
        raise KeyRuleError(f"The limit must be between 1 and {MAX_RPM} calls per minute.")


def _key(row: RowMapping | Mapping[str, object]) -> Key:
    values = {name: row[name] for name in ("key_id", "mode", "label", "tier", "created_at", "revoked_at")}
    rules = {name: tuple(row[name] or ()) if name in _LISTS else row[name] for name in _RULE_COLUMNS}  # type: ignore[arg-type]
    return Key(rpm=row["rpm"] or TIERS[str(row["tier"])], rules=KeyRules(**rules), **values)  # type: ignore[arg-type]


_RULE_COLUMNS = tuple(field.name for field in fields(KeyRules))
_LISTS = ("actions", "ips", "return_to")
_SETTABLE = ("label", "tier", "rpm", *_RULE_COLUMNS)


def _stored(row: RowMapping | Mapping[str, Any], name: str) -> Any:
    """Return a column as an act records it: an empty list is no rule."""
    value = row[name]
    return list(value) or None if isinstance(value, list | tuple) else value


def _secret(raw_key: str, key_id: str, now: datetime) -> dict[str, object]:
    return {"secret_hash": _hash(raw_key), "key_id": key_id, "hint": raw_key[-4:], "created_at": now, "dies_at": None}


def _hash(raw_key: str) -> bytes:
    """SHA-256 is enough: the key has 256 random bits, so there is nothing to guess."""
    return hashlib.sha256(raw_key.encode()).digest()


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _SUM_CHARS)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
