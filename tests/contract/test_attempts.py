"""What a policy, a cap, a pause or a rule of the key refused is in the journal, and never fills it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from birdwire.api.body import NO_BODY
from birdwire.api.errors import PROBLEMS, GatewayError
from birdwire.api.messages import Call
from birdwire.gateway.pipeline import Pipeline
from birdwire.keys.context import CallContext, RouteRules
from birdwire.outcomes.attempts import ATTEMPTED, MAX_A_DAY, MAX_A_MINUTE, Attempts
from birdwire.outcomes.own_refusals import Rejections
from birdwire.store.database import Database, StorageDownError
from birdwire.store.tables import journal
from harness.gateway import API, POST, MovableClock, RunningGateway

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection

    from birdwire.api.messages import Answer
    from birdwire.store.tables.journal import JournalRow

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)


class Fixed(MovableClock):
    """A clock that stands still until a test moves it."""

    def unix_s(self) -> float:
        """Return the time of the test."""
        return NOON.timestamp() + self.added.total_seconds()

    def at(self, moment: datetime) -> None:
        """Set the time."""
        self.added = moment - NOON


async def rows_of(url: str, **equal: str) -> list[JournalRow]:
    """Return the rows of the journal, newest first."""
    database = Database(url)
    try:
        async with database.read() as connection:
            return await journal.listed(connection, equal, None, 100_000)
    finally:
        await database.close()


def refused(attempts: Attempts, key_id: str, error: GatewayError | None = None, times: int = 1) -> None:
    """Record calls of a key that were refused."""
    for _ in range(times):
        call = Call("POST", f"{API}like_twitter", note={"key_id": key_id, "operation": "like_twitter"})
        attempts.add(call, error or GatewayError("cap_reached"), "17")


async def database(url: str) -> Database:
    """Open a new database."""
    opened = Database(url)
    await opened.prepare(upgrade=False)
    return opened


def counted(rows: Sequence[JournalRow]) -> tuple[int, int]:
    """Return how many rows there are, and how many attempts they stand for."""
    return len(rows), sum(row.times or 0 for row in rows)


@pytest.mark.engines("sqlite", "postgres")
async def test_a_day_of_refused_calls_takes_few_rows_and_none_is_lost(database_url: str) -> None:
    """100,000 calls of one key, across a restart in the middle of the day."""
    opened, clock = await database(database_url), Fixed()
    morning = NOON.replace(hour=0)
    try:
        attempts = Attempts(opened, clock)
        for minute in range(1_000):
            if minute == 500:
                await attempts.close()
                attempts = Attempts(opened, clock)
            clock.at(morning + timedelta(minutes=minute))
            refused(attempts, "key_1", times=100)
            # A second passes, in which the background task writes.
            if minute % 10 == 0:
                await attempts.flush()
        await attempts.close()
    finally:
        await opened.close()
    rows, times = counted(await rows_of(database_url, key_id="key_1"))
    assert times == 100_000
    assert MAX_A_DAY <= rows <= 1_100


async def test_no_minute_of_a_key_has_more_rows_than_its_limit(database_url: str) -> None:
    """The rest are counted in the row of their hour, and another key's are its own."""
    opened, clock = await database(database_url), Fixed()
    try:
        attempts = Attempts(opened, clock)
        refused(attempts, "key_1", times=MAX_A_MINUTE + 5)
        refused(attempts, "key_2")
        clock.advance(minutes=1)
        refused(attempts, "key_1")
        await attempts.flush()
        clock.advance(seconds=1)
        await attempts.flush()
    finally:
        await opened.close()
    rows = await rows_of(database_url, key_id="key_1")
    assert sorted(row.times or 0 for row in rows) == [1] * (MAX_A_MINUTE + 1) + [5]
    [rest] = [row for row in rows if row.times == 5]
    assert (rest.created_at, rest.reason, rest.state) == (NOON, "cap_reached", "not_sent")
    assert counted(await rows_of(database_url, key_id="key_2")) == (1, 1)


