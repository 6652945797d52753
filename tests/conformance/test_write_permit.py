"""The last look before a write is sent: what it notices, what it reads again, and that it comes to an end."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest

from birdwire.accounts.sessions import INLINE_S
from birdwire.accounts.write_permit import FRESH_S, WritePermit
from birdwire.api.errors import GatewayError
from birdwire.keys.cache import KeyCache
from birdwire.keys.registry import Key, Keys
from birdwire.store.database import ALL, Database
from birdwire.store.engines.change_feed import announce
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


class Full(KeyCache):
    """A cache that has no room."""

    def put(self, key_id: str, name: object, value: object, epoch: int) -> None:
        """Hold nothing."""


async def admitted(process: Process, raw_key: str) -> tuple[Key, XSession]:
    """A key and its session, as a call finds them, when the process has heard of everything before."""
    async with asyncio.timeout(20):
        # Announcements arrive in the order of their commits: once this one is heard, that of the link is, too.
        while not process.recall.changed_since(marker := raw_key[-8:], 0):
            async with process.database.write() as connection:
                await announce(connection, marker)
            await asyncio.sleep(0.01)
            process.recall.poll()
        while True:
            key = await process.keys.find(raw_key, "test")
            links = await process.links.of_key(key.key_id)
            assert links.current is not None
            session = await process.sessions.open(links.current)
            process.sessions.remember(links, session)
            if process.keys.remembers(key) and process.sessions.ready(key.key_id) == session:
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

    async def readmit(session: XSession) -> tuple[Key, XSession]:
        newer = await keys.again(key)
        return newer, await process.sessions.again(newer, session, ())

    return WritePermit(keys, recall, clock, key, readmit)


async def noticed(one: WritePermit) -> None:
    """Wait until the permit knows that there is news."""
    async with asyncio.timeout(20):
        while True:
            try:
                one.check()
            except StaleError:
                return
            await asyncio.sleep(0.01)


async def test_a_key_that_another_process_revoked_is_noticed(database_url: str) -> None:
    """And refused when it is read again. Other keys are not concerned."""
    async with processes(database_url, 2) as (clock, (here, there)):
        revoked, other = [await admitted(here, await linked(there)) for _ in range(2)]
        permits = [permit(here, clock, key) for key, _ in (revoked, other)]
        await there.keys.revoke(revoked[0].key_id)
        await noticed(permits[0])
        with pytest.raises(GatewayError) as error:
            await permits[0].renew(revoked[1])
        assert error.value.reason == "key_revoked"
        permits[1].check()


async def test_the_pair_that_another_process_renewed_is_used(database_url: str) -> None:
    """The older one may not work any more."""
    async with processes(database_url, 2) as (clock, (here, there)):
        key, session = await admitted(here, await linked(there))
        one = permit(here, clock, key)
        there.x.answers.put_nowait(pair(2))
        await there.sessions.renew(session, None)
        await noticed(one)
        newer = await one.renew(session)
        assert (newer.gen, newer.access_token) == (2, pair(2).access_token)
        one.check()


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
                one.check()
            session = await one.renew(session)
            for _ in range(3):
                await asyncio.sleep(0)
                one.check()
            clock.advance(seconds=FRESH_S)


async def test_what_the_cache_does_not_hold_counts_until_there_is_news(database_url: str) -> None:
    """News of any key invalidates it, because the change may concern its own key."""
    async with processes(database_url, 1) as (clock, (here,)):
        raw_key = await linked(here)
        await admitted(here, raw_key)
        full = Full(here.database, clock)
        key = await Keys(here.database, clock, full).find(raw_key, "test")
        one = permit(here, clock, key, recall=full)
        one.check()
        full.invalidate("another key")
        with pytest.raises(StaleError):
            one.check()


async def short_lived(process: Process, there: Process) -> tuple[Key, XSession]:
    """A key and its session, whose token was renewed a moment ago, as every call must when tokens live so briefly."""
    key, session = await admitted(process, await linked(there))
    for number in (2, 3):
        process.x.answers.put_nowait(replace(pair(number), expires_in_s=int(INLINE_S) - 1))
        session = await process.sessions.renew(session, None)
    return await process.keys.again(key), session


async def test_a_token_that_lives_less_than_a_minute_is_not_renewed_again(database_url: str) -> None:
    """Each renewal is news of the key, so a permit that renewed the token could never be up to date."""
    async with processes(database_url, 2) as (clock, (here, there)):
        key, session = await short_lived(here, there)
        one, asked = permit(here, clock, key), len(here.x.sent)
        here.recall.invalidate(key.key_id)
        await noticed(one)
        assert await one.renew(session) == session
        one.check()
        assert len(here.x.sent) == asked


async def test_a_revocation_during_the_renewal_of_a_permit_is_noticed(database_url: str) -> None:
    """News that comes while the key is read again counts, also for a token that lives less than a minute."""
    async with processes(database_url, 2) as (clock, (here, there)):
        key, session = await short_lived(here, there)

        async def readmit(session: XSession) -> tuple[Key, XSession]:
            newer = await here.keys.again(key)
            session = await here.sessions.again(newer, session, ())
            await there.keys.revoke(key.key_id)
            return newer, session

        one = WritePermit(here.keys, here.recall, clock, key, readmit)
        here.recall.invalidate(key.key_id)
        await noticed(one)
        session = await one.renew(session)
        await noticed(one)
        with pytest.raises(GatewayError) as error:
            await one.renew(session)
        assert error.value.reason == "key_revoked"
