"""Many posts, lost answers, dead processes, a hundred concurrent callers: no duplicate post and no wrong verdict.

FAULTS_POSTS sets how many posts are sent in all, FAULTS_KILLS how many processes are killed.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import random
import sqlite3
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from birdwire.sandbox.app import create_sandbox
from birdwire.sandbox.server import config as sandbox_config
from harness.fault_scale import record, scaled
from harness.gateway import RunningGateway, gateway, serving
from harness.processes import Deployment, deploy

if TYPE_CHECKING:
    from pathlib import Path

POSTS = scaled("POSTS", 300, 10_000)
KILLS = scaled("LOST_KILLS", 1, 20)
LOST_SHARE = 0.1
CALLERS = 8
ACCOUNTS = ("ada", "grace", "alan")
DEADLINE_S = 2.0
UNBOUND = {"posts_per_15m": 1_000_000, "posts_per_24h": 1_000_000, "limits": {"GET /2/users/{id}/tweets": 1_000_000}}
WAYS: tuple[dict[str, Any], ...] = (
    {"drop": "after_apply"},
    {"drop": "before_apply"},
    {"truncate": 20},
    {"trickle_bps": 20},
    {"status": 503},
    {"status": 504, "body": "<html>"},
    {"delay_s": 2 * DEADLINE_S},
)
"""How an answer is lost: reset with and without effect, half a body, one that never ends, error pages, silence."""


async def keys(running: RunningGateway) -> list[str]:
    """Link the gateway's own key to ada, and one more key to each other account."""
    await running.link("ada")
    made = [running.raw_key]
    for username in ACCOUNTS[1:]:
        _, raw_key = await running.gateway.keys.create("test", username, "growth", 1_000_000)
        running.client.headers["authorization"] = f"Bearer {raw_key}"
        await running.link(username)
        made.append(raw_key)
    return made


@pytest.mark.trust("G6")
@pytest.mark.trust("T17")
@pytest.mark.timeout(60 + POSTS)
async def test_of_many_posts_with_lost_answers_none_is_doubled_and_every_verdict_is_true(tmp_path: Path) -> None:
    """A tenth of the answers is lost, in every way there is; after a minute nothing is unknown any more."""
    dice = random.Random(POSTS)  # noqa: S311 - which answers are lost, no secret
    answers: list[tuple[int, httpx2.Response]] = []
    async with RunningGateway.built(tmp_path, rpm=1_000_000, x_deadline_s=DEADLINE_S) as running:
        await running.configure(**UNBOUND)
        raw_keys = await keys(running)
        numbers = iter(range(POSTS))

        async def caller() -> None:
            for number in numbers:
                if dice.random() < LOST_SHARE:
                    await running.fault("POST", "/2/tweets", dice.choice(WAYS))
                headers = {"authorization": f"Bearer {raw_keys[number % 3]}", "idempotency-key": str(number)}
                body = {"text": f"post {number}"}
                answer = await running.call("post_twitter", body, headers=headers, timeout=120)
                answers.append((number, answer))

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        await running.x.delete("/_sandbox/faults")
        began_at = asyncio.get_running_loop().time()
        for _ in range(65):
            running.clock.advance(seconds=1)
            await running.advance_x(1)
            await running.gateway.reconciler.round()
        meanwhile_s = (
            asyncio.get_running_loop().time() - began_at
        )  # that this machine took in addition to the moved time
        there = collections.Counter(post["text"] for post in (await running.state())["posts"])
        found = outcomes(tmp_path)
        for number, answer in answers:
            state, unknown_s = found[answer.headers["x-request-id"]]
            assert there[f"post {number}"] == (state in {"confirmed", "found"}), (number, state)
            assert (answer.status_code == 201) == (state == "confirmed")
            assert state != "unknown"
            assert unknown_s <= 65 + meanwhile_s
        states = collections.Counter(state for state, _ in found.values())
        longest_s = round(max(unknown_s for _, unknown_s in found.values()), 1)
        record("posts, one answer in ten lost", runs=POSTS, **states, longest_unknown_s=longest_s)
        assert {"found", "not_found"} <= set(states)


