"""Look-ups of secrets that this process has not seen before, limited by caller's address before the database is asked.

Never refuses a secret that is known to be good: an address over its allowance shares one look-up with all the others.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from birdwire.api.errors import GatewayError
from birdwire.keys.rate_limit import failures_from

if TYPE_CHECKING:
    from birdwire.runtime.clock import Clock

FAILED_A_MINUTE = 60
"""Failed look-ups that an address may make directly: as many at once, and one more with each second."""

ROUND_S = 0.2
"""Time between two shared look-ups: five a second in all, one statement each, on one reader."""

MOST_ADDRESSES = 10_000
MOST_WAITING = 1_000

Row = TypeVar("Row")
Find = Callable[[Sequence[bytes]], Awaitable[Mapping[bytes, Row]]]
"""Reads the rows of several secrets in one statement, by the secrets' hashes; what does not exist is left out."""


@dataclass(slots=True)
class _Allowance:
    """A token bucket: `left` look-ups as of `at`."""

    at: float
    left: float = FAILED_A_MINUTE


def _always(_: object) -> bool:
    return True


class GuessLimiter:
    """Limits what guesses cost. A look-up that finds something good is free; one that does not, counts.

    An address over its allowance is not refused unheard, since it may be a proxy's, with good callers behind it: its
    look-ups wait for the next round, in which all that wait are looked up together. What costs the database something
    is the number of statements, so a good secret is found within a second however many bad ones wait with it.
    """

    def __init__(self, clock: Clock, *, round_s: float = ROUND_S) -> None:
        self._clock = clock
        self._round_s = round_s
        self._allowances: OrderedDict[str, _Allowance] = OrderedDict()  # least recently used first
        self._waiting: dict[Find[Any], dict[bytes, asyncio.Future[Any]]] = {}
        self._rounds: asyncio.Task[None] | None = None

    async def run(
        self, peer: str, find: Find[Row], secret_hash: bytes, good: Callable[[Row], bool] = _always
    ) -> Row | None:
        """Return the row of a secret, if it exists. A row that is not `good`, such as a used one, counts as a failure.

        Raises:
            GatewayError: auth_failures: there is none, and the address is over its allowance.
        """
        allowance = self._allowance(failures_from(peer))
        if allowance.left < 1:
            row = await self._share(find, secret_hash)
            if row is None:
                raise GatewayError("auth_failures")
            return row
        allowance.left -= 1
        counts = False
        try:
            row = (await find([secret_hash])).get(secret_hash)
            counts = row is None or not good(row)
        finally:
            allowance.left += not counts
        return row

    async def close(self) -> None:
        """Stop the rounds, and let nobody wait for another."""
        if self._rounds is not None:
            self._rounds.cancel()
            await asyncio.gather(self._rounds, return_exceptions=True)
        for futures in self._waiting.values():
            for future in futures.values():
                future.cancel()

    def _allowance(self, name: str) -> _Allowance:
        now = self._clock.monotonic()
        allowance = self._allowances.get(name)
        if allowance is None:
            if len(self._allowances) >= MOST_ADDRESSES:
                self._allowances.popitem(last=False)
            allowance = self._allowances[name] = _Allowance(now)
        self._allowances.move_to_end(name)
        allowance.left = min(FAILED_A_MINUTE, allowance.left + (now - allowance.at) * FAILED_A_MINUTE / 60)
        allowance.at = now
        return allowance

    async def _share(self, find: Find[Row], secret_hash: bytes) -> Row | None:
        """Wait for the next round, and return what it found.

        Raises:
            GatewayError: auth_failures: too many wait already.
        """
        future: asyncio.Future[Row | None] | None = self._waiting.get(find, {}).get(secret_hash)
        if future is None:
            if sum(map(len, self._waiting.values())) >= MOST_WAITING:
                raise GatewayError("auth_failures")
            future = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(find, {})[secret_hash] = future
        if self._rounds is None or self._rounds.done():
            self._rounds = asyncio.create_task(self._run())
        return await asyncio.shield(future)

    async def _run(self) -> None:
        """One look-up a round, of one kind of secret; kinds take turns. Ends when nobody waits."""
        while self._waiting:
            await asyncio.sleep(self._round_s)
            find = next(iter(self._waiting))
            await _settle(find, self._waiting.pop(find))


async def _settle(find: Find[Row], futures: Mapping[bytes, asyncio.Future[Row | None]]) -> None:
    try:
        rows = await find(list(futures))
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to those who wait
        for future in futures.values():
            future.set_exception(error)
            future.exception()  # retrieved here, in case every caller has gone
    else:
        for secret_hash, future in futures.items():
            future.set_result(rows.get(secret_hash))
    finally:
        for future in futures.values():
            future.cancel()  # only what is not settled: the gateway is ending
