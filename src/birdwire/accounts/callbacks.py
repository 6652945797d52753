"""Runs the callback of each OAuth state once; other loads of the page wait for its outcome, at any replica.

Handles no token. `attempts` encodes the refusal that is stored with a state.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from birdwire.accounts.attempts import MAX_DURATION, decode_refusal, encode_refusal, over
from birdwire.api.errors import GatewayError
from birdwire.runtime.single_flight import SingleFlight
from birdwire.store.database import StorageDownError, now
from birdwire.store.tables import link_states as store

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from birdwire.keys.guess_limit import GuessLimiter
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database
    from birdwire.store.tables.link_states import StateOutcome, StateRow

_POLLS_S = (0.05, 0.1, 0.2, 0.4, *[0.75] * 26)
"""Pauses between checks of a callback that runs elsewhere: MAX_DURATION in total."""

Result = TypeVar("Result")


class Callbacks(Generic[Result]):
    """The callbacks that run in this process, by the hash of their state."""

    def __init__(self, database: Database, guesses: GuessLimiter, clock: Clock) -> None:
        self._database = database
        self._guesses = guesses
        self._clock = clock
        self._flights: SingleFlight[Result] = SingleFlight()

    async def run(
        self,
        state_hash: bytes,
        peer: str,
        finish: Callable[[StateRow], Coroutine[Any, Any, Result]],
        again: Callable[[StateOutcome], Result],
    ) -> tuple[Result, bool]:
        """Return what `finish` makes of the state, and whether this load is the one that ran it.

        It continues if the browser leaves. `again` returns what became of a state that was used before.

        Raises:
            GatewayError: state_unknown, auth_failures; the refusal of `finish`, to every load that waited for it, or of
                `again`.
        """
        name = state_hash.hex()
        first = name not in self._flights
        try:
            async with asyncio.timeout(None if first else MAX_DURATION.total_seconds()):
                return await self._flights.run(name, lambda: self._once(state_hash, peer, finish, again)), first
        except TimeoutError:
            return again(await self._known(state_hash, peer)), False

    async def outcomes(self, state_hashes: Sequence[bytes]) -> Mapping[bytes, StateOutcome]:
        """Return what became of states, by hash; unknown ones are left out."""
        async with self._database.read() as connection:
            return await store.outcomes(connection, state_hashes)

    async def close(self) -> None:
        """Wait for running callbacks."""
        await self._flights.close(wait_s=MAX_DURATION.total_seconds())

    async def _once(
        self,
        state_hash: bytes,
        peer: str,
        finish: Callable[[StateRow], Coroutine[Any, Any, Result]],
        again: Callable[[StateOutcome], Result],
    ) -> Result:
        known = await self._known(state_hash, peer)
        taken = await self._take(state_hash) if known.state.taken_at is None else None
        if taken is None:
            if known.state.ended_at is None:
                await self._wait(state_hash)
                known = await self._known(state_hash, peer)
            return again(known)
        try:
            result = await finish(taken)
        except GatewayError as error:
            await self._end(state_hash, encode_refusal(error))
            raise
        except StorageDownError:
            await self._end(state_hash, None)
            raise
        await self._end(state_hash, None)
        return result

    async def _known(self, state_hash: bytes, peer: str) -> StateOutcome:
        """Return a state and what became of it, in one lookup, which is limited by the caller's address.

        Raises:
            GatewayError: state_unknown, auth_failures.
        """
        found = await self._guesses.run(peer, self.outcomes, state_hash, _unused)
        if found is None:
            raise GatewayError("state_unknown")
        return found

    async def _take(self, state_hash: bytes) -> StateRow | None:
        """Mark a state as used; return None if it was used before."""
        async with self._database.write() as connection:
            return await store.take(connection, state_hash, await now(connection, self._clock))

    async def _wait(self, state_hash: bytes) -> None:
        """Wait for a callback that runs at another replica, or ran in a process that has died.

        Raises:
            GatewayError: it finished in the meantime, with this refusal.
        """
        for number, pause_s in enumerate(_POLLS_S):
            async with self._database.read() as connection:
                row = await store.find(connection, state_hash)
                at = await now(connection, self._clock)
            if row is None or row.taken_at is None:
                return
            if over(row, at):
                if number and row.ended_at is not None and row.refusal is not None:
                    raise GatewayError(**decode_refusal(row.refusal))
                return
            await asyncio.sleep(pause_s)

    async def _end(self, state_hash: bytes, refusal: str | None) -> None:
        """Store the end for other replicas, which assume it after MAX_DURATION if the database is unavailable."""
        with contextlib.suppress(StorageDownError):
            async with self._database.write() as connection:
                await store.end(connection, state_hash, await now(connection, self._clock), refusal)


def _unused(outcome: StateOutcome) -> bool:
    return outcome.state.taken_at is None
