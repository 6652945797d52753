"""The journal and the Idempotency-Keys on both engines: who may do what, when a process is slow or the store away."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from birdwire.errors import GatewayError
from birdwire.idempotency import Idempotency, Named
from birdwire.journal import MOST_WAITING, Entry, Journal, Record
from birdwire.keys import Keys
from birdwire.presence import Presence
from birdwire.store.db import Database, StorageDownError
from birdwire.vault import Vault
from house import MovableClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.engines("sqlite", "postgres")


@dataclass
class Process:
    """What a gateway process has of this, on a database that others may have, too."""

    database: Database
    clock: MovableClock
    presence: Presence
    journal: Journal
    once: Idempotency
    key_id: str = ""

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, database_url: str) -> AsyncIterator[Process]:
        """One that says that it runs."""
        database, clock, vault = Database(database_url), MovableClock(), Vault(bytes(32))
        presence = Presence(database, clock)
        journal = Journal(database, vault, presence, clock)
        await database.prepare(upgrade=False)
        await presence.start(alone=False)
        try:
            yield cls(database, clock, presence, journal, Idempotency(database, vault, journal, presence, clock))
        finally:
            await database.close()

    def named(self, request_id: str, *, repeatable: bool = False) -> Named:
        """A call under one Idempotency-Key."""
        return Named(self.key_id, "k", b"asked", request_id, repeatable)

    def record(self, request_id: str, operation: str = "post_twitter") -> Record:
        """A write for the journal."""
        return self.journal.open(Entry(request_id, self.key_id, "1", operation, "", b"asked", 15_000, None))

    async def vanish(self) -> None:
        """Others take this process for dead: its row is gone, and it has not noticed."""
        await self.presence.close()


@pytest_asyncio.fixture
async def both(database_url: str, tmp_path: Path) -> AsyncIterator[tuple[Process, Process]]:
    """Two processes on one database, with one key."""
    if database_url.startswith("sqlite:///"):
        (tmp_path / "birdwire.db").touch(mode=0o600)
    async with Process.started(database_url) as first, Process.started(database_url) as second:
        key, _ = await Keys(first.database, first.clock).create("test", "test")
        first.key_id = second.key_id = key.key_id
        yield first, second


def reason(error: pytest.ExceptionInfo[GatewayError]) -> str:
    """Why it was refused."""
    return error.value.reason


async def test_what_runs_anywhere_is_in_flight_everywhere(both: tuple[Process, Process]) -> None:
    """Told from the row of its process, not from memory."""
    first, second = both
    with first.presence.running("req_1"):
        assert await first.once.begin(first.named("req_1")) is None
        for process in both:
            with pytest.raises(GatewayError) as error:
                await process.once.begin(process.named("req_2"))
            assert reason(error) == "idempotency_in_flight"
    del second


@pytest.mark.parametrize("repeatable", [False, True])
async def test_what_a_dead_process_had_not_sent_is_done_by_another(
    both: tuple[Process, Process],
    repeatable: bool,  # noqa: FBT001 - a parameter
) -> None:
    """Nothing of it stands in the journal, so nothing of it was sent."""
    first, second = both
    with first.presence.running("req_1"):
        await first.once.begin(first.named("req_1", repeatable=repeatable))
        await first.vanish()
        assert await second.once.begin(second.named("req_2", repeatable=repeatable)) is None


async def test_what_a_dead_process_may_have_sent_is_unknown(both: tuple[Process, Process]) -> None:
    """It stands in the journal."""
    first, second = both
    with first.presence.running("req_1"):
        await first.once.begin(first.named("req_1"))
        await first.record("req_1").begin()
        await first.vanish()
        with pytest.raises(GatewayError) as error:
            await second.once.begin(second.named("req_2"))
        assert reason(error) == "outcome_unknown"


async def test_a_process_that_was_only_slow_does_not_send_what_another_took_over(both: tuple[Process, Process]) -> None:
    """It looks whether the name is still its own, after it has written that it is about to send."""
    first, second = both
    with first.presence.running("req_1"):
        await first.once.begin(first.named("req_1"))
        await first.vanish()
        assert await second.once.begin(second.named("req_2")) is None
        await first.record("req_1").begin()
        with pytest.raises(GatewayError) as error:
            await first.once.hold(first.key_id, "req_1")
        assert reason(error) == "idempotency_in_flight"
        await first.once.release(first.named("req_1"))
        await second.once.hold(second.key_id, "req_2")


async def test_fifty_that_take_over_are_one(both: tuple[Process, Process]) -> None:
    """The others hear that it runs."""
    first, second = both
    await first.once.begin(first.named("req_0"))
    await first.vanish()

    names = [f"req_{number}" for number in range(1, 51)]
    with contextlib.ExitStack() as running:
        for name in names:
            running.enter_context(second.presence.running(name))
        taking = (second.once.begin(second.named(name)) for name in names)
        ends = await asyncio.gather(*taking, return_exceptions=True)
    assert ends.count(None) == 1
    assert {end.reason for end in ends if isinstance(end, GatewayError)} == {"idempotency_in_flight"}


@pytest.mark.trust("F10")
async def test_rows_wait_for_the_store_and_are_bounded(tmp_path: Path) -> None:
    """Without a store nothing that must not be repeated begins; the rest goes on, until there is no more room."""
    (tmp_path / "empty.db").touch(mode=0o600)
    database, clock, vault = Database(f"sqlite:///{tmp_path / 'empty.db'}"), MovableClock(), Vault(bytes(32))
    journal = Journal(database, vault, Presence(database, clock), clock)
    like = [Entry(f"req_{number:05}", "key_1", "1", "like_twitter", "2", b"asked") for number in range(MOST_WAITING)]
    for entry in like:
        await journal.open(entry).confirmed(200, {"liked": True})
    assert journal.waiting == MOST_WAITING
    with pytest.raises(GatewayError) as error:
        journal.open(like[0])
    assert (reason(error), error.value.outcome) == ("storage_unavailable", "not_sent")
    with pytest.raises(StorageDownError):
        await journal.flush()
    await database.prepare(upgrade=False)
    await journal.flush()
    assert journal.waiting == 0
    found = await journal.find("req_00000")
    assert found is not None
    assert (found["state"], found["data"]) == ("confirmed", {"liked": True})
    await database.close()


async def test_old_rows_go_and_new_ones_stay(both: tuple[Process, Process]) -> None:
    """By the days that the operator chose."""
    first, _ = both
    old, new = "req_01K00000000000000000000000", "req_7ZZZZZZZZZZZZZZZZZZZZZZZZZ"
    first.clock.advance(days=-100)
    for request_id in (old, new):
        await first.record(request_id, "like_twitter").confirmed(200, {"liked": True})
        first.clock.advance(days=100)
    await first.journal.purge(timedelta(days=90))
    assert await first.journal.find(old) is None
    assert await first.journal.find(new) is not None


async def test_the_words_of_a_post_are_sealed_and_told_to_who_asks(both: tuple[Process, Process]) -> None:
    """Not in the data of the row, which anybody with the file could read."""
    first, second = both
    record = first.record("req_1")
    await record.begin()
    await record.confirmed(201, {"id": "7", "text": "private words"})
    found: Any = await second.journal.find("req_1")
    assert (found["data"], found["x_id"], found["cost_microusd"]) == ({"id": "7", "text": "private words"}, "7", 15_000)
    assert b"private" not in found["words_ct"]


async def test_who_cannot_look_whether_the_name_is_its_own_sends_nothing(tmp_path: Path) -> None:
    """The refusal is one of our own, so that the journal says that nothing was sent."""
    database, clock, vault = (
        Database(f"sqlite:///{tmp_path / 'nowhere' / 'birdwire.db'}"),
        MovableClock(),
        Vault(bytes(32)),
    )
    presence = Presence(database, clock)
    once = Idempotency(database, vault, Journal(database, vault, presence, clock), presence, clock)
    with pytest.raises(GatewayError) as error:
        await once.hold("key_1", "req_1")
    assert (reason(error), error.value.outcome) == ("storage_unavailable", "not_sent")
    await database.close()
