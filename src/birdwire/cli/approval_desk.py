"""Opens the writes that wait for a person, on the database of the settings, for commands that show and decide them."""

from __future__ import annotations

import asyncio
import io
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from birdwire.api.errors import GatewayError, render
from birdwire.cli.approval_view import Asked
from birdwire.cli.database import opened, operator, refusals
from birdwire.cli.printable import printable
from birdwire.cli.stop import ExitCode, Stop
from birdwire.gateway.guardrails.approvals import Approvals
from birdwire.gateway.guardrails.guards import read_guard
from birdwire.gateway.guardrails.spending import Spending
from birdwire.outcomes.approval_records import ApprovalRecords, Waiting
from birdwire.runtime.clock import Clock
from birdwire.runtime.telemetry import Telemetry
from birdwire.startup import open_vault
from birdwire.store.encryption.key_rotation import KeyRotation
from birdwire.store.encryption.text_marks import TextMarks
from birdwire.store.tables import api_keys, journal, processes
from birdwire.store.tables import approvals as store
from birdwire.x.catalog.prices import Prices

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Iterator
    from datetime import datetime

    from birdwire.gateway.guardrails.policy import Guard
    from birdwire.settings import Settings
    from birdwire.store.database import Database
    from birdwire.store.tables.approvals import ApprovalRow
    from birdwire.store.tables.journal import JournalRow

Result = TypeVar("Result")
MOST: Final = 10_000
SHORTEST: Final = 6
"""The shortest end of a request's id that names the request."""

_UNKNOWN = "No write that needed a person has this request ID, or its record has been deleted."
_AGAIN = "To see how it stands, run: birdwire approvals show {request_id}"
_FIXES = {
    "request_not_found": "List what waits with `birdwire approvals list`. Older writes are in `birdwire log`.",
    "approval_not_waiting": _AGAIN,
    "approval_expired": "Nothing more can be done about it. The caller may ask again.",
    "approval_stale": _AGAIN,
    "cancelled": "",
    "restored_backup": "Check on x.com whether it was carried out. The caller may ask again.",
    "paused": "End the pause with `birdwire resume`, then decide. `birdwire check` names the pauses.",
}
"""Fixes by reason for the person who decides; the gateway's own fixes are for programs that call it."""


