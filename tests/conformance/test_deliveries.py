"""Deliveries on both engines: the schedule on a clock that stands still, and when a destination is held or off."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from birdwire.gateway.notifications import deliveries
from birdwire.runtime.outbound import Failure, Outbound, OutboundRules, Sent
from birdwire.store.backup import mark_restored
from birdwire.store.schema import StorageDownError
from birdwire.store.tables import destinations, outbox
from harness.delivering import ADA, DELIVERED, Deliverer, as_json, deliverer, failed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.gateway.notifications.news import Message, News
    from birdwire.store.tables.destinations import Kind

pytestmark = pytest.mark.engines("sqlite", "postgres")

INSTANT = timedelta(microseconds=1)
DELAYS = [
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    *(timedelta(hours=hours) for hours in (2, 5, 10, 14, 20, 24)),
]


@pytest_asyncio.fixture
async def only(database_url: str) -> AsyncIterator[Deliverer]:
    """One process."""
    async with deliverer(database_url) as built:
        yield built


@pytest.mark.trust("#332")
async def test_a_failing_delivery_is_tried_ten_times_each_exactly_when_it_is_due(only: Deliverer) -> None:
    """The delay counts from the failed try, and the same id and body arrive each time."""
    await only.set()
    only.outbound.answer(failed())
    (event_id,) = await only.happen()
    for tries, delay in enumerate(DELAYS, 1):
        assert await only.round() == 1
        row = await only.event(event_id)
        assert (row.tries, row.due_at, row.status, row.error) == (tries, only.clock.now() + delay, 500, "status")
        await only.advance(delay - INSTANT)
        assert await only.round() == 0
        await only.advance(INSTANT)
    assert await only.round() == 1
    row = await only.event(event_id)
    assert (row.tries, row.due_at, row.outcome) == (10, None, "given_up")
    await only.advance(timedelta(days=1))
    assert await only.round() == 0
    posts = only.outbound.posts
    assert len(posts) == 10
    assert {(post.event_id, post.body) for post in posts} == {(event_id, posts[0].body)}
    stamps = [datetime.fromtimestamp(int(post.headers["webhook-timestamp"]), row.at.tzinfo) for post in posts]
    assert [later - earlier for earlier, later in pairwise(stamps)] == DELAYS
    assert len({post.headers["webhook-signature"] for post in posts}) == 10
    counted = only.counted("birdwire_notifications_total")
    assert (counted["failed",], counted["given_up",], counted["delivered",]) == (9, 1, 0)
    assert len(only.logged("notification_failed")) == 10
    assert (await only.to()).off_at is None


async def test_a_delivery_ends_the_trouble(only: Deliverer) -> None:
    """What is known of the destination is what the last try came to, and since when it has failed."""
    await only.set()
    only.outbound.answer(failed(502), Sent(None, "timeout", None), DELIVERED)
    (event_id,) = await only.happen()
    began = only.clock.now()
    await only.round()
    await only.advance(DELAYS[0])
    await only.round()
    to = await only.to()
    assert (to.tried_at, to.status, to.error) == (began + DELAYS[0], None, "timeout")
    assert (to.failing_since, to.delivered_at) == (began, None)
    await only.advance(DELAYS[1])
    await only.round()
    to, row = await only.to(), await only.event(event_id)
    assert (to.tried_at, to.status, to.error) == (only.clock.now(), 204, None)
    assert (to.failing_since, to.delivered_at) == (None, only.clock.now())
    assert (row.tries, row.due_at, row.outcome, row.status, row.error) == (3, None, "delivered", 204, None)
    assert await only.round() == 0
    line = only.logged("notification_sent")[0]
    assert (line["event_id"], line["type"], line["tries"], line["status"]) == (event_id, "paused", 3, 204)
    assert "localhost" not in only.log.getvalue()


@pytest.mark.trust("#332")
@pytest.mark.parametrize(
    ("status", "retry_after_s", "delay"),
    [
        (429, 1_800.0, timedelta(minutes=30)),
        (503, 1_800.0, timedelta(minutes=30)),
        (503, 2.0, DELAYS[0]),
        (503, 1e9, timedelta(hours=24)),
        (500, 1_800.0, DELAYS[0]),
    ],
)
async def test_a_retry_after_delays_that_delivery_and_holds_all_others(
    only: Deliverer, status: int, retry_after_s: float, delay: timedelta
) -> None:
    """Only with 429 and 503, up to a day, and never sooner than the schedule."""
    await only.set()
    only.outbound.answer(failed(status, retry_after_s), DELIVERED)
    (event_id,) = await only.happen()
    await only.round()
    assert (await only.event(event_id)).due_at == only.clock.now() + delay
    held = timedelta() if status == 500 else timedelta(seconds=min(retry_after_s, 86_400.0))
    await only.happen()
    assert await only.round() == (0 if held else 1)
    if held:
        await only.advance(held - INSTANT)
        assert await only.round() == 0
        await only.advance(INSTANT)
        assert await only.round() == (2 if held == delay else 1)


@pytest.mark.trust("#333")
async def test_410_switches_the_destination_off_immediately(only: Deliverer) -> None:
    """What waited is dropped, nothing more is written, and the operator can see it in four places."""
    await only.set()
    only.outbound.answer(failed(410))
    await only.happen()
    await only.round()
    await only.happen(20)
    to = await only.to()
    assert (to.off_at, to.off_why, to.status) == (only.clock.now(), "410", 410)
    assert await only.pending() == []
    assert await only.round(3) == 0
    assert [act.act for act in await only.acts()] == ["notify.switched_off", "notify.set"]
    assert (await only.acts())[0].who == "birdwire"
    assert only.logged("notifications_off")[0]["why"] == "410"
    assert only.counted("birdwire_notifications_off") == {(): 1}
    assert not only.destinations.on


async def test_what_waits_is_dropped_and_counted(only: Deliverer) -> None:
    """The one that was answered, too; the others in progress end without a trace."""
    await only.set()
    only.outbound.answer(failed(410))
    await only.happen(30)
    assert await only.round() == 16
    assert await only.pending() == []
    assert only.counted("birdwire_notifications_total")["dropped",] == 30
    assert len([act for act in await only.acts() if act.act == "notify.switched_off"]) == 1


@pytest.mark.trust("#333")
async def test_five_days_of_failures_switch_the_destination_off(only: Deliverer) -> None:
    """They count from the first failure after the last delivery."""
    await only.set()
    only.outbound.answer(DELIVERED, failed())
    await only.happen()
    await only.round()
    await only.advance(timedelta(days=4))
    await only.happen()
    began = only.clock.now()
    await only.round()
    for _ in range(4):
        await only.advance(timedelta(days=1))
        await only.happen()
        assert await only.round() >= 1
    await only.advance(timedelta(days=1) - timedelta(seconds=5))
    await only.happen()
    assert await only.round() >= 1
    assert (await only.to()).off_at is None
    await only.advance(timedelta(seconds=5))
    await only.happen()
    assert await only.round() == 1
    to = await only.to()
    assert (to.off_at, to.off_why, to.failing_since) == (began + timedelta(days=5), "failing", began)
    assert await only.pending() == []


async def test_a_failure_after_a_quiet_week_is_the_first_one(only: Deliverer) -> None:
    """What was between two tries nobody knows: the receiver was repaired, or the gateway's machine slept."""
    await only.set()
    only.outbound.answer(failed())
    await only.happen()
    await only.round()
    began = only.clock.now()
    await only.advance(timedelta(hours=25))
    await only.round()
    assert (await only.to()).failing_since == began
    await only.advance(timedelta(hours=25) + INSTANT)
    await only.round()
    assert (await only.to()).failing_since == only.clock.now()
    await only.advance(timedelta(days=7))
    await only.happen()
    await only.round()
    assert (await only.to()).off_at is None


