"""The last look before a write is sent: what it notices, what it reads again, and that it comes to an end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from birdwire.accounts.write_permit import FRESH_S, WritePermit
from birdwire.api.errors import GatewayError
from birdwire.keys.cache import KeyCache
from birdwire.keys.registry import Key, Keys
from birdwire.store.database import ALL, Database
from birdwire.x.client.requests import StaleError
from harness.auth_server import Process, pair, processes

if TYPE_CHECKING:
    from birdwire.accounts.sessions import XSession
    from harness.gateway import MovableClock

pytestmark = pytest.mark.engines("sqlite", "postgres")


class Deaf:
    """Stands for a database whose changes cannot be heard of."""

    trusted_s = 5.0

    def changed(self) -> object:
        """As Database.changed."""
        return ALL


async def admitted(process: Process, raw_key: str) -> tuple[Key, XSession]:
    """A key and its session, as a call finds them, when the process has heard of everything before."""
    async with asyncio.timeout(20):
        while True:
            key = await process.keys.find(raw_key, "test")
            links = await process.links.of_key(key.key_id)
            assert links.current is not None
            session = await process.sessions.open(links.current)
            process.sessions.remember(links, session)
            if process.keys.remembers(key) and process.sessions.remembers(key.key_id, session):
                return key, session
            await asyncio.sleep(0.01)


async def linked(process: Process) -> str:
    """A linked account; its raw API key."""
    key, raw_key = await process.keys.create("test", "ada", "free")
    row, _ = await process.links.store_pending(key.key_id, pair(1), ["like.write"], None)
    await process.links.name(row.session_id, "1", "ada")
    return raw_key


def permit(
    process: Process, clock: MovableClock, key: Key, keys: Keys | None = None, recall: KeyCache | None = None
) -> WritePermit:
    """A permit of a call by this key."""
    keys, recall = keys or process.keys, recall or process.recall

    async def readmit(key: Key) -> tuple[Key, XSession]:
        key = await keys.again(key)
        return key, await process.sessions.open(await process.row(key.key_id))

    return WritePermit(keys, process.sessions, recall, clock, key, readmit)


async def noticed(one: WritePermit, session: XSession) -> None:
    """Wait until the permit knows that there is news."""
    async with asyncio.timeout(20):
        while True:
            try:
                one.check(session)
            except StaleError:
                return
            await asyncio.sleep(0.01)


async def test_a_key_that_another_process_revoked_is_noticed(database_url: str) -> None:
    """And refused when it is read again. Other keys are not concerned."""
    async with processes(database_url, 2) as (clock, (here, there)):
        revoked, other = [await admitted(here, await linked(there)) for _ in range(2)]
        permits = [permit(here, clock, key) for key, _ in (revoked, other)]
        await there.keys.revoke(revoked[0].key_id)
        await noticed(permits[0], revoked[1])
        with pytest.raises(GatewayError) as error:
            await permits[0].renew(revoked[1])
        assert error.value.reason == "key_revoked"
        permits[1].check(other[1])


async def test_the_pair_that_another_process_renewed_is_used(database_url: str) -> None:
    """The older one may not work any more."""
    async with processes(database_url, 2) as (clock, (here, there)):
        key, session = await admitted(here, await linked(there))
        one = permit(here, clock, key)
        there.x.answers.put_nowait(pair(2))
        await there.sessions.renew(session, None)
        await noticed(one, session)
        newer = await one.renew(session)
        assert (newer.gen, newer.access_token) == (2, pair(2).access_token)
        one.check(newer)


async def test_without_a_change_feed_a_permit_is_read_again_and_valid_for_a_second(database_url: str) -> None:
    """While nothing is heard of the database, a call neither trusts what is older nor reads for ever."""
    async with processes(database_url, 1) as (clock, (here,)):
        raw_key = await linked(here)
        recall = KeyCache(cast("Database", Deaf()), clock)
        keys = Keys(here.database, clock, recall)
        key, session = await keys.find(raw_key, "test"), (await admitted(here, raw_key))[1]
        one = permit(here, clock, key, keys, recall)
        await asyncio.sleep(0)  # a turn of the loop ends, and with it what was asked of the feed in it
        await asyncio.sleep(0)
        for _ in range(2):
            with pytest.raises(StaleError):
                one.check(session)
            session = await one.renew(session)
            for _ in range(3):
                await asyncio.sleep(0)
                one.check(session)
            clock.advance(seconds=FRESH_S)


async def test_what_the_cache_does_not_hold_counts_until_there_is_news(database_url: str) -> None:
    """News of any key invalidates it, because the change may concern its own key."""
    async with processes(database_url, 1) as (clock, (here,)):
        raw_key = await linked(here)
        key, session = await admitted(here, raw_key)
        here.recall.invalidate(key.key_id)
        key = await here.keys.find(raw_key, "test")
        one = permit(here, clock, key)
        one.check(session)
        here.recall.invalidate("another key")
        with pytest.raises(StaleError):
            one.check(session)
