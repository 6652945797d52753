"""Writes that wait for a person, in the journal of both engines: started once, put back, taken over, and ended."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from sqlalchemy import select, text

from birdwire.api.errors import GatewayError
from birdwire.outcomes.claims import ClaimLostError
from birdwire.outcomes.journal import ChargeRefused
from birdwire.store.tables import approvals, costs, journal, kept_images, processes, usage
from birdwire.store.tables.journal import State, id_at
from birdwire.store.tables.usage import Charge
from harness.approval_replicas import IMAGE, PRICE, SECRET, Replica, a_post, two_replicas

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from birdwire.outcomes.approval_payload import Payload
    from birdwire.outcomes.journal import Record
    from birdwire.store.database import Database

pytestmark = pytest.mark.engines("sqlite", "postgres")

DAY = "2026-11-28"
COUNT = Charge("add", "key_1", "writes:*", DAY, 1, 1, "caps")
MONEY = Charge("add", "key_1", "usd", DAY, PRICE, 10 * PRICE, "budget")
CHARGES = (COUNT, MONEY)
LIKE = "like_twitter"


@pytest_asyncio.fixture
async def both(database_url: str) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two processes on one database, which share a clock and a vault."""
    async with two_replicas(database_url) as replicas:
        yield replicas


@pytest_asyncio.fixture
async def first(both: tuple[Replica, Replica]) -> Replica:
    """The first of the two."""
    return both[0]


async def used(database: Database) -> list[int]:
    """Return what stands in the counters of CHARGES."""
    keys = [(one.scope, one.measure, one.window) for one in CHARGES]
    async with database.read() as connection:
        found = await usage.amounts(connection, keys)
    return [found.get(key, 0) for key in keys]


async def begun(replica: Replica, operation: str = LIKE, request_id: str = "req_1") -> tuple[Record, Payload]:
    """Ask for a charged write, approve it, and start it."""
    payload = await replica.ask(request_id, operation, images=[IMAGE])
    await replica.approve(request_id)
    record = replica.record(request_id, payload, operation, charges=CHARGES)
    await record.begin()
    return record, payload


@pytest.mark.trust("#320")
async def test_a_waiting_write_is_neither_due_nor_charged_nor_readable(first: Replica) -> None:
    """Nothing but the gateway's own round acts on it, and its text is in no column in clear."""
    await first.ask("req_1", images=[IMAGE])
    first.clock.advance(hours=1)
    await first.reconciler().recover()
    row = await first.row("req_1")
    assert (row.state, row.due_at, row.started_at, row.owner, row.spent, row.words_ct) == (
        "awaiting_approval",
        None,
        None,
        None,
        None,
        None,
    )
    async with first.database.read() as connection:
        stored = [tuple(found) for found in await connection.execute(select(approvals.approvals))]
        stored += [tuple(found) for found in await connection.execute(select(approvals.approval_files))]
        stored += [tuple(found) for found in await connection.execute(select(journal.journal))]
        assert await costs.rows(connection, "day", first.clock.now() - timedelta(days=1)) == []
    assert SECRET not in str(stored)
    assert await first.records.file("req_1", 0) == IMAGE
    assert await first.records.file("req_1", 1) is None


async def test_a_start_is_one_unit_and_counts_from_now(first: Replica) -> None:
    """The row that waited is the row that is sent; its times are those of its start."""
    await first.ask("req_1")
    first.clock.advance(hours=3)
    await first.approve("req_1")
    found = await first.records.find("req_1")
    assert found is not None
    assert found.payload is not None
    record = first.record("req_1", found.payload, charges=CHARGES, features={"weight": 18})
    await record.begin()
    row = await first.row("req_1")
    assert (row.state, row.owner, row.cost_microusd) == ("started", first.leases.me, PRICE)
    assert row.started_at is not None
    assert row.start == row.started_at >= row.created_at + timedelta(hours=3)
    assert row.due_at == row.started_at + timedelta(seconds=20)
    assert usage.usd_in(row.spent or ()) == PRICE
    assert first.journal.features(row) == {"weight": 18}
    assert await used(first.database) == [1, PRICE]
    assert (await first.approval("req_1")).due_at is None


