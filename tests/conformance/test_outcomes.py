"""The journal and Idempotency-Keys on both engines, with slow processes and an unavailable store."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from sqlalchemy import text

from birdwire.api.errors import GatewayError
from birdwire.api.messages import Answer
from birdwire.keys.registry import Keys
from birdwire.outcomes.approval_records import ApprovalRecords
from birdwire.outcomes.entry import Entry
from birdwire.outcomes.idempotency import Idempotency, Named
from birdwire.outcomes.journal import MAX_WAITING, Journal, Record
from birdwire.outcomes.process_leases import ProcessLeases
from birdwire.runtime.telemetry import Telemetry
from birdwire.store.database import Database, StorageDownError
from birdwire.store.encryption.vault import Vault
from birdwire.store.tables import idempotency
from harness.gateway import MovableClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.engines("sqlite", "postgres")


def a_journal(
    database: Database,
    vault: Vault,
    clock: MovableClock,
    presence: ProcessLeases | None = None,
    log: io.StringIO | None = None,
) -> Journal:
    """The journal of a database, and its lines in a log."""
    telemetry = Telemetry(log or io.StringIO(), clock)
    return Journal(database, vault, presence or ProcessLeases(database, clock), clock, telemetry)


@dataclass
class Process:
    """What a gateway process has of this, on a database that others may have, too."""

    database: Database
    clock: MovableClock
    presence: ProcessLeases
    journal: Journal
    once: Idempotency
    key_id: str = ""

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, database_url: str) -> AsyncIterator[Process]:
        """One that says that it runs."""
        database, clock, vault = Database(database_url), MovableClock(), Vault(bytes(32))
        presence = ProcessLeases(database, clock)
        journal = a_journal(database, vault, clock, presence)
        await database.prepare(upgrade=False)
        await presence.start(alone=False)
        try:
            yield cls(
                database,
                clock,
                presence,
                journal,
                Idempotency(
                    database, vault, journal, presence, ApprovalRecords(database, vault, journal.find, clock), clock
                ),
            )
        finally:
            await database.close()

    def named(self, request_id: str, *, repeatable: bool = False) -> Named:
        """A call under one Idempotency-Key."""
        return Named(self.key_id, "k", b"asked", request_id, repeatable)

    def record(self, request_id: str, operation: str = "post_twitter") -> Record:
        """A write for the journal."""
        return self.journal.open(Entry(request_id, self.key_id, "1", operation, "", b"asked", 15_000, None))

    async def vanish(self) -> None:
        """Other processes consider this one dead: its row is deleted, and it has not noticed."""
        await self.presence.close()


@pytest_asyncio.fixture
async def both(database_url: str) -> AsyncIterator[tuple[Process, Process]]:
    """Two processes on one database, with one key."""
    make_private(database_url)
    async with Process.started(database_url) as first, Process.started(database_url) as second:
        key, _ = await Keys(first.database, first.clock).create("test", "test")
        first.key_id = second.key_id = key.key_id
        yield first, second


def make_private(database_url: str) -> None:
    """Make the file, if it is one, so that only its owner can read it."""
    if database_url.startswith("sqlite:///"):
        Path(database_url.removeprefix("sqlite:///")).touch(mode=0o600)


def reason(error: pytest.ExceptionInfo[GatewayError]) -> str:
    """Why it was refused."""
    return error.value.reason


async def test_a_call_running_in_one_process_is_in_flight_in_all(both: tuple[Process, Process]) -> None:
    """The state comes from the row of its process, not from memory."""
    first, second = both
    with first.presence.running("req_1"):
        assert await first.once.begin(first.named("req_1")) is None
        for process in both:
            with pytest.raises(GatewayError) as error:
                await process.once.begin(process.named("req_2"))
            assert reason(error) == "idempotency_in_flight"
    del second


async def test_one_of_fifty_concurrent_calls_in_two_processes_starts(both: tuple[Process, Process]) -> None:
    """The others are in flight, whether its row is in their own transaction, or in that of the other process."""
    names = [f"req_{number}" for number in range(50)]
    with contextlib.ExitStack() as running:
        for number, name in enumerate(names):
            running.enter_context(both[number % 2].presence.running(name))
        starting = (both[number % 2].once.begin(both[0].named(name)) for number, name in enumerate(names))
        ends = await asyncio.gather(*starting, return_exceptions=True)
    assert ends.count(None) == 1
    assert [end.reason for end in ends if isinstance(end, GatewayError)] == ["idempotency_in_flight"] * 49


@pytest.mark.parametrize("repeatable", [False, True])
async def test_a_call_that_a_dead_process_had_not_sent_is_taken_over(
    both: tuple[Process, Process],
    repeatable: bool,  # noqa: FBT001 - a parameter
) -> None:
    """Nothing of it stands in the journal, so nothing of it was sent."""
    first, second = both
    with first.presence.running("req_1"):
        await first.once.begin(first.named("req_1", repeatable=repeatable))
        await first.vanish()
        assert await second.once.begin(second.named("req_2", repeatable=repeatable)) is None


async def test_a_call_that_a_dead_process_may_have_sent_is_unknown(both: tuple[Process, Process]) -> None:
    """It stands in the journal."""
    first, second = both
    with first.presence.running("req_1"):
        await first.once.begin(first.named("req_1"))
        await first.record("req_1").begin()
        await first.vanish()
        with pytest.raises(GatewayError) as error:
            await second.once.begin(second.named("req_2"))
        assert reason(error) == "outcome_unknown"


async def test_a_slow_process_does_not_send_a_call_that_another_took_over(both: tuple[Process, Process]) -> None:
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


@pytest.mark.parametrize(
    ("error", "repeatable", "again"),
    [
        (None, False, "replayed"),
        (GatewayError("tweet_not_found", outcome="refused", upstream={"status": 404}), False, "replayed"),
        (GatewayError("x_window_15m", outcome="refused", upstream={"status": 429}), False, "released"),
        (GatewayError("x_unreachable"), False, "released"),
        (GatewayError("x_timeout", outcome="unknown"), True, "released"),
        (GatewayError("x_timeout", outcome="unknown"), False, "unknown"),
        (RuntimeError("a bug"), True, "released"),
        (RuntimeError("a bug"), False, "unknown"),
    ],
    ids=["answered", "refused", "refused for now", "not sent", "unknown, repeatable", "unknown", "bug", "bug, post"],
)
async def test_the_end_of_an_attempt_decides_what_the_next_call_under_its_name_gets(
    both: tuple[Process, Process],
    error: Exception | None,
    repeatable: bool,  # noqa: FBT001 - a parameter
    again: str,
) -> None:
    """A final answer is replayed, a name that may be used again is released, and the rest is unknown."""
    first, second = both
    with contextlib.suppress(GatewayError, RuntimeError):
        async with first.once.attempt(first.named("req_1", repeatable=repeatable)) as attempt:
            assert attempt.replay is None
            if not repeatable:
                await first.record("req_1").begin()
            if error is not None:
                raise error
            attempt.answer = Answer.of({"data": {"id": "7"}}, 201)
    try:
        async with second.once.attempt(second.named("req_2", repeatable=repeatable)) as attempt:
            found = "released" if attempt.replay is None else "replayed"
            attempt.answer = Answer.of({}, 200)
    except GatewayError as refusal:
        found = {"outcome_unknown": "unknown"}.get(refusal.reason, refusal.reason)
    assert found == again


async def test_one_of_fifty_concurrent_takeovers_wins(both: tuple[Process, Process]) -> None:
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


async def rename(database: Database, old: str, new: str) -> None:
    """Rename a table: what needs it fails, and nothing else does."""
    async with database.write() as connection:
        await connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))


async def test_nothing_is_done_if_the_name_of_a_call_cannot_be_stored(both: tuple[Process, Process]) -> None:
    """The store refuses the row: the call does not begin, and its name is free."""
    first, second = both
    await rename(first.database, "idempotency", "away")
    done = False
    with pytest.raises(StorageDownError):
        async with first.once.attempt(first.named("req_1")):
            done = True
    assert not done
    await rename(first.database, "away", "idempotency")
    assert await second.once.begin(second.named("req_2")) is None


@pytest.mark.parametrize("again", ["replayed", "released", "unknown"])
async def test_an_end_that_the_store_does_not_take_is_written_later(both: tuple[Process, Process], again: str) -> None:
    """Until then, the row states that the call runs, and the answer to it is sent all the same."""
    first, second = both
    error = {"released": GatewayError("x_unreachable"), "unknown": GatewayError("x_timeout", outcome="unknown")}
    with contextlib.suppress(GatewayError):
        async with first.once.attempt(first.named("req_1")) as attempt:
            await rename(first.database, "idempotency", "away")
            if again in error:
                raise error[again]
            attempt.answer = Answer.of({"data": {"id": "7"}}, 201)
    with pytest.raises(StorageDownError):
        await first.once.tidy()
    await rename(first.database, "away", "idempotency")
    await first.once.tidy()
    async with second.database.read() as connection:
        row = await idempotency.find(connection, first.key_id, "k")
    assert (row and row.state) == {"replayed": "kept", "unknown": "unknown", "released": None}[again]
    if again == "replayed":
        replay = await second.once.begin(second.named("req_2"))
        assert replay is not None
        assert (replay.answer.status, json.loads(replay.answer.body)) == (201, {"data": {"id": "7"}})


@pytest.mark.trust("F10")
async def test_rows_wait_for_the_store_and_are_bounded(tmp_path: Path) -> None:
    """Without a store no unsafe call starts; the others continue until the queue is full."""
    (tmp_path / "empty.db").touch(mode=0o600)
    database, clock, vault = Database(f"sqlite:///{tmp_path / 'empty.db'}"), MovableClock(), Vault(bytes(32))
    journal = a_journal(database, vault, clock)
    like = [Entry(f"req_{number:05}", "key_1", "1", "like_twitter", "2", b"asked") for number in range(MAX_WAITING)]
    for entry in like:
        await journal.open(entry).confirmed(200, {"liked": True})
    assert journal.waiting == MAX_WAITING
    with pytest.raises(GatewayError) as error:
        journal.open(like[0])
    assert (reason(error), error.value.outcome) == ("storage_unavailable", "not_sent")
    with pytest.raises(StorageDownError):
        await journal.flush()
    await database.prepare(upgrade=False)
    waiting = await journal.find("req_00000")
    await journal.flush()
    assert journal.waiting == 0
    found = await journal.find("req_00000")
    assert found is not None
    assert found == waiting
    assert (found.state, found.data) == ("confirmed", {"liked": True})
    await database.close()


async def test_a_row_that_the_database_refuses_is_set_aside(empty_url: str) -> None:
    """Log it without its words, count it, and write all others, whether or not they had to wait."""
    make_private(empty_url)
    database, clock, log = Database(empty_url), MovableClock(), io.StringIO()
    journal = a_journal(database, Vault(bytes(32)), clock, log=log)
    too_large = 2**70

    async def like(number: int, status: int = 200) -> None:
        entry = Entry(f"req_{number}", "key_1", "1", "like_twitter", "2", b"asked")
        await journal.open(entry).confirmed(status, {"text": "private words"})

    try:
        for number in range(220):
            await like(number, too_large if number in (0, 150) else 200)
        assert (journal.waiting, journal.refused) == (220, 0)
        await database.prepare(upgrade=False)
        await journal.flush()
        assert (journal.waiting, journal.refused) == (0, 2)
        missing = [number for number in range(220) if await journal.find(f"req_{number}") is None]
        assert missing == [0, 150]
        await like(220, too_large)
        await like(221)
        assert (journal.waiting, journal.refused) == (0, 3)
        await rename(database, "journal", "away")
        await like(221)  # as if the answer of its commit had been lost
        await rename(database, "away", "journal")
        await journal.flush()
        assert (journal.waiting, journal.refused) == (0, 3)
        post = journal.open(Entry("req_222", "key_1", "1", "post_twitter", "", b"asked", signature="private words"))
        await post.begin()
        with pytest.raises(GatewayError) as error:
            await post.confirmed(too_large, {"id": "7", "text": "private words"})
        assert (reason(error), error.value.outcome, journal.waiting) == ("storage_unavailable", "unknown", 0)
    finally:
        await database.close()
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line["event"], line["request_id"], line["state"]) for line in lines] == [
        ("journal_row_refused", f"req_{number}", "confirmed") for number in (0, 150, 220, 222)
    ]
    assert "private" not in log.getvalue()


async def test_old_rows_are_deleted_and_new_ones_kept(both: tuple[Process, Process]) -> None:
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


async def test_post_text_is_sealed_at_rest_and_returned_to_its_key(both: tuple[Process, Process]) -> None:
    """Not in the data of the row, which anybody with the file could read."""
    first, second = both
    record = first.record("req_1")
    await record.begin()
    await record.confirmed(201, {"id": "7", "text": "private words"})
    found: Any = await second.journal.find("req_1")
    assert (found.data, found.x_id, found.cost_microusd) == ({"id": "7", "text": "private words"}, "7", 15_000)
    assert b"private" not in found.words_ct


async def test_nothing_is_sent_if_the_idempotency_key_cannot_be_checked(tmp_path: Path) -> None:
    """The refusal is one of our own, so that the journal says that nothing was sent."""
    database, clock, vault = (
        Database(f"sqlite:///{tmp_path / 'nowhere' / 'birdwire.db'}"),
        MovableClock(),
        Vault(bytes(32)),
    )
    presence = ProcessLeases(database, clock)
    journal = a_journal(database, vault, clock, presence)
    records = ApprovalRecords(database, vault, journal.find, clock)
    once = Idempotency(database, vault, journal, presence, records, clock)
    with pytest.raises(GatewayError) as error:
        await once.hold("key_1", "req_1")
    assert (reason(error), error.value.outcome) == ("storage_unavailable", "not_sent")
    await database.close()
