"""Limits database lookups of secrets that this process has not seen before, by the caller's address.

A valid secret is never refused: addresses over their allowance share one batched lookup.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from birdwire.api.errors import GatewayError
from birdwire.keys.rate_limit import failures_from
from birdwire.runtime.bounded_dict import BoundedDict

if TYPE_CHECKING:
    from birdwire.runtime.clock import Clock

MAX_FAILURES_PER_MINUTE = 60
"""Failed lookups that an address may make directly: this many in a burst, and one more each second."""

ROUND_INTERVAL_S = 0.2
"""Time between two shared lookups: five per second in total, one statement each, on one reader."""

MAX_ADDRESSES = 10_000
MAX_WAITING = 1_000

Row = TypeVar("Row")
Find = Callable[[Sequence[bytes]], Awaitable[Mapping[bytes, Row]]]
"""Reads the rows of several secrets in one statement, by the secrets' hashes; secrets without a row are left out."""


@dataclass(slots=True)
class _Allowance:
    """A token bucket: `left` lookups as of `at`."""

    at: float
    left: float = MAX_FAILURES_PER_MINUTE


def _always(_: object) -> bool:
    return True


class GuessLimiter:
    """Limits the cost of guesses. A lookup that finds a valid secret is free; one that does not counts.

    An address over its allowance is not refused outright, since it may be a proxy with valid callers behind it: its
    lookups wait for the next round, which looks up all waiting secrets together. The cost to the database is the
    number of statements, so a valid secret is found within a second however many invalid ones wait with it.
    """

    def __init__(self, clock: Clock, *, round_s: float = ROUND_INTERVAL_S) -> None:
        self._clock = clock
        self._round_s = round_s
        # The least recently used address comes first.
        self._allowances: BoundedDict[str, _Allowance] = BoundedDict(MAX_ADDRESSES)
        self._waiting: dict[Find[Any], dict[bytes, asyncio.Future[Any]]] = {}
        self._rounds: asyncio.Task[None] | None = None

    async def run(
        self, peer: str, find: Find[Row], secret_hash: bytes, valid: Callable[[Row], bool] = _always
    ) -> Row | None:
        """Return the row of a secret, if it exists. A row that is not `valid`, such as a used one, counts as a failure.

        Raises:
            GatewayError: auth_failures: there is no row, and the address is over its allowance.
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
            counts = row is None or not valid(row)
        finally:
            allowance.left += not counts
        return row

    async def close(self) -> None:
        """Stop the rounds and cancel every waiting lookup."""
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
            allowance = self._allowances[name] = _Allowance(now)
        self._allowances.move_to_end(name)
        allowance.left = min(
            MAX_FAILURES_PER_MINUTE, allowance.left + (now - allowance.at) * MAX_FAILURES_PER_MINUTE / 60
        )
        allowance.at = now
        return allowance

    async def _share(self, find: Find[Row], secret_hash: bytes) -> Row | None:
        """Wait for the next round and return the row that it found.

        Raises:
            GatewayError: auth_failures: too many lookups are waiting.
        """
        future: asyncio.Future[Row | None] | None = self._waiting.get(find, {}).get(secret_hash)
        if future is None:
            if sum(map(len, self._waiting.values())) >= MAX_WAITING:
                raise GatewayError("auth_failures")
            future = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(find, {})[secret_hash] = future
        if self._rounds is None or self._rounds.done():
            self._rounds = asyncio.create_task(self._run())
        found: Row | None = await asyncio.shield(future)
        return found

    async def _run(self) -> None:
        """Do one lookup per round, of one kind of secret, round-robin, until no lookup is waiting."""
        while self._waiting:
            await asyncio.sleep(self._round_s)
            find = next(iter(self._waiting))
            await _settle(find, self._waiting.pop(find))


async def _settle(find: Find[Any], futures: Mapping[bytes, asyncio.Future[Any]]) -> None:
    try:
        rows = await find(list(futures))
    except Exception as error:  # noqa: BLE001 - the waiting callers raise it
        for future in futures.values():
            future.set_exception(error)
            # Mark it as retrieved, in case every caller has disconnected.
            future.exception()
    else:
        for secret_hash, future in futures.items():
            future.set_result(rows.get(secret_hash))
    finally:
        # This affects only futures that have no result because the gateway is shutting down.
        for future in futures.values():
            future.cancel()