async def test_one_of_fifty_concurrent_claims_starts_it(both: tuple[Replica, Replica]) -> None:
    """The others learn that they lost it, though the cap lets only one write pass: nobody may call it stale."""
    payload = await both[0].ask("req_1", LIKE)
    await both[0].approve("req_1")
    records = [both[number % 2].record("req_1", payload, LIKE, charges=CHARGES) for number in range(50)]
    ends = await asyncio.gather(*(record.begin() for record in records), return_exceptions=True)
    assert ends.count(None) == 1, ends
    assert sum(isinstance(end, ClaimLostError) for end in ends) == 49, ends
    assert [record.started for record in records].count(True) == 1
    assert await used(both[0].database) == [1, PRICE]


@pytest.mark.parametrize("what", ["not decided", "denied", "cancelled", "expired", "another payload", "started"])
async def test_what_does_not_wait_as_it_was_judged_is_not_started(first: Replica, what: str) -> None:
    """The unit checks the state and the hash; it leaves no charge behind."""
    payload = await first.ask("req_1", LIKE)
    if what != "not decided":
        await first.approve("req_1")
    if what in ("denied", "cancelled", "expired"):
        await first.end("req_1", State(what), "cancelled", 409)
    if what == "another payload":
        async with first.database.write() as connection:
            await approvals.change(connection, "req_1", {"payload_sha256": "0" * 64})
    if what == "started":
        await first.record("req_1", payload, LIKE).begin()
    before = await first.row("req_1")
    record = first.record("req_1", payload, LIKE, charges=CHARGES)
    with pytest.raises(ClaimLostError):
        await record.begin()
    assert not record.started
    assert await first.row("req_1") == before
    assert await used(first.database) == [0, 0]


async def test_a_charge_that_does_not_pass_leaves_it_approved(first: Replica) -> None:
    """It is named, and another try may pass."""
    await begun(first)
    payload = await first.ask("req_2", LIKE)
    await first.approve("req_2")
    record = first.record("req_2", payload, LIKE, charges=(MONEY, COUNT))
    with pytest.raises(ChargeRefused) as refused:
        await record.begin()
    assert (refused.value.index, record.started, (await first.row("req_2")).state) == (1, False, "approved")
    assert await used(first.database) == [1, PRICE]


async def test_a_write_that_is_put_back_waits_as_if_it_had_not_been_started(first: Replica) -> None:
    """All its charges go back, and it can be started again."""
    record, payload = await begun(first)
    at = first.clock.now() + timedelta(seconds=9)
    await record.put_back(at)
    row = await first.row("req_1")
    assert (row.state, row.started_at, row.owner, row.due_at, row.spent) == ("approved", None, None, None, None)
    assert row.cost_microusd == PRICE
    approval = await first.approval("req_1")
    assert (approval.due_at, approval.ended_at, await first.images("req_1")) == (at, None, 1)
    assert approval.payload_ct is not None
    assert (await used(first.database), record.started) == ([0, 0], False)
    again = first.record("req_1", payload, LIKE, charges=CHARGES)
    await again.begin()
    assert await used(first.database) == [1, PRICE]
    with pytest.raises(ClaimLostError):
        await first.record("req_1", payload, LIKE).begin()


async def test_a_write_that_was_taken_over_is_not_put_back(both: tuple[Replica, Replica]) -> None:
    """Its new process may be sending it."""
    first, second = both
    record, payload = await begun(first)
    await first.vanish()
    other = second.record("req_1", payload, LIKE)
    await other.take_over(await second.row("req_1"))
    for slow in (record.put_back, record.check):
        with pytest.raises(ClaimLostError):
            await slow()
    await other.check()
    assert await used(first.database) == [1, PRICE]


@pytest.mark.parametrize("end", ["confirmed", "refused"])
async def test_what_a_dead_process_started_is_taken_over_once_and_charged_once(
    both: tuple[Replica, Replica], end: str
) -> None:
    """The earlier start may have reached X, which then bills it."""
    first, second = both
    record, payload = await begun(first)
    row = await second.row("req_1")
    assert row.due_at is None
    approval = await first.approval("req_1")
    assert (approval.due_at, approval.ended_at) == (row.start + timedelta(seconds=20), None)
    await first.vanish()
    await second.reconciler().recover()
    await second.reconciler().round()
    assert (await second.row("req_1")).state == "started"
    others = [second.record("req_1", payload, LIKE) for _ in range(10)]
    ends = await asyncio.gather(*(other.take_over(row) for other in others), return_exceptions=True)
    assert (ends.count(None), sum(isinstance(one, ClaimLostError) for one in ends)) == (1, 9)
    assert await used(first.database) == [1, PRICE]
    winner = others[ends.index(None)]
    if end == "confirmed":
        await winner.confirmed(200, {"liked": True})
    else:
        await winner.failed(GatewayError("tweet_not_found", outcome="refused", upstream={"status": 404}))
    row = await second.row("req_1")
    counted = [1, 2 * PRICE] if end == "confirmed" else [0, PRICE]
    assert (row.state, await used(first.database)) == (end, counted)
    assert usage.usd_in(row.spent or ()) == counted[1]
    del record


