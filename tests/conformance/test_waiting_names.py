"""Idempotency-Keys of calls that wait for a person, on both engines: their request answers for the name."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from birdwire.api.errors import GatewayError
from birdwire.store.tables import approvals, idempotency
from birdwire.store.tables.idempotency import NameState
from birdwire.store.tables.journal import State
from harness.approval_replicas import SECRET, Replica, two_replicas

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from birdwire.api.messages import Answer
    from birdwire.store.tables.idempotency import NameRow

pytestmark = pytest.mark.engines("sqlite", "postgres")


@pytest_asyncio.fixture
async def both(database_url: str) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two processes on one database, which share a clock and a vault."""
    async with two_replicas(database_url) as replicas:
        yield replicas


@pytest_asyncio.fixture
async def first(both: tuple[Replica, Replica]) -> Replica:
    """The first of the two."""
    return both[0]


async def ask_once(replica: Replica, request_id: str = "req_1", *, name: str = "k", repeatable: bool = False) -> Answer:
    """Make a call under a name wait for a person, as the gateway does, and return its answer."""
    operation = "like_twitter" if repeatable else "post_twitter"
    async with replica.once.attempt(replica.named(request_id, name=name, repeatable=repeatable)) as attempt:
        assert attempt.replay is None
        await replica.ask(request_id, operation, held_by=request_id)
        attempt.answer = await replica.records.answer(request_id)
        return attempt.answer


async def replayed(replica: Replica, request_id: str = "req_2", *, name: str = "k", repeatable: bool = False) -> Answer:
    """Repeat the call, and return the answer, which must come from the first one."""
    async with replica.once.attempt(replica.named(request_id, name=name, repeatable=repeatable)) as attempt:
        assert attempt.replay is not None
        assert ("idempotent-replayed", "true") in attempt.replay.answer.headers
        return attempt.replay.answer


async def name_row(replica: Replica, name: str = "k") -> NameRow | None:
    """Return the row of a name."""
    async with replica.database.read() as connection:
        return await idempotency.find(connection, replica.key_id, name)


async def test_the_202_is_not_stored_but_answered_by_the_request(both: tuple[Replica, Replica]) -> None:
    """The same answer in every process while it waits; after the decision another, under the same name."""
    first, second = both
    asked = await ask_once(first)
    assert (asked.status, asked.value["approval"]["state"]) == (202, "awaiting_approval")
    assert dict(asked.headers)["location"] == "/apis/v1/twitter/requests/req_1"
    assert dict(asked.headers)["retry-after"] == "5"
    row = await name_row(first)
    assert row is not None
    assert (row.state, row.request_id, row.body, row.status) == (NameState.AWAITING, "req_1", None, None)
    assert (await replayed(second)).body == asked.body
    await first.approve("req_1")
    approved = await replayed(second)
    assert (approved.status, approved.value["approval"]["state"]) == (202, "approved")
    found = await first.records.find("req_1")
    assert found is not None
    assert found.payload is not None
    record = first.record("req_1", found.payload)
    with first.leases.running("req_1"):
        await record.begin()
        # Being sent is no conflict: the caller may poll, and never sees 409.
        assert (await replayed(second)).value["approval"]["state"] == "started"
        assert (await replayed(first)).status == 202
    await record.confirmed(201, {"id": "77", "text": SECRET})
    done = await replayed(second)
    assert (done.status, done.value) == (201, {"data": {"id": "77", "text": SECRET}})


ENDS = [
    (State.DENIED, "approval_denied", 403),
    (State.EXPIRED, "approval_expired", 409),
    (State.CANCELLED, "cancelled", 409),
    (State.NOT_SENT, "approval_stale", 409),
    (State.NOT_SENT, "superseded", 409),
    (State.EXPIRED, "restored_backup", 409),
]


@pytest.mark.parametrize("repeatable", [False, True], ids=["post", "like"])
@pytest.mark.parametrize(("state", "why", "status"), ENDS, ids=[reason for _, reason, _ in ENDS])
async def test_what_was_not_sent_is_not_done_again_under_its_name(
    both: tuple[Replica, Replica],
    state: State,
    why: str,
    status: int,
    repeatable: bool,  # noqa: FBT001 - a parameter
) -> None:
    """Neither a like nor a post: the caller gets the refusal of its request, until a day after the end."""
    first, second = both
    await ask_once(first, repeatable=repeatable)
    if state is State.NOT_SENT:
        await first.approve("req_1")
    await first.end("req_1", state, why, status, note="not like this")
    for hours in (0, 23):
        first.clock.advance(hours=hours)
        await first.once.tidy()
        answer = await replayed(second, repeatable=repeatable)
        assert (answer.status, answer.value["error"]["reason"]) == (status, why)
        if why == "approval_denied":
            assert "not like this" in answer.value["error"]["message"]
    first.clock.advance(hours=2)
    assert await second.once.begin(second.named("req_3", repeatable=repeatable)) is None


async def test_a_refusal_is_answered_with_everything_that_it_stated(first: Replica) -> None:
    """Also what only the process that was refused knew."""
    await ask_once(first)
    await first.approve("req_1")
    found = await first.records.find("req_1")
    assert found is not None
    assert found.payload is not None
    record = first.record("req_1", found.payload)
    await record.begin()
    upstream: dict[str, Any] = {"status": 403, "detail": f"no {SECRET}"}
    await record.failed(GatewayError("x_refused", outcome="refused", upstream=upstream, message="no", edits=""))
    answer = await replayed(first)
    assert (answer.status, answer.value["error"]["upstream"]) == (403, upstream)
    assert SECRET.encode() not in ((await first.approval("req_1")).refusal_ct or b"")


