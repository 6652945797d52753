"""The cache of keys: what it holds ends with a change, and where changes may go unheard, with its age."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from birdwire.keys.cache import KeyCache
from birdwire.runtime.clock import Clock

if TYPE_CHECKING:
    from birdwire.store.database import Database

TRUSTED_S = 5.0


class Quiet:
    """Stands for a database that reports the changes that a test made."""

    trusted_s = TRUSTED_S

    def __init__(self) -> None:
        self.news: set[str] = set()

    def changed(self) -> frozenset[str]:
        """As Database.changed."""
        news, self.news = frozenset(self.news), set()
        return news


class Still(Clock):
    """A time that a test sets."""

    now_s = 1_000.0

    def monotonic(self) -> float:
        """As set."""
        return self.now_s


async def next_turn(cache: KeyCache) -> None:
    """Poll in a later iteration of the loop, as a call that arrives later does."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    cache.poll()


async def test_a_value_ends_with_its_age() -> None:
    """At the first poll after it: the age is that of the poll, so that each look need not read the clock."""
    clock = Still()
    cache = KeyCache(cast("Database", Quiet()), clock)
    clock.now_s += 100
    cache.put("key_1", "session", "pair", cache.poll())
    clock.now_s += TRUSTED_S - 0.001
    await next_turn(cache)
    assert cache.get("key_1", "session") == "pair"
    clock.now_s += 0.001
    await next_turn(cache)
    assert cache.get("key_1", "session") is None
    cache.put("key_1", "session", "newer", cache.poll())
    assert cache.get("key_1", "session") == "newer"


async def test_a_value_ends_with_a_change_of_its_key() -> None:
    """And no other key's value does."""
    database = Quiet()
    cache = KeyCache(cast("Database", database), Still())
    for key_id in ("key_1", "key_2"):
        cache.put(key_id, "session", "pair", cache.poll())
    database.news = {"key_1"}
    await next_turn(cache)
    assert [cache.get(key_id, "session") for key_id in ("key_1", "key_2")] == [None, "pair"]


@pytest.mark.parametrize("scope", ["gateway", "account:17"])
async def test_every_value_ends_with_a_change_of_an_account_or_the_gateway(scope: str) -> None:
    """It may concern any key; a permit that was renewed before is not up to date either."""
    database = Quiet()
    cache = KeyCache(cast("Database", database), Still())
    before = cache.poll()
    cache.put("key_1", "guard", "none", before)
    database.news = {scope}
    await next_turn(cache)
    assert cache.get("key_1", "guard") is None
    assert cache.changed_since("key_1", before)
    assert not cache.changed_since("key_1", cache.poll())


async def test_a_change_of_the_database_ends_no_value() -> None:
    """Its subject is neither a key nor a scope of policies."""
    database = Quiet()
    cache = KeyCache(cast("Database", database), Still())
    cache.put("key_1", "session", "pair", cache.poll())
    database.news = {"database"}
    await next_turn(cache)
    assert cache.get("key_1", "session") == "pair"
