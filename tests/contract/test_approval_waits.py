"""Callers that wait for a person: `Prefer: wait`, on writes and on the report of a request."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from birdwire.gateway import approval_waits
from birdwire.gateway.approval_waits import ApprovalWaits, wait_in
from birdwire.store.tables import approvals as store
from harness.gateway import API, POST, RunningGateway
from harness.guarded_gateway import OPERATOR, price_of
from harness.sending_desk import SendingDesk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import httpx2

BODY = {"text": "a post that waits for a person"}
LIKE = {"tweet_id": POST}
RULES = {"approve": "*", "budget": {"day_usd": 5.0}}
NAME = "the name of the call"
SOON_S = 5.0


@pytest.fixture
async def desk(linked: RunningGateway) -> AsyncIterator[SendingDesk]:
    """The operator of a gateway whose key asks for every write, under a budget."""
    async with SendingDesk.opened(linked, RULES) as opened:
        yield opened


def waits_of(running: RunningGateway) -> ApprovalWaits:
    """Return what holds the callers of a gateway."""
    return running.gateway.waits


async def held(running: RunningGateway, number: int) -> None:
    """Wait until so many callers are held."""
    for _ in range(2_000):
        if waits_of(running).held == number:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{waits_of(running).held} callers are held, and not {number}")


async def post(running: RunningGateway, wait: object, name: str | None = None, **body: Any) -> httpx2.Response:
    """Ask for a post, preferring to wait."""
    headers = {"prefer": f"wait={wait}"} | ({} if name is None else {"idempotency-key": name})
    return await running.call("post_twitter", BODY | body, headers=headers)


async def requested(desk: SendingDesk) -> str:
    """Return the request that waits, once there is one."""
    for _ in range(2_000):
        found = await desk.records.listed(2)
        if found:
            (one,) = found
            return one.row.request_id
        await asyncio.sleep(0.01)
    raise AssertionError("no request waits")


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        ([], None),
        (["wait=0"], 0),
        (["wait=30"], 30),
        (["wait=31"], None),
        (["wait=-1"], None),
        (["wait=1.5"], None),
        (["wait=10s"], None),
        (["wait="], None),
        (["wait"], None),
        (["wait=\u0663"], None),
        (["wait=000000030"], None),
        (['wait="20"'], 20),
        (["WAIT = 7"], 7),
        (["respond-async, wait=10"], 10),
        (["respond-async", "wait=10; x=1"], 10),
        (["wait=5, wait=9"], 5),
        (["wait=x, wait=9"], None),
        (["waiting=5"], None),
    ],
)
def test_the_preference_is_read_as_rfc_7240_says(prefer: list[str], seconds: int | None) -> None:
    """What is malformed, or not between 0 and 30, is ignored; the first one counts."""
    assert wait_in(prefer) == seconds


async def test_a_held_call_gets_the_final_answer(desk: SendingDesk) -> None:
    """The same post id as the repeated Idempotency-Key and the request's report, and what the post cost."""
    running = desk.running
    call = asyncio.create_task(post(running, 30, NAME))
    asked = await requested(desk)
    await held(running, 1)
    report = asyncio.create_task(running.client.get(f"{API}requests/{asked}", headers={"prefer": "wait=30"}))
    repeated = asyncio.create_task(post(running, 30, NAME))
    await held(running, 3)
    await desk.approve(asked)
    answers = [await asyncio.wait_for(task, SOON_S) for task in (call, report, repeated)]
    assert [answer.status_code for answer in answers] == [201, 200, 201]
    post_ids = {answer.json()["data"]["id"] for answer in answers}
    assert post_ids == {(await desk.ended(asked))["x_id"]}
    assert [answer.headers["preference-applied"] for answer in answers] == ["wait=30"] * 3
    assert answers[0].headers["x-birdwire-cost-usd"] == f"{price_of('post_twitter') / 1_000_000:g}"
    assert answers[2].headers["idempotent-replayed"] == "true"
    assert answers[1].json()["state"] == "confirmed"
    assert len(await desk.sends()) == 1
    assert waits_of(running).held == 0


async def test_a_held_call_gets_the_denial(desk: SendingDesk) -> None:
    """With the note, and the reason in the log line of the call."""
    call = asyncio.create_task(post(desk.running, 30))
    asked = await requested(desk)
    await held(desk.running, 1)
    await desk.approvals.deny(asked, OPERATOR, note="not today")
    answer = await asyncio.wait_for(call, SOON_S)
    error = answer.json()["error"]
    assert (answer.status_code, error["reason"], error["request_id"]) == (403, "approval_denied", asked)
    assert "not today" in error["message"]
    assert desk.events("request")[-1]["reason"] == "approval_denied"


async def test_a_call_that_waits_in_vain_gets_its_202(desk: SendingDesk) -> None:
    """With the preference that was applied."""
    answer = await post(desk.running, 1)
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "wait=1"
    assert answer.json()["approval"]["state"] == "awaiting_approval"


@pytest.mark.parametrize(("wait", "applied"), [(0, "wait=0"), (31, None), ("soon", None)])
async def test_a_call_that_does_not_wait_is_answered_immediately(
    desk: SendingDesk, wait: object, applied: str | None
) -> None:
    """Nothing is malformed about such a call."""
    answer = await asyncio.wait_for(post(desk.running, wait), SOON_S)
    assert (answer.status_code, answer.headers.get("preference-applied")) == (202, applied)