REFUSED = GatewayError("reply_not_allowed", outcome="refused", upstream={"status": 403})


@pytest.mark.trust("#320")
@pytest.mark.parametrize("charges", [CHARGES, ()], ids=["charged", "not charged"])
@pytest.mark.parametrize(
    ("error", "state", "kept"),
    [
        (None, "confirmed", False),
        (REFUSED, "refused", True),
        (GatewayError("x_unreachable"), "not_sent", False),
        (GatewayError("x_timeout", outcome="unknown"), "unknown", False),
    ],
    ids=["confirmed", "refused", "not sent", "unknown"],
)
async def test_the_unit_of_the_end_ends_the_approval(
    first: Replica, charges: tuple[Charge, ...], error: GatewayError | None, state: str, *, kept: bool
) -> None:
    """The payload and the images go in the same unit, and what a refusal says beyond its reason stays, encrypted."""
    payload = await first.ask("req_1", images=[IMAGE, IMAGE])
    await first.approve("req_1")
    record = first.record("req_1", payload, charges=charges)
    await record.begin()
    if error is None:
        await record.confirmed(201, {"id": "77", "text": SECRET})
    else:
        await record.failed(error)
    approval = await first.approval("req_1")
    assert (await first.row("req_1")).state == state
    assert (approval.payload_ct, approval.due_at, await first.images("req_1")) == (None, None, 0)
    assert approval.ended_at is not None
    assert (approval.refusal_ct is not None) is kept
    answer = await first.records.answer("req_1")
    statuses = {"confirmed": 201, "refused": 403, "not_sent": 502, "unknown": 502}
    assert answer.status == statuses[state]
    if kept:
        assert answer.value["error"]["upstream"] == {"status": 403}
        assert answer.value["error"]["request_id"] == "req_1"


async def test_the_end_of_the_approval_waits_with_the_outcome_for_the_store(first: Replica) -> None:
    """Both are written by the same unit, once the store takes it; until then this process knows the outcome."""
    record, _ = await begun(first)
    await rename(first.database, "journal", "away")
    with pytest.raises(GatewayError):
        await record.confirmed(200, {"liked": True})
    await rename(first.database, "away", "journal")
    assert (await first.records.answer("req_1")).status == 200
    assert (await first.approval("req_1")).ended_at is None
    await first.journal.flush()
    assert ((await first.row("req_1")).state, first.journal.waiting) == ("confirmed", 0)
    approval = await first.approval("req_1")
    assert (approval.payload_ct, await first.images("req_1")) == (None, 0)
    assert approval.ended_at is not None


@pytest.mark.parametrize("charges", [CHARGES, ()], ids=["charged", "not charged"])
@pytest.mark.parametrize("error", [None, GatewayError("x_unreachable"), GatewayError("x_timeout", outcome="unknown")])
@pytest.mark.parametrize("first_ends", [False, True], ids=["before", "after"])
async def test_a_process_that_lost_a_write_records_nothing(
    both: tuple[Replica, Replica],
    charges: tuple[Charge, ...],
    error: GatewayError | None,
    first_ends: bool,  # noqa: FBT001 - a parameter
) -> None:
    """It was slow, and another one has sent the like: only that one knows its outcome, and what it cost."""
    slow, second = both
    payload = await slow.ask("req_1", LIKE)
    await slow.approve("req_1")
    record = slow.record("req_1", payload, LIKE, charges=charges)
    await record.begin()
    await slow.vanish()
    other = second.record("req_1", payload, LIKE)
    await other.take_over(await second.row("req_1"))

    async def late() -> None:
        if error is None:
            await record.confirmed(200, {"liked": True})
        else:
            await record.failed(error)

    if first_ends:
        await late()
        assert (await second.row("req_1")).state == "started"
        assert (await second.approval("req_1")).ended_at is None
    await other.confirmed(200, {"liked": True})
    if not first_ends:
        await late()
    row = await second.row("req_1")
    assert (row.state, row.owner) == ("confirmed", second.leases.me)
    assert await used(second.database) == ([1, 2 * PRICE] if charges else [0, 0])


