"""The registry of API keys: create, find, list, change, rotate and revoke them, and count their daily writes."""

from __future__ import annotations

import hmac
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from ulid import ULID

from birdwire.api.errors import GatewayError
from birdwire.keys.cache import KeyCache
from birdwire.keys.guess_limit import GuessLimiter
from birdwire.keys.rules import LINK, NO_RULES, TIERS, KeyRuleError, KeyRules, check_limits
from birdwire.keys.secrets import MAX_SECRET_CHARS, Mode, check_form, hash_secret, mint
from birdwire.runtime.clock import rfc3339
from birdwire.store.tables import acts, link_states, x_sessions
from birdwire.store.tables import api_keys as store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database


MAX_OVERLAP = timedelta(hours=24)
MAX_SECRETS = 40_000
"""Secrets whose keys this process remembers, so that they do not count as guesses; the oldest is evicted first."""

_NO_SECRET = b""
"""The name under which the cache holds a key that was found by its id: a hash of no secret."""

EXPIRED = datetime.fromtimestamp(0, UTC)
"""The expiry of a secret that expires immediately: it stays expired if the clock steps back."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key as the gateway knows it, without its secret. `rpm` is the effective limit: the key's own or its tier's.

    A key that `Keys.identify` returned also records the hash of the secret that found it, when that secret expires
    (None: it has not been rotated), and the epoch of `KeyCache` in which it was read.
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
    epoch: int = field(default=-1, compare=False)

    def check(self, clock: Clock, serves: Mode) -> None:
        """Check that the key may be used now, at a gateway that serves keys of a mode.

        The clock is read only for a key that expires, since most do not.

        Raises:
            GatewayError: key_revoked, key_expired, mode_mismatch.
        """
        if self.revoked_at is not None or (self.dies_at is not None and self.dies_at <= clock.now()):
            raise GatewayError("key_revoked")
        if self.rules.expires_at is not None and self.rules.expires_at <= clock.now():
            raise GatewayError("key_expired", expired=rfc3339(self.rules.expires_at))
        if self.mode != serves:
            raise GatewayError("mode_mismatch", given=f"bw_{self.mode}_", serves=f"bw_{serves}_ keys")


class Keys:
    """The keys of one database. A revocation by any process is effective from the next call on.

    `by` is the actor that changes keys through this object.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        cache: KeyCache | None = None,
        lookups: GuessLimiter | None = None,
        by: acts.Actor = acts.GATEWAY,
    ) -> None:
        self._database = database
        self._cache = cache or KeyCache(database, clock)
        self._lookups = lookups or GuessLimiter(clock)
        self._clock = clock
        self._by = by
        # By the hash of a secret: its key never changes.
        self._key_ids: dict[bytes, str] = {}

    async def find(self, raw_key: str, serves: Mode, peer: str = "") -> Key:
        """Return the live key of a secret that a caller at the address `peer` sent.

        Raises:
            GatewayError: as `identify`; key_revoked, key_expired, mode_mismatch.
        """
        key = await self.identify(raw_key, peer)
        key.check(self._clock, serves)
        return key

    async def identify(self, raw_key: str, peer: str = "") -> Key:
        """Return the key of a secret that a caller at the address `peer` sent, whether or not it may be used.

        Raises:
            GatewayError: key_malformed (without a lookup), key_unknown.
            GatewayError: auth_failures: the key is unknown, and the address sent too many unknown keys.
        """
        # No key is longer, so a longer text is not even hashed.
        if len(raw_key) > MAX_SECRET_CHARS or not raw_key.isascii():
            raise GatewayError("key_malformed")
        secret_hash, epoch = hash_secret(raw_key), self._cache.poll()
        key: Key | None = self._cache.get(self._key_ids.get(secret_hash, ""), secret_hash)
        if key is None:
            check_form(raw_key)
            key = await self._read(secret_hash, epoch, peer)
        return key

    async def again(self, key: Key) -> Key:
        """Return the current state of a key, by the secret or the id that found it; free while it has not changed.

        Raises:
            GatewayError: key_unknown, key_revoked, key_expired.
        """
        epoch = self._cache.poll()
        now: Key = self._cache.get(key.key_id, key.secret_hash) or await (
            self._read(key.secret_hash, epoch) if key.secret_hash else self._read_id(key.key_id, epoch)
        )
        now.check(self._clock, now.mode)
        return now

    async def identified(self, key_id: str) -> Key:
        """Return the key with an id, whether or not it may be used: for a call that no secret came with.

        Raises:
            GatewayError: key_unknown.
        """
        epoch = self._cache.poll()
        key: Key | None = self._cache.get(key_id, _NO_SECRET)
        return key or await self._read_id(key_id, epoch)

    def remembers(self, key: Key) -> bool:
        """Return whether the cache still holds exactly this key, as of the last `KeyCache.poll`."""
        return self._cache.get(key.key_id, key.secret_hash) is key

    async def _read(self, secret_hash: bytes, epoch: int, peer: str = "") -> Key:
        # A secret that was found before is not a guess.
        if secret_hash in self._key_ids:
            found = (await self._look_up([secret_hash])).get(secret_hash)
        else:
            found = await self._lookups.run(peer, self._look_up, secret_hash)
        if found is None or not hmac.compare_digest(found.secret_hash, secret_hash):
            raise GatewayError("key_unknown")
        key = replace(_key(found.key), secret_hash=secret_hash, dies_at=found.dies_at, epoch=epoch)
        if len(self._key_ids) >= MAX_SECRETS:
            del self._key_ids[next(iter(self._key_ids))]
        self._key_ids[secret_hash] = key.key_id
        self._cache.put(key.key_id, secret_hash, key, epoch)
        return key

    async def _read_id(self, key_id: str, epoch: int) -> Key:
        async with self._database.read() as connection:
            row = await store.get(connection, key_id)
        if row is None:
            raise GatewayError("key_unknown")
        key = replace(_key(row), epoch=epoch)
        self._cache.put(key_id, _NO_SECRET, key, epoch)
        return key

    async def _look_up(self, secret_hashes: Sequence[bytes]) -> Mapping[bytes, store.FoundKey]:
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
        """Create a key; return it and its secret, which is never shown again. A given `secret` is created only once.

        Raises:
            KeyRuleError: the label, tier, limit or a rule is not valid.
        """
        now = self._clock.now()
        check_limits(label, tier, rpm)
        rules.check(now)
        raw_key = secret or mint(mode)
        async with self._database.write() as connection:
            found = await store.find(connection, hash_secret(raw_key))
            if found is not None:
                return _key(found.key), raw_key
            row = store.KeyRow(
                key_id=f"key_{ULID()}",
                mode=mode,
                label=label,
                tier=tier,
                rpm=rpm,
                created_at=now,
                revoked_at=None,
                **{name: getattr(rules, name) for name in _RULE_COLUMNS},
            )
            await store.add(connection, asdict(row))
            await store.add_secret(connection, _secret(raw_key, row.key_id, now))
            given = {name: value for name in _SETTABLE if (value := _recorded(row, name)) is not None}
            await acts.append(connection, now, self._by, "key.created", row.key_id, after=given)
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
        raise _cap_reached(now, cap)

    async def check_daily_writes(self, key: Key) -> None:
        """Check that the key has a write of the day left, without counting one.

        Raises:
            GatewayError: daily_cap.
        """
        cap, now = key.rules.daily_writes, self._clock.now()
        if cap is None:
            return
        async with self._database.read() as connection:
            if await store.spent_writes(connection, key.key_id, now.date().isoformat()) < cap:
                return
        raise _cap_reached(now, cap)

    async def change(self, key_id: str, **changes: Any) -> Key:
        """Change a key's `label`, `tier`, `rpm` (None: its tier's) or a rule of KeyRules (None: no such rule).

        An `account_username` is identified by the key's link, if it has one. A key that may no longer LINK loses the
        links that it has started.

        Raises:
            KeyRuleError: the key is unknown, revoked or linked to another account, or a value is not valid.
        """
        async with self._database.write() as connection:
            await store.hold(connection, key_id)
            before = await self._live(connection, key_id)
            if "account_username" in changes:
                changes["account_user_id"] = await _identify(connection, before, changes["account_username"])
            row = replace(before, **changes)
            check_limits(row.label, row.tier, row.rpm)
            key = _key(row)
            key.rules.check(self._clock.now())
            await store.change(connection, key_id, changes)
            if "expires_at" in changes:
                await x_sessions.end_with_key(connection, key_id)
            # Links that the key has started end with its right to link.
            if _key(before).rules.allow(LINK) and not key.rules.allow(LINK):
                await link_states.drop_open(connection, key_id)
                await x_sessions.end_pending(connection, key_id)
            changed = [name for name in _SETTABLE if _recorded(before, name) != _recorded(row, name)]
            if changed:
                was, new = ({name: _recorded(one, name) for name in changed} for one in (before, row))
                await acts.append(connection, self._clock.now(), self._by, "key.changed", key_id, before=was, after=new)
        return key

    async def list(self) -> list[tuple[Key, str]]:
        """Return every key, oldest first, each with the last four characters of its newest secret."""
        async with self._database.read() as connection:
            rows = await store.list_all(connection)
            return [(_key(row), (await store.secrets_of(connection, row.key_id))[0].hint) for row in rows]

    async def rotate(self, key_id: str, overlap: timedelta) -> tuple[Key, str]:
        """Give a key a new secret; its links, limits and history stay. The old secret stays valid for `overlap`.

        Raises:
            KeyRuleError: the key is unknown or revoked, or the overlap is too long.
        """
        if not timedelta(0) <= overlap <= MAX_OVERLAP:
            raise KeyRuleError("The overlap must be between 0 and 24 hours.")
        now = self._clock.now()
        async with self._database.write() as connection:
            await store.hold(connection, key_id)
            key = _key(await self._live(connection, key_id))
            newest, *older = await store.secrets_of(connection, key_id)
            # At most two secrets of a key are valid at the same time.
            for secret in older:
                await store.expire_secret(connection, secret.secret_hash, EXPIRED)
            dies_at = now + overlap if overlap else EXPIRED
            await store.expire_secret(connection, newest.secret_hash, dies_at)
            raw_key = mint(key.mode)
            await store.add_secret(connection, _secret(raw_key, key_id, now))
            old, new = {"hint": newest.hint}, {"hint": raw_key[-4:], "old_until": now + overlap}
            await acts.append(connection, now, self._by, "key.rotated", key_id, before=old, after=new)
        return key, raw_key

    async def revoke(self, key_id: str) -> Key:
        """Revoke a key immediately, unless it is revoked already. A running gateway revokes its X session soon after.

        Raises:
            KeyRuleError: the key is unknown.
        """
        async with self._database.write() as connection:
            now = self._clock.now()
            await self._get(connection, key_id)
            revoked = await store.revoke(connection, key_id, now)
            await x_sessions.end_with_key(connection, key_id)
            if revoked:
                await acts.append(connection, now, self._by, "key.revoked", key_id, after={"revoked_at": now})
            return _key(await self._get(connection, key_id))

    async def get(self, key_id: str) -> Key:
        """Return one key.

        Raises:
            KeyRuleError: the key is unknown.
        """
        async with self._database.read() as connection:
            return _key(await self._get(connection, key_id))

    async def _live(self, connection: AsyncConnection, key_id: str) -> store.KeyRow:
        row = await self._get(connection, key_id)
        if row.revoked_at is not None:
            raise KeyRuleError(f"{key_id} is revoked. Create a new key.")
        return row

    async def _get(self, connection: AsyncConnection, key_id: str) -> store.KeyRow:
        row = await store.get(connection, key_id)
        if row is None:
            raise KeyRuleError(f"There is no key {key_id}; see `birdwire keys list`.")
        return row