def outcomes(directory: Path) -> dict[str, tuple[str, float]]:
    """Every row of the journal: its state, and for how many seconds it was unknown."""
    with contextlib.closing(sqlite3.connect(directory / "birdwire.db")) as database:
        rows = database.execute("SELECT request_id, state, lost_at, settled_at FROM journal").fetchall()
    return {row[0]: (row[1], (row[3] - row[2]) / 1e6 if row[2] and row[3] else 0.0) for row in rows}


@pytest.mark.trust("F40")
@pytest.mark.engines("sqlite", "postgres")
async def test_a_hundred_callers_at_two_gateways_are_one_post(tmp_path: Path, database_url: str) -> None:
    """One Idempotency-Key: one send; the rest hear that it runs, or how it ended. Another body: 409."""
    sandbox = create_sandbox()
    async with contextlib.AsyncExitStack() as stack:
        x_url = await stack.enter_async_context(serving(sandbox_config(sandbox)))
        both = [
            await stack.enter_async_context(gateway(tmp_path, sandbox, x_url, stack, database_url=database_url))
            for _ in range(2)
        ]
        first = both[0]
        _, raw_key = await first.gateway.keys.create("test", "test", "custom", 1_000_000)
        for running in both:
            running.client.headers["authorization"] = f"Bearer {raw_key}"
        await first.link("ada")
        headers = {"idempotency-key": "k"}
        calls = (
            running.call("post_twitter", {"text": "one of many"}, headers=headers)
            for running, _ in zip(itertools.cycle(both), range(100), strict=False)
        )
        answers = await asyncio.gather(*calls)
        assert {answer.status_code for answer in answers} <= {201, 409, 503}
        reasons = {answer.json()["error"]["reason"] for answer in answers if answer.status_code == 409}
        assert reasons <= {"idempotency_in_flight"}
        assert len(await first.calls("/2/tweets", method="POST")) == 1
        for running in both:
            again = await running.call("post_twitter", {"text": "one of many"}, headers=headers)
            assert (again.status_code, again.headers["idempotent-replayed"]) == (201, "true")
            other = await running.call("post_twitter", {"text": "another"}, headers=headers)
            assert other.json()["error"]["reason"] == "idempotency_key_reused"


@pytest.mark.trust("F2")
@pytest.mark.timeout(60 + 30 * KILLS)
async def test_a_post_whose_process_was_killed_is_found_and_not_sent_again(tmp_path: Path) -> None:
    """Between the send and the answer: the next process looks, and the same key tells what X has."""
    async with deploy(tmp_path) as deployment:
        at = await deployment.serve()
        await deployment.link(at)
        await at.kill()
        for number in range(KILLS):
            at = await deployment.serve(failpoints="post_after_send=kill")
            await deployment.fault("/2/tweets", {"trickle_bps": 20})
            with contextlib.suppress(httpx2.HTTPError):
                await post(deployment, at, number)
            await at.ended()
            again = await deployment.serve()
            async with asyncio.timeout(30):
                while (answer := await post(deployment, again, number)).status_code != 201:
                    assert answer.json()["error"]["reason"] == "outcome_unknown"
                    await asyncio.sleep(0.1)
            assert answer.headers["idempotent-replayed"] == "true"
            texts = [one["text"] for one in (await deployment.x.get("/_sandbox/state")).json()["posts"]]
            assert texts.count(f"killed {number}") == 1
            await again.kill()


async def post(deployment: Deployment, at: Any, number: int) -> httpx2.Response:
    """Post under a name."""
    return await deployment.call(at, "post_twitter", {"text": f"killed {number}"}, **{"idempotency-key": f"k{number}"})