async def test_replicas_count_in_the_rows_of_an_hour_in_one_order(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share these rows, and two that update them in opposite orders would wait for each other."""
    opened = await database(database_url)
    attempts = Attempts(opened, Fixed())
    for key_id in ("key_b", "key_c", "key_a"):
        refused(attempts, key_id, times=MAX_A_MINUTE + 1)
    counted: list[str] = []
    bump = journal.bump_hour

    async def watched(connection: AsyncConnection, row: Mapping[str, Any], times: int) -> None:
        counted.append(row["key_id"])
        await bump(connection, row, times)

    monkeypatch.setattr(journal, "bump_hour", watched)
    await attempts.flush()
    await opened.close()
    assert counted == ["key_a", "key_b", "key_c"]


async def test_a_new_day_has_rows_again(database_url: str) -> None:
    """Days are UTC's."""
    opened, clock = await database(database_url), Fixed()
    try:
        attempts = Attempts(opened, clock)
        for minute in range(MAX_A_DAY // MAX_A_MINUTE + 5):
            clock.at(NOON + timedelta(minutes=minute))
            refused(attempts, "key_1", times=MAX_A_MINUTE)
            await attempts.flush()
        before = counted(await rows_of(database_url))
        clock.at(NOON.replace(hour=0) + timedelta(days=1))
        refused(attempts, "key_1", times=3)
        await attempts.flush()
    finally:
        await opened.close()
    # The row of the hour counts what the day's rows do not hold.
    assert before == (MAX_A_DAY + 1, MAX_A_DAY + 5 * MAX_A_MINUTE)
    assert counted(await rows_of(database_url)) == (before[0] + 3, before[1] + 3)


async def test_rows_wait_while_the_store_is_away_and_the_memory_is_bounded(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for them, and what is in memory is written once the store is back."""
    monkeypatch.setattr("birdwire.outcomes.attempts.MAX_WAITING", 50)
    opened = await database(database_url)
    attempts = Attempts(opened, Fixed())

    def away() -> Any:
        raise StorageDownError("OperationalError")

    try:
        with monkeypatch.context() as patched:
            patched.setattr(opened, "write", away)
            # As many rows as there is room for, then as many counters, then nothing more.
            for number in range(120):
                refused(attempts, f"key_{number}")
            refused(attempts, "key_50", times=3)
            for _ in range(2):
                with pytest.raises(StorageDownError):
                    await attempts.flush()
        await attempts.flush()
        await attempts.flush()
    finally:
        await opened.close()
    assert counted(await rows_of(database_url)) == (100, 103)


async def test_findings_are_kept_without_their_messages(database_url: str) -> None:
    """And the account, as far as it was known; no text."""
    finding = {"rule": "links", "outcome": "deny", "reason": "policy_denied", "scope": "gateway", "version": 3}
    opened = await database(database_url)
    try:
        attempts = Attempts(opened, Fixed())
        refused(attempts, "key_1", GatewayError("policy_denied", findings=[{**finding, "message": "example.org"}]))
        await attempts.flush()
    finally:
        await opened.close()
    [row] = await rows_of(database_url)
    assert row.decision == {"versions": {"gateway": 3}, "findings": [finding], "shadow": []}
    assert (row.user_id, row.status, row.words_ct, row.data) == ("17", 403, None, None)


def test_only_refusals_of_our_own_are_recorded() -> None:
    """Each is a reason whose cause is the gateway, the operator or the account's owner."""
    assert {PROBLEMS[reason].whose for reason in ATTEMPTED} <= {"operator", "account_owner", "caller"}
    assert not {reason for reason in ATTEMPTED if reason.startswith("x_")}


async def attempted(running: RunningGateway, number: int) -> list[tuple[str, str | None, str]]:
    """Wait until attempts are recorded; return operation, reason and state of each, oldest first."""
    async with asyncio.timeout(20):
        while True:
            rows = await rows_of(running.settings.database_url, key_id=running.key_id)
            found = [(row.operation, row.reason, str(row.state)) for row in reversed(rows) if row.times is not None]
            if len(found) >= number:
                return found
            await asyncio.sleep(0.05)


async def test_what_a_rule_of_the_key_refuses_is_recorded(linked: RunningGateway) -> None:
    """What is malformed, unknown or X's is not."""
    keys, key_id = linked.gateway.keys, linked.key_id
    await keys.change(key_id, actions=("like_twitter", "user/info", "link"), daily_writes=1)
    assert (await linked.like()).status_code == 200
    assert (await linked.like()).status_code == 429
    assert (await linked.call("follow_twitter", {"target_user_id": "2"})).status_code == 403
    assert (await linked.call("like_twitter", {"tweet_id": "no id"})).status_code == 400
    assert (await linked.call("auth_twitter", {"return_to": "https://example.org/"})).status_code == 400
    await keys.change(key_id, ips=("192.0.2.0/24",))
    assert (await linked.like()).status_code == 403
    await keys.change(key_id, ips=(), expires_at=linked.clock.now() + timedelta(minutes=1))
    linked.clock.advance(minutes=2)
    refused = await linked.like()
    assert refused.status_code == 401
    assert await attempted(linked, 5) == [
        ("like_twitter", "daily_cap", "not_sent"),
        ("follow_twitter", "key_not_allowed", "not_sent"),
        ("auth_twitter", "return_to_not_allowed", "not_sent"),
        ("like_twitter", "ip_not_allowed", "not_sent"),
        ("like_twitter", "key_expired", "not_sent"),
    ]


async def test_the_caller_can_ask_for_a_recorded_attempt(linked: RunningGateway) -> None:
    """Before it is written and afterwards, in the same words."""
    await linked.gateway.keys.change(linked.key_id, actions=("follow_twitter",))
    answer = await linked.call("like_twitter", {"tweet_id": POST})
    path = f"{API}requests/{answer.json()['error']['request_id']}"
    before = (await linked.client.get(path)).json()
    assert (before["state"], before["reason"], before["status"]) == ("not_sent", "key_not_allowed", 403)
    assert len(await attempted(linked, 1)) == 1
    assert (await linked.client.get(path)).json() == before


async def test_a_dry_run_leaves_no_attempt(linked: RunningGateway) -> None:
    """It only asks."""
    await linked.gateway.keys.change(linked.key_id, actions=("follow_twitter",))
    assert (await linked.call("dry_run/like_twitter", {"tweet_id": POST})).status_code == 200
    assert (await linked.like()).status_code == 403
    assert await attempted(linked, 1) == [("like_twitter", "key_not_allowed", "not_sent")]


class NoSessions:
    """The sessions of keys without a link."""

    def ready(self, key_id: str) -> None:
        """Return no session."""
        del key_id


@pytest.mark.parametrize("recorded", [False, True])
async def test_a_refusal_with_a_row_of_its_own_is_not_counted_as_an_attempt(
    database_url: str, *, recorded: bool
) -> None:
    """A pause may stop a write that is about to be sent, and whose end the journal records."""
    opened, unused = await database(database_url), cast("Any", None)
    attempts, sessions = Attempts(opened, Fixed()), cast("Any", NoSessions())
    rejections = Rejections(Fixed())
    pipeline = Pipeline(unused, sessions, unused, unused, rejections, attempts, unused, keyless_body_s=1)
    call = Call("POST", f"{API}like_twitter", note={"key_id": "key_1", "operation": "like_twitter"})

    async def work(context: CallContext) -> Answer:
        context.recorded = recorded
        raise GatewayError("paused")

    context = CallContext(call, RouteRules("like_twitter", action="like_twitter"), NO_BODY)
    assert (await pipeline.do_once(context, None, "like_twitter", {}, work)).status == 403
    await attempts.close()
    await opened.close()
    assert len(await rows_of(database_url)) == 1 - recorded
