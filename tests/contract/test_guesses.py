"""Guesses of keys, states and undo tokens cost the database next to nothing, and block no valid key."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from birdwire.api.errors import GatewayError
from birdwire.keys.guess_limit import (
    MAX_ADDRESSES,
    MAX_FAILURES_PER_MINUTE,
    MAX_WAITING,
    ROUND_INTERVAL_S,
    GuessLimiter,
)
from birdwire.keys.registry import Keys
from birdwire.keys.secrets import mint
from birdwire.runtime.clock import Clock
from birdwire.store.database import Database
from harness.gateway import API, POST, MovableClock, RunningGateway
from harness.linking import HTML, JSON, press_undo, reason_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import httpx2
    from sqlalchemy import RowMapping

STORM = 100
AT_ONCE = 25


@contextlib.contextmanager
def statements(table: str) -> Iterator[list[str]]:
    """The statements about a table that any engine of this process gets."""
    seen: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        if table in statement:
            seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


async def guess_key(running: RunningGateway) -> httpx2.Response:
    """A call with a well-formed key that does not exist."""
    return await running.bare.get(API + "auth/status", headers={"authorization": f"Bearer {mint('test')}"})


async def guess_state(running: RunningGateway) -> httpx2.Response:
    """A callback with a state that does not exist."""
    url = f"{API}oauth_callback?code=a&state={secrets.token_urlsafe(32)}"
    return await running.bare.get(url, headers=JSON)


async def guess_undo(running: RunningGateway) -> httpx2.Response:
    """An undo with a token that does not exist."""
    return await running.bare.post(API + "auth/undo", json={"undo_token": secrets.token_urlsafe(32)}, headers=JSON)


async def guess_link(running: RunningGateway) -> httpx2.Response:
    """The page of a signed link with a token that does not exist."""
    return await running.bare.get(f"/approve/{secrets.token_urlsafe(20)}", headers=JSON)


GUESSES: dict[str, tuple[Callable[[RunningGateway], Awaitable[httpx2.Response]], str, set[str]]] = {
    "keys": (guess_key, "api_secrets", {"key_unknown", "auth_failures"}),
    "states": (guess_state, "link_states", {"state_unknown", "auth_failures"}),
    "signed links": (guess_link, "approval_links", {"route_unknown", "auth_failures"}),
    "undo tokens": (guess_undo, "undo_hash", {"undo_unknown", "auth_failures"}),
}


@contextlib.asynccontextmanager
async def storm(
    running: RunningGateway, guess: Callable[[RunningGateway], Awaitable[httpx2.Response]]
) -> AsyncIterator[Counter[str]]:
    """Guess from the same address the whole time, at least STORM times; how often each refusal came."""
    reasons: Counter[str] = Counter()
    left, exhausted, over = iter(range(STORM)), asyncio.Event(), asyncio.Event()

    async def attacker() -> None:
        while next(left, None) is not None or not over.is_set():
            reasons[reason_of(await guess(running))] += 1
            if "auth_failures" in reasons:
                exhausted.set()

    async with asyncio.timeout(60), asyncio.TaskGroup() as attackers:
        for _ in range(AT_ONCE):
            attackers.create_task(attacker())
        await exhausted.wait()
        try:
            yield reasons
        finally:
            over.set()


@pytest.mark.trust("T11")
@pytest.mark.parametrize("proxies", ["", "127.0.0.1"], ids=["direct", "behind one proxy"])
@pytest.mark.parametrize(("guess", "table", "expected"), GUESSES.values(), ids=GUESSES)
async def test_a_storm_of_guesses_costs_a_few_look_ups_and_blocks_no_valid_key(
    tmp_path: Path,
    guess: Callable[[RunningGateway], Awaitable[httpx2.Response]],
    table: str,
    expected: set[str],
    proxies: str,
) -> None:
    """From the attacker's own address a new key works, a real link is made, and undone."""
    async with RunningGateway.built(tmp_path, trusted_proxies=proxies) as running:
        started = time.monotonic()
        with statements(table) as seen:
            async with storm(running, guess) as reasons:
                assert (await running.status())["linked"] is False  # the key's first call
                page = await running.link()
                assert page.status_code == 200
                assert (await press_undo(running, page)).status_code == 200
        rounds = (time.monotonic() - started) * (1 / ROUND_INTERVAL_S + MAX_FAILURES_PER_MINUTE / 60)
        # The statements of the link itself, and of what holds for its key: policies and pauses.
        own = 16
        assert len(seen) <= MAX_FAILURES_PER_MINUTE + rounds + own
        assert len(seen) < reasons.total()
        assert set(reasons) == expected


@pytest.mark.parametrize(("guess", "table", "expected"), GUESSES.values(), ids=GUESSES)
async def test_one_guess_is_one_look_up(
    running: RunningGateway,
    guess: Callable[[RunningGateway], Awaitable[httpx2.Response]],
    table: str,
    expected: set[str],
) -> None:
    """And no write."""
    with statements(table) as seen:
        assert reason_of(await guess(running)) in expected - {"auth_failures"}
    assert len(seen) == 1
    assert seen[0].startswith("SELECT")


