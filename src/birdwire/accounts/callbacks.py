"""Runs the callback of each OAuth state once; other loads of the page wait for its outcome, at any replica.

Handles no token. A state's refusal is stored with it, and the functions at the top encode, decode and report it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from birdwire.api.errors import GatewayError
from birdwire.runtime.clock import rfc3339
from birdwire.runtime.single_flight import SingleFlight
from birdwire.store.database import StorageDownError, now
from birdwire.store.tables import link_states as store

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from datetime import datetime

    from birdwire.keys.guess_limit import GuessLimiter
    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database
    from birdwire.store.tables.link_states import StateOutcome, StateRow

MAX_DURATION = timedelta(seconds=20)
"""A callback finishes within this time, or its process has died."""

_POLLS_S = (0.05, 0.1, 0.2, 0.4, *[0.75] * 26)
"""Pauses between checks of a callback that runs elsewhere: MAX_DURATION in total."""

_REPEATED = ("account_mismatch", "code_rejected", "consent_denied", "x_scope_missing")
"""Refusals of a callback that auth/confirm repeats: how the account's owner, or X, ended the link."""

Result = TypeVar("Result")


def encode_undone(account: str) -> str:
    """Return the refusal to store with a state whose link the account's owner undid."""
    return json.dumps({"reason": "state_used", "undone": account})


def encode_refusal(error: GatewayError) -> str:
    """Return a refusal as it is stored with a state."""
    return json.dumps({"reason": error.reason, **error.values}, default=str)


def decode_refusal(refusal: str | None) -> dict[str, Any]:
    """Return a state's stored refusal: `reason` and its values; empty without one."""
    decoded: dict[str, Any] = json.loads(refusal) if refusal is not None else {}
    return decoded


def ending(outcome: StateOutcome) -> dict[str, Any]:
    """Return why the session that a state led to no longer exists: `undone` and by whom, or `ended` in another way.

    Empty if it exists, or never did.
    """
    if outcome.session is not None:
        return {}
    refusal = decode_refusal(outcome.state.refusal)
    if refusal or outcome.state.session_id is None:
        return {name: value for name, value in refusal.items() if name == "undone"}
    return {"ended": True}


def attempt(state: StateRow, at: datetime) -> dict[str, str | None]:
    """Return what became of an auth_url, as auth/status reports it."""
    refusal, reason = decode_refusal(state.refusal), None
    if "undone" in refusal:
        outcome = "undone"
    elif refusal or (state.taken_at is not None and state.session_id is None and _over(state, at)):
        outcome, reason = "refused", refusal.get("reason", "state_used")
    elif state.session_id is not None:
        outcome = "approved"
    else:
        outcome = "open" if state.taken_at is not None or state.expires_at > at else "expired"
    return {"outcome": outcome, "reason": reason, "expires_at": rfc3339(state.expires_at)}


def unconfirmable(state: StateRow, at: datetime) -> GatewayError:
    """Return why a state has no link to confirm."""
    outcome, refusal = attempt(state, at)["outcome"], decode_refusal(state.refusal)
    if outcome == "open":
        return GatewayError(
            "x_link_pending", why="nobody has approved it at X", remedy="Have the account's owner open the auth_url"
        )
    if refusal.get("reason") in _REPEATED:
        return GatewayError(**refusal)
    return GatewayError("state_used" if outcome in ("refused", "undone") else "state_expired")


def _over(state: StateRow, at: datetime) -> bool:
    """Return whether the callback of a taken state has finished, or its process has died."""
    return state.ended_at is not None or (state.taken_at is not None and state.taken_at + MAX_DURATION <= at)


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
        """Return a state and what became of it, in one look-up, which is limited by the caller's address.

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
            if _over(row, at):
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