async def test_a_key_cannot_fill_the_outbox(only: Deliverer) -> None:
    """What it asks for leaves room for what its operator must hear of."""
    await only.set()
    await _fill(only, 1, outbox.MAX_PENDING_ASKED)
    asked: dict[str, str] = {"request_id": "req_1"}
    assert len(await only.happen(2, "approval.requested", **asked)) == outbox.MAX_PENDING_ASKED
    assert len(await only.happen(2, "approval.decided", **asked)) == outbox.MAX_PENDING_ASKED
    assert len(await only.happen(1, "account.needs_relink", **asked)) == outbox.MAX_PENDING_ASKED + 1
    await _fill(only, outbox.MAX_PENDING_ASKED + 2, outbox.MAX_PENDING)
    assert len(await only.happen(2)) == outbox.MAX_PENDING


async def _fill(only: Deliverer, first: int, end: int) -> None:
    """Write events that wait, faster than they happen."""
    now = only.clock.now()
    row = {"destination_id": "operator", "type": "paused", "at": now, "data": {}, "due_at": now, "keep_until": now}
    async with only.replica.database.write() as connection:
        rows = [row | {"event_id": f"evt_{number}"} for number in range(first, end)]
        await connection.execute(outbox.outbox.insert(), rows)


async def test_at_most_16_are_sent_at_once(only: Deliverer) -> None:
    """Those in progress keep their places; a later round starts no one twice."""
    await only.set()
    await only.happen(40)
    only.outbound.open.clear()
    for _ in range(3):
        await only.deliveries.round()
    assert only.outbound.running <= 16
    only.outbound.open.set()
    await only.settled()
    assert await only.round(2) == 24
    assert only.outbound.most == 16
    assert len({post.event_id for post in only.outbound.posts}) == 40
    assert await only.pending() == []


