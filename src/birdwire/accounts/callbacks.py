"""Runs the callback of each state once; other loads of the page wait for its end, at any replica. Knows no token."""

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
    from collections.abc import Callable, Coroutine
    from datetime import datetime

    from sqlalchemy import RowMapping

    from birdwire.runtime.clock import Clock
    from birdwire.store.database import Database

LANDING = timedelta(seconds=20)
"""A callback ends within this time, or its process has died."""

_POLLS_S = (0.05, 0.1, 0.2, 0.4, *[0.75] * 26)  # as long as LANDING in all

_CONFIRMING = ("account_mismatch", "code_rejected", "consent_denied", "x_scope_missing")
"""Refusals of a callback that auth/confirm repeats: how the account's owner, or X, ended the link."""

Result = TypeVar("Result")


def undone(account: str) -> str:
    """Return the refusal to store with a state whose link the account's owner undid."""
    return json.dumps({"reason": "state_used", "undone": account})


def refused(error: GatewayError) -> str:
    """Return a refusal as it is stored with a state."""
    return json.dumps({"reason": error.reason, **error.values}, default=str)


def refusal_of(state: RowMapping) -> dict[str, Any]:
    """Return the stored refusal of a state: `reason` and its values; empty without one."""
    refusal: dict[str, Any] = json.loads(state["refusal"]) if state["refusal"] is not None else {}
    return refusal


def ending(state: RowMapping) -> dict[str, Any]:
    """Return why a state of `store.outcomes` has no session any more: `undone` and by whom, or `ended` in another way.

    Empty if it has one, or never had.
    """
    if state["state"] is not None:
        return {}
    refusal = refusal_of(state)
    if refusal or state["session_id"] is None:
        return {name: value for name, value in refusal.items() if name == "undone"}
    return {"ended": True}


def attempt(state: RowMapping, at: datetime) -> dict[str, str | None]:
    """Return what became of an auth_url, as auth/status reports it."""
    refusal, reason = refusal_of(state), None
    if "undone" in refusal:
        outcome = "undone"
    elif refusal or (state["taken_at"] is not None and state["session_id"] is None and _over(state, at)):
        outcome, reason = "refused", refusal.get("reason", "state_used")
    elif state["session_id"] is not None:
        outcome = "approved"
    else:
        outcome = "open" if state["taken_at"] is not None or state["expires_at"] > at else "expired"
    return {"outcome": outcome, "reason": reason, "expires_at": rfc3339(state["expires_at"])}


def _over(state: RowMapping, at: datetime) -> bool:
    """Return whether the callback of a taken state has ended, or its process has died."""
    return state["ended_at"] is not None or state["taken_at"] + LANDING <= at


def unconfirmable(state: RowMapping, at: datetime) -> GatewayError:
    """Return why there is no link of a state to confirm."""
    outcome, refusal = attempt(state, at)["outcome"], refusal_of(state)
    if outcome == "open":
        return GatewayError(
            "x_link_pending",
            why="the account's owner has not approved it at X",
            remedy="Have the account's owner open the auth_url",
        )
    if refusal.get("reason") in _CONFIRMING:
        return GatewayError(**refusal)
    return GatewayError("state_used" if outcome in ("refused", "undone") else "state_expired")


class Callbacks(Generic[Result]):
    """The callbacks under way in this process, by the hash of their state."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._flights: SingleFlight[Result] = SingleFlight()

    async def land(
        self,
        state_hash: bytes,
        find: Callable[[], Coroutine[Any, Any, RowMapping]],
        finish: Callable[[RowMapping], Coroutine[Any, Any, Result]],
        again: Callable[[RowMapping], Result],
    ) -> tuple[Result, bool]:
        """Return what `finish` makes of the state's row, and whether this load is the one that ran it.

        It goes on if the browser leaves. `find` looks the state up with its outcome; `again` returns what became of a
        state that was used before.

        Raises:
            GatewayError: the refusal of `find`, of `finish`, to all who waited for it, or of `again`.
        """
        name = state_hash.hex()
        first = name not in self._flights
        try:
            async with asyncio.timeout(None if first else LANDING.total_seconds()):
                return await self._flights.run(name, lambda: self._once(state_hash, find, finish, again)), first
        except TimeoutError:
            return again(await find()), False

    async def close(self) -> None:
        """Let callbacks under way end."""
        await self._flights.close(wait_s=LANDING.total_seconds())

    async def _once(
        self,
        state_hash: bytes,
        find: Callable[[], Coroutine[Any, Any, RowMapping]],
        finish: Callable[[RowMapping], Coroutine[Any, Any, Result]],
        again: Callable[[RowMapping], Result],
    ) -> Result:
        state = await find()
        row = await self._take(state_hash) if state["taken_at"] is None else None
        if row is None:
            if state["ended_at"] is None:
                await self._wait(state_hash)
                state = await find()
            return again(state)
        try:
            result = await finish(row)
        except GatewayError as error:
            await self._end(state_hash, refused(error))
            raise
        except StorageDownError:
            await self._end(state_hash, None)
            raise
        await self._end(state_hash, None)
        return result

    async def _take(self, state_hash: bytes) -> RowMapping | None:
        """Use a state up, if nobody has."""
        async with self._database.write() as connection:
            return await store.take(connection, state_hash, await now(connection, self._clock))

    async def _wait(self, state_hash: bytes) -> None:
        """Wait for the end of a callback that runs at another replica, or ran in a process that has died.

        Raises:
            GatewayError: it ended meanwhile, with this refusal.
        """
        for number, pause_s in enumerate(_POLLS_S):
            async with self._database.read() as connection:
                row = await store.find(connection, state_hash)
                at = await now(connection, self._clock)
            if row is None or row["taken_at"] is None:
                return
            if _over(row, at):
                if number and row["ended_at"] is not None and row["refusal"] is not None:
                    raise GatewayError(**refusal_of(row))
                return
            await asyncio.sleep(pause_s)

    async def _end(self, state_hash: bytes, refusal: str | None) -> None:
        """Record the end for other replicas; while the database is away they learn of it after LANDING."""
        with contextlib.suppress(StorageDownError):
            async with self._database.write() as connection:
                await store.end(connection, state_hash, await now(connection, self._clock), refusal)