async def test_good_keys_behind_one_address_are_all_served_by_a_cold_process(running: RunningGateway) -> None:
    """More concurrent keys than the address may guess."""
    raw_keys = [
        (await running.gateway.keys.create("test", "one of many"))[1] for _ in range(2 * MAX_FAILURES_PER_MINUTE)
    ]
    with statements("api_secrets") as seen:
        answers = await asyncio.gather(
            *(
                running.bare.post(
                    API + "like_twitter", json={"tweet_id": POST}, headers={"authorization": f"Bearer {key}"}
                )
                for key in raw_keys
            )
        )
    assert {reason_of(answer) for answer in answers} == {"x_not_linked"}
    assert len(seen) <= len(raw_keys)


async def test_a_used_link_cannot_be_loaded_without_end(running: RunningGateway) -> None:
    """Parallel loads all get the outcome's page, from a few look-ups."""
    redirect = await running.consent("ada")
    assert (await running.bare.get(redirect, headers=HTML)).status_code == 200
    with statements("link_states") as seen:
        answers = await asyncio.gather(
            *(running.bare.get(redirect, headers=HTML) for _ in range(2 * MAX_FAILURES_PER_MINUTE))
        )
    assert {answer.status_code for answer in answers} == {200}
    assert len(seen) < 1.5 * MAX_FAILURES_PER_MINUTE


async def test_a_key_that_was_found_before_is_not_a_guess(tmp_path: Path) -> None:
    """Its rules change, so the cache forgets it: it is looked up directly, whatever its address has sent."""
    database = Database(f"sqlite:///{tmp_path / 'birdwire.db'}")
    clock = MovableClock()
    keys = Keys(database, clock, lookups=GuessLimiter(clock, round_s=3_600))
    async with contextlib.aclosing(_Closing(database)), asyncio.timeout(20):
        await database.prepare(upgrade=False)
        key, raw_key = await keys.create("test", "old")
        assert (await keys.find(raw_key, "test", "192.0.2.1")).label == "old"
        for _ in range(MAX_FAILURES_PER_MINUTE):
            with pytest.raises(GatewayError, match="key_unknown"):
                await keys.find(mint("test"), "test", "192.0.2.1")
        await keys.change(key.key_id, label="new")
        assert (await keys.find(raw_key, "test", "192.0.2.1")).label == "new"


class _Closing:
    """A database that is closed at the end."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def aclose(self) -> None:
        """Close it."""
        await self._database.close()


class StillClock(Clock):
    """A clock that a test moves."""

    now_s = 0.0

    def monotonic(self) -> float:
        """Return the time that the test set."""
        return self.now_s


class Store:
    """Finds nothing, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def find(self, secret_hashes: Sequence[bytes]) -> Mapping[bytes, RowMapping]:
        """As a store's look-up."""
        self.asked.append(len(secret_hashes))
        return {}


async def test_an_allowance_comes_back_and_its_memory_is_bounded() -> None:
    """One look-up a second; IPv6 addresses count by their /64; an address not heard of for long is forgotten."""
    clock, store = StillClock(), Store()
    lookups = GuessLimiter(clock, round_s=3_600)

    async def direct(peer: str) -> bool:
        before = len(store.asked)
        waiting = asyncio.create_task(lookups.run(peer, store.find, secrets.token_bytes(32)))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return len(store.asked) > before

    assert [await direct(f"2001:db8::{n:x}") for n in range(MAX_FAILURES_PER_MINUTE + 1)] == [
        *[True] * MAX_FAILURES_PER_MINUTE,
        False,
    ]
    assert await direct("2001:db8:0:1::1")
    clock.now_s += 2
    assert [await direct("2001:db8::1") for _ in range(3)] == [True, True, False]
    for n in range(MAX_ADDRESSES):
        await lookups.run(f"10.0.{n >> 8}.{n & 255}", store.find, b"a")
    assert await direct("2001:db8::1")
    await lookups.close()


async def test_keys_waiting_for_a_look_up_are_bounded_and_looked_up_together() -> None:
    """One statement for all; beyond the bound a caller is refused immediately."""
    store = Store()
    lookups = GuessLimiter(StillClock(), round_s=0.05)
    for _ in range(MAX_FAILURES_PER_MINUTE):
        await lookups.run("192.0.2.1", store.find, secrets.token_bytes(32))
    asked = [lookups.run("192.0.2.1", store.find, secrets.token_bytes(32)) for _ in range(MAX_WAITING + 1)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert {str(answer) for answer in answers} == {"auth_failures"}
    assert store.asked == [1] * MAX_FAILURES_PER_MINUTE + [MAX_WAITING]
    await lookups.close()


async def test_a_failed_look_up_fails_all_its_callers_and_the_next_round_succeeds() -> None:
    """A database that is away costs no allowance."""

    class AwayError(Exception):
        pass

    async def away(_: Sequence[bytes]) -> Mapping[bytes, RowMapping]:
        raise AwayError

    store = Store()
    lookups = GuessLimiter(StillClock(), round_s=0.01)
    for _ in range(MAX_FAILURES_PER_MINUTE + 1):
        with pytest.raises(AwayError):
            await lookups.run("192.0.2.1", away, b"a")
    for _ in range(MAX_FAILURES_PER_MINUTE):
        assert await lookups.run("192.0.2.1", store.find, b"a") is None
    waiting = await asyncio.gather(*(lookups.run("192.0.2.1", away, b"a") for _ in range(3)), return_exceptions=True)
    assert {type(answer) for answer in waiting} == {AwayError}
    with pytest.raises(GatewayError, match="auth_failures"):
        await lookups.run("192.0.2.1", store.find, b"a")
    await lookups.close()