async def test_an_outcome_that_comes_after_the_verdict_ends_the_approval_too(both: tuple[Replica, Replica]) -> None:
    """A slow process is counted as dead, and then X's answer arrives."""
    first, second = both
    record, _ = await begun(first, "post_twitter")
    await first.vanish()
    await second.reconciler().recover()
    assert (await second.row("req_1")).state == "unknown"
    second.clock.advance(minutes=2)
    for _ in range(3):
        await second.reconciler().round()
        second.clock.advance(seconds=40)
    assert (await second.row("req_1")).state == "not_found"
    await record.confirmed(201, {"id": "77", "text": SECRET})
    assert (await second.row("req_1")).state == "confirmed"
    assert (await second.records.answer("req_1")).value == {"data": {"id": "77", "text": SECRET}}


@pytest.mark.parametrize("posted", [False, True], ids=["lost before X", "lost after X"])
async def test_an_approved_post_that_a_crash_cut_off_is_searched_for_from_its_start(
    both: tuple[Replica, Replica],
    posted: bool,  # noqa: FBT001 - a parameter
) -> None:
    """It was asked for hours ago: two readings a second apart prove nothing about a post that was sent just now."""
    first, second = both
    request_id = id_at(first.clock.now())
    payload = await first.ask(request_id, images=[IMAGE], ttl=timedelta(hours=12))
    first.clock.advance(hours=6)
    await first.approve(request_id)
    await first.record(request_id, payload, charges=CHARGES).begin()
    started_at = (await first.row(request_id)).start
    await first.vanish()
    await second.reconciler().recover()
    row = await second.row(request_id)
    assert (row.state, row.lost_at, row.due_at) == ("unknown", started_at, started_at + timedelta(seconds=2))
    approval = await second.approval(request_id)
    # A gateway reports the end, and the caller who waits is answered.
    assert (approval.payload_ct, approval.due_at, await second.images(request_id)) == (None, approval.ended_at, 0)
    assert (await second.records.answer(request_id)).value["error"]["reason"] == "outcome_unknown"
    # Until it shows in the timeline, a few seconds may pass.
    second.clock.advance(seconds=3)
    for _ in range(4):
        await second.reconciler().round()
        second.clock.advance(seconds=1.5)
        async with second.database.write() as connection:
            await journal.expedite(connection, "1", second.clock.now())
    row = await second.row(request_id)
    assert (row.state, row.why) == ("unknown", "looking")
    assert row.reads >= 2
    posts = [a_post(SECRET, started_at + timedelta(seconds=1))] if posted else []
    for _ in range(4):
        second.clock.advance(seconds=40)
        await second.reconciler(posts).round()
    row = await second.row(request_id)
    assert row.state == ("found" if posted else "not_found")
    assert await used(second.database) == ([1, PRICE] if posted else [0, 0])
    assert (await second.approval(request_id)).ended_at == row.settled_at
    answer = await second.records.answer(request_id)
    if posted:
        assert (answer.status, answer.value["data"]["id"]) == (201, "77")
    else:
        assert answer.value["error"]["reason"] == "not_applied"


async def test_of_two_equal_posts_the_one_that_was_started_first_is_the_older(both: tuple[Replica, Replica]) -> None:
    """The one that waited was asked for first, and sent last."""
    first, second = both
    waited, direct = id_at(first.clock.now()), id_at(first.clock.now() + timedelta(hours=2))
    payload = await first.ask(waited, ttl=timedelta(hours=12))
    first.clock.advance(hours=2)
    await first.journal.open(first.entry(direct)).begin()
    first.clock.advance(seconds=30)
    await first.approve(waited)
    await first.record(waited, payload).begin()
    await first.vanish()
    await second.reconciler().recover()
    posts = [
        a_post(SECRET, (await second.row(request_id)).start + timedelta(seconds=1), post_id)
        for request_id, post_id in ((direct, "71"), (waited, "72"))
    ]
    second.clock.advance(seconds=3)
    await second.reconciler(posts).round()
    found = {request_id: (await second.row(request_id)).x_id for request_id in (direct, waited)}
    assert found == {direct: "71", waited: "72"}


