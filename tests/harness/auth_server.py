"""Sessions on a real database with a scripted authorization server, for steps in a given order."""

from __future__ import annotations

import asyncio
import contextlib
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from birdwire.accounts.links import Links
from birdwire.accounts.refresh import Refresher
from birdwire.accounts.sessions import Sessions
from birdwire.keys.cache import KeyCache
from birdwire.keys.guess_limit import GuessLimiter
from birdwire.keys.registry import Keys
from birdwire.runtime.failpoints import Failpoints
from birdwire.runtime.telemetry import Telemetry
from birdwire.store.database import Database
from birdwire.store.encryption.key_rotation import KeyRotation
from birdwire.store.encryption.vault import KEY_BYTES, Vault
from birdwire.x.client.auth_server import Meaning, TokenError, Tokens
from harness.gateway import MovableClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from birdwire.store.tables.x_sessions import SessionRow
    from birdwire.x.client.api import Account
    from birdwire.x.client.auth_server import AuthServer

SECRET = "canary"


def pair(number: int, owner: str = "") -> Tokens:
    """Return the token pair with this number."""
    return Tokens(f"{SECRET}-at-{owner}{number}", f"{SECRET}-rt-{owner}{number}", 7_200, ("like.write",))


LOST = TokenError(Meaning.MAYBE, "x_timeout")
FAILED = TokenError(Meaning.FAILED, "x_5xx")
REFUSED = TokenError(Meaning.REFUSED, "x_session_expired")
NOT_SENT = TokenError(Meaning.NOT_SENT, "x_unreachable")


@dataclass
class ScriptedAuthServer:
    """Stand in for X's authorization server. Each refresh takes the next answer, or waits until the test gives one."""

    sent: list[str] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)
    answers: asyncio.Queue[Tokens | TokenError] = field(default_factory=asyncio.Queue)
    running: int = 0
    max_running: int = 0

    async def refresh(self, refresh_token: str) -> Tokens:
        """Refresh as AuthServer does."""
        self.sent.append(refresh_token)
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        try:
            answer = await self.answers.get()
        finally:
            self.running -= 1
        if isinstance(answer, TokenError):
            raise answer
        return answer

    async def revoke(self, token: str, hint: str) -> None:
        """Revoke as AuthServer does."""
        self.revoked.append(f"{hint} {token}")


async def _unnamed(_access_token: str, _deadline_s: float) -> Account:
    raise AssertionError("X is not asked for a name")


class Process:
    """The links and sessions of one process; several processes may share a database."""

    def __init__(self, url: str, vault: Vault, clock: MovableClock) -> None:
        self.x, self.log = ScriptedAuthServer(), io.StringIO()
        self.database = Database(url)
        telemetry = Telemetry(self.log, clock)
        self.recall, x = KeyCache(self.database, clock), cast("AuthServer", self.x)
        self.links = Links(self.database, vault, x, self.recall, GuessLimiter(clock), clock, telemetry, "sandbox")
        tokens, revocations = self.links.tokens, self.links.revocations
        self.refresher = Refresher(
            self.database, tokens, x, revocations, self.links.require_relink, clock, telemetry, Failpoints()
        )
        self.sessions = Sessions(self.links, self.refresher, self.recall, clock, _unnamed)
        self.keys = Keys(self.database, clock, self.recall)

    async def link(self, label: str = "ada") -> str:
        """Link an account with token pair 1 and return its key's id."""
        key, _ = await self.keys.create("test", label, "free")
        row, _ = await self.links.store_pending(key.key_id, pair(1, label), ["like.write"], None)
        await self.links.name(row.session_id, f"id of {label}", label)
        return key.key_id

    async def row(self, key_id: str) -> SessionRow:
        """Return the row of the key's current link."""
        row = (await self.links.of_key(key_id)).current
        assert row is not None
        return row

    async def token(self, key_id: str) -> str:
        """Return the access token that a call would use now."""
        return (await self.sessions.open(await self.row(key_id))).access_token

    async def asked(self, times: int) -> None:
        """Wait until X has received this many refresh requests."""
        async with asyncio.timeout(20):
            while len(self.x.sent) < times:  # noqa: ASYNC110 - it happens in another task
                await asyncio.sleep(0)

    async def settled(self, key_id: str) -> None:
        """Wait until no renewal of the key's link is under way: the row is stored before its renewal has ended."""
        session_id = (await self.row(key_id)).session_id
        async with asyncio.timeout(20):
            while session_id in self.refresher._flights:  # noqa: ASYNC110, SLF001 - it ends in another task
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def processes(url: str, number: int) -> AsyncIterator[tuple[MovableClock, list[Process]]]:
    """Run `number` processes on one new database, with one clock."""
    clock, vault = MovableClock(), Vault(bytes(range(KEY_BYTES)))
    made = [Process(url, vault, clock) for _ in range(number)]
    try:
        await made[0].database.prepare(upgrade=False)
        await KeyRotation(made[0].database, vault, clock).enlist()
        yield clock, made
    finally:
        for process in made:
            await process.sessions.close()
            await process.links.close()
            await process.database.close()
