"""What holds for a key, as a process remembers it: it is read once, and falls with news of any of its scopes."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from birdwire.gateway.guardrails.guards import MISSING, Guards
from birdwire.gateway.guardrails.pauses import pause
from birdwire.gateway.guardrails.trips import Trips
from birdwire.store.tables import pauses, policies
from birdwire.store.tables.acts import Actor
from birdwire.store.tables.pauses import PauseRow
from birdwire.store.tables.policies import PolicyRow
from harness.acts import recorded
from harness.auth_server import Process, processes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from birdwire.gateway.guardrails.policy import Guard
    from harness.gateway import MovableClock

pytestmark = pytest.mark.engines("sqlite", "postgres")

OPERATOR = Actor("uid 0", "cli")


def guards_of(process: Process, clock: MovableClock) -> Guards:
    """The guards that a process remembers."""
    return Guards(process.database, process.links, process.recall, Trips(process.database, clock).after)


async def put_policy(process: Process, clock: MovableClock, scope: str, version: int, rules: object) -> None:
    """Store a version of the operator's policy."""
    row = PolicyRow(scope, "operator", version, "enforce", None, rules, clock.now(), "uid 0")
    async with process.database.write() as connection:
        assert await policies.append(connection, row)


async def put_pause(process: Process, clock: MovableClock, scope: str, why: str = "a test") -> None:
    """Pause a scope."""
    async with process.database.write() as connection:
        row = PauseRow(scope, "operator", clock.now(), clock.now() + timedelta(hours=1), why, OPERATOR.who)
        await pause(connection, OPERATOR, row)


async def lift(process: Process, scope: str) -> None:
    """Resume a scope."""
    async with process.database.write() as connection:
        assert await pauses.lift(connection, scope, "operator")


async def kept(process: Process, guards: Guards, key_id: str) -> Guard | None:
    """The guard of a key, once the process has heard of everything before and remembers it."""
    async with asyncio.timeout(20):
        while True:
            guard = await guards.of(key_id)
            process.recall.poll()
            if guards.cached(key_id) is not MISSING:
                return guard
            await asyncio.sleep(0.01)


async def fallen(process: Process, guards: Guards, key_id: str) -> None:
    """Wait until the process no longer remembers the guard."""
    async with asyncio.timeout(20):
        while guards.cached(key_id) is not MISSING:
            await asyncio.sleep(0.01)
            process.recall.poll()


async def test_a_key_for_which_nothing_holds_has_no_guard_and_that_is_remembered(database_url: str) -> None:
    """An unguarded call asks the cache alone."""
    async with processes(database_url, 1) as (clock, (here,)):
        guards, key_id = guards_of(here, clock), await here.link()
        assert guards.cached(key_id) is MISSING
        assert await kept(here, guards, key_id) is None
        assert guards.cached(key_id) is None


@pytest.mark.parametrize("scope", ["key", "account:id of ada", "gateway"])
async def test_a_guard_falls_with_a_policy_or_a_pause_of_any_of_its_scopes(database_url: str, scope: str) -> None:
    """Whichever process made it; and so does what was known of a key for which nothing held."""
    async with processes(database_url, 2) as (clock, (here, there)):
        guards, key_id = guards_of(here, clock), await here.link()
        scope = key_id if scope == "key" else scope
        changes: list[tuple[Callable[[], Awaitable[object]], tuple[list[str], list[str]] | None]] = [
            (lambda: put_pause(there, clock, scope), ([], [scope])),
            (lambda: put_policy(there, clock, scope, 1, {"links": "deny"}), ([scope], [scope])),
            (lambda: lift(there, scope), ([scope], [])),
            # A version without rules removes the policy.
            (lambda: put_policy(there, clock, scope, 2, None), None),
        ]
        assert await kept(here, guards, key_id) is None
        for change, expected in changes:
            await change()
            await fallen(here, guards, key_id)
            guard = await kept(here, guards, key_id)
            assert expected == (guard and ([row.scope for row in guard.policies], [row.scope for row in guard.pauses]))
            assert guard is None or (guard.key_id, guard.user_id) == (key_id, "id of ada")


async def test_a_guard_holds_the_rules_of_the_account_that_is_linked_now(database_url: str) -> None:
    """A key without a link has the gateway's and its own."""
    async with processes(database_url, 1) as (clock, (here,)):
        guards = guards_of(here, clock)
        for scope in ("gateway", "account:id of ada"):
            await put_policy(here, clock, scope, 1, {"links": "deny"})
        linked, (other, _) = await here.link(), await here.keys.create("test", "unlinked", "free")
        for key_id, scopes in ((linked, {"gateway", "account:id of ada"}), (other.key_id, {"gateway"})):
            guard = await guards.of(key_id)
            assert guard is not None
            assert {policy.scope for policy in guard.policies} == scopes


@pytest.mark.parametrize("rules", [{"no_such_rule": 1}, {"links": 3}, [], "deny", 7])
async def test_a_policy_that_cannot_be_read_is_named_and_the_others_are_kept(database_url: str, rules: Any) -> None:
    """It may be damaged, or of a newer version."""
    async with processes(database_url, 1) as (clock, (here,)):
        key_id = await here.link()
        await put_policy(here, clock, "gateway", 1, rules)
        await put_policy(here, clock, key_id, 1, {"links": "deny"})
        guard = await guards_of(here, clock).of(key_id)
        assert guard is not None
        assert (guard.unreadable, [policy.scope for policy in guard.policies]) == (("gateway",), [key_id])


async def test_a_policy_whose_json_is_damaged_is_unreadable(database_url: str) -> None:
    """A disk, or a hand, may have cut it off."""
    async with processes(database_url, 1) as (clock, (here,)):
        key_id = await here.link()
        async with here.database.write() as connection:
            query = (
                "INSERT INTO policies (scope, author, version, enforcement, rules, changed_at, changed_by)"
                " VALUES ('gateway', 'operator', 1, 'enforce', '{\"links\":', 0, 'a hand')"
            )
            await connection.execute(text(query))
        guard = await guards_of(here, clock).of(key_id)
        assert guard is not None
        assert guard.unreadable == ("gateway",)


async def test_a_pause_is_an_act_with_what_was_before_and_after(database_url: str) -> None:
    """A second pause by the same author replaces the first."""
    async with processes(database_url, 1) as (clock, (here,)):
        await put_pause(here, clock, "gateway", "first")
        clock.advance(minutes=1)
        await put_pause(here, clock, "gateway", "second")
        first, second = [row for row in await recorded(database_url) if row["act"] == "paused"]
        assert (first["subject"], first["before"], first["after"]["why"]) == ("gateway", None, "first")
        assert (second["before"], second["after"]["why"]) == (first["after"], "second")
        async with here.database.read() as connection:
            assert [row.why for row in await pauses.of(connection, ["gateway"])] == ["second"]