async def test_a_call_that_does_not_need_a_person_ignores_the_preference(linked: RunningGateway) -> None:
    """It is answered as without it."""
    answer = await post(linked, 30)
    assert (answer.status_code, answer.headers.get("preference-applied")) == (201, None)


async def test_the_relay_dialect_is_encoded_after_the_wait(tmp_path: Path) -> None:
    """A held call gets the envelope of a post, and one that waits in vain the envelope of 202."""
    async with RunningGateway.built(tmp_path, relay_dialect=True) as running:
        await running.link("ada")
        async with SendingDesk.opened(running, RULES) as desk:
            body = {"aisa_api_key": running.raw_key, "content": "a relayed post"}
            headers = {"prefer": "wait=1"}
            first = await running.bare.post(f"{API}post_twitter", json=body, headers=headers)
            assert (first.status_code, first.json()["code"]) == (202, 202)
            headers = {"prefer": "wait=30"}
            call = asyncio.create_task(running.bare.post(f"{API}post_twitter", json=body, headers=headers))
            await held(running, 1)
            await desk.approve(await requested(desk))
            answer = await asyncio.wait_for(call, SOON_S)
            assert (answer.status_code, answer.json()["code"], answer.json()["msg"]) == (200, 200, "ok")
            assert answer.json()["data"]["tweet_id"]


async def test_held_callers_take_up_no_slot_and_no_connection_of_the_database(tmp_path: Path) -> None:
    """With one slot for each key, ten callers are held, and the key's other calls are served."""
    async with RunningGateway.built(tmp_path, max_calls=2, max_calls_each=1, max_calls_each_queued=0) as running:
        await running.link("ada")
        async with SendingDesk.opened(running, RULES) as desk:
            calls = []
            for number in range(10):
                calls.append(asyncio.create_task(post(running, 30, text=f"post {number}")))
                await held(running, number + 1)
            assert (await running.status())["linked"] is True
            for one in await desk.records.listed(20):
                await desk.approvals.deny(one.row.request_id, OPERATOR)
            answers = await asyncio.wait_for(asyncio.gather(*calls), 20)
            assert {answer.status_code for answer in answers} == {403}


async def test_the_next_caller_beyond_the_limit_is_answered_immediately(
    desk: SendingDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The 201st caller gets its 202 without a wait; all of them cost one read every half second, and nothing later."""
    running, reads = desk.running, 0
    settled = store.settled

    async def counting(*given: Any) -> frozenset[str]:
        nonlocal reads
        reads += 1
        return await settled(*given)

    monkeypatch.setattr(store, "settled", counting)
    asked = await desk.ask("post_twitter", BODY, NAME)
    url, headers = f"{API}requests/{asked}", {"prefer": "wait=30"}
    calls = [asyncio.create_task(running.client.get(url, headers=headers)) for _ in range(approval_waits.MAX_WAITING)]
    await held(running, approval_waits.MAX_WAITING)
    beyond = await asyncio.wait_for(running.client.get(url, headers=headers), SOON_S)
    assert (beyond.status_code, "preference-applied" in beyond.headers) == (200, False)
    repeated = await asyncio.wait_for(post(running, 30, NAME), SOON_S)
    assert (repeated.status_code, "preference-applied" in repeated.headers) == (202, False)
    before = reads
    await asyncio.sleep(2)
    assert 2 <= reads - before <= 5
    await desk.approve(asked)
    answers = await asyncio.wait_for(asyncio.gather(*calls), 20)
    assert {answer.json()["state"] for answer in answers} == {"confirmed"}
    assert waits_of(running).held == 0
    await asyncio.sleep(1.1)
    before = reads
    await asyncio.sleep(1.1)
    assert reads == before


async def test_no_deadline_of_the_server_ends_a_wait(tmp_path: Path) -> None:
    """The deadlines of a request's head and body are over when it has arrived."""
    async with RunningGateway.built(tmp_path, request_deadline_s=1.0) as running:
        await running.link("ada")
        async with SendingDesk.opened(running, RULES) as desk:
            call = asyncio.create_task(post(running, 30))
            asked = await requested(desk)
            report = asyncio.create_task(running.client.get(f"{API}requests/{asked}", headers={"prefer": "wait=30"}))
            await held(running, 2)
            await asyncio.sleep(3)
            assert waits_of(running).held == 2
            await desk.approve(asked)
            answers = await asyncio.wait_for(asyncio.gather(call, report), SOON_S)
            assert [answer.status_code for answer in answers] == [201, 200]


async def test_a_draining_process_answers_its_held_callers_and_holds_no_others(desk: SendingDesk) -> None:
    """They get their 202 long before the drain ends; what was approved is left to the next process."""
    running = desk.running
    call = asyncio.create_task(post(running, 30, NAME))
    asked = await requested(desk)
    await held(running, 1)
    running.gateway.health.drain()
    answer = await asyncio.wait_for(call, SOON_S)
    assert (answer.status_code, answer.json()["approval"]["request_id"]) == (202, asked)
    again = await asyncio.wait_for(post(running, 30, NAME), SOON_S)
    assert (again.status_code, "preference-applied" in again.headers) == (202, False)
    await desk.approve(asked)
    await asyncio.sleep(1.5)
    assert ((await desk.report(asked))["state"], await desk.sends()) == ("approved", [])


async def test_a_caller_that_disconnects_is_held_no_longer_than_it_asked_for(desk: SendingDesk) -> None:
    """Its request waits on, and the place is free again."""
    running = desk.running
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            await post(running, 2, NAME)
    asked = await requested(desk)
    await held(running, 0)
    assert (await desk.report(asked))["state"] == "awaiting_approval"