@pytest.mark.parametrize("state", ["awaiting_approval", "approved", "denied", "expired", "cancelled"])
async def test_what_was_not_started_supersedes_nothing(first: Replica, state: str) -> None:
    """An unlike goes on though a like was asked for after it: nobody knows whether the like will ever be sent."""
    earlier, later = id_at(first.clock.now()), id_at(first.clock.now() + timedelta(seconds=1))
    unlike = first.entry(earlier, "unlike_twitter")
    await first.journal.open(unlike).begin()
    payload = await first.ask(later, LIKE)
    if state == "approved":
        await first.approve(later)
    elif state != "awaiting_approval":
        await first.end(later, State(state), "cancelled", 409)
    assert not await first.journal.asked_later(unlike, LIKE)
    if state == "approved":
        # From its start it counts, and it was started after the unlike.
        await first.record(later, payload, LIKE).begin()
        assert await first.journal.asked_later(unlike, LIKE)


async def test_an_approved_write_is_newer_than_what_was_asked_for_while_it_waited(first: Replica) -> None:
    """The order of opposite calls is that of their starts."""
    now = first.clock.now()
    waited, unliked = id_at(now), id_at(now + timedelta(minutes=30))
    payload = await first.ask(waited, LIKE)
    first.clock.advance(minutes=30)
    unlike = first.entry(unliked, "unlike_twitter")
    await first.journal.open(unlike).begin()
    like = first.entry(waited, LIKE)
    assert await first.journal.asked_later(like, "unlike_twitter")
    first.clock.advance(minutes=30)
    await first.approve(waited)
    await first.record(waited, payload, LIKE).begin()
    assert await first.journal.asked_later(unlike, LIKE)
    assert not await first.journal.asked_later(like, "unlike_twitter")


async def test_a_refusal_by_x_counts_from_the_start_of_its_write(first: Replica) -> None:
    """A rule that pauses a key after some refusals in ten minutes sees one that was asked for hours ago."""
    for number, operation in enumerate((LIKE, "post_twitter")):
        payload = await first.ask(f"req_{number}", operation)
        first.clock.advance(hours=2)
        await first.approve(f"req_{number}")
        record = first.record(f"req_{number}", payload, operation)
        await record.begin()
        await record.failed(REFUSED)
    direct = first.journal.open(first.entry("req_9", LIKE))
    await direct.failed(REFUSED)
    async with first.database.read() as connection:
        since = first.clock.now() - timedelta(minutes=10)
        assert await journal.refused_since(connection, first.key_id, since, "reply_not_allowed") == 2
        assert await journal.refused_since(connection, first.key_id, since - timedelta(hours=2)) == 3
        assert await journal.refused_since(connection, "key_other", since) == 0


async def test_a_purge_leaves_what_waits_and_takes_what_has_waited(first: Replica) -> None:
    """A row that is deleted takes its approval, its images and its links with it."""
    now = first.clock.now()
    ids = {name: id_at(now - timedelta(days=40) + timedelta(seconds=number)) for number, name in enumerate("wad")}
    first.clock.advance(days=-40)
    for request_id in ids.values():
        await first.ask(request_id, LIKE, images=[IMAGE], ttl=timedelta(days=90))
        async with first.database.write() as connection:
            await approvals.add_link(connection, request_id.encode(), request_id, "ada", first.clock.now())
    await first.approve(ids["a"])
    await first.end(ids["d"], State.DENIED, "approval_denied", 403)
    first.clock.advance(days=40)
    await first.journal.purge(timedelta(days=30))
    assert [await first.journal.find(request_id) is None for request_id in ids.values()] == [False, False, True]
    async with first.database.read() as connection:
        assert await approvals.get(connection, ids["d"]) is None
        links = await approvals.links(connection, [request_id.encode() for request_id in ids.values()])
    assert {one.request_id for one in links.values()} == {ids["w"], ids["a"]}
    assert [await first.images(ids[name]) for name in "wad"] == [1, 1, 0]