async def test_after_three_failures_one_is_tried_at_a_time_until_one_succeeds(only: Deliverer) -> None:
    """A destination that is down costs one try in five seconds, however much waits for it."""
    await only.set()
    only.outbound.answer(failed())
    await only.happen(100)
    assert await only.round() == 16
    for _ in range(4):
        await only.advance(timedelta(seconds=5) - INSTANT)
        assert await only.round() == 0
        await only.advance(INSTANT)
        assert await only.round(3) == 1
    only.outbound.answer(DELIVERED)
    await only.advance(timedelta(seconds=5))
    assert [await only.round() for _ in range(3)] == [1, 16, 16]


async def test_two_failures_do_not_slow_it(only: Deliverer) -> None:
    """They are not in a row, or too few."""
    await only.set()
    answers = iter([failed(), failed(), DELIVERED] * 20)
    only.outbound.reply = lambda _: next(answers)
    await only.happen(60)
    assert [await only.round() for _ in range(3)] == [16, 16, 16]


async def test_a_person_is_not_asked_for_a_decision_that_is_over(only: Deliverer) -> None:
    """A program still learns of it, because it counts what it is told."""
    await only.replica.new_key()
    await only.replica.ask("req_1")
    await only.replica.ask("req_2", ttl=timedelta(minutes=1))
    await only.replica.ask("req_3")
    await only.replica.approve("req_3")
    await only.set(kind="ntfy")
    for number in (1, 2, 3, 4):
        await only.happen(event="approval.requested", request_id=f"req_{number}")
    await only.advance(timedelta(minutes=1))
    await only.round()
    assert [post.document["data"]["request_id"] for post in only.outbound.posts] == ["req_1"]
    assert await only.pending() == []
    assert only.counted("birdwire_notifications_total")["outdated",] == 3
    await only.set(kind="standard")
    await only.happen(event="approval.requested", request_id="req_3")
    assert await only.round() == 1


@pytest.mark.parametrize("kind", ["standard", "ntfy", "slack"])
async def test_only_a_program_gets_signatures(only: Deliverer, kind: Kind) -> None:
    """No other receiver was given the secret."""
    await only.set(kind=kind)
    await only.happen()
    assert await only.round() == 1
    signs = {"webhook-id", "webhook-timestamp", "webhook-signature"} if kind == "standard" else set()
    assert only.outbound.posts[0].headers.keys() == {"content-type"} | signs


