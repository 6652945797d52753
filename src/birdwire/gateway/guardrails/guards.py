"""Guards: finds what holds for a key besides its own rules: policies and pauses of the key, its account, the gateway.

A guard is cached with its key and falls with news of any of the three scopes (see `keys.cache`), so an unguarded call
asks nothing but whether its guard is None.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, Literal

from birdwire.gateway.guardrails.policy import Guard, Policy, PolicyError
from birdwire.keys.cache import ACCOUNT, GATEWAY
from birdwire.store.tables import pauses, policies

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.accounts.links import Links
    from birdwire.api.errors import GatewayError
    from birdwire.keys.cache import KeyCache
    from birdwire.store.database import Database
    from birdwire.store.tables.policies import PolicyRow


__all__ = ["MISSING", "Guard", "Guards", "Unknown"]

AfterRefusal = Callable[[Guard, "GatewayError"], Awaitable[None] | None]
"""Takes a refusal of X after it is recorded; returns what to wait for, if anything: `trips.Trips.after`."""


class Unknown(Enum):
    """The answer of `Guards.cached` for a key whose guard must be read."""

    MISSING = auto()


MISSING: Final = Unknown.MISSING


class Guards:
    """The guards of one database's keys. `after_refusal` is called with each of X's refusals of a guarded call."""

    def __init__(self, database: Database, links: Links, cache: KeyCache, after_refusal: AfterRefusal) -> None:
        self._database = database
        self._links = links
        self._cache = cache
        self.after_refusal = after_refusal

    def cached(self, key_id: str) -> Guard | Literal[Unknown.MISSING] | None:
        """Return the guard of a key as of the cache's last `poll`: None if nothing holds for it; MISSING: read it."""
        known: Guard | bool | None = self._cache.get(key_id, _NAME)
        if known is _UNGUARDED:
            return None
        return known if isinstance(known, Guard) else MISSING

    async def of(self, key_id: str) -> Guard | None:
        """Return the guard of a key, from the cache or the store; None if nothing holds for the key.

        Raises:
            StorageDownError: the database does not answer.
        """
        epoch = self._cache.poll()
        known = self.cached(key_id)
        if known is not MISSING:
            return known
        guard = await self._read(key_id)
        self._cache.put(key_id, _NAME, _UNGUARDED if guard is None else guard, epoch)
        return guard

    async def acting_as(self, key_id: str, user_id: str) -> Guard | None:
        """Return what holds for a key that acts for an account, whatever it is linked to now.

        Raises:
            StorageDownError: the database does not answer.
        """
        async with self._database.read() as connection:
            return await read_guard(connection, key_id, user_id)

    async def _read(self, key_id: str) -> Guard | None:
        current = (await self._links.of_key(key_id)).current
        async with self._database.read() as connection:
            return await read_guard(connection, key_id, None if current is None else current.user_id)


async def read_guard(connection: AsyncConnection, key_id: str, user_id: str | None) -> Guard | None:
    """Return the guard of a key that is linked to an account, as the database has it now."""
    scopes = [GATEWAY, key_id] if user_id is None else [GATEWAY, f"{ACCOUNT}{user_id}", key_id]
    rows = await policies.latest(connection, scopes)
    paused = await pauses.of(connection, scopes)
    readable, unreadable = _checked(row for row in rows if row.rules is not None)
    if not (readable or unreadable or paused):
        return None
    return Guard(key_id, user_id, readable, tuple(paused), unreadable)


_NAME = "guard"
_UNGUARDED = False
"""What the cache holds for a key without a guard; it holds no None."""


def _checked(rows: Iterable[PolicyRow]) -> tuple[tuple[Policy, ...], tuple[str, ...]]:
    """Return the policies of rows, and the scopes of those that are damaged or that a newer version wrote."""
    readable, unreadable = [], []
    for row in rows:
        try:
            policy = Policy.read(row.scope, row.author, row.version, row.enforcement, row.preset, row.rules)
        except PolicyError:
            unreadable.append(row.scope)
        else:
            readable.append(policy)
    return tuple(readable), tuple(unreadable)