async def test_a_purge_takes_the_images_that_x_has_deleted(first: Replica) -> None:
    """And leaves the others, of any key, however many there are."""
    now = first.clock.now()
    async with first.database.write() as connection:
        for number in range(1_201):
            gone = {"key_id": f"key_{number % 3}", "media_id": f"{number}", "until": now + timedelta(hours=1)}
            await kept_images.add(connection, _kept(first, **gone))
        await kept_images.add(connection, _kept(first, until=now + timedelta(hours=2)))
    await first.journal.purge(timedelta(days=30))
    async with first.database.read() as connection:
        assert len((await connection.execute(select(kept_images.kept_images.c.media_id))).all()) == 1_202
    first.clock.advance(hours=1)
    await first.journal.purge(timedelta(days=30))
    async with first.database.read() as connection:
        left = (await connection.execute(select(kept_images.kept_images.c.media_id))).scalars().all()
    assert left == ["9001"]


async def test_the_oldest_uploads_make_room(first: Replica) -> None:
    """Of the same key, and no more of them than it takes."""
    now = first.clock.now()
    async with first.database.write() as connection:
        for number in range(250):
            await kept_images.add(
                connection,
                _kept(first, media_id=f"{number:03}", blob_ct=bytes(10), until=now + timedelta(seconds=1 + number)),
            )
        await kept_images.add(connection, _kept(first, key_id="key_other", media_id="000", blob_ct=bytes(10)))
        for room, expected in ((2_500, 250), (2_499, 249), (1_000, 100), (999, 99), (0, 0)):
            await kept_images.drop_oldest(connection, first.key_id, room)
            assert await kept_images.bytes_kept(connection, first.key_id) == 10 * expected
            if expected:
                newest = [f"{number:03}" for number in range(250 - expected, 250)]
                assert sorted(await kept_images.of_key(connection, first.key_id, newest, now)) == newest
        assert await kept_images.bytes_kept(connection, "key_other") == 10


def _kept(replica: Replica, **given: Any) -> dict[str, Any]:
    """Return an image that a key uploaded, as it is stored."""
    row = {"key_id": replica.key_id, "media_id": "9001", "media_type": "image/png", "size": 10, "sha256": "0" * 64}
    return row | {"blob_ct": b"sealed", "until": replica.clock.now() + timedelta(hours=1)} | given


async def test_a_purge_leaves_what_answers_for_its_name(first: Replica) -> None:
    """It ended 30 hours after it was asked for, as a lost post may, and rows are kept for two days."""
    request_id = id_at(first.clock.now())
    await first.ask(request_id, LIKE, ttl=timedelta(days=2))
    first.clock.advance(hours=30)
    await first.end(request_id, State.DENIED, "approval_denied", 403)
    for hours, purged in ((20, False), (3, False), (2, True)):
        first.clock.advance(hours=hours)
        await first.journal.purge(timedelta(days=2))
        assert (await first.journal.find(request_id) is None) == purged


async def test_what_waits_is_read_with_its_rows(first: Replica) -> None:
    """One query returns each with its row in the journal; those that expire first come first."""
    for number in range(3):
        await first.ask(f"req_{number}", LIKE, ttl=timedelta(hours=3 - number))
    await first.approve("req_0")
    await first.end("req_1", State.DENIED, "approval_denied", 403)
    listed = await first.records.listed(10_000)
    assert [(one.row.request_id, one.entry.state) for one in listed] == [
        ("req_0", "approved"),
        ("req_2", "awaiting_approval"),
    ]
    assert all(one.payload is not None and one.payload.fields == {"tweet_id": "2"} for one in listed)
    assert await first.records.listed(10, "key_other") == []
    assert len(await first.records.listed(10, first.key_id)) == 2


async def rename(database: Database, old: str, new: str) -> None:
    """Rename a table, so that the store refuses what is written to it."""
    async with database.write() as connection:
        await connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))


async def test_processes_state_the_address_that_they_serve(both: tuple[Replica, Replica]) -> None:
    """The command line asks the one that renewed its lease last; a dead one is not asked."""
    first, second = both

    async def address() -> Any:
        async with first.database.read() as connection:
            return await processes.address(connection, first.clock.now())

    assert await address() is None
    first.leases.address = "http://127.0.0.1:8611"
    await first.leases.renew()
    assert await address() == "http://127.0.0.1:8611"
    second.leases.address = "http://127.0.0.1:8612"
    first.clock.advance(seconds=1)
    await second.leases.renew()
    assert await address() == "http://127.0.0.1:8612"
    await second.vanish()
    assert await address() == "http://127.0.0.1:8611"
    first.clock.advance(minutes=1)
    assert await address() is None