@pytest.mark.trust("#333")
async def test_a_delivered_test_switches_the_destination_on_again(only: Deliverer) -> None:
    """It is tried once, before all that waits, also while the destination is held or off."""
    await only.set()
    only.outbound.answer(failed(410))
    await only.happen()
    await only.round()
    only.outbound.answer(failed(503, 3_600.0), DELIVERED)
    first = await only.destinations.test()
    assert await only.round(2) == 1
    row = await only.event(first)
    assert (row.outcome, row.status, row.tries) == ("given_up", 503, 1)
    assert (await only.to()).off_at is not None
    second = await only.destinations.test()
    assert await only.round() == 1
    assert (await only.event(second)).outcome == "delivered"
    to = await only.to()
    assert (to.off_at, to.off_why, to.failing_since) == (None, None, None)
    assert (await only.acts())[0].act == "notify.switched_on"
    assert only.logged("notifications_on")
    await only.round()
    assert only.counted("birdwire_notifications_off") == {(): 0}
    assert len(await only.happen()) == 1


async def test_a_delivered_test_ends_a_hold(only: Deliverer) -> None:
    """The operator repaired the receiver that had asked for a day; a failed test ends none."""
    await only.set()
    only.outbound.answer(failed(503, 86_400.0), failed(), DELIVERED)
    await only.happen()
    await only.round()
    await only.happen()
    await only.destinations.test()
    assert await only.round(2) == 1
    await only.destinations.test()
    assert await only.round() == 1
    assert await only.round() == 1


async def test_a_failed_test_is_no_trouble_of_the_destination(only: Deliverer) -> None:
    """The operator tries an address that does not work yet; days later, one failure must not switch it off."""
    await only.set()
    only.outbound.answer(failed())
    await only.destinations.test()
    await only.round()
    to = await only.to()
    assert (to.error, to.failing_since) == ("status", None)


async def test_a_test_is_not_kept_waiting_by_what_waits(only: Deliverer) -> None:
    """A thousand events that fail one at a time would take minutes."""
    await only.set()
    only.outbound.answer(failed())
    await only.happen(100)
    await only.round(2)
    event_id = await only.destinations.test()
    assert await only.round() == 1
    assert only.outbound.posts[-1].event_id == event_id


async def test_what_has_ended_is_deleted_after_three_days(only: Deliverer) -> None:
    """What waits stays, however old it is."""
    await only.set()
    only.outbound.answer(DELIVERED, failed())
    (event_id,) = await only.happen()
    await only.round()
    (waiting,) = await only.happen()
    await only.round()
    await only.advance(timedelta(days=3))
    only.outbound.answer(failed(503, 86_400.0))
    await only.round()
    assert (await only.event(event_id)).outcome == "delivered"
    await only.advance(timedelta(minutes=1))
    await only.round()
    async with only.replica.database.read() as connection:
        assert await outbox.get(connection, event_id) is None
    assert (await only.event(waiting)).outcome is None


async def test_what_was_added_while_the_destination_was_switched_off_is_dropped(only: Deliverer) -> None:
    """By a transaction that had seen it on. What was added since it is on again stays."""
    await only.set()
    await only.happen(2)
    await only.round()
    await only.happen(2)
    async with only.replica.database.write() as connection:
        await destinations.change(connection, {"off_at": only.clock.now(), "off_why": "410"})
    await only.advance(timedelta(minutes=1))
    assert await only.round() == 0
    assert await only.pending() == []
    assert only.counted("birdwire_notifications_total")["dropped",] == 2
    await only.set()
    await only.happen(2)
    await only.advance(timedelta(minutes=1))
    assert await only.round() == 2


async def test_a_restored_database_has_no_news(only: Deliverer) -> None:
    """What waited in a backup is news of an older state. The destination stays on."""
    await only.set()
    await only.happen(3)
    async with only.replica.database.write() as connection:
        await mark_restored(connection, only.clock.now())
    assert await only.pending() == []
    assert (await only.to()).off_at is None
    assert await only.round() == 0
    await only.happen()
    assert await only.round() == 1


