"""Operators who change one policy at the same time: each version is one change, and whoever loses is told."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from birdwire.gateway.guardrails.policy import PolicyError
from birdwire.gateway.guardrails.registry import Policies
from birdwire.gateway.guardrails.rules import parse_shorthand
from birdwire.keys.registry import Keys
from birdwire.runtime.clock import Clock
from birdwire.store.database import Database
from birdwire.store.tables import acts, policies
from harness.guarded_gateway import GATEWAY, OPERATOR

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OPERATORS = 6
CHANGES = 5


@pytest.fixture
async def operators(database_url: str) -> AsyncIterator[list[Policies]]:
    """Operators with a connection each, as processes have."""
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(OPERATORS):
            database = Database(database_url)
            stack.push_async_callback(database.close)
            await database.prepare(upgrade=False)
            made.append(Policies(database, Clock(), OPERATOR))
        yield made


@pytest.mark.trust("#302")
@pytest.mark.engines("sqlite", "postgres")
@pytest.mark.parametrize("scope", ["key", GATEWAY])
async def test_concurrent_changes_of_one_policy_lose_none_that_was_acknowledged(
    operators: list[Policies], database_url: str, scope: str
) -> None:
    """Each sets another member of a rule, which all the later versions have; versions are numbered without a gap."""
    database = Database(database_url)
    try:
        if scope == "key":
            scope = (await Keys(database, Clock()).create("test", "key", "free"))[0].key_id
        names = ("post_twitter", "like_twitter", "follow_twitter", "delete_twitter", "retweet_twitter", "*")
        acknowledged: list[tuple[str, int]] = []
        lost = 0

        async def change(registry: Policies, name: str) -> None:
            nonlocal lost
            for number in range(1, CHANGES + 1):
                try:
                    await registry.set(scope, parse_shorthand(f"caps.{name}={number}/d"))
                except PolicyError as error:
                    assert "at the same time" in str(error)  # noqa: PT017 - an operator may win every race
                    lost += 1
                else:
                    acknowledged.append((name, number))

        await asyncio.gather(*(change(registry, name) for registry, name in zip(operators, names, strict=True)))
        async with database.read() as connection:
            versions = await policies.history(connection, scope, 1_000)
            recorded = [row for row in await acts.listed(connection, scope, None, 1_000) if row.act == "policy.set"]
        assert sorted(row.version for row in versions) == list(range(1, len(acknowledged) + 1))
        assert len(recorded) == len(acknowledged) == OPERATORS * CHANGES - lost
        newest = max(versions, key=lambda row: row.version).rules
        last = {name: f"{number}/d" for name, number in sorted(acknowledged, key=lambda one: one[1])}
        assert newest == {"caps": last}
    finally:
        await database.close()


@pytest.mark.engines("sqlite", "postgres")
async def test_of_concurrent_changes_of_one_version_one_is_made(operators: list[Policies]) -> None:
    """With --if-version, all others are told that somebody changed the policy."""
    results = await asyncio.gather(
        *(
            registry.set(GATEWAY, parse_shorthand(f"budget.day_usd={number}"), if_version=0)
            for number, registry in enumerate(operators, 1)
        ),
        return_exceptions=True,
    )
    refused = [result for result in results if isinstance(result, PolicyError)]
    assert len(refused) == OPERATORS - 1
    standing = await operators[0].show(GATEWAY)
    assert standing.own is not None
    assert standing.own.version == 1