async def test_a_write_whose_outcome_is_unknown_is_not_done_again(first: Replica) -> None:
    """Not even a like: an opposite call may have come since."""
    await ask_once(first, repeatable=True)
    await first.approve("req_1")
    found = await first.records.find("req_1")
    assert found is not None
    assert found.payload is not None
    record = first.record("req_1", found.payload, "like_twitter")
    await record.begin()
    await record.failed(GatewayError("x_timeout", outcome="unknown"))
    answer = await replayed(first, repeatable=True)
    assert (answer.status, answer.value["error"]["reason"]) == (502, "outcome_unknown")


async def test_another_call_under_the_name_is_refused_whatever_the_request_has_come_to(first: Replica) -> None:
    """The comparison of what is asked for comes first."""
    await ask_once(first)
    for change in (None, State.DENIED):
        if change is not None:
            await first.end("req_1", change, "approval_denied", 403)
        with pytest.raises(GatewayError) as error:
            await first.once.begin(first.named("req_2", b"something else"))
        assert error.value.reason == "idempotency_key_reused"


async def test_several_names_are_answered_by_one_request(both: tuple[Replica, Replica]) -> None:
    """An identical call is answered by the one that waits, and its name with it."""
    first, second = both
    await ask_once(first)
    call = second.named("req_2", name="other")
    async with second.once.attempt(call) as attempt:
        async with second.database.write() as connection:
            assert await idempotency.await_person(connection, second.key_id, "req_2", "req_1")
        attempt.answer = await second.records.answer("req_1")
    await first.end("req_1", State.DENIED, "approval_denied", 403)
    for name in ("k", "other"):
        answer = await replayed(second, "req_3", name=name)
        assert (answer.status, answer.value["error"]["request_id"]) == (403, "req_1")


async def test_a_name_that_another_call_took_over_does_not_wait(both: tuple[Replica, Replica]) -> None:
    """A slow process has lost its name, and must not ask under it."""
    first, second = both
    with first.leases.running("req_1"):
        assert await first.once.begin(first.named("req_1")) is None
        await first.vanish()
        assert await second.once.begin(second.named("req_2")) is None
        async with first.database.write() as connection:
            assert not await idempotency.await_person(connection, first.key_id, "req_1", "req_1")
    row = await name_row(first)
    assert row is not None
    assert (row.state, row.request_id) == (NameState.STARTED, "req_2")


async def test_a_crash_after_the_question_leaves_the_name_with_the_request(both: tuple[Replica, Replica]) -> None:
    """The process dies before it answers: the call is not done again, though it is safe to repeat."""
    first, second = both
    with first.leases.running("req_1"):
        await first.once.begin(first.named("req_1", repeatable=True))
        await first.ask("req_1", "like_twitter", held_by="req_1")
        await first.vanish()
    assert (await replayed(second, repeatable=True)).status == 202


@pytest.mark.parametrize("repeatable", [False, True], ids=["post", "like"])
@pytest.mark.parametrize(
    "error", [asyncio.CancelledError(), RuntimeError("a bug"), GatewayError("storage_unavailable")]
)
async def test_a_call_that_breaks_off_after_the_question_leaves_the_name_with_the_request(
    first: Replica,
    error: BaseException,
    repeatable: bool,  # noqa: FBT001 - a parameter
) -> None:
    """Its caller hung up, or the store went down: the write waits, so the name is neither released nor unknown."""
    with contextlib.suppress(asyncio.CancelledError, RuntimeError, GatewayError):
        async with first.once.attempt(first.named("req_1", repeatable=repeatable)):
            await first.ask("req_1", "like_twitter" if repeatable else "post_twitter", held_by="req_1")
            raise error
    assert (await replayed(first, repeatable=repeatable)).status == 202


async def test_names_are_kept_until_a_day_after_the_end_of_their_request(first: Replica) -> None:
    """However long that waited: neither the purge nor a second call takes one earlier."""
    await ask_once(first)
    async with first.database.write() as connection:
        await approvals.change(connection, "req_1", {"expires_at": first.clock.now() + timedelta(days=9)})
    async with first.once.attempt(first.named("req_8", name="plain")) as attempt:
        attempt.answer = await first.records.answer("req_1")
        attempt.answer.status = 200
    first.clock.advance(hours=25)
    await first.once.tidy()
    assert await name_row(first, "plain") is None
    assert (await replayed(first)).status == 202
    await first.end("req_1", State.EXPIRED, "approval_expired", 409)
    first.clock.advance(hours=23)
    await first.once.tidy()
    assert (await replayed(first)).status == 409
    first.clock.advance(hours=2)
    await first.once.tidy()
    assert await name_row(first) is None


async def test_one_of_twenty_calls_takes_a_name_over_once_it_is_free(both: tuple[Replica, Replica]) -> None:
    """A day after the end it may be used again, by one call."""
    await ask_once(both[0])
    await both[0].end("req_1", State.CANCELLED, "cancelled", 409)
    both[0].clock.advance(hours=25)
    for replica in both:
        await replica.leases.renew()
    names = [f"req_{number:02}" for number in range(20)]
    with contextlib.ExitStack() as running:
        for number, name in enumerate(names):
            running.enter_context(both[number % 2].leases.running(name))
        starting = (both[number % 2].once.begin(both[0].named(name)) for number, name in enumerate(names))
        ends = await asyncio.gather(*starting, return_exceptions=True)
    assert ends.count(None) == 1
    assert {end.reason for end in ends if isinstance(end, GatewayError)} == {"idempotency_in_flight"}