class Desk:
    """What waits, and the decisions on it. Each method is one step, so that a person can think in between."""

    def __init__(
        self, runner: asyncio.Runner, database: Database, records: ApprovalRecords, approvals: Approvals
    ) -> None:
        self._runner = runner
        self._database = database
        self._records = records
        self._approvals = approvals
        self._clock = Clock()

    def now(self) -> datetime:
        """Return the time."""
        return self._clock.now()

    def waiting(self, limit: int = MOST, key_id: str | None = None) -> list[Asked]:
        """Return what waits for a decision or to be sent; what expires first comes first.

        Raises:
            Stop: there is no key with this id.
        """
        return self._run(self._waiting(limit, key_id))

    def count(self, key_id: str | None = None) -> int:
        """Return how many writes wait for a decision."""
        return self._run(self._count(key_id))

    def find(self, name: str) -> Asked:
        """Return a request by its id, or by an end of the id that only one waiting request has.

        Raises:
            Stop: there is no such request, or there are several.
        """
        request_id = self._run(self._named(name))
        found = self._run(self._find(request_id), request_id)
        if found is None:
            raise _refused(GatewayError("request_not_found"), request_id)
        return found

    def found(self, request_ids: Iterable[str]) -> list[Asked]:
        """Return the requests with these ids, as far as they exist."""
        every = [self._run(self._find(request_id)) for request_id in request_ids]
        return [one for one in every if one is not None]

    def approve(self, request_id: str, payload_sha256: str) -> ApprovalRow:
        """Approve the payload that was shown."""
        return self._run(self._approvals.approve(request_id, payload_sha256, operator()), request_id)

    def deny(self, request_id: str, note: str | None, payload_sha256: str | None = None) -> ApprovalRow:
        """Deny a request."""
        denied = self._approvals.deny(request_id, operator(), payload_sha256=payload_sha256, note=note)
        return self._run(denied, request_id)

    def edit(self, request_id: str, text: str, payload_sha256: str) -> ApprovalRow:
        """Change the text of a post that waits."""
        return self._run(self._approvals.edit(request_id, text, payload_sha256, operator()), request_id)

    def cancel(self, request_id: str) -> ApprovalRow:
        """Cancel a request that was not sent yet."""
        return self._run(self._approvals.cancel(request_id, operator()), request_id)

    def make_link(self, request_id: str) -> tuple[str, datetime]:
        """Return the token of a new signed link, and when it ends."""
        return self._run(self._approvals.make_link(request_id, operator()), request_id)

    def order_deletion(self, made: JournalRow) -> str:
        """Order the deletion of a post; return the request."""
        return self._run(self._approvals.order_deletion(made, operator()))

    def states(self, request_ids: list[str]) -> dict[str, JournalRow]:
        """Return the journal's rows of requests, by their ids."""
        return self._run(self._states(request_ids))

    def is_served(self) -> bool:
        """Return whether a gateway runs on the database."""
        return self._run(self._is_served())

    def address(self) -> str | None:
        """Return the URL of a gateway that runs on the database; None if it is not known."""
        return self._run(self._address())

    def _run(self, step: Coroutine[Any, Any, Result], request_id: str = "") -> Result:
        try:
            with refusals():
                return self._runner.run(step)
        except GatewayError as error:
            raise _refused(error, request_id) from None

    async def _waiting(self, limit: int, key_id: str | None) -> list[Asked]:
        found = await self._records.listed(limit, key_id)
        async with self._database.read() as connection:
            labels = {row.key_id: row.label for row in await api_keys.list_all(connection)}
        if key_id is not None and key_id not in labels:
            message = f"There is no key {printable(key_id, 60)}."
            raise Stop(ExitCode.USAGE, message, "List the keys with `birdwire keys list`.")
        return [Asked(one, labels.get(one.row.key_id, "")) for one in found]

    async def _count(self, key_id: str | None) -> int:
        async with self._database.read() as connection:
            return await store.count_waiting(connection, key_id)

    async def _find(self, request_id: str) -> Asked | None:
        found: Waiting | None = await self._records.find(request_id)
        if found is None:
            return None
        async with self._database.read() as connection:
            key = await api_keys.get(connection, found.row.key_id)
        return Asked(found, "" if key is None else key.label)

    async def _named(self, name: str) -> str:
        async with self._database.read() as connection:
            if len(name) < SHORTEST or await store.get(connection, name) is not None:
                return name
            rows = await store.waiting(connection, MOST)
        ends = [row.request_id for row, _ in rows if row.request_id.endswith(name.upper())]
        if len(ends) > 1:
            message = f"{len(ends)} waiting requests end with {name.upper()}."
            raise Stop(ExitCode.USAGE, message, "Give the whole ID of one: " + ", ".join(ends[:5]))
        return ends[0] if ends else name

    async def _states(self, request_ids: list[str]) -> dict[str, JournalRow]:
        async with self._database.read() as connection:
            rows = [await journal.get(connection, request_id) for request_id in request_ids]
        return {row.request_id: row for row in rows if row is not None}

    async def _is_served(self) -> bool:
        async with self._database.read() as connection:
            return await processes.any_alive(connection, self._clock.now())

    async def _address(self) -> str | None:
        async with self._database.read() as connection:
            return await processes.address(connection, self._clock.now())


@contextmanager
def at_desk(settings: Settings, *, seals: bool = False) -> Iterator[Desk]:
    """Open the desk, also while a gateway runs. `seals`: the command may encrypt something.

    Raises:
        Stop: the database or the vault key is unusable.
    """
    with refusals(), asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            database = runner.run(stack.enter_async_context(opened(settings)))
            yield runner.run(_desk(runner, database, settings, seals=seals))
        finally:
            runner.run(stack.aclose())


async def _desk(runner: asyncio.Runner, database: Database, settings: Settings, *, seals: bool) -> Desk:
    vault, clock = open_vault(settings), Clock()
    keys = KeyRotation(database, vault, clock, by=operator())
    await (keys.enlist(starting=False) if seals else keys.check())

    async def find(request_id: str) -> JournalRow | None:
        async with database.read() as connection:
            return await journal.get(connection, request_id)

    spending = Spending(database, partial(_guard, database), TextMarks(database, vault, clock), Prices.load(), clock)
    records = ApprovalRecords(database, vault, find, clock)
    telemetry = Telemetry(io.StringIO(), clock, "error")
    approvals = Approvals(database, records, spending, telemetry, clock, settings.approval_ttl_s)
    return Desk(runner, database, records, approvals)


async def _guard(database: Database, key_id: str) -> Guard | None:
    """Return what holds for a key itself and for the gateway. What a command judges brings its own guard."""
    async with database.read() as connection:
        return await read_guard(connection, key_id, None)


def _refused(error: GatewayError, request_id: str) -> Stop:
    """Return the end of a command that a refusal of Birdwire's causes."""
    document = render(error, request_id).value
    # The gateway's own message is about the writes of the key that asks.
    message = _UNKNOWN if error.reason == "request_not_found" else document["error"]["message"]
    fix = _FIXES.get(error.reason, document["error"]["fix"]).replace("{request_id}", request_id)
    document["error"] |= {"message": message, "fix": fix}
    code = ExitCode.UPSTREAM if error.problem.status >= 500 else ExitCode.REFUSED
    return Stop(code, message, fix, document=document)