@pytest.mark.parametrize(
    ("sent", "error"), [(Sent(None, "not_resolved", None), "not_resolved"), (failed(302), "status")]
)
async def test_every_kind_of_failure_is_a_failure(only: Deliverer, sent: Sent, error: Failure) -> None:
    """Also a redirect: it is not followed."""
    await only.set()
    only.outbound.answer(sent)
    (event_id,) = await only.happen()
    await only.round()
    row = await only.event(event_id)
    assert (row.error, row.status, row.outcome) == (error, sent.status, None)
    line = only.logged("notification_failed")[0]
    assert (line["error"], line["status"], line["event_id"], line["tries"]) == (error, sent.status, event_id, 1)


async def test_a_url_that_the_sandbox_allowed_is_not_sent_to_by_a_live_gateway(database_url: str) -> None:
    """The rules of the gateway that sends hold at each send."""
    async with deliverer(database_url, real=Outbound(OutboundRules())) as only:
        await only.set("http://127.0.0.1:9/in")
        (event_id,) = await only.happen()
        await only.round()
        assert (await only.event(event_id)).error == "forbidden_address"
        assert (await only.to()).error == "forbidden_address"


async def test_an_event_that_cannot_be_worded_is_given_up_and_delays_no_other(database_url: str) -> None:
    """The bug is logged, without the text of the exception."""

    def word(kind: Kind, news: News) -> Message:
        if news.type == "resumed":
            raise ValueError("the text of a post")
        return as_json(kind, news)

    async with deliverer(database_url, word=word) as only:
        await only.set()
        (bad,) = await only.happen(event="resumed")
        await only.happen()
        assert await only.round(3) == 1
        row = await only.event(bad)
        assert (row.outcome, row.error, row.tries, row.due_at) == ("given_up", "crash", 0, None)
        assert [line["exception"] for line in only.logged("crash")] == ["ValueError"]
        assert "text of a post" not in only.log.getvalue()
        assert (await only.to()).failing_since is None


async def test_a_result_that_cannot_be_recorded_is_not_sent_again_meanwhile(
    only: Deliverer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full can be read: without care, each round would send the same once more."""
    await only.set()
    (event_id,) = await only.happen()
    real, tries = outbox.change, iter(range(1, 100))

    async def change(*arguments: object) -> bool:
        await only.deliveries.round()
        if next(tries) < 5:
            raise StorageDownError("disk full")
        return await real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(outbox, "change", change)
    monkeypatch.setattr(deliveries, "RECORD_AGAIN_S", 0.0)
    assert await only.round() == 1
    assert (await only.event(event_id)).outcome == "delivered"
    assert next(tries) == 6


@pytest.mark.trust("#334")
@pytest.mark.engines("sqlite")
async def test_without_a_destination_no_query_is_run(only: Deliverer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change feed reports when there is one."""
    await only.round()
    reads, real = list[int](), only.replica.database.read

    def read() -> AbstractAsyncContextManager[AsyncConnection]:
        reads.append(1)
        return real()

    monkeypatch.setattr(only.replica.database, "read", read)
    await only.round(20)
    assert reads == []
    await only.set()
    await only.happen()
    assert await only.round() == 1
    assert await only.destinations.off(ADA)
    await only.round()
    reads.clear()
    await only.round(20)
    assert reads == []


async def test_what_waits_is_counted_every_five_seconds(only: Deliverer) -> None:
    """By the process that sends."""
    await only.set()
    only.outbound.answer(failed())
    await only.happen(40)
    await only.round()
    assert only.counted("birdwire_notifications_waiting") == {(): 40}
    await only.happen(2)
    await only.round()
    assert only.counted("birdwire_notifications_waiting") == {(): 40}
    await only.advance(timedelta(seconds=5))
    await only.round()
    assert only.counted("birdwire_notifications_waiting") == {(): 42}