def _cap_reached(now: datetime, cap: int) -> GatewayError:
    tomorrow = datetime.combine(now.date() + timedelta(days=1), time(), UTC)
    return GatewayError("daily_cap", retry_after_s=int((tomorrow - now).total_seconds()) + 1, limit=cap)


async def _identify(connection: AsyncConnection, key: store.KeyRow, username: str | None) -> str | None:
    """Return the user id of the account to which a key is to be pinned; None if no link has identified it yet.

    Raises:
        KeyRuleError: the key is linked to another account.
    """
    if username is None:
        return None
    for account in await x_sessions.accounts_of(connection, key.key_id):
        if account.username.lower() != username.lower():
            lift = " after `birdwire keys change --lift account`" if key.account_username else ""
            raise KeyRuleError(
                f"{key.key_id} is linked to @{account.username}. Unlink that account, or replace it{lift} with "
                f"`birdwire accounts link {key.key_id} --expect @{username}`. Then pin the key."
            )
        return account.user_id
    same = (key.account_username or "").lower() == username.lower()
    return key.account_user_id if same else None


def _key(row: store.KeyRow) -> Key:
    return Key(
        row.key_id,
        row.mode,
        row.label,
        row.tier,
        row.rpm or TIERS[row.tier] or 0,
        row.created_at,
        row.revoked_at,
        KeyRules(
            expires_at=row.expires_at,
            actions=tuple(row.actions or ()),
            ips=tuple(row.ips or ()),
            return_to=tuple(row.return_to or ()),
            daily_writes=row.daily_writes,
            text_limit=row.text_limit,
            account_username=row.account_username,
            account_user_id=row.account_user_id,
        ),
    )


_RULE_COLUMNS = tuple(field.name for field in fields(KeyRules))
_SETTABLE = ("label", "tier", "rpm", *_RULE_COLUMNS)


def _recorded(row: store.KeyRow, name: str) -> Any:
    """Return a column as an act records it: an empty list means that there is no rule."""
    value = getattr(row, name)
    return list(value) or None if isinstance(value, list | tuple) else value


def _secret(raw_key: str, key_id: str, now: datetime) -> dict[str, object]:
    hint = raw_key[-4:]
    return {"secret_hash": hash_secret(raw_key), "key_id": key_id, "hint": hint, "created_at": now, "dies_at": None}
